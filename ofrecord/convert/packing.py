"""Packing many images on several processes, and what is shown meanwhile."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import cv2
from tqdm import tqdm

from runtime.cli import SHOWN_PROBLEMS, InputErrors, count, first_few, log, one_line, output
from runtime.workers import ordered_map

from ..images import NO_HEIF
from ..labels import similar_names
from .chunk import Chunk, Problem
from .options import ConvertOptions
from .parts import PlannedPart

# A chunk holds enough images that handing it over costs little, and few
# enough that their bytes fit in memory many times.
CHUNK_IMAGES, CHUNK_BYTES = 256, 4 * 2**20
LOOKED_AT = 64  # files, about, whose sizes are looked at for that
MOST_LINES = 1000  # images that get a line each; for more there is a bar


@contextmanager
def pack_all(
    pack: Callable[[Chunk, ConvertOptions], Chunk],
    parts: list[PlannedPart],
    options: ConvertOptions,
) -> Iterator[Iterator[Chunk]]:
    """Yield what ``pack(chunk, options)`` returns for chunks of images, in order.

    It runs in several processes, which end with the block.
    """
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    step = _images_per_chunk(parts, options.image_root)
    jobs = (
        (number, range(len(part))[start : start + step])
        for number, part in enumerate(parts)
        for start in range(0, len(part), step)
    )

    def run(job: tuple[int, range]) -> Chunk:
        part = parts[job[0]]
        return pack(Chunk(part.samples, job[1], part.interval, options.image_root), options)

    with closing(ordered_map(run, jobs, options.workers)) as chunks:
        yield chunks


def _images_per_chunk(parts: list[PlannedPart], image_root: str) -> int:
    """Return how many images make a chunk, by the sizes of some files spread over the parts."""
    sizes = []
    for part in parts[:: max(1, len(parts) // LOOKED_AT)]:
        for name in part.samples.names[:: max(1, len(part) * len(parts) // LOOKED_AT)]:
            with suppress(OSError):  # reported by the worker that reads it
                sizes.append(os.path.getsize(os.path.join(image_root, name)))
    bytes_per_image = max(sum(sizes) / max(len(sizes), 1), 1)
    return max(1, min(CHUNK_IMAGES, int(CHUNK_BYTES / bytes_per_image)))


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


class Progress:
    """The tutorial's line for each image on stdout, or for many a bar on stderr."""

    def __init__(self, parts: list[PlannedPart], options: ConvertOptions):
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
