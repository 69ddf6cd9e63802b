"""Classify image files with a trained model.

$ python -m lenet.predict --checkpoint runs/mnist/best.npz photo.jpg
photo.jpg: 7 (99.87%)
"""

from runtime.environment import check_environment

check_environment(__name__)

from runtime.guard import ignore_launcher

ignore_launcher()

import argparse

import cv2
import numpy as np

from ofrecord.headers import BadImage, read_header
from ofrecord.images import MAX_FILE_SIZE, ImageOptions, decode
from runtime.atomic import read_small_file
from runtime.cli import ArgumentParser, InputErrors, count, log, one_line, output, run_main

from .checkpoint import add_checkpoint_option, open_checkpoint
from .digit import is_mnist_like, is_prepared, prepare_digit
from .engine import flow
from .model import LeNet, ModelSpec

BATCH = 100  # images at a time


def main() -> None:
    args = parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    model, spec = checkpoint.load_model(), checkpoint.info.spec
    as_digit = is_mnist_like(spec) if args.digit == "auto" else args.digit == "yes"
    problems = []
    for first in range(0, len(args.files), BATCH):
        files, images = [], []
        for file in args.files[first : first + BATCH]:
            try:
                images.append(read_image(file, spec, as_digit))
                files.append(file)
            except BadImage as problem:
                problems.append(f"{file}: {problem}")
        if files:
            probabilities = predict(model, np.stack(images))
            for file, of_classes in zip(files, probabilities, strict=True):
                output(f"{one_line(file)}: {describe(of_classes, spec, args.top)}")
    if problems:
        files = count(len(args.files), "file")
        raise InputErrors(problems, f"{len(problems)} of {files} could not be read")


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m lenet.predict", description="Classify image files with a trained model."
    )
    add_checkpoint_option(parser)
    parser.add_argument(
        "--top",
        type=int,
        default=1,
        metavar="N",
        help="print the N most probable classes (default: 1)",
    )
    parser.add_argument(
        "--digit",
        choices=("auto", "yes", "no"),
        default="auto",
        help="prepare a photo, scan or drawing of one digit, dark on light or light on dark, so "
        "that it looks like MNIST's digits; auto: if the model is for MNIST-like images, except "
        "images that look like that already (default: auto)",
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="image files, in any format that OpenCV reads"
    )
    args = parser.parse_args()
    if args.top < 1:
        parser.error("--top must be at least 1")
    return args


def read_image(file: str, spec: ModelSpec, as_digit: bool) -> np.ndarray:
    """Return a file's pixels for the model: uint8 (height, width, channels), gray or RGB.

    ``as_digit`` prepares them with prepare_digit. Raises BadImage.
    """
    try:
        data = read_small_file(file, MAX_FILE_SIZE)
    except OSError as error:
        raise BadImage(error.strerror) from None
    header = read_header(data)
    color = "gray" if spec.channels == 1 else "color"
    options = ImageOptions(color, background=spec.background, max_value=spec.max_value)
    pixels = decode(data, header, options)
    if spec.channels == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    elif as_digit:
        if not is_prepared(pixels):
            pixels = prepare_digit(pixels)
            log(
                f"{file}: prepared as an image of one digit: cropped, centred and scaled like "
                "MNIST's (--digit no turns this off)"
            )
    if pixels.shape[:2] != (spec.height, spec.width):
        # As OneFlow's Resize does in training: by area where the image gets smaller.
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


def describe(probabilities: np.ndarray, spec: ModelSpec, top: int) -> str:
    """Return the ``top`` most probable classes of one image, as text."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    return ", ".join(f"{spec.class_name(label)} ({probabilities[label]:.2%})" for label in best)


if __name__ == "__main__":
    run_main(main)
