"""Writing a dataset's folder, in place of the one that is there, whole or not at all.

Everything is first written to ``DIR/.img2ofrecord/`` and flushed to the disk,
the manifest last; then it is moved into place (runtime/atomic.py). Killed
before that, the old dataset is untouched; killed meanwhile, the folder has no
manifest, so that nothing takes it for finished, and the next run finishes it.
"""

import errno
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO

from runtime.atomic import flush_file, folder_lock
from runtime.cli import InputError, uninterrupted

from .commit import BUSY, check_locked_target, check_target, commit, recover_commit, write_manifest
from .images import FORMATS
from .manifest import STAGING_NAME, Manifest, Part, part_name
from .statistics import ImageStatistics


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
        self.statistics = ImageStatistics()
        self._parts: list[PartWriter] = []
        self._staging = os.path.join(folder, STAGING_NAME)
        self._made: list[str] = []  # folders
        self._committing = False
        self._stack = ExitStack()

    def __enter__(self):
        if self.dry_run:
            check_target(self.folder)
            return self
        with _writing_errors(self.folder), ExitStack() as stack:
            stack.callback(self._remove_made)
            self._make_folder()
            stack.enter_context(folder_lock(self.folder, BUSY))
            check_locked_target(self.folder)
            recover_commit(self.folder)
            stack.callback(self._remove_staging)
            os.mkdir(self._staging)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, trace):
        with _writing_errors(self.folder):
            return self._stack.__exit__(kind, error, trace)

    @contextmanager
    def new_part(self) -> Iterator["PartWriter"]:
        """Open the next part file; it is on the disk at the end of the block."""
        name = part_name(len(self._parts), self.digits)
        path = os.devnull if self.dry_run else os.path.join(self._staging, name)
        with _writing_errors(self.folder), open(path, "wb") as file:
            part = PartWriter(name, file)
            yield part
            if not self.dry_run:
                flush_file(file)
        self._parts.append(part)
        self.statistics.merge(part.statistics)

    def commit(
        self,
        labels: list[int],
        class_names: list[str] | None,
        channels: int | None = None,
        **fields: Any,
    ) -> Manifest:
        """Put the parts in place of the old dataset and return their manifest.

        ``labels`` are those of the records; ``channels`` is 3 to have the manifest say so where
        all images are gray; ``fields`` are further fields of the Manifest.
        """
        counts = Counter(labels)
        manifest = Manifest(
            num_records=len(labels),
            num_classes=len(class_names) if class_names else max(max(counts) + 1, 0),
            class_names=class_names,
            label_counts={str(label): counts[label] for label in sorted(counts)},
            image_format=self.image_format,
            parts=[part.entry() for part in self._parts],
            plain_jpeg=self._all_plain_jpeg(),
            **self.statistics.manifest_fields(channels),
            **fields,
        )
        if self.dry_run:
            return manifest
        with _writing_errors(self.folder):
            write_manifest(self._staging, manifest)
        self._committing = True
        try:
            with uninterrupted():
                commit(self.folder, manifest)
        except OSError as error:
            raise InputError(
                f"stopped while replacing the dataset in {self.folder}: "
                f"{error.strerror or error}; the next conversion to it finishes that"
            ) from error
        return manifest

    def _all_plain_jpeg(self) -> bool:
        # Of JPEG, what is not plain is re-encoded; gray ones OneFlow's faster decoder misreads.
        return FORMATS[self.image_format] == "JPEG" and not self.statistics.num_gray

    def _make_folder(self) -> None:
        missing, folder = [], os.path.abspath(self.folder)
        while not os.path.lexists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            self._made.append(folder)
            os.mkdir(folder)

    def _remove_staging(self) -> None:
        if not self._committing:  # a commit that fails is finished by the next run
            shutil.rmtree(self._staging, ignore_errors=True)

    def _remove_made(self) -> None:
        for folder in reversed(self._made):
            with suppress(OSError):  # there is something in it: a dataset, perhaps
                os.rmdir(folder)


class PartWriter:
    """One part file that is being written."""

    def __init__(self, name: str, file: BinaryIO):
        self.statistics = ImageStatistics()
        self._name, self._file = name, file
        self._digest, self._bytes = hashlib.sha256(), 0

    def write(self, data: bytes, statistics: ImageStatistics) -> None:
        """Append packed records, of whose images ``statistics`` are."""
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)
        self.statistics.merge(statistics)

    def entry(self) -> Part:
        """Return the part's entry in the manifest."""
        return Part(
            file=self._name,
            num_records=self.statistics.num_images,
            bytes=self._bytes,
            sha256=self._digest.hexdigest(),
        )


@contextmanager
def _writing_errors(folder: str) -> Iterator[None]:
    """Make an OSError of writing a dataset one line."""
    try:
        yield
    except BrokenPipeError:  # of stdout
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"not enough disk space for the dataset in {folder}: nothing was changed; "
                "free some space or choose another --save_dir"
            ) from error
        raise InputError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}"
        ) from error
