"""The converter: what it prints, what it writes, what it refuses."""

import hashlib
import io
import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import IMAGES, LABELS, PROJECT, assert_one_error, decode_with_oneflow, run_script, snapshot
from ofrecord.record import OFRecord

NAMES = [next(iter(json.loads(line))) for line in LABELS.read_text().splitlines()]


def records(path):
    """[(image bytes, label)] of a part file, with struct and plain protobuf alone."""
    import struct

    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<q", content[:8])
        assert 0 < length <= len(content) - 8
        feature = OFRecord.FromString(content[8:8 + length]).feature
        assert sorted(feature) == ["images", "labels"]
        (image,), (label,) = feature["images"].bytes_list.value, feature["labels"].int32_list.value
        found.append((image, label))
        content = content[8 + length:]
    return found


def part_files(folder):
    return sorted(folder.glob("part-*"), key=lambda path: int(path.name[5:]))


# -- the tutorial -----------------------------------------------------------------

def test_the_label_file_is_the_tutorials():
    labels = [json.loads(line) for line in LABELS.read_text().splitlines()]
    assert labels[:6] == [{"00000030_3.png": 3}, {"00000034_0.png": 0}, {"00000026_4.png": 4},
                          {"00000043_9.png": 9}, {"00000047_5.png": 5}, {"00000003_1.png": 1}]
    assert sorted(NAMES) == sorted(os.listdir(str(IMAGES))) and len(NAMES) == 50
    for index, name in enumerate(sorted(NAMES)):
        assert name.startswith("{:08d}_".format(index))
    for line in labels:
        for name, label in line.items():
            assert name.endswith("_{}.png".format(label))
        image = cv2.imread(str(IMAGES / name), cv2.IMREAD_UNCHANGED)
        assert image.shape == (28, 28) and image.dtype == np.uint8


@pytest.mark.parametrize("arguments", [
    [], "--part_num=5 --save_dir=./dataset/ --img_format=.png --image_root=./data/images/train_set/".split()])
def test_prints_the_tutorials_lines(project, arguments):
    result = run_script("img2ofrecord.py", *arguments, cwd=project)
    assert result.code == 0, result
    assert result.out.splitlines() == [
        "The image root is:  ./data/images/train_set/",
        "The amount of OFRecord data part is:  5",
        "The directory of Labels is:  ./data/images/train_label/label.txt",
        "The image format is:  .png",
        "The OFRecord save directory is:  ./dataset/",
        "Start Processing......",
    ] + ["./data/images/train_set/{} feature saved".format(name) for name in NAMES] + [
        "Process image successfully !!!"]
    assert sorted(os.listdir(str(project / "dataset"))) == ["dataset.json"] + ["part-%d" % index for index in range(5)]


def test_records_read_back_with_plain_protobuf(converted):
    found = [record for path in part_files(converted) for record in records(path)]
    assert [label for _, label in found] == [int(name[9]) for name in NAMES]
    for (image, _), name in zip(found, NAMES):
        assert image == (IMAGES / name).read_bytes()  # gray PNG in, the same gray PNG out


def test_oneflow_decodes_opencvs_pixels(converted):
    images, labels = decode_with_oneflow(converted, [(28, 28)] * 50, channels=1, part_num=5)
    assert labels == [int(name[9]) for name in NAMES]
    for image, name in zip(images, NAMES):
        np.testing.assert_array_equal(image[:, :, 0], cv2.imread(str(IMAGES / name), cv2.IMREAD_GRAYSCALE))


