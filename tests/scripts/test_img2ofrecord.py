"""The converter as people start it: what it prints, what it writes, what it refuses."""

import os
import shutil
import sys

import cv2
import numpy as np
import pytest
from decode import Dataset, decode_with_oneflow
from helpers import (
    IMAGES,
    LABELS,
    PROJECT,
    assert_one_error,
    convert,
    read_manifest,
    run_python,
    run_script,
    snapshot,
)
from making import TUTORIAL

from img2ofrecord import encode_img_file, ndarray2ofrecords
from ofrecord.record import read_part

NAMES, DIGITS = zip(*TUTORIAL, strict=True)

CONFIGURATION = """\
The image root is:  ./data/images/train_set/
The amount of OFRecord data part is:  5
The directory of Labels is:  ./data/images/train_label/label.txt
The image format is:  .png
The OFRecord save directory is:  ./dataset/
Start Processing......
"""
SAVED = "".join(f"./data/images/train_set/{name} feature saved\n" for name in NAMES)
TUTORIAL_OUTPUT = f"{CONFIGURATION}{SAVED}Process image successfully !!!\n"


def gray_pixels(name):
    return cv2.imread(str(IMAGES / name), cv2.IMREAD_GRAYSCALE)


def test_prints_the_tutorials_lines(project, converted):
    """With its arguments, which are the defaults; the bytes are those of one worker in the tests' process."""
    arguments = ["--part_num=5", "--save_dir=./dataset/", "--image_root=./data/images/train_set/"]
    result = run_script("img2ofrecord.py", *arguments, cwd=project)
    assert result.code == 0 and result.out == TUTORIAL_OUTPUT, result
    names = ["dataset.json", "images.csv", *(f"part-{index}" for index in range(5))]
    assert sorted(os.listdir(project / "dataset")) == names
    assert snapshot(project / "dataset") == snapshot(converted)


def test_an_error_is_exit_code_2_and_one_line_on_stderr(project):
    path = project / "data/images/train_set" / NAMES[2]
    path.rename(path.with_suffix(".PNG"))
    result = run_script("img2ofrecord.py", cwd=project)
    meant = f"missing, but it has a label; did you mean {path.stem}.PNG?"
    assert_one_error(result, f"./data/images/train_set/{NAMES[2]}: {meant}", started=True)
    assert "\nimg2ofrecord.py: error: " in result.err and "4 finished parts kept in" in result.err
    assert result.out.startswith(CONFIGURATION) and "successfully" not in result.out
    assert os.listdir(project / "dataset") == [".img2ofrecord"]


def test_oneflow_decodes_the_pixels_that_opencv_reads(tmp_path):
    """Of gray images in parts with padded names; and of images one of which has a colour."""
    shutil.copytree(IMAGES, tmp_path / "images")
    gray = [gray_pixels(name)[:, :, None] for name in NAMES]
    colour = [np.dstack([pixels] * 3) for pixels in gray]
    colour[-1][:, :, 0] = 99  # in RGB
    cv2.imwrite(str(tmp_path / "images" / NAMES[-1]), colour[-1][:, :, ::-1])
    padded = ["--part_name_suffix_length", 5, "--part_num", 12]
    assert convert(*padded, "--save_dir", tmp_path / "g").code == 0
    assert convert("--image_root", tmp_path / "images", "--save_dir", tmp_path / "c").code == 0
    sizes = [(28, 28)] * 50
    datasets = {
        "gray": Dataset(tmp_path / "g", sizes, 1, part_num=12, suffix_length=5),
        "colour": Dataset(tmp_path / "c", sizes, 3, part_num=5),
    }
    decoded = decode_with_oneflow(datasets)
    for name, wanted in ("gray", gray), ("colour", colour):
        images, labels = decoded[name]
        assert labels == list(DIGITS)
        np.testing.assert_array_equal(images, wanted)


IN_THE_MANIFEST = {
    **{"layout": 3, "num_records": 50, "num_classes": 10, "class_names": None, "skipped": []},
    **{"image_format": ".png", "channels": 1, "num_gray": 50, "plain_jpeg": False},
    **{"width": 28, "height": 28, "num_measured": 50, "split_id": None},
    **{"image_feature": "images", "label_feature": "labels", "label_type": "int32"},
    "label_counts": {str(digit): DIGITS.count(digit) for digit in range(10)},
}


