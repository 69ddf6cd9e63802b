"""``python -m ofrecord index``: parts of other converters, and of earlier versions, become datasets that train."""

import numpy as np
import pytest
from damage import change_record, cut, ofrecord, rewrite_manifest, set_label
from drawn import FILES as DRAWN
from helpers import assert_one_error, read_manifest, run_python, snapshot, train
from making import OTHER_NAMES, encoded, foreign, make, numbered, others, write_record

from ofrecord.dataset.images_csv import read_rows

INDEXED = {
    **{"num_records": 26, "num_classes": 13, "class_names": None, "label_type": "int64"},
    **{"image_feature": "encoded", "label_feature": "class/label", "image_format": ".jpg"},
    **{"channels": 1, "num_gray": 26, "plain_jpeg": False, "width": 30, "height": 20, "layout": 3},
    "label_counts": {str(label): 2 for label in range(13)},
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
    levels = [9 * index for index in range(13)]
    assert manifest["mean"] == pytest.approx([np.mean(levels)], abs=0.5)  # of JPEG
    assert manifest["std"] == pytest.approx([np.std(levels)], abs=0.5)
    rows = list(read_rows(folder))
    assert [row[:4] for row in rows[:14:13]] == [("part-00000", 0, "", 0), ("part-00001", 0, "", 0)]
    check = ofrecord("check", folder)
    assert check.code == 0 and "26 records" in check.out and "no dataset.json" not in check.out
    assert line in ofrecord("show", folder).out
    before = snapshot(folder)
    assert_one_error(ofrecord("index", folder, *OTHER_NAMES), "has its dataset.json already")
    assert snapshot(folder) == before


def test_colour_and_mixed_formats(tmp_path):
    folder = others(tmp_path / "d")

    def index(*images):
        (folder / "dataset.json").unlink(missing_ok=True)
        with (folder / "part-00001").open("ab") as file:
            for ext, pixels in images:
                write_record(file, encoded(ext, pixels), 3, ("encoded", "class/label"), "int64")
        return ofrecord("index", folder, *OTHER_NAMES).out, read_manifest(folder)

    out, manifest = index((".jpg", np.full((20, 30, 3), (0, 0, 200), np.uint8)))
    assert "27 colour JPEG images 30x20" in out
    assert manifest["channels"] == 3 and manifest["num_gray"] == 26 and manifest["plain_jpeg"]
    small = np.zeros((8, 8), np.uint8)
    out, manifest = index((".png", small), (".bmp", np.dstack([small] * 3)))
    assert "29 colour images of different sizes" in out
    assert manifest["image_format"] is None and not manifest["plain_jpeg"]
    assert ofrecord("check", folder).code == 0 and ofrecord("show", folder).code == 0


# -- what ends OneFlow's process, or what it reads wrongly without a word ------------------------


def rename(one, other):
    return lambda folder: (folder / one).rename(folder / other)


def append(data):
    return lambda folder: (folder / "part-7").open("ab").write(data)


def add(label, kind):
    def add(folder):
        with (folder / "part-7").open("ab") as file:
            write_record(file, DRAWN["rgb.png"].data, label, kind=kind)

    return add


DAMAGE = {
    "part-3 is missing": lambda d: (d / "part-3").unlink(),
    "part-0 is missing": lambda d: (d / "part-0").unlink(),
    "part-2, record 0: the part file is empty": lambda d: cut(d / "part-2", 0),
    "part-7 is missing": rename("part-7", "part-07"),
    "part-7, record 0: ": lambda d: cut(d / "part-7", -5),
    "part-7, record 1: the file ends inside its length field": append(b"\x01\0\0"),
    "part-7, record 1: not an OFRecord": append(b"\x04\0\0\0\0\0\0\0" + b"\xff" * 4),
    "part-0, record 0: invalid label -1": lambda d: change_record(d, set_label(-1)),
    "images.csv, line 1: its columns are not part,|; move it away": lambda d: (
        d / "images.csv"
    ).write_text("image,label\n"),
    "there are no part files": lambda d: [path.unlink() for path in d.iterdir()],
    "but part-0.tfrecord": lambda d: [path.rename(f"{path}.tfrecord") for path in d.iterdir()],
    "part-7, record 1: feature 'labels' is not an int32 list with one label": add(3, "float"),
    "part-7, record 1: feature 'labels' is": add(b"3", "bytes"),
    "some labels are int32 and int64": add(3, "int64"),
}
IMAGES = {  # what stands for one image, and what is said of it
    "nothing": (b"", "bytes list with one image"),
    "text": (b"no image", "invalid image: it is none of PNG"),
    "a truncated PNG": (DRAWN["rgb.png"].data[:-9], "truncated"),
    "a damaged PNG": (DRAWN["rgb.png"].data[:100] + b"\0\0" + DRAWN["rgb.png"].data[102:], "damaged"),
    "a truncated JPEG": (DRAWN["rgb.jpg"].data[:300], "invalid image"),
    "a damaged JPEG": (DRAWN["rgb.jpg"].data[:-40] + b"\xff\xd0" * 4 + DRAWN["rgb.jpg"].data[-32:], "Corrupt JPEG data"),
    "16 bits": (DRAWN["gray16.png"].data, "OneFlow would misread it (16-bit)"),
    "CMYK": (DRAWN["cmyk.jpg"].data, "OneFlow would misread it (CMYK)"),
    "a rare format": (b"P7\nWIDTH 1", "save it as PNG"),
}  # fmt: skip
CASES = {text: ({}, damage, text) for text, damage in DAMAGE.items()}
for name, (image, text) in IMAGES.items():
    put = {"change": lambda index, data, image=image: image if index == 40 else data}
    CASES[name] = (put, None, f"part-5, record 5: |{text}")
CASES["other names"] = ({"features": ("picture", "labels")}, None, "no feature 'images'|--image_f")
CASES["too large"] = ({"kind": "int64"}, add(2**40, "int64"), "cannot be a dataset: ")
CASES["a label's name"] = ({"features": ("images", "class")}, None, "no feature 'labels'|--label_f")


@pytest.mark.parametrize("case", CASES)
def test_parts_that_are_no_dataset(tmp_path, case):
    options, damage, texts = CASES[case]
    folder = foreign(tmp_path / "d", **options)
    if damage:
        damage(folder)
    before = snapshot(folder)
    result = ofrecord("index", folder)
    assert result.code == 2 and "Traceback" not in result.err, result
    lines = result.err.splitlines()
    assert any(all(text in line for text in texts.split("|")) for line in lines), result
    assert snapshot(folder) == before
    assert_one_error(train(folder, "--batch_size", 51), "is not a finished dataset")


# -- files of earlier versions are kept ---------------------------------------------------------


def test_class_names_of_layout_2_are_kept(tmp_path):
    folder = make(tmp_path / "d", numbered(["cat", "dog", "eel"], 2), part_num=2)
    wanted = snapshot(folder)
    fields = {"max_value": None, "label_length": None, "split_ids": [], "mixed_split_ids": []}
    rewrite_manifest(folder, layout=2, **fields)
    result = ofrecord("index", folder)
    assert result.code == 0 and read_manifest(folder)["class_names"] == ["cat", "dog", "eel"]
    assert snapshot(folder) == wanted  # images.csv's names are kept where the images are the same
    (folder / "images.csv").unlink()
    assert ofrecord("index", folder).code == 0
    assert [row.image for row in read_rows(folder)] == [""] * 6
    assert read_manifest(folder)["class_names"] == ["cat", "dog", "eel"]


TEXTS = ["", "[1, 2]", '{"sha256": 3}', '{"class_names": ["x"], "sha256": "0"}', "{"]
FIELDS = [{"class_names": 5}, {"skipped": 5}, {"fit": []}, {"split_id": {}}, {"class_names": ["a"]}]


@pytest.mark.parametrize("wrong", [*TEXTS, *FIELDS], ids=str)
def test_another_programs_dataset_json(dataset, wrong):
    """A text that is none of ours is replaced; fields that cannot be are named."""
    if isinstance(wrong, str):
        (dataset / "dataset.json").write_text(wrong)
    else:
        rewrite_manifest(dataset, layout=2, **wrong)
    result = ofrecord("index", dataset)
    if isinstance(wrong, str) or wrong == {"class_names": 5}:
        assert result.code == 0 and read_manifest(dataset)["class_names"] is None, result
    else:
        name = next(iter(wrong)).replace("class_names", "it does not hold that class names")
        assert_one_error(result, "cannot be a dataset", name, started=True)
