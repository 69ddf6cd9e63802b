"""``export``: the images of a dataset as files again, whose bytes are those in the records."""

import argparse
import csv
import os
import shlex
import shutil
from typing import IO

from tqdm import tqdm

from runtime.atomic import folder_lock
from runtime.cli import PROJECT, InputError, count, module_command, os_errors, output

from ..dataset.images_csv import Row, read_rows
from ..dataset.manifest import FORMATS, TABLE_NAME, Manifest
from ..dataset.open_dataset import Dataset, dataset_in_use, open_dataset, read_records
from ..images import BadImage, read_header
from ..labels import class_file_text
from ..record import IMAGE_FEATURE, LABEL_FEATURE

HELP = "Write the images as files under their names, with a label table"
CLASSES_NAME = "classes.txt"
EXTENSIONS = {kind: ext for ext, kind in reversed(FORMATS.items())}  # PNG: .png, JPEG: .jpg
LONGEST = 200  # bytes of the name of a file or folder; file systems take 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="SRC", help="the dataset's folder")
    parser.add_argument("target", metavar="DIR", help="the new folder of the images")


def run(args: argparse.Namespace) -> None:
    with dataset_in_use(args.folder):
        dataset = open_dataset(args.folder)
        export(dataset, args.target)
    output(f"{args.target}: {count(dataset.manifest.num_records, 'image')}")
    output(f"to convert them again: {command(dataset.manifest, args.target)}")


def command(manifest: Manifest, target: str) -> str:
    """Return the command that converts the images again, as it can be typed in the working folder."""
    ext = manifest.image_format or ".png"
    options = {
        "image_root": target,
        "label_dir": os.path.join(target, TABLE_NAME),
        "classes": os.path.join(target, CLASSES_NAME) if manifest.class_names else None,
        "part_num": len(manifest.parts),
        "img_format": None if ext == ".png" else ext,
        "part_name_suffix_length": None if manifest.digits == 1 else manifest.digits,
        "image_feature": None
        if manifest.image_feature == IMAGE_FEATURE
        else manifest.image_feature,
        "label_feature": None
        if manifest.label_feature == LABEL_FEATURE
        else manifest.label_feature,
        "save_dir": f"{os.path.normpath(target)}_dataset",
    }
    script = os.path.relpath(os.path.join(PROJECT, "img2ofrecord.py"))
    words = [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
    return shlex.join(["python", script, *words])


def export(dataset: Dataset, target: str) -> None:
    """Write a dataset's images to a new folder, with a table of their names and labels.

    Killed at any moment, the folder does not exist. Raises InputError for a folder that exists
    and is not empty, and for a damaged dataset.
    """
    path = os.path.realpath(target)
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise InputError(f"{target} exists and is not an empty folder: choose another")
    if os.path.ismount(path) or path == os.getcwd():
        raise InputError(f"{target} cannot be replaced: name a new folder in it")
    if path.startswith(os.path.join(os.path.realpath(dataset.folder), "")):
        raise InputError(f"{target} is inside of {dataset.folder}: choose another folder")
    staging = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:LONGEST]}.export")
    with os_errors("write to", target):
        os.makedirs(staging, exist_ok=True)
        with folder_lock(staging, "another export is writing to"):
            new = os.path.join(staging, "images")
            shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
            os.mkdir(new)
            try:
                write_files(dataset, new)
                os.replace(new, path)
            finally:
                shutil.rmtree(staging, ignore_errors=True)


def write_files(dataset: Dataset, target: str) -> None:
    """Write the images, classes.txt and images.csv to an empty folder."""
    folder, manifest = dataset
    names, rows = manifest.class_names, read_rows(folder)
    if names:
        with open(os.path.join(target, CLASSES_NAME), "x", encoding="utf-8", newline="") as file:
            file.write(class_file_text(names))
    with (
        open(os.path.join(target, TABLE_NAME), "x", encoding="utf-8", newline="") as file,
        tqdm(total=manifest.num_records, unit="image", disable=None) as bar,
    ):
        # All text in quotes, as the csv module else forgets those around "\\r".
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(("image", "label"))
        for path, record, image, label in read_records(folder, manifest):
            row = next(rows, None)
            check = module_command("ofrecord check", folder)
            where = f"{path}, record {record}"
            if row is None or row[:2] != (os.path.basename(path), record):
                raise InputError(f"{where} is not the next one in {TABLE_NAME}: {check}")
            if names and label >= len(names):
                raise InputError(f"{where}: there is no class {label}: {check}")
            try:
                ext = EXTENSIONS.get(read_header(image).kind, ".bin")
            except BadImage as error:
                raise InputError(f"{where}: invalid image: {error}: {check}") from None
            name, image_file = create_file(target, row, ext)
            with image_file:
                image_file.write(image)
            table.writerow((name, names[label] if names else label))
            bar.update()


def create_file(target: str, row: Row, ext: str) -> tuple[str, IO]:
    """Return the name that an image gets in the folder, and its new file.

    A name that is taken, as a folder too, gets the part's and the record's number before it.
    """
    unique = f"{row.part}/{row.record:05d}"
    wanted = safe_name(row.image, ext)
    for name in (wanted or f"{unique}{ext}", f"{unique}/{wanted or f'image{ext}'}"):
        path = os.path.join(target, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return name, open(path, "xb")
        except (FileExistsError, NotADirectoryError):
            continue
    raise InputError(f"two images have the name {name}")


def safe_name(name: str, ext: str) -> str:
    """Return an image's name as one that is inside of any folder and ends as its format does."""
    words = [word for word in name.split("/") if word not in ("", ".")]
    words = ["__" if word == ".." else shorten(word) for word in words]
    if words and FORMATS.get(os.path.splitext(words[-1])[1].lower()) != FORMATS.get(ext):
        words[-1] += ext
    return "/".join(words)


def shorten(word: str) -> str:
    data = word.encode()
    return data[:LONGEST].decode("utf-8", "ignore") if len(data) > 250 else word
