"""Getting the images of a dataset out again, as files whose bytes are those in the records."""

import csv
import os
import re
import shutil

import numpy as np
from tqdm import tqdm

from runtime.atomic import folder_lock
from runtime.cli import InputError, os_errors

from .dataset import CHECK, open_dataset, read_records, refuse_inside
from .headers import BadImage, read_header
from .images import FORMATS
from .manifest import MANIFEST_NAME, Manifest

EXTENSIONS = {kind: ext for ext, kind in reversed(FORMATS.items())}  # PNG: .png, JPEG: .jpg
LABELS, CLASSES = "labels.csv", "classes.txt"


def export(folder: str, target: str, flat: bool) -> int:
    """Write a dataset's images to a new folder, and return how many they are.

    They are in a folder for each class, named by their number, or, if ``flat``, in one folder
    with a label file, labels.csv; classes.txt has the classes' names in order. Killed at any
    moment, the folder does not exist. Raises InputError for a folder that exists and is not
    empty, and for a damaged dataset.
    """
    dataset = open_dataset(folder, all_hashes=True)
    if dataset.manifest.label_length and not flat:
        raise InputError(f"{folder}: its labels are not classes with folders: give --flat")
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise InputError(f"{target} exists and is not an empty folder: choose another")
    path = os.path.realpath(target)
    if os.path.ismount(path) or path == os.getcwd():
        raise InputError(f"{target} cannot be replaced: name a new folder in it")
    refuse_inside(target, folder)
    staging = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:200]}.export")
    with os_errors("write to", target):
        os.makedirs(staging, exist_ok=True)
        with folder_lock(staging, "another export is writing to"):
            try:
                empty(staging)  # of a run that was killed
                _write(folder, dataset.manifest, staging, flat)
                os.replace(staging, path)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
    return dataset.manifest.num_records


def empty(folder: str) -> None:
    """Remove all that is in a folder. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            remove = shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.remove
            remove(entry)


def _write(folder: str, manifest: Manifest, target: str, flat: bool) -> None:
    names, (dtype, columns) = manifest.class_names, manifest.label_kind
    folders = folder_names(manifest)
    if names and not columns:
        with open(os.path.join(target, CLASSES), "w", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in names)
    if not flat:
        for name in folders.values():
            os.mkdir(os.path.join(target, name))
    bar = tqdm(total=manifest.num_records, unit="image", disable=None)
    labels = os.path.join(target, LABELS) if flat else os.devnull
    with bar, open(labels, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        first = next(each for each in ("image", "file", "name") if each not in (names or ()))
        table.writerow((first, *(names if columns else ["label"])))
        for number, (path, index, image, label) in enumerate(read_records(folder, manifest)):
            try:
                name = f"{number:08d}{extension_of(image)}"
            except BadImage as error:
                raise damaged(folder, path, index, f"invalid image: {error}") from None
            if not columns and label not in folders:
                raise damaged(folder, path, index, f"{MANIFEST_NAME} has no label {label}")
            # A float32's text is the shortest that is read as the same number.
            values = np.array(label, dtype) if columns else [names[label] if names else label]
            table.writerow((name, *values))
            name = name if flat else os.path.join(folders[label], name)
            with open(os.path.join(target, name), "wb") as image_file:
                image_file.write(image)
            bar.update()


def damaged(folder: str, path: str, index: int, reason: str) -> InputError:
    """Return the error for a record that cannot be exported."""
    return InputError(f"{path}, record {index}: {reason}; {CHECK.format(folder)}")


def extension_of(image: bytes) -> str:
    """Return the file extension of an image's bytes, ``.bin`` for a rare format. Raises BadImage."""
    return EXTENSIONS.get(read_header(image).kind, ".bin")


def folder_names(manifest: Manifest) -> dict[int, str]:
    """Return a folder's name for each label: the class's, without what no folder may have."""
    folders: dict[int, str] = {}
    for label in sorted(map(int, manifest.label_counts)):
        name = manifest.class_names[label] if manifest.class_names else str(label)
        safe = (
            re.sub(r"[/\0]|^\.", "_", name)
            .encode("utf-8", "replace")[:200]
            .decode("utf-8", "ignore")
        )
        while safe in {CLASSES, *folders.values()}:
            safe += f"_{label}"
        folders[label] = safe
    return folders
