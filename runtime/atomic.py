"""Files and folders that survive a crash, and locks on folders."""

import errno
import fcntl
import os
from typing import IO

from .cli import InputError, log


def flush_to_disk(file: IO) -> None:
    """Write an open file's buffered data through to the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(path: str) -> None:
    """Write a folder's entries (renames, removals) through to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: str, busy: str, shared: bool = False) -> int:
    """Lock a folder for this process and return the descriptor whose closing unlocks it.

    A ``shared`` lock can be held by several processes at once, for reading.
    Raises InputError, whose message begins with ``busy``, if another process
    holds a lock that excludes this one. On a file system without locks it
    warns and returns all the same.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            os.close(descriptor)
            raise InputError(f"{busy} {folder}: wait for it to end") from None
        log(
            f"{folder} is on a file system without locks ({error.strerror}): "
            "do not start another program on it",
            "warning",
        )
    return descriptor
