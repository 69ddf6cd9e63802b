"""Classify image files with a trained model.

$ python -m lenet.predict --checkpoint runs/mnist/best photo.jpg
photo.jpg: 7 (99.87%)
"""

from runtime.environment import check_environment

check_environment(__name__)

import argparse

import cv2
import numpy as np

from ofrecord.images import BadImage, DecoderMessages, decode
from runtime.cli import ArgumentParser, InputErrors, count, log, output, run_main

from .checkpoint import open_checkpoint
from .digit import NoDigit, is_mnist_like, is_prepared, prepare_digit
from .engine import flow
from .model import LeNet, Spec

BATCH = 100  # images at a time


def main() -> None:
    args = parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    model, spec = checkpoint.load_model(), checkpoint.spec
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
                output(f"{file}: {describe(of_classes, spec, args.top)}")
    if problems:
        files = count(len(args.files), "file")
        raise InputErrors(problems, f"{len(problems)} of {files} could not be read")


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m lenet.predict", description="Classify image files with a trained model."
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="checkpoint of the model: a folder last/ or best/ of a run. Loading a checkpoint can "
        "run code in it: load only those from people you trust",
    )
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


def read_image(file: str, spec: Spec, as_digit: bool) -> np.ndarray:
    """Return a file's pixels for the model: uint8 (height, width, channels), gray or RGB.

    ``as_digit`` prepares them with prepare_digit. Raises BadImage.
    """
    try:
        with open(file, "rb") as opened:
            data = opened.read()
    except OSError as error:
        raise BadImage(error.strerror) from error
    if not data:
        raise BadImage("the file is empty")
    with DecoderMessages() as messages:
        pixels = decode(data, cv2.IMREAD_GRAYSCALE if spec.channels == 1 else cv2.IMREAD_COLOR)
        if as_digit:
            pixels = on_white(decode(data, cv2.IMREAD_UNCHANGED), pixels)
        message = messages.take()
    if message:
        log(f"{file}: {message}", "warning")
    if spec.channels == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    elif as_digit and not is_prepared(pixels):
        try:
            pixels = prepare_digit(pixels)
        except NoDigit:
            raise BadImage(
                "no digit found: expected an image of one digit on a plain background"
            ) from None
        log(
            f"{file}: prepared as an image of one digit: cropped, centred and scaled like MNIST's "
            "(--digit no turns this off)"
        )
    if pixels.shape[:2] != (spec.height, spec.width):
        # As OneFlow's Resize does in training: by area where the image gets smaller.
        fewer = spec.width * spec.height < pixels.shape[0] * pixels.shape[1]
        pixels = cv2.resize(
            pixels,
            (spec.width, spec.height),
            interpolation=cv2.INTER_AREA if fewer else cv2.INTER_LINEAR,
        )
    return pixels.reshape(spec.height, spec.width, spec.channels)


def on_white(unchanged: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """Return gray pixels with white where ``unchanged`` has an alpha channel and is transparent.

    Drawing programs leave the background transparent.
    """
    if unchanged.ndim != 3 or unchanged.shape[2] != 4 or unchanged.dtype != np.uint8:
        return gray
    alpha = unchanged[:, :, 3] / 255
    return np.rint(gray * alpha + 255 * (1 - alpha)).astype(np.uint8)


def predict(model: LeNet, images: np.ndarray) -> np.ndarray:
    """Return probabilities, float32 (n, num_classes).

    ``images`` is uint8 (n, height, width, channels), gray or RGB.
    """
    spec = model.spec
    normalized = (images.astype(np.float32) - np.float32(spec.mean)) / np.float32(spec.scale)
    with flow.no_grad():
        logits = model(flow.tensor(np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))))
        return flow.softmax(logits, dim=1).numpy()


def describe(probabilities: np.ndarray, spec: Spec, top: int) -> str:
    """Return the ``top`` most probable classes of one image, as text."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    return ", ".join(f"{spec.class_name(label)} ({probabilities[label]:.2%})" for label in best)


if __name__ == "__main__":
    run_main(main)
