"""Packing many images on several processes, and what is shown meanwhile."""

import errno
import io
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import cv2
from tqdm import tqdm

from runtime.atomic import read_with_status
from runtime.cli import (
    SHOWN_PROBLEMS,
    InputErrors,
    count,
    first_few,
    log,
    one_line,
    output,
)
from runtime.workers import ordered_map

from ..dataset.images_csv import image_digest
from ..dataset.statistics import EncodedImage, ImageStatistics
from ..images import MAX_FILE_SIZE, NO_HEIF, BadImage
from ..labels import similar_names
from .options import ConvertOptions

if TYPE_CHECKING:
    from .parts import PlannedPart

# A chunk holds enough images that handing it over costs little, and few
# enough that their bytes fit in memory many times.
CHUNK_IMAGES, CHUNK_BYTES = 256, 4 * 2**20
LOOKED_AT = 64  # files of a part whose sizes are looked at for that

MOST_LINES = 1000  # images that get a line each; for more there is a bar

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

    def __init__(self, part: "PlannedPart", indices: range, image_root: str):
        names, folder = part.samples.names, os.path.join(image_root, "")  # ends in a slash
        self.paths = {names[index]: folder + names[index] for index in indices}
        self.labels = {names[index]: part.samples.labels[index] for index in indices}
        # Images whose pixels are counted.
        self.measured = {names[index] for index in indices if index % part.interval == 0}
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


@contextmanager
def pack_all(
    pack: Callable[[Chunk, ConvertOptions], Chunk],
    parts: list["PlannedPart"],
    options: ConvertOptions,
) -> Iterator[Iterator[Chunk]]:
    """Yield what ``pack(chunk, options)`` returns for chunks of images, in order.

    It runs in several processes, which end with the block.
    """
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    jobs = (
        (number, indices)
        for number, part in enumerate(parts)
        for indices in chunks_of(part.samples.names, options.image_root)
    )

    def run(job: tuple[int, range]) -> Chunk:
        return pack(Chunk(parts[job[0]], job[1], options.image_root), options)

    with closing(ordered_map(run, jobs, options.workers)) as chunks:
        yield chunks


def chunks_of(names: list[str], image_root: str) -> Iterator[range]:
    """Yield the indices of the images of each chunk."""
    sizes = []
    for name in names[:: max(1, len(names) // LOOKED_AT)]:
        try:
            sizes.append(os.path.getsize(os.path.join(image_root, name)))
        except OSError:  # reported by the worker that reads it
            pass
    bytes_per_image = max(sum(sizes) / max(len(sizes), 1), 1)
    step = max(1, min(CHUNK_IMAGES, int(CHUNK_BYTES / bytes_per_image)))
    for start in range(0, len(names), step):
        yield range(start, min(start + step, len(names)))


# -- what is said -------------------------------------------------------------------------


def invalid_images(problems: list[Problem], options: ConvertOptions) -> InputErrors:
    """Return the error for images that cannot be stored."""
    hint = " (--skip_bad skips them)" if all(each.may_be_skipped for each in problems) else ""
    number = count(len(problems), "invalid image")
    summary = f"{number}; nothing was changed in {options.save_dir}{hint}"
    return InputErrors(describe(problems, options.image_root), summary)


def describe(problems: list[Problem], root: str) -> list[str]:
    """Return a line for each problem of an image, and one for all HEIC files that none can read."""
    lines = []
    if heic := [each.name for each in problems if each.reason.endswith(NO_HEIF)]:
        lines.append(f"{count(len(heic), 'file')} in {root} ({first_few(heic)}): {NO_HEIF}")
        problems = [each for each in problems if not each.reason.endswith(NO_HEIF)]
    shown = [each.name for each in problems[:SHOWN_PROBLEMS]]
    similar = similar_names(root, [n for n in shown if not os.path.lexists(os.path.join(root, n))])
    for name, reason, _ in problems:
        hint = f"; did you mean {similar[name]}?" if similar.get(name) else ""
        lines.append(f"{os.path.join(root, name)}: {reason}{hint}")
    return lines


class ConversionProgress:
    """The tutorial's line for each image on stdout, or for many a bar on stderr."""

    def __init__(self, parts: Iterable["PlannedPart"], options: ConvertOptions):
        self._num_images, self._image_root = sum(map(len, parts)), options.image_root
        self._lines = self._num_images <= MOST_LINES
        self._bar = tqdm(
            total=self._num_images, unit="image", disable=True if self._lines else None
        )
        self._start = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._num_images and not any(error):
            seconds = time.perf_counter() - self._start
            rate = self._num_images / seconds
            number = count(self._num_images, "image")
            log(f"{number} converted in {seconds:.1f} s, {rate:,.0f} images/s")

    def shown(self, chunk: Chunk) -> Chunk:
        """Show that a chunk is done, and return it."""
        self._bar.update(len(chunk.paths))
        if self._lines:
            skipped = {problem.name for problem in chunk.problems}
            paths = [path for name, path in chunk.paths.items() if name not in skipped]
            output(*(f"{one_line(path)} feature saved" for path in paths))
        return chunk
