"""``python -m ofrecord index``: parts of other converters, and of earlier versions, become datasets that train."""

import cv2
import numpy as np
import pytest
from damage import change_record, cut, ofrecord, rewrite_manifest, set_label
from drawn import FILES
from helpers import assert_one_error, read_manifest, run_python, snapshot
from making import OTHER_NAMES, foreign, make, others, write_record

from ofrecord.dataset.images_csv import read_rows

INDEXED = {
    **{"num_records": 26, "num_classes": 13, "class_names": None, "label_type": "int64"},
    **{"image_feature": "encoded", "label_feature": "class/label", "image_format": ".jpg"},
    **{"channels": 1, "num_gray": 26, "plain_jpeg": False, "width": 30, "height": 20, "layout": 3},
}


def test_parts_without_a_manifest(tmp_path):
    """As people call it, with its workers; then check and show know the features from it."""
    folder = others(tmp_path / "d")
    assert_one_error(ofrecord("show", folder), f"ofrecord index {folder}")
    result = run_python("-m", "ofrecord", "index", folder, *OTHER_NAMES)
    assert result.code == 0 and result.err == "", result
    line = f"{folder}: 26 gray JPEG images 30x20, 13 classes, in 2 parts, "
    assert result.out.splitlines()[-1].startswith(line), result
    manifest = read_manifest(folder)
    assert {name: manifest[name] for name in INDEXED} == INDEXED
    assert manifest["label_counts"] == {str(label): 2 for label in range(13)}
    levels = [9 * index for index in range(13)]
    assert manifest["mean"] == pytest.approx([np.mean(levels)], abs=0.5)  # of JPEG
    assert manifest["std"] == pytest.approx([np.std(levels)], abs=0.5)
    rows = list(read_rows(folder))
    assert [row[:4] for row in rows[:14:13]] == [("part-00000", 0, "", 0), ("part-00001", 0, "", 0)]
    check = ofrecord("check", folder)
    assert check.code == 0 and "26 records" in check.out and "no dataset.json" not in check.out
    shown = ofrecord("show", folder)
    assert shown.code == 0 and line in shown.out, shown
    before = snapshot(folder)
    assert_one_error(ofrecord("index", folder, *OTHER_NAMES), "has its dataset.json already")
    assert snapshot(folder) == before


def test_gray_that_is_stored_as_colour_is_gray(tmp_path):
    result = ofrecord("index", foreign(tmp_path / "d"))
    assert result.code == 0 and "50 gray PNG images 28x28, 10 classes, in 8 parts" in result.out
    assert ofrecord("check", tmp_path / "d").code == 0


def add_images(folder, *images):
    with (folder / "part-00001").open("ab") as file:
        for image in images:
            write_record(file, image, 3, ("encoded", "class/label"), "int64")


def encoded(ext, pixels):
    return cv2.imencode(ext, pixels)[1].tobytes()


def test_colour_and_mixed_formats(tmp_path):
    folder = others(tmp_path / "d")
    add_images(folder, encoded(".jpg", np.full((20, 30, 3), (0, 0, 200), np.uint8)))
    assert "27 colour JPEG images 30x20" in ofrecord("index", folder, *OTHER_NAMES).out
    manifest = read_manifest(folder)
    assert manifest["channels"] == 3 and manifest["num_gray"] == 26 and manifest["plain_jpeg"]
    add_images(
        folder,
        encoded(".png", np.zeros((8, 8), np.uint8)),
        encoded(".bmp", np.zeros((8, 8, 3), np.uint8)),
    )
    (folder / "dataset.json").unlink()
    assert "29 colour images of different sizes" in ofrecord("index", folder, *OTHER_NAMES).out
    manifest = read_manifest(folder)
    assert manifest["image_format"] is None and not manifest["plain_jpeg"]
    assert ofrecord("check", folder).code == 0 and ofrecord("show", folder).code == 0


