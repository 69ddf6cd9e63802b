"""Forms of a label file: the tutorial's JSON lines, metadata.jsonl, tables, names and labels."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, islice, zip_longest
from typing import Any, TextIO

from runtime.cli import InputError, log

from .files import fold
from .options import SourceOptions
from .samples import SPLITS

SEPARATOR = re.compile('"?sep=(.)"?')  # a first line with which Excel says what the delimiter is
HEADER_LINES = 100  # at most: a quoted name of a column may have line breaks

# Usual names of columns: the first of each that are there.
USUAL_COLUMNS = {
    "image": [("image", "file", "filename", "file_name", "filepath", "path"), ("name",), ("id",)],
    "label": [("label", "class", "class_name", "category", "target")],
    "split": [("split",)],
}
EXAMPLE = '{"00000030_3.png": 3}'
NOT_JSON = f"not a JSON object of image name and label, such as {EXAMPLE}"
SPREAD = f"the JSON goes over several lines: write one object a line, such as {EXAMPLE}"
NOT_TWO = "not an image name and a label, with a space or a tab between them"
DECODER = json.JSONDecoder(object_pairs_hook=tuple)  # keeps names that are there twice

Row = tuple[str, str, str | None]  # an image's name, its label, its split: train, val, test


def find_form(
    file: TextIO, options: SourceOptions
) -> tuple[Iterator[tuple[int, Any]], Callable[[Any], Iterable[Row]]]:
    """Find the form of a label file from its name and its first line.

    Returns the numbers and the contents of its lines, and the function that makes Rows of a
    line, and raises ValueError for one that has none. Raises InputError and csv.Error.
    """
    path, number, head, delimiter = options.label_dir, 1, [], None
    is_table = path.lower().endswith((".csv", ".tsv"))
    for line in file:
        if match := SEPARATOR.fullmatch(line.strip(" \r\n")):
            is_table, delimiter = True, match[1]
        elif line.strip():
            head = [line, *islice(file, HEADER_LINES)]
            break
        number += 1
    first, place = "".join(head[:1]).strip(), f"{path}, line {number}"
    lines = enumerate(map(str.strip, chain(head, file)), number)
    if first[:1] in ("{", "[") and not is_table:
        if first[-1] in "{[,":
            raise InputError(f"{place}: {SPREAD}")
        keys = []
        with suppress(ValueError):
            keys = [key for key, _ in json_pairs(first)]
        columns = find_columns(keys, options, place, "file_name" in keys)
        if columns:
            return lines, lambda line: record_row(columns, dict(json_pairs(line)))
        return lines, object_rows
    delimiter = delimiter or next((each for each in "\t;" if each in first), ",")
    header = [cell.strip() for cell in next(csv.reader(head, delimiter=delimiter), [])]
    columns = find_columns(header, options, place, is_table)
    if not columns:
        return lines, plain_row
    log(f"{path}: " + ", ".join(f"{what}s in {name!r}" for what, name in columns.items()))
    table = csv.reader(chain(head, file), delimiter=delimiter, strict=True)
    return table_rows(table, header, number), partial(record_row, columns)


def find_columns(
    header: list[str], options: SourceOptions, place: str, is_header: bool
) -> dict[str, str] | None:
    """Return the names of the columns "image", "label" and, if it is there, "split".

    Raises InputError, which begins with ``place``, where one may be several, or is missing in
    what must be a header; elsewhere the answer is None.
    """
    given = {"image": options.image_column, "label": options.label_column}
    columns = {}
    for what, usual in USUAL_COLUMNS.items():
        wanted = [(given[what].strip().lower(),)] if given.get(what) else usual
        matches = ([name for name in header if name.lower() in each] for each in wanted)
        names = next(filter(None, matches), [])
        if len(names) > 1:
            raise InputError(
                f"{place}: {what}s may be in the columns {' and '.join(map(repr, names[:2]))}: "
                "rename one, or choose one with --image_column or --label_column"
            )
        if names:
            columns[what] = names[0]
    missing = [repr(name or what) for what, name in given.items() if what not in columns]
    if missing and (is_header or any(given.values())):
        raise InputError(
            f"{place}: the header lacks {' and '.join(missing)}; it has {', '.join(map(repr, header))} "
            "(--image_column and --label_column name others)"
        )
    return None if missing else columns


def table_rows(table: Any, header: list[str], start: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the cells, by column, of each row of a csv.reader.

    There are none for the header, and for a row of empty cells, as spreadsheets leave them.
    """
    for number, cells in enumerate(table):
        is_row = number and any(map(str.strip, cells))
        yield start - 1 + table.line_num, dict(zip_longest(header, cells)) if is_row else {}


def plain_row(line: str) -> list[Row]:
    """Return the row of a name, a space or a tab, and a label."""
    cells = line.rsplit("\t" if "\t" in line else None, 1)
    if len(cells) < 2 or cells[0][-1] in ",;":
        raise ValueError(NOT_TWO)
    return [(cells[0].strip(), cells[1], None)]


def object_rows(line: str) -> Iterator[Row]:
    """Yield the rows of an object ``{"image name": label, …}``."""
    for name, value in json_pairs(line):
        label = label_text(value)
        if label is None or label == value:
            raise ValueError(f"the label of {name!r} is not an integer")
        yield name, label, None


def record_row(columns: dict[str, str], record: dict[str | None, Any]) -> list[Row]:
    """Return the row of a table's row, or of an object ``{"file_name": name, "label": label}``."""
    image, label = record.get(columns["image"]), label_text(record.get(columns["label"]))
    if None in record:
        raise ValueError("more columns than the header has")
    if not isinstance(image, str) or label is None:
        raise ValueError(f"must have {' and '.join(map(repr, columns.values()))}")
    if "split" not in columns:
        return [(image, label, None)]
    split = str(record.get(columns["split"]))
    if fold(split) not in SPLITS:
        raise ValueError(f"the split {split[:60]!r} of {image!r} is not train, val or test")
    return [(image, label, SPLITS[fold(split)])]


def json_pairs(line: str) -> tuple[tuple[str, Any], ...]:
    """Return the names and values of a JSON object. Raises ValueError for anything else."""
    pairs = None
    with suppress(ValueError, RecursionError):
        pairs = DECODER.decode(line)
    if not pairs or not isinstance(pairs, tuple):
        raise ValueError(NOT_JSON)
    return pairs


def label_text(label: Any) -> str | None:
    """Return an integer, ``2.0`` too, or a class's name as text; None for anything else."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label) if type(label) in (int, str) else None  # no bool
