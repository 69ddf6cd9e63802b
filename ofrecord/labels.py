"""Image names and their labels, class folders, and the split into training and validation set."""

import os
import random
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Container, Iterable

from runtime.cli import InputError, InputErrors, count, first_few, log, os_errors

from .images import IMAGE_EXTENSIONS

THUMBNAILS = "@eaDir"  # folders that a Synology NAS puts beside images
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class Samples:
    """Image names, relative to the image root, with their labels, in order.

    ``names`` is a list of str, ``labels`` an int32 array of the same length,
    ``class_names`` a list that labels index, or None where labels are only
    numbers.
    """

    def __init__(
        self,
        names: Iterable[str] = (),
        labels: Iterable[int] = (),
        class_names: list[str] | None = None,
    ):
        self.names = list(names)
        self.labels = array("i", labels)
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: slice) -> list[tuple[str, int]]:
        """Return the (name, label) pairs of a slice."""
        return list(zip(self.names[index], self.labels[index], strict=True))

    def class_name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else str(label)

    def take(self, indices: list[int]) -> "Samples":
        """Return the Samples at these indices, in their order."""
        return Samples(
            (self.names[i] for i in indices), (self.labels[i] for i in indices), self.class_names
        )


def split_by_class(
    samples: Samples, digests: Iterable[int], val_fraction: float, seed: int
) -> tuple[Samples, Samples]:
    """Split Samples class by class into a training and a validation set.

    Of a class's n images round(n * val_fraction), but at least one and at
    most n - 1, are drawn at random, by ``seed``, for the validation set.
    Images with the same digest, copies of each other, go to the same set.
    Both keep the samples' order. Raises InputError where no class can be split.
    """
    copies: dict[int, list[int]] = {}
    for index, digest in enumerate(digests):
        copies.setdefault(digest, []).append(index)
    by_class: dict[int, list[list[int]]] = {}
    for indices in copies.values():
        by_class.setdefault(samples.labels[indices[0]], []).append(indices)
    rng, chosen = random.Random(seed), set()
    for _, groups in sorted(by_class.items()):
        wanted = max(round(sum(map(len, groups)) * val_fraction), 1)
        for group in rng.sample(groups, len(groups))[1:]:  # the first stays in training
            if wanted > 0:
                chosen.update(group)
                wanted -= len(group)
    single = [label for label, groups in sorted(by_class.items()) if len(groups) == 1]
    if single:
        few = first_few(map(samples.class_name, single))
        log(f"classes with a single image, kept in the training set: {few}", "warning")
    if not chosen:
        raise InputError("--val_fraction: no class has two images, so none can be held out")
    rest = [index for index in range(len(samples)) if index not in chosen]
    return samples.take(rest), samples.take(sorted(chosen))


def natural_key(name: str) -> list:
    """Return a sort key that puts ``class 2`` before ``class 10``."""
    parts = re.split("([0-9]+)", name)
    return [
        (int(part[:18]), part) if part.isdecimal() and part.isascii() else (0, part)
        for part in parts
    ]


def read_class_folders(root: str) -> tuple[Samples, list[str]]:
    """Return the Samples of ``root/CLASS/…/image``; the classes are sorted naturally.

    Returns the names of all files without an image's extension, too. Raises
    InputErrors for images outside of any class folder, for files that links
    put into two classes, and for class folders without images.
    """
    with os_errors("list", root), os.scandir(root) as entries:
        found = {entry.name: os.path.isdir(entry.path) for entry in entries}
    class_names = sorted(
        (name for name, is_folder in found.items() if is_folder and not is_hidden(name)),
        key=natural_key,
    )
    if not class_names:
        raise InputError(
            f"no class folders in {root}: --class_folders expects one folder for each class"
        )
    stray = [name for name in sorted(found) if is_image(name) and name not in class_names]
    problems = [f"{os.path.join(root, name)} is not in a class folder" for name in stray]
    names, labels, others = [], [], []
    owners: dict[str, str] = {}  # the first name of each file, by its real path
    for label, folder in enumerate(class_names):
        images, more = list_images(root, folder + "/")
        others += more
        if not images:
            found = f", but {kinds_of(more)}" if more else ""
            problems.append(f"the class folder {os.path.join(root, folder)} has no images{found}")
        for name, path in sorted(images.items()):
            first = owners.setdefault(path, name)
            if first == name:
                names.append(name)
                labels.append(label)
            elif not first.startswith(folder + "/"):
                problems.append(f"{name} and {first} in {root} are the same file in two classes")
    if problems:
        raise InputErrors(
            problems, f"{count(len(problems), 'problem')} in {root}; nothing was written"
        )
    return Samples(names, labels, list(map(printable, class_names))), others


def fold(name: str) -> str:
    """Return a name without its case, its spaces and its form of Unicode."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def printable(name: str) -> str:
    """Return a file's name as text: bytes that are not UTF-8 are escaped, ``\\xb0``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own."""
    return name[0] == "." or name == THUMBNAILS


def is_image(name: str) -> bool:
    """Whether a file name is an image's, by its extension; hidden files are none."""
    return "." + name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and not is_hidden(name)


def kinds_of(names: Iterable[str]) -> str:
    """Return how many files have which extension, for the ten most frequent ones."""
    counts = Counter(os.path.splitext(name)[1].lower() for name in names)
    endings = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{number:,} {end or 'without extension'}" for end, number in endings[:10])
    more = sum(number for _, number in endings[10:])
    return f"{text}, {more:,} others" if more else text


def list_images(
    root: str, folder: str = "", known: Container[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Return the files below ``folder``: {name: real path} of images by extension, names of others.

    Names are relative to ``root``. Those that are ``known``, and hidden files and folders, are
    skipped; links to folders are followed, but each folder is listed once. Raises InputError
    for a folder that cannot be listed.
    """
    images, others, seen, folders = {}, [], set(), [folder]
    while folders:
        folder = folders.pop()
        real = os.path.realpath(os.path.join(root, folder))
        if real in seen:
            continue
        seen.add(real)
        path = os.path.join(root, folder)
        with os_errors("list", path), os.scandir(path) as entries:
            for entry in entries:
                name = folder + entry.name
                if name in known:
                    continue
                link = entry.is_symlink()
                if os.path.isdir(entry.path) if link else entry.is_dir():
                    if not is_hidden(entry.name):
                        folders.append(name + "/")
                elif is_image(entry.name):
                    path = f"{real}/{entry.name}"
                    images[name] = os.path.realpath(path) if link else path
                elif not is_hidden(entry.name):
                    others.append(name)
    return images, others


def doubts(samples: Samples) -> list[str]:
    """Return what looks wrong with the classes, a line each."""
    names = samples.class_names or []
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(fold(name), []).append(name)
    lines = [
        f"classes that differ in case or spaces only: {', '.join(map(repr, group))}"
        for group in alike.values()
        if len(group) > 1
    ]
    if min(samples.labels) < 0:
        lines.append("there are negative labels: lenet_train.py only accepts labels from 0")
    if len(set(samples.labels)) == 1:
        lines.append("all images are of a single class: there is nothing to learn")
    if names and SPLITS.issuperset(alike):
        lines.append(
            f"the classes are {', '.join(names)}: --image_root seems to be one folder too high"
        )
    return lines
