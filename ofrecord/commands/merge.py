"""``merge``: the records of datasets, copied as they are into a new one."""

import argparse
import os
import random
from array import array
from collections import Counter
from contextlib import ExitStack
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from runtime.cli import InputError, first_few, log, one_line, output

from ..dataset.commit import NewDataset, commit
from ..dataset.folder import open_folders
from ..dataset.images_csv import Row
from ..dataset.manifest import MANIFEST_NAME, Manifest, Part, part_name, part_sizes
from ..dataset.open_dataset import Dataset, dataset_in_use, open_dataset
from ..dataset.statistics import mean_and_std
from ..labels.names import natural_key
from .copying import Source, copy_records, find_records
from .scan import manifest_of

HELP = "Copy the records of datasets into a new one: to join, append, reshard or shuffle"

# Fields of the manifests that must be the same in all.
ALIKE = "image_feature label_feature label_type image_format channels width height fit background"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SRC", help="the folders of datasets")
    parser.add_argument("target", metavar="DST", help="the new dataset's folder")
    help = "number of part files (default: as many as the datasets have together)"
    parser.add_argument("--part_num", type=int, metavar="N", help=help)
    parser.add_argument("--shuffle", action="store_true", help="in random order")
    parser.add_argument("--seed", type=int, metavar="N", help="of --shuffle (default: 0)")


def run(args: argparse.Namespace) -> None:
    if args.seed is not None and not args.shuffle:
        raise InputError("--seed is for --shuffle, which is not given")
    seed = (args.seed or 0) if args.shuffle else None
    sources, target = args.sources, os.path.realpath(args.target)
    real = [os.path.realpath(folder) for folder in sources]
    if len({*real, target}) <= len(real):
        raise InputError("merge: a dataset is named twice; the new one needs a folder of its own")
    for folder in real:
        if target.startswith(os.path.join(folder, "")):
            raise InputError(f"{args.target} is inside of {folder}: choose another folder")
    if os.path.lexists(os.path.join(target, MANIFEST_NAME)):
        raise InputError(f"{args.target} is a dataset already: name a new folder, or remove it")
    with ExitStack() as stack:
        for folder in sources:
            stack.enter_context(dataset_in_use(folder))
        datasets = [open_dataset(folder) for folder in sources]
        check_fit(datasets)
        output(f"{args.target}: {merge(datasets, args.target, args.part_num, seed).summary}")


def check_fit(datasets: list[Dataset]) -> None:
    """Raise InputError unless the datasets can be one."""
    first = datasets[0]
    owners: dict[str, str] = {}
    for folder, manifest in datasets:
        both = f"{first.folder} and {folder} do not fit together"
        for name in ALIKE.split():
            one, two = getattr(first.manifest, name), getattr(manifest, name)
            if one != two:
                raise InputError(f"{both}: {name.replace('_', ' ')} {one} and {two}")
        if (first.manifest.class_names is None) != (manifest.class_names is None):
            raise InputError(
                f"{both}: only one of them has names for its classes; convert both with the same "
                "--classes"
            )
        owner = owners.setdefault(manifest.digest, folder)
        if owner != folder:
            raise InputError(f"{owner} and {folder} are the same dataset")


def merge(datasets: list[Dataset], target: str, part_num: int | None, seed: int | None) -> Manifest:
    """Copy the records of datasets into a new one, and return its manifest.

    It has ``part_num`` parts; None: as many as they have together. Their order is kept, or
    drawn by ``seed``. Raises InputError where one is not as it says; nothing is written then.
    """
    class_names, new_labels = join_classes(datasets)
    found = [find_records(*each) for each in zip(datasets, new_labels, strict=True)]
    tell_names_apart([each.folder for each in datasets], found)
    sources = sum(found, [])
    order = array("q", range(sum(len(source.rows) for source in sources)))
    part_num = len(sources) if part_num is None else part_num
    if not 1 <= part_num <= len(order):
        raise InputError(f"--part_num {part_num}: it should be from 1 to {len(order):,}")
    if seed is not None:
        random.Random(seed).shuffle(order)
    records, rows, parts = copy_records(sources, order), [], []
    bar = tqdm(total=len(order), unit="record", disable=None)
    with open_folders([target]) as [folder], bar:
        for number, size in enumerate(part_sizes(len(order), part_num)):
            name = part_name(number, datasets[0].manifest.digits)
            with folder.new_file(name) as file:
                for index, (data, row) in enumerate(islice(records, size)):
                    file.write(data)
                    rows.append(row._replace(part=name, record=index))
            fields = {"num_records": size, "bytes": file.num_bytes, "sha256": file.sha256}
            parts.append(Part(file=name, **fields))
            bar.update(size)
        fields = merged_fields([each.manifest for each in datasets], class_names, rows)
        fields |= {"parts": parts, "images_csv": folder.write_table(rows)}
        manifest = manifest_of(fields, f"{target} cannot be a dataset")
        commit([NewDataset(folder, manifest, manifest.part_names)])
    return manifest


