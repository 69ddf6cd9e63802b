"""``python -m ofrecord check`` and ``show``."""

import os
import re
import shutil
import struct

import cv2
import numpy as np
import pytest
from damage import change_record, cut, flip, frame, ofrecord, rewrite_manifest, set_image, set_label
from helpers import IMAGES, assert_one_error, convert, read_manifest, run_python, snapshot
from kinds import KINDS

from ofrecord.record import OFRecord

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


RED = cv2.imencode(".png", np.full((28, 28, 3), (0, 0, 200), np.uint8))[1].tobytes()

WRONG = {
    "a byte of an image": (lambda d: flip(d / "part-1", 150), ["part-1, record 0", "damaged"]),
    "a byte of a length": (lambda d: flip(d / "part-2", 1), ["part-2, record 0", "file ends"]),
    "truncated": (lambda d: cut(d / "part-4", -1), ["part-4, record 9", "file ends after"]),
    "empty": (lambda d: cut(d / "part-4", 0), ["part-4", "the part file is empty"]),
    "missing": (lambda d: (d / "part-3").unlink(), ["part-3", "missing"]),
    "not listed": (
        lambda d: (d / "part-7").write_bytes((d / "part-0").read_bytes()),
        ["part-7", "does not belong to this dataset"],
    ),
    "label outside": (change(set_label(10)), ["label 10 is out of range for 10 classes"]),
    "label miscounted": (change(set_label(4)), ["label 3 has 6 records, but dataset.json lists 7"]),
    "no image": (change(set_image(b"nothing")), ["part-0, record 0", "cannot read it"]),
    "truncated image": (change(set_image(first_image()[:-9])), ["part-0, record 0", "truncated"]),
    "another format": (
        change(set_image(encoded(".jpg", 28, 28))),
        ["part-0, record 0", "JPEG", "PNG"],
    ),
    "colour": (change(set_image(RED)), ["part-0, record 0", "it is in colour", "gray"]),
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
    assert_one_error(ofrecord("show", foreign), f"`python -m ofrecord index {foreign}`")
    (foreign / "part-00000").unlink()
    assert_one_error(ofrecord("check", foreign, *FEATURES), "part-00000 is missing")


def test_index_writes_the_manifest_of_parts_without_one(foreign, tmp_path):
    """As people call it, with its workers; then check and show know the features from it."""
    result = run_python("-m", "ofrecord", "index", foreign, *FEATURES)
    assert result.code == 0 and result.err == "", result
    line = "26 gray JPEG images 30x20, 13 classes, in 2 parts"
    assert result.out.startswith(f"{foreign}: {line}, "), result
    manifest = read_manifest(foreign)
    assert {name: manifest[name] for name in INDEXED} == INDEXED
    assert manifest["label_counts"] == {str(label): 2 for label in range(13)}
    levels = [9 * index for index in range(13)]
    assert manifest["mean"] == pytest.approx([np.mean(levels)], abs=0.5)  # of JPEG
    assert manifest["std"] == pytest.approx([np.std(levels)], abs=0.5)
    check = ofrecord("check", foreign)
    assert check.code == 0 and "26 records" in check.out and "no dataset.json" not in check.out
    shown = ofrecord("show", foreign)
    assert shown.code == 0 and line in shown.out, shown
    assert cv2.imread(str(tmp_path / "foreign_sheet.png")) is not None
    before = snapshot(foreign)
    assert_one_error(ofrecord("index", foreign, *FEATURES), "has its dataset.json already")
    assert snapshot(foreign) == before


INDEXED = {
    **{"num_records": 26, "num_classes": 13, "class_names": None, "label_type": "int64"},
    **{"image_feature": "encoded", "label_feature": "class/label", "image_format": ".jpg"},
    **{"channels": 1, "num_gray": 26, "plain_jpeg": False, "width": 30, "height": 20},
}


def add_images(folder, *images):
    """Append records like those of ``foreign`` to its last part."""
    with (folder / "part-00001").open("ab") as file:
        for image in images:
            record = OFRecord()
            record.feature["encoded"].bytes_list.value.append(image)
            record.feature["class/label"].int64_list.value.append(3)
            file.write(frame(record))


def test_index_of_colour_and_of_mixed_formats(foreign):
    red = np.full((20, 30, 3), (0, 0, 200), np.uint8)
    add_images(foreign, cv2.imencode(".jpg", red)[1].tobytes())
    assert "27 colour JPEG images 30x20" in ofrecord("index", foreign, *FEATURES).out
    manifest = read_manifest(foreign)
    assert manifest["channels"] == 3 and manifest["num_gray"] == 26 and manifest["plain_jpeg"]

    add_images(foreign, encoded(".png", 8, 8), encoded(".bmp", 8, 8, 3))
    (foreign / "dataset.json").unlink()
    assert "29 colour images of different sizes" in ofrecord("index", foreign, *FEATURES).out
    manifest = read_manifest(foreign)
    assert manifest["image_format"] is None and not manifest["plain_jpeg"]
    assert ofrecord("check", foreign).code == 0
    assert "29 colour images of" in ofrecord("show", foreign).out


INDEX_REFUSES = {
    "16-bit": (cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes(), "16-bit"),
    "rare format": (KINDS["rgb.ras"], "rare format"),
    "truncated": (KINDS["rgb.png"][:-9], "truncated"),
}


@pytest.mark.parametrize("image, text", INDEX_REFUSES.values(), ids=list(INDEX_REFUSES))
def test_index_refuses_what_oneflow_would_misread(foreign, image, text):
    add_images(foreign, image)
    before = snapshot(foreign)
    result = ofrecord("index", foreign, *FEATURES)
    assert_one_error(result, "part-00001, record 13: invalid image: ", text)
    assert snapshot(foreign) == before


@pytest.mark.parametrize("action", ["check", "index"])
def test_damage_that_only_the_decoder_sees(foreign, action):
    part = foreign / "part-00000"
    content = part.read_bytes()
    end = content.index(b"\xff\xd9")  # of the first JPEG
    part.write_bytes(content[: end - 8] + b"\xff\xd0" * 4 + content[end:])
    result = ofrecord(action, foreign, *FEATURES)
    assert result.code == 2, result
    assert "invalid image" in result.err, result
    assert "Corrupt JPEG data" in result.err, result


@pytest.mark.parametrize("action", ["check", "show", "index"])
def test_no_dataset(tmp_path, action):
    no_parts = "no dataset: there are no part files in {}"
    if action == "show":
        no_parts = "{} is not a finished dataset: there is no dataset.json in it"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, text in (
        ("nowhere", "no dataset: {} does not exist"),
        ("empty", no_parts),
        ("file", "no dataset: {} is not a folder"),
    ):
        folder = tmp_path / name
        assert_one_error(ofrecord(action, folder), text.format(folder))


@pytest.mark.parametrize("arguments", [[], ["look", "."], ["check"]], ids=" ".join)
def test_wrong_usage(arguments):
    assert_one_error(ofrecord(*arguments))


def test_index_does_not_take_half_a_commit_for_a_dataset(dataset):
    (dataset / ".img2ofrecord").mkdir()
    (dataset / "dataset.json").rename(dataset / ".img2ofrecord" / "dataset.json")
    before = snapshot(dataset)
    assert_one_error(ofrecord("index", dataset), str(dataset), "interrupted")
    assert snapshot(dataset) == before


@pytest.mark.parametrize("action", ["check", "show", "index"])
def test_a_dataset_that_is_being_written_is_refused(dataset, action):
    from runtime.atomic import folder_lock

    with folder_lock(dataset, "in use"):
        assert_one_error(ofrecord(action, dataset), "a conversion is writing to", str(dataset))


# -- show -----------------------------------------------------------------------------


def test_show_prints_counts_and_draws_a_sheet(converted, tmp_path):
    result = ofrecord("show", converted, "--sheet", tmp_path / "sheet.png")
    assert result.code == 0, result
    assert "50 gray PNG images 28x28, 10 classes, in 5 parts, 14,997 bytes" in result.out
    assert re.search(r"^ +1 +7 +█{40}$", result.out, re.M)
    assert re.search(r"^ +0 +4 +█{23}$", result.out, re.M)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    # Rows of digits: white strokes on black in the first columns, and every class has a row.
    assert sheet.shape[0] > 10 * 64 and sheet.shape[1] > 12 * 64
    for row in range(10):
        top = 40 + 134 * row + 40
        tile = sheet[top + 4 : top + 84, 10:90]
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
    assert "2 colour PNG images 40x90, 2 classes" in out
    assert re.search(r"猫 +1 +█{40}$", out, re.M)
    assert re.search(r"a very long name of a class, w +1", out)


def test_show_prints_class_names_on_one_line(dataset):
    names = [f"class\n\x1b[31m{label}" for label in range(10)]
    rewrite_manifest(dataset, class_names=names)
    result = ofrecord("show", dataset)
    assert result.code == 0 and "\x1b" not in result.out, result
    assert "class\\n\\x1b[31m7  " in result.out, result


def test_index_of_other_files_names_them(tmp_path):
    (tmp_path / "train.tfrecord").touch()
    result = ofrecord("index", tmp_path)
    assert_one_error(result, "there are no part files in", "but train.tfrecord")


def test_show_many_classes(tmp_path):
    out = show_blue_images(tmp_path, [f"class {index:02d}" for index in range(72)])
    assert "72 classes" in out and "and 22 smaller classes" in out


def test_show_of_a_label_without_a_name(dataset):
    rewrite_manifest(dataset, class_names=[f"class {label}" for label in range(10)])
    change_record(dataset, set_label(77))
    result = ofrecord("show", dataset)
    assert result.code == 0, result
    assert re.search(r"^ +class 1 +7 ", result.out, re.M) and re.search(
        r"^ +77 +1 ", result.out, re.M
    )


def test_show_of_a_damaged_dataset_points_to_check(dataset):
    cut(dataset / "part-2", -5)
    assert_one_error(ofrecord("show", dataset), "part-2, record 9", "ofrecord check")


def test_show_where_the_sheet_cannot_be_written(converted):
    result = ofrecord("show", converted, "--sheet", "/nowhere/sheet.png")
    assert_one_error(result, "contact sheet", "/nowhere/sheet.png")


# -- copies ---------------------------------------------------------------------------


def copies(root, name, classes, *options):
    """Convert {class: gray levels of its images} to ROOT/NAME, in two parts; return the Result."""
    for label, levels in classes.items():
        folder = root / f"{name}-images" / label
        folder.mkdir(parents=True)
        for number, level in enumerate(levels):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((5, 6), level, np.uint8))
    source = ["--image_root", root / f"{name}-images", "--class_folders", "--part_num", 2]
    result = convert(*source, "--save_dir", root / name, *options)
    assert result.code == 0, result
    return result


