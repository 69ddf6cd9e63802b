"""The images to convert, with their labels, as the options name them."""

import random
import re
from collections import Counter

from runtime.cli import InputError, count, first_few, log

from .classes import read_class_folders
from .columns import Columns
from .label_file import read_label_file
from .labels import Samples, doubts, kinds_of
from .source_options import SourceOptions


def read_samples(options: SourceOptions) -> Samples:
    """Return the images and their labels, in the order in which they will be written.

    Logs which files in the image root are not used. Raises InputError for
    labels that cannot be used.
    """
    root, splits = options.image_root, options.split_folders
    if options.class_folders:
        samples, unused = read_class_folders(root, splits.values(), options.classes)
        kind = "file", "without an image's extension"
    else:
        names = options.image_column, options.label_column, options.group_column
        columns = Columns(*names, options.label_type == "float")
        samples, unused = read_label_file(options.label_dir, root, columns, options.classes)
        if options.classes and samples.vectors is not None:
            raise InputError(f"--classes is for classes, not for numbers in {options.label_dir}")
        kind = "image", "without a label"
    if splits:
        pairs = (f"{folder}/ for {options.folders[split]}" for split, folder in splits.items())
        log(f"{root} has a folder for each dataset: {', '.join(pairs)}")
    if unused:
        number = f"{count(len(unused), kind[0])} {kind[1]}"
        log(
            f"skipped {number} in {root}: {kinds_of(unused)} (such as {first_few(unused)})",
            "warning",
        )
    if options.group:
        samples.groups = match_names(samples.names, options.group)
    if samples.groups:
        members = Counter(filter(None, samples.groups))
        alone = f"{count(samples.groups.count(None), 'image')} in none"
        largest = max(members.values(), default=0)
        log(f"{count(len(members), 'group')} of at most {count(largest, 'image')}; {alone}")
    for doubt in doubts(samples):
        log(doubt, "warning")
    if options.limit or options.limit_per_class:
        samples = take_few(samples, options)
    if options.shuffle:
        order = list(range(len(samples)))
        random.Random(options.seed).shuffle(order)
        samples = samples.take(order)
    return samples


def match_names(names: list[str], regex: str) -> list[str | None]:
    """Return what matches in each name: the regex's first group, or all of it; None: nothing.

    Raises InputError where nothing matches in any name.
    """
    matches = [re.search(regex, name) for name in names]
    if not any(matches):
        raise InputError(f"--group {regex!r} matches no image's name, such as {names[0]!r}")
    return [match and match[min(1, match.re.groups)] for match in matches]


def take_few(samples: Samples, options: SourceOptions) -> Samples:
    """Return some of the Samples, at random, in their order: one of each class first."""
    order = random.Random(options.seed).sample(range(len(samples)), len(samples))
    taken: Counter[tuple[str, int]] = Counter()
    first, others = [], []
    for index in order:
        split = samples.names[index].partition("/")[0] if options.split_folders else ""
        key = split, samples.labels[index]
        if options.limit_per_class is None or taken[key] < options.limit_per_class:
            (others if taken[key] else first).append(index)
            taken[key] += 1
    return samples.take(sorted((first + others)[: options.limit]))
