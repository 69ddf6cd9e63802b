"""Packing many images on several processes, and what is shown meanwhile."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import cv2
from tqdm import tqdm

from runtime.cli import count, log, one_line, output
from runtime.workers import ordered_map

from .options import ConvertOptions
from .packed import PackedImages
from .parts import PlannedPart

# A chunk holds enough images that handing it over costs little, and few
# enough that their bytes fit in memory many times.
CHUNK_IMAGES, CHUNK_BYTES = 256, 4 * 2**20
LOOKED_AT = 64  # files, about, whose sizes are looked at for that
MOST_LINES = 1000  # images that get a line each; for more there is a bar


@contextmanager
def pack_in_workers(
    pack: Callable[..., PackedImages], parts: list[PlannedPart], options: ConvertOptions
) -> Iterator[Iterator[PackedImages]]:
    """Yield what ``pack(part, indices, options)`` returns for chunks of the parts' images, in order.

    It runs in several processes, which end with the block. Shows the tutorial's line for each
    image on stdout, or for many a bar on stderr.
    """
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    step, start = _images_per_chunk(parts, options.image_root), time.perf_counter()
    num_images = sum(map(len, parts))
    has_lines = num_images <= MOST_LINES
    chunks = (
        (number, range(len(part))[first : first + step])
        for number, part in enumerate(parts)
        for first in range(0, len(part), step)
    )

    def run(chunk: tuple[int, range]) -> tuple[int, range, PackedImages]:
        number, indices = chunk  # small, as it waits in a pipe; the parts are there already
        return number, indices, pack(parts[number], indices, options)

    def shown(result: tuple[int, range, PackedImages]) -> PackedImages:
        number, indices, packed = result
        bar.update(len(indices))
        if has_lines:
            paths = [parts[number].path(i) for i in indices if i not in packed.problems]
            output(*(f"{one_line(path)} feature saved" for path in paths))
        return packed

    with (
        tqdm(total=num_images, unit="image", disable=True if has_lines else None) as bar,
        closing(ordered_map(run, chunks, options.workers)) as results,
    ):
        yield map(shown, results)
    if num_images:
        seconds = time.perf_counter() - start
        rate = f"{num_images / seconds:,.0f} images/s"
        log(f"{count(num_images, 'image')} converted in {seconds:.1f} s, {rate}")


def _images_per_chunk(parts: list[PlannedPart], image_root: str) -> int:
    """Return how many images make a chunk, by the sizes of some files spread over the parts."""
    names, sizes = [name for part in parts for name in part.samples.names], []
    for name in names[:: max(1, len(names) // LOOKED_AT)]:
        with suppress(OSError):  # reported by the worker that reads it
            sizes.append(os.path.getsize(os.path.join(image_root, name)))
    bytes_per_image = max(sum(sizes) / max(len(sizes), 1), 1)
    return max(1, min(CHUNK_IMAGES, int(CHUNK_BYTES / bytes_per_image)))
