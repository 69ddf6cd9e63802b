"""Manifests from strangers: one line from every command, and nothing changed because of them."""

import json
import random
import shutil

import pytest
from damage import MANIFEST, ofrecord, rewrite_manifest
from helpers import assert_one_error, convert, read_manifest, snapshot


def copied(action, folder):
    """The Result of ``python -m ofrecord merge`` or ``export``, whose new folder is removed again."""
    result = ofrecord(action, folder, folder.parent / "copy")
    assert (folder.parent / "copy").exists() == (result.code == 0), result
    shutil.rmtree(folder.parent / "copy", ignore_errors=True)
    return result


COMMANDS = {
    "check": lambda folder: ofrecord("check", folder),
    "show": lambda folder: ofrecord("show", folder),
    "index": lambda folder: ofrecord("index", folder),
    "convert": lambda folder: convert("--save_dir", folder),
    "merge": lambda folder: copied("merge", folder),
    "export": lambda folder: copied("export", folder),
}

ODD = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308),
    *("", "x", "1", "../victim", "/etc/passwd", "part-0/../../victim", "part-9", "\0", "\ud800"),
    *("x" * 5000, "\n", "part-٣", [], [0], [None], [[]], [1e308] * 3, {}, {"x": 1}, {"0": -50}),
    *([{}], [[0] * 256], [["x"] * 256], ["a"] * 10, list(range(10)), [{"file": "../victim"}]),
]


def places(value, path=()):
    """Every place in a value of JSON, as the keys and indices that lead to it; of lists the first."""
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value[:1])
        for key, each in inner:
            yield (*path, key)
            yield from places(each, (*path, key))


def changed(fields, path, value):
    """A copy of the fields with another value in one place."""
    fields = json.loads(json.dumps(fields))
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return fields


@pytest.fixture
def folder(dataset):
    (dataset.parent / "victim").write_text("mine")
    return dataset


def assert_nothing_changed(folder, before, result, command):
    """But for what the command makes: a dataset, a manifest, a contact sheet."""
    after = snapshot(folder.parent)
    assert after["victim"] == b"mine"
    if result.code or command == "check":
        assert after == before, result


@pytest.mark.parametrize("command", COMMANDS)
def test_odd_values_in_every_place(folder, command):
    """Each is refused in one line, or it is a value that may be there."""
    fields, rng, refused = read_manifest(folder), random.Random(command), 0
    whole = shutil.copytree(folder, folder.parent.parent / f"{folder.parent.name}-whole")
    for path in places(fields):
        for value in rng.sample(ODD, 6 if command == "check" else 3):
            rewrite_manifest(folder, **changed(fields, path, value))
            before = snapshot(folder.parent)
            result = COMMANDS[command](folder)
            assert "Traceback" not in result.err and result.code in (0, 2), (path, value, result)
            if result.code == 2 and command != "index":
                refused += 1
                # Records without such a feature are a line each, at most twenty and a count.
                most = 22 if command == "check" and "feature" in path[0] else 2
                assert 0 < result.err.count(": error: ") <= most, (path, value, result)
                assert max(map(len, result.err.splitlines())) < 600, (path, value, result)
            assert_nothing_changed(folder, before, result, command)
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
    assert command == "index" or refused > 50


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


def make_folder(path):
    path.unlink()
    path.mkdir()


FILES = {
    "empty": lambda path: path.write_text(""),
    "no JSON": lambda path: path.write_bytes(b"\xff\xfe{"),
    "half": lambda path: path.write_bytes(path.read_bytes()[:900]),
    "nested": lambda path: path.write_text("[" * 200_000),
    "a number": lambda path: path.write_text("9" * 10_000),
    "NaN": lambda path: path.write_text("NaN"),
    "a list": lambda path: path.write_text("[1]"),
    "a key twice": lambda path: path.write_text(path.read_text().replace("{", '{"layout": 2,', 1)),
    "large": lambda path: path.write_text(" " * (2**26 + 1)),
    "a link to itself": link_to_itself,
    "a folder": make_folder,
}


@pytest.mark.parametrize("damage", FILES.values(), ids=list(FILES))
def test_files_that_are_no_manifest(folder, damage):
    damage(folder / MANIFEST)
    parts = {path.name: path.read_bytes() for path in folder.glob("part-*")}
    for command in ("check", "show", "convert"):
        assert_one_error(COMMANDS[command](folder), MANIFEST, started=command == "convert")
    assert {path.name: path.read_bytes() for path in folder.glob("part-*")} == parts
    result = COMMANDS["index"](folder)
    assert result.code == 0 or result.err.count(": error: ") == 1, result


@pytest.mark.parametrize("name", ["../victim", "/etc/hostname", "part-0/../../victim", "part-0\n"])
def test_no_name_is_read_from_a_staged_manifest(folder, name):
    """A conversion that seems to have been killed in its commit, with names that lead elsewhere."""
    fields = read_manifest(folder)
    fields["parts"][1]["file"] = name
    staging = folder / ".img2ofrecord"
    staging.mkdir()
    rewrite_manifest(folder, parts=fields["parts"])
    (folder / MANIFEST).rename(staging / MANIFEST)
    result = COMMANDS["convert"](folder)
    assert_nothing_changed(folder, {}, result._replace(code=0), "convert")
    assert result.code in (0, 2) and "Traceback" not in result.err, result
