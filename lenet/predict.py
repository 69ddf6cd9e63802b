"""Classify image files with a trained model.

$ python -m lenet.predict --checkpoint runs/mnist/best.npz photo.jpg
photo.jpg: 7 (99.87%)

A folder stands for all images in it and below. ``--csv`` prints a table.
"""

from runtime.environment import check_environment

check_environment(__name__)

import argparse
import os

import cv2
import numpy as np

from lenet_train import LeNet
from ofrecord.dataset.images_csv import csv_line
from ofrecord.images import (
    MAX_FILE_SIZE,
    BadImage,
    ImageOptions,
    decode,
    read_header,
    resize,
)
from ofrecord.labels.files import is_image, kinds_of, list_files
from ofrecord.labels.names import natural_key
from runtime.atomic import read_small_file
from runtime.cli import (
    ArgumentParser,
    InputError,
    InputErrors,
    count,
    log,
    one_line,
    output,
    run_main,
)

from .checkpoint import open_checkpoint
from .digit import is_mnist_like, is_prepared, prepare_digit
from .engine import flow
from .learner import load_weights
from .spec import ModelSpec

BATCH = 100  # images at a time


def main() -> None:
    args = parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    model = LeNet(checkpoint.info.spec)
    load_weights(model, checkpoint)
    if args.digit == "yes" and model.spec.channels == 3:
        raise InputError(f"--digit yes is for models of gray images; {args.checkpoint} is not one")
    as_digit = is_mnist_like(model.spec) if args.digit == "auto" else args.digit == "yes"
    paths, top = find_images(args.files), min(args.top, model.spec.num_classes)
    if args.csv:
        more = (f"{name}_{n}" for n in range(2, top + 1) for name in ("label", "probability"))
        output(csv_line(["file", "label", "probability", *more]))
    problems = []
    for first in range(0, len(paths), BATCH):
        images = []  # with their files
        for file in paths[first : first + BATCH]:
            try:
                images.append((file, read_image(file, model.spec, as_digit)))
            except BadImage as problem:
                problems.append(f"{file}: {problem}")
        if images:
            probabilities = predict(model, np.stack([pixels for _, pixels in images]))
            for (file, _), of_classes in zip(images, probabilities, strict=True):
                best = np.argsort(-of_classes, kind="stable")[:top]
                classes = [(model.spec.class_name(label), of_classes[label]) for label in best]
                output(describe(file, classes, args.csv))
    if problems:
        files = count(len(paths), "file")
        raise InputErrors(problems, f"{len(problems)} of {files} could not be read")


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m lenet.predict", description="Classify image files with a trained model."
    )
    weights = "last.npz or best.npz of a run"
    parser.add_argument("--checkpoint", required=True, metavar="FILE.npz", help=weights)
    top = "print the N most probable classes (default: 1)"
    parser.add_argument("--top", type=int, default=1, metavar="N", help=top)
    table = "print a CSV table: file, label, probability, and with --top label_2, probability_2, …"
    parser.add_argument("--csv", action="store_true", help=table)
    digit = (
        "prepare a photo, scan or drawing of one digit, dark on light or light on dark, so that it "
        "looks like MNIST's digits, unless it does already; auto: if the model is for MNIST-like "
        "images (default: auto)"
    )
    parser.add_argument("--digit", choices=("auto", "yes", "no"), default="auto", help=digit)
    files = "image files, and folders for all images in them and below"
    parser.add_argument("files", nargs="+", metavar="FILE", help=files)
    args = parser.parse_args()
    if args.top < 1:
        parser.error("--top must be at least 1")
    return args


def find_images(paths: list[str]) -> list[str]:
    """Return the files, and instead of each folder the images in it and below, in natural order.

    Logs which files in a folder are not used. Raises InputErrors for folders without images.
    """
    files, empty = [], []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        names = [name for name, _ in list_files(path)]
        images = list(filter(is_image, names))
        others = set(names).difference(images)
        if others:
            number = f"{count(len(others), 'file')} without an image's extension"
            log(f"skipped {number} in {path} ({kinds_of(others)})", "warning")
        if not images:
            empty.append(f"no images in {path}")
        files += (os.path.join(path, name) for name in sorted(images, key=natural_key))
    if empty:
        raise InputErrors(empty, f"{count(len(empty), 'folder')} without images")
    return files


def read_image(file: str, spec: ModelSpec, as_digit: bool) -> np.ndarray:
    """Return a file's pixels for the model: uint8 (height, width, channels), gray or RGB.

    ``as_digit`` prepares them with prepare_digit. Raises BadImage.
    """
    try:
        data = read_small_file(file, MAX_FILE_SIZE)
    except OSError as error:
        raise BadImage(error.strerror) from None
    # auto: the converter lays a gray image on a gray background even among colour images.
    color = "gray" if spec.channels == 1 else "auto"
    pixels = decode(data, read_header(data), ImageOptions(color, background=spec.background))
    if as_digit and not is_prepared(pixels):
        pixels = prepare_digit(pixels)
        log(
            f"{file}: prepared as an image of one digit: cropped, centred and scaled like "
            "MNIST's (--digit no turns this off)"
        )
    if spec.fit:  # as the converter did
        method, *size = spec.fit
        pixels = resize(pixels, tuple(size), method, spec.background)
    if spec.channels == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB)
    if pixels.shape[:2] != (spec.height, spec.width):  # as OneFlow's Resize does in training
        fewer = spec.width * spec.height < pixels.shape[0] * pixels.shape[1]
        how = cv2.INTER_AREA if fewer else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (spec.width, spec.height), interpolation=how)
    return pixels.reshape(spec.height, spec.width, spec.channels)


def predict(model: LeNet, images: np.ndarray) -> np.ndarray:
    """Return probabilities, float32 (n, num_classes).

    ``images`` is uint8 (n, height, width, channels), gray or RGB.
    """
    spec = model.spec
    normalized = (images.astype(np.float32) - np.float32(spec.mean)) / np.float32(spec.scale)
    with flow.no_grad():
        logits = model(flow.tensor(np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))))
        return flow.softmax(logits, dim=1).numpy()


def describe(file: str, classes: list[tuple[str, float]], as_csv: bool) -> str:
    """Return a file's most probable classes, (name, probability), as text or as a CSV line."""
    if as_csv:
        return csv_line([file, *(cell for name, p in classes for cell in (name, f"{p:.6f}"))])
    return f"{one_line(file)}: " + ", ".join(f"{name} ({p:.2%})" for name, p in classes)


if __name__ == "__main__":
    run_main(main)
