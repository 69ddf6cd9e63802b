"""The datasets to write: which image goes into which one, and into which of its parts."""

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from runtime.cli import InputError, count, first_few, log

from ..dataset.folder import open_folders as open_dataset_folders
from ..dataset.loading import load_manifest
from ..dataset.staging import DatasetFolder
from ..labels.samples import SET_NAMES, Samples
from .options import ConvertOptions
from .parts import PlannedPart, plan_parts


def split(samples: Samples, options: ConvertOptions) -> dict[str, Samples]:
    """Return the Samples of each dataset by its key in SET_NAMES, ``"train"`` first.

    They are drawn at random, class by class, or named by a label table's column ``split``. Logs
    which classes a dataset lacks. Raises InputError for a dataset without images.
    """
    if not (samples.splits or options.fractions):
        return {"train": samples}
    if samples.splits:
        sets = {name: [] for name in SET_NAMES if name == "train" or name in samples.splits}
        for index, name in enumerate(samples.splits):
            sets[name].append(index)
    else:
        sets = draw(samples, options.fractions, options.seed)
    for name, chosen in sets.items():
        if not chosen:
            raise InputError(f"no image is left for the {SET_NAMES[name]}")
        if missing := set(samples.labels).difference(samples.labels[index] for index in chosen):
            few = first_few(map(samples.class_name, missing))
            log(f"classes without images in the {SET_NAMES[name]}: {few}", "warning")
    return {name: samples.take(sorted(chosen)) for name, chosen in sets.items()}


def draw(samples: Samples, fractions: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Return the indices of the training set's images and of those that are held out from it.

    Of each class, round(n * fraction) of its n images are drawn for a set. As far as there are
    images each set gets one, the training set first. The order of the images does not matter.
    """
    by_class = defaultdict(list)
    for index, label in enumerate(samples.labels):
        by_class[label].append(index)
    rng, sets = random.Random(seed), {name: [] for name in ("train", *fractions)}
    for _, indices in sorted(by_class.items()):
        drawn = sorted(indices, key=samples.names.__getitem__)
        rng.shuffle(drawn)
        sets["train"].append(drawn.pop())
        others = len(fractions)
        for name, fraction in fractions.items():
            others -= 1
            number = max(min(round(len(indices) * fraction), len(drawn) - others), 1)
            sets[name] += drawn[:number]
            drawn = drawn[number:]
        sets["train"] += drawn
    return sets


def split_id_of(folder: str) -> str | None:
    """Return the split that the dataset in a folder is of; None: of none, or no dataset."""
    with suppress(InputError):
        return load_manifest(folder).split_id
    return None


@contextmanager
def open_folders(options: ConvertOptions, samples: Samples) -> Iterator[dict[str, DatasetFolder]]:
    """Open the folder of each dataset by its key in SET_NAMES, locked, or shared by all jobs.

    Where the block raises, what is kept for another run is logged.
    """
    wanted = {"train", *options.fractions, *(samples.splits or ())}
    sets = [name for name in SET_NAMES if name in wanted]
    committed_with = list(map(options.folder, SET_NAMES))
    paths = list(map(options.folder, sets))
    replaced = split_id_of(paths[0])
    for path in committed_with:
        if replaced and path not in paths and split_id_of(path) == replaced:
            stale = "its images may be trained on now: remove it"
            log(f"{path} is of the split that is replaced, and {stale}", "warning")
    with open_dataset_folders(paths, committed_with, shared=bool(options.job)) as folders:
        try:
            yield dict(zip(sets, folders, strict=True))
        except BaseException:
            for folder in folders:
                if sizes := folder.kept_parts():
                    number, size = count(len(sizes), "finished part"), sum(sizes.values())
                    kept = f"{number} kept in {folder.staging} ({size:,} bytes)"
                    log(f"{kept}: the same command continues with them")
            raise


def plan_datasets(
    folders: dict[str, DatasetFolder], samples: Samples, options: ConvertOptions
) -> dict[str, list[PlannedPart]]:
    """Return the parts of each dataset to write, by its key in SET_NAMES.

    A validation or a test set has fewer parts where it has fewer images. Raises InputError for
    a training set with fewer images than parts, and for a set without images.
    """
    sets = split(samples, options)
    num_images = len(sets["train"])
    if options.part_num > num_images:
        images = count(num_images, "image")
        raise InputError(f"--part_num {options.part_num} is more than the {images} to write")
    return {name: plan_parts(folders[name], each, options) for name, each in sets.items()}
