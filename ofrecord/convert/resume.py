"""What earlier runs and other jobs made: which parts are there, and why others do not fit."""

import os
from collections import defaultdict
from collections.abc import Iterator

from runtime.cli import count, log, output

from ..dataset.manifest import PART_PREFIX
from .options import ConvertOptions
from .packed import NO_FILE, NOT_THERE, STAMP, UNREADABLE, stamp_of
from .parts import IMAGES, FinishedPart, PlannedPart, load_finished


def parts_to_make(parts: list[PlannedPart], options: ConvertOptions) -> list[PlannedPart]:
    """Return the parts that are not there yet; with ``--job`` a share of them.

    The others get their files. Logs how many there are, and why other parts do not fit.
    """
    first, step = options.share
    share, misfits = parts[first::step], defaultdict(list)  # examples of images, by the reason
    for part, finished in _finished(share, of_no_part=not options.job):
        reason, image = _difference(part, finished), None
        if not reason:  # images' files are looked at only where nothing else differs
            reason, image = _difference_of_files(part, finished, options.skip_bad)
        if reason:
            misfits[reason].append(image)
        else:
            part.file = part.file_of(finished.stamps)
    if there := sum(part.file is not None for part in share):
        log(f"{there:,} of {count(len(share), 'part')} are there already")
    if misfits:
        reasons = (
            f"{len(images):,} {reason}" + (f", such as {images[0]}" if images[0] else "")
            for reason, images in misfits.items()
        )
        total = count(sum(map(len, misfits.values())), "finished part")
        end = "will be removed when the dataset is committed"
        log(f"{total} {end}: {'; '.join(reasons)}", "warning")
    return [part for part in share if part.file is None]


def report_job(parts: list[PlannedPart]) -> None:
    """Print how many parts all jobs have made so far."""
    found = _finished(parts)
    there = {part for part, finished in found if part.file or not _difference(part, finished)}
    output(f"{len(there):,} of {count(len(parts), 'part')}; then the same command without --job")


def _finished(
    parts: list[PlannedPart], of_no_part: bool = False
) -> Iterator[tuple[PlannedPart | None, FinishedPart | None]]:
    """Yield each part with what is kept beside the finished ones of its number.

    It is None for a damaged one. ``of_no_part``: those of other numbers, too, with None.
    """
    planned = {(part.folder, part.number): part for part in parts}
    for folder in {part.folder: None for part in parts}:
        for name, size in folder.kept_parts().items():
            number = int(name.partition(".")[0].removeprefix(PART_PREFIX))
            part = planned.get((folder, number))
            if part is None and not of_no_part:
                continue
            try:
                finished = load_finished(folder, name)
            except (OSError, ValueError, TypeError):
                finished = None
            yield part, finished if finished and finished.bytes == size else None


def _difference(part: PlannedPart | None, finished: FinishedPart | None) -> str | None:
    """Return why a finished part is another one than is planned; None: only files can tell."""
    if finished is None:
        return "damaged"
    if part is None:
        return f"that differ in {IMAGES}"
    names = {**part.recipe, **finished.recipe}
    others = [name for name in names if part.recipe.get(name) != finished.recipe.get(name)]
    return f"that differ in {', '.join(others)}" if others else None


def _difference_of_files(
    part: PlannedPart, finished: FinishedPart, skip_bad: bool
) -> tuple[str | None, str | None]:
    """Return the same as far as images' files tell, and the name of an image."""
    old, new = bytes.fromhex(finished.stamps), stamps_of(part)
    pairs = zip(part.samples.names, STAMP.iter_unpack(old), STAMP.iter_unpack(new), strict=True)
    changed = [(name, one[0] == two[0]) for name, one, two in pairs if one != two]
    if changed:
        what = "differ in their time stamps only (rsync -a keeps them)"
        if not all(same_size for _, same_size in changed):
            what = "were changed"
        return f"of images whose files {what}", changed[0][0]
    if finished.skipped and not skip_bad:
        return "without images that --skip_bad skipped", finished.skipped[0][0]
    return None, None


def stamps_of(part: PlannedPart) -> bytes:
    """Return the stamps of a part's image files as they are now."""
    stamps = bytearray()
    for index in range(len(part)):
        try:
            stamps += stamp_of(os.stat(part.path(index)))
        except OSError as error:
            stamps += NO_FILE if error.errno in NOT_THERE else UNREADABLE
    return bytes(stamps)
