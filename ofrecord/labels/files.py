"""Image files: those below a folder, and the names that label files have for them."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cached_property

from runtime.atomic import read_small_file
from runtime.cli import InputError, first_few, os_errors

from ..images import IMAGE_EXTENSIONS

# What systems put beside people's files: macOS, Linux, Windows, Synology, QNAP.
SYSTEM_FOLDERS = {
    *("__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information"),
    *("@eaDir", "#recycle", "@Recycle"),
}
MAX_TEXT = 2**32  # bytes of a text file
ENDING = re.compile(r"\.[a-z][a-z0-9]{1,4}$")
ZEROS = re.compile("(?<![0-9])0+(?=[0-9])")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own."""
    return name[:1] == "." or name in SYSTEM_FOLDERS


def is_image(name: str) -> bool:
    """Whether a file name is an image's, by its ending; hidden files are none."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not is_hidden(name)


def fold(name: str) -> str:
    """Return a name without its case, its spaces and its form of Unicode."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def kinds_of(names: Iterable[str]) -> str:
    """Return how many files have which ending, for the ten most frequent ones."""
    counts = Counter(sorted(os.path.splitext(name)[1].lower() for name in names))
    most = counts.most_common(10)  # of those of one number, the first in the alphabet
    return ", ".join(f"{number:,} {end or 'without extension'}" for end, number in most)


def read_text(path: str, what: str, hint: str) -> str:
    """Return a text file's contents. Raises InputError, which calls the file ``what``."""
    try:
        with os_errors(f"read the {what}", path, hint):
            return read_small_file(path, MAX_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"the {what} {path} is not UTF-8 text: save it as UTF-8") from None


def list_images(root: str, folder: str = "") -> tuple[dict[str, str], list[str]]:
    """Return the files below ``folder``: {name: real path} of images by ending, names of others.

    Names are relative to ``root``. Hidden files and folders are left out; links to folders are
    followed, but each folder is listed once. Raises InputError for one that cannot be listed.
    """
    images, others, seen, folders = {}, [], set(), [folder]
    while folders:
        folder = folders.pop()
        path = os.path.join(root, folder)
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        with os_errors("list", path), os.scandir(path) as entries:
            for entry in entries:
                name, is_link = folder + entry.name, entry.is_symlink()
                if is_hidden(entry.name):
                    continue
                if os.path.isdir(entry.path) if is_link else entry.is_dir():
                    folders.append(name + "/")
                elif is_image(entry.name):
                    file = f"{real}/{entry.name}"
                    images[name] = os.path.realpath(file) if is_link else file
                else:
                    others.append(name)
    return images, others


class ImageFiles:
    """The images below a folder, and the names that a label file may have for them."""

    def __init__(self, root: str):
        self.root = root
        self.names = set(list_images(root)[0])
        self._roots = [os.path.join(path(root), "") for path in (os.path.abspath, os.path.realpath)]

    def resolve(self, name: str) -> str:
        """Return an image's name as the files have it; one that none has is returned as it is.

        It may be an absolute path inside the root, have backslashes, or lack its ending if only
        one image has the name with one. Raises ValueError for what is no name, or outside.
        """
        if name in self.names:
            return name
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is not a valid file name")
        os.fsencode(name)  # a ValueError for half of a surrogate pair, as JSON may have
        if "\\" in name and not self._is_file(name):
            name = name.replace("\\", "/")
        name = os.path.normpath(name)
        for root in self._roots:
            name = name.removeprefix(root)
        if name.startswith(("/", "../")) or name in (".", ".."):
            near = self.similar(name)
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"{name!r} is outside of the image root{hint}")
        if name in self.names or self._is_file(name):
            return name
        found = self._without_ending.get(name, [name])
        if len(found) > 1:
            raise ValueError(f"{name!r} may be {first_few(found)}: give the ending")
        return found[0]

    def _is_file(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.root, name))

    @cached_property
    def _without_ending(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self.names:
            found[os.path.splitext(name)[0]].append(name)
        return dict(found)

    def similar(self, name: str) -> str | None:
        """Return the image that a missing one may be, or None.

        Its name may differ in case, spaces, ending and leading zeros, and it may lie in another
        folder, if it is the only one with so much of the path: of the longest part that fits.
        """
        return next((self._tails[tail] for tail in tails(name) if tail in self._tails), None)

    @cached_property
    def _tails(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for name in self.names:
            for tail in tails(name):
                found[tail] = None if tail in found else name
        return found


def tails(name: str) -> list[str]:
    """Return a path and its ends, without what names differ in: ``in/cat/001.PNG``: ``cat/1``."""
    path = ENDING.sub("", fold(name.replace("\\", "/")))
    words = [ZEROS.sub("", word) for word in path.split("/")]
    return ["/".join(words[start:]) for start in range(len(words))]


def similar_names(root: str, missing: list[str]) -> dict[str, str | None]:
    """Return, for each image that is missing below a folder, the one that it may be, or None."""
    files = ImageFiles(root) if missing else None
    return {name: files.similar(name) for name in missing}
