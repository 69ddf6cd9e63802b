"""Reading the manifest of a finished dataset, or saying why there is none."""

import os
from typing import Any

from runtime.atomic import read_small_file, why_no_folder
from runtime.cli import InputError, module_command, os_errors
from runtime.settings import load_json, validate

from .manifest import (
    LAYOUT,
    MANIFEST_NAME,
    OLD_LAYOUT,
    PART_PATTERN,
    PART_PREFIX,
    STAGING_NAME,
    TABLE_NAME,
    Manifest,
    digest_of,
    part_name,
)

CONVERT = "convert the images again with img2ofrecord.py"
NO_MANIFEST = "not a manifest of img2ofrecord.py"


def load_manifest(folder: str) -> Manifest:
    """Return the manifest of a finished dataset. Raises InputError where there is none."""
    path, make = os.path.join(folder, MANIFEST_NAME), "make one first with img2ofrecord.py"
    if reason := why_no_folder(folder):
        raise InputError(f"no dataset: {folder} {reason}; {make}")
    with os_errors("read", path):
        names = os.listdir(folder)
        if is_marked(folder):
            reason = "its conversion was interrupted at its very end: the same command finishes it"
        elif MANIFEST_NAME in names:
            try:
                fields = read_fields(path)
                if fields["layout"] == OLD_LAYOUT:
                    raise ValueError("an earlier version wrote this dataset")
                return validate(Manifest, fields)
            except ValueError as error:
                index = module_command("ofrecord index", folder)
                move = "move it away and " if str(error) == NO_MANIFEST else ""
                hint = f"{CONVERT}, or {move}write a new manifest: {index}"
                raise InputError(f"{path}: {error}: {hint}") from None
        elif STAGING_NAME in names:
            reason = (
                "its conversion was interrupted or is still running: the same command of "
                "img2ofrecord.py, without --job, continues it; a merge is started again"
            )
        elif any(map(PART_PATTERN.fullmatch, names)):
            index = module_command("ofrecord index", folder)
            reason = f"it has part files but no {MANIFEST_NAME}: {index} writes one"
        else:
            reason = f"there is no {MANIFEST_NAME} in it; {make}"
    raise InputError(f"{folder} is not a finished dataset: {reason}")


def manifest_of(fields: dict[str, Any], problem: str) -> Manifest:
    """Return a Manifest. Raises InputError, which begins with ``problem``, where it is none."""
    try:
        return validate(Manifest, fields)
    except ValueError as error:
        raise InputError(f"{problem}: {error}") from None


def is_marked(folder: str) -> bool:
    """Whether a folder holds a new dataset that is whole, but not in its place yet."""
    return os.path.exists(os.path.join(folder, STAGING_NAME, MANIFEST_NAME))


def read_fields(path: str, changed: bool = False) -> dict[str, Any]:
    """Return the fields of a manifest of this or the old layout, whose checksum is right.

    One that was ``changed``, as by hand, may have another checksum. Raises InputError where the
    file cannot be read, and ValueError for what is no manifest.
    """
    with os_errors("read", path):
        text = read_small_file(path)
    try:
        fields = load_json(text)
        sealed, layout = fields.pop("sha256"), fields["layout"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(NO_MANIFEST) from None
    if sealed != digest_of(fields) and not changed:
        raise ValueError("changed or damaged after it was written")
    if layout not in (OLD_LAYOUT, LAYOUT):
        raise ValueError(f"its layout is {str(layout)[:20]}, and this version reads {LAYOUT}")
    return fields


def files_of(fields: dict[str, Any]) -> list[str]:
    """Return the files of the dataset that a manifest's fields describe.

    No name is read from them: they follow from the number of parts. Raises ValueError.
    """
    try:
        parts = fields["parts"]
        digits = len(PART_PATTERN.fullmatch(parts[0]["file"])[0]) - len(PART_PREFIX)
    except (LookupError, TypeError):
        raise ValueError(NO_MANIFEST) from None
    names = [part_name(index, digits) for index in range(len(parts))]
    return names if fields["layout"] == OLD_LAYOUT else [*names, TABLE_NAME]
