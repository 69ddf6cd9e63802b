"""``python -m ofrecord check``: what is wrong, by part, record and file; copies; what every command refuses."""

import importlib
import os
import re
import shutil
from functools import partial
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from damage import change_record, cut, flip, ofrecord, rewrite_manifest, set_image, set_label
from helpers import IMAGES, PROJECT, assert_one_error, read_manifest, run_python, snapshot
from making import (  # fmt: skip
    OTHER_NAMES,
    TUTORIAL,
    change_table,
    encoded,
    foreign,
    make,
    numbered,
    others,
    picture,
    run_typed,
)

from runtime.atomic import folder_lock

FIRST = TUTORIAL[0][0]  # the file of the first record
ACTIONS = ["check", "show", "index", "merge", "export"]


def run(action, *folders, new):
    """A command; with a target, ``new``, if it needs one."""
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


def change(*arguments):
    return lambda folder: change_record(folder, *arguments)


def image(ext, *shape, dtype=np.uint8):
    return change(set_image(encoded(ext, np.zeros(shape, dtype))))


def table(change):
    return lambda folder: change_table(folder, change)


def manifest(**fields):
    return lambda folder: rewrite_manifest(folder, **fields)


def lie_about_parts(dataset):
    parts = read_manifest(dataset)["parts"]
    parts[0]["num_records"], parts[1]["num_records"] = 11, 9
    rewrite_manifest(dataset, parts=parts)


