"""Datasets for the tests of ``python -m ofrecord``: of drawn pictures, and as others' converters write them."""

import json

import cv2
import numpy as np
from damage import frame
from helpers import IMAGES, LABELS, convert

from ofrecord.record import OFRecord

TUTORIAL = [next(iter(json.loads(line).items())) for line in LABELS.read_text().splitlines()]
OTHER_NAMES = ["--image_feature", "encoded", "--label_feature", "class/label"]


def picture(seed, size=(8, 8), color=True):
    """A picture that no other seed gives, encoded as PNG."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 3) if color else size, dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def make(folder, files, **options):
    """Convert {class folder: {file name: seed of its picture}} to a dataset; return its folder."""
    images = folder.parent / f"{folder.name}-images"
    drawn = {name: options.pop(name) for name in ("size", "color") if name in options}
    for name, pictures in files.items():
        for file, seed in pictures.items():
            path = images / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(seed, **drawn))
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    result = convert("--image_root", images, "--class_folders", "--save_dir", folder, *arguments)
    assert result.code == 0, result
    return folder


def numbered(classes, number=6, start=0):
    """{class: {"0.png": seed, …}} for ``make``: so many pictures of each class, all different."""
    seeds = iter(range(start, start + 1000))
    return {name: {f"{name}{i}.png": next(seeds) for i in range(number)} for name in classes}


def write_record(file, image, label, features=("images", "labels"), kind="int32"):
    record = OFRecord()
    record.feature[features[0]].bytes_list.value.append(image)
    getattr(record.feature[features[1]], f"{kind}_list").value.append(label)
    file.write(frame(record))


def foreign(folder, change=lambda index, data: data, features=("images", "labels"), kind="int32"):
    """The 50 digits as the tutorial's original converter writes them: in three channels, 7 in a part."""
    folder.mkdir()
    for index, (name, label) in enumerate(TUTORIAL):
        data = cv2.imencode(".png", cv2.imread(str(IMAGES / name)))[1].tobytes()
        with (folder / f"part-{index // 7}").open("ab") as part:
            write_record(part, change(index, data), label, features, kind)
    return folder


def others(folder):
    """26 JPEG with padded part names, other names of the features and int64 labels, without a manifest."""
    folder.mkdir()
    for part in range(2):
        with (folder / f"part-{part:05d}").open("wb") as file:
            for index in range(13):
                image = cv2.imencode(".jpg", np.full((20, 30, 3), 9 * index, np.uint8))[1]
                write_record(file, image.tobytes(), index, ("encoded", "class/label"), "int64")
    return folder
