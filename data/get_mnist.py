"""Download MNIST and write it as PNG files and label files, in the layout of data/images/.

    $ python data/get_mnist.py
    data/mnist/: 60,000 training and 10,000 test images

Writes, in the project's data folder whatever folder it is started in:

    data/mnist/train_set/     00000000_5.png, 00000001_0.png …
    data/mnist/train_label/   label.txt: {"00000000_5.png": 5} …
    data/mnist/test_set/, data/mnist/test_label/

Everything is first written beside data/mnist/, which is therefore there whole
or not at all. Run again, it sees that and does nothing.
"""

import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import struct
import sys
import time
import urllib.error
import urllib.request
import zlib

DATA = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(DATA))

from ofrecord.environment import check_environment

check_environment(__name__)

import cv2
import numpy as np
from tqdm import tqdm

from ofrecord.cli import ArgumentParser, InputError, run, say, talk

# Two public copies. The first is Google's CVDF, the second PyTorch's.
MIRRORS = ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/")
TRIES = 3  # of each mirror
TIMEOUT = 30  # seconds without a byte

# MD5 of the uncompressed bytes, as the mirrors may have compressed them anew.
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

# What becomes of them: name in our layout, name in MNIST's, number of images.
SPLITS = (("train", "train", 60000), ("test", "t10k", 10000))


def main():
    args = parse_args()
    if is_whole(args.output):
        return say("{}: 60,000 training and 10,000 test images, already there".format(args.output))
    staging = os.path.join(os.path.dirname(os.path.abspath(args.output)), ".get_mnist")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        files = {name: get_file(name, args) for name in MD5}
        try:
            os.makedirs(staging)
            for split, name, count in SPLITS:
                images = read_idx(files[name + "-images-idx3-ubyte"])
                labels = read_idx(files[name + "-labels-idx1-ubyte"])
                assert images.shape == (count, 28, 28) and labels.shape == (count,)
                write_images(staging, split, images, labels)
            os.rename(staging, args.output)
        except OSError as error:
            raise InputError("cannot write {}: {}; nothing was kept".format(args.output, error.strerror or error))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    say("{}: 60,000 training and 10,000 test images".format(args.output))


def parse_args():
    parser = ArgumentParser(description="Download MNIST and write it as PNG files and label files.")
    parser.add_argument("--source", metavar="DIR",
                        help="take the four files (with or without .gz) from this folder instead of downloading them")
    parser.add_argument("--mirror", metavar="URL", action="append",
                        help="download from this address instead; may be given several times, to be tried in turn")
    parser.add_argument("--output", metavar="DIR", default=os.path.relpath(os.path.join(DATA, "mnist")),
                        help="the folder to make (default: %(default)s)")
    return parser.parse_args()


def is_whole(output):
    """Is this folder MNIST as this script writes it? Raises InputError where something else is there."""
    if not os.path.lexists(output):
        return False
    for split, _, count in SPLITS:
        try:
            images = sum(name.endswith(".png") for name in os.listdir(os.path.join(output, split + "_set")))
            with open(os.path.join(output, split + "_label", "label.txt"), encoding="utf-8") as file:
                labels = sum(1 for _ in file)
        except OSError:
            images = labels = 0
        if not images == labels == count:
            raise InputError("{} is there and is not all of MNIST: remove it and run this again".format(output))
    return True


def get_file(name, args):
    """The uncompressed bytes of one of MNIST's files, whose MD5 is right. Raises InputError."""
    if args.source is not None:
        return read_source(name, args.source)
    reasons = []
    mirrors = args.mirror or MIRRORS
    for mirror in mirrors:
        url = mirror.rstrip("/") + "/" + name + ".gz"
        for attempt in range(TRIES):
            if attempt:
                time.sleep(2 ** attempt)
            try:
                return checked(name, download(url))
            except urllib.error.HTTPError as error:  # the server answered; asking again will not help
                reasons.append("{}: {}".format(url, error))
                break
            # ValueError: a wrong sum, or an address that is none
            except (OSError, ValueError, EOFError, zlib.error, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                reasons.append("{}: {}".format(url, getattr(reason, "strerror", None) or reason))
        if mirror is not mirrors[-1]:
            talk("{}; trying the next mirror".format(reasons[-1]), "warning")
    raise InputError("could not download MNIST: {}. Download the four .gz files in another way and name their folder "
                     "with --source".format(reasons[-1]))


def read_source(name, folder):
    tried = [os.path.join(folder, name + ending) for ending in (".gz", "")]
    for path in tried:
        try:
            with open(path, "rb") as file:
                return checked(name, file.read())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, EOFError, zlib.error) as error:
            raise InputError("{}: {}".format(path, getattr(error, "strerror", None) or error))
    raise InputError("--source: there is neither {} nor {}".format(*tried))


def download(url):
    """A file's bytes, with a progress bar on a terminal. Raises OSError where it is cut off."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        size = response.headers.get("Content-Length")
        size = int(size) if size and size.isdigit() else None
        content = io.BytesIO()
        with tqdm(total=size, unit="B", unit_scale=True, desc=os.path.basename(url), disable=None, leave=False) as bar:
            while True:
                block = response.read(1 << 16)
                if not block:
                    break
                content.write(block)
                bar.update(len(block))
    if size is not None and content.tell() != size:
        raise OSError("cut off after {:,} of {:,} bytes".format(content.tell(), size))
    return content.getvalue()


def checked(name, content):
    """Uncompressed, where it is compressed. Raises ValueError for a wrong MD5 sum."""
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    found = hashlib.md5(content).hexdigest()
    if found != MD5[name]:
        raise ValueError("it is not MNIST's {}: its MD5 sum is {} and should be {}".format(name, found, MD5[name]))
    return content


def read_idx(content):
    """An array from IDX: two zero bytes, the type (8: uint8), the number of dimensions, each one big-endian."""
    zeros, kind, dimensions = struct.unpack_from(">HBB", content)
    assert zeros == 0 and kind == 8
    shape = struct.unpack_from(">{}I".format(dimensions), content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_images(folder, split, images, labels):
    """``images``: uint8 (n, 28, 28); ``labels``: uint8 (n,). Raises OSError."""
    image_folder, label_folder = os.path.join(folder, split + "_set"), os.path.join(folder, split + "_label")
    os.mkdir(image_folder)
    os.mkdir(label_folder)
    with open(os.path.join(label_folder, "label.txt"), "w", encoding="utf-8") as label_file:
        for index, (image, label) in enumerate(zip(tqdm(images, unit="image", desc=split, disable=None), labels)):
            name = "{:08d}_{}.png".format(index, label)
            with open(os.path.join(image_folder, name), "wb") as file:  # unlike cv2.imwrite it says why it fails
                file.write(cv2.imencode(".png", image)[1].tobytes())
            label_file.write(json.dumps({name: int(label)}) + "\n")


if __name__ == "__main__":
    run(main)
