"""``export``: the images of a dataset as files again, whose bytes are those in the records."""

import argparse
import csv
import os
import shlex
import shutil

from tqdm import tqdm

from runtime.atomic import folder_lock
from runtime.cli import PROJECT, InputError, count, module_command, os_errors, output

from ..convert.options import ConvertOptions
from ..dataset.images_csv import Row, read_rows
from ..dataset.manifest import FORMATS, TABLE_NAME, Manifest
from ..dataset.open_dataset import Dataset, dataset_in_use, open_dataset, read_records
from ..images import BadImage, read_header
from ..labels.names import class_file_text

HELP = "Write the images as files under their names, with a label table"
CLASSES_NAME = "classes.txt"
EXTENSIONS = {kind: ext for ext, kind in reversed(FORMATS.items())}  # PNG: .png, JPEG: .jpg


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
    options = {
        "image_root": target,
        "label_dir": os.path.join(target, TABLE_NAME),
        "classes": os.path.join(target, CLASSES_NAME) if manifest.class_names else None,
        "part_num": len(manifest.parts),
        "img_format": manifest.image_format,
        "part_name_suffix_length": manifest.digits,
        "image_feature": manifest.image_feature,
        "label_feature": manifest.label_feature,
        "save_dir": f"{os.path.normpath(target)}_dataset",
    }
    words = ["python", os.path.relpath(os.path.join(PROJECT, "img2ofrecord.py"))]
    for name, value in options.items():
        if value not in (None, ConvertOptions.model_fields[name].default):
            words += [f"--{name}", str(value)]
    return shlex.join(words)


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
    staging = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.export")
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
    hint = f"{module_command('ofrecord check', folder)} lists all problems"
    if names:
        with open(os.path.join(target, CLASSES_NAME), "x", encoding="utf-8", newline="") as file:
            file.write(class_file_text(names))
    with (
        open(os.path.join(target, TABLE_NAME), "x", encoding="utf-8", newline="") as file,
        tqdm(total=manifest.num_records, unit="image", disable=None) as bar,
    ):
        # Text in quotes, as the csv module of Python 3.10 else forgets those around "\r".
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(("image", "label"))
        for path, record, image, label in read_records(folder, manifest):
            row, where = next(rows, None), f"{path}, record {record}"
            if row is None or row[:2] != (os.path.basename(path), record):
                raise InputError(f"{where} is not the next one in {TABLE_NAME}; {hint}")
            if names and not 0 <= label < len(names):
                raise InputError(f"{where}: there is no class {label}; {hint}")
            try:
                ext = EXTENSIONS.get(read_header(image).kind, ".bin")
            except BadImage as error:
                raise InputError(f"{where}: invalid image: {error}; {hint}") from None
            name = write_file(target, file_names(row, ext), image)
            table.writerow((name, names[label] if names else label))
            bar.update()


def file_names(row: Row, ext: str) -> list[str]:
    """Return the names that an image's file may get: its own, inside of any folder, comes first.

    It ends as its format does. The other two are its part's and its record's.
    """
    unique = f"{row.part}/{row.record:05d}"
    words = [
        "__" if word == ".." else word for word in row.image.split("/") if word not in ("", ".")
    ]
    if not words:
        return [f"{unique}{ext}", f"{unique}/image{ext}"]
    if FORMATS.get(os.path.splitext(words[-1])[1].lower()) != FORMATS.get(ext):
        words[-1] += ext
    name = "/".join(words)
    return [name, f"{unique}/{name}", f"{unique}{ext}"]


def write_file(target: str, names: list[str], data: bytes) -> str:
    """Write a new file under the first of the names that it can have; return that."""
    for name in names:
        path = os.path.join(target, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                file.write(data)
            return name
        except OSError as error:  # it is taken, as a folder too, or too long
            problem = error
    raise problem
