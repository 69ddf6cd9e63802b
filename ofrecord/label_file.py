"""Label files: the tutorial's JSON lines, tables, im2rec's lists, lines of a name and a label."""

import csv
import json
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TextIO

import numpy as np

from runtime.cli import InputError, InputErrors, count, log, os_errors

from .classes import number_labels
from .columns import GUESSED, Columns, find_columns, is_filled, read_header
from .labels import Samples, list_images, problem_of, resolve_names

DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon"}

NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")  # no NaN, no infinity
LST_LINE = re.compile(r"[0-9]+\t[-+]?[0-9.]+\t")

FRACTIONS = "numbers with fractions are names of classes here"
FLOATS = "; --label_type float stores numbers"  # of a table
FLOAT32_INTEGERS = 2**24  # up to here float32 has all integers
NOT_JSON = 'not a JSON object of image name and label, such as {"00000030_3.png": 3}'


Row = tuple[int, str, int | str, str | None]  # line, image name, label, group
Cells = Iterable[tuple[int, list[str]]]  # line, its columns


def read_label_file(
    path: str, image_root: str, columns: Columns = GUESSED, class_file: str | None = None
) -> tuple[Samples, set[str]]:
    """Return the Samples of a label file, whose form is found from its name and its first line.

    Returns the names of all images without a label, too, and logs the form if it is not the
    tutorial's. Raises InputErrors with every line that has a syntax error, a duplicate name,
    one outside of the image root, or a label that is no int32, float32 or class of ``class_file``.
    """
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
            content = _LabelFile(file, columns)
    except UnicodeDecodeError:
        raise InputError(f"the label file {path} is not UTF-8 text: save it as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, line 1: invalid CSV: {error}") from None
    numbers, wrong, class_names = number_labels(Counter(row[2] for row in content.rows), class_file)
    names, unclear = resolve_names([row[1] for row in content.rows], image_root)
    lines, labels, problems = {}, array("i"), content.problems
    for (line, _, label, _), name in zip(content.rows, names, strict=True):
        if label in wrong:
            problems.append((line, f"the label {str(label)[:60]!r} of {name!r} {wrong[label]}"))
        elif problem := unclear.get(name) or problem_of(name):
            problems.append((line, problem))
        elif name in lines:
            problems.append((line, f"duplicate image {name!r}, first in line {lines[name]}"))
        else:
            lines[name] = line
            labels.append(numbers[label])
    if problems:
        found = [f"{path}, line {line}: {reason}" for line, reason in sorted(problems)]
        raise InputErrors(found, f"{count(len(found), 'problem')} in {path}; nothing was written")
    if not labels:
        raise InputError(f"the label file {path} lists no images")
    vectors = content.vectors()
    if content.form:
        log(f"{path}: {content.form}" + ("" if vectors is None else f" ({vectors.dtype})"))
    if class_names and not class_file and all(map(NUMBER.fullmatch, class_names)):
        log(f"{path}: {FRACTIONS}" + (FLOATS if content.is_table else ""), "warning")
    unused = set(list_images(image_root, known=lines)[0])
    groups = [row[3] for row in content.rows] if columns.group else None
    return Samples(list(lines), labels, content.label_names or class_names, groups, vectors), unused


