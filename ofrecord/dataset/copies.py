"""Copies of images, found in the tables of datasets: within one, in two, and with other labels."""

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from runtime.cli import count, log, output

from .images_csv import Row

SHOWN = 10  # lines of a kind
LEAK = (
    ": results on them look better than they are; remove them from one of the two, or keep them "
    "together by a label table's column `split`"
)


class ImageTable(NamedTuple):
    """The rows of a dataset's images.csv, or what it would have."""

    folder: str
    rows: Callable[[], Iterable[Row]]  # each call begins with the first one
    class_names: list[str] | None

    def describe(self, row: Row) -> str:
        """Return where an image is, its file's name, if it is known, and its class."""
        name = f"{os.path.join(self.folder, row.part)}, record {row.record}"
        if row.image:
            name += f" ({row.image})"
        is_named = self.class_names and 0 <= row.label < len(self.class_names)
        return f"{name}, label {self.class_names[row.label] if is_named else row.label}"


class Copies:
    """Pairs of images that are the same: how many there are, and the first ones."""

    def __init__(self, what: str):
        self.number = 0
        self._what, self._first = what, []

    def add(self, owner: ImageTable, other: Row, table: ImageTable, row: Row) -> None:
        self.number += 1
        if self.number <= SHOWN:  # there may be millions
            self._first.append((owner, other, table, row))

    def log(self, level: str | None) -> None:
        for owner, other, table, row in self._first:
            log(f"{self._what}: {owner.describe(other)} and {table.describe(row)}", level)
        if self.number > SHOWN:
            log(f"… and {self.number - SHOWN:,} more: {self._what}", level)


def report_copies(tables: list[ImageTable], say: Callable[[str], object] = output) -> None:
    """Say how many images of each dataset are copies of others in it, and of one before it.

    Logs which they are. Labels are compared where they stand for the same classes.
    """
    seen, repeated = set(), set()  # digests
    for table in tables:
        for row in table.rows():
            (repeated if row.sha256 in seen else seen).add(row.sha256)
    pairs = {
        (first, second): Copies("the same image")
        for second in range(len(tables))
        for first in range(second + 1)
    }
    conflicts = Copies("the same image with different labels")
    firsts: dict[str, tuple[int, Row]] = {}  # by digest
    for index, table in enumerate(tables if repeated else ()):
        for row in table.rows():
            if row.sha256 not in repeated:
                continue
            first, other = firsts.setdefault(row.sha256, (index, row))
            if other is row:
                continue
            owner = tables[first]
            pairs[first, index].add(owner, other, table, row)
            if row.label != other.label and owner.class_names == table.class_names:
                conflicts.add(owner, other, table, row)
    for (first, second), copies in pairs.items():
        owner, folder = tables[first].folder, tables[second].folder
        copies.log(None if first == second else "warning")
        are = "is a copy of another" if copies.number == 1 else "are copies of others"
        text = f"{folder}: {count(copies.number, 'image')} {are}"
        if first != second:
            text += f" in {owner}{LEAK if copies.number else ''}"
        if copies.number or (first != second and say is output):  # a result is said, also if none
            say(text)
    conflicts.log("warning")
