"""Accuracy, loss and mistakes of a model on a dataset."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from .spec import ModelSpec

SHOWN_CLASSES = 20
MAX_SAMPLES = 40  # images, and mistakes, whose pixels are kept for the picture


class Prediction(NamedTuple):
    """What a model says of one image."""

    index: int  # of the image in the dataset, from 0
    label: int
    predicted: int  # the most probable class
    probability: float  # of the predicted class


Sample = tuple[Prediction, np.ndarray]  # with the image's pixels, uint8 (height, width, channels)


class Evaluation:
    """Predictions of a model, added batch by batch; ``first`` is the first image's index.

    ``pairs`` counts each (label, predicted class), ``mistakes`` are all wrong predictions.
    ``samples`` are the first images, and ``worst`` the misclassified ones of highest
    probability, at most MAX_SAMPLES of each.
    """

    def __init__(self, first: int = 0) -> None:
        self.pairs: Counter[tuple[int, int]] = Counter()
        self.mistakes: list[Prediction] = []
        self.samples: list[Sample] = []
        self.worst: list[Sample] = []
        self._first, self._loss = first, 0.0

    def add(self, pixels: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
        """Add a batch: uint8 (n, height, width, channels), int (n,), float (n, num_classes)."""
        logits = logits.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        self._loss -= log_probabilities[np.arange(len(labels)), labels].sum()
        predicted = log_probabilities.argmax(axis=1).tolist()
        probabilities = np.exp(log_probabilities.max(axis=1)).tolist()
        indices = range(self._first + self.num_images, self._first + self.num_images + len(labels))
        predictions = list(map(Prediction, indices, labels.tolist(), predicted, probabilities))
        # Copies, so that those that are kept do not hold the memory of their whole batches.
        samples = list(zip(predictions, map(np.copy, pixels), strict=True))
        wrong = [sample for sample in samples if sample[0].label != sample[0].predicted]
        self.pairs.update((each.label, each.predicted) for each in predictions)
        self.mistakes += (prediction for prediction, _ in wrong)
        self._keep(samples, wrong)

    def merge(self, other: "Evaluation") -> None:
        """Add the predictions of another Evaluation, which are for other images."""
        self.pairs.update(other.pairs)
        self.mistakes += other.mistakes
        self._keep(other.samples, other.worst)
        self._loss += other._loss

    def _keep(self, samples: list[Sample], wrong: list[Sample]) -> None:
        self.samples = (self.samples + samples)[:MAX_SAMPLES]
        by_probability = sorted(self.worst + wrong, key=lambda sample: -sample[0].probability)
        self.worst = by_probability[:MAX_SAMPLES]

    @property
    def num_images(self) -> int:
        return self.pairs.total()

    @property
    def num_correct(self) -> int:
        return self.num_images - len(self.mistakes)

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_images

    @property
    def loss(self) -> float:
        """The mean cross entropy over the images."""
        return self._loss / self.num_images

    def __str__(self) -> str:
        return f"{self.num_correct:,}/{self.num_images:,} ({self.accuracy:.2%})"

    def report(self, spec: ModelSpec) -> list[str]:
        """Return a line for each class: its accuracy, and what it is mistaken for most often.

        Of many classes those of lowest accuracy are shown.
        """
        totals = Counter(dict.fromkeys(sorted({label for label, _ in self.pairs}), 0))
        mistakes = {label: Counter() for label in totals}
        for (label, predicted), number in self.pairs.items():
            totals[label] += number
            if label != predicted:
                mistakes[label][predicted] = number
        accuracy = {n: 1 - mistakes[n].total() / total for n, total in totals.items()}
        lines, shown = ["accuracy of each class:"], list(totals)
        if len(shown) > SHOWN_CLASSES:
            shown = sorted(shown, key=accuracy.get)[:SHOWN_CLASSES]
            lines = [f"accuracy of the {SHOWN_CLASSES} classes where it is lowest:"]
        for label in shown:
            correct = f"{self.pairs[label, label]:,}/{totals[label]:,} ({accuracy[label]:.2%})"
            lines.append(f"  {spec.class_name(label)}: {correct}")
            if mistakes[label]:
                predicted = min(mistakes[label], key=lambda n: (-mistakes[label][n], n))
                number = f"({mistakes[label][predicted]:,})"
                lines[-1] += f", most often mistaken for {spec.class_name(predicted)} {number}"
        return lines
