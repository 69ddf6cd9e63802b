"""Which images, with which labels: label files (JSON lines, CSV) and class folders."""

import csv
import json
import os
import random
from array import array

from .cli import InputError, InputErrors
from .images import IMAGE_EXTENSIONS
from .record import INT32_MAX, INT32_MIN

# Column names that a CSV's header may have, in any case.
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "name", "path")
LABEL_COLUMNS = ("label", "class", "class_name", "target")


class Samples:
    """Images by name, relative to the image root, with their labels, in order.

    ``names`` is a list of str, ``labels`` an int32 array of the same length,
    ``class_names`` a list that labels index, or None where labels are only
    numbers.
    """

    def __init__(self, names=(), labels=(), class_names=None):
        self.names = list(names)
        self.labels = array("i", labels)
        self.class_names = class_names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        """[(name, label)] of a slice."""
        return list(zip(self.names[index], self.labels[index]))

    def take(self, indices):
        """The Samples at these indices, in their order."""
        return Samples((self.names[i] for i in indices), (self.labels[i] for i in indices), self.class_names)

    def without(self, names):
        """The Samples but those of these names."""
        names = set(names)
        return self.take([index for index, name in enumerate(self.names) if name not in names])


def hold_out(samples, share, seed):
    """Split Samples by class: (the rest, what is held out, labels of classes with a single image).

    Of a class's n images round(n * share) are held out, chosen at random by
    ``seed``, one at least and n - 1 at most; of a single image none. Both keep
    the samples' order.
    """
    by_class = {}
    for index, label in enumerate(samples.labels):
        by_class.setdefault(label, []).append(index)
    rng, chosen = random.Random(seed), set()
    for label in sorted(by_class):
        indices = by_class[label]
        count = min(max(round(len(indices) * share), 1), len(indices) - 1)
        chosen.update(rng.sample(indices, count))
    rest = samples.take([index for index in range(len(samples)) if index not in chosen])
    return rest, samples.take(sorted(chosen)), [label for label in sorted(by_class) if len(by_class[label]) == 1]


def read_label_file(path):
    """Samples of a label file: CSV where its name ends in .csv, else JSON lines.

    Raises InputErrors with every bad line: one that cannot be understood, a
    label that is no int32, a name that is there twice or climbs out of the
    image root.
    """
    reader = _LabelFile(path)
    try:
        # newline="" is what the csv module asks for; json does not mind.
        with open(path, encoding="utf-8-sig", newline="") as file:
            (_read_csv if path.lower().endswith(".csv") else _read_json_lines)(file, reader)
    except FileNotFoundError:
        raise InputError("the label file {} does not exist; name it with --label_dir".format(path))
    except UnicodeDecodeError:
        raise InputError("the label file {} is not UTF-8 text".format(path))
    except OSError as error:
        raise InputError("cannot read the label file {}: {}".format(path, error.strerror))
    return reader.samples()


def _read_json_lines(file, reader):
    """One JSON object ``{"image name": label}`` a line, as in the tutorial."""
    decode = json.JSONDecoder(object_pairs_hook=_Pairs).decode
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            pairs = decode(line)
        except (ValueError, RecursionError):
            pairs = None
        if not isinstance(pairs, _Pairs) or not pairs:
            reader.problem(number, 'not a JSON object of image name and label, such as {"00000030_3.png": 3}')
            continue
        for name, label in pairs:
            if type(label) is int:  # bool is an int to isinstance
                reader.add(number, name, label)
            else:
                reader.problem(number, "the label of {!r} is not an integer".format(name))


class _Pairs(list):
    """A JSON object as its (name, value) pairs: a dict would hide a name that is there twice."""


