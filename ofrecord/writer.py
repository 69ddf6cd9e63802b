"""Writing a dataset's folder, in place of the one that is there, whole or not at all.

Everything is first written to ``DIR/.img2ofrecord/`` and flushed to the disk, the manifest
last; then it is moved into place (runtime/atomic.py). Killed before that, the old dataset is
untouched; killed meanwhile, the folder has no manifest, so that nothing takes it for finished,
and the next run finishes it. No name is read from a manifest: part names are computed from
their number.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from runtime.atomic import (
    commit_folder,
    flush_file,
    flush_folder,
    folder_lock,
    read_small_file,
    why_no_folder,
)
from runtime.cli import InputError, first_few, os_errors, uninterrupted

from .images import FORMATS
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
from .statistics import ImageStatistics

BUSY = "another converter, or a training, is using"


class DatasetWriter:
    """Writes part files, and commits them as a dataset; what is not committed is removed.

    Use as a context manager. ``digits`` are the part names' at least.
    With ``dry_run`` nothing is written. Raises InputError where the
    folder cannot take a dataset: it is a file, it holds what no converter
    wrote, or another process is using it.
    """

    def __init__(self, folder: str, image_format: str, digits: int = 1, dry_run: bool = False):
        self.folder, self.image_format = folder, image_format
        self.digits, self.dry_run = digits, dry_run
        self.parts: list[Part] = []
        self._staging = os.path.join(folder, STAGING_NAME)
        self._committing = False
        self._stack = ExitStack()

    def __enter__(self):
        if self.dry_run:
            check_target(self.folder)
            return self
        with os_errors("write to", self.folder), ExitStack() as stack:
            folder = Path(self.folder).absolute()
            missing = takewhile(lambda path: not os.path.lexists(path), (folder, *folder.parents))
            for path in reversed(list(missing)):
                stack.callback(_remove_empty, path)
                os.mkdir(path)
            stack.enter_context(folder_lock(self.folder, BUSY))
            _check_locked_target(self.folder)
            _recover_commit(self.folder)
            stack.callback(self._remove_staging)
            os.mkdir(self._staging)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    @contextmanager
    def new_part(self, num_records: int) -> Iterator[Callable[[bytes], None]]:
        """Open the next part file and yield the function that appends packed records to it.

        At the end of the block the file is on the disk.
        """
        name, digest, num_bytes = part_name(len(self.parts), self.digits), hashlib.sha256(), 0

        def write(data: bytes) -> None:
            nonlocal num_bytes
            file.write(data)
            digest.update(data)
            num_bytes += len(data)

        path = os.devnull if self.dry_run else os.path.join(self._staging, name)
        hint = f"nothing was changed in {self.folder}"
        with os_errors("write to", self.folder, hint), open(path, "wb") as file:
            yield write
            if not self.dry_run:
                flush_file(file)
        self.parts.append(
            Part(file=name, num_records=num_records, bytes=num_bytes, sha256=digest.hexdigest())
        )

    def commit(
        self, statistics: ImageStatistics, channels: int | None = None, **fields: Any
    ) -> Manifest:
        """Make the manifest of the parts and commit them.

        ``statistics`` are those of the records; ``channels`` is 3 to have the manifest say so
        where all images are gray; ``fields`` are further fields of the Manifest: of the labels.
        """
        manifest = Manifest(
            num_records=sum(part.num_records for part in self.parts),
            image_format=self.image_format,
            parts=self.parts,
            # Of JPEG, what is not plain is re-encoded; OneFlow's faster decoder misreads gray ones.
            plain_jpeg=FORMATS[self.image_format] == "JPEG" and not statistics.num_gray,
            **statistics.manifest_fields(channels),
            **fields,
        )
        return self.commit_manifest(manifest)

    def commit_manifest(self, manifest: Manifest) -> Manifest:
        """Put the parts in place of the old dataset and return their manifest."""
        if self.dry_run:
            return manifest
        with os_errors("write to", self.folder, f"nothing was changed in {self.folder}"):
            with open(os.path.join(self._staging, MANIFEST_NAME), "w", encoding="utf-8") as file:
                file.write(manifest.to_json())
                flush_file(file)
            flush_folder(self._staging)
        self._committing = True
        with os_errors("replace the dataset in", self.folder, "the next conversion finishes it"):
            with uninterrupted():
                _commit(self.folder, manifest)
        return manifest

    def _remove_staging(self) -> None:
        if not self._committing:  # a commit that fails is finished by the next run
            shutil.rmtree(self._staging, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # there is something in it: a dataset, perhaps
        os.rmdir(folder)


def _commit(folder: str, manifest: Manifest) -> None:
    """Put the staged parts and their manifest in place of the dataset in a folder."""
    staging = os.path.join(folder, STAGING_NAME)
    commit_folder(folder, staging, MANIFEST_NAME, manifest.part_names, PART_PATTERN.fullmatch)


def _recover_commit(folder: str) -> None:
    """Finish a commit that was killed, or remove what else a killed run left. Raises OSError."""
    staging = os.path.join(folder, STAGING_NAME)
    manifest = _staged_manifest(folder)
    if manifest and not os.path.exists(os.path.join(folder, MANIFEST_NAME)):
        _commit(folder, manifest)
    elif os.path.lexists(staging):
        shutil.rmtree(staging)


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
        with os_errors("read", staging, "remove it"):
            staged = os.listdir(staging)
        strangers = [n for n in staged if not (PART_PATTERN.fullmatch(n) or n == MANIFEST_NAME)]
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
