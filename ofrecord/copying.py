"""Copying records from part files, undecoded: in order, as long runs of bytes, or shuffled."""

import os
import random
from array import array
from bisect import bisect
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import BinaryIO, NamedTuple

from runtime.cli import InputError, count, os_errors

from .dataset import Dataset, part_errors
from .manifest import MANIFEST_NAME
from .record import LENGTH, split_part

OPEN_FILES = 100  # at most
BLOCK = 2**24  # bytes that are copied at once


class Source(NamedTuple):
    """A part file to copy from."""

    dataset: int  # the number of its dataset
    path: str
    starts: array  # of its records, and the end of the file: 8 bytes a record


class Run(NamedTuple):
    """Records that follow each other in a part file."""

    source: Source
    first: int
    stop: int


def find_records(datasets: list[Dataset]) -> list[Source]:
    """Return the parts of datasets, in order. Raises InputError for a damaged one."""
    sources = []
    for number, (folder, manifest) in enumerate(datasets):
        for part in manifest.parts:
            path, starts = os.path.join(folder, part.file), array("q", [0])
            with part_errors(folder, path):
                for _, serialized in split_part(path):
                    starts.append(starts[-1] + LENGTH.size + len(serialized))
            if len(starts) - 1 != part.num_records:
                records = count(part.num_records, "record")
                raise InputError(
                    f"{path} has {len(starts) - 1:,}, and {MANIFEST_NAME} says {records}"
                )
            sources.append(Source(number, path, starts))
    return sources


def cut(sources: list[Source], sizes: list[int], seed: int | None) -> Iterator[list[Run]]:
    """Yield the runs of records that make up each new part, which has so many of them.

    The records' order is kept, or drawn by ``seed``.
    """
    ends = list(accumulate((len(source.starts) - 1 for source in sources), initial=0))
    order = range(ends[-1])
    if seed is not None:
        order = array("q", order)
        random.Random(seed).shuffle(order)
    for start, stop in pairwise(accumulate(sizes, initial=0)):
        runs = []
        while start < stop:
            number = bisect(ends, order[start]) - 1
            most = min(stop - start, ends[number + 1] - order[start]) if seed is None else 1
            first = order[start] - ends[number]
            runs.append(Run(sources[number], first, first + most))
            start += most
        yield runs


def blocks(run: Run) -> Iterator[bytes]:
    """Yield the bytes of a run of records."""
    position, end = run.source.starts[run.first], run.source.starts[run.stop]
    with os_errors("read", run.source.path):
        file = opened(run.source.path).fileno()
        while position < end:
            block = os.pread(file, min(BLOCK, end - position), position)
            if not block:
                raise InputError(f"{run.source.path} became shorter while it was read")
            position += len(block)
            yield block


@lru_cache(OPEN_FILES)
def opened(path: str) -> BinaryIO:
    """Return a part file, open as long as merge() runs."""
    return open(path, "rb", buffering=0)


def records(run: Run) -> Iterator[bytes]:
    """Yield the serialized records of a run."""
    for index in range(run.first, run.stop):
        yield b"".join(blocks(Run(run.source, index, index + 1)))[LENGTH.size :]
