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


Pair = tuple[ImageTable, Row, ImageTable, Row]


def report_copies(tables: list[ImageTable], say: Callable[[str], object] = output) -> None:
    """Say how many images of each dataset are copies of others in it, and of one before it.

    Logs which they are. Labels are compared where they stand for the same classes.
    """
    seen, repeated = set(), set()  # digests
    for table in tables:
        for row in table.rows():
            (repeated if row.sha256 in seen else seen).add(row.sha256)
    first: dict[str, tuple[ImageTable, Row]] = {}  # by digest
    copies: list[Pair] = []
    for table in tables if repeated else ():
        for row in table.rows():
            if row.sha256 in repeated:
                owner, other = first.setdefault(row.sha256, (table, row))
                if other is not row:
                    copies.append((owner, other, table, row))
    for index, table in enumerate(tables):
        for owner in tables[: index + 1]:
            pairs = [pair for pair in copies if pair[0] is owner and pair[2] is table]
            log_pairs("the same image", pairs, None if owner is table else "warning")
            are = "is a copy of another" if len(pairs) == 1 else "are copies of others"
            text = f"{table.folder}: {count(len(pairs), 'image')} {are}"
            text += "" if owner is table else f" in {owner.folder}{LEAK if pairs else ''}"
            if pairs or (owner is not table and say is output):  # a result is said, also if none
                say(text)
    conflicts = [
        (owner, other, table, row)
        for owner, other, table, row in copies
        if row.label != other.label and owner.class_names == table.class_names
    ]
    log_pairs("the same image with different labels", conflicts, "warning")


def log_pairs(what: str, pairs: list[Pair], level: str | None) -> None:
    """Log the first of some pairs of images that are the same, and how many more there are."""
    for owner, other, table, row in pairs[:SHOWN]:
        log(f"{what}: {owner.describe(other)} and {table.describe(row)}", level)
    if len(pairs) > SHOWN:
        log(f"… and {len(pairs) - SHOWN:,} more: {what}", level)