class _LabelFile:
    """The rows of a label file, in whatever form."""

    def __init__(self, file: TextIO, columns: Columns):
        self.problems: list[tuple[int, str]] = []  # line, reason
        self.form: str | None = None  # None: the tutorial's
        self.is_table = False
        self.label_names: list[str] = []  # of columns that together are the label, or float labels
        self._values = array("f")  # of these columns, row by row
        self._columns = columns
        self._are_rounded = False
        self.rows: list[Row] = list(self._read(file))

    def vectors(self) -> np.ndarray | None:
        """Return a row of numbers for each image: int32 if all are 0 or 1, else float32."""
        if not self.label_names:
            return None
        if self._are_rounded:
            log(f"labels above {FLOAT32_INTEGERS:,} are rounded, to float32", "warning")
        values = np.array(self._values).reshape(-1, len(self.label_names))
        is_multi_hot = not self._columns.is_float and ((values == 0) | (values == 1)).all()
        return values.astype(np.int32) if is_multi_hot else values

    def _read(self, file: TextIO) -> Iterable[Row]:
        """Return the rows, after finding out which form they have."""
        ending = os.path.splitext(file.name)[1].lower()
        numbered = enumerate(file, start=1)
        number, first = next((each for each in numbered if each[1].strip()), (1, ""))
        file.seek(0)
        is_table = ending in (".csv", ".tsv") or any(self._columns)
        if not is_table and first.lstrip()[:1] in ("{", "["):
            return self._json_rows(file)
        lines = map(str.strip, file)
        if not is_table and (ending == ".lst" or LST_LINE.match(first)):
            self.form = "im2rec's list of index, label and path"
            cells = (list(map(str.strip, line.split("\t"))) if line else [] for line in lines)
            wanted = "index, label and path, with tabs between them"
            return self._rows(enumerate(cells, start=1), [2, 1, None], 3, f"not {wanted}")
        headers = {each: read_header(file, each) for each in DELIMITERS}
        found = {each: find_columns(header, self._columns) for each, header in headers.items()}
        delimiter = max(
            found, key=lambda each: (None not in found[each][0][:-1], len(headers[each]))
        )
        indices, problem = found[delimiter]
        if not is_table and None in indices[:-1]:
            self.form = "lines of an image name and a label"
            words = (line.rsplit("\t" if "\t" in line else None, 1) for line in lines)
            cells = (list(map(str.strip, each)) for each in words)
            wanted = "an image name and a label, with a space or a tab between them"
            return self._rows(enumerate(cells, start=1), [0, 1, None], 2, f"not {wanted}")
        if problem:
            self.problems.append((number, problem))
            return []
        self.is_table, header = True, headers[delimiter]
        image, *labels = (header[index] for index in indices[:-1])
        self.form = f"a table with {DELIMITERS[delimiter]} between its columns"
        self.form += f"; images in {image!r}, labels in {', '.join(map(repr, labels))}"
        self.label_names = labels if len(labels) > 1 or self._columns.is_float else []
        width = f"{{}}, but the header has {len(header)}"
        return self._rows(self._table(file, delimiter), indices, len(header), width)

    def _table(self, file: TextIO, delimiter: str) -> Cells:
        """Yield the rows of a table below its header."""
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            next(filter(is_filled, rows))  # the header
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            self.problems.append((rows.line_num, f"invalid CSV: {error}"))

    def _rows(
        self, rows: Cells, indices: list[int | None], width: int, otherwise: str
    ) -> Iterator[Row]:
        """Yield the rows, of ``width`` cells each; ``indices`` are image's, labels' and group's.

        ``otherwise`` says what is wrong with a row that has another number of cells.
        """
        image, *labels, group = indices
        for line, cells in rows:
            if len(cells) == width:
                key = cells[group].strip() or None if group is not None else None
                label = cells[labels[0]].strip()
                if self.label_names:
                    label = 0
                    self._add_numbers(line, [cells[index].strip() for index in labels])
                yield line, cells[image], label, key
            elif cells:
                self.problems.append((line, otherwise.format(count(len(cells), "column"))))

    def _add_numbers(self, line: int, cells: list[str]) -> None:
        """Add a row of numbers."""
        values = array("f", [float(c) if NUMBER.fullmatch(c) else math.nan for c in cells])
        self._values += values
        for name, cell, value in zip(self.label_names, cells, values, strict=True):
            self._are_rounded |= abs(value) > FLOAT32_INTEGERS
            if not math.isfinite(value):
                what = f"the label {cell[:60]!r} in column {name!r}"
                is_comma = "," in cell and NUMBER.fullmatch(cell.replace(",", "."))
                hint = " (write 0.5, not 0,5)" if is_comma else ""
                self.problems.append((line, f"{what} is not a number that fits in float32{hint}"))

    def _json_rows(self, file: TextIO) -> Iterator[Row]:
        """Yield what objects ``{"image name": label}`` hold, one a line, as in the tutorial."""
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
                self.problems.append((number, NOT_JSON))
                continue
            for name, label in pairs:
                if type(label) is int or (type(label) is float and label.is_integer()):  # no bool
                    yield number, name, int(label), None
                else:
                    self.problems.append((number, f"the label of {name!r} is not an integer"))
