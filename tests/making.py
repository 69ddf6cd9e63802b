"""Datasets for the tests: of drawn pictures, and as other converters write them; and commands in messages, run."""

import json
import os
import sys

import cv2
import numpy as np
from damage import frame, rewrite_manifest
from helpers import IMAGES, LABELS, convert, run_python

from ofrecord.dataset.images_csv import read_rows, write_rows
from ofrecord.dataset.open_dataset import sha256_of
from ofrecord.record import OFRecord

TUTORIAL = [next(iter(json.loads(line).items())) for line in LABELS.read_text().splitlines()]
FEATURES = ("encoded", "class/label")
OTHER_NAMES = ["--image_feature", FEATURES[0], "--label_feature", FEATURES[1]]
GRAY_JPEG = {"ext": ".jpg", "flag": cv2.IMREAD_GRAYSCALE}


def encoded(ext, pixels):
    return cv2.imencode(ext, pixels)[1].tobytes()


def picture(seed, size=(8, 8), color=True):
    """A picture that no other seed gives, encoded as PNG."""
    shape = (*size, 3) if color else size
    return encoded(".png", np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write_pictures(root, files, size=(8, 8), color=True):
    """Write {folder: {file name: seed of its picture}}, PNG whatever a file is named."""
    for folder, pictures in files.items():
        for name, seed in pictures.items():
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(seed, size, color))


def make(folder, files, shape=(8, 8), color=True, **options):
    """Convert such files, whose folders are the classes, to a dataset; return its folder."""
    images = folder.parent / f"{folder.name}-images"
    write_pictures(images, files, shape, color)
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    result = convert("--image_root", images, "--class_folders", "--save_dir", folder, *arguments)
    assert result.code == 0, result
    return folder


def numbered(classes, number=6, start=0):
    """{class: {"0.png": seed, …}} for ``make``: so many pictures of each class, all different."""
    seeds = iter(range(start, start + 1000))
    return {name: {f"{i}.png": next(seeds) for i in range(number)} for name in classes}


def write_record(file, image, label, features=("images", "labels"), kind="int32"):
    record = OFRecord()
    record.feature[features[0]].bytes_list.value.append(image)
    getattr(record.feature[features[1]], f"{kind}_list").value.append(label)
    file.write(frame(record))


def foreign(
    folder,
    change=lambda index, data: data,
    parts="part-{}",
    size=7,
    ext=".png",
    flag=cv2.IMREAD_COLOR,
    **record,
):
    """The 50 digits as the tutorial's original converter writes them: in three channels, 7 in a part."""
    folder.mkdir()
    for index, (name, label) in enumerate(TUTORIAL):
        data = change(index, encoded(ext, cv2.imread(str(IMAGES / name), flag)))
        with (folder / parts.format(index // size)).open("ab") as part:
            write_record(part, data, label, **record)
    return folder


def change_table(folder, change):
    """Change the rows of images.csv, and sign the manifest anew."""
    rows = change(list(read_rows(folder)))
    with (folder / "images.csv").open("wb") as file:
        write_rows(file, rows)
    rewrite_manifest(folder, images_csv=sha256_of(folder / "images.csv"))


def run_typed(command, cwd):
    """Run a command as it can be typed in that folder, with this Python; return its Result."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    return run_python("-c", command, python="/bin/bash", cwd=cwd, env={"PATH": path})
