"""What is said of a dataset as a whole: how its images are stored, what looks wrong, copies."""

import os
from collections.abc import Callable, Sequence

import numpy as np

from runtime.cli import count, log, output

from .check import PartReport
from .labels import Samples
from .manifest import Manifest
from .statistics import ImageStatistics

DARK = 64  # of 255: 16-bit images below it use at most 14 of their bits
SHOWN_CONFLICTS = 10


def report(
    folder: str,
    manifest: Manifest,
    statistics: ImageStatistics,
    seconds: float,
    num_converted: int = 0,
) -> bool:
    """Log how many images are stored unchanged, why others are not, and what looks wrong.

    ``seconds`` were needed to convert ``num_converted`` images; others were converted before.
    Returns whether some are copies of others.
    """
    reasons = statistics.reencode_reasons.copy()
    text = f"{count(reasons.pop(None, 0), 'image')} stored unchanged"
    if reasons:
        text += "; re-encoded: "
        text += ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common())
    rate = f", {num_converted / seconds:,.0f} images/s" if num_converted else ""
    log(f"{text} ({seconds:.1f} s{rate})")
    if statistics.num_measured < statistics.num_images:
        log(
            "mean and standard deviation: of all images at an eighth of their size, and of "
            f"{statistics.num_measured:,} at full size"
        )
    if copies := copies_text(statistics.digests):
        log(copies)
    wide = count(reasons["16-bit"], "16-bit image")
    doubts = {
        f"{folder}: all pixels of all images have the same value": max(manifest.std) == 0,
        f"{folder}: all images are the same": (
            manifest.num_records > 2 and not np.ptp(statistics.digests)
        ),
        f"{wide} reach only {statistics.brightest} of 255: give the largest value in them, such as "
        "--max_value 4095, or --max_value auto": reasons["16-bit"] and statistics.brightest < DARK,
        f"{count(statistics.num_several, 'file')} with several pictures (an animation, or pages): "
        "only the first is stored": statistics.num_several,
    }
    for text, holds in doubts.items():
        if holds:
            log(text, "warning")
    return bool(copies)


def report_dry_run(folder: str, manifest: Manifest) -> None:
    """Print what the dataset would be."""
    each = " or ".join(map(str, sorted({part.num_records for part in manifest.parts})))
    what = f"{manifest.summary}, {each} in each part"
    output(f"Dry run: {folder} would hold {what}; nothing was written")


# -- copies -----------------------------------------------------------------------------


def copies_text(digests: np.ndarray) -> str:
    """Return how many images are copies of others, by their digests; "" where none are."""
    number = len(digests) - len(np.unique(digests))
    if number < 2:
        return "1 image is a copy of another" if number else ""
    return f"{number:,} images are copies of others"


def warn_of_conflicts(
    digests: np.ndarray, labels: Sequence[int], describe: Callable[[int], str]
) -> None:
    """Log which images are there with several labels, ten at most, and how many.

    ``describe`` returns the name and the label of the image with an index.
    """
    order = np.argsort(digests, kind="stable")  # copies are neighbours, the first of them first
    digests, labels = digests[order], np.asarray(labels)[order]
    places = np.flatnonzero((digests[1:] == digests[:-1]) & (labels[1:] != labels[:-1]))
    places = places[np.unique(digests[places], return_index=True)[1]]  # one for each image
    pairs = sorted(zip(order[places].tolist(), order[places + 1].tolist(), strict=True))
    for pair in pairs[:SHOWN_CONFLICTS]:
        log(f"the same image with different labels: {' and '.join(map(describe, pair))}", "warning")
    if len(pairs) > SHOWN_CONFLICTS:
        log(f"{count(len(pairs), 'image')} in all are there with different labels", "warning")


def report_conflicts(samples: Samples, digests: np.ndarray, image_root: str) -> None:
    """Log which images are copies of others that have another label."""

    def describe(index: int) -> str:
        label = samples.class_name(samples.labels[index])
        return f"{os.path.join(image_root, samples.names[index])} (label {label})"

    warn_of_conflicts(digests, samples.labels, describe)


def name_conflicts(reports: list[PartReport]) -> None:
    """Log the records that hold the same image with different labels."""
    labels = np.concatenate([report.records for report in reports])
    ends = np.cumsum([len(report.records) for report in reports])

    def describe(index: int) -> str:
        part = np.searchsorted(ends, index, "right")
        report = reports[part]
        record = index - ends[part] + len(report.records)
        return f"{report.path}, record {record} (label {labels[index]})"

    warn_of_conflicts(digests_of(reports), labels, describe)


def digests_of(reports: list[PartReport]) -> np.ndarray:
    """Return the digest of each image of a dataset."""
    return np.concatenate([report.statistics.digests for report in reports])
