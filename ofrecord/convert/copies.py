"""Copies of images, found after a conversion: within a dataset, between two, with other labels."""

import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from runtime.cli import count, log

from ..labels import SET_NAMES, Samples

SHOWN = 10  # lines of each kind


class StoredImages(NamedTuple):
    """The images of a dataset, in order."""

    names: list[str]
    labels: array  # int32
    digests: array  # uint64: the digits of images.csv, the same for the same bytes


class Image(NamedTuple):
    """One of the images that are the same."""

    split: str  # of SET_NAMES
    path: str
    label: int


def report_copies(sets: dict[str, StoredImages], samples: Samples, image_root: str) -> None:
    """Log which images are the same: copies, those with different labels, those in two datasets.

    ``sets`` are by their key in SET_NAMES, the training set first; ``samples`` name the classes.
    """
    conflicts, copies, leaks = [], [], []
    num_copies, num_leaks = Counter(), Counter()
    for group in find_copies(sets, image_root):
        first, by_split = group[0], defaultdict(list)
        for image in group:
            by_split[image.split].append(image)
        others = [image for image in group if image.label != first.label]
        if others:
            both = (f"{i.path} (label {samples.class_name(i.label)})" for i in (first, others[0]))
            conflicts.append(f"the same image with different labels: {' and '.join(both)}")
        for split, images in by_split.items():
            which = SET_NAMES[split]
            num_copies[which] += len(images) - 1
            copies += (f"the same image twice: {images[0].path} and {i.path}" for i in images[1:])
            if split != first.split:
                two = f"{SET_NAMES[first.split]} and the {which}"
                num_leaks[two] += len(images)
                leaks += (f"the same image in the {two}: {first.path} and {i.path}" for i in images)
    log_some(copies)
    for which, number in (+num_copies).items():
        log(f"{count(number, 'image')} in the {which} that are copies of others")
    log_some(conflicts, "warning")
    if conflicts:
        log(f"{count(len(conflicts), 'image')} with different labels: one must be wrong", "warning")
    log_some(leaks, "warning")
    for two, number in num_leaks.items():
        log(
            f"{count(number, 'image')} in both the {two}: what is measured on them looks better "
            "than it is; remove them from one, or keep them together by a column `split` of a table",
            "warning",
        )


def log_some(lines: list[str], level: str | None = None) -> None:
    for line in lines[:SHOWN]:
        log(line, level)


def find_copies(sets: dict[str, StoredImages], image_root: str) -> Iterator[list[Image]]:
    """Yield the images of each group that are the same, the training set's first."""
    splits, images = list(sets), list(sets.values())
    digests = np.concatenate([np.array(each.digests, np.uint64) for each in images])
    starts = np.cumsum([0, *(len(each.digests) for each in images)])
    order = np.argsort(digests, kind="stable")  # copies are neighbours, the first of them first
    starts_of_runs = np.flatnonzero(np.diff(digests[order], prepend=~digests[order][:1]))
    sizes = np.diff(starts_of_runs, append=len(order))
    runs = zip(starts_of_runs[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True)
    for group in sorted(order[start : start + size].tolist() for start, size in runs):
        found = []
        for index in group:
            number = int(np.searchsorted(starts, index, "right")) - 1
            place = index - int(starts[number])
            path = os.path.join(image_root, images[number].names[place])
            found.append(Image(splits[number], path, images[number].labels[place]))
        yield found
