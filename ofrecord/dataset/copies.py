"""Copies of images, found in the tables of datasets: within one, in two, and with other labels."""

import os
from collections.abc import Callable
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
    rows: list[Row]
    class_names: list[str] | None

    def describe(self, row: Row) -> str:
        """Return where an image is, its file's name, if it is known, and its class."""
        name = f"{os.path.join(self.folder, row.part)}, record {row.record}"
        if row.image:
            name += f" ({row.image})"
        is_named = self.class_names and 0 <= row.label < len(self.class_names)
        return f"{name}, label {self.class_names[row.label] if is_named else row.label}"


def report_copies(tables: list[ImageTable], say: Callable[[str], object] = output) -> None:
    """Say how many images of each dataset are copies of others in it, and of one before it.

    Logs which they are. Labels are compared where they stand for the same classes.
    """
    first: dict[str, tuple[ImageTable, Row]] = {}  # by digest
    pairs = [(one, two) for index, two in enumerate(tables) for one in tables[: index + 1]]
    found = {(one.folder, two.folder): Pairs("the same image") for one, two in pairs}
    conflicts = Pairs("the same image with different labels")
    for table in tables:
        for row in table.rows:
            owner, other = first.setdefault(row.sha256, (table, row))
            if other is not row:
                found[owner.folder, table.folder].add(owner, other, table, row)
                if row.label != other.label and owner.class_names == table.class_names:
                    conflicts.add(owner, other, table, row)
    for (one, two), copies in found.items():
        copies.log(None if one == two else "warning")
        if copies.number or one != two:
            are = "is a copy of another" if copies.number == 1 else "are copies of others"
            text = f"{two}: {count(copies.number, 'image')} {are}"
            say(text if one == two else f"{text} in {one}{LEAK if copies.number else ''}")
    conflicts.log("warning")


class Pairs:
    """Pairs of images that are the same: how many there are, and the first of them."""

    def __init__(self, what: str):
        self.what, self.number, self._shown = what, 0, []

    def add(self, owner: ImageTable, other: Row, table: ImageTable, row: Row) -> None:
        self.number += 1
        if self.number <= SHOWN:
            self._shown.append(f"{owner.describe(other)} and {table.describe(row)}")

    def log(self, level: str | None) -> None:
        for pair in self._shown:
            log(f"{self.what}: {pair}", level)
        if self.number > SHOWN:
            log(f"… and {self.number - SHOWN:,} more: {self.what}", level)
