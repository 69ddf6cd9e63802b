"""Datasets for OneFlow's own models: ``--model_zoo``, and features of other names."""

import json

import cv2
import numpy as np
import pytest
from damage import ofrecord
from helpers import (
    PROJECT,
    assert_one_error,
    convert,
    losses,
    part_files,
    read_manifest,
    run_python,
    train,
)

from ofrecord.record import read_part

COLORS = np.array([[220, 40, 30], [40, 200, 60], [30, 60, 210]])  # R G B, one a class


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """Class folders of images of one colour and any size: JPEG, PNG, and one gray PNG."""
    root = tmp_path_factory.mktemp("colors")
    rng = np.random.default_rng(0)
    for label, color in enumerate(COLORS):
        (root / f"class {label}").mkdir()
        for number in range(8):
            shape = rng.integers(40, 90, 2)
            image = np.empty((*shape, 3), np.uint8)
            image[:] = color[::-1] - 4 * number
            ext = (".jpg", ".png")[number % 2]
            cv2.imwrite(str(root / f"class {label}" / f"{number}{ext}"), image)
    cv2.imwrite(str(root / "class 2" / "gray.png"), np.full((50, 60), 100, np.uint8))
    return root


def convert_for_the_zoo(colors, folder, *options):
    return convert(
        *("--image_root", colors, "--class_folders", "--shuffle", "--save_dir", folder),
        *("--model_zoo", "--part_num", 2, *options),
    )


def stored(folder):
    """[(label, mean colour)] of all records."""
    pictures = []
    for path in part_files(folder):
        for _, data, label in read_part(path, "encoded", "class/label"):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            assert data.startswith(b"\xff\xd8") and image.shape[2] == 3
            pictures.append([label, *image.mean(axis=(0, 1))[::-1]])
    return np.array(pictures)


def test_the_zoos_loaders_read_it(colors, tmp_path):
    """Both of them: the one for training crops at random, the other at the centre."""
    root = tmp_path / "ofrecord"
    result = convert_for_the_zoo(colors, root, "--val_fraction", 0.25)
    assert result.code == 0, result
    assert f"The OFRecord save directory is:  {root}/train/" in result.out, result
    names = {path.name for path in root.iterdir()}
    assert names == {"train", "validation"}
    for name in names:
        assert [path.name for path in part_files(root / name)] == ["part-00000", "part-00001"]
        manifest = read_manifest(root / name)
        assert (manifest["image_feature"], manifest["label_feature"]) == ("encoded", "class/label")
        assert manifest["plain_jpeg"] and manifest["image_format"] == ".jpg"
    expected = {name: stored(root / name) for name in ("train", "validation")}
    numbers = [len(each) for each in expected.values()]
    assert sum(numbers) == 25
    script = PROJECT / "tests" / "zoo_loader.py"
    result = run_python(script, root, 2, *numbers)
    assert result.code == 0, result
    for line, pictures in zip(result.out.splitlines(), expected.values(), strict=True):
        read = np.array(json.loads(line))
        np.testing.assert_allclose(read, pictures[: len(read)], atol=2)


def test_the_trainer_and_the_tools_read_it(colors, tmp_path):
    assert convert_for_the_zoo(colors, tmp_path / "zoo", "--val_fraction", 0.25).code == 0
    train_dir, val_dir = tmp_path / "zoo" / "train", tmp_path / "zoo" / "validation"
    options = ["--batch_size", 6, "--image_size", 16, "--run_dir", tmp_path / "run"]
    result = train(train_dir, "--eval_dataset_dir", val_dir, "--steps", 2, *options)
    assert len(losses(result)) == 2, result
    assert ofrecord("check", train_dir).out.endswith("all valid\n")
    assert "19 colour JPEG images" in ofrecord("show", train_dir).out


def test_features_of_other_names(converted, tmp_path):
    """The losses are those of the same images under the usual names."""
    names = ["--image_feature", "bild", "--label_feature", "klasse"]
    assert convert("--save_dir", tmp_path / "d", *names).code == 0
    steps = ["--steps", 2, "--shuffle_buffer", 0]
    assert losses(train(tmp_path / "d", *steps)) == losses(train(converted, *steps))
    assert ofrecord("check", tmp_path / "d").code == 0
    again = [
        (image, label) for _, image, label in read_part(tmp_path / "d/part-0", "bild", "klasse")
    ]
    assert again == [(image, label) for _, image, label in read_part(converted / "part-0")]


@pytest.mark.parametrize(
    "options, text",
    [
        (["--model_zoo", "--img_format", ".png"], "--model_zoo sets --img_format .jpg, and '.png'"),
        (["--model_zoo", "--color", "gray"], "--model_zoo sets --color color, and 'gray'"),
        (
            ["--model_zoo", "--part_name_suffix_length", "1"],
            "--model_zoo sets --part_name_suffix_length 5, and 1",
        ),
        (["--model_zoo", "--label_feature", "x"], "--label_feature class/label, and 'x'"),
        (
            ["--model_zoo", "--val_fraction", "0.2", "--val_dir", "v"],
            "--model_zoo sets --val_dir ./d/validation/, and 'v'",
        ),
        (["--image_feature", "a", "--label_feature", "a"], "are the same name"),
        (
            ["--model_zoo", "--val_fraction", "0.1", "--part_num", "6"],
            "--part_num 6 is more than the 3 images of a dataset to write",
        ),
    ],
)
def test_what_contradicts_it(colors, tmp_path, options, text):
    result = convert(
        *("--image_root", colors, "--class_folders", "--save_dir", "./d/", *options), cwd=tmp_path
    )
    assert_one_error(result, text)
    assert list(tmp_path.iterdir()) == []


def test_what_it_sets_may_be_given_too(colors, tmp_path):
    options = ["--img_format", ".jpg", "--color", "color", "--val_dir", f"{tmp_path}/d/validation/"]
    result = convert_for_the_zoo(colors, tmp_path / "d", "--val_fraction", 0.2, *options)
    assert result.code == 0, result
