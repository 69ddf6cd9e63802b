"""``index``: the manifest and the table of images of part files that another converter wrote."""

import argparse
import hashlib
import io
import os
from collections import Counter
from contextlib import suppress
from typing import Any

from runtime.atomic import folder_lock, read_small_file, replace_file
from runtime.cli import InputError, log, os_errors, output
from runtime.settings import load_json

from ..dataset.folder import BUSY
from ..dataset.images_csv import read_rows, write_rows
from ..dataset.manifest import MANIFEST_NAME, TABLE_NAME, digest_of, load_manifest
from ..dataset.open_dataset import sha256_of
from .check import add_feature_arguments, check
from .scan import PartReport, found_fields, manifest_of

HELP = "Write the manifest of part files that another converter wrote"
# What is kept of a manifest that is there, and of which type it is.
KEPT = {"class_names": list, "background": str, "fit": str, "split_id": str, "skipped": list}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of the part files")
    add_feature_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write images.csv and the manifest of part files.

    Every record is read and every image decoded. Names of classes and images in earlier files
    are kept. Raises InputErrors with all that OneFlow would abort on or misread.
    """
    folder = args.folder
    with folder_lock(folder, BUSY):
        if is_indexed(folder):
            raise InputError(f"{folder} has its {MANIFEST_NAME} already")
        reports = check(folder, (args.image_feature, args.label_feature))
        table, kept = make_table(folder, reports), kept_fields(folder)
        fields = {"class_names": None, **kept, **found_fields(reports)}
        fields |= {
            "num_classes": max(fields["num_classes"], len(kept.get("class_names", ()))),
            "image_feature": args.image_feature,
            "label_feature": args.label_feature,
            "images_csv": hashlib.sha256(table).hexdigest(),
        }
        log_reasons(folder, reports)
        manifest = manifest_of(fields, f"{folder} cannot be a dataset")
        with os_errors("write to", folder):
            for name, data in ((TABLE_NAME, table), (MANIFEST_NAME, manifest.to_json().encode())):
                with replace_file(os.path.join(folder, name)) as file:
                    file.write(data)
    output(f"{folder}: {manifest.summary}")


def is_indexed(folder: str) -> bool:
    """Whether a folder has a manifest and a table of images that belong together."""
    try:
        manifest = load_manifest(folder)
        return sha256_of(os.path.join(folder, TABLE_NAME)) == manifest.images_csv
    except (InputError, OSError):
        return False


def make_table(folder: str, reports: list[PartReport]) -> bytes:
    """Return images.csv, with the names that an earlier one has for the same images."""
    names, file = {}, io.BytesIO()
    with suppress(InputError):
        names = {(row.part, row.record, row.sha256): row.image for row in read_rows(folder)}
    rows = (row for report in reports for row in report.rows)
    keyed = (((row.part, row.record, row.sha256), row) for row in rows)
    write_rows(file, (row._replace(image=names.get(key, "")) for key, row in keyed))
    return file.getvalue()


def kept_fields(folder: str) -> dict[str, Any]:
    """Return what a manifest of this or an earlier layout says that part files do not tell."""
    with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
        fields = load_json(read_small_file(os.path.join(folder, MANIFEST_NAME)))
        if fields.pop("sha256") == digest_of(fields):
            return {name: fields[name] for name in KEPT if isinstance(fields.get(name), KEPT[name])}
    return {}  # there is none, or it is another program's


def log_reasons(folder: str, reports: list[PartReport]) -> None:
    """Warn of images that OneFlow may decode to other pixels than other programs."""
    reasons = sum((report.statistics.reencode_reasons for report in reports), Counter())
    numbers = ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common())
    what = "OneFlow may decode some images slightly differently from other programs"
    if reasons:
        log(f"{folder}: {what}: {numbers}", "warning")