def test_manifest_says_what_is_there(converted):
    manifest = json.loads((converted / "dataset.json").read_text())
    assert manifest["records"] == 50
    assert manifest["image"] == {"format": ".png", "channels": 1, "width": 28, "height": 28}
    assert manifest["classes"] == {"count": 10, "names": None}
    assert manifest["labels"] == {str(label): sum(name[9] == str(label) for name in NAMES) for label in range(10)}
    pixels = np.stack([cv2.imread(str(IMAGES / name), cv2.IMREAD_GRAYSCALE) for name in NAMES]).astype(np.float64)
    assert manifest["pixels"]["mean"] == pytest.approx([pixels.mean()], abs=1e-5)
    assert manifest["pixels"]["std"] == pytest.approx([pixels.std()], abs=1e-5)
    for part, path in zip(manifest["parts"], part_files(converted)):
        content = path.read_bytes()
        assert part == {"file": path.name, "records": len(records(path)), "bytes": len(content),
                        "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("part_num, sizes", [
    (1, [50]), (3, [17, 17, 16]), (7, [8] + [7] * 6), (49, [2] + [1] * 48), (50, [1] * 50)])
def test_exactly_as_many_parts_as_asked_for(tmp_path, part_num, sizes):
    result = run_script("img2ofrecord.py", "--part_num", part_num, "--save_dir", tmp_path / "d")
    assert result.code == 0, result
    assert [len(records(path)) for path in part_files(tmp_path / "d")] == sizes


def test_a_rerun_gives_the_same_bytes(project):
    for workers in ("1", "2", "3"):
        assert run_script("img2ofrecord.py", "--workers", workers, cwd=project).code == 0
        files = snapshot(project / "dataset")
        if workers == "1":
            first = files
        assert files == first


def test_a_rerun_with_fewer_parts_leaves_no_old_ones(project):
    for part_num in (12, 3):
        assert run_script("img2ofrecord.py", "--part_num", part_num, cwd=project).code == 0
        assert len(part_files(project / "dataset")) == part_num


@pytest.mark.parametrize("ext", [".jpg", ".bmp", ".tiff", ".webp", ".pnm"])
def test_every_format_comes_out_of_oneflow_as_it_went_in(tmp_path, ext):
    result = run_script("img2ofrecord.py", "--img_format", ext, "--save_dir", tmp_path / "d")
    assert result.code == 0, result
    images, _ = decode_with_oneflow(tmp_path / "d", [(28, 28)] * 50, channels=1, part_num=5)
    for image, name in zip(images, NAMES):
        error = np.abs(image[:, :, 0].astype(int) - cv2.imread(str(IMAGES / name), cv2.IMREAD_GRAYSCALE)).max()
        assert error <= (40 if ext == ".jpg" else 0), name


# -- the functions that the tutorial explains ------------------------------------------

def test_encode_img_file_and_ndarray2ofrecords(tmp_path):
    from img2ofrecord import encode_img_file, ndarray2ofrecords

    pixels = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)
    cv2.imwrite(str(tmp_path / "color.bmp"), pixels)
    encoded = encode_img_file(str(tmp_path / "color.bmp"), ".png")
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED), pixels)
    assert encode_img_file(str(IMAGES / NAMES[0]))[:2] == b"\xff\xd8"  # JPEG by default
    gray = cv2.imdecode(np.frombuffer(encode_img_file(str(IMAGES / NAMES[0])), np.uint8), cv2.IMREAD_UNCHANGED)
    assert gray.shape == (28, 28)

    path = tmp_path / "part"
    with path.open("wb") as file:
        for label in (0, -1, 2**31 - 1):
            ndarray2ofrecords(file, "images", encoded, "labels", label)
    assert records(path) == [(encoded, label) for label in (0, -1, 2**31 - 1)]
    with pytest.raises(ValueError, match="int32"):
        ndarray2ofrecords(io.BytesIO(), "images", encoded, "labels", 2**31)


# -- what is wrong is one line, and the dataset from before is still there ---------------

