"""How fast does a dataset come out again, as float batches to train on?

Each way in a process of its own, in turn (A B C, A B C …), on warm files; the
ratios are of runs of the same turn. Prints Markdown tables.

    make bench-load                  (MNIST=DIR with the real MNIST)
"""

import json
import sys

import cv2
import numpy as np
from convert import make_small
from sides import CONVERT, PROJECT, check, parse_options, speed_table, workspace

LOADERS = str(PROJECT / "benchmarks" / "loaders.py")
WRITERS = str(PROJECT / "benchmarks" / "writers.py")


def main():
    args = parse_options("Time ways to read images for training, side by side.", ["small", "color"], seconds=5)
    with workspace(args) as folder:
        if args.only in (None, "small"):
            small(folder, args)
        if args.only in (None, "color"):
            color(folder, args)


def small(folder, args):
    images, labels = make_small(folder, args)
    check(CONVERT + ["--image_root", images, "--label_dir", labels, "--save_dir", folder / "ofrecord"])
    ways = {"**OneFlow's reader, our dataset**": ([sys.executable, LOADERS, "oneflow", folder / "ofrecord", images, args.seconds], {})}
    ways["the same, with OneFlow's own threads"] = (  # what lenet/engine.py switches off where there is no GPU
        ways["**OneFlow's reader, our dataset**"][0], {"ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD": "1"})
    if args.peers_python:
        for name in ("webdataset", "streaming"):
            check([args.peers_python, WRITERS, name, images, labels, folder / name])
        for name, way, dataset in (("PyTorch DataLoader, PNG files, 2 workers", "pytorch", "-"),
                                   ("WebDataset, 2 workers", "webdataset", folder / "webdataset"),
                                   ("MosaicML streaming, 2 workers", "streaming", folder / "streaming")):
            ways[name] = ([args.peers_python, LOADERS, way, dataset, images, args.seconds], {})
    else:
        print("(no --peers_python: PyTorch, WebDataset and streaming are left out)\n")
    print("{:,} gray PNG of 28x28, batches of 256:\n".format(args.images))
    speed_table(ways, args.rounds, before=lambda: warm(images))


def warm(images):
    """Read every file once, so that none comes from the disk later."""
    for path in images.iterdir():
        path.read_bytes()


def color(folder, args):
    """Colour JPEG: OneFlow's fused decoder against the bytes path."""
    images = folder / "photos"
    images.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "photos.txt").open("w") as labels:
        for index in range(3000):
            photo = sum(cv2.resize(rng.integers(0, 64, (scale, scale, 3), dtype=np.uint8), (256, 256),
                                   interpolation=cv2.INTER_CUBIC) for scale in (2, 6, 20, 90))
            cv2.imwrite(str(images / "{}.jpg".format(index)), photo)
            labels.write(json.dumps({"{}.jpg".format(index): index % 10}) + "\n")
    check(CONVERT + ["--image_root", images, "--label_dir", folder / "photos.txt", "--save_dir", folder / "jpeg",
                     "--img_format", ".jpg"])
    print("3,000 colour JPEG of 256x256, batches of 256:\n")
    speed_table({"{} decoder".format(decoder): (
        [sys.executable, LOADERS, "oneflow", folder / "jpeg", images, args.seconds, decoder], {"COLOR": "1"})
        for decoder in ("fused", "bytes")}, args.rounds)


if __name__ == "__main__":
    main()
