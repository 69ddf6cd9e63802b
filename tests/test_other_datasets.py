"""Datasets of JPEG files and of other converters, trained on; and a fuzz test."""

import json
import random
import shutil

import cv2
import numpy as np
import pytest
from damage import ofrecord, rewrite_manifest
from helpers import assert_one_error, cases, losses, read_manifest, run_python, train
from making import FEATURES, GRAY_JPEG, OTHER_NAMES, TUTORIAL, encoded, foreign, make, numbered


def test_the_fused_decoder_reads_the_same_pixels(tmp_path):
    options = {"shape": (40, 48), "part_num": 3, "img_format": ".jpg"}
    jpegs = make(tmp_path / "jpegs", numbered("abc", 4), **options)
    assert read_manifest(jpegs)["plain_jpeg"]
    copy = shutil.copytree(jpegs, tmp_path / "copy")
    rewrite_manifest(copy, plain_jpeg=False)
    arguments = ["--batch_size", 6, "--steps", 2, "--learning_rate", 1e-4]
    fused, read = (losses(train(folder, *arguments)) for folder in (jpegs, copy))
    assert fused == read != []


@pytest.fixture(scope="module")
def digits_run(converted):
    """The losses of a short training on the 50 digits in order, as our converter stores them."""
    return losses(train(converted, "--steps", 2, "--shuffle_buffer", 0))


def jpeg_or_bmp(index, data):
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), index // 2 % 2)  # gray, colour
    return encoded(".jpg" if index % 2 else ".bmp", pixels)


PADDED = {"features": FEATURES, "kind": "int64", "parts": "part-{:05}", "size": 10}
FOREIGN = {  # options of foreign and of index, what index says, how near the losses are
    "other names": (PADDED, OTHER_NAMES, "50 gray PNG images 28x28, 10 classes, in 5 parts", 1e-6),
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


def mutate(folder, rng):
    """Flip bits, insert a byte, cut or exchange a file, or lose it."""
    path = rng.choice(files := sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    match rng.choice(["flip", "flip", "flip", "flip", "insert", "cut", "exchange", "lose"]):
        case "flip":
            for _ in range(rng.choice([1, 1, 1, 2, 10])):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case "insert":
            content.insert(place, rng.randrange(256))
        case "cut":
            del content[place:]
        case "exchange":
            content = rng.choice(files).read_bytes()
        case "lose":
            return path.unlink()
    path.write_bytes(content)


READ_ALL = """
import json, sys
from lenet_train import ImageReader, ModelSpec
from ofrecord.dataset.open_dataset import open_dataset
from runtime.cli import InputError

for folder in sys.argv[1:]:
    try:
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


@pytest.mark.parametrize("count", cases([8], [40]))
def test_fuzz(converted, tmp_path, count):
    """A damaged dataset is refused, or OneFlow reads it to its end, as a training does."""
    rng, errors, opened = random.Random(count), {}, []
    origins = {"ours": converted, "another": foreign(tmp_path / "origin-another")}
    origins["jpeg"] = foreign(tmp_path / "origin-jpeg", **GRAY_JPEG)
    for kind, origin in origins.items():
        for number in range(count + 1):  # the first one is whole
            folder = shutil.copytree(origin, tmp_path / f"{kind}-{number}")
            if number:
                mutate(folder, rng)
            result = None if kind == "ours" else ofrecord("index", folder)
            if result and result.code:
                assert result.code == 2 and "Traceback" not in result.err, result
                errors[str(folder)] = result.err
            else:
                opened.append(str(folder))
    result = run_python("-c", READ_ALL, *opened)
    assert result.code == 0, result
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [folder for folder, _, _ in lines] == opened
    for folder, labels, error in lines:
        if error:
            assert "\n" not in error
            errors[folder] = error
        elif folder.endswith("-0") or "/ours-" in folder:  # nothing but the whole dataset passes
            assert labels == [label for _, label in TUTORIAL]
    for folder, error in errors.items():
        assert not folder.endswith("-0") and folder in error
    for kind in origins:
        assert sum(f"/{kind}-" in folder for folder in errors) > 0.4 * count
