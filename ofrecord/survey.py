"""Looking at every image before the first is written, where that is needed.

``--skip_bad`` needs the invalid images, so that the parts come out equal; a split needs to know
which images are copies of each other. What was found is kept for runs that continue this one,
and for jobs that share its work.
"""

import os
from collections.abc import Callable
from contextlib import closing
from typing import Any, Literal

from runtime.atomic import folder_lock
from runtime.cli import SHOWN_PROBLEMS, InputError, count, log, os_errors

from .labels import Samples, printable
from .manifest import Sha256, digest_of
from .options import ConvertOptions
from .packing import Chunk, ConversionProgress, describe, invalid_images, pack_all
from .plan import SURVEY_NAME, load, save
from .record import Label
from .resume import digest_of_samples, stamps_of
from .settings import StrictModel
from .statistics import Digests, ImageStatistics, digests_in
from .writer import BUSY


class Survey(StrictModel):
    """What was found when all images were looked at before the first was written."""

    key: Sha256  # of the options, and the images' names, labels, sizes and time stamps
    problems: dict[str, str]  # {number of an invalid image: reason}
    digests: Digests  # of the others
    channels: Literal[1, 3]

    @property
    def num_images(self) -> int:
        return len(self.problems) + len(digests_in(self.digests))


def survey(
    pack: Callable[[list[tuple[str, Label]], int], Chunk],
    samples: Samples,
    options: ConvertOptions,
    staging: str,
) -> tuple[Samples, list[int], dict[str, Any]]:
    """Look at every image before anything is written, unless ``staging`` has the result.

    Returns the Samples that are stored, the digests of their images, to find copies, and fields
    for the Plan. Raises InputErrors for invalid images, and with ``--skip_bad`` InputError where
    none is valid.
    """
    path, key = os.path.join(staging, SURVEY_NAME), survey_key(samples, options)
    with folder_lock(staging, BUSY, wait=True):  # jobs need it once
        found = None if options.fresh else load(path, Survey)
        if found is None or (found.key, found.num_images) != (key, len(samples)):
            found = look_at_all(pack, samples, options, key)
            with os_errors("write to", staging):
                save(path, found)
    numbers = range(len(samples))
    invalid = [number for number in numbers if str(number) in found.problems]
    problems = [(samples.names[number], found.problems[str(number)]) for number in invalid]
    stored = samples.take(sorted(set(numbers).difference(invalid)))
    warn_of_skipped(describe(problems, options), samples, stored)
    skipped = [{"file": printable(name), "reason": reason} for name, reason in problems]
    return (
        stored,
        digests_in(found.digests).tolist(),
        {"skipped": skipped, "channels": found.channels},
    )


def look_at_all(
    pack: Callable[[list[tuple[str, Label]], int], Chunk],
    samples: Samples,
    options: ConvertOptions,
    key: str,
) -> Survey:
    problems, statistics = [], ImageStatistics()
    chunks = pack_all(pack, samples, [range(len(samples))], options)
    with closing(chunks), ConversionProgress(len(samples), options, lines=False) as progress:
        for chunk in chunks:
            problems += chunk.problems
            statistics.merge(chunk.statistics)
            progress.saved(chunk)
    if problems and not options.skip_bad:
        raise invalid_images(problems, options)
    if len(problems) == len(samples):
        raise InputError(f"no valid image among the {len(samples):,} in {options.image_root}")
    numbers = {name: str(number) for number, name in enumerate(samples.names)}
    return Survey(
        key=key,
        problems={numbers[name]: reason for name, reason in problems},
        digests=statistics.state.digests,
        channels=statistics.channels,
    )


def warn_of_skipped(problems: list[str], samples: Samples, stored: Samples) -> None:
    """Log which images, of all ``samples``, are not among those that are ``stored``."""
    lost = sorted(set(samples.labels).difference(stored.labels))
    warnings = [f"skipped: {line}" for line in problems[:SHOWN_PROBLEMS]]
    if problems:
        number = len(samples) - len(stored)
        warnings.append(f"skipped {number:,} of {count(len(samples), 'image')}")
    names = map(samples.class_name, lost[:SHOWN_PROBLEMS])
    warnings += [f"--skip_bad left no image of class {name}" for name in names]
    for line in warnings:
        log(line, "warning")


def survey_key(samples: Samples, options: ConvertOptions) -> str:
    """Return what a Survey follows from."""
    stamps = stamps_of(options.image_root, samples.names)
    fields = options.encoding, options.manifest_fields, options.img_format, options.skip_bad
    return digest_of([*fields, digest_of_samples(samples), stamps])