def warnings(result):
    return re.findall("warning: (.*)", result.err)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_converter_counts_copies_and_names_different_labels(tmp_path, workers):
    classes = {"a": [1, 2, 3, 1, 1], "b": [3, 5, 2, 1]}
    result = copies(tmp_path, "d", classes, "--workers", workers)
    assert "\n5 images are copies of others\n" in result.err, result
    same = (
        "the same image with different labels: {0}/a/{1}.png (label a) and {0}/b/{2}.png (label b)"
    )
    root = tmp_path / "d-images"
    assert warnings(result) == [same.format(root, *each) for each in [(1, 2), (2, 0), (4, 3)]]


def test_at_most_ten_images_with_different_labels_are_named(tmp_path):
    result = copies(tmp_path, "d", {"a": range(40, 64), "b": range(40, 64)})
    found = warnings(result)
    assert len(found) == 11 and all("with different labels: " in line for line in found[:10])
    assert found[10] == "24 images in all are there with different labels"
    assert "24 images are copies of others" in result.err


def test_images_that_are_all_different(converted, tmp_path):
    result = copies(tmp_path, "d", {"a": range(5), "b": range(5, 9)})
    assert "copies" not in result.err and not warnings(result), result
    result = ofrecord("check", tmp_path / "d", converted)
    assert "cop" not in result.out and result.err == "", result


