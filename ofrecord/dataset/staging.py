"""Files that are written to a dataset's hidden folder, under random names until they are whole."""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from runtime.atomic import flush_file
from runtime.cli import os_errors

from .images_csv import Row, write_rows
from .layout import MANIFEST_NAME, PART_PATTERN, STAGING_NAME, TABLE_NAME

UNMARKED_NAME = f"{MANIFEST_NAME}.new"
OLD_PLAN = "plan.json"  # with part-0 and part-0.json, an unfinished conversion of layout 2

# What cannot be continued with: files that were being written, or were renamed for a commit.
REST_PATTERN = re.compile(
    rf"new-[0-9a-f]{{16}}|{PART_PATTERN.pattern}|{TABLE_NAME}|{re.escape(UNMARKED_NAME)}"
)
# The files in a hidden folder; a part's key is a SHA-256.
STAGED_PATTERN = re.compile(
    rf"{REST_PATTERN.pattern}|{PART_PATTERN.pattern}(\.[0-9a-f]{{64}})?(\.json|\.csv)?"
    rf"|{MANIFEST_NAME}|{OLD_PLAN}|survey\.json"
)


class NewFile:
    """A file that is being written; ``name`` is what it will be called, if it is to be kept."""

    def __init__(self, file: BinaryIO, name: str | None):
        self.name, self.num_bytes = name, 0
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class DatasetFolder:
    """A folder that a dataset is being written to, which this process has locked."""

    def __init__(self, path: str):
        self.path, self.staging = path, os.path.join(path, STAGING_NAME)

    @contextmanager
    def new_file(self, name: str | None = None) -> Iterator[NewFile]:
        """Open a file in the hidden folder; at the end of the block it is on the disk.

        Its ``name`` may also be given in the block. Where that raises, nothing is kept.
        """
        path = os.path.join(self.staging, f"new-{secrets.token_hex(8)}")
        with os_errors("write to", self.path, f"nothing was changed in {self.path}"):
            try:
                with open(path, "xb") as file:
                    new = NewFile(file, name)
                    yield new
                    flush_file(file)
                if new.name:
                    os.replace(path, os.path.join(self.staging, new.name))
            finally:
                with suppress(OSError):
                    os.remove(path)

    def write_table(self, rows: Iterable[Row]) -> str:
        """Write images.csv, and return its SHA-256."""
        with self.new_file(TABLE_NAME) as file:
            write_rows(file, rows)
        return file.sha256

    def kept_parts(self) -> dict[str, int]:
        """Return the part files that another run can continue with, and their sizes.

        They are named ``part-3.KEY``, and have a ``part-3.KEY.json`` beside them.
        """
        sizes = {}
        with suppress(OSError), os.scandir(self.staging) as entries:
            sizes = {each.name: each.stat().st_size for each in entries}
        names = [name for name in sizes if PART_PATTERN.fullmatch(name.partition(".")[0])]
        return {name: sizes[name] for name in sorted(names) if f"{name}.json" in sizes}

    def remove_rest(self) -> None:
        """Remove what no run can continue with. Raises OSError."""
        names = os.listdir(self.staging) if os.path.isdir(self.staging) else []
        if MANIFEST_NAME in names or OLD_PLAN in names:
            return
        for name in filter(REST_PATTERN.fullmatch, names):
            os.remove(os.path.join(self.staging, name))
