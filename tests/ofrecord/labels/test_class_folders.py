"""Class folders as they come from people, programs and archives."""

import os

import pytest
from reading import assert_error, make_files, read, write


@pytest.fixture
def classes(tmp_path):
    """Twelve files in class folders a, b, b/sub and c, by threes, in ``in/``."""
    folders = ["a"] * 3 + ["b"] * 3 + ["b/sub"] * 3 + ["c"] * 3
    make_files(tmp_path / "in", *(f"{folder}/{index}.png" for index, folder in enumerate(folders)))
    return tmp_path


def read_folders(capsys, folder, **options):
    return read(capsys, folder / "in", class_folders=True, **options)


NAMES = ["\\xfe/1.png", "\udcfe/1.png", "\udcfe/\udcff.png", "cat/deep/er/9 9.png", "class 2/x.JPG", "class 10/x.png", "dog/1.png", "dog/2.png", "猫 x/图.png"]  # fmt: skip
SYSTEMS = ["__MACOSX/a/._0.png", "lost+found/#12.png", "$RECYCLE.BIN/x.png", ".git/x.png", "@eaDir/0.png", ".ipynb_checkpoints/0.png", "dog/@eaDir/3.png", "dog/.DS_Store"]  # fmt: skip


def test_folders_are_classes_but_not_what_systems_put_there(tmp_path, capsys):
    make_files(tmp_path / "in", *reversed(NAMES), *SYSTEMS)
    result = read_folders(capsys, tmp_path)
    assert result.classes == ["\\xfe", "cat", "class 2", "class 10", "dog", "猫 x"]
    assert result.labels == [0, 0, 0, 1, 2, 3, 4, 4, 5] and result.names == NAMES
    assert result.warnings == result.unused == []
    make_files(tmp_path / "in", "dog/notes.txt", *(f"cat/{index}.mov" for index in range(5)))
    [warning] = read_folders(capsys, tmp_path).unused
    assert warning.startswith("skipped 6 files without an image's extension")
    assert ": 5 .mov, 1 .txt (such as cat/0.mov" in warning


WRONG = {  # what the one error says, and the files
    "no class folders in ": [".x/1.png"],
    "stray.png is not in a class folder": ["cat/1.png", "stray.png"],
    "/in/a has no images": ["cat/1.png", "a/1.MOV"],
}


@pytest.mark.parametrize("text", WRONG)
def test_bad_class_folders(tmp_path, capsys, text):
    make_files(tmp_path / "in", *WRONG[text])
    assert_error(read_folders(capsys, tmp_path), str(tmp_path / "in"), text)


TWICE = {"a/link": "../b/sub", "a/x.png": "../b/3.png", "0": "b"}


@pytest.mark.parametrize("link", TWICE)
def test_a_file_in_two_classes(classes, capsys, link):
    (classes / "in" / link).symlink_to(TWICE[link])
    assert "are the same file in two classes" in read_folders(capsys, classes).errors[0]


SETS = {"train": "train", "train val": "train val", "test Training valid": "Training valid test", "unlabeled train test": "train test"}  # fmt: skip


@pytest.mark.parametrize("folders", SETS)
def test_folders_of_sets_are_no_classes(tmp_path, capsys, folders):
    make_files(tmp_path / "in", *(f"{name}/{c}/1.png" for name in folders.split() for c in "ab"))
    result, sets = read_folders(capsys, tmp_path), SETS[folders].split()
    names = [f"--image_root {tmp_path / 'in' / name} --save_dir" for name in sets]
    assert_error(result, f"`ls -v {tmp_path / 'in' / sets[0]} > classes.txt`", *names)
    names = write(tmp_path / "my classes", "mine")
    result = read_folders(capsys, tmp_path, classes=names)
    assert_error(result, "not classes", f"--class_folders --classes '{names}' --image_root")
    assert "`ls " not in result.errors[0]  # which would write over it


def test_one_folder_named_as_a_set_may_be_a_class(tmp_path, capsys):
    make_files(tmp_path / "in", "train/1.png", "cats/1.png")
    assert read_folders(capsys, tmp_path).classes == ["cats", "train"]


def test_a_class_file_gives_the_order(classes, capsys):
    (classes / "in/empty").mkdir()
    names = write(classes / "classes.txt", "c\nd\na\nb\nempty")
    result = read_folders(capsys, classes, classes=names)
    assert result.labels == [0] * 3 + [2] * 3 + [3] * 6
    assert result.classes == ["c", "d", "a", "b", "empty"]
    assert result.warnings == ["classes without images: d, empty"]
    result = read_folders(capsys, classes, classes=write(names, "c\na"))
    assert_error(result, "classes.txt (--classes) lacks 2 classes: 'b', 'empty'")


LINKS = {"b/again": "sub", "b/loop": ".", "b/self": "self", "c/x.png": "9.png", "d": "../elsewhere", "self": "self"}  # fmt: skip


def test_links(classes, capsys):
    """Within a class a file counts once; a hard link is a file of its own."""
    make_files(classes, "elsewhere/2.png")
    for link, target in LINKS.items():
        (classes / "in" / link).symlink_to(target)
    os.link(classes / "in/a/0.png", classes / "in/c/0.png")
    assert read_folders(capsys, classes).labels == [0] * 3 + [1] * 6 + [2] * 4 + [3]
