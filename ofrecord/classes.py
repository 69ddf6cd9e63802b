"""Classes: their numbers and names, from labels, class files and class folders."""

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from runtime.atomic import read_small_file
from runtime.cli import InputError, InputErrors, count, os_errors

from .labels import (
    SET_NAMES,
    SPLITS,
    Samples,
    fold,
    is_hidden,
    is_image,
    kinds_of,
    list_images,
    natural_key,
    printable,
)
from .record import INT32_MAX, INT32_MIN

INTEGER = re.compile(r"([+-]?[0-9]+)(\.0*)?")  # "2.0" too, as table programs write it


def number_labels(
    counts: Counter[int | str], class_file: str | None
) -> tuple[dict[int | str, int], dict[int | str, str], list[str] | None]:
    """Return the integer of each label, what is wrong with some, and the classes' names.

    The labels are integers if most of them are, which the others then must be too; else
    they are class names. Integers are lines of ``class_file``, from 0, unless it has their names.
    """
    # What is longer than 20 digits does not fit in int32 either.
    matches = ((label, INTEGER.fullmatch(str(label))) for label in counts)
    numbers = {label: int(match[1][:20]) for label, match in matches if match}
    classes = number_classes((), class_file) if class_file else {}
    are_numbers = 2 * sum(counts[label] for label in numbers) > counts.total() - counts[""]
    if not are_numbers or not classes.keys().isdisjoint(map(str, counts)):
        classes = number_classes({str(label) for label in counts if label != ""}, class_file)
        numbers = {label: classes[str(label)] for label in counts if label != ""}
        return numbers, {"": "is empty"}, list(classes)
    low, high = (0, len(classes) - 1) if class_file else (INT32_MIN, INT32_MAX)
    outside = "does not fit in int32"
    if class_file:
        outside = f"is no line of {class_file}, which has {len(classes)}, from 0"
    wrong = {label: outside for label, number in numbers.items() if not low <= number <= high}
    others = counts.keys() - numbers.keys()
    wrong |= dict.fromkeys(others, "is not an integer, as most labels are") | {"": "is empty"}
    return numbers, wrong, list(classes) if class_file else None


def number_classes(found: Iterable[str], path: str | None) -> dict[str, int]:
    """Return the number of each class: in natural order, or in the order of a class file.

    Raises InputErrors for a class file that cannot be used, and for each class that it lacks.
    """
    names = _read_class_file(path) if path else sorted(found, key=natural_key)
    numbers = {name: number for number, name in enumerate(names)}
    missing = [name for name in sorted(found, key=natural_key) if name not in numbers]
    if missing:
        problems = [f"the class {name[:60]!r} is not in the class file {path}" for name in missing]
        raise InputErrors(problems, f"{count(len(missing), 'class')} not in {path}")
    return numbers


def _read_class_file(path: str) -> list[str]:
    """The names in a class file, one a line."""
    try:
        with os_errors("read the class file", path):
            lines = re.split("\r\n|\r|\n", read_small_file(path).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(f"the class file {path} is not UTF-8 text: save it as UTF-8") from None
    first: dict[str, int] = {}
    problems = []
    for number, name in enumerate(map(str.strip, lines), start=1):
        if name and first.setdefault(name, number) != number:
            problems.append(f"{path}, line {number}: {name!r} again, first in line {first[name]}")
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {path}")
    if not first:
        raise InputError(f"the class file {path} names no classes")
    return list(first)


def read_class_folders(
    root: str, splits: Iterable[str] = (), class_file: str | None = None
) -> tuple[Samples, list[str]]:
    """Return the Samples of ``root/CLASS/…/image``, or of ``root/SPLIT/CLASS/…/image``.

    The classes are sorted naturally, or as in ``class_file``. Returns the names of all files
    without an image's extension, too. Raises InputErrors for images outside of any class
    folder, for files that links put into two classes, and for class folders without images.
    """
    problems, others = [], []
    folders: list[tuple[str, str]] = []  # class, folder
    for parent in [f"{split}/" for split in splits] or [""]:
        found, stray = _list_classes(root, parent)
        problems += stray
        folders += [(printable(name), parent + name) for name in found]
    numbers = number_classes({name for name, _ in folders}, class_file)
    names, labels = [], array("i")
    owners: dict[str, tuple[str, str]] = {}  # class and first name of each file, by its real path
    for class_name, folder in sorted(folders, key=lambda each: numbers[each[0]]):
        images, more = list_images(root, folder + "/")
        others += more
        if not images and not class_file:
            found = f", but {kinds_of(more)}" if more else ""
            problems.append(f"the class folder {os.path.join(root, folder)} has no images{found}")
        for name, path in sorted(images.items()):
            owner, first = owners.setdefault(path, (class_name, name))
            if first == name:
                names.append(name)
                labels.append(numbers[class_name])
            elif not first.startswith(folder + "/"):
                two = "classes" if owner != class_name else "datasets"
                problems.append(f"{name} and {first} in {root} are the same file in two {two}")
    if problems:
        raise InputErrors(
            problems, f"{count(len(problems), 'problem')} in {root}; nothing was written"
        )
    if not names:
        raise InputError(f"the class folders in {root} have no images")
    return Samples(names, labels, list(numbers)), others


def find_split_folders(root: str) -> dict[str, str]:
    """Return the folder of each split, {"train": "training", "val": "valid"}.

    It is empty unless the root has no other folders and no images, and a training set among
    them. Raises InputError for two folders of one split.
    """
    folders: dict[str, str] = {}
    with suppress(OSError), os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_hidden(entry.name) or not (entry.is_dir() or is_image(entry.name)):
                continue
            split = SPLITS.get(fold(entry.name)) if entry.is_dir() else None
            if split is None:
                return {}
            if split in folders:
                two = f"{folders[split]}/ and {entry.name}/"
                raise InputError(f"{root} has {two}: which is the {SET_NAMES[split]}?")
            folders[split] = entry.name
    found = {split: folders[split] for split in SET_NAMES if split in folders}
    return found if "train" in found and len(found) > 1 else {}


def _list_classes(root: str, parent: str) -> tuple[list[str], list[str]]:
    """The class folders in a folder, and a problem for each image beside them."""
    path = os.path.join(root, parent)
    with os_errors("list", path), os.scandir(path) as entries:
        found = {entry.name: os.path.isdir(entry.path) for entry in entries}
    folders = [name for name, is_folder in found.items() if is_folder and not is_hidden(name)]
    if not folders:
        raise InputError(
            f"no class folders in {path}: --class_folders expects one folder for each class"
        )
    stray = sorted(name for name in found if is_image(name) and name not in folders)
    return folders, [f"{os.path.join(path, name)} is not in a class folder" for name in stray]
