"""``python -m ofrecord check`` and ``show``."""

import os
import re

import cv2
import numpy as np
import pytest
from damage import change_record, cut, flip, frame, set_image, set_label
from helpers import IMAGES, assert_one_error, call, convert, run_python

from ofrecord.record import OFRecord


def ofrecord(*arguments):
    """``python -m ofrecord`` in this process, which is not forked: there is a worker for each CPU that it may use."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        return call("ofrecord.__main__", *arguments)
    finally:
        os.sched_setaffinity(0, cpus)


# -- check ----------------------------------------------------------------------------


def test_check_a_good_dataset(converted):
    """As people call it, with its workers."""
    result = run_python("-m", "ofrecord", "check", converted)
    assert result.code == 0 and result.err == "", result
    parts = re.findall(r"^part-(\d): 10 records, [\d,]+ bytes, valid$", result.out, re.M)
    assert parts == list("01234")
    last = result.out.splitlines()[-1]
    assert "50 records" in last and "all valid" in last


def test_check_lists_all_problems_on_stderr(dataset):
    """As people call it, with its workers."""
    flip(dataset / "part-1", 150)
    cut(dataset / "part-4", -1)
    result = run_python("-m", "ofrecord", "check", dataset)
    assert result.code == 2, result
    lines = result.err.splitlines()
    assert all(line.startswith("ofrecord: error: ") for line in lines), result
    assert any("part-1, record 0" in line for line in lines), result
    assert any("part-4, record 9" in line for line in lines), result
    assert f"problems in {dataset}" in lines[-1]
    assert re.findall(r"^part-(\d): .* valid$", result.out, re.M) == list("023")


def first_image():
    return (IMAGES / "00000030_3.png").read_bytes()


def encoded(ext, *shape, dtype=np.uint8):
    return cv2.imencode(ext, np.zeros(shape, dtype))[1].tobytes()


def change(*arguments):
    return lambda folder: change_record(folder, *arguments)


WRONG = {
    "a byte of an image": (lambda d: flip(d / "part-1", 150), ["part-1, record 0", "damaged"]),
    "a byte of a length": (lambda d: flip(d / "part-2", 1), ["part-2, record 0", "file ends"]),
    "cut off": (lambda d: cut(d / "part-4", -1), ["part-4, record 9", "file ends after"]),
    "empty": (lambda d: cut(d / "part-4", 0), ["part-4", "empty file"]),
    "missing": (lambda d: (d / "part-3").unlink(), ["part-3", "missing"]),
    "not listed": (
        lambda d: (d / "part-7").write_bytes((d / "part-0").read_bytes()),
        ["part-7", "does not belong to this dataset"],
    ),
    "label outside": (change(set_label(10)), ["label 10 is out of range for 10 classes"]),
    "label miscounted": (change(set_label(4)), ["label 3 has 6 records, but dataset.json lists 7"]),
    "no image": (change(set_image(b"nothing")), ["part-0, record 0", "cannot read it"]),
    "cut-off image": (change(set_image(first_image()[:-9])), ["part-0, record 0", "truncated"]),
    "another format": (
        change(set_image(encoded(".jpg", 28, 28))),
        ["part-0, record 0", "JPEG", "PNG"],
    ),
    "colour": (change(set_image(encoded(".png", 28, 28, 3))), ["part-0, record 0", "3 channels"]),
    "16-bit": (
        change(set_image(encoded(".png", 28, 28, dtype=np.uint16))),
        ["part-0, record 0", "16-bit"],
    ),
    "no feature": (change(lambda f: f.pop("images")), ["part-0, record 0", "'images'"]),
    "two labels": (
        change(lambda f: f["labels"].int32_list.value.append(1)),
        ["part-0, record 0", "one label"],
    ),
}


@pytest.mark.parametrize("damage, texts", WRONG.values(), ids=list(WRONG))
def test_check_names_part_record_and_reason(dataset, damage, texts):
    damage(dataset)
    result = ofrecord("check", dataset)
    assert result.code == 2, result
    assert any(all(text in line for text in texts) for line in result.err.splitlines()), result
    assert "Traceback" not in result.err and "all valid" not in result.out


@pytest.fixture
def foreign(tmp_path):
    """Parts as somebody else's converter writes them: padded names, other features, int64, no manifest."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for part in range(2):
        with (folder / f"part-{part:05d}").open("wb") as file:
            for index in range(13):
                record = OFRecord()
                image = cv2.imencode(".jpg", np.full((20, 30, 3), 9 * index, np.uint8))[1]
                record.feature["encoded"].bytes_list.value.append(image.tobytes())
                record.feature["class/label"].int64_list.value.append(index)
                file.write(frame(record))
    return folder


FEATURES = ["--image_feature", "encoded", "--label_feature", "class/label"]


