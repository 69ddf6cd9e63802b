"""Packing many images on several processes, and what is shown meanwhile."""

import hashlib
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from functools import partial
from typing import Any, NamedTuple

import cv2
from tqdm import tqdm

from runtime.atomic import read_small_file
from runtime.cli import (
    SHOWN_PROBLEMS,
    InputError,
    InputErrors,
    count,
    first_few,
    log,
    one_line,
    output,
)
from runtime.workers import ordered_map

from .headers import NO_HEIF, BadImage
from .images import MAX_FILE_SIZE, decoder_messages, largest_value
from .labels import Samples, fold, list_images
from .manifest import Part
from .options import MOST_LINES, ConvertOptions
from .plan import FinishedPart
from .record import Label
from .statistics import ImageStatistics


class Chunk(NamedTuple):
    """Some images that belong to one part file, packed."""

    data: bytes  # their records
    saved: list[str]  # names of the images in them
    problems: list[tuple[str, str]]  # (name, reason) of each image that is missing or invalid
    statistics: ImageStatistics
    stamps: bytes  # what tells whether their files were changed later

    @property
    def num_images(self) -> int:
        return len(self.saved) + len(self.problems)


class PackedPart:
    """What is known of a part while its chunks are written."""

    def __init__(self):
        self.num_images, self.problems = 0, []
        self._statistics, self._stamps = ImageStatistics(), hashlib.sha256()

    def add(self, chunk: Chunk) -> None:
        self.num_images += chunk.num_images
        self.problems += chunk.problems
        self._statistics.merge(chunk.statistics)
        self._stamps.update(chunk.stamps)

    def finish(self, plan_digest: str, part: Part) -> FinishedPart:
        """Return what is kept of the part, which is on the disk now."""
        return FinishedPart(
            plan=plan_digest,
            part=part,
            stamps=self._stamps.hexdigest(),
            statistics=self._statistics.state,
        )


def choose_part_num(outputs: dict[str, Samples], options: ConvertOptions) -> dict[str, int]:
    """Return the number of parts of each dataset.

    Raises InputError for too many parts; a validation set has fewer where it is small, unless
    it is for the model zoo, whose loaders read as many parts of both.
    """
    numbers = {split: len(samples) for split, samples in outputs.items()}
    fewest = min(numbers.values()) if options.model_zoo else numbers["train"]
    if options.part_num > fewest:
        images = f"{count(fewest, 'image')} of a dataset to write"
        raise InputError(f"--part_num {options.part_num} is more than the {images}")
    return {split: min(options.part_num, number) for split, number in numbers.items()}


# A chunk holds enough images that handing it over costs little, and few
# enough that their bytes fit in memory many times.
CHUNK_IMAGES, CHUNK_BYTES = 256, 4 * 2**20

BIT_DEPTHS = 8, 10, 12, 14, 16  # of --max_value auto: those that cameras and scanners have


def pack_all(
    pack: Callable[[list[tuple[str, Label]], int], Any],
    samples: Samples,
    parts: Iterable[range],
    options: ConvertOptions,
) -> Generator[Any, None, None]:
    """Yield ``pack([(name, label), ...], first)`` for images, in order, from several processes.

    ``parts`` are the indices of the images of each part: no chunk crosses into the next.
    """
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    bytes_per_image = _mean_file_size(samples, options.image_root)
    step = max(1, min(CHUNK_IMAGES, int(CHUNK_BYTES / bytes_per_image)))
    starts = ((part, first) for part in parts for first in part[::step])
    spans = ((first, min(first + step, part.stop)) for part, first in starts)
    return ordered_map(lambda span: pack(samples[slice(*span)], span[0]), spans, options.workers)


