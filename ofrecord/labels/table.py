"""Tables of labels: which columns are needed, and the rows below the header."""

import csv
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, TextIO

from runtime.cli import InputError, count, log

DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon"}
SEPARATOR = re.compile('"?sep=(.)"?')  # a first line with which Excel says what the delimiter is
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
            two, advice = " and ".join(map(repr, names[:2])), f"choose one with --{what}_column"
            if names[0].lower() == names[1].lower():
                advice = "give one another name"
            raise InputError(f"{place}: {what}s may be in the columns {two}: {advice}")
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
    """A label file as a table: its first line that is not empty, its header, its rows."""

    def __init__(self, file: TextIO, path: str):
        self.path, self.line, self._file, declared = path, 0, file, None
        if file.read(1) != "\ufeff":
            file.seek(0)
        self.first_text = ""
        while not self.first_text:
            self._start, self.line = file.tell(), self.line + 1
            text = file.readline()
            self.first_text = text.strip()
            if match := SEPARATOR.fullmatch(text.strip(" \r\n")):
                self.first_text, declared = "", match[1]
            if not text:
                break
        self.is_declared = declared is not None
        headers = {each: self._read_header(each) for each in declared or DELIMITERS}
        self.delimiter = max(headers, key=lambda each: len(headers[each]))
        self.header = headers[self.delimiter]

    def _read_header(self, delimiter: str) -> list[str]:
        self._file.seek(self._start)
        rows = csv.reader(islice(self._file, HEADER_LINES), delimiter=delimiter)
        return [cell.strip() for cell in next(rows, [])]

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the number and the text of each line that is not empty."""
        self._file.seek(self._start)
        for line, text in enumerate(map(str.strip, self._file), start=self.line):
            if text:
                yield line, text

    @property
    def has_usual_columns(self) -> bool:
        """Whether the header has usual names for images and for labels."""
        names = {name.lower() for name in self.header}
        return all(names.intersection(sum(USUAL_COLUMNS[what], ())) for what in ("image", "label"))

    def rows(self, columns: Columns) -> Iterator[Row]:
        """Yield a Row for each row that is not empty. Logs which columns are read."""
        names = find_columns(self.header, columns, f"{self.path}, line {self.line}")
        found = ", ".join(f"{what}s in {name!r}" for what, name in names.items())
        delimiter = DELIMITERS.get(self.delimiter, repr(self.delimiter))
        log(f"{self.path}: a table with {delimiter} between its columns; {found}")
        indices = {what: self.header.index(name) for what, name in names.items()}
        self._file.seek(self._start)
        rows, width = (
            csv.reader(self._file, delimiter=self.delimiter, strict=True),
            len(self.header),
        )
        try:
            next(rows, None)  # the header
            for cells in rows:
                line = self.line - 1 + rows.line_num
                if len(cells) == width and any(map(str.strip, cells)):
                    yield Row(line, **{what: cells[index] for what, index in indices.items()})
                elif any(map(str.strip, cells)):  # not one that spreadsheets leave at the end
                    what = f"{count(len(cells), 'column')}, but the header has {width}"
                    yield Row(line, problem=what)
        except csv.Error as error:
            yield Row(self.line - 1 + rows.line_num, problem=f"invalid CSV: {error}")
