"""The manifest of a dataset: what is in it, and the mark that it is finished.

``dataset.json`` is written last. A folder without it is not a finished
dataset; a folder with it holds exactly what it says. It may come from a
stranger, so it is checked as a whole before anything is done because of it.
"""

import os
from typing import Any

from runtime.atomic import read_small_file, why_no_folder
from runtime.cli import InputError, module_command, os_errors
from runtime.settings import load_json, validate

from .layout import (
    FORMATS,
    LAYOUT,
    MANIFEST_NAME,
    OLD_LAYOUT,
    PART_PATTERN,
    PART_PREFIX,
    STAGING_NAME,
    TABLE_NAME,
    part_name,
)
from .model import DEFAULT_BACKGROUND, Manifest, Part, SkippedImage, digest_of

__all__ = [
    "DEFAULT_BACKGROUND",
    "FORMATS",
    "LAYOUT",
    "MANIFEST_NAME",
    "PART_PATTERN",
    "PART_PREFIX",
]
__all__ += ["STAGING_NAME", "TABLE_NAME", "Manifest", "Part", "SkippedImage", "digest_of"]
__all__ += ["load_manifest", "part_name", "part_sizes"]

CONVERT = "convert the images again with img2ofrecord.py"


def parse_manifest(text: str | bytes) -> Manifest:
    """Return the Manifest that a file's text holds. Raises ValueError, with the reason."""
    fields = _unsealed(text)
    if fields["layout"] == OLD_LAYOUT:
        raise ValueError("an earlier version wrote this dataset")
    if fields["layout"] != LAYOUT:
        raise ValueError(
            f"its layout is {str(fields['layout'])[:20]}, and this version reads {LAYOUT}"
        )
    return validate(Manifest, fields)


def listed_files(text: str | bytes) -> list[str]:
    """Return the files of the dataset that a manifest, of the old layout too, describes.

    No name is read from it: they follow from the number of parts. Raises ValueError for what is
    no manifest.
    """
    fields = _unsealed(text)
    if fields["layout"] != OLD_LAYOUT:
        return [*parse_manifest(text).part_names, TABLE_NAME]
    try:
        first, number = fields["parts"][0]["file"], len(fields["parts"])
        digits = len(PART_PATTERN.fullmatch(first)[0]) - len(PART_PREFIX)
    except (LookupError, TypeError):
        raise ValueError("not a manifest of img2ofrecord.py") from None
    return [part_name(index, digits) for index in range(number)]


def _unsealed(text: str | bytes) -> dict[str, Any]:
    """Return a manifest's fields, whose checksum is right. Raises ValueError."""
    try:
        fields = load_json(text)
        sealed, _ = fields.pop("sha256"), fields["layout"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("not a manifest of img2ofrecord.py") from None
    if sealed != digest_of(fields):
        raise ValueError("changed or damaged after it was written")
    return fields


def load_manifest(folder: str) -> Manifest:
    """Return the manifest of a finished dataset. Raises InputError where there is none."""
    path = os.path.join(folder, MANIFEST_NAME)
    if reason := why_no_folder(folder):
        raise InputError(f"no dataset: {folder} {reason}; make one first with img2ofrecord.py")
    with os_errors("read", path):
        if is_marked(folder):
            reason = "its conversion was interrupted at its very end"
            raise InputError(f"{folder}: {reason}: the same command finishes it")
        try:
            return parse_manifest(read_small_file(path))
        except FileNotFoundError:
            raise InputError(f"{folder} is not a finished dataset: {_why_none(folder)}") from None
        except ValueError as error:
            index = module_command("ofrecord index", folder)
            reason = f"{error}: {CONVERT}, or write a new manifest: {index}"
            raise InputError(f"{path}: {reason}") from None


def is_marked(folder: str) -> bool:
    """Whether a folder holds a new dataset that is whole, but not in its place yet.

    Raises OSError for a folder that may not be looked into.
    """
    try:
        os.stat(os.path.join(folder, STAGING_NAME, MANIFEST_NAME))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _why_none(folder: str) -> str:
    """Return why there is no manifest in a folder, and what to do. Raises OSError."""
    names = os.listdir(folder)
    if STAGING_NAME in names:
        return (
            "its conversion was interrupted or is still running: the same command of "
            "img2ofrecord.py, without --job, continues it; a merge is started again"
        )
    if any(PART_PATTERN.fullmatch(name) for name in names):
        index = module_command("ofrecord index", folder)
        return f"it has part files but no {MANIFEST_NAME}: {index} writes one"
    return f"there is no {MANIFEST_NAME} in it; make one first with img2ofrecord.py"


def part_sizes(num_records: int, num_parts: int) -> list[int]:
    """Return how many records each part gets: they differ by one at most, the larger first."""
    small, larger = divmod(num_records, num_parts)
    return [small + 1] * larger + [small] * (num_parts - larger)
