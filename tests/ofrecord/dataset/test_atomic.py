"""Files and folders that are replaced whole or not at all, killed at each step, on file systems that cannot flush."""

import errno
import fcntl
import itertools
import os

import pytest
from helpers import convert, snapshot, visible
from steps import KILLED, stop_at_each_step, write_files

from runtime.atomic import commit_folder, replace_file

NO_FLUSH = "EINVAL EOPNOTSUPP EIO EBADF EPERM ENOSYS".split()


def test_commit_folder_killed_at_each_step(tmp_path):
    folder, names = tmp_path / "d", ["a0", "a1"]
    old = {"mark": "old", **{f"a{index}": "old" for index in range(4)}, "other": "mine"}
    new = {"mark": "new", "a0": "new", "a1": "new", "other": "mine"}
    staged = {f".new/{name}": "new" for name in [*names, "mark", "rest"]}

    def action():
        commit_folder(folder, folder / ".new", "mark", names, lambda name: name.startswith("a"))

    states = []
    for code in stop_at_each_step(lambda: write_files(folder, {**old, **staged}), action):
        assert code == KILLED
        found = {name: data.decode() for name, data in snapshot(folder).items()}
        shown = {name: text for name, text in found.items() if not name.startswith(".")}
        assert shown in (old, new) or "mark" not in shown
        states.append(shown.get("mark", "none"))
        action()
        assert {name: data.decode() for name, data in snapshot(folder).items()} == new
        assert not (folder / ".new").exists()
    assert [state for state, _ in itertools.groupby(states)] == ["old", "none", "new"]


def test_commit_folder_without_the_mark_moves_nothing(tmp_path):
    write_files(tmp_path / "d", {"mark": "old", "a0": "old", ".new/a0": "new"})
    before = snapshot(tmp_path)
    with pytest.raises(OSError):  # the folder is not empty
        commit_folder(tmp_path / "d", tmp_path / "d/.new", "mark", ["a0"], lambda name: True)
    assert snapshot(tmp_path) == before


def test_replace_file_killed_at_each_step(tmp_path):
    path, states = tmp_path / "d" / "x", []

    def action():
        with replace_file(path, "w") as file:
            file.write("new")

    for code in stop_at_each_step(lambda: write_files(tmp_path / "d", {"x": "old"}), action):
        assert code == KILLED
        states.append(path.read_text())
        action()
        assert snapshot(tmp_path / "d") == {"x": b"new"}
    assert [state for state, _ in itertools.groupby(states)] == ["old", "new"]


def test_replace_file_leaves_the_old_one_where_its_block_raises(tmp_path):
    write_files(tmp_path / "d", {"x": "old"})
    with pytest.raises(KeyError), replace_file(tmp_path / "d" / "x", "w") as file:
        file.write("half")
        raise KeyError
    assert snapshot(tmp_path / "d") == {"x": b"old"}


FAULTS = {  # of a call for a file or a folder: what SMB, FUSE and WSL answer, and a disk; the exit code
    **{f"a folder's flush: {name}": ("fsync", "folder", name, 0) for name in NO_FLUSH},
    **{f"a folder's flush: {name}": ("fsync", "folder", name, 2) for name in ("ENOSPC", "EDQUOT")},
    **{f"a file's flush: {name}": ("fsync", "file", name, 2) for name in ("EIO", "EINVAL")},
    **{f"a lock: {name}": ("flock", "folder", name, 0) for name in ("ENOLCK", "EOPNOTSUPP")},
}


@pytest.mark.parametrize("name, kind, number, code", FAULTS.values(), ids=FAULTS)
def test_faults_of_a_file_system(converted, dataset, monkeypatch, name, kind, number, code):
    """A file must be flushed, a folder should; without locks there is a warning. Nothing is lost."""
    module, number, before = (
        fcntl if name == "flock" else os,
        getattr(errno, number),
        snapshot(dataset),
    )
    function = getattr(module, name)

    def fail(descriptor, *more):
        if os.path.isdir(f"/proc/self/fd/{descriptor}") == (kind == "folder"):
            raise OSError(number, os.strerror(number))
        return function(descriptor, *more)

    monkeypatch.setattr(module, name, fail)
    result = convert("--save_dir", dataset, "--part_num", 3)
    assert result.code == code and "Traceback" not in result.err, result
    assert (" is on a file system without locks" in result.err) == (name == "flock"), result
    assert code == 0 or os.strerror(number) in result.err.splitlines()[-1], result
    assert code == 0 or visible(dataset) == before
    monkeypatch.undo()
    assert convert("--save_dir", dataset).code == 0 and snapshot(dataset) == snapshot(converted)


def test_reads_that_return_less_than_was_asked(converted, tmp_path, monkeypatch):
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 100)))
    assert convert("--save_dir", tmp_path / "d").code == 0
    assert snapshot(tmp_path / "d") == snapshot(converted)
