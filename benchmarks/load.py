"""How fast does a dataset come out again, as float batches to train on?

Each way in a process of its own, in turn (A B C, A B C …), on warm files; the
ratios are of runs of the same turn. Prints Markdown tables.

    make bench-load                  (MNIST=DIR with the real MNIST)
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from convert import CONVERT, PROJECT, WRITERS, make_small

LOADERS = str(PROJECT / "benchmarks" / "loaders.py")


def main():
    parser = argparse.ArgumentParser(description="Time ways to read images for training, side by side.")
    parser.add_argument("--mnist", metavar="DIR", help="the folder of MNIST's four .gz files")
    parser.add_argument("--peers_python", metavar="FILE", help="a Python with benchmarks/requirements.txt installed")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--images", type=int, default=60000, help="how many small images (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="that each run is timed for (default: %(default)s)")
    parser.add_argument("--only", choices=["small", "color"], help="one part of it")
    args = parser.parse_args()
    print("{} cores, Python {}, OpenCV {}; median of {} runs, spread in brackets\n".format(
        len(os.sched_getaffinity(0)), platform.python_version(), cv2.__version__, args.rounds))
    folder = Path(tempfile.mkdtemp(prefix="load-bench-"))
    try:
        if args.only in (None, "small"):
            small(folder, args)
        if args.only in (None, "color"):
            color(folder, args)
    finally:
        shutil.rmtree(str(folder))


def small(folder, args):
    images, labels = make_small(folder, args)
    check(CONVERT + ["--image_root", images, "--label_dir", labels, "--save_dir", folder / "ofrecord"])
    ways = {"**OneFlow's reader, our dataset**": [sys.executable, "oneflow", folder / "ofrecord"],
            # For few cores: OneFlow's scheduler computes by itself instead of waiting, busily, for a worker thread.
            "the same, ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD=0": [
                sys.executable, "oneflow", folder / "ofrecord", "auto", "ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD=0"]}
    if args.peers_python:
        for name in ("webdataset", "streaming"):
            check([args.peers_python, WRITERS, name, images, labels, folder / name])
        ways["PyTorch DataLoader, PNG files, 2 workers"] = [args.peers_python, "pytorch", images]
        ways["WebDataset, 2 workers"] = [args.peers_python, "webdataset", folder / "webdataset"]
        ways["MosaicML streaming, 2 workers"] = [args.peers_python, "streaming", folder / "streaming"]
    else:
        print("(no --peers_python: PyTorch, WebDataset and streaming are left out)\n")
    print("{:,} gray PNG of 28x28, batches of 256:\n".format(args.images))
    table(ways, images, args)
    print("A training step of 64 images on the CPU, of which loading takes:\n")
    print(json.loads(check([sys.executable, __file__.replace("load.py", "step.py"), folder / "ofrecord"])
                     .splitlines()[-1])["text"] + "\n")


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
    ways = {"fused decoder": [sys.executable, "oneflow", folder / "jpeg", "fused"],
            "bytes decoder": [sys.executable, "oneflow", folder / "jpeg", "bytes"]}
    print("3,000 colour JPEG of 256x256, batches of 256:\n")
    table(ways, images, args, COLOR="1")


def table(ways, images, args, **environment):
    speeds = {name: [] for name in ways}
    for turn in range(args.rounds):
        for path in images.iterdir():
            path.read_bytes()
        for name, (python, way, dataset, *option) in ways.items():
            switches = dict(text.split("=") for text in option[1:])
            output = check([python, LOADERS, way, dataset, images, args.seconds] + option[:1], **environment, **switches)
            result = json.loads(output.splitlines()[-1])
            speeds[name].append(result["images"] / result["seconds"])
    first = speeds[next(iter(ways))]
    print("| way | images/s | the first is so many times as fast |\n|---|---|---|")
    for name, figures in speeds.items():
        ratios = [one / other for one, other in zip(first, figures)]
        print("| {} | {:,.0f} ({:,.0f} to {:,.0f}) | {:.1f} ({:.1f} to {:.1f}) |".format(
            name, statistics.median(figures), min(figures), max(figures), statistics.median(ratios), min(ratios), max(ratios)))
    print(flush=True)


def check(command, **environment):
    """stdout of a command, which must succeed."""
    process = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                             env=dict(os.environ, **environment))
    if process.returncode != 0:
        sys.exit("{}\n{}\nended with code {}".format(command, process.stderr[-3000:], process.returncode))
    return process.stdout


if __name__ == "__main__":
    main()
