"""Label files: the tutorial's JSON lines, metadata.jsonl, tables, names and labels."""

import csv
import json
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, zip_longest
from typing import Any, TextIO

from runtime.cli import InputError, InputErrors, count, log

from .files import ImageFiles, fold, is_image, open_text
from .names import number_labels
from .options import SourceOptions
from .samples import SPLITS, Samples

SEPARATOR = re.compile('"?sep=(.)"?')  # a first line with which Excel says what the delimiter is
HEADER_LINES = 100  # at most: a quoted name of a column may have line breaks
USUAL_COLUMNS = {  # the first of each that are there
    "image": [("image", "file", "filename", "file_name", "filepath", "path"), ("name",), ("id",)],
    "label": [("label", "class", "class_name", "category", "target")],
    "split": [("split",)],
}
DECODER = json.JSONDecoder(  # keeps names that are there twice, and integers, 2.0 too, as text
    object_pairs_hook=tuple,
    parse_int=str,
    parse_float=lambda text: text[:-2] if text.endswith(".0") else float(text),
)
Rows = Iterator[tuple[str, str, str | None]]  # an image's name, its label, its split in SPLITS


def read_label_file(options: SourceOptions) -> tuple[Samples, list[str]]:
    """Return the Samples of the label file, and the names of all images without a label.

    Raises InputErrors with every line whose name or label cannot be.
    """
    path, files = options.label_dir, ImageFiles(options.image_root)
    lines: dict[str, int] = {}  # of the images
    labels, splits, problems = [], [], []
    for line, rows in rows_by_line(options):
        try:
            for image, label, split in rows:
                if not lines and is_image(label) and not is_image(image):
                    wrong = f"{label!r} stands where the label should be: the name comes first"
                    raise InputError(f"{path}, line {line}: {wrong}")
                name = files.resolve(image)
                if name in lines:
                    raise ValueError(f"duplicate image {name!r}, first in line {lines[name]}")
                lines[name] = line
                labels.append(sys.intern(label))  # a class's images share one text
                splits.append(split)
        except ValueError as error:
            problems.append((line, str(error)))
    numbers, class_names = number_labels(Counter(labels), options.classes)
    for (name, line), label in zip(lines.items(), labels, strict=True):
        if isinstance(numbers[label], str):
            problems.append((line, f"the label {label[:60]!r} of {name!r} {numbers[label]}"))
    if problems:
        problems = [f"{path}, line {line}: {problem}" for line, problem in sorted(problems)]
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {path}")
    if not lines:
        raise InputError(f"the label file {path} lists no images")
    labels = array("i", [numbers[label] for label in labels])
    samples = Samples(list(lines), labels, class_names, splits if splits[0] else None)
    return samples, [name for name in files.names if name not in lines and is_image(name)]


def rows_by_line(options: SourceOptions) -> Iterator[tuple[int, Rows]]:
    """Yield the number and the rows of each line that has any.

    The rows raise ValueError for what is wrong with the line. Raises InputError.
    """
    path, line = options.label_dir, 0
    try:
        with open_text(path, "label file", "specify it with --label_dir") as file:
            contents, rows_of = find_form(file, options)
            for line, content in contents:
                if content:
                    yield line, rows_of(content)
    except csv.Error as error:
        raise InputError(f"{path}, line {line + 1}: invalid CSV: {error}") from None


