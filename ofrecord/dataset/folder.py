"""The folders that datasets are written to: made, locked, checked, and made whole again.

Everything is first written to ``DIR/.img2ofrecord/`` and then takes the place of what is there,
whole or not at all (staging.py). A commit that was killed is finished here.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from runtime.atomic import folder_lock, why_no_folder
from runtime.cli import InputError, first_few, log, os_errors

from .loading import files_of, is_marked, read_fields
from .manifest import MANIFEST_NAME, PART_PATTERN, STAGING_NAME, TABLE_NAME
from .staging import STAGED_PATTERN, DatasetFolder

BUSY = "another converter, or a training, is using"


@contextmanager
def open_folders(
    paths: list[str], split: Sequence[str] = (), shared: bool = False
) -> Iterator[list[DatasetFolder]]:
    """Make, lock and check the folders that datasets are written to, for a commit of all of them.

    A commit that was killed is finished first; ``split`` are all folders that may have been part
    of one, beginning with the first of the paths. ``shared``: other processes write parts at the
    same time. Raises InputError where a folder cannot take a dataset: it is a file, it holds what
    no converter wrote, or another process is using it.
    """
    with ExitStack() as stack:
        folders = [DatasetFolder(path) for path in paths]
        for path in paths:
            with os_errors("write to", path):
                _make_folder(path, stack)
                stack.enter_context(folder_lock(path, BUSY, shared))
                _check_target(path)
        _recover(paths, split, shared)
        for folder in folders:
            with os_errors("write to", folder.path):
                if not shared:
                    folder.remove_rest()
                    stack.callback(folder.remove_rest)
                os.makedirs(folder.staging, exist_ok=True)
        yield folders


def _make_folder(path: str, stack: ExitStack) -> None:
    """Make a folder, of which the ``stack`` removes at its end what is still empty then."""
    missing = [str(each) for each in (Path(path), *Path(path).parents) if not each.exists()]
    for each in reversed(missing):
        stack.callback(_remove_empty, each)
    with suppress(FileExistsError):  # it is there, or it is a file
        os.makedirs(path)


def _remove_empty(path: str) -> None:
    with suppress(OSError):  # there is something in it
        os.rmdir(path)


# -- what may be replaced -----------------------------------------------------------------


def _check_target(folder: str) -> None:
    """Raise InputError unless a dataset may be written to this folder, which is locked.

    It may to an empty one, over a dataset, and over what a killed run left of one. Other files
    beside a dataset are left alone.
    """
    if reason := why_no_folder(folder):
        raise InputError(f"{folder} {reason}: choose another folder")
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    path, staging = (os.path.join(folder, name) for name in (MANIFEST_NAME, STAGING_NAME))
    if os.path.islink(staging) or (os.path.exists(staging) and not os.path.isdir(staging)):
        raise InputError(f"{staging} is a link or a file: remove it")
    ours, staged = [], list(os.scandir(staging)) if os.path.isdir(staging) else []
    if MANIFEST_NAME in names:
        try:
            ours = files_of(read_fields(path))
        except ValueError as error:
            raise InputError(f"{path}: {error}: choose another folder, or remove it") from None
    elif is_marked(folder):  # by a commit that was killed: old parts may still be there
        ours = names
    elif names and not staged:
        raise InputError(
            f"{folder} is not empty and contains no dataset of img2ofrecord.py "
            f"({first_few(names)}): choose another folder or empty it"
        )
    strangers = [
        name
        for name in names
        if PART_PATTERN.fullmatch(name) or name == TABLE_NAME
        if name not in ours or os.path.isdir(os.path.join(folder, name))
    ]
    strangers += [e.name for e in staged if not STAGED_PATTERN.fullmatch(e.name) or e.is_dir()]
    if strangers:
        raise InputError(
            f"{folder} contains what does not belong to its dataset ({first_few(strangers)}): "
            "choose another folder or move it away"
        )


# -- a commit that was killed ---------------------------------------------------------------


def _recover(paths: list[str], split: Sequence[str], shared: bool) -> None:
    """Finish a commit that was killed, or remove its marks where the first folder has none yet."""
    is_complete = is_marked(paths[0])
    folders = [path for path in split if path not in paths] if is_complete else []
    for path in filter(is_marked, reversed([*paths, *folders])):
        if shared:
            text = "was interrupted at its very end: the same command without --job finishes it"
            raise InputError(f"{path}: the conversion {text}")
        with ExitStack() as stack, os_errors("write to", path):
            if path in folders:
                stack.enter_context(folder_lock(path, BUSY))
                _check_target(path)
            mark = os.path.join(path, STAGING_NAME, MANIFEST_NAME)
            with suppress(ValueError):  # of layout 2, whose mark may be half written
                fields = read_fields(mark)
                if is_complete or not fields.get("split_id"):  # which was committed alone
                    DatasetFolder(path).move_marked(files_of(fields))
                    log(f"{path}: the conversion that was interrupted at its very end is finished")
                    continue
            os.remove(mark)
