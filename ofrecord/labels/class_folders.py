"""Class folders: each folder in the image root is a class, named by the folder."""

import os
import sys
from array import array

from runtime.cli import InputError, InputErrors, count, first_few, log, os_errors, typed_path

from ..dataset.images_csv import printable
from .files import fold, is_hidden, is_image, list_files
from .names import number_classes
from .options import SourceOptions
from .samples import SPLITS, Samples


def read_class_folders(options: SourceOptions) -> tuple[Samples, list[str]]:
    """Return the Samples of ``root/CLASS/…/image``, and the names of all files that are no images.

    Raises InputErrors for images outside of any class folder, for files that links put into two
    classes, and for class folders without images; InputError for folders that are datasets.
    """
    root = options.image_root
    folders, problems = list_classes(options)
    numbers = number_classes(map(printable, folders), options.classes)
    if not_own := list(filter(is_hidden, numbers)):
        raise InputError(
            f"{options.classes} (--classes) names what is no class: {first_few(not_own)}; remove that"
        )
    names, labels, others, links = [], array("i"), [], []
    owners: dict[str, str] = {}  # the first name of each file, by its real path
    for folder in sorted(folders, key=lambda folder: numbers[printable(folder)]):
        num_images = len(names)
        for name, path in sorted(list_files(root, folder + "/")):
            if not is_image(name):
                others.append(name)
            elif (first := owners.setdefault(path, name)) == name:
                names.append(name)
                labels.append(numbers[printable(folder)])
            elif first.startswith(folder + "/"):
                links.append(name)
            else:
                problems.append(f"{name} and {first} in {root} are the same file in two classes")
        if len(names) == num_images and not options.classes:
            problems.append(f"the class folder {os.path.join(root, folder)} has no images")
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {root}")
    if links:
        images = count(len(links), "name")
        log(
            f"left out {images} of images that their class has by another (such as {links[0]})",
            "warning",
        )
    if not names:
        raise InputError(f"the class folders in {root} have no images")
    return Samples(names, labels, list(numbers)), others


def list_classes(options: SourceOptions) -> tuple[list[str], list[str]]:
    """Return the names of the class folders, and a line for each image beside them.

    Raises InputError where there is no folder, and where they are datasets.
    """
    root = options.image_root
    with os_errors("list", root):
        found = sorted(name for name in os.listdir(root) if not is_hidden(name))
    folders = [name for name in found if os.path.isdir(os.path.join(root, name))]
    if not folders:
        raise InputError(f"no class folders in {root}: each class needs a folder of its own there")
    sets = [name for name in folders if fold(name) in SPLITS]
    if sets and (sets == folders or len({SPLITS[fold(name)] for name in sets}) > 1):
        raise InputError(how_to_convert_sets(options, sets))
    stray = set(filter(is_image, found)).difference(folders)
    problems = [f"{os.path.join(root, name)} is not in a class folder" for name in sorted(stray)]
    return folders, problems


def how_to_convert_sets(options: SourceOptions, sets: list[str]) -> str:
    """Return the error for a root whose folders are sets, not classes: how to convert each."""
    sets = sorted(sets, key=lambda name: list(SPLITS).index(fold(name)))
    paths = {name: typed_path(os.path.join(options.image_root, name)) for name in sets}
    file = options.classes or "classes.txt"
    command = f"python {typed_path(sys.argv[0])} --class_folders --classes {typed_path(file)}"
    make_file = f"`ls -dv {paths[sets[0]]}/*/ | xargs -d '\\n' -n 1 basename > {typed_path(file)}`"
    commands = [] if os.path.lexists(file) else [make_file]  # nobody's file is written over
    commands += [
        f"`{command} --image_root {path} --save_dir dataset_{SPLITS[fold(name)]}`"
        for name, path in paths.items()
    ]
    return (
        f"{options.image_root} holds sets ({', '.join(sets)}), not classes: convert each, with one "
        f"list of classes and the same options: {', then '.join(commands)}"
    )
