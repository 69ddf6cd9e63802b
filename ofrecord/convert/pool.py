"""Packing many images on several processes, a chunk at a time."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import cv2

from runtime.workers import ordered_map

from .chunk import Chunk
from .options import ConvertOptions
from .parts import PlannedPart

# A chunk holds enough images that handing it over costs little, and few
# enough that their bytes fit in memory many times.
CHUNK_IMAGES, CHUNK_BYTES = 256, 4 * 2**20
LOOKED_AT = 64  # files, about, whose sizes are looked at for that


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
