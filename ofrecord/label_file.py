"""Label files: JSON lines as in the tutorial, and CSV tables."""

import csv
import json
import os
import re
from array import array
from collections import Counter

from runtime.cli import InputError, InputErrors, count, os_errors

from .labels import Samples, list_images, natural_key
from .record import INT32_MAX, INT32_MIN

# Accepted column names of a CSV header, compared in lower case.
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "name", "path")
LABEL_COLUMNS = ("label", "class", "class_name", "target")

INTEGER = re.compile(r"([+-]?[0-9]+)(\.0*)?")  # "2.0" too, as table programs write it


def read_label_file(path: str, image_root: str) -> tuple[Samples, set[str]]:
    """Return the Samples of a label file: CSV where its name ends in .csv, else JSON lines.

    Returns the names of all images without a label, too.
    Raises InputErrors with every invalid line: a syntax error, a label that
    is not an int32, a duplicate name, or a name outside of the image root.
    """
    reader = _LabelFile(path)
    if not os.path.exists(path):
        raise InputError(f"the label file {path} does not exist; specify it with --label_dir")
    if not os.path.isfile(path):  # a pipe may never end
        raise InputError(f"the label file {path} is not a regular file")
    try:
        # newline="" is what the csv module asks for; json does not mind.
        with (
            os_errors("read the label file", path),
            open(path, encoding="utf-8-sig", newline="") as file,
        ):
            (_read_csv if path.lower().endswith(".csv") else _read_json_lines)(file, reader)
    except UnicodeDecodeError:
        raise InputError(f"the label file {path} is not UTF-8 text") from None
    samples = reader.samples()
    return samples, list_images(image_root)[0].keys() - set(samples.names)


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
            if type(label) is int or (type(label) is float and label.is_integer()):  # no bool
                reader.add(number, name, int(label))
            else:
                reader.add_problem(number, f"the label of {name!r} is not an integer")


class _Pairs(list):
    """A JSON object as its (name, value) pairs: a dict would hide duplicate names."""


def _read_csv(file, reader):
    """Read a table with an image and a label column.

    The labels are integers if most of them are, which the others then must be
    too; else they are class names.
    """
    found = []
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
        for row in rows:
            if len(row) == len(header):
                found.append((rows.line_num, row[image_column], row[label_column].strip()))
            elif row:
                columns = count(len(row), "column")
                reader.add_problem(rows.line_num, f"{columns}, but the header has {len(header)}")
    except csv.Error as error:
        return reader.add_problem(rows.line_num, f"invalid CSV: {error}")
    numbers = Counter(label for _, _, label in found)
    labels = {text: match[1] for text in numbers if (match := INTEGER.fullmatch(text))}
    are_names = 2 * sum(numbers[text] for text in labels) <= len(found) - numbers[""]
    if are_names:
        reader.class_names = sorted(filter(None, numbers), key=natural_key)
        labels = {name: index for index, name in enumerate(reader.class_names)}
    for line, name, text in found:
        if text in labels:
            reader.add(line, name, labels[text])
        elif not text:
            reader.add_problem(line, f"the label of {name!r} is empty")
        else:
            reader.add_problem(
                line, f"the label {text[:60]!r} of {name!r} is not an integer, as most labels are"
            )


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
        """Add an image; ``label`` is an int or the text of one."""
        label = int(str(label)[:20])  # what is longer does not fit either
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


def _is_file_name(name):
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair, or a locale without Unicode
        return False
    return True