def join_classes(datasets: list[Dataset]) -> tuple[list[str] | None, list[dict[int, int]]]:
    """Return all class names, and for each dataset {label: new label} where labels change.

    The first dataset's classes keep their labels; the others are joined by name.
    """
    names = datasets[0].manifest.class_names
    if names is None:
        return None, [{} for _ in datasets]
    others = {name for dataset in datasets for name in dataset.manifest.class_names}
    names = names + sorted(others.difference(names), key=natural_key)
    labels, changed = {name: label for label, name in enumerate(names)}, []
    for folder, manifest in datasets:
        new = {label: labels[name] for label, name in enumerate(manifest.class_names)}
        moved = {old: label for old, label in new.items() if old != label}
        changed.append(moved)
        if moved:
            moves = first_few(f"{names[label]} {old} → {label}" for old, label in moved.items())
            log(f"{folder}: labels renumbered: {one_line(moves)}")
    return names, changed


def tell_names_apart(folders: list[str], sources: list[list[Source]]) -> None:
    """Put the dataset's name before the images' names that another one has, too."""
    of_datasets = [[source.rows for source in of_dataset] for of_dataset in sources]
    names = [{row.image for rows in each for row in rows if row.image} for each in of_datasets]
    number = Counter(name for each in names for name in each)
    titles = [os.path.basename(os.path.realpath(folder)) for folder in folders]
    for index, each in enumerate(of_datasets):
        title = titles[index] if titles.count(titles[index]) == 1 else f"{titles[index]}_{index}"
        for rows in each:
            rows[:] = [
                row._replace(image=f"{title}/{row.image}") if number[row.image] > 1 else row
                for row in rows
            ]


def merged_fields(
    manifests: list[Manifest], class_names: list[str] | None, rows: list[Row]
) -> dict[str, Any]:
    """Return the fields of the new manifest but its files."""
    split_ids = [manifest.split_id for manifest in manifests if manifest.split_id]
    if len(set(split_ids)) < len(split_ids):
        log("two sides of a split are merged: do not evaluate on either of them", "warning")
    labels = Counter(row.label for row in rows)
    sums = ("num_records", "num_gray", "num_measured")
    return {
        **manifests[0].model_dump(),
        **{name: sum(getattr(each, name) for each in manifests) for name in sums},
        "num_classes": len(class_names or ()) or max(each.num_classes for each in manifests),
        "class_names": class_names,
        "label_counts": {str(label): labels[label] for label in sorted(labels)},
        "plain_jpeg": all(manifest.plain_jpeg for manifest in manifests),
        "skipped": [image for manifest in manifests for image in manifest.skipped],
        "split_id": split_ids[0] if len(split_ids) == 1 else None,
        **statistics_of(manifests),
    }


def statistics_of(manifests: list[Manifest]) -> dict[str, Any]:
    """Return histogram, mean and std of all images; one that was sampled counts for all of its."""
    histograms, weighted = [np.array(each.histogram) for each in manifests], 0
    for each, histogram in zip(manifests, histograms, strict=True):
        is_sampled = each.num_measured != each.num_records
        weighted += histogram * (each.num_records / each.num_measured if is_sampled else 1)
    mean, std = zip(*map(mean_and_std, weighted), strict=True)
    return {"histogram": sum(histograms).tolist(), "mean": list(mean), "std": list(std)}
