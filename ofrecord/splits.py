"""Which image goes into which dataset: the training, the validation or the test set."""

import random
from collections.abc import Hashable

from runtime.cli import InputError, count, first_few, log

from .labels import SET_NAMES, Samples
from .source_options import SourceOptions


def split(samples: Samples, digests: list[int], options: SourceOptions) -> dict[str, Samples]:
    """Return the Samples of each dataset, by split, in their order.

    Images in a split's own folder are of that split. Of the others, the training set, fractions
    are held out; images of one group, and those with the same digest, which are copies of each
    other, stay together. Logs what is missing in a set. Raises InputError for an empty one.
    """
    owners = {folder: name for name, folder in options.split_folders.items()}
    sets: dict[str, list[int]] = {name: [] for name in options.folders}
    for index, name in enumerate(samples.names):
        sets[owners.get(name.partition("/")[0], "train")].append(index)
    if options.fractions:
        keys = [digests, samples.groups or [None] * len(samples)]
        groups = connected(sets["train"], keys)
        sets.update(hold_out(samples, groups, options.fractions, options.seed))
    trained = {digests[index] for index in sets["train"]} if len(sets) > 1 else set()
    for split, chosen in sets.items():
        if not chosen:
            raise InputError(
                f"no image is left for the {SET_NAMES[split]}: no class has enough images, or "
                "groups of images that stay together"
            )
        missing = set(samples.labels).difference(samples.labels[index] for index in chosen)
        if missing:
            few = first_few(map(samples.class_name, missing))
            log(f"classes without images in the {SET_NAMES[split]}: {few}", "warning")
        copies = [samples.names[i] for i in chosen if split != "train" and digests[i] in trained]
        if copies:
            which = f"{count(len(copies), 'image')} of the {SET_NAMES[split]}"
            log(f"copies of training images: {which}: {first_few(copies)}", "warning")
    return {split: samples.take(sorted(chosen)) for split, chosen in sets.items()}


def hold_out(
    samples: Samples, groups: list[list[int]], fractions: dict[str, float], seed: int
) -> dict[str, list[int]]:
    """Return the indices of the training set and of each set that is held out from it.

    Groups are drawn at random, by ``seed``, class by class (that of a group's first image), until
    a set has round(n * fraction) of the class's n images, at least one. The largest group stays
    in the training set; others of more than twice those images do if there are smaller ones.
    """
    by_class: dict[int, list[list[int]]] = {}
    for group in groups:
        by_class.setdefault(samples.labels[group[0]], []).append(group)
    rng, sets = random.Random(seed), {name: [] for name in ("train", *fractions)}
    for _, of_class in sorted(by_class.items()):
        drawn = rng.sample(of_class, len(of_class))
        num_images = sum(map(len, drawn))
        largest = max(range(len(drawn)), key=lambda number: len(drawn[number]))
        sets["train"] += drawn.pop(largest)
        drawn.reverse()  # the next one is the last
        for name, fraction in fractions.items():
            left = wanted = max(round(num_images * fraction), 1)
            drawn.sort(key=lambda group, most=2 * wanted: len(group) <= most)
            while drawn and left > 0 and (left == wanted or len(drawn[-1]) <= 2 * wanted):
                sets[name] += drawn[-1]
                left -= len(drawn.pop())
        sets["train"] += [index for group in drawn for index in group]
    return sets


def connected(indices: list[int], keys: list[list[Hashable]]) -> list[list[int]]:
    """Return the indices in groups, of which those are together that share any key but None.

    ``keys`` are lists of a key for each index. The groups are in the order of their first index.
    """
    parent = {index: index for index in indices}

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for each in keys:
        first: dict[Hashable, int] = {}
        for index in indices:
            if each[index] is not None:
                parent[root(index)] = root(first.setdefault(each[index], index))
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())
