"""Photos of written digits, made from MNIST's, and the labels that ``lenet.predict`` prints."""

import re
from pathlib import Path

import cv2
import numpy as np


def predictions(result):
    """What lenet.predict printed: a match with ``file``, ``label`` and ``percent`` for each line."""
    form = re.compile(r"(?P<file>.*): (?P<label>\S+) \((?P<percent>[\d.]+)%\)\Z")
    matches = [form.match(line) for line in result.out.splitlines()]
    assert all(matches), result
    return matches


def predicted_labels(result):
    return [match["label"] for match in predictions(result)]


def write_photos(files, folder):
    """Write a JPEG photo of each MNIST digit's file, dark on unevenly lit paper; return their paths."""
    photos, height, width = [], 600, 800
    for seed, file in enumerate(files):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(150, 420))
        digit = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        digit = cv2.resize(digit, (size, size), interpolation=cv2.INTER_CUBIC)
        y, x = int(rng.integers(20, height - size - 20)), int(rng.integers(20, width - size - 20))
        paper = np.full((height, width), rng.uniform(170, 240), np.float32)
        yy, xx = np.mgrid[:height, :width]
        light = xx * rng.uniform(-1, 1) / width + yy * rng.uniform(0, 1) / height
        paper *= 1 - 0.35 * light  # it comes from one side
        paper[y : y + size, x : x + size] *= 1 - rng.uniform(0.55, 0.85) / 255 * digit
        paper = cv2.GaussianBlur(paper, (0, 0), rng.uniform(0.5, 2.5))
        paper += rng.normal(0, rng.uniform(1, 5), paper.shape)
        photo = cv2.cvtColor(np.clip(paper, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        photos.append(Path(folder) / f"{file.stem}.jpg")
        assert cv2.imwrite(str(photos[-1]), photo)
    return photos
