"""How fast is img2ofrecord.py, and how much memory does it take?

Whole processes, timed side by side in turn (A B C, A B C …), each on files
that were read just before; the ratios are of runs of the same turn. So a
machine whose speed drifts drifts for all. Prints Markdown tables.

    make bench                       all of it (20 minutes on two cores)
    make bench MNIST=DIR             with the real MNIST: DIR has its four .gz files
    make bench BENCH="--only small"  one of small, large, memory
"""

import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys

import cv2
import numpy as np
from sides import CONVERT, PROJECT, parse_options, workspace
from tqdm import tqdm

WRITERS = str(PROJECT / "benchmarks" / "writers.py")


def main():
    args = parse_options("Time img2ofrecord.py against other ways, side by side.", ["small", "large", "memory"])
    with workspace(args) as folder:
        if args.only in (None, "small", "memory"):
            images, labels = make_small(folder, args)
        if args.only in (None, "small"):
            small(folder, images, labels, args)
        if args.only in (None, "large"):
            large(folder, args)
        if args.only in (None, "memory"):
            memory(folder, images, labels)


# -- the parts of it ------------------------------------------------------------------

def small(folder, images, labels, args):
    out = folder / "out"
    ours = CONVERT + ["--image_root", str(images), "--label_dir", str(labels), "--save_dir", str(out)]
    ways = {"tutorial's way (decode, encode, append)": [sys.executable, WRITERS, "tutorial", images, labels, out]}
    if args.peers_python:
        ways["WebDataset ShardWriter"] = [args.peers_python, WRITERS, "webdataset", images, labels, out]
        ways["MosaicML streaming MDSWriter"] = [args.peers_python, WRITERS, "streaming", images, labels, out]
    else:
        print("(no --peers_python: WebDataset and streaming are left out)\n")
    ways["img2ofrecord.py, 1 worker"] = ours + ["--workers", "1"]
    ways["**img2ofrecord.py**, every image checked"] = ours
    print("{:,} small PNG files to a dataset:\n".format(args.images))
    table(ways, args.images, images, out, args.rounds)


def large(folder, args):
    """Photos of three megapixels, to be encoded anew: here the cores count."""
    photos = folder / "photos"
    photos.mkdir()
    count = 120
    rng = np.random.default_rng(0)
    with (folder / "photos.txt").open("w") as labels:
        for index in tqdm(range(count), desc="making photos", disable=None):
            photo = sum(cv2.resize(rng.integers(0, 64, (3 * scale, 4 * scale, 3), dtype=np.uint8), (2000, 1500),
                                   interpolation=cv2.INTER_CUBIC) for scale in (2, 20, 120, 500))
            cv2.imwrite(str(photos / "{}.jpg".format(index)), photo)
            labels.write(json.dumps({"{}.jpg".format(index): index % 10}) + "\n")
    out = folder / "out"
    for what, options in (("to PNG of the same size", ["--img_format", ".png"]),
                          ("to JPEG resized to 256x192", ["--img_format", ".jpg", "--size", "256x192"])):
        ours = CONVERT + ["--image_root", photos, "--label_dir", folder / "photos.txt", "--save_dir", out] + options
        print("{} JPEG photos of 2000x1500 {}:\n".format(count, what))
        table({"1 worker": ours + ["--workers", "1"], "2 workers": ours + ["--workers", "2"]}, count, photos, out,
              args.rounds)


def memory(folder, images, labels):
    """Ten times the images, by ten names for their folder, take hardly more memory."""
    tenfold = folder / "tenfold"
    tenfold.mkdir()
    with (folder / "tenfold.txt").open("w") as file:
        for turn in range(10):
            (tenfold / str(turn)).symlink_to(images)
            with labels.open() as lines:
                file.writelines('{"%d/%s' % (turn, line[2:]) for line in lines)
    print("Memory of the largest process:\n")
    print("| images | seconds | peak memory |\n|---|---|---|")
    for root, label_file in ((images, labels), (tenfold, folder / "tenfold.txt")):
        seconds, peak = timed(CONVERT + ["--image_root", root, "--label_dir", label_file, "--save_dir", folder / "out"])
        with label_file.open() as lines:
            print("| {:,} | {:.1f} | {:.0f} MB |".format(sum(1 for _ in lines), seconds, peak), flush=True)
        shutil.rmtree(str(folder / "out"))
    print()


# -- what they need ---------------------------------------------------------------------

def make_small(folder, args):
    """60,000 PNG files of 28x28 and their label file: MNIST, or the 50 digits moved about."""
    images = folder / "images"
    images.mkdir()
    if args.mnist:
        with gzip.open(os.path.join(args.mnist, "train-images-idx3-ubyte.gz")) as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    else:
        print("(no --mnist: the 50 digits, moved and scaled at random)\n")
        digits = [cv2.imread(str(path), 0) for path in sorted((PROJECT / "data/images/train_set").iterdir())]
        rng = np.random.default_rng(0)
        pixels = (cv2.warpAffine(digits[index % 50], np.float32(
            [[rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2), rng.uniform(-3, 3)],
             [rng.uniform(-0.2, 0.2), rng.uniform(0.8, 1.2), rng.uniform(-3, 3)]]), (28, 28))
            for index in range(args.images))
    with (folder / "labels.txt").open("w") as labels:
        for index, image in enumerate(tqdm(pixels, total=args.images, desc="making images", disable=None)):
            if index == args.images:
                break
            name = "{:08d}.png".format(index)
            (images / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
            labels.write(json.dumps({name: index % 10}) + "\n")
    return images, folder / "labels.txt"


def table(ways, count, images, out, rounds):
    """Run each way once to warm up and then ``rounds`` times in turn; print medians, and ratios to the last way."""
    times, peaks = {name: [] for name in ways}, {}
    for turn in range(rounds + 1):
        for name, command in ways.items():
            shutil.rmtree(str(out), ignore_errors=True)
            for path in images.iterdir():
                path.read_bytes()
            seconds, peaks[name] = timed(command)
            if turn:
                times[name].append(seconds)
    shutil.rmtree(str(out), ignore_errors=True)
    last = times[list(ways)[-1]]
    print("| way | seconds | images/s | times as long as the last | peak memory |\n|---|---|---|---|---|")
    for name, seconds in times.items():
        ratios = [one / other for one, other in zip(seconds, last)]
        print("| {} | {:.2f} ({:.2f} to {:.2f}) | {:,.0f} | {:.1f} ({:.1f} to {:.1f}) | {:.0f} MB |".format(
            name, statistics.median(seconds), min(seconds), max(seconds), count / statistics.median(seconds),
            statistics.median(ratios), min(ratios), max(ratios), peaks[name]))
    print(flush=True)


def timed(command):
    """Seconds and the largest process's peak memory, in MB, of a whole command. It must succeed."""
    # A process in between, so that only this command's children are counted.
    code = ("import json, resource, subprocess, sys, time; start = time.perf_counter(); "
            "code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
            "print(json.dumps([code, time.perf_counter() - start, "
            "resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))")
    process = subprocess.run([sys.executable, "-c", code] + list(map(str, command)), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, encoding="utf-8")
    code, seconds, peak = json.loads(process.stdout)
    if code != 0:
        sys.exit("{}\nended with code {}".format(process.stderr, code))
    return seconds, peak


if __name__ == "__main__":
    main()