def _read_csv(file, reader):
    """A header that names an image and a label column; labels are numbers, or all of them class names."""
    rows = csv.reader(file, strict=True)
    try:
        header = [column.strip().lower() for column in next(rows, [])]
        image_column = next((header.index(name) for name in IMAGE_COLUMNS if name in header), None)
        label_column = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
        if image_column is None or label_column is None:
            return reader.problem(1, "the header must name a column 'image' and a column 'label'; it names {}"
                                  .format(", ".join(map(repr, header)) or "none"))
        found = []
        for row in rows:
            if len(row) == len(header):
                found.append((rows.line_num, row[image_column], row[label_column].strip()))
            elif row:
                reader.problem(rows.line_num, "{} columns, and the header has {}".format(len(row), len(header)))
    except csv.Error as error:
        return reader.problem(rows.line_num, "not CSV: {}".format(error))
    names = sorted({label for _, _, label in found if label})
    if all(_is_integer(name) for name in names):
        numbers = {name: int(name) for name in names}
    else:
        reader.class_names = names
        numbers = {name: number for number, name in enumerate(names)}
    for line, name, label in found:
        if label:
            reader.add(line, name, numbers[label])
        else:
            reader.problem(line, "the label of {!r} is empty".format(name))


def _is_integer(text):
    return text.lstrip("+-").isdecimal() and text.isascii()


def _is_file_name(name):
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair, or a locale without Unicode
        return False
    return True


class _LabelFile:
    """What label files of any form have in common: checks of each name and label."""

    def __init__(self, path):
        self.path = path
        self.class_names = None
        self._problems = []
        self._lines = {}  # name: line
        self._labels = array("i")

    def problem(self, line, what):
        self._problems.append("{}, line {}: {}".format(self.path, line, what))

    def add(self, line, name, label):
        if not INT32_MIN <= label <= INT32_MAX:
            return self.problem(line, "the label of {!r} is {}, which does not fit int32".format(name, label))
        if "/" in name or name[:1] in (".", ""):
            name = os.path.normpath(name)
            if name.startswith(("/", "../")) or name in (".", ".."):
                return self.problem(line, "the name {!r} is not inside the image root".format(name))
        if "\0" in name or not _is_file_name(name):
            return self.problem(line, "the name {!r} cannot be a file's".format(name))
        first = self._lines.setdefault(name, line)
        if len(self._lines) == len(self._labels):
            return self.problem(line, "the image {!r} is there twice, first in line {}".format(name, first))
        self._labels.append(label)

    def samples(self):
        if self._problems:
            raise InputErrors(self._problems, "{} problems in {}; nothing was written"
                              .format(len(self._problems), self.path))
        if not self._labels:
            raise InputError("no images: {} names none".format(self.path))
        return Samples(self._lines, self._labels, self.class_names)


def read_class_folders(root):
    """Samples of ``root/CLASS/…/image``: the folders' names, sorted, are the classes.

    Returns the Samples and a list of the files that are no images by their
    name. Raises InputErrors for images outside of any class folder and for
    class folders without images.
    """
    by_class, problems = {}, []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            by_class[entry.name] = []
    images, others = list_images(root)
    for name in sorted(images):
        folder, separator, _ = name.partition("/")
        if separator:
            by_class[folder].append(name)
        else:
            problems.append("{} is in no class folder".format(os.path.join(root, name)))
    if not by_class:
        raise InputError("no class folders in {}: --class_folders takes each folder in it for a class".format(root))
    problems += ["the class folder {} has no images".format(os.path.join(root, folder))
                 for folder, names in by_class.items() if not names]
    if problems:
        raise InputErrors(problems, "{} problems in {}; nothing was written".format(len(problems), root))
    names = [name for names in by_class.values() for name in names]
    labels = [label for label, names in enumerate(by_class.values()) for _ in names]
    return Samples(names, labels, list(by_class)), others


def list_images(root):
    """Names, relative to ``root``, of all files below it: (images by their ending, others).

    Hidden files and folders are passed over; links to folders are followed,
    each folder once.
    """
    images, others, seen = [], [], set()
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == ".":
                        continue
                    if entry.is_dir():
                        real = os.path.realpath(entry.path)
                        if real not in seen:
                            seen.add(real)
                            folders.append(folder + name + "/")
                    elif "." + name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                        images.append(folder + name)
                    else:
                        others.append(folder + name)
        except OSError as error:
            raise InputError("cannot list {}: {}".format(os.path.join(root, folder), error.strerror))
    return images, others
