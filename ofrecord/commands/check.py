"""``check``: what is wrong with a dataset, by part, record and file; copies in two datasets."""

import argparse
import os
from functools import partial
from itertools import chain
from typing import Any

from runtime.cli import InputErrors, count, output

from ..dataset.copies import ImageTable, report_copies
from ..dataset.images_csv import Row, read_rows
from ..dataset.loading import load_manifest
from ..dataset.manifest import (
    FORMATS,
    MANIFEST_NAME,
    PART_PREFIX,
    TABLE_NAME,
    Manifest,
    Part,
    part_name,
)
from ..dataset.open_dataset import compare_hashes, dataset_in_use, open_dataset
from ..record import IMAGE_FEATURE, LABEL_FEATURE
from .scan import PartReport, found_fields, scan_parts

HELP = "Read every byte again and name what is wrong by part, record and file"
OTHER_BYTES = "its bytes are not those that were written (SHA-256 differs)"
COMPARED = "channels width height plain_jpeg label_type".split()  # of the manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the dataset's folder")
    help = "look for copies of images in these two, by their tables of images alone"
    parser.add_argument("other", metavar="OTHER", nargs="?", help=help)
    add_feature_arguments(parser)


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    for kind, default in (("image", IMAGE_FEATURE), ("label", LABEL_FEATURE)):
        help = f"the name of the records' {kind} feature (default: {default})"
        parser.add_argument(f"--{kind}_feature", default=default, metavar="NAME", help=help)


def run(args: argparse.Namespace) -> None:
    folder = args.folder
    with dataset_in_use(folder), dataset_in_use(args.other):
        if args.other:
            report_copies([open_table(each) for each in (folder, args.other)])
        elif os.path.lexists(os.path.join(folder, MANIFEST_NAME)):
            manifest = load_manifest(folder)
            check(folder, (manifest.image_feature, manifest.label_feature), manifest)
            report_copies([ImageTable(folder, partial(read_rows, folder), manifest.class_names)])
        else:
            reports = check(folder, (args.image_feature, args.label_feature))
            output(f"(there is no {MANIFEST_NAME}, which would tell how many there should be)")
            rows = partial(chain.from_iterable, [report.rows for report in reports])
            report_copies([ImageTable(folder, rows, None)])


def open_table(folder: str) -> ImageTable:
    """Return the images of a dataset as its table has them. No image is read.

    Raises InputError for what is no whole dataset, but for other bytes in the parts.
    """
    manifest = open_dataset(folder, check_hashes=False).manifest
    compare_hashes(folder, manifest.images_csv, [])
    return ImageTable(folder, partial(read_rows, folder), manifest.class_names)


def check(
    folder: str, features: tuple[str, str], manifest: Manifest | None = None
) -> list[PartReport]:
    """Print a line for each part and one for the whole, and return what is in the parts.

    Raises InputErrors with all that is wrong, and InputError for a damaged images.csv.
    """
    rows, parts = [], {}
    if manifest:
        rows, parts = list(read_rows(folder)), {part.file: part for part in manifest.parts}
        compare_hashes(folder, manifest.images_csv, [])
    listed, reports, problems = {row[:2]: row for row in rows}, [], []
    for report in scan_parts(folder, features):
        reports.append(report)
        found = part_problems(folder, report, parts.get(report.file), listed)
        state = count(len(found), "problem") if found else "valid"
        records = count(report.num_records, "record")
        output(f"{report.file}: {records}, {report.bytes:,} bytes, {state}")
        problems += found
    problems += dataset_problems(folder, reports, manifest)
    places = [row[:2] for report in reports for row in report.rows]
    if manifest and not problems and [row[:2] for row in rows] != places:
        problems.append(
            f"{os.path.join(folder, TABLE_NAME)}: its rows are not the records in order"
        )
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {folder}")
    records = count(sum(report.num_records for report in reports), "record")
    size = sum(report.bytes for report in reports)
    output(f"{folder}: {records}, {size:,} bytes, all valid")
    return reports


def part_problems(
    folder: str, report: PartReport, part: Part | None, listed: dict[tuple, Row]
) -> list[str]:
    """Return a line for each problem of a part, with the record and its file's name.

    ``part`` is the part as the manifest has it, ``listed`` the rows of images.csv by place.
    """
    path, problems, lines = os.path.join(folder, report.file), dict(report.problems), []
    for row in report.rows:
        if listed.get(row[:2], row)[3:] != row[3:]:
            problems.setdefault(row.record, f"{TABLE_NAME} has another label or SHA-256")
    for record, reason in problems.items():
        row = listed.get((report.file, record))
        name = f" ({row.image})" if row and row.image else ""
        lines.append(f"{path}, record {record}{name}: {reason}")
    if part and part.sha256 != report.sha256:
        lines.append(f"{path}: {OTHER_BYTES}")
    elif part and part.num_records != report.num_records:
        lines.append(f"{path}: {MANIFEST_NAME} says that it has {part.num_records:,} records")
    return lines


def dataset_problems(
    folder: str, reports: list[PartReport], manifest: Manifest | None
) -> list[str]:
    """Return which part files are missing, and where the parts are not what the manifest says."""
    found, fields = [report.file for report in reports], found_fields(reports)
    if manifest:
        listed = manifest.part_names
    else:
        listed = [part_name(n, len(found[0]) - len(PART_PREFIX)) for n in range(len(found))]
    missing = sorted(set(listed).difference(found))
    problems = [f"{os.path.join(folder, name)} is missing" for name in missing]
    if manifest is None:
        if " and " in fields["label_type"]:
            problems.append(f"{folder}: some labels are {fields['label_type']}")
        return problems
    for name in sorted(set(found).difference(listed)):
        problems.append(f"{os.path.join(folder, name)} does not belong to this dataset")
    if missing or any(report.problems for report in reports):
        return problems  # the counts of what is left would differ because of that
    fields["channels"] = max(fields["channels"], manifest.channels)  # gray may be stored as colour
    is_plain = {kind for each in reports for kind in each.kinds} == {("JPEG", False)}
    fields["plain_jpeg"] = manifest.plain_jpeg and is_plain
    says, there = facts(manifest.model_dump()), facts(fields)
    for name in {**says, **there}:
        one, two = says.get(name, 0), there.get(name, 0)
        if one != two:
            problems.append(f"{folder}: {MANIFEST_NAME} says {name} {one}, and the parts say {two}")
    return problems


def facts(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest's fields say of the images."""
    labels = {f"number of label {label}:": n for label, n in fields["label_counts"].items()}
    kind = FORMATS.get(fields["image_format"])  # None: several
    return {**{name: fields[name] for name in COMPARED}, "image_format": kind, **labels}