def test_colour_images_make_a_colour_dataset(project):
    name = NAMES[-1]  # the last one: everything before it was taken for gray
    color = np.dstack([cv2.imread(str(IMAGES / name), 0)] * 3)
    color[:, :, 2] = 99
    cv2.imwrite(str(project / "data/images/train_set" / name), color)
    result = run_script("img2ofrecord.py", cwd=project)
    assert result.code == 0, result
    assert result.out.count("feature saved") == 50  # each image is named once
    images, _ = decode_with_oneflow(project / "dataset", [(28, 28)] * 50, channels=3, part_num=5)
    np.testing.assert_array_equal(images[-1], color[:, :, ::-1])
    np.testing.assert_array_equal(images[0], np.dstack([cv2.imread(str(IMAGES / NAMES[0]), 0)] * 3))
    manifest = json.loads((project / "dataset/dataset.json").read_text())
    assert manifest["image"]["channels"] == 3 and len(manifest["pixels"]["mean"]) == 3
    assert manifest["pixels"]["mean"][0] > manifest["pixels"]["mean"][1]  # R first, and red was added


def write_labels(project, *lines):
    path = project / "data/images/train_label/label.txt"
    path.write_text("".join(line + "\n" for line in lines) if lines else "", encoding="utf-8")


GOOD = '{"00000030_3.png": 3}'

BAD_LABELS = {
    "not JSON": ([GOOD, "00000034_0.png 0"], ["label.txt, line 2", "not a JSON object"]),
    "no object": (["[1, 2]"], ["line 1", "not a JSON object"]),
    "empty object": (["{}"], ["line 1", "not a JSON object"]),
    "a string": (['{"00000030_3.png": "3"}'], ["line 1", "not an integer"]),
    "a fraction": (['{"00000030_3.png": 3.0}'], ["line 1", "not an integer"]),
    "a truth": (['{"00000030_3.png": true}'], ["line 1", "not an integer"]),
    "too large": ([GOOD, "", '{"00000034_0.png": 2147483648}'], ["line 3", "2147483648", "int32"]),
    "too small": (['{"00000034_0.png": -2147483649}'], ["line 1", "int32"]),
    "twice": ([GOOD, GOOD], ["line 2", "00000030_3.png", "twice"]),
    "twice in other words": ([GOOD, '{"./00000030_3.png": 3}'], ["line 2", "twice"]),
    "twice in one line": (['{"00000030_3.png": 3, "00000030_3.png": 4}'], ["line 1", "twice"]),
    "outside": (['{"../train_label/label.txt": 3}'], ["line 1", "not inside the image root"]),
    "absolute": (['{"/etc/passwd": 3}'], ["line 1", "not inside the image root"]),
    "missing image": ([GOOD, '{"nine.png": 9}'], ["train_set/nine.png", "does not exist"]),
    "no images": ([], ["no images"]),
}


@pytest.mark.parametrize("lines, said", BAD_LABELS.values(), ids=list(BAD_LABELS))
def test_bad_labels(project, lines, said):
    assert run_script("img2ofrecord.py", cwd=project).code == 0
    before = snapshot(project / "dataset")
    write_labels(project, *lines)
    assert_one_error(run_script("img2ofrecord.py", "--part_num", 1, cwd=project), *said)
    assert snapshot(project / "dataset") == before


def damaged(good):
    return {
        "empty": (b"", "empty"),
        "text": (b"this is no image", "cannot read it"),
        "cut off": (good[:-40], "cut off"),
        "one byte changed": (good[:60] + bytes([good[60] ^ 1]) + good[61:], "damaged"),
    }


@pytest.mark.parametrize("kind", ["empty", "text", "cut off", "one byte changed", "a folder"])
def test_unreadable_image(project, kind):
    assert run_script("img2ofrecord.py", cwd=project).code == 0
    before = snapshot(project / "dataset")
    path = project / "data/images/train_set/00000026_4.png"
    if kind == "a folder":
        path.unlink()
        path.mkdir()
        said = "directory"
    else:
        content, said = damaged(path.read_bytes())[kind]
        path.write_bytes(content)
    assert_one_error(run_script("img2ofrecord.py", cwd=project), "00000026_4.png", said)
    assert snapshot(project / "dataset") == before


