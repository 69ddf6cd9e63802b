"""The converter as people start it: what it prints, what it writes, what it refuses."""

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from decode import Dataset, decode_with_oneflow
from helpers import (
    ENVIRONMENT,
    IMAGES,
    LABELS,
    PROJECT,
    assert_one_error,
    convert,
    part_files,
    read_manifest,
    run_script,
    snapshot,
    start_script,
)

NAMES = [next(iter(json.loads(line))) for line in LABELS.read_text().splitlines()]
DIGITS = [int(name[9]) for name in NAMES]  # 00000030_3.png is a 3

CONFIGURATION = """\
The image root is:  ./data/images/train_set/
The amount of OFRecord data part is:  5
The directory of Labels is:  ./data/images/train_label/label.txt
The image format is:  .png
The OFRecord save directory is:  ./dataset/
Start Processing......
"""
TUTORIAL_OUTPUT = (
    CONFIGURATION
    + "".join(f"./data/images/train_set/{name} feature saved\n" for name in NAMES)
    + "Process image successfully !!!\n"
)


def read_part(path):
    """[(image bytes, label)] of a part file, with struct and OneFlow's protobuf class alone."""
    from ofrecord.record import OFRecord

    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<q", content[:8])
        assert 0 < length <= len(content) - 8
        feature = OFRecord.FromString(content[8 : 8 + length]).feature
        assert sorted(feature) == ["images", "labels"]
        (image,), (label,) = feature["images"].bytes_list.value, feature["labels"].int32_list.value
        found.append((image, label))
        content = content[8 + length :]
    return found


def gray_pixels(name):
    return cv2.imread(str(IMAGES / name), cv2.IMREAD_GRAYSCALE)


# -- the tutorial ---------------------------------------------------------------------


def test_the_tutorials_images_and_labels():
    labels = [json.loads(line) for line in LABELS.read_text().splitlines()]
    assert labels[:6] == [
        {"00000030_3.png": 3},
        {"00000034_0.png": 0},
        {"00000026_4.png": 4},
        {"00000043_9.png": 9},
        {"00000047_5.png": 5},
        {"00000003_1.png": 1},
    ]
    assert labels == [{name: digit} for name, digit in zip(NAMES, DIGITS, strict=True)]
    assert sorted(NAMES) == sorted(os.listdir(IMAGES)) and len(NAMES) == 50
    for index, name in enumerate(sorted(NAMES)):
        assert name == f"{index:08d}_{name[9]}.png"
        image = cv2.imread(str(IMAGES / name), cv2.IMREAD_UNCHANGED)
        assert image.shape == (28, 28) and image.dtype == np.uint8


def test_prints_the_tutorials_lines(project, converted):
    result = run_script("img2ofrecord.py", cwd=project)
    assert result.code == 0 and result.out == TUTORIAL_OUTPUT, result
    assert sorted(os.listdir(project / "dataset")) == [
        "dataset.json",
        "images.csv",
        *(f"part-{index}" for index in range(5)),
    ]
    # In another process, with as many workers as there are CPU cores.
    assert snapshot(project / "dataset") == snapshot(converted)


def test_takes_the_tutorials_arguments(project, converted):
    arguments = "--part_num=5 --save_dir=./dataset/ --img_format=.png"
    result = convert(*arguments.split(), "--image_root=./data/images/train_set/", cwd=project)
    assert result.code == 0 and result.out == TUTORIAL_OUTPUT, result
    assert snapshot(project / "dataset") == snapshot(converted)


def test_an_error_is_exit_code_2_and_one_line_on_stderr(project):
    (project / "data/images/train_set" / NAMES[2]).unlink()
    result = run_script("img2ofrecord.py", cwd=project)
    assert_one_error(result, f"./data/images/train_set/{NAMES[2]}: missing", started=True)
    assert "\nimg2ofrecord.py: error: " in result.err and "4 finished parts kept in" in result.err
    assert result.out.startswith(CONFIGURATION) and "successfully" not in result.out
    assert os.listdir(project / "dataset") == [".img2ofrecord"]


def test_stdout_that_was_closed_is_no_error(project):
    """As with ``| head``."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start_script("img2ofrecord.py", cwd=project, stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141  # 128 + SIGPIPE
    assert "Traceback" not in err and "rror" not in err


# -- what is in the records -------------------------------------------------------------


def test_records_read_back_with_plain_protobuf(converted):
    found = [record for path in part_files(converted) for record in read_part(path)]
    assert [label for _, label in found] == DIGITS
    # Gray PNG in, the same gray PNG out.
    assert [image for image, _ in found] == [(IMAGES / name).read_bytes() for name in NAMES]


@pytest.fixture(scope="session")
def colored(tmp_path_factory):
    """The tutorial's images, the last one in colour: (image root, its pixels in BGR)."""
    folder = tmp_path_factory.mktemp("colored")
    root = shutil.copytree(IMAGES, folder / "images")
    pixels = np.dstack([gray_pixels(NAMES[-1])] * 3)
    pixels[:, :, 2] = 99
    cv2.imwrite(str(root / NAMES[-1]), pixels)
    return root, pixels


