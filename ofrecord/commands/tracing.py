"""The records of a dataset with their rows of images.csv."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from ..dataset.images_csv import Row, read_rows
from ..dataset.layout import MANIFEST_NAME, TABLE_NAME
from ..dataset.open_dataset import Dataset, part_errors
from ..record import LENGTH, BadRecord, read_record, split_part


class TracedRecord(NamedTuple):
    """A record, and where it is from."""

    path: str  # of the part file
    start: int  # byte in it
    size: int  # in bytes, with the length field
    row: Row
    image: bytes  # encoded


def trace_records(dataset: Dataset) -> Iterator[TracedRecord]:
    """Yield the records of a dataset, in order.

    Raises InputError for a damaged one, and where images.csv or the manifest has others.
    """
    folder, manifest = dataset
    features, rows = (manifest.image_feature, manifest.label_feature), read_rows(folder)
    for part in manifest.parts:
        path, start, index = os.path.join(folder, part.file), 0, 0
        with part_errors(folder, path):
            for index, serialized in split_part(path):
                image, label, _ = read_record(serialized, index, *features)
                row = next(rows, None)
                if row is None or (row.part, row.record, row.label) != (part.file, index, label):
                    raise BadRecord(index, f"it is not the next one in {TABLE_NAME}")
                if str(label) not in manifest.label_counts:
                    raise BadRecord(index, f"{MANIFEST_NAME} has no label {label}")
                size = LENGTH.size + len(serialized)
                yield TracedRecord(path, start, size, row, image)
                start += size
            if index + 1 != part.num_records:
                says = f"{MANIFEST_NAME} says that there are {part.num_records:,}"
                raise BadRecord(index, f"it is the last one, and {says}")
