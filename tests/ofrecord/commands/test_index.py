"""``python -m ofrecord index``: parts of other converters, and of earlier versions, become datasets that train."""

import numpy as np
import pytest
from damage import change_record, cut, make_old, ofrecord, rewrite_manifest, set_label
from drawn import FILES as DRAWN
from helpers import assert_one_error, convert, read_manifest, run_python, snapshot
from making import FEATURES, OTHER_NAMES, encoded, foreign, make, numbered, write_record

from ofrecord.dataset.images_csv import read_rows

OTHER = {"parts": "part-{:05d}", "size": 25, "ext": ".jpg", "features": FEATURES, "kind": "int64"}
INDEXED = {
    **{"num_records": 50, "num_classes": 10, "class_names": None, "label_type": "int64"},
    **{"image_feature": "encoded", "label_feature": "class/label", "image_format": ".jpg"},
    **{"channels": 1, "num_gray": 50, "plain_jpeg": False, "width": 28, "height": 28, "layout": 3},
}


def test_parts_without_a_manifest(converted, tmp_path):
    """As people call it, with its workers; then check and show know the features from it."""
    folder = foreign(tmp_path / "d", **OTHER)
    assert_one_error(ofrecord("show", folder), f"ofrecord index {folder}")
    result = run_python("-m", "ofrecord", "index", folder, *OTHER_NAMES)
    assert result.code == 0 and result.err == "", result
    line = f"{folder}: 50 gray JPEG images 28x28, 10 classes, in 2 parts, "
    assert result.out.splitlines()[-1].startswith(line), result
    manifest, same = read_manifest(folder), read_manifest(converted)
    assert {name: manifest[name] for name in INDEXED} == INDEXED
    assert manifest["label_counts"] == same["label_counts"]
    for name in "mean", "std":
        assert manifest[name] == pytest.approx(same[name], abs=0.5)  # of JPEG
    rows = list(read_rows(folder))
    assert [row[:4] for row in rows[::25]] == [("part-00000", 0, "", 3), ("part-00001", 0, "", 6)]
    check = ofrecord("check", folder)
    assert check.code == 0 and "50 records" in check.out and "no dataset.json" not in check.out
    assert line in ofrecord("show", folder).out
    before = snapshot(folder)
    assert_one_error(ofrecord("index", folder, *OTHER_NAMES), "has its dataset.json already")
    assert snapshot(folder) == before


def test_colour_and_mixed_formats(tmp_path):
    folder = foreign(tmp_path / "d", **OTHER)

    def index(*images):
        (folder / "dataset.json").unlink(missing_ok=True)
        with (folder / "part-00001").open("ab") as file:
            for ext, pixels in images:
                write_record(file, encoded(ext, pixels), 3, FEATURES, "int64")
        return ofrecord("index", folder, *OTHER_NAMES).out, read_manifest(folder)

    out, manifest = index((".jpg", np.full((28, 28, 3), (0, 0, 200), np.uint8)))
    assert "51 colour JPEG images 28x28" in out
    assert manifest["channels"] == 3 and manifest["num_gray"] == 50 and manifest["plain_jpeg"]
    small = np.zeros((8, 8), np.uint8)
    out, manifest = index((".png", small), (".bmp", np.dstack([small] * 3)))
    assert "53 colour images of different sizes" in out
    assert manifest["image_format"] is None and not manifest["plain_jpeg"]
    assert ofrecord("check", folder).code == 0 and ofrecord("show", folder).code == 0


# -- what ends OneFlow's process, or what it reads wrongly without a word ------------------------


def append(folder, data):
    (folder / "part-7").open("ab").write(data)


def add(folder, kind):
    with (folder / "part-7").open("ab") as file:
        write_record(file, DRAWN["rgb.png"].data, 3, kind=kind)


def put(image):
    """For ``foreign``: another image in record 5 of part-5."""
    return {"change": lambda index, data: image if index == 40 else data}


JPEG, FIFTH = DRAWN["rgb.jpg"].data, "part-5, record 5: "
CASES = {  # what a line has; how parts are made, or changed
    "part-3 is missing": lambda d: (d / "part-3").unlink(),
    "part-2, record 0: the part file is empty": lambda d: cut(d / "part-2", 0),
    "part-7, record 0: its length is |, and the file ends after": lambda d: cut(d / "part-7", -5),
    "part-7, record 1: the file ends inside its length field": lambda d: append(d, b"\x01\0\0"),
    "part-7, record 1: its length is 0 bytes": lambda d: append(d, bytes(8)),
    "part-7, record 1: not an OFRecord": lambda d: append(d, b"\x04\0\0\0\0\0\0\0" + b"\xff" * 4),
    "part-0, record 0: invalid label -1": lambda d: change_record(d, set_label(-1)),
    "images.csv, line 1: its columns are not part,|; move it away": lambda d: (d / "images.csv").write_text("image,label\n"),
    "there are no part files": lambda d: [path.unlink() for path in d.iterdir()],
    "but part-0.tfrecord": lambda d: [path.rename(f"{path}.tfrecord") for path in d.iterdir()],
    "part-7, record 1: feature 'labels' is not an int32 or int64 list with one label": lambda d: add(d, "float"),
    "some labels are int32 and int64": lambda d: add(d, "int64"),
    FIFTH + "feature 'images' is not a bytes list with one image": put(b""),
    FIFTH + "invalid image: it is none of PNG": put(b"no image"),
    FIFTH + "|Corrupt JPEG data": put(JPEG[:-40] + b"\xff\xd0" * 4 + JPEG[-32:]),
    FIFTH + "|OneFlow would misread it (16-bit)": put(DRAWN["gray16.png"].data),
    FIFTH + "|OneFlow would misread it (CMYK)": put(DRAWN["cmyk.jpg"].data),
    FIFTH + "|save it as PNG": put(b"P7\nWIDTH 1"),
    "no feature 'images'|--image_f": {"features": ("picture", "labels")},
}  # fmt: skip


