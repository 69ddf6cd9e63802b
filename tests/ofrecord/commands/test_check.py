"""``python -m ofrecord check``: what is wrong, by part, record and file; copies, in one dataset and in two."""

import os
import re
import shutil
import sys
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
from damage import change_record, cut, flip, ofrecord, rewrite_manifest, set_image, set_label
from helpers import IMAGES, PROJECT, assert_one_error, read_manifest, run_python, snapshot
from making import OTHER_NAMES, TUTORIAL, foreign, make, others

from ofrecord.dataset.images_csv import read_rows, write_rows
from ofrecord.dataset.open_dataset import sha256_of

FIRST = TUTORIAL[0][0]  # the file of the first record


def test_a_good_dataset(converted):
    """As people call it, with its workers."""
    result = run_python("-m", "ofrecord", "check", converted)
    assert result.code == 0 and result.err == "", result
    parts = re.findall(r"^part-(\d): 10 records, [\d,]+ bytes, valid$", result.out, re.M)
    assert parts == list("01234")
    assert result.out.splitlines()[-1] == f"{converted}: 50 records, 14,997 bytes, all valid"


def test_all_problems_are_listed_on_stderr(dataset):
    """As people call it, with its workers."""
    flip(dataset / "part-1", 150)
    cut(dataset / "part-4", -1)
    result = run_python("-m", "ofrecord", "check", dataset)
    assert result.code == 2, result
    lines = result.err.splitlines()
    assert all(line.startswith("ofrecord: error: ") for line in lines), result
    assert (
        f"{dataset}/part-1, record 0 ({TUTORIAL[10][0]}): invalid image: the PNG is damaged"
        in result.err
    )
    assert f"{dataset}/part-4, record 9 ({TUTORIAL[49][0]}): " in result.err
    assert lines[-1].endswith(f"problems in {dataset}")
    assert re.findall(r"^part-(\d): .* valid$", result.out, re.M) == list("023")


def first_image():
    return (IMAGES / FIRST).read_bytes()


def encoded(ext, *shape, dtype=np.uint8):
    return cv2.imencode(ext, np.zeros(shape, dtype))[1].tobytes()


def change(*arguments):
    return lambda folder: change_record(folder, *arguments)


def change_table(folder, change):
    """Change the rows of images.csv, and sign the manifest anew."""
    rows = change(list(read_rows(folder)))
    with (folder / "images.csv").open("wb") as file:
        write_rows(file, rows)
    rewrite_manifest(folder, images_csv=sha256_of(folder / "images.csv"))


def table(change):
    return lambda folder: change_table(folder, change)


RED = cv2.imencode(".png", np.full((28, 28, 3), (0, 0, 200), np.uint8))[1].tobytes()
RECORD = f"part-0, record 0 ({FIRST}): "

