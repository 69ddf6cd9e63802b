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
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import BinaryIO, NamedTuple

from runtime.atomic import open_regular_file
from runtime.cli import InputError, os_errors

from .manifest import TABLE_NAME

# Of the SHA-256: two of 10 million images have the same by chance once in 370,000 times.
DIGITS = 16


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


def csv_line(cells: Sequence[object]) -> str:
    """Return a line of a CSV table, without its end; only cells that need them are in quotes."""
    line = ",".join(map(str, cells))
    if line.isprintable() and '"' not in line and line.count(",") < len(cells):
        return line  # as nearly all are, in a third of the time
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # Python 3.10 quotes "\r" only where lines end in "\r\n"
    return text.getvalue()[:-2]


def write_rows(file: BinaryIO, rows: Iterable[Row]) -> None:
    """Write the table to a binary file, or what has the ``write`` of one."""
    lines = (csv_line(cells) + "\n" for cells in chain([Row._fields], rows))
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
