"""Files and folders that are replaced whole or not at all, killed at each step, on file systems that cannot flush."""

import errno
import itertools
import os

import pytest
from helpers import snapshot
from steps import KILLED, stop_at_each_step, write_files

from runtime.atomic import commit_folder, flush_folder, read_small_file, replace_file


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


@pytest.mark.parametrize("number", "EINVAL EOPNOTSUPP EIO EBADF EPERM ENOSYS ENOSPC EDQUOT".split())
def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch, number):
    """As on SMB, FUSE and WSL's drives; a file must be flushed, and a full disk is an error of both."""
    flush = os.fsync

    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if number in ("ENOSPC", "EDQUOT"):
        with pytest.raises(OSError):
            flush_folder(tmp_path)
        return
    with replace_file(tmp_path / "x", "w") as file:
        file.write("new")
    assert (tmp_path / "x").read_text() == "new"


def test_a_file_that_cannot_be_flushed_is_an_error(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError), replace_file(tmp_path / "x", "w") as file:
        file.write("new")
    assert not any(tmp_path.iterdir())


def test_reads_that_return_less_than_was_asked(tmp_path, monkeypatch):
    data, read = bytes(range(256)) * 40, os.read
    (tmp_path / "x").write_bytes(data)
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 1000)))
    assert read_small_file(tmp_path / "x") == data