def test_manifest_describes_the_dataset(converted):
    manifest, pixels = read_manifest(converted), np.stack([gray_pixels(name) for name in NAMES])
    assert {name: manifest[name] for name in IN_THE_MANIFEST} == IN_THE_MANIFEST
    assert manifest["mean"] == pytest.approx([pixels.mean()], abs=1e-5)
    assert manifest["std"] == pytest.approx([pixels.std()], abs=1e-5)
    assert manifest["histogram"] == [np.bincount(pixels.ravel(), minlength=256).tolist()]


def test_a_second_run_replaces_the_dataset_and_nothing_else(dataset, converted):
    for name in "notes.txt", "part-x":
        (dataset / name).write_text("mine")
    assert convert("--save_dir", dataset, "--part_num", 12).code == 0
    assert len(list(dataset.glob("part-*[0-9]"))) == 12
    assert convert("--save_dir", dataset).code == 0  # fewer parts: no old ones remain
    mine = {"notes.txt": b"mine", "part-x": b"mine"}
    assert snapshot(dataset) == {**snapshot(converted), **mine}
    (dataset / "part-7").write_text("a part of another dataset")
    before = snapshot(dataset)
    assert_one_error(convert("--save_dir", dataset, "--part_num", 9), "part-7")
    assert snapshot(dataset) == before


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from helpers import assert_one_error, convert, snapshot, visible

disk, bmp = Path(sys.argv[1]), ["--img_format", ".bmp"]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72k", "none", disk], check=True)
assert convert("--save_dir", disk).code == 0
before = snapshot(disk)
result = convert("--save_dir", disk, *bmp)
assert_one_error(result, f"No space left on device; nothing was changed in {disk}", started=True)
assert "1 finished part kept in" in result.err and "the same command continues" in result.err
after = snapshot(disk)
assert visible(disk) == before
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
assert_one_error(convert("--save_dir", disk), "ead-only", str(disk), started=True)
assert snapshot(disk) == after
subprocess.run(["mount", "-o", "remount,rw,size=1m", disk], check=True)
rest = disk / ".img2ofrecord/new-0123456789abcdef"  # of a run that was killed: it makes room first
rest.write_bytes(bytes(900_000))
result = convert("--save_dir", disk, *bmp)
assert result.code == 0 and "1 of 5 parts are there already" in result.err
print("checked", len(before), "files")
"""


def test_full_and_read_only_disks(own_mounts, tmp_path):
    """The folder itself is a mount point, which cannot be renamed."""
    unshare, *words = [*own_mounts, sys.executable, "-c", FULL_DISK, tmp_path]
    result = run_python(*words, python=unshare, env={"PYTHONPATH": f"{PROJECT}:{PROJECT}/tests"})
    assert result.out == "checked 7 files\n", result


def test_all_problems_are_reported_together(tmp_path):
    missing = [f"missing{index}.png" for index in range(25)]
    lines = LABELS.read_text() + "".join(f'{{"{name}": 1}}\n' for name in missing)
    (tmp_path / "label.txt").write_text(lines)
    result = convert("--label_dir", tmp_path / "label.txt", "--save_dir", tmp_path / "d")
    errors = [line for line in result.err.splitlines() if ": error: " in line]
    assert result.code == 2 and len(errors) == 22, result
    for name, error in zip(missing, errors[:20], strict=False):
        assert f"/{name}: missing" in error
    assert "5 more" in errors[20] and "25 invalid images" in errors[21]
    assert not (tmp_path / "d" / "dataset.json").exists()


def test_encode_img_file():
    path = str(IMAGES / NAMES[0])
    assert encode_img_file(path).data.startswith(b"\xff\xd8")  # JPEG by default
    unchanged = encode_img_file(path, ".png")
    assert unchanged.data == (IMAGES / NAMES[0]).read_bytes() and unchanged.reencode_reason is None


def test_ndarray2ofrecords(tmp_path):
    with (tmp_path / "part").open("wb") as file:
        ndarray2ofrecords(file, "images", b"an image", "labels", -1)
        with pytest.raises(ValueError, match="out of range"):
            ndarray2ofrecords(file, "images", b"an image", "labels", 2**31)
    assert list(read_part(tmp_path / "part")) == [(0, b"an image", -1)]
