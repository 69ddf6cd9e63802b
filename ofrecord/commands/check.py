"""``check``: what is wrong with a dataset, by part, record and file; copies in two datasets."""

import argparse
import os

from runtime.cli import InputError, InputErrors, count, os_errors, output

from ..dataset.copies import ImageTable, report_copies
from ..dataset.images_csv import Row, read_rows
from ..dataset.layout import MANIFEST_NAME, PART_PREFIX, TABLE_NAME, part_name
from ..dataset.manifest import Manifest, Part, load_manifest
from ..dataset.open_dataset import dataset_in_use, open_dataset, sha256_of
from ..record import IMAGE_FEATURE, LABEL_FEATURE
from .scan import PartReport, found_fields, scan_parts

HELP = "Read every byte again and name what is wrong by part, record and file"
OTHER_BYTES = "its bytes are not those that were written (SHA-256 differs)"


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
    folder, features = args.folder, (args.image_feature, args.label_feature)
    with dataset_in_use(folder), dataset_in_use(args.other):
        if args.other:
            return report_copies([open_table(each) for each in (folder, args.other)])
        if not os.path.lexists(os.path.join(folder, MANIFEST_NAME)):
            reports = check(folder, features)
            output(f"(there is no {MANIFEST_NAME}, which would tell how many there should be)")
            rows = [row for report in reports for row in report.rows]
            return report_copies([ImageTable(folder, rows, None)])
        manifest = load_manifest(folder)
        check(folder, (manifest.image_feature, manifest.label_feature), manifest)
        report_copies([ImageTable(folder, list(read_rows(folder)), manifest.class_names)])


def open_table(folder: str) -> ImageTable:
    """Return the images of a dataset as its table has them; no image is read."""
    manifest = open_dataset(folder, check_hashes=False).manifest
    rows, problems = read_table(folder, manifest)
    if problems:
        raise InputErrors(problems, "")
    return ImageTable(folder, rows, manifest.class_names)


def read_table(folder: str, manifest: Manifest) -> tuple[list[Row], list[str]]:
    """Return the rows of images.csv, and what is wrong with the file."""
    path = os.path.join(folder, TABLE_NAME)
    try:
        rows = list(read_rows(folder))
        with os_errors("read", path):
            is_same = sha256_of(path) == manifest.images_csv
    except InputError as error:
        return [], [str(error)]
    return rows, [] if is_same else [f"{path}: {OTHER_BYTES}"]


def check(
    folder: str, features: tuple[str, str], manifest: Manifest | None = None
) -> list[PartReport]:
    """Print a line for each part and one for the whole, and return what is in the parts.

    Raises InputErrors with all that is wrong.
    """
    rows, problems = read_table(folder, manifest) if manifest else ([], [])
    names, reports = {row[:2]: f" ({row.image})" for row in rows if row.image}, []
    listed = {part.file: part for part in manifest.parts} if manifest else {}
    for report in scan_parts(folder, features):
        reports.append(report)
        found = part_problems(folder, report, listed.get(report.file, report.part), names)
        state = count(len(found), "problem") if found else "valid"
        records = count(report.num_records, "record")
        output(f"{report.file}: {records}, {report.num_bytes:,} bytes, {state}")
        problems += found
    there = [report.file for report in reports]
    problems += misplaced_parts(folder, there, list(listed) or names_up_to(there))
    problems += field_problems(folder, reports, manifest)
    problems += table_problems(folder, rows, reports) if manifest else []
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {folder}")
    records = count(sum(report.num_records for report in reports), "record")
    size = sum(report.num_bytes for report in reports)
    output(f"{folder}: {records}, {size:,} bytes, all valid")
    return reports


def part_problems(
    folder: str, report: PartReport, part: Part, names: dict[tuple[str, int], str]
) -> list[str]:
    """Return a line for each problem of a part, with the record and its file's name.

    ``part`` is the part as the manifest has it.
    """
    path, lines = os.path.join(folder, report.file), []
    for record, reason in report.problems:
        name = names.get((report.file, record), "")
        lines.append(f"{path if record is None else f'{path}, record {record}{name}'}: {reason}")
    if part.sha256 != report.sha256:
        lines.append(f"{path}: {OTHER_BYTES}")
    elif part != report.part:
        found, says = (
            f"{count(each.num_records, 'record')} and {each.bytes:,} bytes"
            for each in (report.part, part)
        )
        lines.append(f"{path} has {found}, and {MANIFEST_NAME} says {says}")
    return lines


def names_up_to(found: list[str]) -> list[str]:
    """Return the part files' names from part-0 to the last that is there, unless most are missing."""
    digits, last = len(found[0]) - len(PART_PREFIX), int(found[-1][len(PART_PREFIX) :])
    return [part_name(index, digits) for index in range(min(last, 2 * len(found)) + 1)]


def misplaced_parts(folder: str, found: list[str], listed: list[str]) -> list[str]:
    """Return a line for each part file that is missing, or belongs to another dataset."""
    missing, strangers = set(listed).difference(found), set(found).difference(listed)
    lines = [f"{os.path.join(folder, name)} is missing" for name in sorted(missing)[:3]]
    return lines + [
        f"{os.path.join(folder, name)} does not belong to this dataset"
        for name in sorted(strangers)
    ]


def field_problems(folder: str, reports: list[PartReport], manifest: Manifest | None) -> list[str]:
    """Return what cannot be in a dataset, or is not as the manifest says, a line each."""
    found, lines = found_fields(reports), []
    labels = found["label_counts"]
    listed = manifest.label_counts if manifest else labels
    for label in sorted({*labels, *listed}, key=int):
        if label.startswith("-"):
            lines.append(f"{folder}: invalid label {label}: labels start at 0")
        elif labels.get(label, 0) != listed.get(label, 0):
            records = count(labels.get(label, 0), "record")
            listing = f"{MANIFEST_NAME} lists {listed.get(label, 0)}"
            lines.append(f"{folder}: label {label} has {records}, but {listing}")
    if " and " in found["label_type"]:
        lines.append(f"{folder}: some labels are {found['label_type']}")
    if manifest is None:
        return lines
    found["channels"] = max(found["channels"], manifest.channels)  # gray may be stored as colour
    found["plain_jpeg"] |= {kind for each in reports for kind in each.kinds} == {("JPEG", False)}
    for name in ("channels", "image_format", "width", "height", "plain_jpeg", "label_type"):
        says, there = getattr(manifest, name), found[name]
        if says and says != there:
            there = "mixed" if there is None else there
            lines.append(f"{folder}: {MANIFEST_NAME} says {name} {says}, and the parts say {there}")
    return lines


def table_problems(folder: str, rows: list[Row], reports: list[PartReport]) -> list[str]:
    """Return where images.csv and the part files that are whole disagree, a line each."""
    path, whole = os.path.join(folder, TABLE_NAME), [each for each in reports if not each.problems]
    files, found = {each.file for each in whole}, [row for each in whole for row in each.rows]
    listed = {row._replace(image=""): row.image for row in rows if row.part in files}
    if list(listed) == found:
        return []
    there = set(found)
    lines = [
        f"{path}: {row.part}, record {row.record} ({image}): its label or its SHA-256 is not that "
        "of the record"
        for row, image in listed.items()
        if row not in there
    ]
    return lines or [f"{path}: its rows are not the records in order"]
