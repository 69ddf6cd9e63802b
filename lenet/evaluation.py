"""Accuracy, loss and mistakes of a model on a dataset."""

from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from .spec import ModelSpec

SHOWN_CLASSES = 20
MAX_SAMPLES = 40  # correct and wrong predictions each that are kept for the picture


class Sample(NamedTuple):
    """One image with the model's prediction."""

    pixels: np.ndarray  # uint8 (height, width, channels)
    label: int
    predicted: int  # the most probable class
    probability: float  # of the predicted class


class Evaluation:
    """Predictions of a model, added batch by batch.

    ``pairs`` counts each (label, predicted class); ``samples`` are the first
    images and ``mistakes`` the misclassified ones of highest probability,
    at most MAX_SAMPLES of each.
    """

    def __init__(self) -> None:
        self.pairs = Counter()
        self.samples, self.mistakes = [], []
        self._loss = 0.0

    def add(self, pixels: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
        """Add a batch: uint8 (n, height, width, channels), int (n,), float (n, num_classes)."""
        logits = logits.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        self._loss -= log_probabilities[np.arange(len(labels)), labels].sum()
        predicted = log_probabilities.argmax(axis=1).tolist()
        probabilities = np.exp(log_probabilities.max(axis=1)).tolist()
        # Copies, so that those that are kept do not hold the memory of their whole batches.
        columns = map(np.copy, pixels), labels.tolist(), predicted, probabilities
        samples = list(map(Sample, *columns))
        self.pairs.update((sample.label, sample.predicted) for sample in samples)
        self._keep(samples, [sample for sample in samples if sample.label != sample.predicted])

    def merge(self, other: "Evaluation") -> None:
        """Add the predictions of another Evaluation, which are for other images."""
        self.pairs.update(other.pairs)
        self._keep(other.samples, other.mistakes)
        self._loss += other._loss

    def _keep(self, samples, mistakes):
        self.samples = (self.samples + samples)[:MAX_SAMPLES]
        by_probability = sorted(self.mistakes + mistakes, key=lambda sample: -sample.probability)
        self.mistakes = by_probability[:MAX_SAMPLES]

    @property
    def num_images(self) -> int:
        return sum(self.pairs.values())

    @property
    def num_correct(self) -> int:
        return sum(
            number for (label, predicted), number in self.pairs.items() if label == predicted
        )

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_images

    @property
    def loss(self) -> float:
        """The mean cross entropy over the images."""
        return self._loss / self.num_images

    def report(self, spec: ModelSpec) -> list[str]:
        """Return a line for each class: its accuracy, and what it is mistaken for most often.

        Of many classes those of lowest accuracy are shown.
        """
        mistakes, totals = defaultdict(Counter), Counter()  # of each class
        for (label, predicted), number in sorted(self.pairs.items()):
            totals[label] += number
            if predicted != label:
                mistakes[label][predicted] = number
        correct = {label: self.pairs[label, label] for label in sorted(totals)}
        shown = list(correct)
        lines = ["accuracy of each class:"]
        if len(shown) > SHOWN_CLASSES:
            shown = sorted(shown, key=lambda label: correct[label] / totals[label])[:SHOWN_CLASSES]
            lines = [f"accuracy of the {SHOWN_CLASSES} classes where it is lowest:"]
        for label in shown:
            share = f"{correct[label]:,}/{totals[label]:,} ({correct[label] / totals[label]:.2%})"
            line = f"  {spec.class_name(label)}: {share}"
            if mistakes[label]:
                ((predicted, number),) = mistakes[label].most_common(1)
                line += f", most often mistaken for {spec.class_name(predicted)} ({number:,})"
            lines.append(line)
        return lines
