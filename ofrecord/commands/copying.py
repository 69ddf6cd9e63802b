"""Copying records from part files, undecoded, in any order."""

import os
from array import array
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import BinaryIO, NamedTuple

from runtime.atomic import open_regular_file
from runtime.cli import InputError, count, os_errors

from ..dataset.images_csv import Row, read_rows
from ..dataset.manifest import MANIFEST_NAME, TABLE_NAME
from ..dataset.open_dataset import Dataset, part_errors
from ..record import LENGTH, BadRecord, OFRecord, read_record, split_part

OPEN_FILES = 100  # at most


class Source(NamedTuple):
    """A part file to copy from."""

    path: str
    rows: list[Row]  # of images.csv
    starts: array  # of its records, and the end of the file: 8 bytes a record
    features: tuple[str, str]
    new_labels: dict[int, int]  # {label: new label} where they change

    def read(self, file: BinaryIO, index: int) -> bytes:
        """Return a record with its length, and its new label. Raises InputError."""
        with os_errors("read", self.path):
            file.seek(self.starts[index])
            data = file.read(self.starts[index + 1] - self.starts[index])
        if len(data) < self.starts[index + 1] - self.starts[index]:
            raise InputError(f"{self.path} became shorter while it was read")
        return self._relabeled(data, index) if self.new_labels else data

    def _relabeled(self, data: bytes, index: int) -> bytes:
        try:
            _, label, kind = read_record(data[LENGTH.size :], index, *self.features)
            record = OFRecord.FromString(data[LENGTH.size :])
            values = getattr(record.feature[self.features[1]], f"{kind}_list").value
            values[0] = self.new_labels.get(label, label)
        except BadRecord as error:
            raise InputError(f"{self.path}, {error}") from None
        serialized = record.SerializeToString(deterministic=True)
        return LENGTH.pack(len(serialized)) + serialized


def find_records(dataset: Dataset, new_labels: dict[int, int]) -> list[Source]:
    """Return the parts of a dataset, in order. Raises InputError for a damaged one."""
    folder, manifest = dataset
    rows, sources = defaultdict(list), []
    for row in read_rows(folder):
        rows[row.part].append(row)
    for part in manifest.parts:
        path, starts = os.path.join(folder, part.file), array("q", [0])
        with part_errors(folder, path):
            for _, serialized in split_part(path):
                starts.append(starts[-1] + LENGTH.size + len(serialized))
        found = len(starts) - 1
        for file, number in ((MANIFEST_NAME, part.num_records), (TABLE_NAME, len(rows[part.file]))):
            if number != found:
                records = count(number, "record")
                raise InputError(f"{path} has {found:,}, and {file} says {records}")
        features = manifest.image_feature, manifest.label_feature
        sources.append(Source(path, rows[part.file], starts, features, new_labels))
    return sources


def copy_records(sources: list[Source], order: Sequence[int]) -> Iterator[tuple[bytes, Row]]:
    """Yield records with their lengths, and their rows; ``order`` are their numbers over all."""
    ends = list(accumulate((len(source.rows) for source in sources), initial=0))
    opened = lru_cache(OPEN_FILES)(open_regular_file)
    for index in order:
        number = bisect(ends, index) - 1
        source, record = sources[number], index - ends[number]
        row = source.rows[record]
        with os_errors("read", source.path):
            file = opened(source.path)
        yield (
            source.read(file, record),
            row._replace(label=source.new_labels.get(row.label, row.label)),
        )
