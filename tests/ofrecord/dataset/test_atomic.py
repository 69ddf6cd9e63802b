"""File systems that cannot flush or lock, or return less than was asked for: what is refused, and nothing is lost."""

import errno
import fcntl
import os

import pytest
from helpers import assert_one_error, convert, snapshot, visible

FAULTS = [  # of a call for a file or a folder: what SMB, FUSE and WSL answer, and a disk; the exit code
    *((os, "fsync", "folder", number, 0) for number in (errno.EINVAL, errno.EIO, errno.EPERM)),
    *((os, "fsync", "folder", number, 2) for number in (errno.ENOSPC, errno.EDQUOT)),
    (os, "fsync", "file", errno.EINVAL, 2),
    (fcntl, "flock", "folder", errno.ENOLCK, 0),
]


@pytest.mark.parametrize("module, name, kind, number, code", FAULTS)
def test_faults_of_a_file_system(converted, dataset, monkeypatch, module, name, kind, number, code):
    """A file must be flushed, a folder should; without locks there is a warning. Nothing is lost."""
    function, before = getattr(module, name), snapshot(dataset)

    def fail(descriptor, *more):
        if os.path.isdir(f"/proc/self/fd/{descriptor}") == (kind == "folder"):
            raise OSError(number, os.strerror(number))
        return function(descriptor, *more)

    monkeypatch.setattr(module, name, fail)
    result = convert("--save_dir", dataset, "--part_num", 3)
    assert (" is on a file system without locks" in result.err) == (name == "flock"), result
    if code:
        assert_one_error(result, os.strerror(number), started=True)
        assert visible(dataset) == before
    assert result.code == code, result
    monkeypatch.undo()
    assert convert("--save_dir", dataset).code == 0 and snapshot(dataset) == snapshot(converted)


def test_reads_that_return_less_than_was_asked(converted, tmp_path, monkeypatch):
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 100)))
    assert convert("--save_dir", tmp_path / "d").code == 0
    assert snapshot(tmp_path / "d") == snapshot(converted)
