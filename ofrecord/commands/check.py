"""``check``: what is wrong with a dataset, by part, record and file; copies in two datasets."""

import argparse
import os
from collections import Counter

from runtime.cli import InputError, InputErrors, count, os_errors, output

from ..dataset.images_csv import Row, read_rows
from ..dataset.manifest import MANIFEST_NAME, TABLE_NAME, Manifest, load_manifest
from ..dataset.open_dataset import dataset_in_use, open_dataset, sha256_of
from .copies import ImageTable, report_copies
from .scan import Features, PartReport, add_feature_arguments, missing_parts, scan_parts

HELP = "Read every byte again and name what is wrong by part, record and file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the dataset's folder")
    help = "look for copies of images in these two, by their tables of images alone"
    parser.add_argument("other", metavar="OTHER", nargs="?", help=help)
    add_feature_arguments(parser)


def run(args: argparse.Namespace) -> None:
    with dataset_in_use(args.folder), dataset_in_use(args.other):
        if args.other:
            compare([args.folder, args.other])
        else:
            check(args.folder, Features(args.image_feature, args.label_feature))


def compare(folders: list[str]) -> None:
    """Report the copies within two datasets and between them; no image is read."""
    tables = []
    for folder in folders:
        manifest = open_dataset(folder, check_hashes=False).manifest
        rows, problems = read_table(folder, manifest)
        if problems:
            raise InputErrors(problems, "")
        tables.append(ImageTable(folder, rows, manifest.class_names))
    report_copies(tables)


def check(folder: str, features: Features) -> None:
    """Print a line for each part and one for the whole. Raises InputErrors with all that is wrong."""
    has_manifest = os.path.lexists(os.path.join(folder, MANIFEST_NAME))
    manifest, rows, problems, reports = None, [], [], []
    if has_manifest:
        manifest = load_manifest(folder)
        features = Features(manifest.image_feature, manifest.label_feature)
        rows, problems = read_table(folder, manifest)
    names = {row[:2]: row.image for row in rows}
    for report in scan_parts(folder, features, manifest):
        reports.append(report)
        found = part_problems(folder, report, manifest, names)
        problems += found
        records = count(report.num_records, "record")
        state = count(len(found), "problem") if found else "valid"
        output(f"{report.file}: {records}, {report.num_bytes:,} bytes, {state}", flush=True)
    problems += missing_parts(folder, reports, manifest)
    problems += label_problems(folder, reports, manifest)
    if manifest:
        problems += table_problems(folder, rows, reports, manifest)
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {folder}")
    records = count(sum(report.num_records for report in reports), "record")
    size = sum(report.num_bytes for report in reports)
    output(f"{folder}: {records}, {size:,} bytes, all valid")
    if not manifest:
        output(f"(there is no {MANIFEST_NAME}, which would tell how many there should be)")
    rows = rows or rows_of(reports, {})
    report_copies([ImageTable(folder, rows, manifest and manifest.class_names)])


def read_table(folder: str, manifest: Manifest) -> tuple[list[Row], list[str]]:
    """Return the rows of images.csv, and what is wrong with the file."""
    path = os.path.join(folder, TABLE_NAME)
    try:
        rows = list(read_rows(folder))
        with os_errors("read", path):
            if sha256_of(path) == manifest.images_csv:
                return rows, []
    except InputError as error:
        return [], [str(error)]
    return rows, [f"{path}: its bytes are not those that were written (SHA-256 differs)"]


def part_problems(
    folder: str,
    report: PartReport,
    manifest: Manifest | None,
    names: dict[tuple[str, int], str],
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
            found = f"{count(report.num_records, 'record')} and {report.num_bytes:,} bytes"
            text = f"{count(part.num_records, 'record')} and {part.bytes:,} bytes"
            lines.append(f"{path} has {found}, and {MANIFEST_NAME} says {text}")
    return lines


def label_problems(folder: str, reports: list[PartReport], manifest: Manifest | None) -> list[str]:
    """Return what is wrong with the labels as a whole, a line each."""
    types = sorted(set().union(*(report.label_types for report in reports)))
    problems = [f"{folder}: some labels are {' and some '.join(types)}"] if len(types) > 1 else []
    labels = sum((report.labels for report in reports), Counter())
    listed = manifest.label_counts if manifest else labels
    for label in sorted({*labels, *map(int, listed)}):
        expected = labels[label] if manifest is None else listed.get(str(label), 0)
        if label < 0:
            problems.append(f"{folder}: invalid label {label}: labels start at 0")
        elif manifest and label >= manifest.num_classes:
            classes = count(manifest.num_classes, "class")
            problems.append(f"{folder}: label {label} is out of range for {classes}")
        elif labels[label] != expected:
            records = count(labels[label], "record")
            listing = f"{MANIFEST_NAME} lists {expected}"
            problems.append(f"{folder}: label {label} has {records}, but {listing}")
    return problems


def rows_of(reports: list[PartReport], names: dict[tuple[str, int], str]) -> list[Row]:
    """Return the rows of images.csv that part files have; ``names`` are by (part, record)."""
    return [
        Row(report.file, record, names.get((report.file, record), ""), label, digest)
        for report in reports
        for record, (label, digest) in report.images.items()
    ]


def table_problems(
    folder: str, rows: list[Row], reports: list[PartReport], manifest: Manifest
) -> list[str]:
    """Return where images.csv and the part files that are whole disagree, a line each."""
    path, names = os.path.join(folder, TABLE_NAME), {row[:2]: row.image for row in rows}
    whole = [report for report in reports if not report.problems]
    others = {*manifest.part_names, *(each.file for each in reports)} - {r.file for r in whole}
    listed = [row for row in rows if row.part not in others]
    there = rows_of(whole, names)
    lines = [
        f"{path}: {one.part}, record {one.record} ({one.image}): it says label {one.label} and "
        f"SHA-256 {one.sha256}, and {two.part}, record {two.record} has {two.label}, {two.sha256}"
        for one, two in zip(listed, there, strict=False)
        if one != two
    ]
    if len(listed) != len(there):
        rows = count(len(listed), "row")
        lines.append(f"{path} has {rows} for {count(len(there), 'record')}")
    return lines
