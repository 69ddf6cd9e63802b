"""What is written to a dataset's hidden folder, and how it takes the place of the old dataset.

Files have random names until they are whole. When those of all datasets that are written together
have their final names, each manifest gets its name there, which is the mark, the first dataset's
last; then the files are moved (runtime/atomic.py), the first dataset's last. Killed before its
mark, all old datasets are untouched; killed after it, the next run finishes the new ones.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from runtime.atomic import commit_folder, flush_file, flush_folder
from runtime.cli import os_errors

from .images_csv import Row, write_rows
from .manifest import MANIFEST_NAME, PART_PATTERN, STAGING_NAME, TABLE_NAME, Manifest

UNMARKED_NAME = f"{MANIFEST_NAME}.new"
OLD_PLAN = "plan.json"  # of an unfinished conversion of layout 2, whose part-0 is not renamed yet

# The files in a hidden folder. Those of the group cannot be continued with: they were being
# written, or were renamed for a commit. A part's key is a SHA-256.
STAGED_PATTERN = re.compile(
    r"(new-[0-9a-f]{16}|part-[0-9]{1,9}|images\.csv|dataset\.json\.new)"
    r"|part-[0-9]{1,9}(?:\.[0-9a-f]{64})?(?:\.json)?|dataset\.json|plan\.json|survey\.json"
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
    """A folder that a dataset is written to, which this process has locked."""

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

    def move_marked(self, names: list[str]) -> None:
        """Move the marked dataset, which has these files, in place of the old one."""
        with os_errors("replace the dataset in", self.path, "the same command finishes it"):
            commit_folder(self.path, self.staging, MANIFEST_NAME, names, PART_PATTERN.fullmatch)

    def kept_parts(self) -> dict[str, int]:
        """Return the part files that another run can continue with, and their sizes.

        They are named ``part-3.KEY``, and have a ``part-3.KEY.json`` beside them.
        """
        names = set()
        with suppress(OSError):
            names.update(os.listdir(self.staging))
        # Other files are not looked at: another job may have renamed them meanwhile.
        parts = filter(re.compile(r"part-[0-9]{1,9}\.[0-9a-f]{64}").fullmatch, sorted(names))
        kept = [name for name in parts if f"{name}.json" in names]
        return {name: os.path.getsize(os.path.join(self.staging, name)) for name in kept}

    def remove_rest(self) -> None:
        """Remove what no run can continue with, as far as possible, and the empty hidden folder."""
        with suppress(OSError):
            names = os.listdir(self.staging)
            if MANIFEST_NAME not in names and OLD_PLAN not in names:
                for match in filter(None, map(STAGED_PATTERN.fullmatch, names)):
                    if match[1]:
                        os.remove(os.path.join(self.staging, match[1]))
            os.rmdir(self.staging)


def commit(datasets: list[tuple[DatasetFolder, Manifest, list[str]]]) -> None:
    """Put new datasets in place of the old ones, all of them or none. Raises InputError.

    Of each, images.csv is in the hidden folder, and the part files under the names that are given,
    in order; what else is there is removed.
    """
    last = datasets[0][0].path
    with os_errors("write to", last, f"nothing was changed in {last}"):
        for folder, manifest, _ in datasets:
            with folder.new_file(UNMARKED_NAME) as file:
                file.write(manifest.to_json().encode())
        for folder, manifest, staged in datasets:
            for old, new in zip(staged, manifest.part_names, strict=True):
                os.replace(os.path.join(folder.staging, old), os.path.join(folder.staging, new))
            flush_folder(folder.staging)
        for folder, _, _ in reversed(datasets):
            mark = os.path.join(folder.staging, MANIFEST_NAME)
            os.replace(os.path.join(folder.staging, UNMARKED_NAME), mark)
            flush_folder(folder.staging)
    for folder, manifest, _ in reversed(datasets):
        folder.move_marked([*manifest.part_names, TABLE_NAME])
