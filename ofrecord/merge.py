"""Merging, appending and resharding: the records of datasets, copied as they are into a new one."""

import os
from collections import Counter
from contextlib import ExitStack
from typing import Any

import numpy as np
from tqdm import tqdm

from runtime.cli import InputError, first_few, log, one_line

from .copying import Run, blocks, cut, find_records, opened, records
from .dataset import Dataset, dataset_in_use, open_dataset, refuse_inside
from .labels import natural_key
from .manifest import MANIFEST_NAME, STAGING_NAME, Manifest, manifest_of, part_sizes
from .plan import has_finished_parts
from .record import LENGTH, BadRecord, OFRecord, read_record
from .statistics import mean_and_variance
from .writer import DatasetWriter, PartFile

# Fields of the manifests that must be the same in all.
ALIKE = {
    "image_feature": "image features are named",
    "label_feature": "label features are named",
    "label_kind": "labels are",
    "image_format": "images are",
    "color_name": "images are",
    "width": "widths are",
    "height": "heights are",
    "fit": "images were fitted by",
    "background": "backgrounds of transparent images are",
    "max_value": "largest values of 16-bit images are",
}


def merge(folders: list[str], target: str, part_num: int | None, seed: int | None) -> Manifest:
    """Copy the records of datasets into a new one, and return its manifest.

    It has ``part_num`` parts; None: as many as they have together. Their order is kept, or
    drawn by ``seed``, in a memory of 16 bytes a record. Raises InputError where the datasets
    do not fit together or one is damaged; nothing is written then.
    """
    real = [os.path.realpath(folder) for folder in (*folders, target)]
    if len(set(real)) < len(real):
        raise InputError("merge: a dataset is named twice; the new one needs a folder of its own")
    for folder in folders:
        refuse_inside(target, folder)
    if os.path.lexists(os.path.join(target, MANIFEST_NAME)):
        raise InputError(f"{target} is a dataset already: name a new folder last, or remove it")
    if has_finished_parts(os.path.join(target, STAGING_NAME)):
        raise InputError(f"{target} is of an interrupted conversion: name a new folder last")
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(dataset_in_use(folder))
        datasets = [open_dataset(folder, all_hashes=True) for folder in folders]
        check_fit(datasets)
        class_names, new_labels = join_classes(datasets)
        manifests = [dataset.manifest for dataset in datasets]
        num_records = sum(manifest.num_records for manifest in manifests)
        num_parts = part_num or sum(len(manifest.parts) for manifest in manifests)
        if num_parts > num_records:
            raise InputError(f"--part_num {num_parts}: there are only {num_records:,} records")
        stack.callback(opened.cache_clear)
        sources, sizes = find_records(datasets), part_sizes(num_records, num_parts)
        writer, parts = stack.enter_context(DatasetWriter(target, manifests[0].digits)), []
        bar = stack.enter_context(tqdm(total=num_records, unit="record", disable=None))
        for number, runs in enumerate(cut(sources, sizes, seed)):
            with writer.new_part(number, sizes[number]) as file:
                for run in runs:
                    dataset = run.source.dataset
                    copy(run, file, manifests[dataset], new_labels[dataset])
            parts.append(file.part)
            bar.update(sizes[number])
        fields = {**manifest_fields(datasets, class_names, new_labels), "parts": parts}
        manifest = manifest_of(fields, "the datasets' manifests do not fit together")
        writer.commit(manifest)
        return manifest


def copy(run: Run, file: PartFile, manifest: Manifest, new_labels: dict[int, int]) -> None:
    """Write the records of a run to a new part, with new labels where they change."""
    if not new_labels:
        for block in blocks(run):
            file.write(block)
        return
    for serialized in records(run):
        serialized = relabel(serialized, manifest, new_labels)
        file.write(LENGTH.pack(len(serialized)) + serialized)