def test_one_copy(tmp_path):
    assert "\n1 image is a copy of another\n" in copies(tmp_path, "d", {"a": [1, 2, 2]}).err


def test_check_counts_copies_and_names_records_with_different_labels(tmp_path):
    copies(tmp_path, "d", {"a": [1, 2, 3, 1, 1], "b": [3, 5, 2, 1]})
    result = ofrecord("check", tmp_path / "d")
    assert result.code == 0, result
    assert result.out.endswith(f"all valid\n{tmp_path}/d: 5 images are copies of others\n")
    same = "the same image with different labels: {0}-{1} (label 0) and {0}-{2} (label 1)"
    names = [(f"0, record {one}", f"1, record {other}") for one, other in [(1, 2), (2, 0), (4, 3)]]
    expected = [same.format(f"{tmp_path}/d/part", *each) for each in names]
    assert warnings(result) == expected, result


def test_check_of_two_datasets_counts_the_copies_between_them(tmp_path):
    copies(tmp_path, "d", {"a": [1, 2, 3], "b": [4, 5, 6]})
    copies(tmp_path, "e", {"a": [11, 12, 3], "b": [14, 1, 16]})
    copies(tmp_path, "f", {"c": [11, 12, 3], "d": [14, 1, 16]})
    d, e, f = (tmp_path / name for name in "def")
    result = ofrecord("check", d, e)
    assert result.code == 0 and "are copies of others" not in result.out, result
    shared = f"2 images of {e} are copies of images in {d}"
    one = f"{d}/part-0, record 0 (label 0) and {e}/part-1, record 1 (label 1)"
    assert warnings(result) == [shared, f"the same image with different labels: {one}"], result
    # These have other classes, so their labels say nothing.
    assert warnings(ofrecord("check", d, f)) == [shared.replace(str(e), str(f))]
    assert f"{d}: 6 records" in result.out and f"{e}: 6 records" in result.out, result


