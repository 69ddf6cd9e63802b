"""``python -m ofrecord check``: what is wrong, by part, record and file; copies; what every command refuses."""

import importlib
import os
import re
import shutil
from functools import partial
from tempfile import TemporaryDirectory

import damage
import making
import numpy as np
import pytest
from damage import change_record, cut, flip, ofrecord, rewrite_manifest, set_image, set_label
from helpers import PROJECT, assert_one_error, convert, read_manifest, run_python, snapshot
from making import TUTORIAL, change_table, encoded, make, numbered, run_typed

from runtime.atomic import folder_lock

FIRST = TUTORIAL[0][0]  # the file of the first record
ACTIONS = ["check", "show", "index", "merge", "export"]


def run(action, *folders, new):
    """A command, or the converter; with a target, ``new``, if it needs one."""
    if action == "convert":
        return convert("--save_dir", *folders)
    return ofrecord(action, *folders, *([new] if action in ("merge", "export") else []))


def test_a_good_and_a_damaged_dataset(dataset):
    """As people call it, with its workers: the parts on stdout, all problems on stderr."""
    valid = r"^part-(\d): 10 records, [\d,]+ bytes, valid$"
    result = run_python("-m", "ofrecord", "check", dataset)
    assert result.code == 0 and result.err == "", result
    assert re.findall(valid, result.out, re.M) == list("01234")
    assert result.out.splitlines()[-1] == f"{dataset}: 50 records, 14,997 bytes, all valid"
    flip(dataset / "part-1", 150)
    cut(dataset / "part-4", -1)
    result = run_python("-m", "ofrecord", "check", dataset)
    assert result.code == 2 and re.findall(valid, result.out, re.M) == list("023"), result
    lines = [line.partition("ofrecord: error: ")[2] for line in result.err.splitlines()]
    place = f"{dataset}/part-1, record 0 ({TUTORIAL[10][0]}): invalid image: the PNG is damaged"
    assert any(line.startswith(place) for line in lines), result
    place = f"{dataset}/part-4, record 9 ({TUTORIAL[49][0]}): "
    assert any(line.startswith(place) for line in lines), result
    assert all(lines) and lines[-1].endswith(f"problems in {dataset}")
    assert "the parts say" not in result.err  # what only follows from the damage


def lie_about_parts(dataset):
    parts = read_manifest(dataset)["parts"]
    parts[0]["num_records"], parts[1]["num_records"] = 11, 9
    rewrite_manifest(dataset, parts=parts)


