"""``merge``: the records of datasets, copied as they are into a new one."""

import argparse
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from runtime.atomic import open_regular_file
from runtime.cli import InputError, count, first_few, log, one_line, os_errors, output

from ..dataset.folder import open_folders
from ..dataset.images_csv import read_rows
from ..dataset.loading import manifest_of
from ..dataset.manifest import FORMATS, MANIFEST_NAME, Manifest, part_name, part_sizes
from ..dataset.open_dataset import Dataset, Record, dataset_in_use, open_dataset, read_records
from ..dataset.staging import commit
from ..dataset.statistics import mean_and_std
from ..labels.names import natural_key
from ..record import LENGTH, OFRecord

HELP = "Copy the records of datasets into a new one: to join, append, reshard or shuffle"
# Fields of the manifests that must be the same in all.
ALIKE = "image_feature label_feature label_type channels width height fit background".split()
OPEN_FILES = 100  # at most


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
    if os.path.lexists(os.path.join(args.target, MANIFEST_NAME)):
        raise InputError(f"{args.target} is a dataset already: name a new folder, or remove it")
    with ExitStack() as stack:
        for folder in args.sources:
            stack.enter_context(dataset_in_use(folder))
        datasets = [open_dataset(folder) for folder in args.sources]
        fields = joined_fields(datasets)
        records = find_records(datasets, fields["class_names"])
        num_parts = sum(len(each.manifest.parts) for each in datasets)
        num_parts = num_parts if args.part_num is None else args.part_num
        if not 1 <= num_parts <= len(records):
            raise InputError(f"--part_num {num_parts}: it should be from 1 to {len(records):,}")
        names = [part_name(number, datasets[0].manifest.digits) for number in range(num_parts)]
        if args.shuffle:
            random.Random(args.seed or 0).shuffle(records)
        manifest = write(args.target, names, records, fields)
    output(f"{args.target}: {manifest.summary}")


def joined_fields(datasets: list[Dataset]) -> dict[str, Any]:
    """Return the fields of the new manifest, but those of its files and records.

    Raises InputError unless the datasets can be one.
    """
    folder, first = datasets[0]
    manifests = [each.manifest for each in datasets]
    for other, manifest in datasets:
        both = f"{folder} and {other} do not fit together"
        for name, one in alike(first).items():
            two = alike(manifest)[name]
            if one != two:
                raise InputError(f"{both}: {name} {one} and {two}")
    class_names = first.class_names
    if class_names:
        others = {name for each in manifests for name in each.class_names}.difference(class_names)
        class_names = class_names + sorted(others, key=natural_key)
    split_ids = {each.split_id for each in manifests if each.split_id}
    sums = "num_records", "num_gray", "num_measured"
    return {
        **first.model_dump(),
        **{name: sum(getattr(each, name) for each in manifests) for name in sums},
        **joined_statistics(manifests),
        "num_classes": len(class_names or ()) or max(each.num_classes for each in manifests),
        "class_names": class_names,
        "plain_jpeg": all(each.plain_jpeg for each in manifests),
        "skipped": [image for each in manifests for image in each.skipped],
        "split_id": split_ids.pop() if len(split_ids) == 1 else None,
    }


def alike(manifest: Manifest) -> dict[str, Any]:
    """Return what must be the same in all datasets."""
    fields = {name.replace("_", " "): getattr(manifest, name) for name in ALIKE}
    kind = FORMATS.get(manifest.image_format)  # .jpeg is .jpg
    classes = "with names (--classes)" if manifest.class_names else "without names"
    return {**fields, "image format": kind, "classes": classes}


def joined_statistics(manifests: list[Manifest]) -> dict[str, Any]:
    """Return histogram, mean and std of all images; one that was sampled counts for all of its."""
    histogram = weighted = 0
    for each in manifests:
        histogram += np.array(each.histogram)
        weighted += np.array(each.histogram) * (each.num_records / max(1, each.num_measured))
    mean, std = zip(*map(mean_and_std, weighted), strict=True)
    return {"histogram": histogram.tolist(), "mean": list(mean), "std": list(std)}


def find_records(datasets: list[Dataset], class_names: list[str] | None) -> list[Record]:
    """Return where all records are, with their rows as they will be.

    Labels are those of ``class_names``. An image's name that another dataset has, too, gets its
    dataset's before it. Raises InputError for a damaged dataset.
    """
    numbers = {name: number for number, name in enumerate(class_names or ())}
    titles = [os.path.basename(os.path.realpath(each.folder)) for each in datasets]
    names = [{row.image for row in read_rows(each.folder)} for each in datasets]
    owners, records = Counter(name for each in names for name in each), []
    for index, (dataset, title) in enumerate(zip(datasets, titles, strict=True)):
        old = dict(enumerate(dataset.manifest.class_names or ()))
        new = {label: numbers[name] for label, name in old.items() if numbers[name] != label}
        if new:
            moves = first_few(f"{old[label]} {label} → {number}" for label, number in new.items())
            log(f"{dataset.folder}: labels renumbered: {one_line(moves)}")
        if titles.count(title) > 1:
            title += f"_{index}"
        for record in read_records(dataset):
            row = record.row._replace(label=new.get(record.row.label, record.row.label))
            if row.image and owners[row.image] > 1:
                row = row._replace(image=f"{title}/{row.image}")
            records.append(record._replace(row=row, image=b""))
    return records


def write(target: str, names: list[str], records: list[Record], fields: dict) -> Manifest:
    """Write parts with these names, and return the new manifest, which has these fields."""
    copied, rows, parts = copy_records(records, fields["label_feature"]), [], []
    bar = tqdm(total=len(records), unit="record", disable=None)
    with open_folders([target]) as [folder], bar:
        if kept := folder.kept_parts():
            reason = f"has {count(len(kept), 'finished part')} of a conversion that was stopped"
            raise InputError(f"{target} {reason}: finish it, or name a new folder")
        for name, size in zip(names, part_sizes(len(records), len(names)), strict=True):
            with folder.new_file(name) as file:
                for index, data in enumerate(islice(copied, size)):
                    file.write(data)
                    rows.append(records[len(rows)].row._replace(part=name, record=index))
            sums = {"bytes": file.num_bytes, "sha256": file.sha256}
            parts.append({"file": name, "num_records": size, **sums})
            bar.update(size)
        counts = sorted(Counter(row.label for row in rows).items())
        fields["label_counts"] = {str(label): number for label, number in counts}
        fields |= {"parts": parts, "images_csv": folder.write_table(rows)}
        manifest = manifest_of(fields, f"{target} cannot be a dataset")
        commit([(folder, manifest, manifest.part_names)])
    return manifest


def copy_records(records: list[Record], label_feature: str) -> Iterator[bytes]:
    """Yield records with their lengths, and the labels of their rows. Raises InputError."""
    opened = lru_cache(OPEN_FILES)(open_regular_file)
    for path, start, size, row, _ in records:
        with os_errors("read", path):
            file = opened(path)
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise InputError(f"{path} became shorter while it was read")
        record = OFRecord.FromString(data[LENGTH.size :])
        feature = record.feature[label_feature]
        labels = getattr(feature, feature.WhichOneof("kind")).value
        if labels[0] != row.label:
            labels[0] = row.label
            serialized = record.SerializeToString(deterministic=True)
            data = LENGTH.pack(len(serialized)) + serialized
        yield data
