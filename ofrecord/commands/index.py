"""``index``: the manifest and the table of images of part files that another converter wrote."""

import argparse
import hashlib
import io
import os
from collections import Counter
from typing import Any

from runtime.atomic import folder_lock, replace_file
from runtime.cli import InputError, count, log, os_errors, output

from ..dataset.folder import BUSY
from ..dataset.images_csv import read_rows, write_rows
from ..dataset.loading import manifest_of, read_fields
from ..dataset.manifest import MANIFEST_NAME, TABLE_NAME
from ..dataset.open_dataset import RESTORE
from .check import add_feature_arguments, check, open_table
from .scan import PartReport, found_fields, found_parts

HELP = "Write the manifest of part files that another converter wrote"
# What is kept of a manifest that is there: part files do not tell it.
KEPT = "class_names background channels fit split_id skipped".split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of the part files")
    add_feature_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write images.csv and the manifest of part files.

    Every record is read and every image decoded. Names of classes and images in earlier files
    are kept. Raises InputErrors with all that OneFlow would abort on or misread.
    """
    folder = args.folder
    with os_errors("write to", folder), folder_lock(folder, BUSY):
        try:
            open_table(folder)
        except InputError:  # there is none, or it is not of these files
            reports = check(folder, (args.image_feature, args.label_feature))
        else:
            raise InputError(f"{folder} has its {MANIFEST_NAME} already")
        table, kept = make_table(folder, reports), old_fields(folder, found_parts(reports))
        fields = found_fields(reports, 3 if kept.pop("channels", 1) == 3 else 1)
        fields |= {
            "class_names": None,
            **kept,
            "num_classes": max(fields["num_classes"], kept.get("num_classes", 0)),
            "image_feature": args.image_feature,
            "label_feature": args.label_feature,
            "images_csv": hashlib.sha256(table).hexdigest(),
        }
        manifest = manifest_of(fields, f"{folder} cannot be a dataset")
        if manifest.class_names:
            few, more = manifest.class_names[:5], ", …" if len(manifest.class_names) > 5 else ""
            log(f"class names of the {MANIFEST_NAME} that was there: {', '.join(few)}{more}")
        for name, data in ((TABLE_NAME, table), (MANIFEST_NAME, manifest.to_json().encode())):
            with replace_file(os.path.join(folder, name)) as file:
                file.write(data)
    if reasons := sum((each.statistics.reencode_reasons for each in reports), Counter()):
        numbers = ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common())
        log(f"{folder}: OneFlow may decode some images to other pixels: {numbers}", "warning")
    output(f"{folder}: {manifest.summary}")


def make_table(folder: str, reports: list[PartReport]) -> bytes:
    """Return images.csv, with the names that an earlier one has for the same images.

    Raises InputError where there is a file of that name which is none.
    """
    old, file = {}, io.BytesIO()
    if os.path.lexists(os.path.join(folder, TABLE_NAME)):
        try:
            old = {row._replace(image="", label=0): row for row in read_rows(folder)}
        except InputError as error:
            raise InputError(f"{error}; move it away") from None
    rows = (row for report in reports for row in report.rows)
    pairs = [(row, old.get(row._replace(label=0), row)) for row in rows]
    if edited := sum(row.label != other.label for row, other in pairs):
        labels = count(edited, "label")
        log(f"{folder}: {labels} of {TABLE_NAME} not the record's, which counts", "warning")
    write_rows(file, (row._replace(image=other.image) for row, other in pairs))
    return file.getvalue()


def old_fields(folder: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a manifest of this or an earlier layout says that part files do not tell.

    It may have been changed by hand. Raises InputError where it is none, cannot be read, or is of
    other ``parts``: the only sign that some were lost.
    """
    path = os.path.join(folder, MANIFEST_NAME)
    if not os.path.lexists(path):
        return {}
    try:
        fields = read_fields(path, changed=True)
    except ValueError as error:
        raise InputError(f"{path}: {error}; move it away, or mend what was edited") from None
    if fields.get("parts") != parts:
        reason = "is of other parts, or of other bytes in them"
        raise InputError(f"{path} {reason}: {RESTORE}; to index what is there, move it away")
    kept = {name: fields[name] for name in KEPT if name in fields}
    names = kept.get("class_names")
    return {**kept, "num_classes": len(names) if isinstance(names, list) else 0}