@pytest.fixture(scope="session")
def colored_dataset(colored, tmp_path_factory):
    folder = tmp_path_factory.mktemp("colored") / "dataset"
    result = convert("--image_root", colored[0], "--save_dir", folder)
    assert result.code == 0, result
    assert result.out.count("feature saved") == 50  # each image is named once
    return folder


@pytest.fixture(scope="session")
def padded_dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("padded") / "dataset"
    result = convert("--part_name_suffix_length", 5, "--part_num", 12, "--save_dir", folder)
    assert result.code == 0, result
    return folder


@pytest.fixture(scope="session")
def decoded(converted, colored_dataset, padded_dataset):
    """What OneFlow reads from the three: {"gray", "color", "padded": (images, labels)}."""
    datasets = {
        "gray": Dataset(converted, [(28, 28)] * 50, channels=1, part_num=5),
        "color": Dataset(colored_dataset, [(28, 28)] * 50, channels=3, part_num=5),
        "padded": Dataset(padded_dataset, [(28, 28)] * 50, 1, part_num=12, suffix_length=5),
    }
    return decode_with_oneflow(datasets)


@pytest.mark.parametrize("dataset", ["gray", "color", "padded"])
def test_oneflow_decodes_the_pixels_that_opencv_reads(decoded, colored, dataset):
    images, labels = decoded[dataset]
    assert labels == DIGITS
    wanted = [gray_pixels(name)[:, :, None] for name in NAMES]
    if dataset == "color":
        wanted = [np.dstack([pixels] * 3) for pixels in wanted[:-1]] + [colored[1][:, :, ::-1]]
    np.testing.assert_array_equal(images, wanted)


IN_THE_MANIFEST = {
    **{"layout": 3, "num_records": 50, "num_classes": 10, "class_names": None},
    **{"image_format": ".png", "channels": 1, "num_gray": 50, "plain_jpeg": False},
    **{"width": 28, "height": 28, "num_measured": 50, "split_id": None},
    "skipped": [],
    **{"image_feature": "images", "label_feature": "labels", "label_type": "int32"},
}


def test_manifest_describes_the_dataset(converted):
    manifest = read_manifest(converted)
    assert {name: manifest[name] for name in IN_THE_MANIFEST} == IN_THE_MANIFEST
    assert manifest["label_counts"] == {str(digit): DIGITS.count(digit) for digit in range(10)}
    pixels = np.stack([gray_pixels(name) for name in NAMES]).astype(np.float64)
    assert manifest["mean"] == pytest.approx([pixels.mean()], abs=1e-5)
    assert manifest["std"] == pytest.approx([pixels.std()], abs=1e-5)
    counts = np.bincount(pixels.astype(int).ravel(), minlength=256)
    assert manifest["histogram"] == [counts.tolist()]
    assert manifest["parts"] == [
        {
            "file": path.name,
            "num_records": len(read_part(path)),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in part_files(converted)
    ]


# -- a dataset that is there already -------------------------------------------------------


def test_a_second_run_replaces_the_dataset(dataset, converted):
    assert convert("--save_dir", dataset, "--part_num", 12).code == 0
    assert len(part_files(dataset)) == 12
    assert convert("--save_dir", dataset).code == 0  # fewer parts: no old ones remain
    assert snapshot(dataset) == snapshot(converted)


def test_files_beside_a_dataset_stay(dataset):
    (dataset / "notes.txt").write_text("mine")
    (dataset / "part-x").write_text("mine too")
    assert convert("--save_dir", dataset, "--part_num", 2).code == 0
    assert (dataset / "notes.txt").read_text() == "mine"
    assert (dataset / "part-x").read_text() == "mine too"
    (dataset / "part-7").write_text("a part of another dataset")
    before = snapshot(dataset)
    assert_one_error(convert("--save_dir", dataset, "--part_num", 9), "part-7")
    assert snapshot(dataset) == before


@pytest.mark.parametrize("name", ["notes.txt", "part-0", "dataset.json", "images.csv"])
def test_a_folder_with_other_files_is_refused(tmp_path, name):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / name).write_text("{}")
    before = snapshot(tmp_path)
    assert_one_error(convert("--save_dir", tmp_path / "dataset"), "dataset", name)
    assert snapshot(tmp_path) == before


