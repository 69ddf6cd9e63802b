"""Images that a worker process packed, and those that it could not."""

import errno
import os
import struct
from typing import NamedTuple

from runtime.atomic import read_with_status
from runtime.cli import InputErrors, count

from ..dataset.statistics import ImageStatistics
from ..images import MAX_FILE_SIZE, BadImage
from ..labels.files import ImageFiles
from .options import ConvertOptions

# What tells whether an image's file was changed: its size, and its time stamp in nanoseconds.
STAMP = struct.Struct("<qq")
NO_FILE, UNREADABLE = STAMP.pack(-1, 0), STAMP.pack(-1, 1)
NOT_THERE = errno.ENOENT, errno.ELOOP  # no file, and a link to itself


class Problem(NamedTuple):
    """Why an image is not stored."""

    name: str
    reason: str
    may_be_skipped: bool  # by --skip_bad


class PackedImages:
    """Some images of a part as records, and what is known of them."""

    def __init__(self, indices: range):
        self.stamps = dict.fromkeys(indices, NO_FILE)  # of their files, by the index in the part
        self.problems: dict[int, Problem] = {}  # of those that are not stored
        self.records = b""  # (a BytesIO takes longer to send to another process)
        self.digests: list[str] = []  # of their stored bytes, as in images.csv
        self.statistics = ImageStatistics()


def stamp_of(status: os.stat_result) -> bytes:
    return STAMP.pack(status.st_size, status.st_mtime_ns)


def read_image(path: str) -> tuple[bytes, bytes]:
    """Return the bytes of an image's file, and its stamp. Raises OSError."""
    data, status = read_with_status(path, MAX_FILE_SIZE)
    return data, stamp_of(status)


def problem_of(name: str, error: Exception) -> Problem:
    """Return the Problem of an image that raised an error.

    What a second try may mend may not be skipped: it would be missing without a need.
    """
    match error:
        case BadImage():
            return Problem(name, f"invalid image: {error}", True)
        case FileNotFoundError():
            return Problem(name, "missing, but it has a label", True)
        case OSError():
            return Problem(name, f"cannot be read: {error.strerror}", error.errno in NOT_THERE)
    return Problem(name, "not enough memory to decode it: fewer --workers need less", False)


def invalid_images(problems: list[Problem], options: ConvertOptions) -> InputErrors:
    """Return the error for images that cannot be stored."""
    hint = " (--skip_bad skips such)" if all(each.may_be_skipped for each in problems) else ""
    number, lines = count(len(problems), "invalid image"), describe(problems, options.image_root)
    summary = f"{number}; no dataset was written to {options.save_dir}{hint}"
    return InputErrors(lines if len(lines) > 1 else [lines[0] + hint], summary)


def describe(problems: list[Problem], root: str) -> list[str]:
    """Return a line for each problem, with the image that may be meant where it is missing."""
    lines, files = [], ImageFiles(root)
    for name, reason, _ in problems:
        path = os.path.join(root, name)
        hint = "" if os.path.lexists(path) else files.did_you_mean(name)
        lines.append(f"{path}: {reason}{hint}")
    return lines
