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

from runtime.cli import InputError, count, first_few, log, one_line, output
from runtime.settings import validate

from ..dataset.commit import NewDataset, commit
from ..dataset.folder import open_folders
from ..dataset.images_csv import Row
from ..dataset.manifest import MANIFEST_NAME, Manifest, Part, part_name, part_sizes
from ..dataset.open_dataset import Dataset, dataset_in_use, open_dataset
from ..dataset.statistics import mean_and_std
from ..labels import natural_key
from .copying import Source, copy_records, find_records

HELP = "Copy the records of datasets into a new one: to join, append, reshard or shuffle"

# Fields of the manifests that must be the same in all.
ALIKE = "image_feature label_feature label_type image_format color_name width height fit background"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SRC", help="the folders of datasets")
    parser.add_argument("target", metavar="DST", help="the new dataset's folder")
    help = "number of part files (default: as many as the datasets have together)"
    parser.add_argument("--part_num", type=int, metavar="N", help=help)
    parser.add_argument("--shuffle", action="store_true", help="in random order")
    parser.add_argument("--seed", type=int, metavar="N", help="of --shuffle (default: 0)")


def run(args: argparse.Namespace) -> None:
    if args.part_num is not None and not 1 <= args.part_num <= 10**6:
        raise InputError(f"--part_num {args.part_num}: it should be from 1 to 1,000,000")
    if args.seed is not None and not args.shuffle:
        raise InputError("--seed is for --shuffle, which is not given")
    seed = (args.seed or 0) if args.shuffle else None
    check_folders(args.sources, args.target)
    with ExitStack() as stack:
        for folder in args.sources:
            stack.enter_context(dataset_in_use(folder))
        datasets = [open_dataset(folder) for folder in args.sources]
        check_fit(datasets)
        output(f"{args.target}: {merge(datasets, args.target, args.part_num, seed).summary}")


def check_folders(sources: list[str], target: str) -> None:
    real = [os.path.realpath(folder) for folder in (*sources, target)]
    if len(set(real)) < len(real):
        raise InputError("merge: a dataset is named twice; the new one needs a folder of its own")
    for folder in real[:-1]:
        if real[-1].startswith(os.path.join(folder, "")):
            raise InputError(f"{target} is inside of {folder}: choose another folder")
    if os.path.lexists(os.path.join(target, MANIFEST_NAME)):
        raise InputError(f"{target} is a dataset already: name a new folder last, or remove it")


def check_fit(datasets: list[Dataset]) -> None:
    """Raise InputError unless the datasets can be one."""
    first = datasets[0]
    owners: dict[str, str] = {}
    for folder, manifest in datasets:
        both = f"{first.folder} and {folder} do not fit together"
        for name in ALIKE.split():
            one, two = getattr(first.manifest, name), getattr(manifest, name)
            if one != two:
                raise InputError(f"{both}: their {name} is {one} and {two}")
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
    pairs = zip(datasets, new_labels, strict=True)
    found = [find_records(dataset, labels) for dataset, labels in pairs]
    tell_names_apart(datasets, found)
    sources = sum(found, [])
    order = array("q", range(sum(len(source.rows) for source in sources)))
    if (part_num or 0) > len(order):
        raise InputError(f"--part_num {part_num}: there are only {count(len(order), 'record')}")
    if seed is not None:
        random.Random(seed).shuffle(order)
    records, rows, parts = copy_records(sources, order), [], []
    digits = datasets[0].manifest.digits
    with (
        open_folders([target]) as [folder],
        tqdm(total=len(order), unit="record", disable=None) as bar,
    ):
        for number, size in enumerate(part_sizes(len(order), part_num or len(sources))):
            name = part_name(number, digits)
            with folder.new_file(name) as file:
                for index, (data, row) in enumerate(islice(records, size)):
                    file.write(data)
                    rows.append(row._replace(part=name, record=index))
            part = {"num_records": size, "bytes": file.num_bytes, "sha256": file.sha256}
            parts.append(Part(file=name, **part))
            bar.update(size)
        fields = {"parts": parts, "images_csv": folder.write_table(rows)}
        fields |= manifest_fields([each.manifest for each in datasets], class_names, rows)
        try:
            manifest = validate(Manifest, fields)
        except ValueError as error:
            raise InputError(f"the datasets' manifests do not fit together: {error}") from None
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


def tell_names_apart(datasets: list[Dataset], sources: list[list[Source]]) -> None:
    """Put the dataset's name before the images' names that another one has, too."""
    number = Counter(
        name
        for of_dataset in sources
        for name in {row.image for source in of_dataset for row in source.rows if row.image}
    )
    folders = [os.path.basename(os.path.realpath(dataset.folder)) for dataset in datasets]
    for index, (folder, of_dataset) in enumerate(zip(folders, sources, strict=True)):
        if folders.count(folder) > 1:
            folder = f"{folder}_{index}"
        for source in of_dataset:
            for place, row in enumerate(source.rows):
                if number[row.image] > 1:
                    source.rows[place] = row._replace(image=f"{folder}/{row.image}")


def manifest_fields(
    manifests: list[Manifest], class_names: list[str] | None, rows: list[Row]
) -> dict[str, Any]:
    """Return the fields of the new manifest but its files."""
    split_ids = [manifest.split_id for manifest in manifests if manifest.split_id]
    if len(set(split_ids)) < len(split_ids):
        log("two sides of a split are merged: do not evaluate on either of them", "warning")
    labels = Counter(row.label for row in rows)
    return {
        **manifests[0].model_dump(exclude={"parts", "images_csv"}),
        "num_records": len(rows),
        "num_classes": len(class_names or ()) or max(each.num_classes for each in manifests),
        "class_names": class_names,
        "label_counts": {str(label): labels[label] for label in sorted(labels)},
        "num_gray": sum(manifest.num_gray for manifest in manifests),
        "num_measured": sum(manifest.num_measured for manifest in manifests),
        "plain_jpeg": all(manifest.plain_jpeg for manifest in manifests),
        "skipped": [image for manifest in manifests for image in manifest.skipped],
        "split_id": split_ids[0] if len(split_ids) == 1 else None,
        **statistics_of(manifests),
    }


def statistics_of(manifests: list[Manifest]) -> dict[str, Any]:
    """Return histogram, mean and std of all images; one that was sampled counts for all of its."""
    histograms = [np.array(manifest.histogram) for manifest in manifests]
    weights = [
        1 if each.num_measured == each.num_records else each.num_records / max(each.num_measured, 1)
        for each in manifests
    ]
    weighted = sum(counts * weight for counts, weight in zip(histograms, weights, strict=True))
    figures = [mean_and_std(row) for row in weighted]
    return {
        "histogram": sum(histograms).tolist(),
        "mean": [mean for mean, _ in figures],
        "std": [std for _, std in figures],
    }