def _mean_file_size(samples: Samples, image_root: str) -> float:
    """Return the bytes of an image file, 1 at least, from 64 of them spread over the samples."""
    sizes = []
    for name, _ in samples[:: max(1, len(samples) // 64)]:
        try:
            sizes.append(os.path.getsize(os.path.join(image_root, name)))
        except OSError:  # reported by the worker that reads it
            pass
    return max(sum(sizes) / max(len(sizes), 1), 1)


def find_max_value(samples: Samples, options: ConvertOptions) -> ConvertOptions:
    """Return the options with the largest value of the bit depth that the 16-bit images use."""
    find = partial(_largest_value, options.image_root)
    with closing(pack_all(find, samples, [range(len(samples))], options)) as chunks:
        largest = max(chunks)
    depth = next(bits for bits in BIT_DEPTHS if largest < 2**bits)
    if largest:
        text = f"{2**depth - 1}, as the largest value in 16-bit images is {largest}"
    else:
        text = "there are no 16-bit images"
    log(f"--max_value auto: {text}", None if largest else "warning")
    return options.model_copy(update={"max_value": str(2**depth - 1) if largest else None})


def _largest_value(image_root: str, samples: list[tuple[str, int]], first: int) -> int:
    """The largest value in those of some images that have 16 bits, or 0."""
    largest = 0
    with decoder_messages:
        for name, _ in samples:
            with suppress(OSError, BadImage, MemoryError):  # reported when it is converted
                data = read_small_file(os.path.join(image_root, name), MAX_FILE_SIZE)
                largest = max(largest, largest_value(data))
    return largest


def invalid_images(
    problems: list[tuple[str, str]], options: ConvertOptions, untouched: str = ""
) -> InputErrors:
    """Return the error for images that are invalid; ``untouched`` is the folder to write."""
    result = f"nothing was changed in {untouched}" if untouched else "nothing was written"
    result = f"{count(len(problems), 'invalid image')}; {result} (--skip_bad skips them)"
    return InputErrors(describe(problems, options), result)


def describe(problems: list[tuple[str, str]], options: ConvertOptions) -> list[str]:
    """Return a line for each problem of an image, and one for all HEIC files that none can read."""
    root, lines = options.image_root, []
    if heic := [name for name, reason in problems if reason.endswith(NO_HEIF)]:
        lines.append(f"{count(len(heic), 'file')} in {root} ({first_few(heic)}): {NO_HEIF}")
        problems = [each for each in problems if not each[1].endswith(NO_HEIF)]
    shown = [name for name, _ in problems[:SHOWN_PROBLEMS]]
    similar = similar_names(root, [n for n in shown if not os.path.lexists(os.path.join(root, n))])
    for name, reason in problems:
        hint = f"; did you mean {similar[name]}?" if similar.get(name) else ""
        lines.append(f"{os.path.join(root, name)}: {reason}{hint}")
    return lines


def similar_names(image_root: str, missing: list[str]) -> dict[str, str | None]:
    """Return, for each missing image, the one whose name is another in case, spaces and ending only.

    It may also lie in another folder, if there is only one of its name.
    """
    if not missing:
        return {}
    names: dict[str, str | None] = {}
    for name in list_images(image_root)[0]:
        whole = fold(name)
        stem = os.path.splitext(whole)[0]
        for key in {whole, stem, os.path.basename(stem)}:
            names[key] = None if key in names else name
    similar = {}
    for name in missing:
        whole = fold(name.replace("\\", "/"))
        stem = os.path.splitext(whole)[0]
        keys = whole, stem, os.path.basename(whole), os.path.basename(stem)
        similar[name] = next(filter(None, map(names.get, keys)), None)
    return similar


class ConversionProgress:
    """The tutorial's line for each image on stdout, or a bar on stderr where that is a terminal."""

    def __init__(self, num_images: int, options: ConvertOptions, lines: bool = True):
        few = lines and num_images <= MOST_LINES
        kind = ("lines" if few else "bar") if options.progress == "auto" else options.progress
        self._lines = lines and kind == "lines" and not options.dry_run
        self._image_root = options.image_root
        self._bar = tqdm(total=num_images, unit="image", disable=None if kind == "bar" else True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def saved(self, chunk: Chunk) -> None:
        """Show that a chunk is done."""
        self._bar.update(chunk.num_images)
        if self._lines:
            paths = (one_line(os.path.join(self._image_root, name)) for name in chunk.saved)
            output(*(f"{path} feature saved" for path in paths))