def check_fit(datasets: list[Dataset]) -> None:
    """Raise InputError unless the datasets can be one."""
    first = datasets[0]
    for other in datasets[1:]:
        folders = f"{first.folder} and {other.folder} do not fit together"
        for name, what in ALIKE.items():
            one, two = getattr(first.manifest, name), getattr(other.manifest, name)
            if one != two:
                raise InputError(f"{folders}: their {what} {one} and {two}")
        if (first.manifest.class_names is None) != (other.manifest.class_names is None):
            raise InputError(f"{folders}: only one of them has names for its classes")
        if first.manifest.label_length and first.manifest.class_names != other.manifest.class_names:
            raise InputError(f"{folders}: their labels are from different columns")
    owners: dict[str, str] = {}
    for folder, manifest in datasets:
        owner = owners.setdefault(manifest.digest, folder)
        if owner != folder:
            raise InputError(f"{owner} and {folder} are the same dataset")


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
        changed.append(new if moved else {})
        if moved:
            moves = first_few(f"{names[label]} {old} → {label}" for old, label in moved.items())
            log(f"{folder}: labels renumbered: {one_line(moves)}")
    return names, changed


def relabel(serialized: bytes, manifest: Manifest, new: dict[int, int]) -> bytes:
    """Return a record with its new label. Raises InputError where the manifest lies."""
    features = manifest.image_feature, manifest.label_feature
    try:
        _, label, kind = read_record(serialized, 0, *features)
        record = OFRecord.FromString(serialized)
        values = getattr(record.feature[features[1]], f"{kind.type}_list").value
        values[0] = new[label]
    except (BadRecord, KeyError) as error:
        raise InputError(f"a record is not as {MANIFEST_NAME} says: {error}") from None
    return record.SerializeToString(deterministic=True)


# -- the manifest -------------------------------------------------------------------------


def manifest_fields(
    datasets: list[Dataset], class_names: list[str] | None, new_labels: list[dict[int, int]]
) -> dict[str, Any]:
    """Return all fields of the new manifest but its parts."""
    manifests, labels = [dataset.manifest for dataset in datasets], Counter()
    for manifest, new in zip(manifests, new_labels, strict=True):
        for label, number in manifest.label_counts.items():
            labels[new.get(int(label), int(label))] += number
    first = manifests[0].model_dump(exclude={"parts"})
    return first | {
        "num_records": sum(manifest.num_records for manifest in manifests),
        "num_classes": len(class_names or ()) or max(each.num_classes for each in manifests),
        "class_names": class_names,
        "label_counts": {str(label): labels[label] for label in sorted(labels)},
        "num_gray": sum(manifest.num_gray for manifest in manifests),
        "plain_jpeg": all(manifest.plain_jpeg for manifest in manifests),
        "skipped": [image for manifest in manifests for image in manifest.skipped],
        **split_ids_of(datasets),
        **statistics_of(manifests),
    }


def split_ids_of(datasets: list[Dataset]) -> dict[str, Any]:
    """Return the fields that tell which splits the records come from.

    An id that two of the datasets have is dropped: both sides of that split are there now, so
    that none may be evaluated on.
    """
    ids = Counter(each for dataset in datasets for each in dataset.manifest.splits)
    mixed = {each for each, number in ids.items() if number > 1}
    for each in sorted(mixed):
        folders = (folder for folder, manifest in datasets if each in manifest.splits)
        log(f"both sides of a split are merged: {first_few(folders)}", "warning")
    mixed.update(*(dataset.manifest.mixed_split_ids for dataset in datasets))
    kept, fields = sorted(ids.keys() - mixed), {"mixed_split_ids": sorted(mixed)}
    if len(kept) == 1:
        return {"split_id": kept[0], "split_ids": [], **fields}
    return {"split_id": None, "split_ids": kept, **fields}


def statistics_of(manifests: list[Manifest]) -> dict[str, Any]:
    """Return histogram, mean and std of all images: exact, unless some were sampled."""
    histograms = [np.array(manifest.histogram) for manifest in manifests]
    histogram = sum(histograms)
    mean, variance = mean_and_variance(histogram)
    num_measured = sum(manifest.num_measured for manifest in manifests)
    if num_measured < sum(manifest.num_records for manifest in manifests):
        weights = np.array(
            [
                each.sum() * manifest.num_records / max(manifest.num_measured, 1)
                for each, manifest in zip(histograms, manifests, strict=True)
            ]
        )
        weights = (weights / weights.sum())[:, None]
        means, stds = (np.array([getattr(m, name) for m in manifests]) for name in ("mean", "std"))
        mean = (weights * means).sum(axis=0)
        variance = (weights * (stds**2 + means**2)).sum(axis=0) - mean**2
    return {
        "histogram": histogram.tolist(),
        "mean": mean.round(6).tolist(),
        "std": np.sqrt(variance.clip(0)).round(6).tolist(),
        "num_measured": num_measured,
    }
