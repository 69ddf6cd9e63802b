"""A dataset on disk, checked before OneFlow reads it.

OneFlow aborts the process if a part is missing, truncated or empty. So the files
are compared with the manifest first, in Python::

    from ofrecord.dataset import open_dataset

    dataset = open_dataset("dataset/")
    print(dataset.manifest.num_records, dataset.manifest.label_counts)
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from runtime.atomic import folder_lock, open_regular_file
from runtime.cli import InputError, os_errors

from .manifest import (
    CONVERT,
    MANIFEST_NAME,
    PART_PATTERN,
    Manifest,
    Part,
    load_manifest,
)
from .record import BadRecord, Label, read_part

CHECK = "`python -m ofrecord check {}` lists all problems"


def dataset_in_use(folder: str | None) -> AbstractContextManager[None]:
    """Return a context in which no converter replaces the dataset in a folder; None: no dataset.

    Any number of readers may be in it at once. Raises InputError if a conversion is
    writing to the folder.
    """
    return folder_lock(folder, "a conversion is writing to", shared=True)


def refuse_inside(target: str, folder: str) -> None:
    """Raise InputError for a folder to write that lies in a dataset's folder, as a part would."""
    if os.path.realpath(target).startswith(os.path.join(os.path.realpath(folder), "")):
        raise InputError(f"{target} is inside of {folder}: choose another folder")


class Dataset(NamedTuple):
    """A finished dataset: its folder, and the manifest that says what is in it."""

    folder: str
    manifest: Manifest

    def parts_per_rank(self, world_size: int) -> list[list[Part]]:
        """Return a list of parts for each rank, as OneFlow's reader shares them out.

        Each rank reads whole parts, in order; the first ranks read one more if the
        number of parts is not divisible by ``world_size``.
        """
        parts, small, larger = [], *divmod(len(self.manifest.parts), world_size)
        for rank in range(world_size):
            start = sum(map(len, parts))
            parts.append(self.manifest.parts[start : start + small + (rank < larger)])
        return parts

    def records_per_rank(self, world_size: int) -> list[int]:
        """Return the number of records that each rank reads in an epoch."""
        shares = self.parts_per_rank(world_size)
        return [sum(part.num_records for part in parts) for parts in shares]


def open_dataset(folder: str, all_hashes: bool = False) -> Dataset:
    """Return the dataset in a folder, after comparing its part files with its manifest.

    The names and the sizes of all parts are compared, and the SHA-256 sums (a second a
    gigabyte) of those that were written to since the manifest was; with ``all_hashes``, of
    all. Raises InputError if there is no finished dataset, at the first difference, and
    if there are negative labels.
    """
    manifest = load_manifest(folder)
    finished = os.stat(os.path.join(folder, MANIFEST_NAME)).st_mtime_ns
    listed = {part.file for part in manifest.parts}
    for name in sorted(os.listdir(folder)):
        if PART_PATTERN.fullmatch(name) and name not in listed:
            path = os.path.join(folder, name)
            raise InputError(
                f"{path} does not belong to this dataset ({MANIFEST_NAME} does not list it): "
                "move it away"
            )
    for part in manifest.parts:
        path = os.path.join(folder, part.file)
        if not os.path.lexists(path):
            raise InputError(f"{path} is missing; {CONVERT}")
        with os_errors("read", path):
            status = os.stat(path)
            if status.st_size != part.bytes:
                raise InputError(
                    f"{path} has {status.st_size:,} bytes and should have {part.bytes:,}: "
                    f"it was truncated or changed; {CONVERT}"
                )
            # >=, as the clock of files ticks only a few times a second.
            changed = status.st_mtime_ns >= finished
            if (changed or all_hashes) and sha256_of(path) != part.sha256:
                raise InputError(
                    f"{path} was changed or damaged after it was written (SHA-256 differs); "
                    f"{CONVERT}"
                )
    if any(label.startswith("-") for label in manifest.label_counts):
        raise InputError(f"{folder} has labels below 0, which are no classes: labels count from 0")
    return Dataset(folder, manifest)


@contextmanager
def part_errors(folder: str, path: str) -> Iterator[None]:
    """Make what is wrong with a part file of a dataset an InputError that names it."""
    try:
        with os_errors("read", path):
            yield
    except BadRecord as error:
        raise InputError(f"{path}, {error}; {CHECK.format(folder)}") from None


def read_records(folder: str, manifest: Manifest) -> Iterator[tuple[str, int, bytes, Label]]:
    """Yield (path of the part, index in it, encoded image, label) of each record.

    Raises InputError for a part that cannot be read, and for a damaged record.
    """
    features = manifest.image_feature, manifest.label_feature
    for part in manifest.parts:
        path = os.path.join(folder, part.file)
        with part_errors(folder, path):
            for record in read_part(path, *features, manifest.label_kind):
                yield path, *record


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular_file(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
