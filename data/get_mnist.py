"""Download MNIST and write it as PNG and label files, in the layout of data/images/.

    $ python data/get_mnist.py
    data/mnist/: 60,000 training and 10,000 test images

By default it writes into the project's data folder, wherever it is started:

    data/mnist/train_set/     00000000_5.png, 00000001_0.png …
    data/mnist/train_label/   label.txt: {"00000000_5.png": 5} …
    data/mnist/test_set/, data/mnist/test_label/

Everything is first written beside data/mnist/ and then renamed, so that this
folder is either complete or does not exist. If it is complete, nothing is done.
"""

import argparse
import gzip
import hashlib
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
import zlib

DATA = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(DATA))

from runtime.environment import check_environment

check_environment(__name__)

import cv2
import numpy as np
from tqdm import tqdm

from runtime.atomic import folder_lock
from runtime.cli import ArgumentParser, InputError, log, os_errors, output, run_main

# Two public copies: Google's (CVDF) and PyTorch's.
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
TRIES = 3  # per mirror
TIMEOUT = 30  # seconds without a byte

# MD5 of the uncompressed bytes, as mirrors may compress them differently.
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

# What reading or downloading a file may raise. ValueError: a wrong MD5 sum, or an invalid URL.
FAILURES = (OSError, ValueError, EOFError, zlib.error, http.client.HTTPException)

# Split's name here, its name in MNIST's files, number of images.
SPLITS = (("train", "train", 60000), ("test", "t10k", 10000))


def main() -> None:
    args = parse_args()
    if is_complete(args.output):
        return output(f"{args.output}: 60,000 training and 10,000 test images, already complete")
    parent = os.path.dirname(os.path.abspath(args.output))
    with os_errors("write", args.output):
        os.makedirs(parent, exist_ok=True)
    with folder_lock(parent, "another get_mnist.py is writing to"):
        if not is_complete(args.output):  # it may be by now
            get(args, os.path.join(parent, ".get_mnist"))
    output(f"{args.output}: 60,000 training and 10,000 test images")


def get(args: argparse.Namespace, staging: str) -> None:
    """Write MNIST to the folder ``staging``, and rename that. Raises InputError."""
    try:
        shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed
        files = {name: get_file(name, args) for name in MD5}
        with os_errors("write", args.output, "nothing was kept"):
            os.makedirs(staging)
            for split, name, num_images in SPLITS:
                # Before the values lie 4 bytes of each of their dimensions, and 4 of their type.
                images = np.frombuffer(files[name + "-images-idx3-ubyte"], np.uint8, offset=16)
                labels = np.frombuffer(files[name + "-labels-idx1-ubyte"], np.uint8, offset=8)
                write_images(staging, split, images.reshape(num_images, 28, 28), labels)
            os.rename(staging, args.output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description="Download MNIST and write it as PNG and label files.")
    parser.add_argument(
        "--source",
        metavar="DIR",
        help="folder with the four files, with or without .gz, to read instead of downloading",
    )
    parser.add_argument(
        "--mirror",
        metavar="URL",
        action="append",
        help="download from this URL instead; if repeated, the URLs are tried in turn",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        default=os.path.relpath(os.path.join(DATA, "mnist")),
        help="folder to create (default: %(default)s)",
    )
    return parser.parse_args()


def is_complete(folder: str) -> bool:
    """Whether a folder holds MNIST as this script writes it; False if it does not exist.

    Raises InputError if it holds anything else.
    """
    if not os.path.lexists(folder):
        return False
    for split, _, num_images in SPLITS:
        try:
            images = sum(name.endswith(".png") for name in os.listdir(f"{folder}/{split}_set"))
            with open(f"{folder}/{split}_label/label.txt", encoding="utf-8") as file:
                labels = sum(1 for _ in file)
        except OSError:
            images = labels = 0
        if not images == labels == num_images:
            names = {f"{split}_{kind}" for split, _, _ in SPLITS for kind in ("set", "label")}
            ours = os.path.isdir(folder) and set(os.listdir(folder)) <= names
            advice = "remove it and run this script again" if ours else "--output names another"
            raise InputError(f"{folder} exists and is not a complete MNIST: {advice}")
    return True


def get_file(name: str, args: argparse.Namespace) -> bytes:
    """Return the uncompressed bytes of one of MNIST's files, from --source or a mirror.

    Raises InputError if no source has it with the right MD5 sum.
    """
    if args.source is not None:
        return read_source(name, args.source)
    for mirror in args.mirror or MIRRORS:
        url = f"{mirror.rstrip('/')}/{name}.gz"
        for attempt in range(TRIES):
            if attempt:
                time.sleep(2**attempt)
            try:
                return checked(name, download(url))
            except FAILURES as error:
                failure = error
                if isinstance(error, urllib.error.HTTPError):  # the answer will not change
                    break
        log(f"{url}: {reason_of(failure)}", "warning")
    raise InputError(
        "could not download MNIST: get the four .gz files in another way "
        "and pass their folder as --source (with make: MNIST=DIR)"
    )


def read_source(name: str, folder: str) -> bytes:
    """Return the uncompressed bytes of one of MNIST's files in a folder. Raises InputError."""
    paths = [os.path.join(folder, name + ending) for ending in (".gz", "")]
    path = next(filter(os.path.exists, paths), None)
    if path is None:
        raise InputError(f"--source: neither {paths[0]} nor {paths[1]} exists")
    try:
        with open(path, "rb") as file:
            return checked(name, file.read())
    except FAILURES as error:
        raise InputError(f"{path}: {reason_of(error)}") from error


def reason_of(error: Exception) -> object:
    """Return what an error of FAILURES says, without its number."""
    if isinstance(error, urllib.error.HTTPError):
        return error
    error = getattr(error, "reason", error)
    return getattr(error, "strerror", None) or error


def download(url: str) -> bytes:
    """Return the bytes at a URL, with a progress bar on a terminal. Raises OSError."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        size = int(response.headers.get("Content-Length") or 0)
        bar = {"desc": os.path.basename(url), "total": size or None, "disable": None}
        with tqdm.wrapattr(response, "read", leave=False, **bar) as stream:
            return b"".join(iter(lambda: stream.read(2**16), b""))


def checked(name: str, content: bytes) -> bytes:
    """Return the content, uncompressed. Raises ValueError if its MD5 sum is wrong."""
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    found = hashlib.md5(content).hexdigest()
    if found != MD5[name]:
        raise ValueError(f"not MNIST's {name}: the MD5 sum is {found} instead of {MD5[name]}")
    return content


def write_images(folder: str, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write a split: PNG files and a label file.

    ``images`` is uint8 (n, 28, 28) and ``labels`` uint8 (n,). Raises OSError.
    """
    os.mkdir(f"{folder}/{split}_set")
    os.mkdir(f"{folder}/{split}_label")
    with open(f"{folder}/{split}_label/label.txt", "w", encoding="utf-8") as lines:
        bar = tqdm(images, unit="image", desc=split, disable=None)
        for index, (image, label) in enumerate(zip(bar, labels, strict=True)):
            name = f"{index:08d}_{label}.png"
            # Unlike cv2.imwrite, open says why it fails.
            with open(f"{folder}/{split}_set/{name}", "wb") as file:
                file.write(cv2.imencode(".png", image)[1].tobytes())
            lines.write(json.dumps({name: int(label)}) + "\n")


if __name__ == "__main__":
    run_main(main)
