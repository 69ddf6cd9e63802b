"""What a trained model says of image files.

    $ python -m lenet.predict --checkpoint runs/mnist/best photo.jpg
    photo.jpg: 7 (99.87%)
"""

from ofrecord.environment import check_environment

check_environment(__name__)


import cv2
import numpy as np

from ofrecord.cli import ArgumentParser, InputErrors, run, say, talk
from ofrecord.images import BadImage, DecoderNoise, decode

from .checkpoint import open_checkpoint
from .digit import NoDigit, is_mnist_like, is_prepared, prepare_digit
from .engine import flow

BATCH = 100  # images at a time


def main():
    args = parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    model, spec = checkpoint.load_model(), checkpoint.spec
    as_digit = is_mnist_like(spec) if args.digit == "auto" else args.digit == "yes"
    problems = []
    for first in range(0, len(args.files), BATCH):
        files, images = [], []
        for file in args.files[first:first + BATCH]:
            try:
                images.append(read_image(file, spec, as_digit))
                files.append(file)
            except BadImage as problem:
                problems.append("{}: {}".format(file, problem))
        if files:
            for file, probabilities in zip(files, predict(model, np.stack(images))):
                say("{}: {}".format(file, in_words(probabilities, spec, args.top)))
    if problems:
        raise InputErrors(problems, "{} of {} files could not be read".format(len(problems), len(args.files)))


def parse_args():
    parser = ArgumentParser(prog="python -m lenet.predict", description="Say what image files show.")
    parser.add_argument("--checkpoint", required=True, metavar="DIR",
                        help="the model: a folder last/ or best/ of a run. Loading one runs code in it: take it only from "
                             "people you trust")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="print the N likeliest classes (default: 1)")
    parser.add_argument("--digit", choices=("auto", "yes", "no"), default="auto",
                        help="prepare a photo, scan or drawing of one digit, dark on light or light on dark, as MNIST's "
                             "digits are; auto: if the model is for such, and except images that already are "
                             "(default: auto)")
    parser.add_argument("files", nargs="+", metavar="FILE", help="image files, of any format that OpenCV reads")
    args = parser.parse_args()
    if args.top < 1:
        parser.error("--top must be at least 1")
    return args


def read_image(file, spec, as_digit):
    """A file's pixels as the model takes them: uint8 (height, width, channels), gray or RGB. Raises BadImage."""
    try:
        with open(file, "rb") as opened:
            data = opened.read()
    except OSError as error:
        raise BadImage(error.strerror)
    if not data:
        raise BadImage("the file is empty")
    with DecoderNoise() as noise:
        pixels = decode(data, cv2.IMREAD_GRAYSCALE if spec.channels == 1 else cv2.IMREAD_COLOR)
        if as_digit:
            pixels = on_white(decode(data, cv2.IMREAD_UNCHANGED), pixels)
        complaint = noise.take()
    if complaint:
        talk("{}: {}".format(file, complaint), "warning")
    if spec.channels == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    elif as_digit and not is_prepared(pixels):
        try:
            pixels = prepare_digit(pixels)
        except NoDigit:
            raise BadImage("no digit found in it: a picture of one digit on plain ground is expected")
        talk("{}: taken for a picture of one digit; cut out, centred and scaled like MNIST's (--digit no leaves it as it is)"
             .format(file))
    if pixels.shape[:2] != (spec.height, spec.width):
        # As OneFlow's Resize does in training: by areas where pixels get fewer.
        fewer = spec.width * spec.height < pixels.shape[0] * pixels.shape[1]
        pixels = cv2.resize(pixels, (spec.width, spec.height), interpolation=cv2.INTER_AREA if fewer else cv2.INTER_LINEAR)
    return pixels.reshape(spec.height, spec.width, spec.channels)


def on_white(unchanged, gray):
    """Where drawing programs leave the ground transparent, it is white."""
    if unchanged.ndim != 3 or unchanged.shape[2] != 4 or unchanged.dtype != np.uint8:
        return gray
    alpha = unchanged[:, :, 3] / 255
    return np.rint(gray * alpha + 255 * (1 - alpha)).astype(np.uint8)


def predict(model, images):
    """Probabilities, float32 (n, classes), for uint8 (n, height, width, channels) images, gray or RGB."""
    spec = model.spec
    normalized = (images.astype(np.float32) - np.float32(spec.mean)) / np.float32(spec.std)
    with flow.no_grad():
        logits = model(flow.tensor(np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))))
        return flow.softmax(logits, dim=1).numpy()


def in_words(probabilities, spec, top):
    best = np.argsort(-probabilities, kind="stable")[:top]
    return ", ".join("{} ({:.2%})".format(spec.name(label), probabilities[label]) for label in best)


if __name__ == "__main__":
    run(main)
