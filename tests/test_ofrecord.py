"""python -m ofrecord check and show."""

import json
import re
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest

from conftest import IMAGES, PROJECT, Result, assert_one_error, run_script
from ofrecord.manifest import MANIFEST_NAME
from ofrecord.record import OFRecord
from test_lenet_train import change_record, flip, set_label


def ofrecord(*arguments, **more):
    return Result(subprocess.run([sys.executable, "-m", "ofrecord"] + list(map(str, arguments)), cwd=str(PROJECT),
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", **more))


# -- check ---------------------------------------------------------------------------

def test_check_a_good_dataset(converted):
    result = ofrecord("check", converted)
    assert result.code == 0 and result.err == "", result
    assert re.findall(r"^part-(\d): 10 records, [\d,]+ bytes, good$", result.out, re.M) == list("01234")
    assert "50 records" in result.out.splitlines()[-1] and "every one is good" in result.out.splitlines()[-1]


def set_image(data):
    def change(feature):
        feature["images"].bytes_list.value[0] = data
    return change


def first_image():
    return (IMAGES / "00000030_3.png").read_bytes()


def encoded(ext, *shape):
    return cv2.imencode(ext, np.zeros(shape, np.uint8))[1].tobytes()


SIXTEEN = cv2.imencode(".png", np.zeros((28, 28), np.uint16))[1].tobytes()

WRONG = {
    "a byte of an image": (lambda d: flip(d / "part-1", 150), ["part-1, record 0", "damaged"]),
    "a byte of a length": (lambda d: flip(d / "part-2", 1), ["part-2, record 0", "file ends"]),
    "cut off": (lambda d: (d / "part-4").write_bytes((d / "part-4").read_bytes()[:-1]), ["part-4, record 9", "file ends after"]),
    "empty": (lambda d: (d / "part-4").write_bytes(b""), ["part-4", "empty file"]),
    "missing": (lambda d: (d / "part-3").unlink(), ["part-3", "missing"]),
    "not listed": (lambda d: (d / "part-7").write_bytes((d / "part-0").read_bytes()), ["part-7", "not of this dataset"]),
    "label outside": (lambda d: change_record(d, set_label(10)), ["label 10 is outside the 10 classes"]),
    "label miscounted": (lambda d: change_record(d, set_label(4)), ["label 3 is there 6 times", "7 times"]),
    "no image": (lambda d: change_record(d, set_image(b"nothing")), ["part-0, record 0", "cannot read it"]),
    "cut-off image": (lambda d: change_record(d, set_image(first_image()[:-9])), ["part-0, record 0", "cut off"]),
    "another format": (lambda d: change_record(d, set_image(encoded(".jpg", 28, 28))), ["part-0, record 0", "JPEG", "PNG"]),
    "colour": (lambda d: change_record(d, set_image(encoded(".png", 28, 28, 3))), ["part-0, record 0", "3 channels"]),
    "16-bit": (lambda d: change_record(d, set_image(SIXTEEN)), ["part-0, record 0", "16-bit"]),
    "no feature": (lambda d: change_record(d, lambda f: f.pop("images")), ["part-0, record 0", "'images'"]),
    "two labels": (lambda d: change_record(d, lambda f: f["labels"].int32_list.value.append(1)), ["part-0, record 0", "one label"]),
}


@pytest.mark.parametrize("spoil, said", WRONG.values(), ids=list(WRONG))
def test_check_names_part_record_and_reason(dataset, spoil, said):
    spoil(dataset)
    result = ofrecord("check", dataset)
    assert result.code == 2, result
    assert any(all(text in line for text in said) for line in result.err.splitlines()), result
    assert "Traceback" not in result.err and "every one is good" not in result.out


def write_part(path, records):
    with path.open("wb") as file:
        for features in records:
            record = OFRecord()
            for name, value in features.items():
                if isinstance(value, bytes):
                    record.feature[name].bytes_list.value.append(value)
                else:
                    record.feature[name].int64_list.value.append(value)
            serialized = record.SerializeToString()
            file.write(struct.pack("<q", len(serialized)) + serialized)


@pytest.fixture
def foreign(tmp_path):
    """Parts as somebody else's converter writes them: padded names, other features, int64, no manifest."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for part in range(2):
        write_part(folder / "part-{:05d}".format(part), [
            {"encoded": cv2.imencode(".jpg", np.full((20, 30, 3), 9 * index, np.uint8))[1].tobytes(), "class/label": index}
            for index in range(13)])
    return folder


FEATURES = ["--image_feature", "encoded", "--label_feature", "class/label"]


def test_parts_without_a_manifest(foreign, tmp_path):
    result = ofrecord("check", foreign, *FEATURES)
    assert result.code == 0, result
    assert "26 records" in result.out and "there is no dataset.json" in result.out
    result = ofrecord("check", foreign)
    assert result.code == 2 and "part-00000, record 0" in result.err and "'class/label', 'encoded'" in result.err
    result = ofrecord("show", foreign, *FEATURES)
    assert result.code == 0 and "26 colour JPEG images 30x20, 13 classes" in result.out, result
    assert cv2.imread(str(tmp_path / "foreign_sheet.png")) is not None
    (foreign / "part-00000").unlink()
    assert_one_error(ofrecord("check", foreign, *FEATURES), "part 0 is missing")


@pytest.mark.parametrize("action", ["check", "show"])
@pytest.mark.parametrize("name, said", [("nowhere", "does not exist"), ("empty", "no part files"), ("file", "not a folder")])
def test_no_dataset(tmp_path, action, name, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert_one_error(ofrecord(action, tmp_path / name), "no dataset", said)


def test_wrong_usage():
    for arguments in ([], ["look", "."], ["check"]):
        assert_one_error(ofrecord(*arguments))


# -- show --------------------------------------------------------------------------------

def test_show_prints_counts_and_draws_a_sheet(converted, tmp_path):
    result = ofrecord("show", converted, "--sheet", tmp_path / "sheet.png")
    assert result.code == 0, result
    assert "50 gray .png images 28x28, 10 classes, in 5 parts, 14,997 bytes" in result.out
    assert re.search(r"^ +1 +7 +█{40}$", result.out, re.M) and re.search(r"^ +0 +4 +█{23}$", result.out, re.M)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    # Rows of digits: white strokes on black in the first columns, and every class has a row.
    assert sheet.shape[0] > 10 * 64 and sheet.shape[1] > 12 * 64
    for row in range(10):
        tile = sheet[40 + 68 * row:40 + 68 * row + 64, 170:170 + 64]
        assert (tile < 20).mean() > 0.5 and (tile > 200).mean() > 0.02, row
    again = tmp_path / "again.png"
    ofrecord("show", converted, "--sheet", again)
    assert again.read_bytes() == (tmp_path / "sheet.png").read_bytes()


def class_folders(root, names):
    """A dataset with one blue image of 90x40 in each class."""
    blue = np.dstack([np.full((90, 40), 250, np.uint8)] + [np.zeros((90, 40), np.uint8)] * 2)
    for name in names:
        (root / "in" / name).mkdir(parents=True)
        (root / "in" / name / "x.png").write_bytes(cv2.imencode(".png", blue)[1].tobytes())
    result = run_script("img2ofrecord.py", "--image_root", root / "in", "--class_folders", "--save_dir", root / "d",
                        "--part_num", 2)
    assert result.code == 0, result
    shown = ofrecord("show", root / "d")
    assert shown.code == 0 and shown.err == "", shown
    sheet = cv2.imread(str(root / "d_sheet.png"))
    assert (np.abs(sheet.astype(int) - (250, 0, 0)).sum(axis=2) < 30).mean() > 0.01  # blue stays blue
    return shown.out


def test_show_class_names(tmp_path):
    out = class_folders(tmp_path, ["猫", "a very long name of a class, with commas"])
    assert "2 colour .png images 40x90, 2 classes" in out
    assert re.search(r"猫 +1 +█{40}$", out, re.M) and re.search(r"a very long name of a class, w +1", out)


def test_show_many_classes(tmp_path):
    out = class_folders(tmp_path, ["class {:02d}".format(index) for index in range(72)])
    assert "72 classes" in out and "and 22 smaller classes" in out


def test_show_of_a_damaged_dataset_points_to_check(dataset):
    (dataset / "part-2").write_bytes((dataset / "part-2").read_bytes()[:-5])
    assert_one_error(ofrecord("show", dataset), "part-2, record 9", "ofrecord check")


def test_show_where_the_sheet_cannot_be_written(converted):
    assert_one_error(ofrecord("show", converted, "--sheet", "/nowhere/sheet.png"), "contact sheet", "/nowhere/sheet.png")
