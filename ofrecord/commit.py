"""Where a dataset may be written, and how it takes the place of the one that is there.

A new dataset lies in ``DIR/.img2ofrecord/`` until it is whole; then it is moved into
place (commit_folder). No name is read from a manifest: part names are computed from their number.
"""

import os
import shutil

from runtime.atomic import commit_folder, flush_file, flush_folder, folder_lock, read_small_file
from runtime.cli import InputError, first_few

from .manifest import (
    MANIFEST_NAME,
    PART_PATTERN,
    STAGING_NAME,
    Manifest,
    load_manifest,
    parse_manifest,
)

BUSY = "another converter, or a training, is using"


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Write a manifest file to a folder and flush both to the disk. Raises OSError."""
    with open(os.path.join(folder, MANIFEST_NAME), "w", encoding="utf-8") as file:
        file.write(manifest.to_json())
        flush_file(file)
    flush_folder(folder)


def commit(folder: str, manifest: Manifest) -> None:
    """Put the staged parts and their manifest in place of the dataset in a folder.

    Raises OSError.
    """
    staging = os.path.join(folder, STAGING_NAME)
    commit_folder(folder, staging, MANIFEST_NAME, manifest.part_names, PART_PATTERN.fullmatch)


def recover_commit(folder: str) -> None:
    """Finish a commit that was killed, or remove what else a killed run left. Raises OSError."""
    staging = os.path.join(folder, STAGING_NAME)
    if not os.path.lexists(staging):
        return
    manifest = _staged_manifest(folder)
    if manifest and not os.path.exists(os.path.join(folder, MANIFEST_NAME)):
        commit(folder, manifest)
    else:
        shutil.rmtree(staging)


def _staged_manifest(folder: str) -> Manifest | None:
    """The manifest of a run that was killed after its last part was whole, or None."""
    path = os.path.join(folder, STAGING_NAME, MANIFEST_NAME)
    try:
        return parse_manifest(read_small_file(path))
    except (FileNotFoundError, ValueError):  # ValueError: the run was killed while it wrote it
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def check_target(folder: str) -> None:
    """Raise InputError unless a dataset may be written to this folder, which nobody is writing to.

    It may where there is no folder yet, an empty one, a dataset, or what a
    killed run left of one. Other files beside a dataset are left alone.
    """
    with folder_lock(folder, BUSY, shared=True):
        check_locked_target(folder)


def check_locked_target(folder: str) -> None:
    """Raise InputError as check_target does, for a caller that holds the folder_lock."""
    if not os.path.lexists(folder):
        return
    if not os.path.isdir(folder):
        what = "a file" if os.path.exists(folder) else "a link to nothing"
        raise InputError(f"{folder} is {what}: choose another folder")
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    staging = os.path.join(folder, STAGING_NAME)
    ours = set()
    if os.path.lexists(staging):
        _check_staging(staging)
    if os.path.lexists(os.path.join(folder, MANIFEST_NAME)):
        ours = set(load_manifest(folder).part_names)
    elif _staged_manifest(folder):  # a commit that was killed: old parts may still be there
        ours = set(names)
    elif names and not os.path.lexists(staging):
        raise InputError(
            f"{folder} is not empty and contains no dataset of img2ofrecord.py "
            f"({first_few(names)}): choose another folder or empty it"
        )
    strangers = [
        name
        for name in names
        if PART_PATTERN.fullmatch(name)
        and (name not in ours or os.path.isdir(os.path.join(folder, name)))
    ]
    if strangers:
        raise InputError(
            f"{folder} contains part files that do not belong to its dataset "
            f"({first_few(strangers)}): choose another folder or move them away"
        )


def _check_staging(staging: str) -> None:
    """Raise InputError where the hidden folder holds what no converter wrote."""
    try:
        names = os.listdir(staging)
    except NotADirectoryError:
        raise InputError(f"{staging} is not a folder of img2ofrecord.py: remove it") from None
    foreign = [n for n in names if not (PART_PATTERN.fullmatch(n) or n == MANIFEST_NAME)]
    if foreign:
        raise InputError(
            f"{staging} contains what img2ofrecord.py did not write ({first_few(foreign)}): "
            "move it away"
        )
