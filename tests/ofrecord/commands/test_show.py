"""``python -m ofrecord show``: text, and a picture of sample images."""

import re

import cv2
import numpy as np
import pytest
from damage import change_record, cut, ofrecord, rewrite_manifest, set_image
from helpers import assert_one_error, call, convert
from test_check import change_table


def test_counts_and_a_sheet(converted, tmp_path):
    result = ofrecord("show", converted, "--sheet", tmp_path / "sheet.png")
    assert result.code == 0 and result.err == "", result
    assert "50 gray PNG images 28x28, 10 classes, in 5 parts, 14,997 bytes" in result.out
    assert "pixels: mean 31.1, standard deviation 76.0 (0 to 255)" in result.out
    assert re.search(r"^ +1 +7 +█{40}$", result.out, re.M)
    assert re.search(r"^ +0 +4 +█{23}$", result.out, re.M)
    assert result.out.endswith(f"contact sheet: {tmp_path}/sheet.png\n")
    # Rows of twelve digits: white strokes on black.
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (640, 1200, 3)
    for number in range(50):
        x, y = 100 * (number % 12) + 10, 40 + 120 * (number // 12) + 30
        tile = sheet[y : y + 80, x : x + 80]
        assert (tile < 20).mean() > 0.5 and (tile > 200).mean() > 0.02, number
    again = tmp_path / "again.png"
    assert ofrecord("show", converted, "--sheet", again).code == 0
    assert again.read_bytes() == (tmp_path / "sheet.png").read_bytes()


def show_blue_images(root, names):
    """Convert one blue image of 90x40 in each class; return what ``show`` prints of it."""
    blue = np.full((90, 40, 3), (250, 0, 0), np.uint8)
    for name in names:
        (root / "in" / name).mkdir(parents=True)
        (root / "in" / name / "x.png").write_bytes(cv2.imencode(".png", blue)[1].tobytes())
    source = ["--image_root", root / "in", "--class_folders", "--part_num", 2]
    assert convert(*source, "--save_dir", root / "d").code == 0
    shown = ofrecord("show", root / "d")
    assert shown.code == 0 and shown.err == "", shown
    sheet = cv2.imread(str(root / "d_sheet.png")).astype(int)
    assert (np.abs(sheet - (250, 0, 0)).sum(axis=2) < 30).mean() > 0.01  # blue stays blue
    return shown.out


@pytest.mark.filterwarnings("error")
def test_names_of_classes(tmp_path):
    """No warnings, whatever is in a name: fonts without a character, what looks like a formula."""
    names = [
        "猫",
        "a very long name of a class, with commas",
        "$x^2$",
        "from_$5_to_$10",
        "\U0001f600",
        "two\nlines\x1b[31m",
    ]
    out = show_blue_images(tmp_path, names)
    assert f"{len(names)} colour PNG images 40x90, {len(names)} classes" in out
    assert re.search(r"猫 +1 +█{40}$", out, re.M)
    assert re.search(r"a very long name of a class, w +1", out)
    assert "two\\nlines\\x1b[31m" in out and "\x1b" not in out


def test_many_classes(tmp_path):
    out = show_blue_images(tmp_path, [f"class {index:03d}" for index in range(150)])
    assert "150 classes" in out and "and 100 smaller classes" in out
    assert cv2.imread(str(tmp_path / "d_sheet.png")).shape[0] == 40 + 120 * 12


def test_classes_without_images_and_skipped_ones(dataset):
    rewrite_manifest(dataset, num_classes=11, class_names=[f"class {n}" for n in range(11)], label_counts={**{str(n): 5 for n in range(10)}, "10": 0}, skipped=[{"file": "x.png", "reason": "bad"}])  # fmt: skip
    result = ofrecord("show", dataset)
    assert result.code == 0 and re.search(r"^ +class 10 +0$", result.out, re.M), result
    assert "skipped: 1 image, listed in dataset.json" in result.out


def test_a_damaged_dataset_points_to_check(dataset):
    change_record(dataset, set_image(b"no image"))
    assert_one_error(ofrecord("show", dataset), "part-0, record 0: invalid image")
    cut(dataset / "part-2", -5)
    assert_one_error(ofrecord("show", dataset), "part-2 has 2,963 bytes and should have 2,968")


def test_a_table_of_another_dataset(dataset):
    change_table(dataset, lambda rows: [row._replace(label=77) for row in rows])
    rewrite_manifest(dataset, class_names=list("abcdefghij"))
    assert_one_error(ofrecord("show", dataset), "part-0, record 0: it is not the next one in images.csv", "ofrecord check")  # fmt: skip
    assert "images.csv has another label or SHA-256" in ofrecord("check", dataset).err


def test_where_the_sheet_is_written(dataset):
    assert_one_error(ofrecord("show", dataset, "--sheet", "/nowhere/s.png"), "contact sheet", "/nowhere/s.png", started=True)  # fmt: skip
    assert_one_error(ofrecord("show", dataset, "--sheet", dataset / "part-0"), "--sheet", ".png")
    result = call("ofrecord.__main__", "show", ".", cwd=dataset)
    assert result.code == 0 and result.out.endswith("contact sheet: ../dataset_sheet.png\n")
    assert (dataset.parent / "dataset_sheet.png").exists()
