"""Image names and their labels, from label files (JSON lines, CSV) and class folders."""

import csv
import json
import os
import random
from array import array
from collections.abc import Iterable

from runtime.cli import InputError, InputErrors, count

from .images import IMAGE_EXTENSIONS
from .record import INT32_MAX, INT32_MIN

# Accepted column names of a CSV header, compared in lower case.
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "name", "path")
LABEL_COLUMNS = ("label", "class", "class_name", "target")


class Samples:
    """Image names, relative to the image root, with their labels, in order.

    ``names`` is a list of str, ``labels`` an int32 array of the same length,
    ``class_names`` a list that labels index, or None where labels are only
    numbers.
    """

    def __init__(
        self,
        names: Iterable[str] = (),
        labels: Iterable[int] = (),
        class_names: list[str] | None = None,
    ):
        self.names = list(names)
        self.labels = array("i", labels)
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: slice) -> list[tuple[str, int]]:
        """Return the (name, label) pairs of a slice."""
        return list(zip(self.names[index], self.labels[index], strict=True))

    def take(self, indices: list[int]) -> "Samples":
        """Return the Samples at these indices, in their order."""
        return Samples(
            (self.names[i] for i in indices), (self.labels[i] for i in indices), self.class_names
        )

    def without(self, names: Iterable[str]) -> "Samples":
        """Return the Samples except those of these names."""
        names = set(names)
        return self.take([index for index, name in enumerate(self.names) if name not in names])


def split_by_class(
    samples: Samples, val_fraction: float, seed: int
) -> tuple[Samples, Samples, list[int]]:
    """Split Samples class by class into a training and a validation set.

    Of a class's n images round(n * val_fraction), but at least one and at
    most n - 1, are drawn at random, by ``seed``, for the validation set. Both
    sets keep the samples' order. Returns them and the labels of the classes
    with a single image, which stays in the training set.
    """
    by_class = {}
    for index, label in enumerate(samples.labels):
        by_class.setdefault(label, []).append(index)
    rng, chosen = random.Random(seed), set()
    for label in sorted(by_class):
        indices = by_class[label]
        num_chosen = min(max(round(len(indices) * val_fraction), 1), len(indices) - 1)
        chosen.update(rng.sample(indices, num_chosen))
    rest = [index for index in range(len(samples)) if index not in chosen]
    single = [label for label in sorted(by_class) if len(by_class[label]) == 1]
    return samples.take(rest), samples.take(sorted(chosen)), single