WRONG = {
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
    "truncated image": (change(set_image(first_image()[:-9])), [RECORD, "truncated"]),
    "another format": (change(set_image(encoded(".jpg", 28, 28))), ["dataset.json says image_format PNG, and the parts say None"]),
    "colour": (change(set_image(RED)), ["dataset.json says channels 1, and the parts say 3"]),
    "another size": (change(set_image(encoded(".png", 28, 29))), ["dataset.json says width 28, and the parts say None"]),
    "16-bit": (change(set_image(encoded(".png", 28, 28, dtype=np.uint16))), [RECORD, "16-bit"]),
    "no feature": (change(lambda f: f.pop("images")), [RECORD, "'images'"]),
    "two labels": (change(lambda f: f["labels"].int32_list.value.append(1)), [RECORD, "one label"]),
    "no table": (lambda d: (d / "images.csv").unlink(), ["images.csv: No such file"]),
    "a byte of the table": (lambda d: flip(d / "images.csv", 60), ["images.csv", "not those that were written"]),
    "no CSV": (lambda d: (d / "images.csv").write_text("part,record\n"), ["images.csv, line 1: "]),
    "a row gone": (table(lambda rows: rows[:7] + rows[8:]), ["images.csv: its rows are not the records in order"]),
    "rows changed places": (table(lambda rows: rows[1::-1] + rows[2:]), ["its rows are not the records in order"]),
    "another digest": (table(lambda rows: [rows[0]._replace(sha256="0" * 16), *rows[1:]]), [RECORD, "images.csv has another label or SHA-256"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_part_record_file_and_reason_are_named(dataset, case):
    damage, texts = WRONG[case]
    damage(dataset)
    result = ofrecord("check", dataset)
    assert result.code == 2, result
    assert any(all(text in line for text in texts) for line in result.err.splitlines()), result
    assert "Traceback" not in result.err and "all valid" not in result.out


def lie_about_parts(*changes):
    def change(dataset):
        parts = read_manifest(dataset)["parts"]
        for part, fields in zip(parts, changes, strict=False):
            part.update({name: part[name] + more for name, more in fields.items()})
        rewrite_manifest(dataset, parts=parts)

    return change


LIES = {
    "records": (lie_about_parts({"num_records": 1}, {"num_records": -1}), "dataset.json says that it has 11 records"),
    "sizes": (lambda d: rewrite_manifest(d, width=32, height=32), "says width 32, and the parts say 28"),
    "jpeg": (lambda d: rewrite_manifest(d, plain_jpeg=True), "says plain_jpeg True, and the parts say False"),
    "format": (lambda d: rewrite_manifest(d, image_format=".bmp"), "says image_format BMP, and the parts say PNG"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_lies_of_a_manifest(dataset, case):
    LIES[case][0](dataset)
    result = ofrecord("check", dataset)
    assert result.code == 2 and LIES[case][1] in result.err, result


def test_another_spelling_of_a_format_is_no_lie(tmp_path):
    for name in ("jpg", "jpeg"):
        make(tmp_path / name, {"a": {f"{name}.png": len(name)}}, part_num=1, img_format=f".{name}")
        assert ofrecord("check", tmp_path / name).code == 0
    result = ofrecord("merge", tmp_path / "jpg", tmp_path / "jpeg", tmp_path / "all")
    assert result.code == 0 and ofrecord("check", tmp_path / "all").code == 0, result


def test_a_dataset_without_names_has_numbers(tmp_path):
    folder = make(
        tmp_path / "d", {"a": {"0.png": 1}, "b": {"1.png": 2}}, part_num=1, anonymous="true"
    )
    assert ofrecord("check", folder).code == 0
    change_record(folder, set_image(b"nothing"))
    assert f"{folder}/part-0, record 0: invalid image" in ofrecord("check", folder).err


# -- without a manifest -----------------------------------------------------------------------


def test_parts_without_a_manifest(tmp_path):
    folder = others(tmp_path / "d")
    result = ofrecord("check", folder, *OTHER_NAMES)
    assert result.code == 0, result
    assert "26 records" in result.out and "there is no dataset.json" in result.out
    assert f"{folder}: 13 images are copies of others\n" in result.out
    result = ofrecord("check", folder)
    assert result.code == 2 and "part-00000, record 0: no feature" in result.err, result
    assert "'class/label', 'encoded'" in result.err and "--image_feature" in result.err
    (folder / "part-00000").unlink()
    assert_one_error(ofrecord("check", folder, *OTHER_NAMES), "part-00000 is missing")


def test_damage_that_only_the_decoder_sees(tmp_path):
    part = others(tmp_path / "d") / "part-00000"
    content = part.read_bytes()
    end = content.index(b"\xff\xd9")  # of the first JPEG
    part.write_bytes(content[: end - 8] + b"\xff\xd0" * 4 + content[end:])
    for action in ("check", "index"):
        result = ofrecord(action, tmp_path / "d", *OTHER_NAMES)
        assert result.code == 2 and "record 0: invalid image: Corrupt JPEG data" in result.err


def test_a_dataset_that_is_half_moved(dataset):
    hidden = dataset / ".img2ofrecord"
    hidden.mkdir()
    for name in ("part-1", "part-2", "dataset.json"):
        (dataset / name).rename(hidden / name)
    before = snapshot(dataset)
    for action in ("check", "show", "index"):
        assert_one_error(ofrecord(action, dataset), str(dataset), "interrupted")
    assert snapshot(dataset) == before


# -- copies -----------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """Datasets d, e and f, of which e has two of d's images, and f those of e under other classes."""
    names = "abcdef"
    d = {
        "x": dict(zip(names, [1, 2, 3, 1, 1], strict=False)),
        "y": dict(zip(names, [3, 5, 2, 1], strict=False)),
    }
    e = {"x": {"p": 11, "q": 12, "r": 3}, "y": {"s": 14, "t": 1, "u": 16}}
    for name, files in (("d", d), ("e", e), ("f", {"v": e["x"], "w": e["y"]})):
        files = {
            key: {f"{n}.png": seed for n, seed in value.items()} for key, value in files.items()
        }
        make(tmp_path / name, files, part_num=2)
    return [tmp_path / name for name in "def"]


def warnings(result):
    return re.findall("warning: (.*)", result.err)


def test_copies_in_a_dataset_are_named(three):
    d = three[0]
    result = ofrecord("check", d)
    assert result.code == 0 and result.out.endswith(
        f"all valid\n{d}: 5 images are copies of others\n"
    )
    assert result.err.count(": the same image: ") + result.err.count("\nthe same image: ") >= 4, (
        result
    )
    one = f"{d}/part-0, record 1 (x/b.png), label x and {d}/part-1, record 2 (y/c.png), label y"
    assert f"the same image with different labels: {one}" in warnings(result)
    assert len(warnings(result)) == 3  # a, b and c are there with two labels


def test_copies_in_two_datasets_are_named_by_their_tables(three):
    """No image is read: not even one that is damaged."""
    d, e, f = three
    flip(e / "part-0", 100)
    result = ofrecord("check", d, e)
    assert result.code == 0, result
    assert f"{e}: 2 images are copies of others in {d}: " in result.out
    leak = f"the same image: {d}/part-0, record 2 (x/c.png), label x and {e}/part-0, record 2 (x/r.png), label x"
    assert leak in warnings(result), result
    conflict = (
        f"{d}/part-0, record 0 (x/a.png), label x and {e}/part-1, record 1 (y/t.png), label y"
    )
    assert f"the same image with different labels: {conflict}" in warnings(result)
    # These have other classes, so their labels say nothing.
    conflicts = [line for line in warnings(ofrecord("check", e, f)) if "with different" in line]
    assert conflicts == [] and "6 images are copies" in ofrecord("check", e, f).out
    change_table(e, lambda rows: [row._replace(sha256=f"{row.record:016}") for row in rows])
    result = ofrecord("check", d, e)
    assert f"{e}: 0 images are copies of others in {d}\n" in result.out, result
    result = ofrecord("check", d, d)
    assert [line.partition(": results")[0] for line in result.out.splitlines()] == [
        f"{d}: 5 images are copies of others",
        f"{d}: 9 images are copies of others in {d}",
    ]
    flip(e / "images.csv", 60)
    assert_one_error(ofrecord("check", d, e), f"{e}/images.csv")


def test_at_most_ten_copies_are_named(tmp_path):
    files = {f"{index}.png": index for index in range(12)}
    folder = make(tmp_path / "d", {"a": files, "b": files}, part_num=2)
    result = ofrecord("check", folder)
    assert f"{folder}: 12 images are copies of others\n" in result.out
    assert len(warnings(result)) == 11 and "and 2 more" in warnings(result)[-1], result


# -- what every command refuses ---------------------------------------------------------------


@pytest.mark.parametrize("action", ["check", "show", "index", "merge", "export"])
def test_no_dataset(tmp_path, action):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nothing")
    target = [tmp_path / "new"] if action in ("merge", "export") else []
    for name in ("nowhere", "empty", "file", "link"):
        assert_one_error(ofrecord(action, tmp_path / name, *target), f"{tmp_path}/{name}")
    assert not (tmp_path / "new").exists()


def test_a_dataset_of_layout_2(dataset, tmp_path):
    (dataset / "images.csv").unlink()
    fields = {"max_value": None, "label_length": None, "split_ids": [], "mixed_split_ids": []}
    rewrite_manifest(dataset, layout=2, **fields)
    for action in ("check", "show", "merge", "export"):
        target = [tmp_path / "new"] if action in ("merge", "export") else []
        assert_one_error(
            ofrecord(action, dataset, *target), "dataset.json: an earlier version", "ofrecord index"
        )
    assert_one_error(ofrecord("check", dataset, dataset), "an earlier version")


@contextmanager
def as_nobody():
    """For a block this process, if it is root's, has no more rights than others."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("action", ["check", "show", "index", "merge", "export"])
@pytest.mark.parametrize("mode", [0o000, 0o111, 0o444])
def test_a_folder_without_rights(dataset, action, mode):
    with TemporaryDirectory() as root:
        folder = shutil.copytree(dataset, f"{root}/d")
        os.chmod(root, 0o777)
        os.chmod(folder, mode)
        target = [f"{root}/new"] if action in ("merge", "export") else []
        with as_nobody():
            result = ofrecord(action, folder, *target)
        os.chmod(folder, 0o755)
        assert_one_error(result, folder, "Permission denied")
        assert not os.path.exists(f"{root}/new")


@pytest.mark.parametrize("action", ["check", "show", "index", "merge", "export"])
def test_a_dataset_that_is_being_written_is_refused(dataset, tmp_path, action):
    from runtime.atomic import folder_lock

    target = [tmp_path / "new"] if action in ("merge", "export") else []
    with folder_lock(dataset, "in use"):
        assert_one_error(ofrecord(action, dataset, *target), str(dataset), "wait for it to end")


@pytest.mark.parametrize("action", ["check", "index"])
def test_parts_that_are_no_files(tmp_path, action):
    os.mkfifo(tmp_path / "part-0")
    result = run_python("-m", "ofrecord", action, tmp_path, timeout=60)
    assert_one_error(result, "part-0, record 0: cannot be read: it is not a regular file")


@pytest.mark.parametrize("arguments", [[], ["look", "."], ["check"], ["merge", "x"], ["check", ""], ["export", "x", ""], ["merge", "", "x"]])  # fmt: skip
def test_wrong_usage(arguments):
    assert_one_error(ofrecord(*arguments))


def test_a_command_in_a_message_works_where_it_is_typed(tmp_path):
    """Outside of the project's folder too, for a folder with a space in its name."""
    foreign(tmp_path / "my parts")
    result = run_python(
        "-m", "ofrecord", "show", "my parts", cwd=tmp_path, env={"PYTHONPATH": PROJECT}
    )
    command = re.search(r"PYTHONPATH=\S+ python -m ofrecord index '.*?'", result.err)[0]
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    result = run_python("-c", command, python="/bin/bash", cwd=tmp_path, env={"PATH": path})
    assert result.code == 0 and "50 gray PNG images" in result.out, result
