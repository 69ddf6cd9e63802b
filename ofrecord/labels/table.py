"""Tables of labels: where a header has the columns that are needed, and the rows below it."""

import csv
import re
from collections.abc import Iterator
from typing import NamedTuple

from runtime.cli import InputError, count

SEPARATOR = re.compile('"?sep=(.)"?')  # a first line with which Excel says what the delimiter is
DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon"}
HEADER_LINES = 100  # at most: a quoted name of a column may have line breaks

# Usual names of a table's columns: the first of each that are there.
USUAL_COLUMNS = {
    "image": [("image", "file", "filename", "file_name", "filepath", "path"), ("name",), ("id",)],
    "label": [("label", "class", "class_name", "category", "target")],
    "split": [("split",)],
}


class Row(NamedTuple):
    """An image in a label file, or what is wrong with a line of it."""

    line: int
    image: str = ""
    label: str = ""
    split: str | None = None
    problem: str | None = None


class Columns(NamedTuple):
    """The names of the columns of images and labels; None: one of the usual names."""

    image: str | None = None
    label: str | None = None


def has_usual_columns(header: list[str]) -> bool:
    """Whether a header has usual names for images and for labels."""
    names = {name.lower() for name in header}
    return all(names.intersection(sum(USUAL_COLUMNS[what], ())) for what in ("image", "label"))


def find_columns(header: list[str], columns: Columns, place: str) -> dict[str, str]:
    """Return the names of the columns "image", "label" and, if it is there, "split".

    Raises InputError, which begins with ``place``, where one is missing, or may be several.
    """
    found, missing = {}, []
    for what, usual in USUAL_COLUMNS.items():
        given = getattr(columns, what, None)
        wanted = usual if given is None else [(given.strip().lower(),)]
        matches = ([name for name in header if name.lower() in each] for each in wanted)
        names = next(filter(None, matches), [])
        if len(names) > 1:
            is_twice = names[0].lower() == names[1].lower()
            hint = "give one another name" if is_twice else f"choose one with --{what}_column"
            two = " and ".join(map(repr, names[:2]))
            raise InputError(f"{place}: {what}s may be in the columns {two}: {hint}")
        if names:
            found[what] = names[0]
        elif what != "split":
            missing.append(repr(given or what))
    if missing:
        raise InputError(
            f"{place}: the header must have the column{'s' * (len(missing) > 1)} "
            f"{' and '.join(missing)}; it has {', '.join(map(repr, header)) or 'none'} "
            "(--image_column and --label_column name others)"
        )
    return found


class Table:
    """The lines of a label file as a table: its delimiter, its header, its rows."""

    def __init__(self, lines: list[str]):
        declared, self.start = None, 0  # of the header
        while self.start < len(lines):
            text = lines[self.start].strip(" \r\n")
            match = SEPARATOR.fullmatch(text)
            if text.strip() and not match:
                break
            declared = match[1] if match else declared
            self.start += 1
        self.lines, self.is_declared = lines[self.start :], declared is not None
        headers = {
            each: next(csv.reader(self.lines[:HEADER_LINES], delimiter=each), [])
            for each in declared or DELIMITERS
        }
        self.delimiter = max(headers, key=lambda each: len(headers[each]))
        self.header = [cell.strip() for cell in headers[self.delimiter]]

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield the number and the text of each line that is not empty."""
        texts = enumerate(map(str.strip, self.lines), self.start + 1)
        return ((line, text) for line, text in texts if text)

    def rows(self, names: dict[str, str]) -> Iterator[Row]:
        """Yield a Row for each row that is not empty; ``names`` are find_columns()'s."""
        indices = [self.header.index(name) for name in names.values()]
        rows = csv.reader(self.lines, delimiter=self.delimiter, strict=True)
        try:
            for number, cells in enumerate(rows):
                line = self.start + rows.line_num
                if not number or not any(map(str.strip, cells)):
                    continue  # the header, or one that spreadsheets leave at the end
                if len(cells) == len(self.header):
                    yield Row(line, *[cells[index] for index in indices])
                else:
                    width = f"{count(len(cells), 'column')}, but the header has {len(self.header)}"
                    yield Row(line, problem=width)
        except csv.Error as error:
            yield Row(self.start + rows.line_num, problem=f"invalid CSV: {error}")
