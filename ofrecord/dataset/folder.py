"""The folders that datasets are written to: made, locked, checked, and made whole again.

Everything is first written to ``DIR/.img2ofrecord/`` (staging.py) and then takes the place of
what is there (commit.py), whole or not at all. A commit that was killed is finished here.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from runtime.atomic import folder_lock, read_small_file, why_no_folder
from runtime.cli import InputError, first_few, log, os_errors

from .commit import move_marked
from .layout import MANIFEST_NAME, PART_PATTERN, STAGING_NAME, TABLE_NAME
from .manifest import is_marked, listed_files, load_manifest, parse_manifest
from .staging import STAGED_PATTERN, DatasetFolder

BUSY = "another converter, or a training, is using"


@contextmanager
def open_folders(
    paths: list[str], committed_with: Iterable[str] = (), shared: bool = False
) -> Iterator[list[DatasetFolder]]:
    """Make, lock and check the folders that datasets are written to, for a commit of all of them.

    A commit that was killed is finished first; ``committed_with`` are folders that may have been
    part of one together with the first. ``shared``: other processes write parts at the same time.
    Raises InputError where a folder cannot take a dataset: it is a file, it holds what no
    converter wrote, or another process is using it.
    """
    with ExitStack() as stack:
        folders = [DatasetFolder(path) for path in paths]
        for folder in folders:
            with os_errors("write to", folder.path):
                _make_folder(folder.path, stack)
                stack.enter_context(folder_lock(folder.path, BUSY, shared))
                _check_target(folder.path)
        _recover(paths, [path for path in committed_with if path not in paths], shared)
        for folder in folders:
            if not shared:
                stack.callback(_clean_up, folder)
            with os_errors("write to", folder.path):
                with suppress(FileExistsError):
                    os.mkdir(folder.staging)
                if not shared:
                    folder.remove_rest()
        yield folders


def _make_folder(path: str, stack: ExitStack) -> None:
    """Make a folder, of which the ``stack`` removes at its end what is still empty then."""
    if not path:
        raise InputError("the folder to write has no name")
    folder = Path(path).absolute()
    missing = takewhile(lambda each: not os.path.lexists(each), (folder, *folder.parents))
    for each in reversed(list(missing)):
        stack.callback(_remove_empty, each)
        with suppress(FileExistsError):  # another process was faster
            os.mkdir(each)


def _remove_empty(path: str | Path) -> None:
    with suppress(OSError):  # there is something in it
        os.rmdir(path)


def _clean_up(folder: DatasetFolder) -> None:
    with suppress(OSError):
        folder.remove_rest()
    _remove_empty(folder.staging)


# -- a commit that was killed ---------------------------------------------------------------


def _recover(paths: list[str], committed_with: list[str], shared: bool) -> None:
    """Finish a commit that was killed, or remove its marks where the first folder has none yet."""
    first, *others = paths
    with os_errors("read", first):
        marked = [path for path in [*committed_with, *others, first] if is_marked(path)]
    is_complete = first in marked
    for path in marked:
        if not (is_complete or path in paths):
            continue
        if shared:
            text = "was interrupted at its very end: the same command without --job finishes it"
            raise InputError(f"{path}: the conversion {text}")
        with ExitStack() as stack, os_errors("read", os.path.join(path, STAGING_NAME)):
            if path not in paths:
                stack.enter_context(folder_lock(path, BUSY))
                _check_target(path)
            names = _names_to_move(path, is_complete)
            if names is None:
                os.remove(os.path.join(path, STAGING_NAME, MANIFEST_NAME))
            else:
                move_marked(path, names)
                log(f"{path}: the conversion that was interrupted at its very end is finished")


def _names_to_move(folder: str, is_complete: bool) -> list[str] | None:
    """Return the files of a folder's marked dataset, or None where it is not to be committed.

    One of a split is, once the first of its datasets has its mark, so that it ``is_complete``.
    """
    text = read_small_file(os.path.join(folder, STAGING_NAME, MANIFEST_NAME))
    with suppress(ValueError):  # of a conversion of layout 2 that was killed while it wrote it
        if is_complete or parse_manifest(text).split_id is None:
            return listed_files(text)
    return None


# -- what may be replaced -----------------------------------------------------------------


def _check_target(folder: str) -> None:
    """Raise InputError unless a dataset may be written to this folder, which is locked.

    It may to an empty one, over a dataset, and over what a killed run left of one. Other files
    beside a dataset are left alone.
    """
    if reason := why_no_folder(folder):
        raise InputError(f"{folder} {reason}: choose another folder")
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    strangers = _strangers_in(os.path.join(folder, STAGING_NAME))
    ours = []
    if MANIFEST_NAME in names:
        path = os.path.join(folder, MANIFEST_NAME)
        try:
            with os_errors("read", path):
                ours = listed_files(read_small_file(path))
        except ValueError:
            load_manifest(folder)  # which says why
    elif is_marked(folder):  # by a commit that was killed: old parts may still be there
        ours = names
    elif names and not os.path.lexists(os.path.join(folder, STAGING_NAME)):
        raise InputError(
            f"{folder} is not empty and contains no dataset of img2ofrecord.py "
            f"({first_few(names)}): choose another folder or empty it"
        )
    taken = [name for name in names if PART_PATTERN.fullmatch(name) or name == TABLE_NAME]
    strangers += [
        name for name in taken if name not in ours or os.path.isdir(os.path.join(folder, name))
    ]
    if strangers:
        raise InputError(
            f"{folder} contains what does not belong to its dataset ({first_few(strangers)}): "
            "choose another folder or move it away"
        )


def _strangers_in(staging: str) -> list[str]:
    """Return what no converter wrote to a hidden folder."""
    if os.path.islink(staging):
        raise InputError(f"{staging} is a link: remove it")
    if not os.path.lexists(staging):
        return []
    with os_errors("read", staging, "remove it"), os.scandir(staging) as entries:
        return [e.name for e in entries if not STAGED_PATTERN.fullmatch(e.name) or e.is_dir()]
