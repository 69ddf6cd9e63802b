"""The images to convert, with their labels, as the options name them."""

import random
from collections.abc import Iterator
from itertools import pairwise

from runtime.cli import InputError, count, first_few, log

from .class_folders import read_class_folders
from .files import fold, kinds_of
from .label_file import read_label_file
from .options import SourceOptions
from .samples import Samples

NOT_KNOWN = {"na", "n/a", "nan", "none", "null", "-", "?"}  # what table programs write


def read_samples(options: SourceOptions) -> Samples:
    """Return the images and their labels, in the order in which they will be written.

    Logs which files in the image root are not used, and what looks wrong with the classes.
    Raises InputError for labels that cannot be used.
    """
    read = read_class_folders if options.class_folders else read_label_file
    samples, unused = read(options)
    if samples.splits and options.fractions:
        raise InputError(
            f"the column 'split' of {options.label_dir} says which image is in which dataset: "
            "leave out --val_fraction and --test_fraction"
        )
    if unused:
        lacks = "an image's extension" if options.class_folders else "a label"
        few = f"{kinds_of(unused)} (such as {first_few(unused)})"
        number = count(len(unused), "file")
        log(f"skipped {number} without {lacks} in {options.image_root}: {few}", "warning")
    for doubt in doubts(samples):
        log(doubt, "warning")
    if options.limit:
        of_all, samples = samples, take_few(samples, options.limit, options.seed)
        if lost := set(of_all.labels).difference(samples.labels):
            few = first_few(map(samples.class_name, lost))
            log(
                f"--limit {options.limit} is fewer than the classes, and leaves out {few}",
                "warning",
            )
    if options.shuffle:
        order = list(range(len(samples)))
        random.Random(options.seed).shuffle(order)
        samples = samples.take(order)
    elif options.class_folders and len(set(samples.labels)) > 1:
        mixes = "--shuffle mixes them, which a training needs"
        log(f"the images are in the order of their classes: {mixes}", "warning")
    return samples


def take_few(samples: Samples, limit: int, seed: int) -> Samples:
    """Return some of the Samples, at random, in their order: one of each class first.

    Then one of each class in each dataset that a column ``split`` names.
    """
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    labels, splits = samples.labels, samples.splits or samples.labels
    of_class = {labels[index]: index for index in order}
    of_split = {(labels[index], splits[index]): index for index in order}
    chosen = dict.fromkeys([*of_class.values(), *of_split.values(), *order])
    return samples.take(sorted(list(chosen)[:limit]))


def doubts(samples: Samples) -> Iterator[str]:
    """Yield what looks wrong with the classes, a line each."""
    used, names = set(samples.labels), samples.class_names or []
    low, high = min(used), max(used)
    if len(used) == 1:
        folders = {name.split("/")[1] for name in samples.names if name.count("/") > 1}
        too_high = "" if len(folders) < 2 else " (is --image_root one folder too high?)"
        yield (
            f"all images are of a single class, {samples.class_name(low)}: there is nothing to "
            f"learn{too_high}"
        )
    if low < 0:
        yield "there are negative labels: lenet_train.py only accepts labels from 0"
    elif not names and (low > 0 or high >= 2 * len(used)):
        classes, unused = count(high + 1, "class"), high + 1 - len(used)
        yield (
            f"labels go from {low} to {high}, which makes {classes}, {unused:,} of them without "
            "images: --classes with a file of the labels that there are, one a line, makes only those"
        )
    for name, other in pairwise(sorted(names, key=fold)):
        if fold(name) == fold(other):
            yield f"the classes {name!r} and {other!r} differ in case or spaces only"
    for name in names:
        if name.lower() in NOT_KNOWN:
            yield f"{name!r} is a class here: if it stands for no label, remove those lines"
    if empty := set(range(len(names))) - used:
        yield f"classes without images: {first_few(names[label] for label in empty)}"
