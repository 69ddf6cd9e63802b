"""Class folders as they come from people, programs and archives."""

import os

import pytest
from reading import assert_error, assert_one, make_files, read


@pytest.fixture
def classes(tmp_path):
    """Twelve files in class folders a, b, b/sub and c, by threes, in ``in/``."""
    folders = ["a"] * 3 + ["b"] * 3 + ["b/sub"] * 3 + ["c"] * 3
    make_files(tmp_path / "in", [f"{folder}/{index}.png" for index, folder in enumerate(folders)])
    return tmp_path


def read_folders(capsys, folder, **options):
    return read(capsys, folder / "in", class_folders=True, **options)


def test_folders_are_classes(tmp_path, capsys):
    names = [
        "dog/2.png",
        "dog/1.png",
        "cat/deep/er/9 9.png",
        "猫 x/图.png",
        "class 10/x.png",
        "class 2/x.JPG",
    ]
    make_files(tmp_path / "in", names)
    result = read_folders(capsys, tmp_path)
    assert result.samples.class_names == ["cat", "class 2", "class 10", "dog", "猫 x"]
    assert result.samples.names == [names[2], names[5], names[4], names[1], names[0], names[3]]
    assert result.labels == [0, 1, 2, 3, 3, 4] and result.warnings == []


def test_what_systems_put_there_is_no_class(classes, capsys):
    systems = [
        "__MACOSX/a/._0.png",
        "lost+found/#12.png",
        "$RECYCLE.BIN/x.png",
        ".git/x.png",
        ".ipynb_checkpoints/0.png",
        "@eaDir/0.png",
    ]
    make_files(classes / "in", [*systems, "b/@eaDir/3.png", "b/.DS_Store", "b/notes.txt"])
    make_files(classes / "in", [f"a/{index}.mov" for index in range(5)])
    result = read_folders(capsys, classes)
    assert result.samples.class_names == ["a", "b", "c"] and len(result.samples) == 12
    assert_one(result.warnings, "skipped 6 files without an image's extension")
    assert ": 5 .mov, 1 .txt (such as a/0.mov" in result.warnings[0]


def test_bad_class_folders(tmp_path, capsys):
    make_files(tmp_path, ["in/.x/1.png"])
    assert_error(read_folders(capsys, tmp_path), "no class folders")
    make_files(tmp_path / "in", ["cat/1.png", "stray.png"])
    assert_error(read_folders(capsys, tmp_path), "stray.png is not in a class folder")
    (tmp_path / "in/stray.png").rename(tmp_path / "in/cat/2.png")
    make_files(tmp_path / "in", ["films/1.MOV", "films/2.mov"])
    assert_error(read_folders(capsys, tmp_path), "the class folder", "in/films has no images")


SETS = {  # folders: the sets in their order; None: these are classes
    "train val": ["train", "val"],
    "test Training valid": ["Training", "valid", "test"],
    "train": ["train"],
    "unlabeled train test": ["train", "test"],
    "train cats": None,
}


@pytest.mark.parametrize("folders", SETS)
def test_folders_of_sets_are_no_classes(tmp_path, capsys, folders):
    make_files(tmp_path / "in", [f"{name}/{c}/1.png" for name in folders.split() for c in "ab"])
    result = read_folders(capsys, tmp_path)
    if SETS[folders] is None:
        assert set(result.samples.class_names) == set(folders.split())
        return
    names = [f"--image_root {tmp_path / 'in' / name} --save_dir" for name in SETS[folders]]
    assert_error(result, f"`ls -v {tmp_path / 'in' / SETS[folders][0]} > classes.txt`", *names)
    result = read_folders(capsys, tmp_path, classes="my classes")
    assert_error(result, "not classes", "--class_folders --classes 'my classes' --image_root")
    assert "`ls " not in result.errors[0]


def test_a_class_file_gives_the_order(classes, capsys):
    (classes / "in/empty").mkdir()
    (classes / "classes.txt").write_text("c\nd\na\nb\nempty")
    result = read_folders(capsys, classes, classes=classes / "classes.txt")
    assert result.labels == [0] * 3 + [2] * 3 + [3] * 6
    assert result.samples.class_names == ["c", "d", "a", "b", "empty"]
    assert_one(result.warnings, "classes without images: d, empty")
    (classes / "classes.txt").write_text("c\na")
    result = read_folders(capsys, classes, classes=classes / "classes.txt")
    assert_error(result, "classes.txt (--classes) lacks 2 classes: 'b', 'empty'")


def test_names_that_are_not_text(tmp_path, capsys):
    make_files(tmp_path / "in", ["a/\udcff.png", "\udcfe/1.png"])
    result = read_folders(capsys, tmp_path)
    assert result.samples.class_names == ["\\xfe", "a"]
    assert result.samples.names == ["\udcfe/1.png", "a/\udcff.png"]


# -- links --------------------------------------------------------------------------------


def test_a_link_within_a_class_counts_once(classes, capsys):
    make_files(classes, ["elsewhere/2.png"])
    for link, target in {
        "b/again": "sub", "b/loop": ".", "b/self": "self", "c/twice.png": "9.png", "d": "../elsewhere", "self": "self",
    }.items():  # fmt: skip
        (classes / "in" / link).symlink_to(target)
    result = read_folders(capsys, classes)
    assert result.labels == [0] * 3 + [1] * 6 + [2] * 3 + [3]


@pytest.mark.parametrize(
    "link, target", [("a/link", "../b/sub"), ("a/x.png", "../b/3.png"), ("d", "b"), ("0", "b")]
)
def test_a_file_in_two_classes_is_refused(classes, capsys, link, target):
    (classes / "in" / link).symlink_to(target)
    result = read_folders(capsys, classes)
    assert result.errors and "are the same file in two classes" in result.errors[0]


def test_hard_links_are_files_of_their_own(classes, capsys):
    os.link(classes / "in/a/0.png", classes / "in/c/0.png")
    assert read_folders(capsys, classes).labels.count(2) == 4


# -- options ------------------------------------------------------------------------------

OPTIONS = [
    ({"class_folders": True, "label_dir": "x.csv"}, "are not for --class_folders"),
    ({"class_folders": True, "label_column": "x"}, "are not for --class_folders"),
    ({"seed": 3}, "--seed is for --shuffle"),
    ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
    ({"val_fraction": 1.0}, "less than 1"),
    ({"limit": 0}, "greater than or equal to 1"),
    ({"image_root": "nowhere"}, "--image_root nowhere does not exist"),
]


@pytest.mark.parametrize("options, text", OPTIONS)
def test_options_that_do_not_go_together(tmp_path, options, text):
    from pydantic import ValidationError

    from ofrecord.labels.options import SourceOptions

    with pytest.raises(ValidationError, match=text):
        SourceOptions(**{"image_root": str(tmp_path), **options})