RED = encoded(".png", np.full((28, 28, 3), (0, 0, 200), np.uint8))
RECORD = f"part-0, record 0 ({FIRST}): "
ORDER = "images.csv: its rows are not the records in order"
WRONG = {  # how a dataset is changed, and what a line has
    "a byte of an image": (lambda d: flip(d / "part-1", 150), ["part-1, record 0 (", "damaged"]),
    "other bytes": (lambda d: flip(d / "part-1", 150), ["part-1: its bytes are not those that were written"]),
    "a byte of a length": (lambda d: flip(d / "part-2", 1), ["part-2, record 0 (", "file ends"]),
    "truncated": (lambda d: cut(d / "part-4", -1), ["part-4, record 9 (", "file ends after"]),
    "empty": (lambda d: cut(d / "part-4", 0), ["part-4", "the part file is empty"]),
    "missing": (lambda d: (d / "part-3").unlink(), ["part-3", "missing"]),
    "not listed": (lambda d: shutil.copy(d / "part-0", d / "part-7"), ["part-7", "does not belong to this dataset"]),
    "another class": (change(set_label(10)), ["dataset.json says number of label 10: 0, and the parts say 1"]),
    "label miscounted": (change(set_label(4)), ["dataset.json says number of label 3: 7, and the parts say 6"]),
    "label and table": (change(set_label(4)), [RECORD, "images.csv has another label or SHA-256"]),
    "negative": (change(set_label(-1)), ["invalid label -1"]),
    "no image": (change(set_image(b"nothing")), [RECORD, "PNG, JPEG, TIFF"]),
    "truncated image": (change(set_image((IMAGES / FIRST).read_bytes()[:-9])), [RECORD, "truncated"]),
    "another format": (image(".jpg", 28, 28), ["dataset.json says image_format PNG, and the parts say None"]),
    "colour": (change(set_image(RED)), ["dataset.json says channels 1, and the parts say 3"]),
    "another size": (image(".png", 28, 29), ["dataset.json says width 28, and the parts say None"]),
    "16-bit": (image(".png", 28, 28, dtype=np.uint16), [RECORD, "16-bit"]),
    "no feature": (change(lambda f: f.pop("images")), [RECORD, "'images'"]),
    "two labels": (change(lambda f: f["labels"].int32_list.value.append(1)), [RECORD, "one label"]),
    "no table": (lambda d: (d / "images.csv").unlink(), ["images.csv: No such file"]),
    "a byte of the table": (lambda d: flip(d / "images.csv", 60), ["images.csv", "not those that were written"]),
    "no CSV": (lambda d: (d / "images.csv").write_text("part,record\n"), ["images.csv, line 1: "]),
    "a row gone": (table(lambda rows: rows[:7] + rows[8:]), [ORDER]),
    "a row more": (table(lambda rows: [*rows, rows[-1]._replace(record=10)]), [ORDER]),
    "rows changed places": (table(lambda rows: rows[1::-1] + rows[2:]), [ORDER]),
    "another digest": (table(lambda rows: [rows[0]._replace(sha256="0" * 16), *rows[1:]]), [RECORD, "images.csv has another label or SHA-256"]),
    "numbers of records": (lie_about_parts, ["part-0: dataset.json says that it has 11 records"]),
    "sizes": (manifest(width=32, height=32), ["says width 32, and the parts say 28"]),
    "plain JPEG": (manifest(plain_jpeg=True), ["says plain_jpeg True, and the parts say False"]),
    "format": (manifest(image_format=".bmp"), ["says image_format BMP, and the parts say PNG"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_part_record_file_and_reason_are_named(dataset, case):
    damage, texts = WRONG[case]
    damage(dataset)
    result = ofrecord("check", dataset)
    assert result.code == 2, result
    assert any(all(text in line for text in texts) for line in result.err.splitlines()), result
    assert "Traceback" not in result.err and "all valid" not in result.out


def test_another_spelling_of_a_format_is_no_lie(tmp_path):
    folders = [make(tmp_path / name, numbered([name], 1, len(name)), part_num=1, img_format=f".{name}") for name in ("jpg", "jpeg")]  # fmt: skip
    assert ofrecord("merge", *folders, tmp_path / "all").code == 0
    for name in ("jpg", "jpeg", "all"):
        assert ofrecord("check", tmp_path / name).code == 0


def test_a_dataset_without_names_has_numbers(tmp_path):
    folder = make(tmp_path / "d", numbered("ab", 1), part_num=1, anonymous="true")
    assert ofrecord("check", folder).code == 0
    change_record(folder, set_image(b"nothing"))
    assert f"{folder}/part-0, record 0: invalid image" in ofrecord("check", folder).err


def test_parts_without_a_manifest(tmp_path):
    folder = others(tmp_path / "d")
    result = ofrecord("check", folder, *OTHER_NAMES)
    assert result.code == 0, result
    assert "26 records" in result.out and "there is no dataset.json" in result.out
    assert f"{folder}: 13 images are copies of others\n" in result.out
    result = ofrecord("check", folder)
    assert result.code == 2 and "part-00000, record 0: no feature" in result.err, result
    assert "'class/label', 'encoded'" in result.err and "--image_feature" in result.err
    content = (folder / "part-00001").read_bytes()
    end = content.index(b"\xff\xd9")  # of a JPEG, which only the decoder sees to be damaged
    damaged = content[: end - 8] + b"\xff\xd0" * 4 + content[end:]
    (folder / "part-00001").write_bytes(damaged)
    for action in ("check", "index"):
        result = ofrecord(action, folder, *OTHER_NAMES)
        assert "part-00001, record 0: invalid image: Corrupt JPEG data" in result.err, result
    (folder / "part-00001").write_bytes(content)
    (folder / "part-00000").unlink()
    assert_one_error(ofrecord("check", folder, *OTHER_NAMES), "part-00000 is missing")


# -- copies -----------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """Datasets d, e and f, of which e has two of d's images, and f those of e under other names and numbers."""
    d = {"x": {"a": 1, "b": 2, "c": 3, "d": 1, "e": 1}, "y": {"a": 3, "b": 5, "c": 2, "d": 1}}
    e = {"x": {"p": 11, "q": 12, "r": 3}, "y": {"s": 14, "t": 1, "u": 16}}
    for name, files in (("d", d), ("e", e), ("f", {"v": e["y"], "w": e["x"]})):
        files = {key: {f"{n}.png": seed for n, seed in of.items()} for key, of in files.items()}
        make(tmp_path / name, files, part_num=2)
    return [tmp_path / name for name in "def"]


def warnings(result):
    return re.findall("warning: (.*)", result.err)


def test_copies_in_a_dataset_are_named(three, tmp_path):
    d = three[0]
    result = ofrecord("check", d)
    out = f"all valid\n{d}: 5 images are copies of others\n"
    assert result.code == 0 and result.out.endswith(out), result
    assert len(re.findall("(?m)^the same image: ", result.err)) == 5
    one = f"{d}/part-0, record 1 (x/b.png), label x and {d}/part-1, record 2 (y/c.png), label y"
    assert f"the same image with different labels: {one}" in warnings(result)
    assert len(warnings(result)) == 3  # a, b and c are there with two labels
    files = {f"{index}.png": index for index in range(12)}
    result = ofrecord("check", make(tmp_path / "many", {"a": files, "b": files}, part_num=2))
    assert ": 12 images are copies of others\n" in result.out
    assert len(warnings(result)) == 11 and "and 2 more" in warnings(result)[-1], result


def test_copies_in_two_datasets_are_named_by_their_tables(three):
    """No image is read: not even one that is damaged."""
    d, e, f = three
    flip(e / "part-0", 100)
    result = ofrecord("check", d, e)
    assert result.code == 0 and f"{e}: 2 images are copies of others in {d}: " in result.out, result
    for what, one, other in ("", "part-0, record 2 (x/c.png), label x", "part-0, record 2 (x/r.png), label x"), (" with different labels", "part-0, record 0 (x/a.png), label x", "part-1, record 1 (y/t.png), label y"):  # fmt: skip
        assert f"the same image{what}: {d}/{one} and {e}/{other}" in warnings(result), result
    result = ofrecord("check", e, f)  # these have other classes, so their labels say nothing
    assert "6 images are copies" in result.out and "with different" not in result.err
    result = ofrecord("check", d, d)
    assert [line.partition(": results")[0] for line in result.out.splitlines()] == [
        f"{d}: 5 images are copies of others",
        f"{d}: 9 images are copies of others in {d}",
    ]
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


def of_layout_2(folder):
    (folder / "images.csv").unlink()
    fields = {"max_value": None, "label_length": None, "split_ids": [], "mixed_split_ids": []}
    rewrite_manifest(folder, layout=2, **fields)


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
    for change, texts in (of_layout_2, ["dataset.json: an earlier version", "ofrecord index"]), (half_moved, ["interrupted"]):  # fmt: skip
        folder = shutil.copytree(dataset, tmp_path / change.__name__)
        change(folder)
        before = snapshot(folder)
        if change is half_moved or action != "index":
            assert_one_error(act(folder), str(folder), *texts)
            assert snapshot(folder) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_folder_without_rights(dataset, action):
    """Not even root's processes have more rights than others here."""
    importlib.import_module("ofrecord.commands.sheet")  # others may not read root's Python
    user = os.geteuid()
    with TemporaryDirectory() as root:
        folder = shutil.copytree(dataset, f"{root}/d")
        os.chmod(root, 0o777)
        for mode in (0o000, 0o111, 0o444):
            os.chmod(folder, mode)
            try:
                os.seteuid(user or 65534)
                result = run(action, folder, new=f"{root}/new")
            finally:
                os.seteuid(user)
            assert_one_error(result, folder, "Permission denied")
            assert not os.path.exists(f"{root}/new")
        os.chmod(folder, 0o755)


@pytest.mark.parametrize("action", ["check", "index"])
def test_parts_that_are_no_files(tmp_path, action):
    os.mkfifo(tmp_path / "part-0")
    result = run_python("-m", "ofrecord", action, tmp_path, timeout=60)
    assert_one_error(result, "part-0, record 0: cannot be read: it is not a regular file")


@pytest.mark.parametrize("arguments", [[], ["look", "."], ["check"], ["merge", "x"], ["check", ""], ["export", "x", ""], ["merge", "", "x"]])  # fmt: skip
def test_wrong_usage(arguments):
    assert_one_error(ofrecord(*arguments))


# -- commands in messages ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my parts", "-parts"])
def test_commands_about_a_dataset(tmp_path, name):
    """They work outside of the project's folder too, whatever the dataset's is named."""
    here = {"cwd": tmp_path, "env": {"PYTHONPATH": PROJECT}}
    folder = foreign(tmp_path / name)
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
    for seed, name in enumerate(f"{s}/{c}/{n}.png" for s in ("train", "val") for c in ("it's", "10", "9") for n in "ab"):  # fmt: skip
        path = tmp_path / "my sets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))
    arguments = ["--class_folders", "--image_root", "my sets"]
    message = run_python(PROJECT / "img2ofrecord.py", *arguments, cwd=tmp_path).err
    for command in re.findall("`(.*?)`", message):
        result = run_typed(command, tmp_path)
        assert result.code == 0, result
    for folder in ("dataset_train", "dataset_val"):
        manifest = read_manifest(tmp_path / folder)
        assert manifest["class_names"] == ["9", "10", "it's"] and manifest["num_records"] == 6