@pytest.mark.parametrize("texts", CASES)
def test_parts_that_are_no_dataset(tmp_path, texts):
    case = CASES[texts]
    folder = foreign(tmp_path / "d", **(case if isinstance(case, dict) else {}))
    if callable(case):
        case(folder)
    before = snapshot(folder)
    result = ofrecord("index", folder)
    assert result.code == 2 and "Traceback" not in result.err, result
    lines = result.err.splitlines()
    assert any(all(text in line for text in texts.split("|")) for line in lines), result
    assert snapshot(folder) == before


# -- files of earlier versions are kept ---------------------------------------------------------


def test_class_names_of_layout_2_are_kept(tmp_path):
    folder = make(tmp_path / "d", numbered(["cat", "dog", "eel"], 2), part_num=2)
    wanted = snapshot(folder)
    make_old(folder)
    (folder / "images.csv").write_bytes(wanted["images.csv"])
    result = ofrecord("index", folder)
    assert result.code == 0 and read_manifest(folder)["class_names"] == ["cat", "dog", "eel"]
    assert snapshot(folder) == wanted  # images.csv's names are kept where the images are the same
    (folder / "images.csv").unlink()
    assert ofrecord("index", folder).code == 0
    assert [row.image for row in read_rows(folder)] == [""] * 6
    assert read_manifest(folder)["class_names"] == ["cat", "dog", "eel"]


def test_class_names_that_were_edited_are_kept(tmp_path):
    folder = make(tmp_path / "d", numbered(["cat", "dog"], 2), part_num=1)
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"dog"', '"cow"'))
    command = "write a new manifest: python -m ofrecord index"
    assert_one_error(ofrecord("show", folder), "changed or damaged", command)
    result = ofrecord("index", folder)
    assert "class names of the dataset.json that was there: cat, cow\n" in result.err, result
    assert result.code == 0 and read_manifest(folder)["class_names"] == ["cat", "cow"]
    # Gray images in three channels stay so. The record's label counts, and names stay.
    colour = tmp_path / "c"
    assert convert("--color", "color", "--save_dir", colour).code == 0
    path = colour / "dataset.json"
    path.write_text(path.read_text().replace('"fit": null', '"fit": "crop"'))
    path = colour / "images.csv"
    path.write_text(path.read_text().replace("_3.png,3,", "_3.png,5,", 1))
    rows, result = list(read_rows(colour)), ofrecord("index", colour)
    assert f"{colour}: 1 label of images.csv not the record's, which counts" in result.err, result
    assert list(read_rows(colour)) == [rows[0]._replace(label=3), *rows[1:]]
    assert [read_manifest(colour)[name] for name in ("channels", "fit")] == [3, "crop"]


def test_lost_records_are_not_forgotten(dataset):
    """The manifest is the one sign of them; without it, what is there is indexed."""
    (dataset / "part-4").unlink()
    before = snapshot(dataset)
    text = "is of other parts, or of other bytes in them: copy the dataset again"
    assert_one_error(ofrecord("index", dataset), text, "move it away", started=True)
    assert snapshot(dataset) == before
    (dataset / "dataset.json").unlink()
    assert ofrecord("index", dataset).code == 0


WRONG = [{"skipped": 5}, {"split_id": {}}, {"class_names": ["a"]}, {"class_names": 5}]


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_a_manifest_that_cannot_be(dataset, fields):
    rewrite_manifest(dataset, layout=2, **fields)
    name = "it does not hold that class names" if fields == WRONG[2] else next(iter(fields))
    assert_one_error(ofrecord("index", dataset), "cannot be a dataset", name, started=True)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"class_names": ["x"], "sha256": "0"}'])
def test_another_programs_dataset_json(dataset, text):
    """Its file is not replaced, and the message that leads to ``index`` says so."""
    (dataset / "dataset.json").write_text(text)
    before = snapshot(dataset)
    assert_one_error(ofrecord("show", dataset), "or move it away and write a new manifest: ")
    assert_one_error(ofrecord("index", dataset), "; move it away", started=True)
    assert snapshot(dataset) == before
