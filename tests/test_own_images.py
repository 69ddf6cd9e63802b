"""Datasets of one's own and of other converters: splits, colour and sizes, what is refused, and a fuzz test."""

import io
import json
import os
import random
import re
import shutil

import cv2
import numpy as np
import pytest
from damage import change_record, cut, flip, frame, ofrecord, rewrite_manifest, set_label
from helpers import (
    IMAGES,
    LABELS,
    PROJECT,
    assert_one_error,
    call,
    losses,
    part_files,
    read_manifest,
    records,
    run_python,
    snapshot,
    train,
)
from helpers import convert as convert_images

from ofrecord.record import OFRecord

CONFIG = PROJECT / "configs" / "own_images.yaml"


def class_folders(root, counts, size=lambda rng: (24, 20), color=True, names=None):
    """Make pictures that can be told apart, so many in each class's folder; return the folder of these."""
    rng = np.random.default_rng(0)
    for index, count in enumerate(counts):
        folder = root / (names[index] if names else f"class {index:03d}")
        folder.mkdir(parents=True)
        for number in range(count):
            height, width = size(rng)
            image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            shift = np.array([index % 5, index // 5 % 5, index // 25 % 5]) * 45
            image += shift.astype(np.uint8)
            if not color:
                gray = np.full((height, width), 10 + 240 * index // len(counts), np.uint8)
                image = gray + image[:, :, 0] // 8
            cv2.imwrite(str(folder / f"{number}.png"), image)
    return root


def convert(root, save_dir, *arguments):
    return convert_images(
        *["--image_root", root, "--class_folders", "--shuffle"],
        *["--save_dir", save_dir, "--part_num", 3],
        *arguments,
    )


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
    split_ids = set()
    for folder in datasets:
        assert ofrecord("check", folder).code == 0
        manifest = read_manifest(folder)
        assert manifest["class_names"] == [f"class {n:03d}" for n in range(5)]
        split_ids.add(manifest["split_id"])
    assert len(split_ids) == 1 and None not in split_ids


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
    result = train(
        *(tmp_path / "d", "--eval_dataset_dir", tmp_path / "d_val", "--batch_size", 4),
        *("--steps", 1, "--run_dir", tmp_path / "run"),
    )
    assert len(losses(result)) == 1 and "colour images (20x24)" in result.err, result


@pytest.mark.parametrize(
    "options, text",
    [
        (["--val_fraction", "0"], "--val_fraction: it should be greater than 0"),
        (["--val_fraction", "1"], "--val_fraction: it should be less than 1"),
        (["--val_fraction", "x"], "--val_fraction: it should be a valid number"),
        (["--val_dir", "elsewhere"], "--val_dir: unknown setting"),
    ],
)
def test_bad_options_of_a_split(tmp_path, options, text):
    root = class_folders(tmp_path / "in", [3, 3])
    result = convert_images(
        *["--image_root", root, "--class_folders", "--save_dir", "d"], *options, cwd=tmp_path
    )
    assert_one_error(result, text)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nothing_is_written_where_one_of_two_datasets_cannot_be(tmp_path):
    root = class_folders(tmp_path / "in", [8, 8])
    (tmp_path / "d_val").mkdir()
    (tmp_path / "d_val" / "thesis.txt").write_text("x")
    before = snapshot(tmp_path)
    result = convert(root, tmp_path / "d", "--val_fraction", 0.2)
    assert_one_error(result, "d_val", "thesis.txt")
    assert not (tmp_path / "d").exists()
    assert snapshot(tmp_path) == before


# -- the trainer follows the dataset --------------------------------------------------

OWN = {  # counts, color, size, names, options; what the training says of it
    "Chinese names": (
        ([15, 15, 15], True, lambda rng: (20, 24), ["猫", "狗 大", "鸟"], ["--image_size", "null"]),
        "colour images (24x20) in 3 parts, 3 classes",
    ),
    "gray, mixed sizes": (
        ([12] * 4, False, lambda rng: rng.integers(10, 40, 2), None, ["--image_size", 32]),
        "gray images (sizes vary) in 3 parts, 4 classes",
    ),
    "100 classes": (
        ([3] * 100, True, lambda rng: (12, 12), None, ["--image_size", 12]),
        "colour images (12x12) in 3 parts, 100 classes",
    ),
}


@pytest.mark.parametrize(
    "dataset, text",
    [
        pytest.param(*case, id=name, marks=[] if name == "Chinese names" else pytest.mark.slow)
        for name, case in OWN.items()
    ],
)
def test_own_images_yaml(tmp_path, dataset, text):
    """As the README says: convert, train with configs/own_images.yaml, predict."""
    counts, color, size, names, options = dataset
    root = class_folders(tmp_path / "in", counts, size, color, names)
    assert convert(root, tmp_path / "dataset", "--val_fraction", 0.2).code == 0
    short = ["--epochs", 4, "--batch_size", 8, "--device", "cpu"]
    result = call("lenet_train", "--config", CONFIG, *short, *options, cwd=tmp_path)
    assert result.code == 0 and text in result.err, result
    right, count = re.findall(r"accuracy (\d+)/(\d+)", result.err)[-1]
    assert int(right) > int(count) / len(counts)  # better than a guess
    image = next((root / (names[0] if names else "class 000")).iterdir())
    best = tmp_path / "runs" / "own_images" / "best.npz"
    result = call("lenet.predict", "--checkpoint", best, image)
    assert result.code == 0, result
    predicted = result.out.split(": ")[1].rsplit(" (")[0]
    assert predicted in (names or [folder.name for folder in root.iterdir()])


# -- decoders -------------------------------------------------------------------------


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


def foreign(
    folder,
    part_of=lambda index: index // 7,
    image_feature="images",
    label_feature="labels",
    kind="int32",
    digits=1,
    ext=".png",
    flag=cv2.IMREAD_COLOR,
    change=None,
):
    """The 50 digits as the tutorial's original converter wrote them.

    Three-channel PNG, and 50 // 7 records in a part, so one part more.
    """
    folder.mkdir()
    for index, (name, label) in enumerate(LABELED):
        record = OFRecord()
        data = cv2.imencode(ext, cv2.imread(str(IMAGES / name), flag))[1].tobytes()
        data = change(index, data) if change else data
        record.feature[image_feature].bytes_list.value.append(data)
        labels = getattr(record.feature[label_feature], f"{kind}_list")
        labels.value.append(label)
        with (folder / f"part-{part_of(index):0{digits}d}").open("ab") as part:
            part.write(frame(record))
    return folder


LABELED = [next(iter(json.loads(line).items())) for line in LABELS.read_text().splitlines()]
GRAY_JPEG = {"ext": ".jpg", "flag": cv2.IMREAD_GRAYSCALE}


def decoded(data, flag=cv2.IMREAD_COLOR):
    return cv2.imdecode(np.frombuffer(data, np.uint8), flag)


def jpeg_or_bmp(index, data):
    return cv2.imencode(".jpg" if index % 2 else ".bmp", decoded(data))[1].tobytes()


@pytest.fixture(scope="module")
def digits_run(converted):
    """The losses of a short training on the 50 digits in order, as our converter stores them."""
    return losses(train(converted, "--steps", 2, "--shuffle_buffer", 0))


OTHER_NAMES = ["--image_feature", "encoded", "--label_feature", "class/label"]


@pytest.mark.parametrize(
    "options, arguments, found, tolerance",
    [
        ({}, [], "50 gray PNG images 28x28, 10 classes, in 8 parts", 1e-6),
        (
            {
                "image_feature": "encoded",
                "label_feature": "class/label",
                "kind": "int64",
                "digits": 5,
                "part_of": lambda index: index // 10,
            },
            OTHER_NAMES,
            "50 gray PNG images 28x28, 10 classes, in 5 parts",
            1e-6,
        ),
        (
            {**GRAY_JPEG, "part_of": lambda index: 0},
            [],
            "50 gray JPEG images 28x28, 10 classes, in 1 part",
            0.02,
        ),
        ({"change": jpeg_or_bmp}, [], "50 gray images 28x28, 10 classes, in 8 parts", 0.02),
    ],
    ids=["the tutorial's", "other names, int64, padded", "gray JPEG", "mixed formats"],
)
def test_datasets_of_other_converters_train(
    tmp_path, digits_run, options, arguments, found, tolerance
):
    """Once indexed, step by step as our own converter's dataset of the same images and labels."""
    folder = foreign(tmp_path / "d", **options)
    assert_one_error(train(folder), f"python -m ofrecord index {folder}")
    result = ofrecord("index", folder, *arguments)
    assert result.code == 0 and found in result.out, result
    result = train(folder, "--steps", 2, "--shuffle_buffer", 0)
    assert losses(result) == pytest.approx(digits_run, rel=tolerance)


def png16(index, data):
    if index != 3:
        return data
    pixels = decoded(data, cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 257
    return cv2.imencode(".png", pixels)[1].tobytes()


def cmyk(index, data):
    from PIL import Image

    if index != 3:
        return data
    file = io.BytesIO()
    Image.new("CMYK", (28, 28), (10, 20, 30, 40)).save(file, "JPEG")
    return file.getvalue()


def record_40(change):
    """For ``foreign``: other bytes in place of one image."""
    return lambda index, data: change(data) if index == 40 else data


def remove_parts(folder):
    for path in folder.iterdir():
        path.unlink()


def write_more(path, data):
    path.write_bytes(path.read_bytes() + data)


# What ends OneFlow's process, or makes it read wrong pixels in silence:
# options of ``foreign``, a function that damages it, texts of the error.
FATAL = {
    "a part missing": ({}, lambda d: (d / "part-3").unlink(), ["part-3 is missing"]),
    "the first part missing": ({}, lambda d: (d / "part-0").unlink(), ["part-0 is missing"]),
    "an empty part": ({}, lambda d: cut(d / "part-2", 0), ["part-2"]),
    "no parts": ({}, remove_parts, ["there are no part files"]),
    "names of several lengths": (
        {},
        lambda d: (d / "part-7").rename(d / "part-07"),
        ["part-7 is missing"],
    ),
    "a truncated record": ({}, lambda d: cut(d / "part-7", -5), ["part-7", "record 0"]),
    "a truncated length": (
        {},
        lambda d: write_more(d / "part-7", b"\x01\0\0"),
        ["part-7", "record 1"],
    ),
    "no OFRecord": (
        {},
        lambda d: (d / "part-7").write_bytes(b"\x04\0\0\0\0\0\0\0" + b"\xff" * 4),
        ["part-7", "record 0", "not an OFRecord"],
    ),
    "another image feature": (
        {"image_feature": "picture"},
        None,
        ["no feature 'images'", "--image_feature"],
    ),
    "another label feature": (
        {"label_feature": "class"},
        None,
        ["no feature 'labels'", "--label_feature"],
    ),
    "labels of doubles": ({"kind": "double"}, None, ["record 0", "'labels'"]),
    "a label below 0": (
        {},
        lambda d: change_record(d, set_label(-1)),
        ["invalid label -1"],
    ),
    "text for an image": (
        {"change": record_40(lambda data: b"no image")},
        None,
        ["part-5, record 5", "invalid image"],
    ),
    "an empty image": ({"change": record_40(lambda data: b"")}, None, ["part-5", "record 5"]),
    "a truncated PNG": (
        {"change": record_40(lambda data: data[:100])},
        None,
        ["part-5, record 5", "truncated"],
    ),
    "a damaged PNG": (
        {"change": record_40(lambda data: data[:100] + b"\0\0" + data[102:])},
        None,
        ["part-5, record 5", "damaged"],
    ),
    "a truncated JPEG": (
        {"ext": ".jpg", "change": record_40(lambda data: data[:300])},
        None,
        ["part-5, record 5: invalid image"],
    ),
    "a damaged JPEG": (
        {
            "ext": ".jpg",
            "change": record_40(lambda data: data[:-40] + b"\xff\xd0" * 4 + data[-32:]),
        },
        None,
        ["part-5, record 5", "Corrupt JPEG data"],
    ),
    "16-bit PNG": ({"change": png16}, None, ["part-0, record 3", "16-bit"]),
    "CMYK JPEG": ({"change": cmyk}, None, ["part-0, record 3", "CMYK"]),
}


@pytest.mark.parametrize("options, damage, texts", FATAL.values(), ids=list(FATAL))
def test_what_would_end_oneflow_is_refused(tmp_path, options, damage, texts):
    folder = foreign(tmp_path / "d", **options)
    if damage:
        damage(folder)
    result = ofrecord("index", folder)
    assert result.code == 2, result
    for text in texts:
        assert any(text in line for line in result.err.splitlines()), result
    assert not (folder / "dataset.json").exists()
    # What is no dataset is refused, and OneFlow does not end the tests.
    assert_one_error(train(folder, "--batch_size", 51), "is not a finished dataset")


CHANGED = {
    "missing": (lambda d: (d / "part-3").unlink(), ["part-3 is missing"]),
    "truncated": (lambda d: cut(d / "part-3", -5), ["part-3 has", "truncated"]),
    "changed": (lambda d: flip(d / "part-3", 200), ["part-3 was changed", "SHA-256"]),
    "one more": (lambda d: shutil.copy(d / "part-0", d / "part-8"), ["part-8 does not belong"]),
    "no parts": (lambda d: [path.unlink() for path in part_files(d)], ["part-0 is missing"]),
}


@pytest.mark.parametrize("damage, texts", CHANGED.values(), ids=list(CHANGED))
def test_a_dataset_that_was_changed_is_one_line(tmp_path, damage, texts):
    folder = foreign(tmp_path / "d")
    assert ofrecord("index", folder).code == 0
    damage(folder)
    assert_one_error(train(folder, "--batch_size", 51), *texts)


def test_check_hashes_finds_a_change_that_is_older_than_the_manifest(dataset):
    times = (dataset / "part-3").stat()
    flip(dataset / "part-3", 200)
    os.utime(dataset / "part-3", ns=(times.st_atime_ns, times.st_mtime_ns - 10**9))
    result = train(dataset, "--batch_size", 51, "--check_hashes", "false")
    assert_one_error(result, "batch_size 51")
    result = train(dataset, "--batch_size", 51)
    assert_one_error(result, "part-3 was changed", "SHA-256")


# -- fuzz -----------------------------------------------------------------------------


def mutate(folder, rng):
    """Flip bits, cut, swap or repeat bytes of one file, or lose or exchange parts."""
    files = sorted(folder.iterdir())
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    size = len(content)
    kind = rng.choice(
        ["flip", "flip", "flip", "cut", "swap", "repeat", "zero", "insert", "lose", "exchange"]
    )
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 1, 2, 10])):
            content[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[rng.randrange(size) :]
    elif kind == "swap":
        a, b = sorted(rng.sample(range(size), 2))
        n = min(rng.randrange(1, 40), b - a)
        content[a : a + n], content[b : b + n] = content[b : b + n], content[a : a + n]
    elif kind == "repeat":
        a = rng.randrange(size)
        content[a:a] = content[a : a + rng.randrange(1, 40)]
    elif kind == "zero":
        a = rng.randrange(size)
        content[a : a + 16] = bytes(len(content[a : a + 16]))
    elif kind == "insert":
        content.insert(rng.randrange(size), rng.randrange(256))
    elif kind == "lose":
        return path.unlink()
    elif kind == "exchange":
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


def read_all_with_oneflow(folders):
    """Open each dataset, or index it, and read those that pass to their end as a training does, all in one other process.

    Returns ({folder: labels}, {folder: error}).
    """
    result = run_python("-c", READ_ALL, *folders)
    assert result.code == 0, result
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [folder for folder, _, _ in lines] == [str(folder) for folder in folders]
    return (
        {folder: labels for folder, labels, _ in lines if labels is not None},
        {folder: error for folder, _, error in lines if error is not None},
    )


@pytest.mark.parametrize(
    "count", [15, pytest.param(120, marks=pytest.mark.slow)], ids=["quick", "long"]
)
def test_fuzz(converted, tmp_path, count):
    """So many damaged datasets of each kind: a clean error, or a dataset that OneFlow reads to its end."""
    rng = random.Random(count)
    origins = {
        "ours": converted,
        "another": foreign(tmp_path / "origin-another"),
        "jpeg": foreign(tmp_path / "origin-jpeg", **GRAY_JPEG),
    }
    folders = [*origins.values()]
    for kind, origin in origins.items():
        for number in range(count):
            folder = tmp_path / f"{kind}-{number}"
            shutil.copytree(origin, folder)
            mutate(folder, rng)
            folders.append(folder)
    passed, errors = read_all_with_oneflow(folders)
    whole = [label for _, label in LABELED]
    for origin in origins.values():
        assert passed[str(origin)] == whole
    for folder, error in errors.items():
        assert "\n" not in error and folder in error
    for folder, labels in passed.items():
        if "/ours-" in folder:  # nothing but the whole dataset passes
            assert labels == whole
    for kind in origins:
        assert sum(f"/{kind}-" in folder for folder in errors) > 0.4 * count
