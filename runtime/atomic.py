"""Files and folders that are replaced whole or not at all, and locks on folders.

Everything is first written beside its place, flushed to the disk, and then
renamed. Every step may be repeated, so what was killed is finished by the next run.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from .cli import InputError, log, os_errors

FULL = errno.ENOSPC, errno.EDQUOT  # a full disk, and a quota that is used up


@contextmanager
def replace_file(path: str, mode: str = "wb") -> Iterator[IO]:
    """Open a file that takes the place of ``path`` at the end of the block.

    Killed at any moment, the old file is there or the new one, whole. Where
    the block raises, the old one stays. Raises OSError.
    """
    new = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        if os.path.lexists(new):  # of a process that was killed; a link is not followed
            os.remove(new)
        with open(new, mode.replace("w", "x"), **text) as file:
            yield file
            flush_file(file)
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            os.remove(new)
        raise
    flush_folder(os.path.dirname(path) or ".")


def open_regular_file(path: str, mode: str = "rb") -> IO:
    """Open a file to read. Raises OSError, for pipes and devices, too."""
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    return open(_open_regular(path)[0], mode, **text)


def _open_regular(path: str) -> tuple[int, os.stat_result]:
    """Return the descriptor of a regular file, and its status. Raises OSError for others."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe does not wait for a writer
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return descriptor, status


def commit_folder(
    folder: str, staging: str, mark: str, names: list[str], is_replaced: Callable[[str], bool]
) -> None:
    """Move files out of ``staging``, a folder inside ``folder``, in place of those in ``folder``.

    ``names`` are all the files that ``folder`` holds afterwards, besides
    ``mark``, the file without which they do not count: its old one goes first
    and its new one comes last. Files for which ``is_replaced(name)`` holds and
    which are not among ``names`` are removed, others left alone. What else is in
    ``staging`` is removed.

    May be called again after it was killed at any point. Raises OSError.
    """
    if os.path.exists(os.path.join(staging, mark)):
        with suppress(FileNotFoundError):
            os.remove(os.path.join(folder, mark))
            flush_folder(folder)
        for name in set(os.listdir(staging)).difference([*names, mark]):
            os.remove(os.path.join(staging, name))
        for name in names:
            with suppress(FileNotFoundError):  # moved before the call that was killed
                os.replace(os.path.join(staging, name), os.path.join(folder, name))
        for name in set(os.listdir(folder)).difference(names):
            if is_replaced(name):
                os.remove(os.path.join(folder, name))
        flush_folder(folder)
        os.replace(os.path.join(staging, mark), os.path.join(folder, mark))
        flush_folder(folder)
    with suppress(FileNotFoundError):
        os.rmdir(staging)


def flush_file(file: IO) -> None:
    """Write what was written to a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(path: str) -> None:
    """Write the names in a folder (renames, removals) to the disk, where its file system can.

    SMB, FUSE, the drives of WSL and others cannot, and each has an error of its own for it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in FULL:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: str | None, busy: str, shared: bool = False) -> Iterator[None]:
    """Hold a folder for this process; ``shared``: together with others who share it.

    None, or a folder that does not exist, is nothing to hold. Raises InputError where it cannot
    be opened, and, beginning with ``busy``, where another process holds it.
    """
    if folder is None or not os.path.isdir(folder):
        yield
        return
    with os_errors("open", folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise InputError(f"{busy} {folder}: wait for it to end") from None
            log(
                f"{folder} is on a file system without locks ({error.strerror}): "
                "do not start another program on it",
                "warning",
            )
        yield
    finally:
        os.close(descriptor)


def read_small_file(path: str, most: int = 2**26) -> bytes:
    """Return the bytes of a regular file of at most ``most`` bytes.

    Raises OSError, for pipes, devices and larger files too.
    """
    return read_with_status(path, most)[0]


def read_with_status(path: str, most: int) -> tuple[bytes, os.stat_result]:
    """As read_small_file, with the status of the file that was read."""
    descriptor, status = _open_regular(path)
    try:
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", path)
        data = os.read(descriptor, status.st_size)
        # A network file system may return less than was asked for, before the end of the file.
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size)):
            data += more
        return data, status
    finally:
        os.close(descriptor)


def why_no_folder(path: str) -> str | None:
    """Return why a path is no folder, such as "does not exist", or None for a folder."""
    if os.path.isdir(path):
        return None
    path = path.rstrip("/")  # with which there would be no file
    if os.path.exists(path):
        return "is not a folder"
    return "is a link to nothing" if os.path.islink(path) else "does not exist"
