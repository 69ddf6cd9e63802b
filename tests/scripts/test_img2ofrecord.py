"""The converter as people start it: what it prints, what it writes, what it refuses."""

import hashlib
import io
import json
import os
import shutil
import struct

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
    part_files,
    read_manifest,
    run_script,
    snapshot,
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
SAVED = "".join(f"./data/images/train_set/{name} feature saved\n" for name in NAMES)
TUTORIAL_OUTPUT = f"{CONFIGURATION}{SAVED}Process image successfully !!!\n"


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
    assert labels == [{name: digit} for name, digit in zip(NAMES, DIGITS, strict=True)]
    first = ["00000030_3.png", "00000034_0.png", "00000026_4.png", "00000043_9.png"]
    assert NAMES[:4] == first and sorted(NAMES) == sorted(os.listdir(IMAGES)) and len(NAMES) == 50
    assert sorted(NAMES) == [f"{i:08d}_{name[9]}.png" for i, name in enumerate(sorted(NAMES))]
    images = [cv2.imread(str(IMAGES / name), cv2.IMREAD_UNCHANGED) for name in NAMES]
    assert {(image.shape, image.dtype.name) for image in images} == {((28, 28), "uint8")}


ARGUMENTS = (
    "--part_num=5 --save_dir=./dataset/ --img_format=.png --image_root=./data/images/train_set/"
)


@pytest.mark.parametrize("arguments", ["", ARGUMENTS], ids=["alone", "with its arguments"])
def test_prints_the_tutorials_lines(project, converted, arguments):
    result = run_script("img2ofrecord.py", *arguments.split(), cwd=project)
    assert result.code == 0 and result.out == TUTORIAL_OUTPUT, result
    names = ["dataset.json", "images.csv", *(f"part-{index}" for index in range(5))]
    assert sorted(os.listdir(project / "dataset")) == names
    # In another process, with as many workers as there are CPU cores.
    assert snapshot(project / "dataset") == snapshot(converted)


def test_an_error_is_exit_code_2_and_one_line_on_stderr(project):
    (project / "data/images/train_set" / NAMES[2]).unlink()
    result = run_script("img2ofrecord.py", cwd=project)
    assert_one_error(result, f"./data/images/train_set/{NAMES[2]}: missing", started=True)
    assert "\nimg2ofrecord.py: error: " in result.err and "4 finished parts kept in" in result.err
    assert result.out.startswith(CONFIGURATION) and "successfully" not in result.out
    assert os.listdir(project / "dataset") == [".img2ofrecord"]


# -- what is in the records -------------------------------------------------------------


def test_records_read_back_with_plain_protobuf(converted):
    found = [record for path in part_files(converted) for record in read_part(path)]
    assert [label for _, label in found] == DIGITS
    # Gray PNG in, the same gray PNG out.
    assert [image for image, _ in found] == [(IMAGES / name).read_bytes() for name in NAMES]


DATASETS = {  # options, the number of channels, and of digits in part names
    "gray": ([], 1, {}),
    "colour": (["--image_root", "images"], 3, {}),
    "padded": (["--part_name_suffix_length", 5, "--part_num", 12], 1, {"suffix_length": 5}),
}


@pytest.fixture(scope="session")
def decoded(tmp_path_factory):
    """What OneFlow reads from each of DATASETS, (images, labels), and what it should read."""
    folder, datasets = tmp_path_factory.mktemp("decoded"), {}
    (folder / "data").symlink_to(PROJECT / "data")
    shutil.copytree(IMAGES, folder / "images")
    wanted = {name: [gray_pixels(each)[:, :, None] for each in NAMES] for name in DATASETS}
    wanted["colour"] = [np.dstack([pixels] * 3) for pixels in wanted["colour"]]
    wanted["colour"][-1][:, :, 0] = 99  # the last image, in RGB
    cv2.imwrite(str(folder / "images" / NAMES[-1]), wanted["colour"][-1][:, :, ::-1])
    for name, (options, channels, more) in DATASETS.items():
        result = convert(*options, "--save_dir", name, cwd=folder)
        assert result.code == 0 and result.out.count("feature saved") == 50, result
        more = {**more, "part_num": len(part_files(folder / name))}
        datasets[name] = Dataset(folder / name, [(28, 28)] * 50, channels, **more)
    return decode_with_oneflow(datasets), wanted


@pytest.mark.parametrize("dataset", DATASETS)
def test_oneflow_decodes_the_pixels_that_opencv_reads(decoded, dataset):
    images, labels = decoded[0][dataset]
    assert labels == DIGITS
    np.testing.assert_array_equal(images, decoded[1][dataset])


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
    for path, part in zip(part_files(converted), manifest["parts"], strict=True):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        values = [path.name, len(read_part(path)), path.stat().st_size, digest]
        assert part == dict(zip(("file", "num_records", "bytes", "sha256"), values, strict=True))


# -- a dataset that is there already -------------------------------------------------------


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


@pytest.mark.parametrize("name", ["notes.txt", "part-0", "dataset.json", "images.csv"])
def test_a_folder_with_other_files_is_refused(tmp_path, name):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / name).write_text("{}")
    before = snapshot(tmp_path)
    assert_one_error(convert("--save_dir", tmp_path / "dataset"), "dataset", name)
    assert snapshot(tmp_path) == before


FULL_DISK = """
from helpers import assert_one_error, convert, snapshot

folder, bmp = disk / "dataset", ["--img_format", ".bmp"]
assert convert("--save_dir", folder).code == 0
before = snapshot(disk)
result = convert("--save_dir", folder, *bmp)
assert_one_error(result, "No space left on device; nothing was changed", str(folder), started=True)
assert "1 finished part kept in" in result.err and "the same command continues" in result.err
after = snapshot(disk)
assert {name: data for name, data in after.items() if "/." not in name} == before
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
assert_one_error(convert("--save_dir", folder), "ead-only", str(folder), started=True)
assert snapshot(disk) == after
subprocess.run(["mount", "-o", "remount,rw,size=1m", disk], check=True)
rest = folder / ".img2ofrecord/new-0123456789abcdef"  # of a run that was killed: it makes room first
rest.write_bytes(bytes(900_000))
result = convert("--save_dir", folder, *bmp)
assert result.code == 0 and "1 of 5 parts are there already" in result.err
print("checked", len(before), "files")
"""


def test_full_and_read_only_disks(on_own_disk):
    result = on_own_disk(FULL_DISK, "72k")
    assert result.out == "checked 7 files\n", result


# -- invalid input is one line, and the dataset from before is still there -------------------


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


# -- the functions that the tutorial explains ----------------------------------------------


def test_encode_img_file(tmp_path):
    from img2ofrecord import encode_img_file

    pixels = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)
    cv2.imwrite(str(tmp_path / "color.bmp"), pixels)
    encoded = encode_img_file(str(tmp_path / "color.bmp"), ".png")
    stored = cv2.imdecode(np.frombuffer(encoded.data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert encoded.data.startswith(b"\x89PNG") and encoded.reencode_reason == "BMP to PNG"
    assert encoded.size == (20, 24)
    np.testing.assert_array_equal([stored, encoded.pixels], [pixels, pixels])
    path = str(IMAGES / NAMES[0])
    assert encode_img_file(path).data.startswith(b"\xff\xd8")  # JPEG by default
    unchanged = encode_img_file(path, ".png")
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
