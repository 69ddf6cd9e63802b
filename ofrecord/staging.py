"""Putting a new dataset in the place of an old one, whole or not at all.

Everything is first written inside ``SAVE_DIR/.img2ofrecord/`` and flushed to
the disk. Only then the old manifest goes, the new parts move over the old
ones, and the new manifest is moved in last. Killed before, the old dataset is
untouched; killed between, the folder has no manifest, so that nothing takes
it for finished, and the next run clears it up.
"""

import errno
import fcntl
import os
import shutil
from contextlib import contextmanager

from .cli import InputError, some, talk, uninterrupted
from .manifest import MANIFEST_NAME, PART_PATTERN, STAGING_NAME, Manifest

# In the staging folder: the manifest of the dataset that is being replaced.
REPLACED_NAME = "replaced.json"


class Staging:
    """Use as a context manager; what is not committed at its end is removed.

    ``path`` is the folder to write the new dataset's files into, ``lock`` the
    descriptor that keeps other converters out.

    Raises InputError where the folder cannot take a dataset: it is a file, it
    holds something that this converter did not write, or another converter is
    at work on it.
    """

    def __init__(self, save_dir, part_names):
        self.save_dir = save_dir
        self.part_names = list(part_names)
        self.path = os.path.join(save_dir, STAGING_NAME)
        self._made_folders = []
        self._in_commit = False
        self.lock = None

    def __enter__(self):
        try:
            check_target(self.save_dir, self.part_names)
            self._make_save_dir()
            self.lock = lock_folder(self.save_dir, "another converter, or a training, is using")
            # Again: until the lock was held, another converter may have been at work.
            self._old_parts = check_target(self.save_dir, self.part_names)
            self._clear_up()
            os.mkdir(self.path)
        except BaseException as error:
            self._leave()
            if isinstance(error, OSError):
                raise writing_error(self.save_dir, error)
            raise
        return self

    def __exit__(self, kind, error, trace):
        self._leave()
        if isinstance(error, OSError) and _is_writing_error(error):
            raise writing_error(self.save_dir, error) from error

    def part_path(self, index):
        return os.path.join(self.path, self.part_names[index])

    def commit(self, manifest):
        """Put the parts that were written in place of the old dataset, and the manifest last."""
        staged_manifest = os.path.join(self.path, MANIFEST_NAME)
        with open(staged_manifest, "w", encoding="utf-8") as file:
            file.write(manifest.to_json())
            flush_to_disk(file)
        flush_folder(self.path)

        self._made_folders = []
        self._in_commit = True
        with uninterrupted():
            try:
                put_in_place(self.save_dir, self.part_names, self._old_parts)
            except OSError as error:
                raise InputError("stopped while replacing the dataset in {}: {}; the next run on it will finish that"
                                 .format(self.save_dir, error.strerror or error))
        self._in_commit = False

    def _make_save_dir(self):
        missing, folder = [], os.path.abspath(self.save_dir)
        while not os.path.lexists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            os.mkdir(folder)
            self._made_folders.append(folder)

    def _clear_up(self):
        """Clear up after a run that was killed: finish its commit where that had begun, then remove its folder."""
        if not os.path.lexists(self.path):
            return
        if not os.path.exists(os.path.join(self.save_dir, MANIFEST_NAME)):
            staged = _parts_of(os.path.join(self.path, MANIFEST_NAME))
            if staged:
                put_in_place(self.save_dir, staged, self._old_parts)
                self._old_parts = set(staged)
        shutil.rmtree(self.path)

    def _leave(self):
        """Remove what was not committed, then let the next converter in."""
        if self.lock is None:  # another converter's files are not ours to remove
            return self._remove_made_folders()
        if not self._in_commit:  # else the next run needs it, to finish the commit
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)
        self.lock = None
        self._remove_made_folders()

    def _remove_made_folders(self):
        for folder in reversed(self._made_folders):
            try:
                os.rmdir(folder)
            except OSError:  # somebody put something in
                break


