"""Which images, with which labels: the tutorial's label file, CSV, class folders."""

import json
import os
from array import array

from .cli import InputErrors, InputError
from .record import INT32_MAX, INT32_MIN


class Samples:
    """Images by name, relative to the image root, with their labels, in order.

    ``names`` is a list of str, ``labels`` an int32 array of the same length,
    ``class_names`` a list that labels index, or None.
    """

    def __init__(self, class_names=None):
        self.names = []
        self.labels = array("i")
        self.class_names = class_names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        """[(name, label)] of a slice."""
        return list(zip(self.names[index], self.labels[index]))

    def append(self, name, label):
        self.names.append(name)
        self.labels.append(label)


def read_label_file(path):
    """Samples of a label file: one JSON object ``{"name": label}`` a line.

    Raises InputErrors with every bad line: not such an object, a label that
    is no int32, a name that is there twice or climbs out of the image root.
    """
    reader = _Reader(path)
    decoder = json.JSONDecoder(object_pairs_hook=list)
    for number, line in reader.lines():
        if not line.strip():
            continue
        try:
            pairs = decoder.decode(line)
        except ValueError:
            pairs = None
        if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, tuple) for pair in pairs):
            reader.problem(number, 'not a JSON object of image name and label, such as {"00000030_3.png": 3}')
            continue
        for name, label in pairs:
            reader.add(number, name, label)
    return reader.samples()


class _Reader:
    """What label files of any form have in common: checks of each name and label."""

    def __init__(self, path):
        self.path = path
        self._samples = Samples()
        self._problems = []
        self._seen = {}

    def lines(self):
        """Numbered lines, from 1. Raises InputError for a file that cannot be read."""
        try:
            with open(self.path, encoding="utf-8-sig", newline="") as file:
                yield from enumerate(file, start=1)
        except FileNotFoundError:
            raise InputError("the label file {} does not exist; name it with --label_dir".format(self.path))
        except UnicodeDecodeError:
            raise InputError("the label file {} is not UTF-8 text".format(self.path))
        except OSError as error:
            raise InputError("cannot read the label file {}: {}".format(self.path, error.strerror))

    def problem(self, number, what):
        self._problems.append("{}, line {}: {}".format(self.path, number, what))

    def add(self, number, name, label):
        if type(label) is not int:  # bool is an int to isinstance
            return self.problem(number, "the label of {!r} is {}, not an integer".format(name, json.dumps(label)))
        if not INT32_MIN <= label <= INT32_MAX:
            return self.problem(number, "the label of {!r} is {}, which does not fit int32".format(name, label))
        if "/" in name or "." == name[:1]:
            name = os.path.normpath(name)
        if name.startswith(("/", "../")) or name in ("", ".", "..") or "\0" in name:
            return self.problem(number, "the name {!r} is not inside the image root".format(name))
        if name in self._seen:
            return self.problem(number, "the image {!r} is there twice, first in line {}".format(name, self._seen[name]))
        self._seen[name] = number
        self._samples.append(name, label)

    def samples(self):
        if self._problems:
            raise InputErrors(self._problems, "{} bad lines in {}".format(len(self._problems), self.path))
        if not self._samples:
            raise InputError("no images: {} names none".format(self.path))
        return self._samples
