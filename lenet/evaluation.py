"""How good a model is on a dataset: every image counted once."""

from collections import Counter, namedtuple

import numpy as np

Sample = namedtuple("Sample", "pixels label said probability")
Sample.__doc__ = """One image: uint8 (height, width, channels), its label, the model's answer and how sure it was."""

TABLE_CLASSES = 20  # a table with more columns fits no screen
KEPT = 40  # images of each kind, for the picture


class Evaluation:
    """Filled batch by batch with what a model said.

    ``count`` images, of which ``right`` got their label; ``pairs`` counts
    (label, answer); ``samples`` are the first images, ``mistakes`` the wrong
    ones of which the model was surest, at most KEPT of each.
    """

    def __init__(self):
        self.pairs = Counter()
        self.samples, self.mistakes = [], []
        self._loss = 0.0

    def add(self, pixels, labels, logits):
        """uint8 (n, height, width, channels), int (n,) and float (n, classes), NumPy arrays."""
        logits = logits.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        each = np.arange(len(labels))
        self._loss -= log_probabilities[each, labels].sum()
        said = log_probabilities.argmax(axis=1)
        self.pairs.update(zip(labels.tolist(), said.tolist()))

        def sample(index):
            return Sample(pixels[index].copy(), int(labels[index]), int(said[index]),
                          float(np.exp(log_probabilities[index, said[index]])))
        self.samples += [sample(index) for index in each[:max(KEPT - len(self.samples), 0)]]
        wrong = [sample(index) for index in np.flatnonzero(said != labels)]
        self.mistakes = sorted(self.mistakes + wrong, key=lambda sample: -sample.probability)[:KEPT]

    def merge(self, other):
        """Take in what another one, of other images, was filled with."""
        self.pairs.update(other.pairs)
        self.samples = (self.samples + other.samples)[:KEPT]
        self.mistakes = sorted(self.mistakes + other.mistakes, key=lambda sample: -sample.probability)[:KEPT]
        self._loss += other._loss

    @property
    def count(self):
        return sum(self.pairs.values())

    @property
    def right(self):
        return sum(count for (label, said), count in self.pairs.items() if label == said)

    @property
    def accuracy(self):
        return self.right / self.count

    @property
    def loss(self):
        """Mean cross entropy over the images."""
        return self._loss / self.count

    def confusion(self, spec):
        """Lines of text: for each label what the model said, or for many classes the commonest mistakes."""
        if spec.classes > TABLE_CLASSES:
            mistakes = [(pair, count) for pair, count in self.pairs.most_common() if pair[0] != pair[1]]
            return ["commonest mistakes:"] + [
                "  {} taken for {}: {}".format(spec.name(label), spec.name(said), count)
                for (label, said), count in sorted(mistakes, key=lambda item: (-item[1], item[0]))[:TABLE_CLASSES]]
        names = [spec.name(label) for label in range(spec.classes)]
        first = max([len(name) for name in names] + [len("is \\ said")])
        width = max([len(str(count)) for count in self.pairs.values()] + [min(len(name), 8) for name in names]) + 1
        lines = ["is \\ said".ljust(first) + "".join(name[:8].rjust(width) for name in names)]
        for label, name in enumerate(names):
            counts = [self.pairs[label, said] for said in range(spec.classes)]
            lines.append(name.ljust(first) + "".join((str(count) if count else "·").rjust(width) for count in counts))
        return lines
