"""Some images of a part: what a worker process gets, and what it sends back."""

import errno
import io
import os
import struct
from typing import NamedTuple

from runtime.atomic import read_with_status

from ..dataset.images_csv import image_digest
from ..dataset.statistics import EncodedImage, ImageStatistics
from ..images import MAX_FILE_SIZE, BadImage
from ..labels import Samples

STAMP = struct.Struct("<qq")  # of an image's file: its size, and its time stamp in nanoseconds
NO_FILE, UNREADABLE = STAMP.pack(-1, 0), STAMP.pack(-1, 1)


def stamp_of(status: os.stat_result) -> bytes:
    """Return what tells whether a file was changed."""
    return STAMP.pack(status.st_size, status.st_mtime_ns)


class Problem(NamedTuple):
    """Why an image is not stored."""

    name: str
    reason: str
    may_be_skipped: bool  # by --skip_bad


class Chunk:
    """Some images of a part: what is to be packed, and what came of it."""

    def __init__(self, samples: Samples, indices: range, interval: int, image_root: str):
        names, folder = samples.names, os.path.join(image_root, "")  # ends in a slash
        self.paths = {names[index]: folder + names[index] for index in indices}
        self.labels = {names[index]: samples.labels[index] for index in indices}
        # Images whose pixels are counted: every n-th.
        self.measured = {names[index] for index in indices if index % interval == 0}
        self.packed = io.BytesIO()  # their records
        self.digests: list[str] = []  # of their stored bytes
        self.stamps = bytearray()  # of all files
        self.problems: list[Problem] = []
        self.statistics = ImageStatistics()

    def read(self, path: str) -> bytes:
        """Return the bytes of an image's file, after noting its stamp. Raises OSError."""
        stamp = NO_FILE
        try:
            data, status = read_with_status(path, MAX_FILE_SIZE)
            stamp = stamp_of(status)
        finally:
            self.stamps += stamp
        return data

    def count(self, image: EncodedImage, measured: bool) -> bytes:
        """Add an image to what is known of the chunk, and return its bytes."""
        self.statistics.add(image, measured)
        self.digests.append(image_digest(image.data))
        return image.data

    def problems_of(self, name: str) -> "_ProblemsOf":
        """Return a context that notes why an image cannot be stored."""
        return _ProblemsOf(self.problems, name)


class _ProblemsOf:
    """A context that turns an error of an image into a Problem."""

    __slots__ = "_problems", "_name"

    def __init__(self, problems: list[Problem], name: str):
        self._problems, self._name = problems, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """A file that is missing, or a link to itself, may be skipped like an invalid one.

        What a second try may mend may not: it would be missing in the dataset without a need.
        """
        if isinstance(error, BadImage):
            problem = f"invalid image: {error}", True
        elif isinstance(error, FileNotFoundError):
            problem = "missing, but it has a label", True
        elif isinstance(error, OSError):
            problem = f"cannot be read: {error.strerror}", error.errno == errno.ELOOP
        elif isinstance(error, MemoryError):
            problem = "not enough memory to decode it: fewer --workers need less", False
        else:
            return False
        self._problems.append(Problem(self._name, *problem))
        return True
