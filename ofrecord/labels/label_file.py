"""Label files: the tutorial's JSON lines, HuggingFace's metadata.jsonl, tables, names and labels."""

import csv
import json
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from runtime.atomic import open_regular_file
from runtime.cli import InputError, InputErrors, count, log, os_errors

from .files import ImageFiles, fold, is_image
from .names import number_labels
from .samples import SPLITS, Samples
from .table import Columns, Row, Table, find_columns

EXAMPLE = '{"00000030_3.png": 3}'
NOT_JSON = f"not a JSON object of image name and label, such as {EXAMPLE}"
SPREAD = f"the JSON goes over several lines: write one object a line, such as {EXAMPLE}"
NOT_TWO = "not an image name and a label, with a space or a tab between them"
LABEL_FIRST = "{!r} stands where the label should be: the image's name comes first, then the label"


def read_label_file(
    path: str, image_root: str, columns: Columns, class_file: str | None = None
) -> tuple[Samples, set[str]]:
    """Return the Samples of a label file, and the names of all images without a label.

    Raises InputErrors with every line that has a syntax error, a duplicate name, one outside of
    the image root, or a label that is no int32 or class of ``class_file``.
    """
    rows, files = read_rows(path, columns), ImageFiles(image_root)
    counts = Counter(row.label for row in rows if not row.problem)
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
        found = count(len(problems), "problem")
        raise InputErrors(problems, f"{found} in {path}; nothing was written")
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
    split = SPLITS.get(fold(row.split or ""))
    if row.split is not None and split is None:
        raise ValueError(f"the split {row.split[:60]!r} of {row.image!r} is not train, val or test")
    return files.resolve(row.image), split


def read_rows(path: str, columns: Columns) -> list[Row]:
    """Return the rows of a label file. Raises InputError where it cannot be read at all."""
    try:
        with (
            os_errors("read the label file", path, "specify it with --label_dir"),
            open_regular_file(path, "r") as file,
        ):
            rows = list(parse(Table(file, path), columns))
    except UnicodeDecodeError:
        raise InputError(f"the label file {path} is not UTF-8 text: save it as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, line 1: invalid CSV: {error}") from None
    if rows and is_image(rows[0].label) and not is_image(rows[0].image):
        raise InputError(f"{path}, line {rows[0].line}: {LABEL_FIRST.format(rows[0].label)}")
    return rows


def parse(table: Table, columns: Columns) -> Iterator[Row]:
    """Find out which form a label file has, from its name and its first line; yield its rows."""
    is_table, text = table.path.lower().endswith((".csv", ".tsv")), table.first_text
    if not is_table and text[:1] in ("{", "["):
        if text[-1] in "{[,":
            raise InputError(f"{table.path}, line {table.line}: {SPREAD}")
        keys = [key for key, _ in json_pairs(text)]
        if any(columns) or "file_name" in keys:
            return record_rows(
                table, find_columns(keys, columns, f"{table.path}, line {table.line}")
            )
        return json_rows(table)
    if is_table or any(columns) or table.is_declared or table.has_usual_columns:
        return table.rows(columns)
    log(f"{table.path}: lines of an image name and a label")
    return plain_rows(table)


def plain_rows(table: Table) -> Iterator[Row]:
    """Yield the rows of lines of a name, a space or a tab, and a label."""
    for line, text in table.lines():
        cells = text.rsplit("\t" if "\t" in text else None, 1)
        if len(cells) == 2 and cells[0][-1] not in ",;":
            yield Row(line, cells[0].strip(), cells[1])
        else:
            yield Row(line, problem=NOT_TWO)


def json_pairs(text: str) -> tuple[tuple[str, Any], ...]:
    """Return what a JSON object holds, names that are there twice, too; () for anything else."""
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return ()
    return pairs if isinstance(pairs, tuple) else ()


def json_rows(table: Table) -> Iterator[Row]:
    """Yield the rows of objects ``{"image name": label, …}``, one a line."""
    for line, text in table.lines():
        pairs = json_pairs(text)
        for name, label in pairs:
            if isinstance(label, str) or (text := label_text(label)) is None:
                yield Row(line, problem=f"the label of {name!r} is not an integer")
            else:
                yield Row(line, name, text)
        if not pairs:
            yield Row(line, problem=NOT_JSON)


def record_rows(table: Table, keys: dict[str, str]) -> Iterator[Row]:
    """Yield the rows of objects ``{"file_name": image name, "label": label}``, one a line."""
    for line, text in table.lines():
        values = dict(json_pairs(text))
        image, label = values.get(keys["image"]), label_text(values.get(keys["label"]))
        split = str(values.get(keys["split"])) if "split" in keys else None
        if not isinstance(image, str) or label is None:
            yield Row(line, problem=f"not an object with {keys['image']!r} and {keys['label']!r}")
        else:
            yield Row(line, image, label, split)


def label_text(label: Any) -> str | None:
    """Return an integer, ``2.0`` too, or a class's name as text; None for anything else."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label) if type(label) in (int, str) else None  # no bool