def put_in_place(save_dir, part_names, old_parts):
    """Move the staged parts and then their manifest into the dataset's folder.

    May be begun again after it was killed at any point.
    """
    staging = os.path.join(save_dir, STAGING_NAME)
    manifest = os.path.join(save_dir, MANIFEST_NAME)
    if os.path.exists(manifest):
        os.replace(manifest, os.path.join(staging, REPLACED_NAME))
        flush_folder(save_dir)
    for name in part_names:
        if os.path.exists(os.path.join(staging, name)):
            os.replace(os.path.join(staging, name), os.path.join(save_dir, name))
    for name in set(old_parts) - set(part_names):
        if os.path.exists(os.path.join(save_dir, name)):
            os.remove(os.path.join(save_dir, name))
    flush_folder(save_dir)
    os.replace(os.path.join(staging, MANIFEST_NAME), manifest)
    flush_folder(save_dir)


def _listed_parts(manifest):
    """The names of the parts that a manifest file lists. Raises ValueError for a file that is none, and OSError."""
    with open(manifest, encoding="utf-8") as file:
        return [part.file for part in Manifest.from_json(file.read()).parts]


def _parts_of(manifest):
    """As _listed_parts; none where there is no whole manifest."""
    try:
        return _listed_parts(manifest)
    except (FileNotFoundError, ValueError):  # cut off with the run that wrote it
        return []


def check_target(save_dir, part_names):
    """May a dataset be written to this folder? Return the names of the part files to replace.

    Yes where there is no folder yet, an empty one, or a dataset of this
    converter (or what a killed run left of one). Other files beside such a
    dataset are left alone. Raises InputError otherwise.
    """
    if not os.path.lexists(save_dir):
        return set()
    if not os.path.isdir(save_dir):
        raise InputError("--save_dir {} is a file; name a folder".format(save_dir))
    staging = os.path.join(save_dir, STAGING_NAME)
    ours = {*_parts_of(os.path.join(staging, MANIFEST_NAME)), *_parts_of(os.path.join(staging, REPLACED_NAME))}
    manifest = os.path.join(save_dir, MANIFEST_NAME)
    if os.path.lexists(manifest):
        try:
            ours.update(_listed_parts(manifest))
        except ValueError as error:
            raise InputError("{}: {}; choose another --save_dir, or remove the folder".format(manifest, error))
    names = [name for name in os.listdir(save_dir) if not name.startswith(".")]
    if names and not ours and not os.path.isdir(staging):
        raise InputError("--save_dir {} is not empty and holds no dataset of this converter ({}): "
                         "choose another folder or empty it".format(save_dir, some(names)))
    strangers = [name for name in names if (PART_PATTERN.match(name) or name in part_names) and
                 (name not in ours or os.path.isdir(os.path.join(save_dir, name)))]
    if strangers:
        raise InputError("--save_dir {} holds part files that are not of the dataset there ({}): "
                         "choose another folder or move them away".format(save_dir, some(strangers)))
    return {name for name in ours if name in names}


def lock_folder(folder, busy, shared=False):
    """Hold a folder for this process until the descriptor returned is closed.

    ``shared``: together with others who only read what is in it. Raises
    InputError, which begins with ``busy``, where somebody else holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            os.close(descriptor)
            raise InputError("{} {}: wait for it to end".format(busy, folder))
        talk("{} is on a file system without locks ({}): start no second program on it"
             .format(folder, error.strerror), "warning")
    return descriptor


@contextmanager
def dataset_in_use(folder):
    """No converter replaces the dataset in ``folder`` meanwhile. Raises InputError where one is at it.

    None, or a folder that does not exist, is nothing to hold.
    """
    descriptor = None
    if folder and os.path.isdir(folder):
        descriptor = lock_folder(folder, "a converter is writing to", shared=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def writing_error(save_dir, error):
    """An OSError of writing a dataset, as one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError("no room on the disk for the dataset in {}: nothing was changed; "
                          "free some space or choose another --save_dir".format(save_dir))
    return InputError("cannot write to {}: {}; nothing was changed"
                      .format(error.filename or save_dir, error.strerror or error))


def _is_writing_error(error):
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,
                           errno.EFBIG, errno.EIO, errno.ENOTDIR, errno.EEXIST)


def flush_to_disk(file):
    file.flush()
    os.fsync(file.fileno())


def flush_folder(path):
    """Make the names in a folder (renames, removals) survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

