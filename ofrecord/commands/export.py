"""``export``: the images of a dataset as files again, whose bytes are those in the records."""

import argparse
import os
import shutil
from contextlib import suppress

from tqdm import tqdm

from runtime.atomic import folder_lock
from runtime.cli import PROJECT, InputError, count, os_errors, output, typed_path

from ..convert.options import ConvertOptions
from ..dataset.images_csv import csv_line
from ..dataset.manifest import FORMATS, TABLE_NAME, Manifest
from ..dataset.open_dataset import Dataset, Record, dataset_in_use, open_dataset, read_records
from ..images import BadImage, read_header
from ..labels.names import class_file_text
from .scan import EXTENSIONS

HELP = "Write the images as files under their names, with a label table"
CLASSES_NAME = "classes.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="SRC", help="the dataset's folder")
    parser.add_argument("target", metavar="DIR", help="the new folder of the images")


def run(args: argparse.Namespace) -> None:
    if os.path.lexists(args.target):
        raise InputError(f"{args.target} exists: name a new folder")
    with dataset_in_use(args.folder):
        dataset = open_dataset(args.folder)
        export(dataset, os.path.realpath(args.target))
    output(f"{args.target}: {count(dataset.manifest.num_records, 'image')}")
    output(f"to convert them again: {command(dataset.manifest, args.target)}")


def command(manifest: Manifest, target: str) -> str:
    """Return the command that converts the images again, as it can be typed in the working folder."""
    options = {
        "image_root": target,
        "label_dir": os.path.join(target, TABLE_NAME),
        "classes": os.path.join(target, CLASSES_NAME) if manifest.class_names else None,
        "part_num": len(manifest.parts),
        "img_format": manifest.image_format,
        "size": f"{manifest.width}x{manifest.height}" if manifest.fit else None,
        "fit": manifest.fit,
        "background": manifest.background,
        "part_name_suffix_length": manifest.digits,
        "image_feature": manifest.image_feature,
        "label_feature": manifest.label_feature,
        "save_dir": f"{target.rstrip(os.sep)}_dataset",
    }
    words = ["python", typed_path(os.path.relpath(os.path.join(PROJECT, "img2ofrecord.py")))]
    for name, value in options.items():
        if value not in (None, ConvertOptions.model_fields[name].default):
            words += [f"--{name}", typed_path(str(value))]
    return " ".join(words)


def export(dataset: Dataset, target: str) -> None:
    """Write a dataset's images to a new folder, which does not exist where this is killed.

    Raises InputError for a damaged dataset.
    """
    staging = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.export")
    with os_errors("write to", target):
        if os.path.islink(staging):  # nothing is written or removed where it leads
            os.remove(staging)
        os.makedirs(staging, exist_ok=True)
        with folder_lock(staging, "another export is writing to"):
            new = os.path.join(staging, "images")
            shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
            os.mkdir(new)
            try:
                write_files(dataset, new)
                os.rename(new, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)


def write_files(dataset: Dataset, target: str) -> None:
    """Write the images, classes.txt and images.csv to an empty folder."""
    names = dataset.manifest.class_names
    if names:
        with open(os.path.join(target, CLASSES_NAME), "x", encoding="utf-8", newline="") as file:
            file.write(class_file_text(names))
    number = dataset.manifest.num_records
    bar = tqdm(read_records(dataset), total=number, unit="image", disable=None)
    with open(os.path.join(target, TABLE_NAME), "x", encoding="utf-8", newline="") as table:
        table.write("image,label\n")
        for record in bar:
            label = names[record.row.label] if names else record.row.label
            table.write(csv_line((write_image(target, record), label)) + "\n")


def write_image(target: str, record: Record) -> str:
    """Write an image's file under its name, or one that no other file has; return that.

    It is inside of ``target``, whatever the name is, and ends as the image's format does.
    """
    row, ext = record.row, ".bin"
    with suppress(BadImage):
        ext = EXTENSIONS.get(read_header(record.image).kind, ext)
    unique = f"{row.part}/{row.record:05d}"
    name = os.path.normpath(f"/{row.image}").lstrip("/") or unique  # "/.." is "/"
    if FORMATS.get(os.path.splitext(name)[1].lower()) != FORMATS.get(ext):
        name += ext
    for new in (name, f"{unique}/{name}", f"{unique}/image{ext}"):
        path = os.path.join(target, new)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = open(path, "xb")
        except OSError as error:  # the name is taken, as a folder's too, or too long
            problem = error
        else:
            with file:
                file.write(record.image)
            return new
    raise problem
