"""A dataset on disk, checked before OneFlow reads it.

OneFlow aborts the process if a part is missing, truncated or empty. So the files
are compared with the manifest first, in Python::

    from ofrecord.dataset.open_dataset import open_dataset

    dataset = open_dataset("dataset/")
    print(dataset.manifest.num_records, dataset.manifest.label_counts)
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from typing import NamedTuple

from tqdm import tqdm

from runtime.atomic import folder_lock, open_regular_file
from runtime.cli import InputError, module_command, os_errors
from runtime.workers import num_cpus

from ..record import LENGTH, BadRecord, read_record, split_part
from .images_csv import Row, read_rows
from .loading import CONVERT, load_manifest
from .manifest import MANIFEST_NAME, PART_PATTERN, TABLE_NAME, Manifest, Part, part_sizes

RESTORE = f"copy the dataset again, or {CONVERT}"
BAR_SECONDS = 2  # hashing that takes longer has a bar
BLOCK = 2**20  # bytes that are hashed at once


def dataset_in_use(folder: str | None) -> AbstractContextManager[None]:
    """Return a context in which no converter replaces the dataset in a folder; None: no dataset.

    Any number of readers may be in one at once. It raises InputError if a conversion is writing
    to the folder, or it may not be read.
    """
    return folder_lock(folder, "a conversion is writing to", shared=True)


class Dataset(NamedTuple):
    """A finished dataset: its folder, and the manifest that says what is in it."""

    folder: str
    manifest: Manifest

    def parts_per_rank(self, world_size: int) -> list[list[Part]]:
        """Return a list of parts for each rank, as OneFlow's reader shares them out.

        Each rank reads whole parts, in order; the first ranks read one more if the
        number of parts is not divisible by ``world_size``.
        """
        parts = iter(self.manifest.parts)
        sizes = part_sizes(len(self.manifest.parts), world_size)
        return [list(islice(parts, size)) for size in sizes]

    def records_per_rank(self, world_size: int) -> list[int]:
        """Return the number of records that each rank reads in an epoch."""
        shares = self.parts_per_rank(world_size)
        return [sum(part.num_records for part in parts) for parts in shares]


def open_dataset(
    folder: str, check_hashes: bool = True, rank: int = 0, world_size: int = 1
) -> Dataset:
    """Return the dataset in a folder, after comparing its files with its manifest.

    The names and the sizes of all parts are compared and, with ``check_hashes``, the SHA-256
    sums of images.csv and of the parts that this rank reads. Raises InputError if there is no
    finished dataset, at the first difference, and if there are negative labels.
    """
    dataset = Dataset(folder, load_manifest(folder))
    manifest = dataset.manifest
    if any(label.startswith("-") for label in manifest.label_counts):
        raise InputError(f"{folder} has labels below 0, which are no classes: labels count from 0")
    with os_errors("list", folder):
        found = {n for n in os.listdir(folder) if PART_PATTERN.fullmatch(n) or n == TABLE_NAME}
    listed = {TABLE_NAME: None, **{part.file: part.bytes for part in manifest.parts}}
    for name in sorted(found.difference(listed)):
        belongs = f"does not belong to this dataset ({MANIFEST_NAME} does not list it)"
        raise InputError(f"{os.path.join(folder, name)} {belongs}: move it away")
    for name, size in listed.items():
        path = os.path.join(folder, name)
        if name not in found:
            raise InputError(f"{path} is missing; {RESTORE}")
        with os_errors("read", path):
            there = os.path.getsize(path)
        if size not in (there, None):
            reason = f"has {there:,} bytes and should have {size:,}: it was truncated or changed"
            raise InputError(f"{path} {reason}; {RESTORE}")
    if check_hashes:
        compare_hashes(folder, manifest.images_csv, dataset.parts_per_rank(world_size)[rank])
    return dataset


def compare_hashes(folder: str, table: str, parts: list[Part]) -> None:
    """Raise InputError where the table of images or a part has other bytes than were written."""
    sums = {TABLE_NAME: table, **{part.file: part.sha256 for part in parts}}
    with ThreadPoolExecutor(num_cpus()) as threads:  # hashing lets go of Python's lock
        paths = [os.path.join(folder, name) for name in sums]
        futures = [threads.submit(sha256_of, path) for path in paths]
        bar = tqdm(futures, unit="file", delay=BAR_SECONDS, disable=None)
        try:
            for path, wanted, future in zip(paths, sums.values(), bar, strict=True):
                with os_errors("read", path):
                    found = future.result()
                if found != wanted:
                    reason = "was changed or damaged after it was written (SHA-256 differs)"
                    raise InputError(f"{path} {reason}; {RESTORE}")
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular_file(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class Record(NamedTuple):
    """A record of a dataset, and where it is from."""

    path: str  # of the part file
    start: int  # byte in it
    size: int  # in bytes, with the length field
    row: Row  # of images.csv
    image: bytes  # encoded


def read_records(dataset: Dataset) -> Iterator[Record]:
    """Yield the records of a dataset, in order.

    Raises InputError for a damaged one, and where images.csv or the manifest has others.
    """
    folder, manifest = dataset
    features, rows = (manifest.image_feature, manifest.label_feature), read_rows(folder)
    for part in manifest.parts:
        path, start, index = os.path.join(folder, part.file), 0, 0
        try:
            with os_errors("read", path):
                for index, serialized in split_part(path):
                    image, label, _ = read_record(serialized, index, *features)
                    row, place = next(rows, None), (part.file, index)
                    if row is None or (row.part, row.record, row.label) != (*place, label):
                        raise BadRecord(index, f"it is not the next one in {TABLE_NAME}")
                    if str(label) not in manifest.label_counts:
                        raise BadRecord(index, f"{MANIFEST_NAME} has no label {label}")
                    size = LENGTH.size + len(serialized)
                    yield Record(path, start, size, row, image)
                    start += size
            if index + 1 != part.num_records:
                says = f"{MANIFEST_NAME} says that there are {part.num_records:,}"
                raise BadRecord(index, f"it is the last one, and {says}")
        except BadRecord as error:
            check = module_command("ofrecord check", folder)
            raise InputError(f"{path}, {error}; {check} lists all problems") from None