def test_parts_without_a_manifest(foreign, tmp_path):
    result = ofrecord("check", foreign, *FEATURES)
    assert result.code == 0, result
    assert "26 records" in result.out and "there is no dataset.json" in result.out
    result = ofrecord("check", foreign)
    assert result.code == 2, result
    assert "part-00000, record 0" in result.err and "'class/label', 'encoded'" in result.err
    result = ofrecord("show", foreign, *FEATURES)
    assert result.code == 0, result
    assert "26 colour JPEG images 30x20, 13 classes" in result.out, result
    assert cv2.imread(str(tmp_path / "foreign_sheet.png")) is not None
    (foreign / "part-00000").unlink()
    assert_one_error(ofrecord("check", foreign, *FEATURES), "part 0 is missing")


@pytest.mark.parametrize("action", ["check", "show"])
def test_damage_that_only_the_decoder_sees(foreign, action):
    part = foreign / "part-00000"
    content = part.read_bytes()
    end = content.index(b"\xff\xd9")  # of the first JPEG
    part.write_bytes(content[: end - 8] + b"\xff\xd0" * 4 + content[end:])
    result = ofrecord(action, foreign, *FEATURES)
    assert result.code == 2, result
    assert "invalid image" in result.err, result
    assert "Corrupt JPEG data" in result.err, result


@pytest.mark.parametrize("action", ["check", "show"])
def test_no_dataset(tmp_path, action):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, text in (
        ("nowhere", "does not exist"),
        ("empty", "no part files"),
        ("file", "not a folder"),
    ):
        assert_one_error(ofrecord(action, tmp_path / name), "no dataset", text)


@pytest.mark.parametrize("arguments", [[], ["look", "."], ["check"]], ids=" ".join)
def test_wrong_usage(arguments):
    assert_one_error(ofrecord(*arguments))


# -- show -----------------------------------------------------------------------------


def test_show_prints_counts_and_draws_a_sheet(converted, tmp_path):
    result = ofrecord("show", converted, "--sheet", tmp_path / "sheet.png")
    assert result.code == 0, result
    assert "50 gray .png images 28x28, 10 classes, in 5 parts, 14,997 bytes" in result.out
    assert re.search(r"^ +1 +7 +█{40}$", result.out, re.M)
    assert re.search(r"^ +0 +4 +█{23}$", result.out, re.M)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    # Rows of digits: white strokes on black in the first columns, and every class has a row.
    assert sheet.shape[0] > 10 * 64 and sheet.shape[1] > 12 * 64
    for row in range(10):
        top = 40 + 68 * row
        tile = sheet[top : top + 64, 170 : 170 + 64]
        assert (tile < 20).mean() > 0.5 and (tile > 200).mean() > 0.02, row
    again = tmp_path / "again.png"
    assert ofrecord("show", converted, "--sheet", again).code == 0
    assert again.read_bytes() == (tmp_path / "sheet.png").read_bytes()


def show_blue_images(root, names):
    """Convert one blue image of 90x40 in each class; return what ``show`` prints of it."""
    blue = np.zeros((90, 40, 3), np.uint8)
    blue[:, :, 0] = 250
    for name in names:
        (root / "in" / name).mkdir(parents=True)
        (root / "in" / name / "x.png").write_bytes(cv2.imencode(".png", blue)[1].tobytes())
    result = convert(
        *["--image_root", root / "in", "--class_folders", "--save_dir", root / "d"],
        *["--part_num", 2],
    )
    assert result.code == 0, result
    shown = ofrecord("show", root / "d")
    assert shown.code == 0 and shown.err == "", shown
    sheet = cv2.imread(str(root / "d_sheet.png")).astype(int)
    assert (np.abs(sheet - (250, 0, 0)).sum(axis=2) < 30).mean() > 0.01  # blue stays blue
    return shown.out


def test_show_class_names(tmp_path):
    out = show_blue_images(tmp_path, ["猫", "a very long name of a class, with commas"])
    assert "2 colour .png images 40x90, 2 classes" in out
    assert re.search(r"猫 +1 +█{40}$", out, re.M)
    assert re.search(r"a very long name of a class, w +1", out)


def test_show_many_classes(tmp_path):
    out = show_blue_images(tmp_path, [f"class {index:02d}" for index in range(72)])
    assert "72 classes" in out and "and 22 smaller classes" in out


def test_show_of_a_damaged_dataset_points_to_check(dataset):
    cut(dataset / "part-2", -5)
    assert_one_error(ofrecord("show", dataset), "part-2, record 9", "ofrecord check")


def test_show_where_the_sheet_cannot_be_written(converted):
    result = ofrecord("show", converted, "--sheet", "/nowhere/sheet.png")
    assert_one_error(result, "contact sheet", "/nowhere/sheet.png")