def test_check_of_two_datasets_names_the_problems_of_both(dataset, tmp_path):
    other = shutil.copytree(dataset, tmp_path / "other")
    cut(dataset / "part-0", -5)
    cut(other / "part-3", -5)
    result = ofrecord("check", dataset, other)
    assert result.code == 2 and "copies" not in result.err, result
    assert f"{dataset}/part-0, record 9" in result.err, result
    assert f"{other}/part-3, record 9" in result.err, result
    assert f" problems in {dataset} and {other}" in result.err, result


# -- found by trying ----------------------------------------------------------------------


def lie(**fields):
    return lambda dataset: rewrite_manifest(dataset, **fields)


def lie_about_parts(*changes):
    def change(dataset):
        parts = read_manifest(dataset)["parts"]
        for part, fields in zip(parts, changes, strict=False):
            part.update({name: part[name] + more for name, more in fields.items()})
        rewrite_manifest(dataset, parts=parts)

    return change


LIES = {
    "records": (lie_about_parts({"num_records": 1}, {"num_records": -1}), "says 11 records"),
    "bytes": (lie_about_parts({"bytes": 1}), "says 10 records and 3,0"),
    "sizes": (lie(width=32, height=32), "it is 28x28, and dataset.json says 32x32"),
    "jpeg": (lie(plain_jpeg=True), "says that all are JPEG in colour"),
}


@pytest.mark.parametrize("change, text", LIES.values(), ids=list(LIES))
def test_check_finds_lies_of_a_manifest(dataset, change, text):
    change(dataset)
    result = ofrecord("check", dataset)
    assert result.code == 2 and text in result.err, result


def test_check_of_a_dataset_that_is_half_moved(dataset):
    hidden = dataset / ".img2ofrecord"
    hidden.mkdir()
    for name in ("part-1", "part-2", "dataset.json"):
        (dataset / name).rename(hidden / name)
    assert_one_error(ofrecord("check", dataset), "is not a finished dataset")


@pytest.mark.parametrize("action", ["check", "index"])
def test_a_part_that_is_a_pipe(tmp_path, action):
    os.mkfifo(tmp_path / "part-0")
    result = run_python("-m", "ofrecord", action, tmp_path, timeout=60)
    assert_one_error(result, "part-0: cannot be read: it is not a regular file")


def test_index_of_labels_that_no_manifest_can_have(dataset):
    def far(feature):
        feature["labels"].ClearField("int32_list")
        feature["labels"].int64_list.value.append(2**40)

    (dataset / "dataset.json").unlink()
    for name in ("part-1", "part-2", "part-3", "part-4"):
        (dataset / name).unlink()
    content = (dataset / "part-0").read_bytes()
    (length,) = struct.unpack("<q", content[:8])
    (dataset / "part-0").write_bytes(content[: 8 + length])
    change_record(dataset, far)
    assert_one_error(ofrecord("index", dataset), "cannot be a dataset")
