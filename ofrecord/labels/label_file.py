"""Label files: the tutorial's JSON lines, metadata.jsonl, tables, names and labels."""

import csv
import json
import os
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, TextIO

from runtime.cli import InputError, InputErrors, count, log

from .files import ImageFiles, is_image, open_text
from .names import number_labels
from .options import SourceOptions
from .samples import Samples
from .table import Rows, Table, find_columns, record_rows

SEPARATOR = re.compile('"?sep=(.)"?')  # a first line with which Excel says what the delimiter is
HEADER_LINES = 100  # at most: a quoted name of a column may have line breaks
DECODER = json.JSONDecoder(  # keeps names that are there twice, and integers, 2.0 too, as text
    object_pairs_hook=tuple,
    parse_int=str,
    parse_float=lambda text: text[:-2] if text.endswith(".0") else float(text),
)


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
    names = list(lines)
    check_some_exist(files, names, options)
    labels = array("i", [numbers[label] for label in labels])
    samples = Samples(names, labels, class_names, splits if splits[0] else None)
    return samples, without_label(files, lines, options.image_root)


def check_some_exist(files: ImageFiles, names: list[str], options: SourceOptions) -> None:
    """Raise InputError where the label file is of other images: none is there, or nearly."""
    paths = (os.path.join(options.image_root, name) for name in names)  # links are not listed twice
    known = not files.names.keys().isdisjoint(names) or any(map(os.path.lexists, paths))
    if not known and not files.did_you_mean(names[0]):
        raise InputError(
            f"{options.image_root} has none of the {count(len(names), 'image')} of "
            f"{options.label_dir} (the first is {names[0]}): --label_dir names another label file; "
            "--class_folders takes each folder there for a class"
        )


def without_label(files: ImageFiles, labelled: Iterable[str], root: str) -> list[str]:
    """Return the images that no line names, neither as listed nor through a link to their folder."""
    names = [name for name in files.names if name not in labelled and is_image(name)]
    linked = {
        os.path.realpath(os.path.join(root, name)) for name in labelled if name not in files.names
    }
    if linked:
        names = [each for each in names if os.path.realpath(os.path.join(root, each)) not in linked]
    return names


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
    Raises InputError for what has no form, and csv.Error.
    """
    number, head, delimiter = read_head(file)
    first, place = "".join(head[:1]).strip(), f"{options.label_dir}, line {number}"
    lines = enumerate(map(str.strip, chain(head, file)), number)
    is_table = delimiter is not None or options.label_dir.lower().endswith((".csv", ".tsv"))
    if first[:1] not in ("{", "[") or is_table:
        table = Table(head, delimiter)
        columns = find_columns(table.header, options, place, is_table)
        if not columns:
            return lines, plain_rows
        names = ", ".join(f"{what}s in {name!r}" for what, name in columns.items())
        log(f"{options.label_dir}: {names}")
        return table.rows(file, number), lambda cells: record_rows(columns, table.record(cells))
    if first[-1] in "{[,":
        raise InputError(f"{place}: the JSON goes over several lines: write one object a line")
    columns = find_columns([key for key, _ in json_pairs(first)], options, place, False)
    if not columns:
        return lines, object_rows
    return lines, lambda line: record_rows(columns, dict(json_pairs(line)))


def read_head(file: TextIO) -> tuple[int, list[str], str | None]:
    """Read the first line that has content, and some after it, which a header may go over.

    Returns that line's number, these lines, and the delimiter, if a line before names it.
    """
    number, delimiter = 0, None
    for line in file:
        number += 1
        if match := SEPARATOR.fullmatch(line.strip(" \r\n")):
            delimiter = match[1]
        elif line.strip():
            return number, [line, *islice(file, HEADER_LINES)], delimiter
    return max(number, 1), [], delimiter


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


def json_pairs(line: str) -> tuple[tuple[str, Any], ...]:
    """Return what a JSON object holds, and () for anything else."""
    try:
        pairs, end = DECODER.raw_decode(line)  # decode() looks for spaces, which takes as long
    except (ValueError, RecursionError):
        return ()
    return pairs if isinstance(pairs, tuple) and end == len(line) else ()
