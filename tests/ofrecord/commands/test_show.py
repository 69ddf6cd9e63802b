"""``python -m ofrecord show``: text, and a picture of sample images."""

import re

import cv2
import numpy as np
import pytest
from damage import change_record, ofrecord, rewrite_manifest, set_image
from helpers import assert_one_error, call, cases, convert
from making import encoded

BLUE = np.full((90, 40, 3), (250, 0, 0), np.uint8)


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


def shown(root, names, pixels=BLUE):
    """Convert one blue image in each class; return what ``show`` prints of it, and the sheet."""
    for name in names:
        (root / "in" / name).mkdir(parents=True)
        (root / "in" / name / "x.png").write_bytes(encoded(".png", pixels))
    source = ["--image_root", root / "in", "--class_folders", "--part_num", 1]
    assert convert(*source, "--save_dir", root / "d").code == 0
    result = ofrecord("show", root / "d")
    assert result.code == 0 and result.err == "", result
    sheet = cv2.imread(str(root / "d_sheet.png")).astype(int)
    assert (np.abs(sheet - (250, 0, 0)).sum(axis=2) < 30).sum() > 100  # blue stays blue
    return result.out, sheet


NAMES = ["猫", "a very long name of a class, with commas", "$x^2$", "from_$5_to_$10", "\U0001f600", "two\nlines\x1b[31m"]  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_names_of_classes(tmp_path):
    """No warnings, whatever is in a name: fonts without a character, what looks like a formula."""
    out, _ = shown(tmp_path, NAMES)
    assert "6 colour PNG images 40x90, 6 classes" in out
    assert re.search(r"猫 +1 +█{40}$", out, re.M)
    assert re.search(r"a very long name of a class, w +1", out)
    assert "two\\nlines\\x1b[31m" in out and "\x1b" not in out


SHAPES = cases([(2, (3, 9000), 160), (1, (3000, 2000), 160)], [(150, (90, 40), 40 + 120 * 12)])


@pytest.mark.parametrize("classes, size, height", SHAPES)
def test_few_and_many_classes_and_sizes(tmp_path, classes, size, height):
    names = [f"class {index:03d}" for index in range(classes)]
    out, sheet = shown(tmp_path, names, np.full((*size, 3), (250, 0, 0), np.uint8))
    assert f"{size[1]}x{size[0]}, {classes} class" in out
    assert len(re.findall("█$", out, re.M)) == min(classes, 50)
    assert ("and 100 smaller classes" in out) == (classes == 150) and sheet.shape[0] == height


def test_classes_without_images_and_skipped_ones(dataset):
    counts = {**{str(n): 5 for n in range(10)}, "10": 0}
    fields = {"class_names": [f"class {n}" for n in range(11)], "label_counts": counts}
    skipped = [{"file": "x.png", "reason": "bad"}]
    rewrite_manifest(dataset, num_classes=11, skipped=skipped, **fields)
    result = ofrecord("show", dataset)
    assert result.code == 0 and re.search(r"^ +class 10 +0$", result.out, re.M), result
    assert "skipped: 1 image, listed in dataset.json" in result.out


def test_a_damaged_dataset_points_to_check(dataset):
    change_record(dataset, set_image(b"no image"))
    assert_one_error(ofrecord("show", dataset), "part-0, record 0: invalid image")


def test_where_the_sheet_is_written(dataset):
    result = ofrecord("show", dataset, "--sheet", "/nowhere/s.png")
    assert_one_error(result, "contact sheet", "/nowhere/s.png", started=True)
    assert_one_error(ofrecord("show", dataset, "--sheet", dataset / "part-0"), "--sheet", ".png")
    result = call("ofrecord.__main__", "show", ".", cwd=dataset)
    assert result.code == 0 and result.out.endswith("contact sheet: ../dataset_sheet.png\n")
    assert (dataset.parent / "dataset_sheet.png").exists()
