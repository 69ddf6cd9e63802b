"""Class folders: each folder in the image root is a class, named by the folder."""

import os
import shlex
import sys
from array import array
from typing import NoReturn

from runtime.cli import InputError, InputErrors, count, os_errors

from ..dataset.images_csv import printable
from .files import fold, is_hidden, is_image, kinds_of, list_images
from .names import number_classes
from .samples import SET_NAMES, SPLITS, Samples


def read_class_folders(root: str, class_file: str | None = None) -> tuple[Samples, list[str]]:
    """Return the Samples of ``root/CLASS/…/image``, and the names of all files that are no images.

    Raises InputErrors for images outside of any class folder, for files that links put into two
    classes, and for class folders without images; InputError for folders that are datasets.
    """
    folders, problems = _list_folders(root)
    numbers = number_classes(map(printable, folders), class_file)
    names, labels, others = [], array("i"), []
    owners: dict[str, str] = {}  # the first name of each file, by its real path
    for folder in sorted(folders, key=lambda folder: numbers[printable(folder)]):
        images, more = list_images(root, folder + "/")
        others += more
        if not images and not class_file:
            found = f", but {kinds_of(more)}" if more else ""
            problems.append(f"the class folder {os.path.join(root, folder)} has no images{found}")
        for name, path in sorted(images.items()):
            first = owners.setdefault(path, name)
            if first == name:
                names.append(name)
                labels.append(numbers[printable(folder)])
            elif not first.startswith(folder + "/"):
                problems.append(f"{name} and {first} in {root} are the same file in two classes")
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {root}")
    if not names:
        raise InputError(f"the class folders in {root} have no images")
    return Samples(names, labels, list(numbers)), others


def _list_folders(root: str) -> tuple[list[str], list[str]]:
    """The folders in the root, and a problem for each image beside them."""
    with os_errors("list", root), os.scandir(root) as entries:
        found = {entry.name: os.path.isdir(entry.path) for entry in entries}
    folders = sorted(name for name, is_folder in found.items() if is_folder and not is_hidden(name))
    if not folders:
        raise InputError(f"no class folders in {root}: each class needs a folder of its own there")
    if all(fold(name) in SPLITS for name in folders):
        _refuse_splits(root, {SPLITS[fold(name)]: name for name in folders})
    stray = sorted(name for name in found if is_image(name) and name not in folders)
    return folders, [f"{os.path.join(root, name)} is not in a class folder" for name in stray]


def _refuse_splits(root: str, folders: dict[str, str]) -> NoReturn:
    """Raise InputError for a root whose folders are sets, by split, not classes."""
    first, *others = (split for split in SET_NAMES if split in folders)
    path = shlex.quote(os.path.join(root, folders[first]))
    command = f"python {shlex.quote(sys.argv[0])} --class_folders --classes classes.txt"
    again = "".join(
        f", then `{command} --image_root {shlex.quote(os.path.join(root, folders[each]))} "
        f"--save_dir dataset_{each}`"
        for each in others
    )
    raise InputError(
        f"{root} holds sets ({', '.join(folders.values())}), not classes: convert each, with one "
        f"list of classes: `ls {path} > classes.txt`, then `{command} --image_root {path}`{again}"
    )