def test_all_problems_are_reported_together(project):
    lines = LABELS.read_text().splitlines() + ['{"missing%d.png": 1}' % index for index in range(25)]
    write_labels(project, *lines)
    result = run_script("img2ofrecord.py", cwd=project)
    assert result.code == 2
    errors = result.err.splitlines()
    assert [sum("missing%d.png" % index in line for line in errors) for index in range(25)] == [1] * 20 + [0] * 5
    assert "and 5 more" in errors[20] and "25 images are no good" in errors[21] and len(errors) == 22
    assert not (project / "dataset").exists()


@pytest.mark.parametrize("arguments, said", [
    (["--part_num", "0"], ["--part_num", "1 or more"]),
    (["--part_num", "-3"], ["--part_num", "1 or more"]),
    (["--part_num", "51"], ["--part_num 51", "50 images"]),
    (["--part_num", "five"], ["--part_num", "five"]),
    (["--img_format", ".xyz"], ["--img_format", ".xyz", ".png"]),
    (["--img_format", "png"], ["--img_format", "'png'", ".png"]),
    (["--label_dir", "nowhere.txt"], ["nowhere.txt", "does not exist"]),
    (["--label_dir", "."], ["label file", "directory"]),
    (["--image_root", "nowhere/"], ["nowhere", "does not exist"]),
    (["--save_dir", "README"], ["README", "is a file"]),
    (["--save_dir", "README/deeper"], ["README"]),
    (["--part", "5"], ["--part"]),
    (["--part_num", "2", "extra"], ["extra"]),
])
def test_bad_arguments(project, arguments, said):
    (project / "README").write_text("a file")
    assert run_script("img2ofrecord.py", cwd=project).code == 0
    before = snapshot(project)
    assert_one_error(run_script("img2ofrecord.py", *arguments, cwd=project), *said)
    assert snapshot(project) == before


@pytest.mark.parametrize("name", ["notes.txt", "part-0", "dataset.json"])
def test_a_folder_with_other_things_is_refused(project, name):
    (project / "dataset").mkdir()
    (project / "dataset" / name).write_text("{}")
    before = snapshot(project)
    assert_one_error(run_script("img2ofrecord.py", cwd=project), "dataset", name)
    assert snapshot(project) == before


def test_files_beside_a_dataset_are_left_alone(project):
    assert run_script("img2ofrecord.py", cwd=project).code == 0
    (project / "dataset/notes.txt").write_text("mine")
    (project / "dataset/part-x").write_text("mine too")
    assert run_script("img2ofrecord.py", "--part_num", 2, cwd=project).code == 0
    assert (project / "dataset/notes.txt").read_text() == "mine"
    assert (project / "dataset/part-x").read_text() == "mine too"
    (project / "dataset/part-7").write_text("a part of somebody else's")
    before = snapshot(project)
    assert_one_error(run_script("img2ofrecord.py", "--part_num", 9, cwd=project), "part-7")
    assert snapshot(project) == before


def test_no_room_on_the_disk(project):
    """A real full disk: a file system of 64 KiB in memory, where mounting one is allowed."""
    disk = project / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], stderr=subprocess.PIPE)
    if mount.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        assert run_script("img2ofrecord.py", "--save_dir", disk / "d", cwd=project).code == 0
        before = snapshot(disk)
        result = run_script("img2ofrecord.py", "--save_dir", disk / "d", "--img_format", ".bmp", cwd=project)
        assert_one_error(result, "no room on the disk")
        assert snapshot(disk) == before
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert_one_error(run_script("img2ofrecord.py", "--save_dir", disk / "d", cwd=project), "ead-only")
        assert snapshot(disk) == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_reader_that_leaves_is_no_error(project):
    command = "{} {} | head -1".format(os.path.relpath(__import__("sys").executable, str(project)), PROJECT / "img2ofrecord.py")
    process = subprocess.run(command, shell=True, cwd=str(project), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout == b"The image root is:  ./data/images/train_set/\n"
    assert b"Traceback" not in process.stderr and b"rror" not in process.stderr