REFUSED = {
    "16-bit": (encoded(".png", np.zeros((8, 8), np.uint16)), "16-bit"),
    "rare format": (b"P7\nWIDTH 1", "save it as PNG"),
    "truncated": (FILES["rgb.png"].data[:-9], "truncated"),
    "empty": (b"", "bytes list with one image"),
    "text": (b"no image", "save it as PNG"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_oneflow_would_misread_is_refused(tmp_path, case):
    image, text = REFUSED[case]
    folder = others(tmp_path / "d")
    add_images(folder, image)
    before = snapshot(folder)
    result = ofrecord("index", folder, *OTHER_NAMES)
    assert result.code == 2 and "part-00001, record 13: " in result.err and text in result.err, (
        result
    )
    assert snapshot(folder) == before


def rename(one, other):
    return lambda folder: (folder / one).rename(folder / other)


FATAL = {  # what ends OneFlow's process, or what it reads wrongly without a word
    "a part missing": (lambda d: (d / "part-3").unlink(), ["part-3 is missing"]),
    "the first part missing": (lambda d: (d / "part-0").unlink(), ["part-0 is missing"]),
    "an empty part": (lambda d: cut(d / "part-2", 0), ["part-2, record 0: the part file is empty"]),
    "names of several lengths": (rename("part-7", "part-07"), ["part-7 is missing"]),
    "a truncated record": (lambda d: cut(d / "part-7", -5), ["part-7, record 0"]),
    "a truncated length": (lambda d: (d / "part-7").open("ab").write(b"\x01\0\0"), ["part-7, record 1"]),
    "no OFRecord": (lambda d: (d / "part-7").write_bytes(b"\x04\0\0\0\0\0\0\0" + b"\xff" * 4), ["part-7, record 0", "not an OFRecord"]),
    "a label below 0": (lambda d: change_record(d, set_label(-1)), ["invalid label -1"]),
    "no parts": (lambda d: [path.unlink() for path in d.iterdir()], ["there are no part files"]),
    "other files": (lambda d: [path.rename(d / f"{path.name}.tfrecord") for path in d.iterdir()], ["but part-0.tfrecord"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FATAL)
def test_parts_that_are_no_dataset(tmp_path, case):
    folder = foreign(tmp_path / "d")
    FATAL[case][0](folder)
    before = snapshot(folder)
    result = ofrecord("index", folder)
    assert result.code == 2 and all(text in result.err for text in FATAL[case][1]), result
    assert snapshot(folder) == before and "Traceback" not in result.err


@pytest.mark.parametrize("kind, text", [("float", "one label"), ("bytes", "one label"), ("int64", "some labels are int32 and int64")])  # fmt: skip
def test_labels_of_another_type(tmp_path, kind, text):
    folder = foreign(tmp_path / "d")
    with (folder / "part-7").open("ab") as file:
        write_record(file, FILES["rgb.png"].data, b"3" if kind == "bytes" else 3, kind=kind)
    result = ofrecord("index", folder)
    assert result.code == 2 and text in result.err, result


def test_labels_that_no_manifest_can_have(tmp_path):
    (tmp_path / "d").mkdir()
    with (tmp_path / "d" / "part-0").open("wb") as file:
        write_record(file, FILES["rgb.png"].data, 2**40, kind="int64")
    assert_one_error(ofrecord("index", tmp_path / "d"), "cannot be a dataset")
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["part-0"]


# -- files of earlier versions are kept ---------------------------------------------------------


def test_class_names_of_layout_2_are_kept(tmp_path):
    folder = make(
        tmp_path / "d",
        {"cat": {"0.png": 1, "1.png": 2}, "dog": {"2.png": 3}, "eel": {"3.png": 4}},
        part_num=2,
    )
    wanted = snapshot(folder)
    fields = {"max_value": None, "label_length": None, "split_ids": [], "mixed_split_ids": []}
    rewrite_manifest(folder, layout=2, **fields)
    result = ofrecord("index", folder)
    assert result.code == 0 and read_manifest(folder)["class_names"] == ["cat", "dog", "eel"]
    assert snapshot(folder) == wanted  # images.csv's names are kept where the images are the same
    (folder / "images.csv").unlink()
    assert ofrecord("index", folder).code == 0
    assert [row.image for row in read_rows(folder)] == [""] * 4
    assert read_manifest(folder)["class_names"] == ["cat", "dog", "eel"]


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", '{"sha256": 3}', '{"class_names": ["x"], "sha256": "0"}', "{"]
)
def test_another_programs_dataset_json(tmp_path, text):
    folder = foreign(tmp_path / "d")
    (folder / "dataset.json").write_text(text)
    result = ofrecord("index", folder)
    assert result.code == 0 and read_manifest(folder)["class_names"] is None, result


@pytest.mark.parametrize(
    "fields", [{"class_names": 5}, {"skipped": 5}, {"fit": []}, {"split_id": {}}]
)
def test_fields_of_another_type(dataset, fields):
    rewrite_manifest(dataset, layout=2, **fields)
    result = ofrecord("index", dataset)
    assert "Traceback" not in result.err and result.code in (0, 2), result


def test_names_of_other_classes_are_no_dataset(dataset):
    rewrite_manifest(dataset, layout=2, class_names=["a", "b"])
    assert_one_error(ofrecord("index", dataset), "cannot be a dataset", "class names", started=True)