RECORD = f"part-0, record 0 ({FIRST}): "
BLUE = np.full((28, 28, 3), (200, 0, 0), np.uint8)
ORDER = "images.csv: its rows are not the records in order"
WRONG = {  # how a dataset is changed, and what a line has
    "other bytes": (lambda d: flip(d / "part-1", 150), ["part-1: its bytes are not those that were written"]),
    "missing": (lambda d: (d / "part-3").unlink(), ["part-3 is missing"]),
    "not listed": (lambda d: shutil.copy(d / "part-0", d / "part-7"), ["part-7", "does not belong to this dataset"]),
    "another class": (lambda d: change_record(d, set_label(10)), ["dataset.json says number of label 10: 0, and the parts say 1"]),
    "another format": (lambda d: change_record(d, set_image(encoded(".jpg", BLUE[..., 0]))), ["dataset.json says image_format PNG, and the parts say None"]),
    "colour": (lambda d: change_record(d, set_image(encoded(".png", BLUE))), ["dataset.json says channels 1, and the parts say 3"]),
    "two labels": (lambda d: change_record(d, lambda f: f["labels"].int32_list.value.append(1)), [RECORD, "one label"]),
    "no table": (lambda d: (d / "images.csv").unlink(), ["images.csv: No such file"]),
    "a byte of the table": (lambda d: flip(d / "images.csv", 60), ["images.csv was changed or damaged"]),
    "an open quote": (lambda d: (d / "images.csv").open("a").write('"'), ["images.csv, line 52: "]),
    "a row more": (lambda d: change_table(d, lambda rows: [*rows, rows[-1]._replace(record=10)]), [ORDER]),
    "rows changed places": (lambda d: change_table(d, lambda rows: rows[1::-1] + rows[2:]), [ORDER]),
    "another digest": (lambda d: change_table(d, lambda rows: [rows[0]._replace(sha256="0" * 16), *rows[1:]]), [RECORD, "images.csv has another label or SHA-256"]),
    "numbers of records": (lie_about_parts, ["part-0: dataset.json says that it has 11 records"]),
    "sizes": (lambda d: rewrite_manifest(d, width=32, height=32), ["says width 32, and the parts say 28"]),
    "plain JPEG": (lambda d: rewrite_manifest(d, plain_jpeg=True), ["says plain_jpeg True, and the parts say False"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_part_record_file_and_reason_are_named(dataset, case):
    damage, texts = WRONG[case]
    damage(dataset)
    result = ofrecord("check", dataset)
    assert result.code == 2, result
    assert any(all(text in line for text in texts) for line in result.err.splitlines()), result
    assert "Traceback" not in result.err and "all valid" not in result.out


def test_parts_without_a_manifest(tmp_path):
    folder = making.foreign(tmp_path / "d", features=making.FEATURES, parts="part-{:05d}")
    shutil.copy(folder / "part-00000", folder / "part-00007")
    result = ofrecord("check", folder, *making.OTHER_NAMES)
    assert result.code == 0, result
    assert "56 records" in result.out and "there is no dataset.json" in result.out
    assert f"{folder}: 7 images are copies of others\n" in result.out
    (folder / "part-00000").unlink()
    assert_one_error(ofrecord("check", folder, *making.OTHER_NAMES), "part-00000 is missing")


# -- copies -----------------------------------------------------------------------------------


def test_copies_are_named(tmp_path):
    """In two datasets by their tables: no image is read, not even one that is damaged."""
    seeds = {
        "d": {"x": [1, 2, 3, 1, 1], "y": [3, 5, 2, 1]},
        "e": {"x": [11, 12, 3], "y": [14, 1, 16]},
        "f": {"v": [14, 1, 16], "w": [11, 12, 3]},  # those of e under other names and numbers
    }
    for name, classes in seeds.items():
        files = {
            key: {f"{n}.png": seed for n, seed in enumerate(of)} for key, of in classes.items()
        }
        make(tmp_path / name, files, part_num=2)
    d, e, f = (tmp_path / name for name in seeds)
    result = ofrecord("check", d)
    assert result.out.endswith(f"all valid\n{d}: 5 images are copies of others\n"), result
    one = f"{d}/part-0, record 1 (x/1.png), label x and {d}/part-1, record 2 (y/2.png), label y\n"
    assert f"warning: the same image with different labels: {one}" in result.err
    flip(e / "part-0", 100)
    result = ofrecord("check", d, e)
    assert result.code == 0 and f"{e}: 2 images are copies of others in {d}: " in result.out, result
    for what, one, other in ("", "part-0, record 2 (x/2.png), label x", "part-0, record 2 (x/2.png), label x"), (" with different labels", "part-0, record 0 (x/0.png), label x", "part-1, record 1 (y/1.png), label y"):  # fmt: skip
        assert f"warning: the same image{what}: {d}/{one} and {e}/{other}\n" in result.err, result
    result = ofrecord("check", e, f)  # these have other classes, so their labels say nothing
    assert "6 images are copies" in result.out and "with different" not in result.err
    change_table(e, lambda rows: [row._replace(sha256=f"{row.record:016}") for row in rows])
    result = ofrecord("check", d, e)
    assert f"{e}: 0 images are copies of others in {d}\n" in result.out, result
    flip(e / "images.csv", 60)
    assert_one_error(ofrecord("check", d, e), f"{e}/images.csv")


# -- what every command refuses ---------------------------------------------------------------


def half_moved(folder):
    (folder / ".img2ofrecord").mkdir()
    for name in ("part-1", "part-2", "dataset.json"):
        (folder / name).rename(folder / ".img2ofrecord" / name)


@pytest.mark.parametrize("action", ACTIONS)
def test_what_is_no_whole_dataset(dataset, tmp_path, action):
    act = partial(run, action, new=tmp_path / "new")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nothing")
    for name in ("nowhere", "empty", "file", "link"):
        assert_one_error(act(tmp_path / name), f"{tmp_path}/{name}")
    with folder_lock(dataset, "in use"):
        assert_one_error(act(dataset), str(dataset), "wait for it to end")
    for change, texts in (damage.make_old, ["dataset.json: an earlier version", "ofrecord index"]), (half_moved, ["interrupted"]):  # fmt: skip
        folder = shutil.copytree(dataset, tmp_path / change.__name__)
        change(folder)
        before = snapshot(folder)
        if change is half_moved or action != "index":
            assert_one_error(act(folder), str(folder), *texts)
            assert snapshot(folder) == before
    assert not (tmp_path / "new").exists()


UNREADABLE = [
    *(("", mode, [*ACTIONS, "convert"]) for mode in (0o000, 0o111, 0o444)),
    ("dataset.json", 0o000, [*ACTIONS, "convert"]),
    ("images.csv", 0o000, ACTIONS),
    ("part-2", 0o000, ["show", "merge", "export"]),
]


@pytest.mark.parametrize("path, mode, actions", UNREADABLE)
def test_what_may_not_be_read(dataset, path, mode, actions):
    """Not even root's processes have more rights than others here."""
    importlib.import_module("ofrecord.commands.sheet")  # others may not read root's Python
    user = os.geteuid()
    with TemporaryDirectory() as root:
        folder = shutil.copytree(dataset, f"{root}/d")
        os.chmod(root, 0o777)
        os.chmod(f"{folder}/{path}", mode)
        for action in actions:
            try:
                os.seteuid(user or 65534)
                result = run(action, folder, new=f"{root}/new")
            finally:
                os.seteuid(user)
            assert_one_error(result, f"{folder}/{path}".rstrip("/"), "Permission denied")
        assert not os.path.exists(f"{root}/new")
        os.chmod(folder, 0o755)


def test_parts_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "part-0")
    result = run_python("-m", "ofrecord", "index", tmp_path, timeout=60)
    assert_one_error(result, "part-0, record 0: cannot be read: it is not a regular file")


@pytest.mark.parametrize("arguments", [[], ["look", "."], ["check", ""], ["merge", "x"], ["export", "x", ""]])  # fmt: skip
def test_wrong_usage(arguments):
    assert_one_error(ofrecord(*arguments))


# -- commands in messages ---------------------------------------------------------------------


def test_commands_about_a_dataset(tmp_path):
    """They work outside of the project's folder too, whatever the dataset's is named."""
    name, here = "-my parts", {"cwd": tmp_path, "env": {"PYTHONPATH": PROJECT}}
    folder = making.foreign(tmp_path / name)
    message = run_python("-m", "ofrecord", "show", "--", name, **here).err
    command = re.search(r"PYTHONPATH=\S+ python -m ofrecord index .*?(?= writes)", message)
    result = run_typed(command[0], tmp_path)
    assert result.code == 0 and "50 gray PNG images" in result.out, result
    change_record(folder, set_label(9))
    message = run_python("-m", "ofrecord", "show", "--", name, **here).err
    command = re.search(r"PYTHONPATH=\S+ python -m ofrecord check .*?(?= lists)", message)
    result = run_typed(command[0], tmp_path)
    assert result.code == 2 and "record 0: images.csv has another label" in result.err, result


def test_commands_that_convert_sets(tmp_path):
    """Each as it is printed, with one list of classes."""
    names = [f"{split}/{name}" for split in ("train", "val") for name in ("it's", "10", "9")]
    making.write_pictures(tmp_path / "my sets", numbered(names, 2))
    arguments = ["--class_folders", "--image_root", "my sets"]
    message = run_python(PROJECT / "img2ofrecord.py", *arguments, cwd=tmp_path).err
    for command in re.findall("`(.*?)`", message):
        result = run_typed(command, tmp_path)
        assert result.code == 0, result
    for folder in ("dataset_train", "dataset_val"):
        manifest = read_manifest(tmp_path / folder)
        assert manifest["class_names"] == ["9", "10", "it's"] and manifest["num_records"] == 6
