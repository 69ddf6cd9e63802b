"""Replace an old dataset by a new one, completely or not at all.

Everything is first written inside ``SAVE_DIR/.img2ofrecord/`` and flushed to
the disk. Only then the old manifest is removed, the new parts are moved over
the old ones, and the new manifest is moved last. If the process is killed
before that, the old dataset is unchanged; if it is killed in between, the
folder has no manifest, so that it does not pass for a finished dataset, and
the next run completes the replacement.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.atomic import flush_folder, flush_to_disk, lock_folder
from runtime.cli import InputError, first_few, uninterrupted

from .manifest import MANIFEST_NAME, PART_PATTERN, STAGING_NAME, Manifest

# In the staging folder, the manifest of the dataset that is being replaced.
REPLACED_NAME = "replaced.json"


class Staging:
    """A context manager for writing a dataset; what is not committed at its end is removed.

    ``path`` is the folder to write the new dataset's files to, ``lock`` the
    descriptor that keeps other conversions out.

    Raises InputError where no dataset can be written to the folder: it is a
    file, it contains something that this converter did not write, or another
    conversion or a training is using it.
    """

    def __init__(self, save_dir: str, part_names: list[str]) -> None:
        self.save_dir = save_dir
        self.part_names = part_names
        self.path = os.path.join(save_dir, STAGING_NAME)
        self.lock: int | None = None
        self._made_folders = []
        self._in_commit = False

    def __enter__(self) -> "Staging":
        try:
            check_target(self.save_dir, self.part_names)
            self._make_save_dir()
            self.lock = lock_folder(self.save_dir, "another conversion or a training is using")
            # Again, as another conversion may have run until the lock was held.
            self._old_parts = check_target(self.save_dir, self.part_names)
            self._recover()
            os.mkdir(self.path)
        except BaseException as error:
            self._leave()
            if isinstance(error, OSError):
                raise writing_error(self.save_dir, error) from error
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._leave()
        if isinstance(error, OSError) and _is_writing_error(error):
            raise writing_error(self.save_dir, error) from error

    def part_path(self, index: int) -> str:
        """Return the path to write a part file to."""
        return os.path.join(self.path, self.part_names[index])

    def commit(self, manifest: Manifest) -> None:
        """Replace the old dataset by the parts that were written, and last of all the manifest.

        Raises InputError where the parts cannot be moved.
        """
        staged_manifest = os.path.join(self.path, MANIFEST_NAME)
        with open(staged_manifest, "w", encoding="utf-8") as file:
            file.write(manifest.to_json())
            flush_to_disk(file)
        flush_folder(self.path)

        self._made_folders = []
        self._in_commit = True
        with uninterrupted():
            try:
                move_into_place(self.save_dir, self.part_names, self._old_parts)
            except OSError as error:
                raise InputError(
                    f"could not finish replacing the dataset in {self.save_dir}: "
                    f"{error.strerror or error}; the next run with this folder will finish it"
                ) from error
        self._in_commit = False

    def _make_save_dir(self):
        missing, folder = [], os.path.abspath(self.save_dir)
        while not os.path.lexists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            os.mkdir(folder)
            self._made_folders.append(folder)

    def _recover(self):
        """Finish the commit of a run that was killed, where it had begun, and remove its files."""
        if not os.path.lexists(self.path):
            return
        if not os.path.exists(os.path.join(self.save_dir, MANIFEST_NAME)):
            staged = _parts_of(os.path.join(self.path, MANIFEST_NAME))
            if staged:
                move_into_place(self.save_dir, staged, self._old_parts)
                self._old_parts = set(staged)
        shutil.rmtree(self.path)

    def _leave(self):
        """Remove what was not committed, then release the lock."""
        if self.lock is None:  # the files, if any, are another conversion's
            return self._remove_made_folders()
        if not self._in_commit:  # otherwise the next run needs it to finish the commit
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)
        self.lock = None
        self._remove_made_folders()

    def _remove_made_folders(self):
        for folder in reversed(self._made_folders):
            try:
                os.rmdir(folder)
            except OSError:  # it is no longer empty
                break


def move_into_place(save_dir: str, part_names: list[str], old_parts: set[str]) -> None:
    """Move the staged parts and then their manifest into the dataset's folder.

    May be repeated after it was interrupted at any point. Raises OSError.
    """
    staging = os.path.join(save_dir, STAGING_NAME)
    manifest = os.path.join(save_dir, MANIFEST_NAME)
    if os.path.exists(manifest):
        os.replace(manifest, os.path.join(staging, REPLACED_NAME))
        flush_folder(save_dir)
    for name in part_names:
        if os.path.exists(os.path.join(staging, name)):
            os.replace(os.path.join(staging, name), os.path.join(save_dir, name))
    for name in old_parts - set(part_names):
        if os.path.exists(os.path.join(save_dir, name)):
            os.remove(os.path.join(save_dir, name))
    flush_folder(save_dir)
    os.replace(os.path.join(staging, MANIFEST_NAME), manifest)
    flush_folder(save_dir)


def _listed_parts(manifest):
    """Return the names of the parts that a manifest file lists.

    Raises ValueError for a file that is not a manifest, and OSError.
    """
    with open(manifest, encoding="utf-8") as file:
        return [part.file for part in Manifest.from_json(file.read()).parts]


def _parts_of(manifest):
    """Return the same as _listed_parts, or none where there is no valid manifest."""
    try:
        return _listed_parts(manifest)
    except (FileNotFoundError, ValueError):  # or truncated, if its run was killed
        return []


def check_target(save_dir: str, part_names: list[str]) -> set[str]:
    """Return the names of the part files that a new dataset in this folder will replace.

    The folder may be missing, be empty, or contain a dataset of this converter
    (or what a killed run left of one). Other files beside such a dataset are
    left alone. Raises InputError otherwise.
    """
    if not os.path.lexists(save_dir):
        return set()
    if not os.path.isdir(save_dir):
        raise InputError(f"--save_dir {save_dir} is a file: choose a folder")
    staging = os.path.join(save_dir, STAGING_NAME)
    ours = {
        *_parts_of(os.path.join(staging, MANIFEST_NAME)),
        *_parts_of(os.path.join(staging, REPLACED_NAME)),
    }
    manifest = os.path.join(save_dir, MANIFEST_NAME)
    if os.path.lexists(manifest):
        try:
            ours.update(_listed_parts(manifest))
        except ValueError as error:
            raise InputError(
                f"{manifest}: {error}; choose another --save_dir, or remove the folder"
            ) from error
    names = [name for name in os.listdir(save_dir) if not name.startswith(".")]
    if names and not ours and not os.path.isdir(staging):
        raise InputError(
            f"--save_dir {save_dir} is not empty and contains no dataset of img2ofrecord.py "
            f"({first_few(names)}): choose another folder or empty it"
        )
    unknown = [
        name
        for name in names
        if (PART_PATTERN.match(name) or name in part_names)
        and (name not in ours or os.path.isdir(os.path.join(save_dir, name)))
    ]
    if unknown:
        raise InputError(
            f"--save_dir {save_dir} contains part files that do not belong to its dataset "
            f"({first_few(unknown)}): choose another folder or move them away"
        )
    return {name for name in ours if name in names}


@contextmanager
def dataset_in_use(folder: str | None) -> Iterator[None]:
    """Keep conversions from replacing the dataset in ``folder`` inside the ``with`` block.

    Does nothing for None or a folder that does not exist. Raises InputError
    where a conversion is running.
    """
    descriptor = None
    if folder and os.path.isdir(folder):
        descriptor = lock_folder(folder, "a conversion is writing to", shared=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def writing_error(save_dir: str, error: OSError) -> InputError:
    """Return the InputError for an OSError that was raised while a dataset was written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(
            f"not enough disk space for the dataset in {save_dir}; nothing was changed: "
            "free some space or choose another --save_dir"
        )
    path, reason = error.filename or save_dir, error.strerror or error
    return InputError(f"cannot write to {path}: {reason}; nothing was changed")


def _is_writing_error(error):
    return error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EFBIG,
        errno.EIO,
        errno.ENOTDIR,
        errno.EEXIST,
    )
