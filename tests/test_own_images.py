"""Datasets of one's own and of other converters: splits, colour and sizes, trained on; and a fuzz test."""

import json
import os
import random
import re
import shutil

import cv2
import numpy as np
import pytest
from damage import flip, ofrecord, rewrite_manifest
from helpers import (  # fmt: skip
    PROJECT,
    assert_one_error,
    call,
    losses,
    read_manifest,
    records,
    run_python,
    snapshot,
    train,
)
from helpers import convert as convert_images
from making import FEATURES, GRAY_JPEG, OTHER_NAMES, TUTORIAL, encoded, foreign

CONFIG = PROJECT / "configs" / "own_images.yaml"


def class_folders(root, counts, size=lambda rng: (24, 20), color=True, names=None):
    """Make pictures that can be told apart, so many in each class's folder; return the folder of these."""
    rng = np.random.default_rng(0)
    for index, count in enumerate(counts):
        folder = root / (names[index] if names else f"class {index:03d}")
        folder.mkdir(parents=True)
        shift = np.array([index % 5, index // 5 % 5, index // 25 % 5]) * 45
        gray = 10 + 240 * index // len(counts)
        for number in range(count):
            image = rng.integers(0, 60, (*size(rng), 3), dtype=np.uint8)
            image = image + shift if color else gray + image[:, :, 0] // 8
            cv2.imwrite(str(folder / f"{number}.png"), image.astype(np.uint8))
    return root


def convert(root, save_dir, *arguments, **options):
    source = ["--image_root", root, "--class_folders", "--shuffle", "--save_dir", save_dir]
    return convert_images(*source, "--part_num", 3, *arguments, **options)


# -- held out -------------------------------------------------------------------------


def test_each_image_is_in_exactly_one_dataset(tmp_path):
    root = class_folders(tmp_path / "in", [10, 20, 31, 2, 1])
    result = convert(root, tmp_path / "d", "--val_fraction", 0.25, "--seed", 3)
    assert result.code == 0, result
    assert "classes without images in the validation set: class 004" in result.err, result
    datasets = tmp_path / "d", tmp_path / "d_val"
    train_images, val_images = map(records, datasets)
    everything = {path.read_bytes() for path in root.rglob("*.png")}
    assert len(everything) == 64 and len(train_images) + len(val_images) == 64
    assert {data for data, _ in train_images + val_images} == everything
    assert [[label for _, label in val_images].count(n) for n in range(5)] == [2, 5, 8, 1, 0]
    manifests = [read_manifest(folder) for folder in datasets]
    assert [each["class_names"] for each in manifests] == [[f"class {n:03d}" for n in range(5)]] * 2
    assert manifests[0]["split_id"] == manifests[1]["split_id"] is not None
    assert all(ofrecord("check", folder).code == 0 for folder in datasets)


def test_one_colour_image_makes_both_datasets_colour(tmp_path):
    root = class_folders(tmp_path / "in", [20, 20], color=False)
    red = np.full((24, 20, 3), (0, 0, 200), np.uint8)
    cv2.imwrite(str(root / "class 001" / "red.png"), red)
    assert convert(root, tmp_path / "d", "--val_fraction", 0.1).code == 0
    num_color = []
    for name in ("d", "d_val"):
        manifest = read_manifest(tmp_path / name)
        assert manifest["channels"] == len(manifest["mean"]) == 3
        num_color.append(manifest["num_records"] - manifest["num_gray"])
        assert ofrecord("check", tmp_path / name).code == 0
    assert sorted(num_color) == [0, 1]
    options = ["--eval_dataset_dir", tmp_path / "d_val", "--batch_size", 4, "--steps", 1]
    result = train(tmp_path / "d", *options, "--run_dir", tmp_path / "run")
    assert len(losses(result)) == 1 and "colour images (20x24)" in result.err, result


REFUSED = {
    "--val_fraction: it should be greater than 0": ["--val_fraction", "0"],
    "--val_fraction: it should be less than 1": ["--val_fraction", "1"],
    "--val_fraction: it should be a valid number": ["--val_fraction", "x"],
    "--val_dir: unknown setting": ["--val_dir", "elsewhere"],
    "--limit: it should be greater than or equal to 1": ["--limit", "0"],
    "are not for --class_folders": ["--label_dir", "x.csv"],
    "--image_column and --label_column are not for --class_folders": ["--label_column", "x"],
    "--seed is for --shuffle": ["--shuffle", "false", "--seed", "3"],
    "leave nothing to train on": ["--val_fraction", "0.5", "--test_fraction", "0.5"],
    "--image_root nowhere does not exist": ["--image_root", "nowhere"],
}


@pytest.mark.parametrize("text", REFUSED)
def test_bad_options(tmp_path, text):
    root = class_folders(tmp_path / "in", [3, 3])
    assert_one_error(convert(root, "d", *REFUSED[text], cwd=tmp_path), text)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nothing_is_written_where_one_of_two_datasets_cannot_be(tmp_path):
    root = class_folders(tmp_path / "in", [8, 8])
    (tmp_path / "d_val").mkdir()
    (tmp_path / "d_val" / "thesis.txt").write_text("x")
    before = snapshot(tmp_path)
    result = convert(root, tmp_path / "d", "--val_fraction", 0.2)
    assert_one_error(result, "d_val", "thesis.txt")
    assert not (tmp_path / "d").exists() and snapshot(tmp_path) == before


# -- the trainer follows the dataset --------------------------------------------------

OWN = {  # what the training says of it: counts, color, size, names, options
    "colour images (24x20) in 3 parts, 3 classes": ([15] * 3, True, lambda rng: (20, 24), ["猫", "狗 大", "鸟"], "null"),
    "gray images (sizes vary) in 3 parts, 4 classes": ([12] * 4, False, lambda rng: rng.integers(10, 40, 2), None, 32),
    "colour images (12x12) in 3 parts, 100 classes": ([3] * 100, True, lambda rng: (12, 12), None, 12),
}  # fmt: skip
CHINESE, *MORE = OWN


@pytest.mark.parametrize("text", [CHINESE, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE)])  # fmt: skip
def test_own_images_yaml(tmp_path, text):
    """As the README says: convert, train with configs/own_images.yaml, predict."""
    counts, color, size, names, image_size = OWN[text]
    root = class_folders(tmp_path / "in", counts, size, color, names)
    assert convert(root, tmp_path / "dataset", "--val_fraction", 0.2).code == 0
    short = ["--epochs", 4, "--batch_size", 8, "--device", "cpu", "--image_size", image_size]
    result = call("lenet_train", "--config", CONFIG, *short, cwd=tmp_path)
    assert result.code == 0 and text in result.err, result
    right, count = re.findall(r"accuracy (\d+)/(\d+)", result.err)[-1]
    assert int(right) > int(count) / len(counts)  # better than a guess
    image = next((root / (names[0] if names else "class 000")).iterdir())
    best = tmp_path / "runs" / "own_images" / "best.npz"
    result = call("lenet.predict", "--checkpoint", best, image)
    assert result.code == 0, result
    predicted = result.out.split(": ")[1].rsplit(" (")[0]
    assert predicted in (names or [folder.name for folder in root.iterdir()])


def test_the_fused_decoder_reads_the_same_pixels(tmp_path):
    root = class_folders(tmp_path / "in", [6, 6], lambda rng: (40, 48))
    jpegs = tmp_path / "jpegs"
    assert convert(root, jpegs, "--img_format", ".jpg").code == 0
    assert read_manifest(jpegs)["plain_jpeg"]
    copy = shutil.copytree(jpegs, tmp_path / "copy")
    rewrite_manifest(copy, plain_jpeg=False)
    arguments = ["--batch_size", 6, "--steps", 2, "--learning_rate", 1e-4]
    fused, read = (losses(train(folder, *arguments)) for folder in (jpegs, copy))
    assert fused == read != []


# -- other people's converters --------------------------------------------------------


@pytest.fixture(scope="module")
def digits_run(converted):
    """The losses of a short training on the 50 digits in order, as our converter stores them."""
    return losses(train(converted, "--steps", 2, "--shuffle_buffer", 0))


def jpeg_or_bmp(index, data):
    return encoded(".jpg" if index % 2 else ".bmp", cv2.imdecode(np.frombuffer(data, np.uint8), 1))


PADDED = {"features": FEATURES, "kind": "int64", "parts": "part-{:05}", "size": 10}
FOREIGN = {  # options of foreign and of index, what index says, how near the losses are
    "the tutorial's": ({}, [], "50 gray PNG images 28x28, 10 classes, in 8 parts", 1e-6),
    "other names": (PADDED, OTHER_NAMES, "50 gray PNG images 28x28, 10 classes, in 5 parts", 1e-6),
    "gray JPEG": ({**GRAY_JPEG, "size": 50}, [], "50 gray JPEG images 28x28, 10 classes, in 1 part", 0.02),
    "mixed formats": ({"change": jpeg_or_bmp}, [], "50 gray images 28x28, 10 classes, in 8 parts", 0.02),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_datasets_of_other_converters_train(tmp_path, digits_run, case):
    """Once indexed, step by step as our own converter's dataset of the same images and labels."""
    options, arguments, found, tolerance = FOREIGN[case]
    folder = foreign(tmp_path / "d", **options)
    assert_one_error(train(folder), f"python -m ofrecord index {folder}")
    result = ofrecord("index", folder, *arguments)
    assert result.code == 0 and found in result.out, result
    assert ofrecord("check", folder).code == 0
    result = train(folder, "--steps", 2, "--shuffle_buffer", 0)
    assert losses(result) == pytest.approx(digits_run, rel=tolerance)


def test_check_hashes_finds_a_change_that_is_older_than_the_manifest(dataset):
    times = (dataset / "part-3").stat()
    flip(dataset / "part-3", 200)
    os.utime(dataset / "part-3", ns=(times.st_atime_ns, times.st_mtime_ns - 10**9))
    result = train(dataset, "--batch_size", 51, "--check_hashes", "false")
    assert_one_error(result, "batch_size 51")
    assert_one_error(train(dataset, "--batch_size", 51), "part-3 was changed", "SHA-256")


# -- fuzz -----------------------------------------------------------------------------

KINDS = ["flip", "flip", "flip", "cut", "swap", "repeat", "zero", "insert", "lose", "exchange"]


def mutate(folder, rng):
    """Flip bits, cut, swap or repeat bytes of one file, or lose or exchange parts."""
    files = sorted(folder.iterdir())
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    a, b = sorted(rng.sample(range(len(content)), 2))
    n = min(rng.randrange(1, 40), b - a)
    match rng.choice(KINDS):
        case "flip":
            for _ in range(rng.choice([1, 1, 1, 2, 10])):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case "cut":
            del content[a:]
        case "swap":
            content[a : a + n], content[b : b + n] = content[b : b + n], content[a : a + n]
        case "repeat":
            content[a:a] = content[a : a + n]
        case "zero":
            content[a : a + 16] = bytes(len(content[a : a + 16]))
        case "insert":
            content.insert(a, rng.randrange(256))
        case "lose":
            return path.unlink()
        case "exchange":
            content = rng.choice(files).read_bytes()
    path.write_bytes(content)


READ_ALL = """
import contextlib, io, json, sys
from argparse import Namespace
from runtime.cli import InputError
from ofrecord.commands import index
from ofrecord.dataset.open_dataset import open_dataset

errors = {}
for folder in sys.argv[1:]:  # before OneFlow is there, as it forks
    if "/ours" not in folder and "/dataset" not in folder:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                index.run(Namespace(folder=folder, image_feature="images", label_feature="labels"))
        except InputError as error:
            errors[folder] = str(error)
from lenet_train import ImageReader, ModelSpec
for folder in sys.argv[1:]:
    try:
        if folder in errors:
            raise InputError(errors[folder])
        dataset = open_dataset(folder)
    except InputError as error:
        print(json.dumps([folder, None, str(error)]), flush=True)
        continue
    reader = ImageReader(dataset, ModelSpec.from_dataset(dataset, 28), 1)
    labels = []
    for _ in range(dataset.manifest.num_records):
        images, label = reader.next_batch()
        assert images.numpy().std() > 0
        labels.append(int(label.numpy()[0]))
    print(json.dumps([folder, labels, None]), flush=True)
"""


@pytest.mark.parametrize("count", [15, pytest.param(120, marks=pytest.mark.slow)])
def test_fuzz(converted, tmp_path, count):
    """So many damaged datasets of each kind: a clean error, or one that OneFlow reads to its end.

    Each is opened, or indexed, and read as a training does, all in one other process.
    """
    rng = random.Random(count)
    origins = {"ours": converted, "another": foreign(tmp_path / "origin-another")}
    origins["jpeg"] = foreign(tmp_path / "origin-jpeg", **GRAY_JPEG)
    folders = [*origins.values()]
    for kind, origin in origins.items():
        for number in range(count):
            folders.append(shutil.copytree(origin, tmp_path / f"{kind}-{number}"))
            mutate(folders[-1], rng)
    result = run_python("-c", READ_ALL, *folders)
    assert result.code == 0, result
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [folder for folder, _, _ in lines] == [str(folder) for folder in folders]
    whole = [label for _, label in TUTORIAL]
    for number, (folder, labels, error) in enumerate(lines):
        if error:
            assert number > 2 and "\n" not in error and folder in error
        elif number <= 2 or "/ours-" in folder:  # nothing but the whole dataset passes
            assert labels == whole
    for kind in origins:
        assert (
            sum(f"/{kind}-" in folder and bool(error) for folder, _, error in lines) > 0.4 * count
        )
