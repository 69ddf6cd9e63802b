"""Tables of labels: which columns have the image, its label and its split, and their rows."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain, zip_longest
from typing import Any

from runtime.cli import InputError

from .files import fold
from .options import SourceOptions
from .samples import SPLITS

USUAL_COLUMNS = {  # the first of each that are there
    "image": [("image", "file", "filename", "file_name", "filepath", "path"), ("name",), ("id",)],
    "label": [("label", "class", "class_name", "category", "target")],
    "split": [("split",)],
}
Rows = Iterator[tuple[str, str, str | None]]  # an image's name, its label, its split in SPLITS


class Table:
    """A file of separated values whose first lines, which have its header, were read."""

    def __init__(self, head: list[str], delimiter: str | None):
        """``delimiter`` is the one that the file names; else it is found in the header."""
        bare = re.sub('"[^"]*"?', "", head[0].strip()) if head else ""  # without names in quotes
        delimiter = delimiter or next((each for each in "\t;" if each in bare), ",")
        self._dialect = {"delimiter": delimiter, "skipinitialspace": f"{delimiter} " in bare}
        self._head = head
        self.header = [cell.strip() for cell in next(csv.reader(head, **self._dialect), [])]

    def rows(self, file: Iterable[str], number: int) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of each row's last line, and its cells, or [] where all are empty.

        ``file`` is what follows the head, which begins in line ``number``. Raises csv.Error for
        what is wrong in the line after the last one yielded.
        """
        reader = csv.reader(chain(self._head, file), **self._dialect, strict=True)
        next(reader)  # the header
        yield number, []
        for cells in reader:  # some of empty cells: spreadsheets leave them
            yield number - 1 + reader.line_num, cells if any(map(str.strip, cells)) else []

    def record(self, cells: list[str]) -> dict[str | None, Any]:
        """Return a row's cells by their columns' names; None stands for a missing name or cell."""
        return dict(zip_longest(self.header, cells))


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


def record_rows(columns: dict[str, str], record: dict[str | None, Any]) -> Rows:
    """Yield the row of a record with these columns, from a table or a JSON object."""
    image, label = record.get(columns["image"]), record.get(columns["label"])
    if None in record:
        raise ValueError("more columns than the header has")
    if not isinstance(image, str) or not isinstance(label, str):
        names = " and ".join(map(repr, columns.values()))
        raise ValueError(f"must have {names}, each a text or an integer")
    for cell in (image, label):
        if re.match(r'\s+"', cell):
            raise ValueError(f"a space before the quotes in {cell[:60]!r}: remove it")
    split = fold(str(record.get(columns["split"]))) if "split" in columns else None
    if split is not None and split not in SPLITS:
        raise ValueError(f"the split {split[:60]!r} of {image!r} is not train, val or test")
    yield image, label, SPLITS.get(split)