def read_label_file(path: str) -> Samples:
    """Return the Samples of a label file: CSV where its name ends in .csv, else JSON lines.

    Raises InputErrors with every invalid line: a syntax error, a label that
    is not an int32, a duplicate name, or a name outside of the image root.
    """
    reader = _LabelFile(path)
    try:
        # newline="" is what the csv module asks for; json does not mind.
        with open(path, encoding="utf-8-sig", newline="") as file:
            (_read_csv if path.lower().endswith(".csv") else _read_json_lines)(file, reader)
    except FileNotFoundError:
        raise InputError(
            f"the label file {path} does not exist; specify it with --label_dir"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"the label file {path} is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"cannot read the label file {path}: {error.strerror}") from error
    return reader.samples()


def _read_json_lines(file, reader):
    """Read one JSON object ``{"image name": label}`` per line, as in the tutorial."""
    decode = json.JSONDecoder(object_pairs_hook=_Pairs).decode
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            pairs = decode(line)
        except (ValueError, RecursionError):
            pairs = None
        if not isinstance(pairs, _Pairs) or not pairs:
            reader.add_problem(
                number, 'not a JSON object of image name and label, such as {"00000030_3.png": 3}'
            )
            continue
        for name, label in pairs:
            if type(label) is int:  # bool is an int to isinstance
                reader.add(number, name, label)
            else:
                reader.add_problem(number, f"the label of {name!r} is not an integer")


class _Pairs(list):
    """A JSON object as its (name, value) pairs: a dict would hide duplicate names."""


def _read_csv(file, reader):
    """Read a table with an image and a label column.

    The labels are integers; unless all of them are, they are class names.
    """
    rows = csv.reader(file, strict=True)
    try:
        header = [column.strip().lower() for column in next(rows, [])]
        image_column = next((header.index(name) for name in IMAGE_COLUMNS if name in header), None)
        label_column = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
        if image_column is None or label_column is None:
            columns = ", ".join(map(repr, header)) or "none"
            return reader.add_problem(
                1, f"the header must have the columns 'image' and 'label'; it has {columns}"
            )
        found = []
        for row in rows:
            if len(row) == len(header):
                found.append((rows.line_num, row[image_column], row[label_column].strip()))
            elif row:
                columns = count(len(row), "column")
                reader.add_problem(rows.line_num, f"{columns}, but the header has {len(header)}")
    except csv.Error as error:
        return reader.add_problem(rows.line_num, f"invalid CSV: {error}")
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
            reader.add_problem(line, f"the label of {name!r} is empty")


def _is_integer(text):
    return text.lstrip("+-").isdecimal() and text.isascii()


def _is_file_name(name):
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair, or a locale without Unicode
        return False
    return True


class _LabelFile:
    """Collects the names and labels of a label file of any format, checking each."""

    def __init__(self, path) -> None:
        self.path = path
        self.class_names = None
        self._problems = []
        self._lines = {}  # name: line
        self._labels = array("i")

    def add_problem(self, line, reason):
        self._problems.append(f"{self.path}, line {line}: {reason}")

    def add(self, line, name, label):
        if not INT32_MIN <= label <= INT32_MAX:
            return self.add_problem(line, f"the label {label} of {name!r} does not fit in int32")
        if "/" in name or name[:1] in (".", ""):
            name = os.path.normpath(name)
            if name.startswith(("/", "../")) or name in (".", ".."):
                return self.add_problem(line, f"the name {name!r} is outside of the image root")
        if "\0" in name or not _is_file_name(name):
            return self.add_problem(line, f"{name!r} is not a valid file name")
        first = self._lines.setdefault(name, line)
        if len(self._lines) == len(self._labels):
            return self.add_problem(line, f"duplicate image {name!r}, first in line {first}")
        self._labels.append(label)

    def samples(self):
        if self._problems:
            problems = count(len(self._problems), "problem")
            raise InputErrors(self._problems, f"{problems} in {self.path}; nothing was written")
        if not self._labels:
            raise InputError(f"the label file {self.path} lists no images")
        return Samples(self._lines, self._labels, self.class_names)


def read_class_folders(root: str) -> tuple[Samples, list[str]]:
    """Return the Samples of ``root/CLASS/…/image``: the folders' names, sorted, are the classes.

    Returns the names of all files without an image's extension, too. Raises
    InputErrors for images outside of any class folder and for class folders
    without images.
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
            problems.append(f"{os.path.join(root, name)} is not in a class folder")
    if not by_class:
        raise InputError(
            f"no class folders in {root}: --class_folders expects one folder for each class"
        )
    problems += [
        f"the class folder {os.path.join(root, folder)} has no images"
        for folder, names in by_class.items()
        if not names
    ]
    if problems:
        raise InputErrors(
            problems, f"{count(len(problems), 'problem')} in {root}; nothing was written"
        )
    names = [name for names in by_class.values() for name in names]
    labels = [label for label, names in enumerate(by_class.values()) for _ in names]
    return Samples(names, labels, list(by_class)), others


def list_images(root: str) -> tuple[list[str], list[str]]:
    """Return the names, relative to ``root``, of all files below it: images by extension, others.

    Hidden files and folders are skipped; links to folders are followed, but
    each folder is listed once. Raises InputError for a folder that cannot be
    listed.
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
            path = os.path.join(root, folder)
            raise InputError(f"cannot list {path}: {error.strerror}") from error
    return images, others
