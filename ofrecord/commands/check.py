"""``check``: what is wrong with a dataset, by part, record and file; copies in two datasets."""

import argparse
import os
from collections import Counter

from runtime.cli import InputError, InputErrors, count, os_errors, output

from ..dataset.images_csv import Row, read_rows
from ..dataset.manifest import (
    MANIFEST_NAME,
    PART_PREFIX,
    TABLE_NAME,
    Manifest,
    load_manifest,
    part_name,
)
from ..dataset.open_dataset import dataset_in_use, open_dataset, sha256_of
from ..record import IMAGE_FEATURE, LABEL_FEATURE
from .copies import ImageTable, report_copies
from .scan import PartReport, scan_parts

HELP = "Read every byte again and name what is wrong by part, record and file"


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
    with dataset_in_use(args.folder), dataset_in_use(args.other):
        if args.other:
            report_copies([read_table(folder) for folder in (args.folder, args.other)])
            return
        manifest = None
        if os.path.lexists(os.path.join(args.folder, MANIFEST_NAME)):
            manifest = load_manifest(args.folder)
        reports = check(args.folder, (args.image_feature, args.label_feature), manifest)
        if manifest:
            report_copies([read_table(args.folder)])
        else:
            output(f"(there is no {MANIFEST_NAME}, which would tell how many there should be)")
            rows = [row for report in reports for row in report.rows]
            report_copies([ImageTable(args.folder, rows, None)])


def read_table(folder: str) -> ImageTable:
    """Return the images of a dataset as its table has them; no image is read."""
    manifest = open_dataset(folder, check_hashes=False).manifest
    rows, problems = read_rows_of(folder, manifest)
    if problems:
        raise InputErrors(problems, "")
    return ImageTable(folder, rows, manifest.class_names)


def read_rows_of(folder: str, manifest: Manifest) -> tuple[list[Row], list[str]]:
    """Return the rows of images.csv, and what is wrong with the file."""
    path = os.path.join(folder, TABLE_NAME)
    try:
        rows = list(read_rows(folder))
        with os_errors("read", path):
            is_same = sha256_of(path) == manifest.images_csv
    except InputError as error:
        return [], [str(error)]
    problem = f"{path}: its bytes are not those that were written (SHA-256 differs)"
    return rows, [] if is_same else [problem]


def check(folder: str, features: tuple[str, str], manifest: Manifest | None) -> list[PartReport]:
    """Print a line for each part and one for the whole, and return what is in the parts.

    Raises InputErrors with all that is wrong.
    """
    rows, problems, reports = [], [], []
    if manifest:
        features = manifest.image_feature, manifest.label_feature
        rows, problems = read_rows_of(folder, manifest)
    names = {row[:2]: row.image for row in rows}
    for report in scan_parts(folder, features, manifest):
        reports.append(report)
        found = part_problems(folder, report, manifest, names)
        problems += found
        records = count(report.num_records, "record")
        state = count(len(found), "problem") if found else "valid"
        output(f"{report.file}: {records}, {report.num_bytes:,} bytes, {state}")
    problems += folder_problems(folder, [report.file for report in reports], manifest)
    problems += label_problems(folder, reports, manifest)
    whole = [report for report in reports if not report.problems]
    problems += table_problems(folder, rows, whole) if manifest else []
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {folder}")
    records = count(sum(report.num_records for report in reports), "record")
    size = sum(report.num_bytes for report in reports)
    output(f"{folder}: {records}, {size:,} bytes, all valid")
    return reports


def part_problems(
    folder: str, report: PartReport, manifest: Manifest | None, names: dict[tuple[str, int], str]
) -> list[str]:
    """Return a line for each problem of a part, with the record and its file's name."""
    path, lines = os.path.join(folder, report.file), []
    for record, reason in report.problems:
        name = names.get((report.file, record))
        where = "" if record is None else f", record {record}{f' ({name})' if name else ''}"
        lines.append(f"{path}{where}: {reason}")
    for part in manifest.parts if manifest else ():
        if part.file == report.file and part.sha256 != report.sha256:
            lines.append(f"{path}: its bytes are not those that were written (SHA-256 differs)")
        elif part.file == report.file and (
            (part.num_records, part.bytes) != (report.num_records, report.num_bytes)
        ):
            found = f"{report.num_records:,} records and {report.num_bytes:,} bytes"
            says = f"{part.num_records:,} records and {part.bytes:,} bytes"
            lines.append(f"{path} has {found}, and {MANIFEST_NAME} says {says}")
    return lines


def folder_problems(folder: str, found: list[str], manifest: Manifest | None) -> list[str]:
    """Return a line for each part file that is missing, or belongs to another dataset."""
    digits, last = len(found[0]) - len(PART_PREFIX), int(found[-1][len(PART_PREFIX) :])
    # From part-0 to the last, unless most are missing.
    names = [part_name(index, digits) for index in range(min(last, 2 * len(found)) + 1)]
    names = manifest.part_names if manifest else names
    missing = sorted(set(names) - set(found), key=names.index)[:3]
    strangers = [name for name in found if name not in set(names)]
    problems = [f"{os.path.join(folder, name)} is missing" for name in missing]
    return problems + [
        f"{os.path.join(folder, name)} does not belong to this dataset" for name in strangers
    ]


def label_problems(folder: str, reports: list[PartReport], manifest: Manifest | None) -> list[str]:
    """Return what is wrong with the labels as a whole, a line each."""
    types = sorted(set().union(*(report.label_types for report in reports)))
    problems = [f"{folder}: some labels are {' and some '.join(types)}"] if len(types) > 1 else []
    labels = sum((report.labels for report in reports), Counter())
    listed = {int(label): n for label, n in manifest.label_counts.items()} if manifest else labels
    for label in sorted({*labels, *listed}):
        records = count(labels[label], "record")
        if label < 0:
            problems.append(f"{folder}: invalid label {label}: labels start at 0")
        elif labels[label] != listed.get(label, 0):
            listing = f"{MANIFEST_NAME} lists {listed.get(label, 0)}"
            problems.append(f"{folder}: label {label} has {records}, but {listing}")
    return problems


def table_problems(folder: str, rows: list[Row], whole: list[PartReport]) -> list[str]:
    """Return where images.csv and the part files that are whole disagree, a line each."""
    path, files = os.path.join(folder, TABLE_NAME), {report.file for report in whole}
    listed = [row._replace(image="") for row in rows if row.part in files]
    found = [row for report in whole for row in report.rows]
    if listed == found:
        return []
    there, names = set(found), {row[:2]: row.image for row in rows}
    lines = [
        f"{path}: {row.part}, record {row.record} ({names[row[:2]]}): its label or its SHA-256 "
        "is not that of the record"
        for row in listed
        if row not in there
    ]
    return lines or [f"{path}: its rows are not the records in order"]