FULL_DISK = """
import subprocess, sys
from pathlib import Path

tests, disk = sys.argv[1:]
sys.path[:0] = [tests, str(Path(tests).parent)]
from helpers import assert_one_error, convert, snapshot

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72k", "none", disk], check=True)
folder = Path(disk) / "dataset"
assert convert("--save_dir", folder).code == 0
before = snapshot(disk)
result = convert("--save_dir", folder, "--img_format", ".bmp")
assert_one_error(result, "No space left on device; nothing was changed", str(folder), started=True)
assert "1 finished part kept in" in result.err and "the same command continues" in result.err
after = snapshot(disk)
assert {name: data for name, data in after.items() if "/." not in name} == before
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
assert_one_error(convert("--save_dir", folder), "ead-only", str(folder), started=True)
assert snapshot(disk) == after
subprocess.run(["mount", "-o", "remount,rw,size=1m", disk], check=True)
result = convert("--save_dir", folder, "--img_format", ".bmp")
assert result.code == 0 and "1 of 5 parts are there already" in result.err
print("checked", len(before), "files")
"""


def test_full_and_read_only_disks(own_mounts, tmp_path):
    """On a real file system of 64 KiB in memory."""
    command = [*own_mounts, sys.executable, "-c", FULL_DISK, PROJECT / "tests", tmp_path]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, encoding="utf-8")
    assert process.stdout == "checked 7 files\n", process.stderr


# -- invalid input is one line, and the dataset from before is still there -------------------


def test_all_problems_are_reported_together(tmp_path):
    missing = [f"missing{index}.png" for index in range(25)]
    lines = LABELS.read_text() + "".join(f'{{"{name}": 1}}\n' for name in missing)
    (tmp_path / "label.txt").write_text(lines)
    result = convert("--label_dir", tmp_path / "label.txt", "--save_dir", tmp_path / "d")
    assert result.code == 2
    errors = [line for line in result.err.splitlines() if ": error: " in line]
    assert len(errors) == 22
    for name, error in zip(missing[:20], errors[:20], strict=True):
        assert f"/{name}: missing" in error
    assert "5 more" in errors[20] and "25" in errors[21]
    assert not (tmp_path / "d" / "dataset.json").exists()


BAD_ARGUMENTS = [
    (["--part_num", "0"], ["--part_num: ", "1", "not '0'"]),
    (["--part_num", "51"], ["--part_num 51", "50 images"]),
    (["--part_num", "five"], ["--part_num: ", "integer", "'five'"]),
    (["--img_format", "png"], ["--img_format", "'png'", ".png"]),
    (["--label_dir", "nowhere.txt"], ["nowhere.txt", "--label_dir"]),
    (["--image_root", "nowhere/"], ["nowhere", "does not exist"]),
    (["--save_dir", "README"], ["README", "is not a folder"]),
    (["--save_dir", "README/"], ["README/ is not a folder"]),
    (["--save_dir", "README/deeper"], ["README"]),
    (["--save_dir", "/proc/dataset"], ["cannot write to", "/proc/dataset"]),
    (["--save", "elsewhere"], ["--save"]),  # abbreviated
    (["--part_num", "2", "extra"], ["extra"]),
    (["--max_value", "4095"], ["--max_value", "unknown"]),  # of an earlier version
]


@pytest.mark.parametrize(
    "arguments, texts", BAD_ARGUMENTS, ids=[" ".join(words) for words, _ in BAD_ARGUMENTS]
)
def test_bad_arguments(project, dataset, arguments, texts):
    (project / "README").write_text("a file")
    before = snapshot(project)
    assert_one_error(convert(*arguments, cwd=project), *texts)
    assert snapshot(project) == before


# -- the functions that the tutorial explains ----------------------------------------------


def encode(path, *ext):
    from img2ofrecord import encode_img_file

    return encode_img_file(str(path), *ext)


def unchanged_pixels(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_encode_img_file(tmp_path):
    pixels = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)
    cv2.imwrite(str(tmp_path / "color.bmp"), pixels)
    encoded = encode(tmp_path / "color.bmp", ".png")
    assert encoded.data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(unchanged_pixels(encoded.data), pixels)
    assert encoded.size == (20, 24)
    np.testing.assert_array_equal(encoded.pixels, pixels)
    assert encoded.reencode_reason == "BMP to PNG"

    jpeg = encode(IMAGES / NAMES[0]).data  # JPEG by default
    assert jpeg.startswith(b"\xff\xd8") and unchanged_pixels(jpeg).shape == (28, 28)
    unchanged = encode(IMAGES / NAMES[0], ".png")
    assert unchanged.data == (IMAGES / NAMES[0]).read_bytes() and unchanged.reencode_reason is None


def test_ndarray2ofrecords(tmp_path):
    from img2ofrecord import ndarray2ofrecords

    labels = (0, -1, 2**31 - 1)
    with (tmp_path / "part").open("wb") as file:
        for label in labels:
            ndarray2ofrecords(file, "images", b"an image", "labels", label)
    assert read_part(tmp_path / "part") == [(b"an image", label) for label in labels]
    with pytest.raises(ValueError, match="out of range"):
        ndarray2ofrecords(io.BytesIO(), "images", b"an image", "labels", 2**31)
