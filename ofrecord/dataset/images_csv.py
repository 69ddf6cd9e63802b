"""images.csv: which file each record was made of.

It has a row for each record, in order: its part's file name, its number in the part from 0, the
image's name relative to the image root, its class's number, and the first 16 hexadecimal digits
of the SHA-256 of its stored bytes::

    part,record,image,label,sha256
    part-0,0,00000030_3.png,3,b4004edbe7f63934

UTF-8, lines end in a line feed. A name that is not UTF-8 is written with backslash escapes; it is
empty where it is not known or was left out.
"""

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO, NamedTuple

from runtime.atomic import open_regular_file
from runtime.cli import InputError, os_errors

from .manifest import TABLE_NAME

# Of the SHA-256: two of 10 million images have the same by chance once in 370,000 times.
DIGITS = 16

SPECIAL = re.compile('[",\r\n]')  # a cell with one of these is in quotes


class Row(NamedTuple):
    """A record in the table."""

    part: str
    record: int
    image: str
    label: int
    sha256: str


def image_digest(data: bytes) -> str:
    """Return what the table has of an image's stored bytes."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def printable(name: str) -> str:
    """Return a file's name as text: bytes that are not UTF-8 are escaped, ``\\xb0``."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def csv_cell(cell: object) -> str:
    """Return a cell of a CSV table, in quotes where it needs them."""
    text = str(cell)
    return '"' + text.replace('"', '""') + '"' if SPECIAL.search(text) else text


def csv_line(cells: Iterable[object]) -> str:
    """Return a line of a CSV table, without its end."""
    return ",".join(map(csv_cell, cells))


def write_rows(file: BinaryIO, rows: Iterable[Row]) -> None:
    """Write the table to a binary file, or what has the ``write`` of one."""
    file.write((",".join(Row._fields) + "\n").encode())
    lines = (
        f"{part},{record},{csv_cell(image)},{label},{sha256}\n"
        for part, record, image, label, sha256 in rows
    )
    while text := "".join(islice(lines, 1000)):
        file.write(text.encode())


def read_rows(folder: str) -> Iterator[Row]:
    """Yield the rows of a dataset's table. Raises InputError where it is none or cannot be read."""
    path = os.path.join(folder, TABLE_NAME)
    with os_errors("read", path), open_regular_file(path, "r") as file:
        reader = csv.reader(file, strict=True)
        try:
            if tuple(next(reader, ())) != Row._fields:
                raise ValueError(f"its columns are not {','.join(Row._fields)}")
            for part, record, image, label, sha256 in reader:
                yield Row(part, int(record), image, int(label), sha256)
        except (ValueError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
            raise InputError(f"{path}, line {reader.line_num}: {error}") from None
