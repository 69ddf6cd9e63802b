"""What earlier runs and other jobs made: which parts are there, and why others do not fit."""

import errno
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress

from runtime.cli import count, log, output

from ..dataset.layout import PART_PREFIX
from ..dataset.staging import DatasetFolder
from .chunk import NO_FILE, STAMP, UNREADABLE, stamp_of
from .options import ConvertOptions
from .parts import FinishedPart, PlannedPart, load_finished

# Why a finished part does not fit.
DAMAGED = "damaged, or of an earlier version"
OTHER_OPTIONS = "of other options"
OTHER_IMAGES = "of other images, or of another number of parts"
CHANGED = "of images whose files were changed"
OTHER_TIMES = "of images whose files differ in their time stamps only (rsync -a keeps them)"
SKIPPED = "without images that --skip_bad skipped"


def parts_to_make(parts: list[PlannedPart], options: ConvertOptions) -> list[PlannedPart]:
    """Return the parts that are not there yet; with ``--job`` a share of them.

    The others get their keys. Logs how many there are, and why other parts do not fit.
    """
    first, step = options.share
    share, misfits = parts[first::step], defaultdict(list)  # examples, by the reason
    for part, finished in _finished(share, of_no_part=not options.job):
        # Images' files are looked at only where nothing else differs.
        reason, example = _difference(part, finished) or _difference_of_files(
            part, finished, options
        )
        if reason:
            misfits[reason].append(example)
        else:
            part.key = part.key_of(finished.stamps)
    if there := sum(part.key is not None for part in share):
        log(f"{there:,} of {count(len(share), 'part')} are there already")
    if misfits:
        reasons = (
            f"{len(examples):,} {reason}" + (f", such as {examples[0]}" if examples[0] else "")
            for reason, examples in misfits.items()
        )
        total = count(sum(map(len, misfits.values())), "finished part")
        end = "will be removed when the dataset is committed"
        log(f"{total} {end}: {'; '.join(reasons)}", "warning")
    return [part for part in share if part.key is None]


def report_job(parts: list[PlannedPart]) -> None:
    """Print how many parts all jobs have made so far."""
    found = _finished(parts)
    there = {part for part, finished in found if part.key or not _difference(part, finished)}
    output(f"{len(there):,} of {count(len(parts), 'part')}; then the same command without --job")


def _finished(
    parts: list[PlannedPart], of_no_part: bool = False
) -> Iterator[tuple[PlannedPart | None, FinishedPart | None]]:
    """Yield each part with what is kept beside the finished ones of its number.

    It is None for a damaged one. ``of_no_part``: those of other numbers, too, with None.
    """
    folders = defaultdict(dict)
    for part in parts:
        folders[part.folder][part.number] = part
    for folder, planned in folders.items():
        for name, size in folder.kept_parts().items():
            part = planned.get(int(name.partition(".")[0].removeprefix(PART_PREFIX)))
            if part or of_no_part:
                yield part, _load(folder, name, size)


def _load(folder: DatasetFolder, name: str, size: int) -> FinishedPart | None:
    with suppress(OSError, ValueError):
        finished = load_finished(folder, name)
        return finished if finished.bytes == size else None


def _difference(part: PlannedPart | None, finished: FinishedPart | None) -> tuple[str, str] | None:
    """Return why a finished part is another one than is planned, and an example.

    None: only the files of its images can tell.
    """
    if finished is None:
        return DAMAGED, ""
    if part is None:
        return OTHER_IMAGES, ""
    if part.recipe != finished.recipe:
        names = [name for name in part.recipe if part.recipe[name] != finished.recipe.get(name)]
        return OTHER_OPTIONS, ", ".join(names)
    return None if part.images == finished.images else (OTHER_IMAGES, "")


def _difference_of_files(
    part: PlannedPart, finished: FinishedPart, options: ConvertOptions
) -> tuple[str, str]:
    """Return the same as far as images' files tell; two empty texts for the part that is planned."""
    names, old = part.samples.names, bytes.fromhex(finished.stamps)
    new = stamps_of(names, options.image_root)
    if old == new:
        skips = finished.skipped and not options.skip_bad
        return (SKIPPED, finished.skipped[0][0]) if skips else ("", "")
    pairs = zip(names, STAMP.iter_unpack(old), STAMP.iter_unpack(new), strict=True)
    changed = [(name, one[0] == two[0]) for name, one, two in pairs if one != two]
    only_times = all(same_size for _, same_size in changed)
    return OTHER_TIMES if only_times else CHANGED, changed[0][0]


def stamps_of(names: list[str], image_root: str) -> bytes:
    """Return the stamps of images' files as they are now."""
    stamps, folder = bytearray(), os.path.join(image_root, "")  # ends in a slash
    for name in names:
        try:
            stamps += stamp_of(os.stat(folder + name))
        except OSError as error:
            is_missing = error.errno in (errno.ENOENT, errno.ELOOP)
            stamps += NO_FILE if is_missing else UNREADABLE
    return bytes(stamps)