def find_form(
    file: TextIO, options: SourceOptions
) -> tuple[Iterable[tuple[int, Any]], Callable[[Any], Rows]]:
    """Find the form of a label file from its name and its first line.

    Returns each line's number and content, and the function that yields the rows of a content.
    """
    path, number, head, delimiter = options.label_dir, 1, [], None
    is_table = path.lower().endswith((".csv", ".tsv"))
    for number, line in enumerate(file, start=1):  # noqa: B007 (it is that of the header)
        if match := SEPARATOR.fullmatch(line.strip(" \r\n")):
            is_table, delimiter = True, match[1]
        elif line.strip():
            head = [line, *islice(file, HEADER_LINES)]
            break
    first, place = "".join(head[:1]).strip(), f"{path}, line {number}"
    lines = enumerate(map(str.strip, chain(head, file)), number)
    if first[:1] in ("{", "[") and not is_table:
        if first[-1] in "{[,":
            raise InputError(f"{place}: the JSON goes over several lines: write one object a line")
        columns = find_columns([key for key, _ in json_pairs(first)], options, place, False)
        if not columns:
            return lines, object_rows
        return lines, lambda line: record_rows(columns, dict(json_pairs(line)))
    bare = re.sub('"[^"]*"?', "", first)  # without names in quotes
    delimiter = delimiter or next((each for each in "\t;" if each in bare), ",")
    dialect = {"delimiter": delimiter, "skipinitialspace": f"{delimiter} " in bare}
    header = [cell.strip() for cell in next(csv.reader(head, **dialect), [])]
    columns = find_columns(header, options, place, is_table)
    if not columns:
        return lines, plain_rows
    log(f"{path}: " + ", ".join(f"{what}s in {name!r}" for what, name in columns.items()))
    table = csv.reader(chain(head, file), **dialect, strict=True)
    next(table)  # the header
    rows = (  # some of empty cells: spreadsheets leave them
        (number - 1 + table.line_num, cells if any(map(str.strip, cells)) else [])
        for cells in table
    )
    rows = chain([(number, [])], rows)  # so that what is wrong next is in the line after it
    return rows, lambda cells: record_rows(columns, dict(zip_longest(header, cells)))


def find_columns(
    header: list[str], options: SourceOptions, place: str, is_header: bool
) -> dict[str, str] | None:
    """Return the names of the columns "image", "label" and, if it is there, "split".

    Raises InputError, which begins with ``place``, where one may be several, or is missing in
    what must be a header; elsewhere the answer is None.
    """
    given = {"image": options.image_column, "label": options.label_column, "split": None}
    columns = {}
    for what, name in given.items():
        wanted = [(name.strip().lower(),)] if name else USUAL_COLUMNS[what]
        matches = ([each for each in header if each.lower() in names] for names in wanted)
        found = next(filter(None, matches), [])
        if len(found) > 1:
            raise InputError(
                f"{place}: {what}s may be in the columns {' and '.join(map(repr, found[:2]))}: "
                "rename one, or choose one with --image_column or --label_column"
            )
        if found:
            columns[what] = found[0]
        elif what != "split" and (is_header or "file_name" in header or any(given.values())):
            raise InputError(
                f"{place}: the header lacks {name or what!r}; it has "
                f"{', '.join(map(repr, header))} (--image_column and --label_column name others)"
            )
    return columns if {"image", "label"} <= columns.keys() else None


def plain_rows(line: str) -> Rows:
    """Yield the row of a name, a space or a tab, and a label."""
    cells = line.rsplit("\t" if "\t" in line else None, 1)
    if len(cells) < 2 or cells[0][-1] in ",;":
        raise ValueError("not an image name and a label, with a space or a tab between them")
    yield cells[0].strip(), cells[1], None


def object_rows(line: str) -> Rows:
    """Yield the rows of a JSON object ``{"image name": label, …}``."""
    pairs = json_pairs(line)
    if not pairs:
        raise ValueError('not a JSON object of image names and labels in one line: {"0_3.png": 3}')
    for name, label in pairs:
        if not isinstance(label, str):
            raise ValueError(f"the label of {name!r} is not an integer or a class's name")
        yield name, label, None


def record_rows(columns: dict[str, str], record: dict[str | None, Any]) -> Rows:
    """Yield the row of a record with these columns, from a table or a JSON object."""
    image, label = record.get(columns["image"]), record.get(columns["label"])
    if None in record:
        raise ValueError("more columns than the header has")
    if not isinstance(image, str) or not isinstance(label, str):
        names = " and ".join(map(repr, columns.values()))
        raise ValueError(f"must have {names}, each a text or an integer")
    split = fold(str(record.get(columns["split"]))) if "split" in columns else None
    if split is not None and split not in SPLITS:
        raise ValueError(f"the split {split[:60]!r} of {image!r} is not train, val or test")
    yield image, label, SPLITS.get(split)


def json_pairs(line: str) -> tuple[tuple[str, Any], ...]:
    """Return what a JSON object holds, and () for anything else."""
    try:
        pairs, end = DECODER.raw_decode(line)  # decode() looks for spaces, which takes as long
    except (ValueError, RecursionError):
        return ()
    return pairs if isinstance(pairs, tuple) and end == len(line) else ()
