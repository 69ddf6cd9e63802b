"""Which image is in which dataset: two fractions, groups, folders of splits, and a first few images."""

import re
import shutil

import cv2
import numpy as np
import pytest
from helpers import assert_one_error, convert, read_manifest, records, train

SUFFIXES = {"train": "", "val": "_val", "test": "_test"}


def write_images(root, names, first=0):
    """An image for each name; no two are equal."""
    for number, name in enumerate(names, first):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6, 7), number // 200 * 50, np.uint8)
        pixels[0, 0] = number % 200
        cv2.imwrite(str(root / name), pixels)
    return root


def convert_in(folder, *options):
    options = ["--image_root", folder / "in", "--save_dir", folder / "d", *options]
    return convert(*options, "--class_folders", "--part_num", 1)


def names_in(folder, root="in"):
    """The names of the images in each dataset that is there, sorted, by split."""
    names = {path.read_bytes(): path for path in sorted((folder / root).rglob("*.png"))}
    return {
        split: sorted(
            str(names[data].relative_to(folder / root)) for data, _ in records(folder / f"d{end}")
        )
        for split, end in SUFFIXES.items()
        if (folder / f"d{end}").exists()
    }


@pytest.fixture
def patients(tmp_path):
    """Two classes; in each, 20 patients of 3 images each."""
    names = [f"{c}/p{n:02}_{k}.png" for c in "ab" for n in range(20) for k in range(3)]
    write_images(tmp_path / "in", names)
    return tmp_path


def test_two_fractions(patients):
    result = convert_in(patients, "--val_fraction", 0.2, "--test_fraction", 0.1, "--seed", 4)
    assert result.code == 0, result
    sets = names_in(patients)
    assert {split: len(names) for split, names in sets.items()} == dict(train=84, val=24, test=12)
    assert sum(map(len, sets.values())) == len(set().union(*sets.values()))
    assert all(sum(name[0] == "a" for name in names) * 2 == len(names) for names in sets.values())
    ids = {read_manifest(patients / f"d{end}")["split_id"] for end in SUFFIXES.values()}
    assert len(ids) == 1 and None not in ids
    for end in ("_val", "_test"):
        options = ["--eval_dataset_dir", patients / f"d{end}", "--steps", 1, "--batch_size", 4]
        assert train(patients / "d", *options).code == 0


def test_a_test_set_alone_and_its_folder(patients):
    result = convert_in(patients, "--test_fraction", 0.5, "--test_dir", patients / "t")
    assert result.code == 0 and len(records(patients / "t")) == 60, result
    assert not (patients / "d_val").exists() and not (patients / "d_test").exists()


@pytest.mark.parametrize("regex", ["(p[0-9]+)_[0-9]", "p[0-9]+"])
def test_groups_stay_together(patients, regex):
    options = ["--val_fraction", 0.2, "--test_fraction", 0.2, "--group", regex]
    result = convert_in(patients, *options)
    assert result.code == 0, result
    assert "20 groups of at most 6 images; 0 images in none" in result.err, result
    sets = {split: {name[2:5] for name in names} for split, names in names_in(patients).items()}
    assert len(sets) == 3 and sum(map(len, sets.values())) == 20 == len(set().union(*sets.values()))
    sizes = [len(names) for names in names_in(patients).values()]
    assert sum(sizes) == 120 and min(sizes) >= 12


