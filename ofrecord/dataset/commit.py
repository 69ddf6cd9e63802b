"""The commit of datasets: all that are written together take the place of the old ones, or none.

When all their files have their final names in the hidden folders, each manifest gets its name
there, which is the mark, the first dataset's last; then the folders are moved into place
(runtime/atomic.py), the first one last. Killed before its mark, all old datasets are untouched;
killed after it, the next run finishes the new ones. No name is read from a manifest: names follow
from the number of parts.
"""

import os
from typing import NamedTuple

from runtime.atomic import commit_folder, flush_folder
from runtime.cli import os_errors

from .layout import MANIFEST_NAME, PART_PATTERN, STAGING_NAME, TABLE_NAME
from .model import Manifest
from .staging import UNMARKED_NAME, DatasetFolder


class NewDataset(NamedTuple):
    """A dataset whose files are all in the hidden folder."""

    folder: DatasetFolder
    manifest: Manifest
    staged: list[str]  # what its part files are called there, in order


def commit(datasets: list[NewDataset]) -> None:
    """Put new datasets in place of the old ones, all of them or none. Raises InputError.

    Their images.csv is there; what else is in the hidden folders is removed.
    """
    last = datasets[0].folder.path
    with os_errors("write to", last, f"nothing was changed in {last}"):
        for folder, manifest, _ in datasets:
            with folder.new_file(UNMARKED_NAME) as file:
                file.write(manifest.to_json().encode())
        for folder, manifest, staged in datasets:
            for old, new in zip(staged, manifest.part_names, strict=True):
                os.replace(os.path.join(folder.staging, old), os.path.join(folder.staging, new))
            flush_folder(folder.staging)
        for folder, _, _ in reversed(datasets):
            mark = os.path.join(folder.staging, MANIFEST_NAME)
            os.replace(os.path.join(folder.staging, UNMARKED_NAME), mark)
            flush_folder(folder.staging)
    for folder, manifest, _ in reversed(datasets):
        move_marked(folder.path, [*manifest.part_names, TABLE_NAME])


def move_marked(folder: str, names: list[str]) -> None:
    """Move the marked dataset of a folder, which has these files, in place of the old one."""
    staging = os.path.join(folder, STAGING_NAME)
    with os_errors("replace the dataset in", folder, "the same command finishes it"):
        commit_folder(folder, staging, MANIFEST_NAME, names, PART_PATTERN.fullmatch)
