"""Image names with their labels, the files that they name, what a Manifest says of the labels."""

import os
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.cli import first_few, os_errors

from .images import IMAGE_EXTENSIONS
from .record import Label, LabelKind

THUMBNAILS = "@eaDir"  # folders that a Synology NAS puts beside images
SET_NAMES = {"train": "training set", "val": "validation set", "test": "test set"}
SPLITS = {  # the names of folders, and what they hold
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

ENDINGS = tuple(each for ending in sorted(IMAGE_EXTENSIONS) for each in (ending, ending.upper()))


@dataclass
class Samples:
    """Images with their labels, in order."""

    names: list[str]  # relative to the image root
    labels: array  # int32; 0 where ``vectors`` are the labels
    class_names: list[str] | None  # that labels index, or of the columns of ``vectors``
    groups: list[str | None] | None = None  # of images that a split keeps together
    vectors: np.ndarray | None = None  # labels of several numbers, int32 or float32 (n, k)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: slice) -> list[tuple[str, Label]]:
        """Return the (name, label) pairs of a slice."""
        labels = self.labels[index] if self.vectors is None else self.vectors[index].tolist()
        return list(zip(self.names[index], labels, strict=True))

    @property
    def label_fields(self) -> dict[str, Any]:
        """The fields of a Manifest about the labels."""
        if self.vectors is None:
            return label_fields(LabelKind("int32"), Counter(self.labels), self.class_names)
        kind = LabelKind(self.vectors.dtype.name, self.vectors.shape[1])
        counts = Counter(dict(enumerate(np.count_nonzero(self.vectors, axis=0).tolist())))
        return label_fields(kind, counts, self.class_names)

    def class_name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else str(label)

    def take(self, indices: list[int]) -> "Samples":
        """Return the Samples at these indices, in their order."""
        return Samples(
            [self.names[i] for i in indices],
            array("i", [self.labels[i] for i in indices]),
            self.class_names,
            self.groups and [self.groups[i] for i in indices],
            None if self.vectors is None else self.vectors[indices],
        )


def counted(label: Label, kind: LabelKind) -> list[int]:
    """Return what ``label_counts`` counts of a label: the class, or the columns that are not 0."""
    if kind.length is None:
        return [label]
    return [] if kind.type == "float32" else [n for n, value in enumerate(label) if value]


def label_fields(kind: LabelKind, counts: Counter[int], names: list[str] | None) -> dict[str, Any]:
    """Return the fields of a Manifest about labels, of which ``counted`` counted these."""
    listed = sorted(counts) if kind.length is None else range(kind.length)
    return {
        "num_classes": kind.length or len(names or ()) or max(max(counts) + 1, 0),
        "class_names": [str(n) for n in range(kind.length)] if kind.length and not names else names,
        "label_counts": {str(n): counts[n] for n in listed if kind.type != "float32"},
        "label_type": kind.type,
        "label_length": kind.length,
    }


def describe_columns(values: array, names: list[str]) -> list[str]:
    """Return a line for each column of float labels: name, mean, minimum and maximum."""
    columns = np.array(values).reshape(-1, len(names)).T
    width = min(max(map(len, names)), 30)
    return [
        f"  {name[:30]:>{width}}  mean {each.mean():.4g}, min {each.min():.4g}, max {each.max():.4g}"
        for name, each in zip(names, columns, strict=True)
    ]


def natural_key(name: str) -> list:
    """Return a sort key that puts ``class 2`` before ``class 10``."""
    parts = enumerate(re.split("([0-9]+)", name))  # text and digits in turn
    return [(int(part[:18]) if index % 2 else 0, part) for index, part in parts]


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
    counts = Counter(sorted(os.path.splitext(name)[1].lower() for name in names))
    most = counts.most_common(10)  # of those of one number, the first in the alphabet
    text = ", ".join(f"{number:,} {end or 'without extension'}" for end, number in most)
    more = counts.total() - sum(number for _, number in most)
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
                if name in known or is_hidden(entry.name):
                    continue
                link = entry.is_symlink()
                if os.path.isdir(entry.path) if link else entry.is_dir():
                    folders.append(name + "/")
                elif is_image(entry.name):
                    path = f"{real}/{entry.name}"
                    images[name] = os.path.realpath(path) if link else path
                else:
                    others.append(name)
    return images, others


def resolve_names(names: list[str], image_root: str) -> tuple[list[str], dict[str, str]]:
    """Return the names as files below the image root have them, and {name: problem}.

    A name may be an absolute path inside the root, have backslashes, or lack its ending if
    exactly one image has the name with one.
    """
    roots = [os.path.join(path(image_root), "") for path in (os.path.abspath, os.path.realpath)]

    def exists(name: str) -> bool:
        path = os.path.join(image_root, name)
        return os.path.lexists(path) and not os.path.isdir(path)

    def plain(name: str) -> str:
        if "\\" in name and not exists(name):
            name = name.replace("\\", "/")
        name = os.path.normpath(name)
        for root in roots:
            name = name.removeprefix(root)
        return name

    names = [
        plain(name) if "/" in name or "\\" in name or name[:1] == "." else name for name in names
    ]
    without = {name for name in names if not name.endswith(ENDINGS) and not exists(name)}
    found: dict[str, list[str]] = {name: [] for name in without}
    for image in list_images(image_root)[0] if without else ():
        found.get(os.path.splitext(image)[0], []).append(image)
    unclear, only = {}, {}
    for name, which in found.items():
        if len(which) > 1:
            unclear[name] = f"{name!r} may be {first_few(which)}: give the ending"
        elif which:
            only[name] = which[0]
    return [only.get(name, name) for name in names], unclear


def problem_of(name: str) -> str | None:
    """What is wrong with an image's name, or None."""
    if not name:
        return "the image's name is empty"
    if name.startswith(("/", "../")) or name in (".", ".."):
        return f"the name {name!r} is outside of the image root"
    try:
        is_valid = "\0" not in name and (name.isascii() or os.fsencode(name))
    except UnicodeEncodeError:  # half of a surrogate pair, or a locale without Unicode
        is_valid = False
    return None if is_valid else f"{name!r} is not a valid file name"


def doubts(samples: Samples) -> list[str]:
    """Return what looks wrong with the classes, a line each."""
    names = samples.class_names or []
    if samples.vectors is not None:
        same = [names[n] for n in np.flatnonzero(np.ptp(samples.vectors, axis=0) == 0)]
        return [f"columns with one value in all images: {first_few(same)}"] if same else []
    alike = defaultdict(list)
    for name in names:
        alike[fold(name)].append(name)
    lines = [
        f"classes that differ in case or spaces only: {', '.join(map(repr, group))}"
        for group in alike.values()
        if len(group) > 1
    ]
    used = set(samples.labels)
    if min(used) < 0:
        lines.append("there are negative labels: lenet_train.py only accepts labels from 0")
    if len(used) == 1:
        lines.append("all images are of a single class: there is nothing to learn")
    if empty := set(range(len(names))) - used:
        lines.append(f"classes without images: {first_few(names[label] for label in empty)}")
    if names and SPLITS.keys() >= alike.keys():
        lines.append(
            f"the classes are {', '.join(names)}: --image_root seems to be one folder too high"
        )
    return lines
