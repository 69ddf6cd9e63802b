"""Accuracy, loss and confusion matrix of a model on a dataset."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from .model import ModelSpec

TABLE_CLASSES = 20  # a table with more columns is too wide for a terminal
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
        """Return the confusion matrix with each class's accuracy, as text.

        For many classes: the classes of lowest accuracy, and the most frequent mistakes.
        """
        totals = Counter()  # images of each class
        for (label, _), number in self.pairs.items():
            totals[label] += number
        accuracies = {label: self.pairs[label, label] / totals[label] for label in sorted(totals)}
        texts = {
            label: f"{self.pairs[label, label]:,}/{totals[label]:,} ({accuracy:.2%})"
            for label, accuracy in accuracies.items()
        }
        if spec.num_classes <= TABLE_CLASSES:
            return self._table(spec, texts)
        lowest = sorted(accuracies, key=accuracies.get)[:TABLE_CLASSES]
        pairs = sorted(self.pairs.items())
        mistakes = Counter({pair: number for pair, number in pairs if pair[0] != pair[1]})
        return [
            "classes of lowest accuracy:",
            *(f"  {spec.class_name(label)}: {texts[label]}" for label in lowest),
            "most frequent mistakes:",
            *(
                f"  {spec.class_name(label)} predicted as {spec.class_name(predicted)}: {number}"
                for (label, predicted), number in mistakes.most_common(TABLE_CLASSES)
            ),
        ]

    def _table(self, spec, accuracies):
        labels, corner = range(spec.num_classes), "label \\ predicted"
        names = [f"{n} {spec.class_name(n)}" if spec.class_names else str(n) for n in labels]
        first_width = max(len(text) for text in [corner, *names])
        width = max(len(str(number)) for number in [*self.pairs.values(), labels[-1]]) + 1
        header = corner.ljust(first_width) + "".join(str(label).rjust(width) for label in labels)
        lines = [header + "  accuracy"]
        for label, name in zip(labels, names, strict=True):
            numbers = (self.pairs[label, predicted] for predicted in labels)
            cells = "".join((str(number) if number else "·").rjust(width) for number in numbers)
            lines.append(f"{name.ljust(first_width)}{cells}  {accuracies.get(label, '0/0')}")
        return lines