def test_a_group_is_joined_by_copies_and_by_a_column(tmp_path):
    names = [f"{n}_{k}.png" for n in range(10) for k in range(2)]
    write_images(tmp_path / "in", names)
    for n in range(0, 10, 2):  # the second of one group is the first of the next
        shutil.copy(tmp_path / f"in/{n}_1.png", tmp_path / f"in/{n + 1}_0.png")
    rows = [f"{name},{index % 2},{name[0]}\n" for index, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("image,label,patient\n" + "".join(rows))
    options = ["--label_dir", tmp_path / "labels.csv", "--save_dir", tmp_path / "d"]
    options += ["--part_num", 1, "--val_fraction", 0.4, "--group_column", "Patient"]
    result = convert("--image_root", tmp_path / "in", *options)
    assert result.code == 0 and "10 groups of at most 2 images" in result.err, result
    lines = re.findall(r"(\d)_\d\.png feature saved", result.out)
    split = len(records(tmp_path / "d"))
    train_set, val_set = ({int(n) // 2 for n in part} for part in (lines[:split], lines[split:]))
    assert len(lines) == 20 and val_set and not train_set & val_set


@pytest.mark.parametrize("seed", range(4))
def test_images_of_no_group_are_alone_and_large_groups_are_for_training(tmp_path, seed):
    names = [f"a/x_{n}.png" for n in range(30)] + [f"a/y_{n}.png" for n in range(20)]
    write_images(tmp_path / "in", names + [f"a/{n}.png" for n in range(10)])
    result = convert_in(tmp_path, "--val_fraction", 0.1, "--group", "(x|y)_", "--seed", seed)
    text = "2 groups of at most 30 images; 10 images in none"
    assert result.code == 0 and text in result.err, result
    assert len(names_in(tmp_path)["val"]) == 6
    for number in range(1, 10):
        (tmp_path / f"in/a/{number}.png").unlink()
    result = convert_in(tmp_path, "--val_fraction", 0.1, "--group", "(.)_", "--seed", seed)
    assert result.code == 0 and names_in(tmp_path)["val"] == ["a/0.png"], result


@pytest.mark.parametrize(
    "options, text",
    [
        (["--val_fraction", 0.5, "--test_fraction", 0.5], "leave nothing to train on"),
        (["--test_dir", "t"], "--test_dir is the folder for --test_fraction"),
        (["--test_fraction", 0.1, "--test_dir", "d/"], "are the same folder"),
        (["--val_fraction", 0.1, "--val_dir", "x", "--test_fraction", 0.1, "--test_dir", "x/"], "are the same"),
        (["--group", "x"], "--group and --group_column are for --val_fraction"),
        (["--val_fraction", 0.1, "--group", "(x"], "--group: it should be a regular expression"),
        (["--val_fraction", 0.1, "--group", "z+"], "--group 'z+' matches no image's name"),
        (["--val_fraction", 0.1, "--group_column", "z"], "for a table, not for --class_folders"),
        (["--val_fraction", 0.1, "--group", "p"], "no image is left for the validation set"),
        (["--limit", 0], "--limit: "),
    ],
)  # fmt: skip
def test_bad_options_of_splits(patients, options, text):
    options = ["--image_root", "in", "--class_folders", "--save_dir", "d", *options]
    result = convert(*options, cwd=patients)
    assert_one_error(result, text, started=True)
    assert [path.name for path in patients.iterdir()] == ["in"]


# -- folders of splits --------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Folders training/, Valid/ and test/ of classes; c is not in the last two."""
    names = [f"training/{c}/{n}.png" for c in "abc" for n in range(6)]
    names += [f"{split}/{c}/{n}.png" for split in ("Valid", "test") for c in "ab" for n in range(2)]
    write_images(tmp_path / "in", names)
    (tmp_path / "in/README").write_text("")
    return tmp_path


def test_folders_of_splits(folders):
    result = convert_in(folders, "--shuffle")
    assert result.code == 0, result
    assert (
        f"training/ for {folders / 'd'}, Valid/ for {folders / 'd'}_val/, test/ for" in result.err
    )
    assert "classes without images in the test set: c" in result.err, result
    assert "too high" not in result.err and result.out.count("feature saved") == 26, result
    sets = names_in(folders)
    starts = {split: {name.split("/")[0] for name in names} for split, names in sets.items()}
    assert starts == {"train": {"training"}, "val": {"Valid"}, "test": {"test"}}
    assert [len(names) for names in sets.values()] == [18, 4, 4]
    manifests = [read_manifest(folders / f"d{end}") for end in SUFFIXES.values()]
    assert [each["class_names"] for each in manifests] == [["a", "b", "c"]] * 3
    ids = {each["split_id"] for each in manifests}
    assert len(ids) == 1 and None not in ids
    eval_set = ["--eval_dataset_dir", folders / "d_test"]
    assert train(folders / "d", *eval_set, "--steps", 1, "--batch_size", 4).code == 0


def test_a_validation_set_beside_the_folders(folders):
    shutil.rmtree(folders / "in/Valid")
    result = convert_in(folders, "--val_fraction", 0.3)
    assert result.code == 0, result
    assert [len(names) for names in names_in(folders).values()] == [12, 6, 4]
    assert all(name.startswith("training/") for name in names_in(folders)["val"])
    result = convert_in(folders, "--test_fraction", 0.3)
    assert_one_error(result, "--test_fraction and the folder test/", "are both for the test set")


def test_copies_in_two_folders_are_warned_of(folders):
    shutil.copy(folders / "in/training/a/1.png", folders / "in/test/b/new.png")
    result = convert_in(folders)
    text = "copies of training images: 1 image of the test set: test/b/new.png"
    assert result.code == 0 and text in result.err, result
    (folders / "in/test/a/link.png").symlink_to("../../training/a/2.png")
    result = convert_in(folders)
    assert_one_error(result, "test/a/link.png and training/a/2.png", "the same file in two datasets", started=True)  # fmt: skip


@pytest.mark.parametrize("other", ["cats/1.png", "1.png"])
def test_other_folders_are_classes(folders, other):
    write_images(folders / "in", [other])
    result = convert_in(folders)
    if other == "1.png":
        assert_one_error(result, "1.png is not in a class folder", started=True)
    else:
        assert result.code == 0, result
        classes = read_manifest(folders / "d")["class_names"]
        assert classes == ["Valid", "cats", "test", "training"]


def test_two_folders_of_one_split(folders):
    write_images(folders / "in", ["val/a/1.png"])
    assert_one_error(convert_in(folders), "has Valid/ and val/: which is the validation set?")


def test_one_colour_image_in_one_folder(folders):
    red = np.full((6, 7, 3), (0, 0, 200), np.uint8)
    cv2.imwrite(str(folders / "in/test/a/red.png"), red)
    assert convert_in(folders).code == 0
    assert [read_manifest(folders / f"d{end}")["channels"] for end in SUFFIXES.values()] == [3] * 3


# -- a first few --------------------------------------------------------------------------


def test_limits(patients):
    for limit, wanted in ((30, 30), (2, 2), (500, 120)):
        assert convert_in(patients, "--limit", limit, "--seed", 1).code == 0
        names = names_in(patients)["train"]
        assert len(names) == wanted and {name[0] for name in names} == {"a", "b"}
    assert convert_in(patients, "--limit_per_class", 5).code == 0
    first = names_in(patients)["train"]
    assert [sum(name[0] == c for name in first) for c in "ab"] == [5, 5]
    assert convert_in(patients, "--limit_per_class", 5, "--seed", 1).code == 0
    assert names_in(patients)["train"] != first
    assert convert_in(patients, "--limit_per_class", 5, "--limit", 7).code == 0
    assert len(names_in(patients)["train"]) == 7


def test_limits_with_folders_of_splits(folders):
    assert convert_in(folders, "--limit_per_class", 1).code == 0
    assert [len(names) for names in names_in(folders).values()] == [3, 2, 2]
    assert convert_in(folders, "--limit", 8).code == 0
    assert [len(names) >= 2 for names in names_in(folders).values()] == [True] * 3
