"""Continuing a conversion that was interrupted, and finishing one that several jobs share."""

import hashlib
import os
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from runtime.atomic import folder_lock
from runtime.cli import InputError, count, first_few, log, os_errors, output

from .labels import Samples
from .manifest import MANIFEST_NAME, STAGING_NAME, Manifest, load_manifest, part_name
from .options import ConvertOptions
from .plan import (
    PLAN_NAME,
    SURVEY_NAME,
    FinishedPart,
    Plan,
    finished_parts,
    has_finished_parts,
    is_whole,
    load,
    make_manifest,
    save,
)
from .report import report
from .writer import BUSY, DatasetWriter

STAMP = struct.Struct("<qq")  # an image file's size and time stamp


def stamp_of(status: os.stat_result) -> bytes:
    """Return what tells whether a file was changed."""
    return STAMP.pack(status.st_size, status.st_mtime_ns)


def stamps_of(image_root: str, names: Iterable[str]) -> str:
    """Return the SHA-256 of the stamps of images; one that is missing has none."""
    digest, folder = hashlib.sha256(), os.path.join(image_root, "")
    for name in names:
        try:
            digest.update(stamp_of(os.stat(folder + name)))
        except OSError:
            digest.update(b"-")
    return digest.hexdigest()


def digest_of_samples(samples: Samples) -> str:
    """Return a SHA-256 of the images' names and labels, in order."""
    digest = hashlib.sha256(os.fsencode("\0".join(samples.names)))
    digest.update(samples.labels.tobytes())
    if samples.vectors is not None:
        digest.update(samples.vectors.tobytes())
    return digest.hexdigest()


def make_plan(
    samples: Samples, part_num: int, options: ConvertOptions, fields: dict[str, Any]
) -> Plan:
    """Return the Plan of a dataset; ``fields`` are further ones of its Manifest."""
    manifest_fields = {"image_format": options.img_format, **samples.label_fields}
    return Plan(
        samples=digest_of_samples(samples),
        num_records=len(samples),
        part_num=part_num,
        digits=options.part_name_suffix_length,
        encoding=options.encoding,
        manifest_fields={**manifest_fields, **options.manifest_fields, **fields},
    )


@contextmanager
def open_writers(options: ConvertOptions) -> Iterator[dict[str, DatasetWriter]]:
    """Open a DatasetWriter for each dataset to write, by split.

    Where the block raises, what is kept for another run is logged.
    """
    digits, shared = options.part_name_suffix_length, options.job is not None
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(DatasetWriter(folder, digits, options.dry_run, shared))
            for split, folder in options.folders.items()
        }
        try:
            yield writers
        except BaseException:
            for writer in () if options.dry_run else writers.values():
                if has_finished_parts(writer.staging) and not writer.committing:
                    log_what_is_kept(writer.staging, shared)
            raise


def log_what_is_kept(staging: str, shared: bool) -> None:
    with os.scandir(staging) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    parts = sum(f"{name}.json" in sizes for name in sizes)
    text = f"{count(parts, 'finished part')} kept in {staging} ({sum(sizes.values()):,} bytes)"
    fresh = "" if shared else "; with --fresh it starts again"
    log(f"{text}: the same command continues with that{fresh}")


def begin(
    writer: DatasetWriter, plan: Plan, samples: Samples, options: ConvertOptions
) -> dict[int, range]:
    """Write the plan, and return the indices of the images of each part to write, by number.

    These are the parts, or a job's share of them, that are not finished. What another conversion
    left is removed, and the reason logged; a job, beside which others may be running, raises
    InputError instead.
    """
    path, finished = os.path.join(writer.staging, PLAN_NAME), set()
    with (
        os_errors("write to", writer.staging),
        folder_lock(writer.staging, BUSY, wait=True),
    ):
        old = load(path, Plan)
        if old and old.digest == plan.digest and not options.fresh:
            finished = usable_parts(writer, plan, samples, options)
        else:
            if os.path.lexists(path) and not options.fresh:
                refuse_or_log(writer, plan, old, options)
            writer.clear(keep=SURVEY_NAME)
            save(path, plan)
    if finished and not options.job:
        number = f"{len(finished):,} of {count(plan.part_num, 'part')}"
        log(f"{writer.folder}: continuing an interrupted conversion: {number} are finished")
    share = share_of(plan, options)
    return {number: plan.parts[number] for number in share if number not in finished}


