"""Image files: those below a folder, and the names that label files have for them."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TextIO

from runtime.atomic import open_regular_file
from runtime.cli import InputError, first_few, os_errors

from ..images import IMAGE_EXTENSIONS

# What systems put beside people's files: macOS, Linux, Windows; Synology, QNAP.
SYSTEM_FOLDERS = {"__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
SYSTEM_FOLDERS |= {"@eaDir", "#recycle", "@Recycle"}
ENDINGS = ["", *IMAGE_EXTENSIONS, *map(str.upper, IMAGE_EXTENSIONS)]
ANY_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,4}$")
ZEROS = re.compile("(?<![0-9])0+(?=[0-9])")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own."""
    return name[:1] == "." or name in SYSTEM_FOLDERS


def is_image(name: str) -> bool:
    """Whether a file is an image, by the ending of its name."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def fold(name: str) -> str:
    """Return a name without its case, its spaces and its form of Unicode."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def kinds_of(names: Iterable[str]) -> str:
    """Return how many files have which ending, for the ten most frequent ones."""
    counts = Counter(sorted(os.path.splitext(name)[1].lower() for name in names))
    most = counts.most_common(10)  # of those of one number, the first in the alphabet
    return ", ".join(f"{number:,} {end or 'without extension'}" for end, number in most)


@contextmanager
def open_text(path: str, what: str, hint: str) -> Iterator[TextIO]:
    """Open a text file, whose lines keep their ends. Raises InputError, which calls it ``what``."""
    try:
        with os_errors(f"read the {what}", path, hint), open_regular_file(path, "r") as file:
            if file.read(1) != "\ufeff":  # a byte order mark, as Windows writes it
                file.seek(0)
            yield file
    except UnicodeDecodeError:
        advice = "save it as UTF-8 (Excel: CSV UTF-8)"
        raise InputError(f"the {what} {path} is not UTF-8 text: {advice}") from None


def list_files(root: str, folder: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name, relative to ``root``, and the real path of each file below ``folder``.

    Hidden files and folders are left out; links to folders are followed, but each folder is
    listed once: by its own name, if that comes first. Raises InputError for one that cannot be
    listed.
    """
    seen, folders = set(), [folder]
    while folders:
        folder = folders.pop()
        path = os.path.join(root, folder)
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        inner = []  # folders in it: whether a link, name
        with os_errors("list", path), os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                name, is_link = folder + entry.name, entry.is_symlink()
                if os.path.isdir(entry.path) if is_link else entry.is_dir():
                    inner.append((is_link, name + "/"))
                else:
                    yield name, os.path.realpath(entry.path) if is_link else f"{real}/{entry.name}"
        folders += (name for _, name in sorted(inner, reverse=True))  # the last is the next


class ImageFiles:
    """The files below a folder, which is listed when that is needed, and other names for them."""

    def __init__(self, root: str):
        self._root = root

    @cached_property
    def names(self) -> dict[str, str]:
        """Each file's name, by itself: so that a label file's names become these objects."""
        return {name: name for name, _ in list_files(self._root)}

    def resolve(self, name: str) -> str:
        """Return an image's name as the files have it; one that none has is returned as it is.

        It may be an absolute path inside the root, have backslashes or spaces around it, or lack
        its ending if only one image has the name with one. Raises ValueError for what is no name,
        or outside.
        """
        if name not in self.names:
            name = name.strip()
        if name in self.names:
            return self.names[name]
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is not a valid file name")
        os.fsencode(name)  # a ValueError for half of a surrogate pair, as JSON may have
        name = os.path.normpath(name.replace("\\", "/"))
        for absolute in (os.path.abspath, os.path.realpath):
            name = name.removeprefix(os.path.join(absolute(self._root), ""))
        if name.startswith(("/", "../")) or name in (".", ".."):
            raise ValueError(f"{name!r} is outside of the image root{self.did_you_mean(name)}")
        found = [name + end for end in ENDINGS if name + end in self.names]
        if len(found) > 1:
            raise ValueError(f"{name!r} may be {first_few(found)}: give the ending")
        return found[0] if found else name

    def did_you_mean(self, name: str) -> str:
        """Return the end of a message about a missing image: which one it may be, or ``""``.

        Its name may differ in case, spaces, ending and leading zeros, and it may lie in another
        folder, if it is the only one with so much of the path: of the longest part that fits.
        """
        near = next((self._tails[tail] for tail in tails(name) if tail in self._tails), None)
        return f"; did you mean {near}?" if near else ""

    @cached_property
    def _tails(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}  # None: of several
        for name in filter(is_image, self.names):
            for tail in tails(name):
                found[tail] = None if tail in found else name
        return found


def tails(name: str) -> list[str]:
    """Return a path and its ends, without what names differ in: ``in/cat/001.PNG``: ``cat/1``."""
    path = ANY_ENDING.sub("", fold(name.replace("\\", "/")))
    words = [ZEROS.sub("", word) for word in path.split("/")]
    return ["/".join(words[start:]) for start in range(len(words))]
