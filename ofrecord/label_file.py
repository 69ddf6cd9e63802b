"""Label files: JSON lines as in the tutorial, and CSV tables."""

import csv
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import TextIO

from runtime.cli import InputError, InputErrors, count, os_errors

from .labels import Samples, list_images, natural_key
from .record import INT32_MAX, INT32_MIN

# Accepted column names of a CSV header, compared in lower case.
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "name", "path")
LABEL_COLUMNS = ("label", "class", "class_name", "target")

INTEGER = re.compile(r"([+-]?[0-9]+)(\.0*)?")  # "2.0" too, as table programs write it


Row = tuple[int, str, int]  # line, image name, label
Problems = list[tuple[int, str]]  # line, reason


def read_label_file(path: str, image_root: str) -> tuple[Samples, set[str]]:
    """Return the Samples of a label file: CSV where its name ends in .csv, else JSON lines.

    Returns the names of all images without a label, too. Raises InputErrors with every invalid
    line: a syntax error, a label that is not an int32, a duplicate name, or a name outside of
    the image root.
    """
    if not os.path.exists(path):
        raise InputError(f"the label file {path} does not exist; specify it with --label_dir")
    if not os.path.isfile(path):  # a pipe may never end
        raise InputError(f"the label file {path} is not a regular file")
    problems, lines, labels, class_names = [], {}, array("i"), None
    try:
        # newline="" is what the csv module asks for; json does not mind.
        with (
            os_errors("read the label file", path),
            open(path, encoding="utf-8-sig", newline="") as file,
        ):
            if path.lower().endswith(".csv"):
                rows, class_names = _read_csv(file, problems)
            else:
                rows = _read_json_lines(file, problems)
            for line, name, label in rows:
                if "/" in name or name[:1] in (".", ""):
                    name = os.path.normpath(name)
                problem = _problem_of(name, label)
                if problem or name in lines:
                    duplicate = f"duplicate image {name!r}, first in line {lines.get(name)}"
                    problems.append((line, problem or duplicate))
                else:
                    lines[name] = line
                    labels.append(label)
    except UnicodeDecodeError:
        raise InputError(f"the label file {path} is not UTF-8 text") from None
    if problems:
        found = [f"{path}, line {line}: {reason}" for line, reason in sorted(problems)]
        raise InputErrors(found, f"{count(len(found), 'problem')} in {path}; nothing was written")
    if not labels:
        raise InputError(f"the label file {path} lists no images")
    return Samples(lines, labels, class_names), set(list_images(image_root, known=lines)[0])


def _problem_of(name: str, label: int) -> str | None:
    """What is wrong with an image's name or its label, or None."""
    if not INT32_MIN <= label <= INT32_MAX:
        return f"the label {str(label)[:20]} of {name!r} does not fit in int32"
    if name.startswith(("/", "../")) or name in (".", ".."):
        return f"the name {name!r} is outside of the image root"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair, or a locale without Unicode
        return f"{name!r} is not a valid file name"
    return f"{name!r} is not a valid file name" if "\0" in name else None


def _read_json_lines(file: TextIO, problems: Problems) -> Iterator[Row]:
    """Yield what JSON objects ``{"image name": label}`` hold, one a line, as in the tutorial."""
    # An object as its (name, value) pairs, as a dict would hide duplicate names.
    decode = json.JSONDecoder(object_pairs_hook=tuple).decode
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            pairs = decode(line)
        except (ValueError, RecursionError):
            pairs = None
        if not isinstance(pairs, tuple) or not pairs:
            example = '{"00000030_3.png": 3}'
            problems.append(
                (number, f"not a JSON object of image name and label, such as {example}")
            )
            continue
        for name, label in pairs:
            if type(label) is int or (type(label) is float and label.is_integer()):  # no bool
                yield number, name, int(label)
            else:
                problems.append((number, f"the label of {name!r} is not an integer"))


def _read_csv(file: TextIO, problems: Problems) -> tuple[list[Row], list[str] | None]:
    """Return the rows of a table with an image and a label column, and the classes' names.

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
            wanted = "the header must have the columns 'image' and 'label'"
            problems.append((1, f"{wanted}; it has {columns}"))
            return [], None
        for row in rows:
            if len(row) == len(header):
                found.append((rows.line_num, row[image_column], row[label_column].strip()))
            elif row:
                columns = count(len(row), "column")
                problems.append((rows.line_num, f"{columns}, but the header has {len(header)}"))
    except csv.Error as error:
        problems.append((rows.line_num, f"invalid CSV: {error}"))
    numbers = Counter(label for _, _, label in found)
    # What is longer than 20 digits does not fit in int32 either.
    labels = {text: int(match[1][:20]) for text in numbers if (match := INTEGER.fullmatch(text))}
    class_names = None
    if 2 * sum(numbers[text] for text in labels) <= len(found) - numbers[""]:
        class_names = sorted(filter(None, numbers), key=natural_key)
        labels = {name: index for index, name in enumerate(class_names)}
    for line, name, text in found:
        if text not in labels:
            what = f"the label {text[:60]!r} of {name!r} is not an integer, as most labels are"
            problems.append((line, what if text else f"the label of {name!r} is empty"))
    return [(line, name, labels[text]) for line, name, text in found if text in labels], class_names
