"""Label files: the tutorial's JSON lines, tables, im2rec's lists, lines of a name and a label."""

import csv
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TextIO

from runtime.cli import InputError, InputErrors, count, log, os_errors

from .classes import number_labels
from .labels import Samples, list_images, problem_of, resolve_names
from .vectors import LabelColumns

# Usual names of a table's columns of images, labels and groups: the first of each that are there.
USUAL_COLUMNS = {
    "image": [("image", "file", "filename", "file_name", "filepath", "path"), ("name",), ("id",)],
    "label": [("label", "class", "class_name", "category", "target")],
    "group": [],
}
DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon"}

LST_LINE = re.compile(r"[0-9]+\t[-+]?[0-9.]+\t")


class Columns(NamedTuple):
    """The names of a table's columns that are not to be guessed."""

    image: str | None = None
    label: str | None = None  # or several, with commas between them, as in a CSV file
    group: str | None = None  # of images that a split keeps together; None: there is none
    is_float: bool = False  # whether the labels are no classes, but floats


GUESSED = Columns()
Row = tuple[int, str, int | str, str | None]  # line, image name, label, group
Problems = list[tuple[int, str]]  # line, reason


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
    problems, label_columns = [], LabelColumns(columns.is_float)
    try:
        # newline="" is what the csv module asks for; json does not mind.
        with (
            os_errors("read the label file", path),
            open(path, encoding="utf-8-sig", newline="") as file,
        ):
            rows, form = _read_rows(file, columns, label_columns, problems)
            rows = list(rows)
    except UnicodeDecodeError:
        raise InputError(f"the label file {path} is not UTF-8 text") from None
    except csv.Error as error:
        raise InputError(f"{path}, line 1: invalid CSV: {error}") from None
    numbers, wrong, class_names = number_labels(Counter(row[2] for row in rows), class_file)
    names, unclear = resolve_names([row[1] for row in rows], image_root)
    lines, labels = {}, array("i")
    for (line, _, label, _), name in zip(rows, names, strict=True):
        if label not in numbers:
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
    vectors = label_columns.vectors() if label_columns.names else None
    if form:
        log(f"{path}: {form}" + ("" if vectors is None else f" ({vectors.dtype})"))
    unused = set(list_images(image_root, known=lines)[0])
    groups = [row[3] for row in rows] if columns.group else None
    return Samples(list(lines), labels, label_columns.names or class_names, groups, vectors), unused


# -- rows -----------------------------------------------------------------------------


def _read_rows(
    file: TextIO, columns: Columns, label_columns: LabelColumns, problems: Problems
) -> tuple[Iterable[Row], str | None]:
    """Return the rows of a label file, and what form it has, or None for the tutorial's."""
    ending = os.path.splitext(file.name)[1].lower()
    number, first = next((each for each in enumerate(file, start=1) if each[1].strip()), (1, ""))
    file.seek(0)
    is_table = ending in (".csv", ".tsv") or any(columns)
    if not is_table and first.lstrip()[:1] in ("{", "["):
        return _read_json_lines(file, problems), None
    if not is_table and (ending == ".lst" or LST_LINE.match(first)):
        return _read_lines(file, True, problems), "im2rec's list of index, label and path"
    headers = {each: next(csv.reader([first], delimiter=each), []) for each in DELIMITERS}
    found = {each: _find_columns(header, columns) for each, header in headers.items()}
    delimiter = max(found, key=lambda each: (None not in found[each][0][:-1], len(headers[each])))
    indices, problem = found[delimiter]
    if not is_table and None in indices[:-1]:
        return _read_lines(file, False, problems), "lines of an image name and a label"
    if problem:
        problems.append((number, problem))
        return [], None
    image, *labels = (headers[delimiter][index].strip() for index in indices[:-1])
    form = f"a table with {DELIMITERS[delimiter]} between its columns"
    form += f"; images in {image!r}, labels in {', '.join(map(repr, labels))}"
    label_columns.names = labels if len(labels) > 1 or columns.is_float else []
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    return _read_table(rows, indices, label_columns, problems), form


def _find_columns(header: list[str], columns: Columns) -> tuple[list[int | None], str | None]:
    """The indices of the image's, the labels' and the group's column, and what is wrong or None."""
    names, indices, missing, problem = [name.strip() for name in header], [], [], None
    lower, labels = [name.lower() or None for name in names], [columns.label]
    if columns.label and columns.label.strip().lower() not in lower:
        labels = next(csv.reader([columns.label], skipinitialspace=True)) or [""]
    options = "image", *["label"] * len(labels), "group"
    all_given = columns.image, *labels, columns.group
    for option, given in zip(options, all_given, strict=True):
        wanted = USUAL_COLUMNS[option] if given is None else [(given.strip().lower(),)]
        matches = ([i for i, name in enumerate(lower) if name in each] for each in wanted)
        found = next(filter(None, matches), [None])
        indices.append(found[0])
        if len(found) > 1:
            two = " and ".join(repr(names[index]) for index in found[:2])
            problem = f"{option}s may be in the columns {two}: choose one with --{option}_column"
        elif wanted and found == [None]:
            missing.append(repr(option if given is None else given))
    if len(set(indices[1:-1])) < len(labels):
        problem = f"--label_column {columns.label} names a column twice"
    if missing:
        problem = f"the header must have the column{'s' * (len(missing) > 1)} "
        problem += f"{' and '.join(missing)}; it has {', '.join(map(repr, names)) or 'none'} "
        problem += "(--image_column and --label_column name others)"
    return indices, problem


def _read_table(
    rows: Any, indices: list[int | None], label_columns: LabelColumns, problems: Problems
) -> Iterator[Row]:
    """Yield the rows of a table with a header; ``indices`` are image's, labels' and group's."""
    image, *labels, group = indices
    try:
        header = next(filter(None, rows))
        for row in rows:
            if len(row) == len(header):
                key = row[group].strip() or None if group is not None else None
                label = row[labels[0]].strip()
                if label_columns.names:
                    label, cells = 0, [row[index].strip() for index in labels]
                    problems += [(rows.line_num, text) for text in label_columns.add(cells)]
                yield rows.line_num, row[image], label, key
            elif row:
                columns = count(len(row), "column")
                problems.append((rows.line_num, f"{columns}, but the header has {len(header)}"))
    except csv.Error as error:
        problems.append((rows.line_num, f"invalid CSV: {error}"))


def _read_lines(file: TextIO, is_list: bool, problems: Problems) -> Iterator[Row]:
    """Yield the rows of lines ``name label``, or of im2rec's ``index TAB label TAB path``."""
    wanted = "an image name and a label, with a space or a tab between them"
    if is_list:
        wanted = "index, label and path, with tabs between them"
    for number, line in enumerate(map(str.strip, file), start=1):
        if is_list:
            words = line.split("\t")[:0:-1]
        else:
            words = line.rsplit("\t" if "\t" in line else None, 1)
        if len(words) == 2:
            yield number, words[0].strip(), words[1].strip(), None
        elif line:
            problems.append((number, f"not {wanted}"))


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
                yield number, name, int(label), None
            else:
                problems.append((number, f"the label of {name!r} is not an integer"))
