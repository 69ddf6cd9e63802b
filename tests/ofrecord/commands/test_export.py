"""``python -m ofrecord export``: the files again, under their names, from which the same parts can be made."""

import csv
import re
import shlex

import pytest
from damage import change_record, ofrecord, set_label
from drawn import FILES as DRAWN
from helpers import IMAGES, PROJECT, assert_one_error, call, part_files, read_manifest, snapshot
from making import change_table, foreign, make, numbered, picture, run_typed

from ofrecord.dataset.images_csv import read_rows
from runtime.atomic import folder_lock


def exported(folder, target, cwd=PROJECT):
    result = call("ofrecord.__main__", "export", "--", folder, target, cwd=cwd)
    assert result.code == 0 and result.out.startswith(f"{target}: "), result
    return result


def convert_again(result, cwd=PROJECT):
    """Run the command that export prints; return the folder of the dataset."""
    command = re.search("^to convert them again: (.*)$", result.out, re.M)[1]
    again = run_typed(command, cwd)
    assert again.code == 0, again
    words = shlex.split(command)
    return cwd / words[words.index("--save_dir") + 1]


def table(target):
    with open(target / "images.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "label"]
    return rows


def test_the_files_again_under_their_names(converted, tmp_path):
    result = exported(converted, tmp_path / "x")
    files = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    images = {path.name: path.read_bytes() for path in IMAGES.iterdir()}
    assert files.pop("images.csv") and files == images
    rows = [[row.image, str(row.label)] for row in read_rows(converted)]
    assert table(tmp_path / "x") == rows and f"{tmp_path / 'x'}: 50 images\n" in result.out
    assert snapshot(convert_again(result)) == snapshot(converted)


CLASSES = ["cat", "two\nlines", "cr\rlf\r\nx", " b ", '"q"', '"', "1,5", "x;y\tz", "7", "NA", "é猫", "\ufeffx", "\u2028y", "\\n", "#", '{"a": 1}', "..x", "\udcff\udcfe", "שלום", "images.csv", "\t", "-x"]  # fmt: skip
FILES = ["a.png", "A.png", "images.csv.png", "deep/" * 60 + "x.png", "n" * 240 + ".png", " .png", "\ufeffb.png", "cr\r.png"]  # fmt: skip
OPTIONS = [
    {"shuffle": "true", "part_num": 3},
    {"img_format": ".jpg", "part_name_suffix_length": 5},
    {"img_format": ".tiff"},
    {"size": "12x20", "fit": "pad", "background": "#204060"},
    {"image_feature": "encoded", "label_feature": "class/label", "color": False},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_parts_are_made_of_them(tmp_path, options):
    """Whatever the classes and the files are named, and in whatever folder the command is typed."""
    files = numbered(CLASSES, 2)
    files["cat"] = {name: 100 + seed for seed, name in enumerate(FILES)}
    folder = make(tmp_path / "one d", files, **options)
    again = convert_again(exported("one d", "-x/", cwd=tmp_path), tmp_path)
    parts = {path.name: path.read_bytes() for path in part_files(folder)}
    assert {path.name: path.read_bytes() for path in part_files(again)} == parts
    for name in ("class_names", "fit", "background"):  # which predictions follow
        assert read_manifest(again)[name] == read_manifest(folder)[name]
    ending = options.get("img_format", "")
    names = [(row.image + ending).removeprefix("images.csv/") for row in read_rows(folder)]
    found = [re.sub("^part-[0-9]+/[0-9]{5}/images.csv/", "", name) for name, _ in table(tmp_path / "-x")]  # fmt: skip
    assert found == names  # the table is in the place of that folder


def test_an_image_of_another_format_gets_that_ending_too(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name, kind in (("scan.tiff", "rgb-0.tiff"), ("b.PNG", "rgb.png"), ("photo", "rgb.png")):
        (tmp_path / "in" / "a" / name).write_bytes(DRAWN[kind].data)
    (tmp_path / "l.csv").write_text("image,label\na/scan.tiff,0\na/b.PNG,1\na/photo,2\n")
    options = ["--image_root", tmp_path / "in", "--label_dir", tmp_path / "l.csv", "--part_num", 1]
    assert call("img2ofrecord", *options, "--save_dir", tmp_path / "d").code == 0
    again = convert_again(exported(tmp_path / "d", tmp_path / "x"))
    assert [row[0] for row in table(tmp_path / "x")] == ["a/scan.tiff.png", "a/b.PNG", "a/photo.png"]  # fmt: skip
    assert (again / "part-0").read_bytes() == (tmp_path / "d" / "part-0").read_bytes()


def test_a_dataset_without_names(tmp_path):
    folder = foreign(tmp_path / "d")
    assert ofrecord("index", folder).code == 0
    exported(folder, tmp_path / "x")
    names = [row[0] for row in table(tmp_path / "x")]
    assert names[:8] == [f"part-0/{n:05d}.png" for n in range(7)] + ["part-1/00000.png"]
    assert all((tmp_path / "x" / name).is_file() for name in names) and len(names) == 50


ODD = {  # an image's name: where its file is
    "../../up.png": "up.png", "/etc/passwd.png": "etc/passwd.png", "a/./b//c.png": "a/b/c.png", "..": "part-0/00003.png",
    "~/x.png": "~/x.png", "images.csv/x.png": "part-0/00005/images.csv/x.png", "C:\\x\\1.png": "C:\\x\\1.png",
    "two\nlines.png": "two\nlines.png", "x" * 300 + ".png": "part-0/00008/image.png",
    "same.png": "same.png", "same.png/below.png": "part-0/00010/same.png/below.png", ".hidden.png": ".hidden.png",
    "\x1b[31m.png": "\x1b[31m.png", " space .png": " space .png", "part-0/00000.png": "part-0/00000.png",
}  # fmt: skip


def test_nothing_is_written_outside_and_nothing_is_overwritten(tmp_path):
    files = {f"{index:02d}.png": index for index in range(19)}
    folder = make(tmp_path / "d", {"a": files}, part_num=1)
    given = [*ODD, "same.png", "same.png", "", ""]
    change_table(folder, lambda rows: [row._replace(image=name) for row, name in zip(rows, given, strict=True)])  # fmt: skip
    (tmp_path / "out").mkdir()
    exported(folder, tmp_path / "out" / "x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
    names, labels = zip(*table(tmp_path / "out" / "x"), strict=True)
    assert len(set(names)) == 19 and set(labels) == {"a"} and list(names[:15]) == [*ODD.values()]
    for seed, name in enumerate(names):
        path = (tmp_path / "out" / "x" / name).resolve()
        assert path.read_bytes() == picture(seed) and path.is_relative_to(tmp_path / "out" / "x")


def test_two_exports_to_one_folder(converted, tmp_path):
    staging = tmp_path / ".out.export"
    staging.mkdir()
    with folder_lock(staging, "in use"):  # as an export that is running does
        result = ofrecord("export", converted, tmp_path / "out")
        assert_one_error(result, "another export is writing to")
    exported(converted, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 51 and not staging.exists()


def test_a_dataset_that_is_not_as_it_says(dataset, tmp_path):
    change_record(dataset, set_label(12))
    change_table(dataset, lambda rows: [rows[0]._replace(label=12), *rows[1:]])
    result = ofrecord("export", dataset, tmp_path / "x")
    assert_one_error(result, "part-0, record 0: dataset.json has no label 12", "ofrecord check")
    change_table(dataset, lambda rows: rows[1:])
    for action in ("export", "merge"):
        result = ofrecord(action, dataset, tmp_path / "x")
        assert_one_error(result, "record 0: it is not the next one in images.csv", "ofrecord check")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]