def share_of(plan: Plan, options: ConvertOptions) -> range:
    """Return the numbers of the parts that this process has to make."""
    first, step = options.share
    return range(first, plan.part_num, step)


def refuse_or_log(
    writer: DatasetWriter, plan: Plan, old: Plan | None, options: ConvertOptions
) -> None:
    """Say why an interrupted conversion cannot be continued. Raises InputError for a job."""
    why = f"{PLAN_NAME} is damaged"
    if old:
        why = f"these differ: {', '.join(plan.differences(old))}"
    if options.job:
        raise InputError(f"{writer.staging} is of another conversion, as {why}; remove it first")
    if has_finished_parts(writer.staging):
        log(f"{writer.folder}: an interrupted conversion is not continued, as {why}")


def usable_parts(
    writer: DatasetWriter, plan: Plan, samples: Samples, options: ConvertOptions
) -> set[int]:
    """Return the numbers of the parts that are whole, and whose images were not changed."""
    finished = set()
    for number, each in finished_parts(writer.staging, plan, share_of(plan, options)):
        part = plan.parts[number]
        if not is_whole(writer.staging, each):
            continue
        if each.stamps == stamps_of(options.image_root, samples.names[part.start : part.stop]):
            finished.add(number)
        else:
            log(f"{each.part.file} is made again, as its image files were changed")
            os.remove(os.path.join(writer.staging, f"{each.part.file}.json"))
    return finished


def keep(writer: DatasetWriter, finished: FinishedPart) -> None:
    """Write beside a part that it is finished."""
    path = os.path.join(writer.staging, f"{finished.part.file}.json")
    with os_errors("write to", writer.folder, f"nothing was changed in {writer.folder}"):
        save(path, finished)


def report_jobs(writer: DatasetWriter, plan: Plan) -> None:
    """Print how many parts all jobs have written so far."""
    names = [f"{part_name(number, plan.digits)}.json" for number in range(plan.part_num)]
    number = len(set(names).intersection(os.listdir(writer.staging)))
    output(
        f"{writer.folder}: {number:,} of {count(plan.part_num, 'part')} are finished; after the "
        f"last job: python -m ofrecord finish {writer.folder}"
    )


def finish(folder: str) -> Manifest:
    """Make the dataset of the parts that jobs wrote to a folder, and return its manifest.

    Raises InputError where there are none, some are missing, or they do not make a dataset.
    """
    staging = os.path.join(folder, STAGING_NAME)
    if not os.path.isdir(staging):
        is_dataset = os.path.lexists(os.path.join(folder, MANIFEST_NAME))
        why = "it is a finished dataset" if is_dataset else "no job has written to it"
        raise InputError(f"{folder}: there is nothing to finish: {why}")
    start = time.perf_counter()
    with DatasetWriter(folder) as writer:
        if writer.recovered:
            return load_manifest(folder)
        plan = load(os.path.join(staging, PLAN_NAME), Plan)
        if plan is None:
            raise InputError(f"{staging} has no whole {PLAN_NAME}: remove it, start the jobs again")
        numbers = range(plan.part_num)
        finished = finished_parts(staging, plan, numbers)
        missing = set(numbers).difference(n for n, each in finished if is_whole(staging, each))
        if missing:
            names = first_few(part_name(number, plan.digits) for number in missing)
            number = f"{len(missing):,} of {count(plan.part_num, 'part')}"
            raise InputError(
                f"{folder}: {number} are not finished ({names}): start the jobs again that make "
                "them, or one conversion without --job"
            )
        manifest, statistics = make_manifest(plan, staging)
        if report(folder, manifest, statistics, time.perf_counter() - start):
            log(f"`python -m ofrecord check {folder}` names those with different labels")
        writer.commit(manifest)
    return manifest
