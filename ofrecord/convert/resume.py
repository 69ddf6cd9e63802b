"""What earlier runs and other jobs made: which parts are there, and why others do not fit."""

import errno
import os
from collections import Counter, defaultdict
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
    share, misfits, examples = parts[first::step], Counter(), {}
    for folder, planned in by_folder(share).items():
        for name, size in folder.kept_parts().items():
            part = planned.get(number_of(name))
            if part is None and options.job:
                continue  # another job's
            reason, example = compare(part, load_or_none(folder, name, size), options)
            if reason:
                misfits[reason] += 1
                examples.setdefault(reason, example)
    if there := sum(part.key is not None for part in share):
        log(f"{there:,} of {count(len(share), 'part')} are there already")
    if misfits:
        log_misfits(misfits, examples)
    return [part for part in share if part.key is None]


def log_misfits(misfits: Counter[str], examples: dict[str, str]) -> None:
    reasons = []
    for reason, number in misfits.items():
        example = f", such as {examples[reason]}" if examples[reason] else ""
        reasons.append(f"{number:,} {reason}{example}")
    total = count(misfits.total(), "finished part")
    log(f"{total} will be removed when the dataset is committed: {'; '.join(reasons)}", "warning")


def compare(
    part: PlannedPart | None, finished: FinishedPart | None, options: ConvertOptions
) -> tuple[str, str]:
    """Give a part its key if it is the one that is finished.

    Else return why it is not, and an option or an image's file that tells; two empty texts if
    it is. Images' files are looked at only if nothing else differs.
    """
    if reason := differs_by_itself(part, finished):
        return reason
    if part.stamps is None:
        part.stamps = stamps_of(part.samples.names, options.image_root)
    old, new = bytes.fromhex(finished.stamps), part.stamps
    if old == new and finished.skipped and not options.skip_bad:
        return SKIPPED, finished.skipped[0][0]
    if old == new:
        part.key = part.key_of(new)
        return "", ""
    pairs = zip(part.samples.names, STAMP.iter_unpack(old), STAMP.iter_unpack(new), strict=True)
    changed = [(name, one[0] == two[0]) for name, one, two in pairs if one != two]
    only_times = all(same_size for _, same_size in changed)
    return OTHER_TIMES if only_times else CHANGED, changed[0][0]


def differs_by_itself(
    part: PlannedPart | None, finished: FinishedPart | None
) -> tuple[str, str] | None:
    """Return what compare() does, as far as it can be told without the images' files."""
    if finished is None:
        return DAMAGED, ""
    if part is not None and part.recipe != finished.recipe:
        names = [name for name in part.recipe if part.recipe[name] != finished.recipe.get(name)]
        return OTHER_OPTIONS, ", ".join(names)
    if part is None or part.images != finished.images:
        return OTHER_IMAGES, ""
    return None


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


def report_job(parts: list[PlannedPart]) -> None:
    """Print how many parts all jobs have made so far."""
    there = 0
    for folder, planned in by_folder(parts).items():
        made = {number for number, part in planned.items() if part.key}
        for name, size in folder.kept_parts().items():
            part = planned.get(number_of(name))
            if part and not differs_by_itself(part, load_or_none(folder, name, size)):
                made.add(part.number)
        there += len(made)
    output(f"{there:,} of {count(len(parts), 'part')}; then the same command without --job")


def by_folder(parts: list[PlannedPart]) -> dict[DatasetFolder, dict[int, PlannedPart]]:
    """Return the parts of each folder, by number."""
    folders = defaultdict(dict)
    for part in parts:
        folders[part.folder][part.number] = part
    return folders


def number_of(name: str) -> int:
    """Return the number in a part file's name, ``part-3`` or ``part-3.KEY``."""
    return int(name.partition(".")[0].removeprefix(PART_PREFIX))


def load_or_none(folder: DatasetFolder, name: str, size: int) -> FinishedPart | None:
    """Return what is kept beside a part file; None where that or the part is damaged."""
    with suppress(OSError, ValueError):
        finished = load_finished(folder, name)
        if finished.bytes == size:
            return finished
    return None
