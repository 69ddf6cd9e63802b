"""Datasets on disk: damaged, of strangers, of the version before, and on file systems with faults."""

import errno
import fcntl
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from damage import MANIFEST, cut, flip, make_old, rewrite_manifest
from helpers import assert_one_error, convert, read_manifest, snapshot, visible

from ofrecord.dataset.manifest import digest_of
from ofrecord.dataset.open_dataset import open_dataset
from runtime.cli import InputError

HIDDEN = ".img2ofrecord"


def problem_of(folder, **options):
    """What open_dataset says of a dataset, or None."""
    try:
        open_dataset(str(folder), **options)
    except InputError as error:
        (line,) = error.lines()
        return line


# -- compared with its manifest -----------------------------------------------------------


def hide(folder, *names):
    """Leave files in the hidden folder, as a commit does that is killed."""
    (folder / HIDDEN).mkdir()
    for name in names:
        (folder / name).rename(folder / HIDDEN / name)


CHANGES = {
    "a part flipped": (lambda d: flip(d / "part-3", 99), "part-3 was changed or damaged"),
    "the table flipped": (lambda d: flip(d / "images.csv", 9), "images.csv was changed or damaged"),
    "a part cut off": (lambda d: cut(d / "part-3", -1), "has 2,908 bytes and should have 2,909"),
    "a part missing": (lambda d: (d / "part-3").unlink(), "part-3 is missing"),
    "a part too many": (lambda d: (d / "part-5").touch(), "part-5 does not belong to this dataset"),
    "no manifest": (lambda d: (d / MANIFEST).unlink(), "has part files but no dataset.json"),
    "a manifest flipped": (lambda d: flip(d / MANIFEST, 20), "dataset.json: changed or damaged"),
    "a mark": (lambda d: hide(d, MANIFEST), "at its very end: the same command finishes it"),
}


@pytest.mark.parametrize("change, text", CHANGES.values(), ids=CHANGES)
def test_what_is_not_as_the_manifest_says(dataset, change, text):
    change(dataset)
    assert text in problem_of(dataset) and dataset.name in problem_of(dataset)


def test_a_rank_hashes_its_own_parts(dataset):
    flip(dataset / "part-3", 99)
    assert problem_of(dataset, rank=0, world_size=3) is None
    assert "part-3" in problem_of(dataset, rank=1, world_size=3)


def test_a_dataset_of_the_version_before(dataset, converted):
    """It is replaced by the converter, but for what is not its own."""
    make_old(dataset)
    (dataset / "images.csv").write_text("mine")
    before = snapshot(dataset)
    assert_one_error(convert("--save_dir", dataset), "does not belong to its dataset (images.csv)")
    assert snapshot(dataset) == before
    (dataset / "images.csv").unlink()
    assert convert("--save_dir", dataset).code == 0
    assert snapshot(dataset) == snapshot(converted)


def test_a_commit_of_the_version_before_that_was_killed(dataset, converted):
    """Its mark may be half written."""
    make_old(dataset)
    hide(dataset, *(path.name for path in dataset.iterdir()))
    cut(dataset / HIDDEN / MANIFEST, -9)
    (dataset / HIDDEN / "part-0.json").write_text("{}")
    assert convert("--save_dir", dataset).code == 0
    assert snapshot(dataset) == snapshot(converted)


# -- manifests of strangers ---------------------------------------------------------------

ODD = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308),
    *("", "x", "1", "../victim", "/etc/passwd", "part-0/../../victim", "part-9", "\0", "\ud800"),
    *("x" * 5000, "\n", "part-٣", [], [0], [None], [[]], [1e308] * 3, {}, {"x": 1}, {"0": -50}),
    *([{}], [[0] * 256], [["x"] * 256], ["a"] * 10, list(range(10)), [{"file": "../victim"}]),
]


def places(value):
    """Every place in a value of JSON: the dictionary or list that holds it, and its key; of lists the first."""
    if isinstance(value, (dict, list)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value[:1]):
            yield value, key
            yield from places(each)


def test_odd_values_in_every_place(dataset):
    """Each is refused in one line, or it is a value that may be there; nothing is written because of it."""
    fields, rng, refused = read_manifest(dataset), random.Random(0), 0
    whole = shutil.copytree(dataset, dataset.parent / "whole")
    (dataset.parent / "victim").write_text("mine")
    for number, (holder, key) in enumerate(list(places(fields))):
        right = holder[key]
        for value in rng.sample(ODD, 6):
            holder[key] = value
            rewrite_manifest(dataset, **fields)
            problem = problem_of(dataset)
            assert problem is None or len(problem) < 600
            refused += problem is not None
        holder[key] = right
        if number % 4 == 0:
            result = convert("--save_dir", dataset, "--part_num", 2)
            assert result.code in (0, 2) and result.err.count(": error: ") <= 1, (key, value)
            assert (dataset.parent / "victim").read_text() == "mine"
            shutil.rmtree(dataset)
            shutil.copytree(whole, dataset)
    assert refused > 200


FILES = {
    "nested": "[" * 200_000,
    "a key twice": '{"layout": 3, "layout": 3, "sha256": ""}',
    "no parts": json.dumps({"layout": 2, "sha256": digest_of({"layout": 2})}),
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_files_that_are_no_manifest(dataset, text):
    (dataset / MANIFEST).write_text(text)
    assert MANIFEST in problem_of(dataset)
    before = snapshot(dataset)
    assert_one_error(convert("--save_dir", dataset), MANIFEST)
    assert snapshot(dataset) == before


def test_no_name_is_read_from_a_staged_manifest(dataset):
    """A conversion that seems to have been killed in its commit, with names that lead elsewhere."""
    (dataset.parent / "victim").write_text("mine")
    parts = read_manifest(dataset)["parts"]
    parts[1]["file"] = "../../victim"
    rewrite_manifest(dataset, parts=parts)
    hide(dataset, MANIFEST)
    result = convert("--save_dir", dataset)
    assert result.code in (0, 2) and "Traceback" not in result.err, result
    assert (dataset.parent / "victim").read_text() == "mine"


STRANGERS = [
    (HIDDEN, Path.touch),
    (HIDDEN, lambda path: path.symlink_to(path.parent.parent)),
    (f"{HIDDEN}/thesis.txt", os.mkfifo),
    (f"{HIDDEN}/part-1", Path.mkdir),
]


@pytest.mark.parametrize("name, put", STRANGERS)
def test_what_is_not_of_the_dataset_is_refused(dataset, name, put):
    """Wherever it is, and whatever."""
    (dataset / name).parent.mkdir(exist_ok=True)
    put(dataset / name)
    before = snapshot(dataset.parent)
    assert_one_error(convert("--save_dir", dataset), Path(name).name)
    assert snapshot(dataset.parent) == before and os.path.lexists(dataset / name)


# -- faults of file systems ---------------------------------------------------------------

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
