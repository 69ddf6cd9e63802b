"""``index``: the manifest and the table of images of part files that another converter wrote."""

import argparse
import os
from collections import Counter
from contextlib import suppress
from typing import Any

from runtime.atomic import folder_lock, read_small_file, replace_file
from runtime.cli import InputError, InputErrors, count, log, os_errors, output
from runtime.settings import load_json, validate

from ..dataset.folder import BUSY
from ..dataset.images_csv import read_rows, write_rows
from ..dataset.manifest import (
    FORMATS,
    MANIFEST_NAME,
    TABLE_NAME,
    Manifest,
    Part,
    digest_of,
    load_manifest,
)
from ..dataset.open_dataset import sha256_of
from ..dataset.statistics import ImageStatistics
from .check import label_problems, part_problems, rows_of
from .scan import Features, PartReport, add_feature_arguments, missing_parts, scan_parts

KEPT = "class_names", "background", "fit", "split_id", "skipped"
HELP = "Write the manifest of part files that another converter wrote"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of the part files")
    add_feature_arguments(parser)


def run(args: argparse.Namespace) -> None:
    features = Features(args.image_feature, args.label_feature)
    with folder_lock(args.folder, BUSY):
        output(f"{args.folder}: {index_parts(args.folder, features).summary}")


def index_parts(folder: str, features: Features) -> Manifest:
    """Write images.csv and the manifest of part files, and return it.

    Every record is read and every image decoded. What earlier files say besides is kept: names of
    classes and images. Raises InputErrors with all that OneFlow would abort on or misread, and
    InputError where there is a manifest already.
    """
    if is_indexed(folder):
        raise InputError(f"{folder} has its {MANIFEST_NAME} already")
    reports = list(scan_parts(folder, features, None))
    problems = [line for each in reports for line in part_problems(folder, each, None, {})]
    problems += missing_parts(folder, reports, None) + label_problems(folder, reports, None)
    if problems:
        found = count(len(problems), "problem")
        raise InputErrors(problems, f"{found} in {folder}; nothing was written")
    table = os.path.join(folder, TABLE_NAME)
    names: dict[tuple[str, int, str], str] = {}
    with suppress(InputError):
        names = {(row.part, row.record, row.sha256): row.image for row in read_rows(folder)}
    rows = [row._replace(image=names.get(row[:2] + row[4:], "")) for row in rows_of(reports, {})]
    with os_errors("write", table), replace_file(table) as file:
        write_rows(file, rows)
    fields = {**make_fields(folder, reports), "images_csv": sha256_of(table)}
    fields |= {"image_feature": features.image, "label_feature": features.label}
    try:
        manifest = validate(Manifest, fields)
    except ValueError as error:
        raise InputError(f"{folder} cannot be a dataset: {error}") from None
    path = os.path.join(folder, MANIFEST_NAME)
    with os_errors("write", path), replace_file(path, "w") as file:
        file.write(manifest.to_json())
    return manifest


def is_indexed(folder: str) -> bool:
    """Whether a folder has a manifest and a table of images that belong together."""
    try:
        manifest = load_manifest(folder)
        return sha256_of(os.path.join(folder, TABLE_NAME)) == manifest.images_csv
    except (InputError, OSError):
        return False


def kept_fields(folder: str) -> dict[str, Any]:
    """Return what a manifest of this or an earlier layout says that part files do not tell."""
    try:
        fields = load_json(read_small_file(os.path.join(folder, MANIFEST_NAME)))
        if fields.pop("sha256") == digest_of(fields):
            return {name: fields[name] for name in KEPT if name in fields}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass  # there is none, or another program's
    return {}


def make_fields(folder: str, reports: list[PartReport]) -> dict[str, Any]:
    """Return the fields of a Manifest of what is in the part files."""
    statistics = ImageStatistics()
    for report in reports:
        statistics.merge(report.statistics.state())
    labels = sum((report.labels for report in reports), Counter())
    kinds = set().union(*(report.kinds for report in reports))
    if reasons := statistics.reencode_reasons:
        log(
            f"{folder}: OneFlow may decode some images slightly differently from other programs: "
            + ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common()),
            "warning",
        )
    extensions = {kind: ext for ext, kind in reversed(FORMATS.items())}
    formats, kept, num_classes = {kind for kind, _ in kinds}, kept_fields(folder), max(labels) + 1
    if names := kept.get("class_names"):
        num_classes = max(num_classes, len(names))
    return {
        **kept,
        **statistics.manifest_fields(),
        "num_records": sum(report.num_records for report in reports),
        "num_classes": num_classes,
        "class_names": kept.get("class_names"),
        "label_counts": {str(label): labels[label] for label in sorted(labels)},
        "label_type": next(iter(reports[0].label_types)),
        "image_format": extensions[formats.pop()] if len(formats) == 1 else None,
        "plain_jpeg": kinds == {("JPEG", False)} and statistics.channels == 3 and not reasons,
        "parts": [
            Part(file=r.file, num_records=r.num_records, bytes=r.num_bytes, sha256=r.sha256)
            for r in reports
        ],
    }
