"""``python -m ofrecord export``: the files again, under their names, from which the same parts can be made."""

import csv
import fcntl
import os
import re
import shlex

import pytest
from damage import change_record, ofrecord, set_label
from drawn import FILES
from helpers import IMAGES, PROJECT, assert_one_error, call, part_files, read_manifest, snapshot
from making import foreign, make, numbered, picture
from test_check import change_table

from ofrecord.dataset.images_csv import read_rows


def convert_again(result, cwd=PROJECT):
    """Run the command that export prints; return the folder of the dataset."""
    command = re.search("^to convert them again: (.*)$", result.out, re.M)[1]
    words = shlex.split(command)
    assert words[0] == "python" and os.path.samefile(
        os.path.join(cwd, words[1]), PROJECT / "img2ofrecord.py"
    )
    again = call("img2ofrecord", "--workers", 1, *words[2:], cwd=cwd)
    assert again.code == 0, again
    return words[words.index("--save_dir") + 1]


def exported(folder, target):
    result = ofrecord("export", folder, target)
    assert result.code == 0 and result.out.startswith(f"{target}: "), result
    return result


def table(target):
    with open(target / "images.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_files_again_under_their_names(converted, tmp_path):
    result = exported(converted, tmp_path / "x")
    files = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    assert files.pop("images.csv") and files == {
        path.name: path.read_bytes() for path in IMAGES.iterdir()
    }
    rows = [["image", "label"], *([row.image, str(row.label)] for row in read_rows(converted))]
    assert table(tmp_path / "x") == rows
    assert f"{tmp_path / 'x'}: 50 images\n" in result.out
    assert snapshot(convert_again(result)) == snapshot(converted)


NAMES = ["cat", "two\nlines", "cr\rx", " b ", '"q"', "1,5", "x;y\tz", "7", "NA", "é猫"]


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": "true", "part_num": 3},
        {"img_format": ".jpg", "part_name_suffix_length": 5},
        {"image_feature": "encoded", "label_feature": "class/label", "color": False},
    ],
)
def test_the_same_parts_are_made_of_them(tmp_path, options):
    """Whatever the classes are named, and in whatever folder the command is typed."""
    folder = make(tmp_path / "one d", numbered(NAMES, 3), **options)
    result = call("ofrecord.__main__", "export", "one d", "out", cwd=tmp_path)
    assert result.code == 0, result
    again = tmp_path / convert_again(result, tmp_path)
    parts = {path.name: path.read_bytes() for path in part_files(folder)}
    assert {path.name: path.read_bytes() for path in part_files(again)} == parts
    assert read_manifest(again)["class_names"] == read_manifest(folder)["class_names"]
    ending = ".jpg" if "img_format" in options else ""
    names = [row[0] for row in table(tmp_path / "out")[1:]]
    assert names == [row.image + ending for row in read_rows(folder)]


def test_an_image_of_another_format_gets_that_ending_too(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name, kind in (("scan.tiff", "rgb-0.tiff"), ("b.PNG", "rgb.png"), ("photo", "rgb.png")):
        (tmp_path / "in" / "a" / name).write_bytes(FILES[kind].data)
    (tmp_path / "l.csv").write_text("image,label\na/scan.tiff,0\na/b.PNG,1\na/photo,2\n")
    options = ["--image_root", tmp_path / "in", "--label_dir", tmp_path / "l.csv", "--part_num", 1]
    assert call("img2ofrecord", *options, "--save_dir", tmp_path / "d").code == 0
    result = exported(tmp_path / "d", tmp_path / "x")
    names = [row[0] for row in table(tmp_path / "x")]
    assert names == ["image", "a/scan.tiff.png", "a/b.PNG", "a/photo.png"]
    again = convert_again(result)
    assert open(f"{again}/part-0", "rb").read() == (tmp_path / "d" / "part-0").read_bytes()


def test_a_dataset_without_names(tmp_path):
    folder = foreign(tmp_path / "d")
    assert ofrecord("index", folder).code == 0
    exported(folder, tmp_path / "x")
    names = [row[0] for row in table(tmp_path / "x")[1:]]
    assert names[:8] == [f"part-0/{n:05d}.png" for n in range(7)] + ["part-1/00000.png"]
    assert all((tmp_path / "x" / name).is_file() for name in names) and len(names) == 50


# -- names are data -----------------------------------------------------------------------------

ODD = {  # an image's name: where its file is
    "../../up.png": "up.png",
    "/etc/passwd.png": "etc/passwd.png",
    "a/./b//c.png": "a/b/c.png",
    "..": "part-0/00003.png",
    "~/x.png": "~/x.png",
    "images.csv/x.png": "part-0/00005/images.csv/x.png",
    "C:\\x\\1.png": "C:\\x\\1.png",
    "two\nlines.png": "two\nlines.png",
    "x" * 300 + ".png": None,
    "same.png": "same.png",
    "same.png/below.png": None,
    ".hidden.png": ".hidden.png",
    "\x1b[31m.png": "\x1b[31m.png",
    " space .png": " space .png",
    "part-0/00000.png": "part-0/00000.png",
}


def test_nothing_is_written_outside_and_nothing_is_overwritten(tmp_path):
    files = {f"{index:02d}.png": index for index in range(19)}
    folder = make(tmp_path / "d", {"a": files}, part_num=1)
    names = [*ODD, "same.png", "same.png", "", ""]

    def rename(rows):
        return [row._replace(image=name) for row, name in zip(rows, names, strict=True)]

    change_table(folder, rename)
    (tmp_path / "out").mkdir()
    exported(folder, tmp_path / "out" / "x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
    rows = table(tmp_path / "out" / "x")[1:]
    assert len({name for name, _ in rows}) == 19
    for seed, (name, label) in enumerate(rows):
        path = (tmp_path / "out" / "x" / name).resolve()
        assert path.read_bytes() == picture(seed) and label == "a"
        assert path.is_relative_to(tmp_path / "out" / "x")
    for (name, _), wanted in zip(rows, ODD.values(), strict=False):
        assert name == (wanted or name)
    assert len(list((tmp_path / "out").rglob("*.png*"))) >= 19


def test_what_exists_is_no_new_folder(converted, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nothing")
    for name in ("empty", "link"):
        assert_one_error(
            ofrecord("export", converted, tmp_path / name), "exists: name a new folder"
        )


def test_two_exports_to_one_folder(converted, tmp_path):
    staging = tmp_path / ".out.export"
    staging.mkdir()
    descriptor = os.open(staging, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as an export that is running does
    result = ofrecord("export", converted, tmp_path / "out")
    assert_one_error(result, "another export is writing to")
    os.close(descriptor)
    (staging / "images" / "left by a killed one").mkdir(parents=True)
    exported(converted, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 51 and not staging.exists()


DAMAGE = {
    "no such class": (
        lambda d: (change_record(d, set_label(12)), change_table(d, lambda rows: [rows[0]._replace(label=12), *rows[1:]])),
        "part-0, record 0: dataset.json has no label 12",
    ),
    "the table": (lambda d: change_table(d, lambda rows: rows[1:]), "is not the next one in images.csv"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_dataset_that_is_not_as_it_says(dataset, tmp_path, case):
    DAMAGE[case][0](dataset)
    assert_one_error(ofrecord("export", dataset, tmp_path / "x"), DAMAGE[case][1], "ofrecord check")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]
