"""What is shown while images are packed, and what is said of those that cannot be."""

import os
import time
from collections.abc import Iterable

from tqdm import tqdm

from runtime.cli import SHOWN_PROBLEMS, InputErrors, count, first_few, log, one_line, output

from ..images import NO_HEIF
from ..labels import similar_names
from .chunk import Chunk, Problem
from .options import ConvertOptions
from .parts import PlannedPart

MOST_LINES = 1000  # images that get a line each; for more there is a bar


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

    def __init__(self, parts: Iterable[PlannedPart], options: ConvertOptions):
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
