"""Label files: the tutorial's JSON lines, HuggingFace's metadata.jsonl, tables, names and labels."""

import csv
import io
import json
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from runtime.cli import InputError, InputErrors, count, log

from .files import ImageFiles, fold, is_image, read_text
from .names import number_labels
from .samples import SPLITS, Samples
from .table import DELIMITERS, Columns, Row, Table, find_columns, has_usual_columns

EXAMPLE = '{"00000030_3.png": 3}'
NOT_JSON = f"not a JSON object of image name and label, such as {EXAMPLE}"
SPREAD = f"the JSON goes over several lines: write one object a line, such as {EXAMPLE}"
NOT_TWO = "not an image name and a label, with a space or a tab between them"
LABEL_FIRST = "stands where the label should be: the image's name comes first, then the label"


def read_label_file(
    path: str, image_root: str, columns: Columns, class_file: str | None = None
) -> tuple[Samples, set[str]]:
    """Return the Samples of a label file, and the names of all images without a label.

    Raises InputErrors with every line that has a syntax error, a duplicate name, one outside of
    the image root, or a label that is no int32 or class of ``class_file``.
    """
    try:
        rows = list(parse(path, columns))
    except csv.Error as error:
        raise InputError(f"{path}, line 1: invalid CSV: {error}") from None
    if rows and is_image(rows[0].label) and not is_image(rows[0].image):
        raise InputError(f"{path}, line {rows[0].line}: {rows[0].label!r} {LABEL_FIRST}")
    files, counts = ImageFiles(image_root), Counter(row.label for row in rows if not row.problem)
    numbers, wrong, class_names = number_labels(counts, class_file)
    lines, labels, splits, problems = {}, array("i"), [], []
    for row in rows:
        try:
            name, split = check_row(row, files, wrong)
            if name in lines:
                raise ValueError(f"duplicate image {name!r}, first in line {lines[name]}")
            lines[name] = row.line
            labels.append(numbers[row.label])
            splits.append(split)
        except ValueError as error:
            problems.append(f"{path}, line {row.line}: {error}")
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {path}")
    if not labels:
        raise InputError(f"the label file {path} lists no images")
    samples = Samples(list(lines), labels, class_names, splits if all(splits) else None)
    return samples, files.names - lines.keys()


def check_row(row: Row, files: ImageFiles, wrong: dict[str, str]) -> tuple[str, str | None]:
    """Return the image's name and the split of a row. Raises ValueError with what is wrong with it."""
    if row.problem:
        raise ValueError(row.problem)
    if row.label in wrong:
        raise ValueError(f"the label {row.label[:60]!r} of {row.image!r} {wrong[row.label]}")
    split = None if row.split is None else SPLITS.get(fold(row.split))
    if split != row.split and split is None:
        raise ValueError(f"the split {row.split[:60]!r} of {row.image!r} is not train, val or test")
    return files.resolve(row.image), split


def parse(path: str, columns: Columns) -> Iterator[Row]:
    """Return the rows of a label file, whose form is found from its name and its first line."""
    text = read_text(path, "label file", "specify it with --label_dir")
    table = Table(list(io.StringIO(text, newline="")))
    is_table = path.lower().endswith((".csv", ".tsv"))
    first = table.lines[0].strip() if table.lines else ""
    place = f"{path}, line {table.start + 1}"
    if first[:1] in ("{", "[") and not is_table:
        if first[-1] in "{[,":
            raise InputError(f"{place}: {SPREAD}")
        keys = [key for key, _ in json_pairs(first)]
        if any(columns) or "file_name" in keys or has_usual_columns(keys):
            return record_rows(table, find_columns(keys, columns, place))
        return json_rows(table)
    if is_table or any(columns) or table.is_declared or has_usual_columns(table.header):
        names = find_columns(table.header, columns, place)
        found = ", ".join(f"{what}s in {name!r}" for what, name in names.items())
        delimiter = DELIMITERS.get(table.delimiter, repr(table.delimiter))
        log(f"{path}: a table with {delimiter} between its columns; {found}")
        return table.rows(names)
    log(f"{path}: lines of an image name and a label")
    return plain_rows(table)


def plain_rows(table: Table) -> Iterator[Row]:
    """Yield the rows of lines of a name, a space or a tab, and a label."""
    for line, text in table.texts():
        cells = text.rsplit("\t" if "\t" in text else None, 1)
        is_right = len(cells) == 2 and cells[0][-1] not in ",;"
        yield Row(line, cells[0].strip(), cells[1]) if is_right else Row(line, problem=NOT_TWO)


def json_rows(table: Table) -> Iterator[Row]:
    """Yield the rows of objects ``{"image name": label, …}``, one a line."""
    for line, text in table.texts():
        pairs = json_pairs(text)
        for name, value in pairs:
            if isinstance(value, str) or (label := label_text(value)) is None:
                yield Row(line, problem=f"the label of {name!r} is not an integer")
            else:
                yield Row(line, name, label)
        if not pairs:
            yield Row(line, problem=NOT_JSON)


def record_rows(table: Table, keys: dict[str, str]) -> Iterator[Row]:
    """Yield the rows of objects ``{"file_name": image name, "label": label}``, one a line."""
    for line, text in table.texts():
        values = dict(json_pairs(text))
        image, label = values.get(keys["image"]), label_text(values.get(keys["label"]))
        split = str(values.get(keys["split"])) if "split" in keys else None
        if isinstance(image, str) and label is not None:
            yield Row(line, image, label, split)
        else:
            yield Row(line, problem=f"not an object with {' and '.join(map(repr, keys.values()))}")


def json_pairs(text: str) -> tuple[tuple[str, Any], ...]:
    """Return what a JSON object holds, names that are there twice, too; () for anything else."""
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return ()
    return pairs if isinstance(pairs, tuple) else ()


def label_text(label: Any) -> str | None:
    """Return an integer, ``2.0`` too, or a class's name as text; None for anything else."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label) if type(label) in (int, str) else None  # no bool
