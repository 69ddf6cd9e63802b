"""Writing a dataset's folder, in place of the one that is there, whole or not at all.

Everything is first written to ``DIR/.img2ofrecord/`` and flushed to the disk, the manifest
last; then it is moved into place (runtime/atomic.py). Killed before that, the old dataset is
untouched, and the next run continues (resume.py); killed meanwhile, the folder has no manifest,
so that nothing takes it for finished, and the next run finishes it. No name is read from a
manifest: part names are computed from their number.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from runtime.atomic import (
    commit_folder,
    create_file,
    flush_file,
    flush_folder,
    folder_lock,
    read_small_file,
    why_no_folder,
)
from runtime.cli import InputError, first_few, os_errors, uninterrupted

from .manifest import (
    MANIFEST_NAME,
    PART_PATTERN,
    STAGING_NAME,
    Manifest,
    Part,
    load_manifest,
    parse_manifest,
    part_name,
)
from .plan import STAGED_PATTERN, has_finished_parts

BUSY = "another converter, or a training, is using"


class PartFile:
    """A part file that is being written."""

    def __init__(self, file: BinaryIO, name: str, num_records: int):
        self._file, self._name, self._num_records = file, name, num_records
        self._digest, self._num_bytes = hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """Append packed records."""
        self._file.write(data)
        self._digest.update(data)
        self._num_bytes += len(data)

    @property
    def part(self) -> Part:
        return Part(
            file=self._name,
            num_records=self._num_records,
            bytes=self._num_bytes,
            sha256=self._digest.hexdigest(),
        )


class DatasetWriter:
    """Writes part files into a hidden folder, and commits them as a dataset.

    Use as a context manager. ``digits`` are the part names' at least. With ``dry_run`` no part
    is written; ``shared``: other processes write other parts at the same time. What is not
    committed is removed at the end, unless there are finished parts to continue with (plan.py).
    Raises InputError where the folder cannot take a dataset: it is a file, it holds what no
    converter wrote, or another process is using it.
    """

    def __init__(
        self, folder: str, digits: int = 1, dry_run: bool = False, shared: bool = False
    ) -> None:
        self.folder, self.digits = folder, digits
        self.dry_run, self.shared = dry_run, shared
        self.recovered = False  # a commit that was killed
        self.staging = os.path.join(folder, STAGING_NAME)
        self.committing = False
        self._stack = ExitStack()

    def __enter__(self):
        if not self.folder:
            raise InputError("the folder to write has no name")
        if self.dry_run:
            check_target(self.folder)
            self.staging = self._stack.enter_context(TemporaryDirectory(prefix="img2ofrecord-"))
            return self
        with os_errors("write to", self.folder), ExitStack() as stack:
            folder = Path(self.folder).absolute()
            missing = takewhile(lambda path: not os.path.lexists(path), (folder, *folder.parents))
            for path in reversed(list(missing)):
                stack.callback(_remove_empty, path)
                with suppress(FileExistsError):  # another process was faster
                    os.mkdir(path)
            stack.enter_context(folder_lock(self.folder, BUSY, self.shared))
            _check_locked_target(self.folder)
            self._recover_commit()
            stack.callback(self._remove_staging)
            with suppress(FileExistsError):
                os.mkdir(self.staging)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    @contextmanager
    def new_part(self, number: int, num_records: int) -> Iterator["PartFile"]:
        """Open a part file to write to; at the end of the block it is on the disk."""
        name = part_name(number, self.digits)
        path = os.devnull if self.dry_run else os.path.join(self.staging, name)
        hint = f"nothing was changed in {self.folder}"
        create = open if self.dry_run else create_file
        with os_errors("write to", self.folder, hint), create(path, "wb") as file:
            yield PartFile(file, name, num_records)
            if not self.dry_run:
                flush_file(file)

    def commit(self, manifest: Manifest) -> None:
        """Put the parts in place of the old dataset, with their manifest."""
        with os_errors("write to", self.folder, f"nothing was changed in {self.folder}"):
            path = os.path.join(self.staging, MANIFEST_NAME)
            with create_file(path, "w", encoding="utf-8") as file:
                file.write(manifest.to_json())
                flush_file(file)
            flush_folder(self.staging)
        self.committing = True
        with os_errors("replace the dataset in", self.folder, "the next conversion finishes it"):
            with uninterrupted():
                _commit(self.folder, manifest)

    def clear(self, keep: str = "") -> None:
        """Remove all that is in the hidden folder, but the file named ``keep``."""
        with os_errors("write to", self.staging):
            for name in set(os.listdir(self.staging)) - {keep}:
                os.remove(os.path.join(self.staging, name))

    def _recover_commit(self) -> None:
        """Finish a commit that was killed, unless the old dataset is still whole. Raises OSError."""
        manifest, path = _staged_manifest(self.folder), os.path.join(self.staging, MANIFEST_NAME)
        if manifest and self.shared:
            finish = f"`python -m ofrecord finish {self.folder}`"
            raise InputError(f"{self.folder}: {finish} was interrupted: start that again first")
        if manifest and not os.path.exists(os.path.join(self.folder, MANIFEST_NAME)):
            _commit(self.folder, manifest)
            self.recovered = True
        elif os.path.lexists(path):
            os.remove(path)

    def _remove_staging(self) -> None:
        if not (self.committing or self.shared or has_finished_parts(self.staging)):
            shutil.rmtree(self.staging, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # there is something in it: a dataset, perhaps
        os.rmdir(folder)


def _commit(folder: str, manifest: Manifest) -> None:
    """Put the staged parts and their manifest in place of the dataset in a folder."""
    staging = os.path.join(folder, STAGING_NAME)
    commit_folder(folder, staging, MANIFEST_NAME, manifest.part_names, PART_PATTERN.fullmatch)


def _staged_manifest(folder: str) -> Manifest | None:
    """The manifest of a run that was killed after its last part was whole, or None."""
    path = os.path.join(folder, STAGING_NAME, MANIFEST_NAME)
    with os_errors("read", path), suppress(FileNotFoundError, ValueError):
        return parse_manifest(read_small_file(path))  # ValueError: killed while it wrote it
    return None


def check_target(folder: str) -> None:
    """Raise InputError unless a dataset may be written to this folder, which nobody is writing to.

    It may where there is no folder yet, an empty one, a dataset, or what a
    killed run left of one. Other files beside a dataset are left alone.
    """
    with folder_lock(folder, BUSY, shared=True):
        _check_locked_target(folder)


def _check_locked_target(folder: str) -> None:
    """Raise InputError as check_target does, for a caller that holds the folder_lock."""
    if not os.path.lexists(folder):
        return
    if reason := why_no_folder(folder):
        raise InputError(f"{folder} {reason}: choose another folder")
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    staging, ours, strangers = os.path.join(folder, STAGING_NAME), [], []
    begun = os.path.lexists(staging)
    if begun:
        if os.path.islink(staging):
            raise InputError(f"{staging} is a link: remove it")
        with os_errors("read", staging, "remove it"):
            staged = os.listdir(staging)
        strangers = [name for name in staged if not STAGED_PATTERN.fullmatch(name)]
    if os.path.lexists(os.path.join(folder, MANIFEST_NAME)):
        ours = load_manifest(folder).part_names
    elif _staged_manifest(folder):  # a commit that was killed: old parts may still be there
        ours = names
    elif names and not begun:
        raise InputError(
            f"{folder} is not empty and contains no dataset of img2ofrecord.py "
            f"({first_few(names)}): choose another folder or empty it"
        )
    parts = {name for name in names if PART_PATTERN.fullmatch(name)}
    strangers += parts.difference(ours)
    strangers += [name for name in parts if os.path.isdir(os.path.join(folder, name))]
    if strangers:
        raise InputError(
            f"{folder} contains what does not belong to its dataset ({first_few(strangers)}): "
            "choose another folder or move it away"
        )
