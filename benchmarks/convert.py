"""Measure the speed and the memory of img2ofrecord.py and of other converters.

Whole processes are timed in turn (A B C, A B C …), each on files that were read
just before, and ratios are those of runs in the same turn, so that a change in
the machine's speed affects all alike. Prints Markdown tables.

    make bench                       all parts (20 minutes on two cores)
    make bench MNIST=DIR             with MNIST: DIR holds its four .gz files
    make bench BENCH="--only small"  one of small, large, memory
"""

import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from sides import PROJECT, convert_command, parse_options, spread, workspace, write_photos
from tqdm import tqdm

WRITERS = PROJECT / "benchmarks" / "writers.py"


def main() -> None:
    args = parse_options(
        "Compare img2ofrecord.py with other converters.", ["small", "large", "memory"]
    )
    with workspace(args) as folder:
        if args.only in (None, "small", "memory"):
            images, labels = make_small(folder, args)
        if args.only in (None, "small"):
            small(folder, images, labels, args)
        if args.only in (None, "large"):
            large(folder, args)
        if args.only in (None, "memory"):
            memory(folder, images, labels)


# -- parts --------------------------------------------------------------------------------


def small(folder: Path, images: Path, labels: Path, args: Namespace) -> None:
    """Small PNG files, which are stored unchanged, by every converter."""
    out = folder / "out"
    others = [images, labels, out]
    ways = {
        "tutorial's way (decode, encode, append)": [sys.executable, WRITERS, "tutorial", *others]
    }
    if args.peers_python:
        for name, way in (
            ("WebDataset ShardWriter", "webdataset"),
            ("MosaicML streaming MDSWriter", "streaming"),
        ):
            ways[name] = [args.peers_python, WRITERS, way, *others]
    else:
        print("(no --peers_python: WebDataset and streaming are skipped)\n")
    ways["img2ofrecord.py, 1 worker"] = convert_command(*others, "--workers", "1")
    ways["**img2ofrecord.py**, every image checked"] = convert_command(*others)
    print(f"{args.images:,} small PNG files to a dataset:\n")
    table(ways, args.images, images, out, args.rounds)


def large(folder: Path, args: Namespace) -> None:
    """Photos of three megapixels, which are re-encoded, on one worker and on two."""
    num_photos = 120
    photos, labels = write_photos(folder, num_photos, (2000, 1500), (4, 3), (2, 20, 120, 500))
    out = folder / "out"
    for what, options in (
        ("to PNG of the same size", ["--img_format", ".png"]),
        ("to JPEG resized to 256x192", ["--img_format", ".jpg", "--size", "256x192"]),
    ):
        command = convert_command(photos, labels, out, *options)
        print(f"{num_photos} JPEG photos of 2000x1500 {what}:\n")
        table(
            {
                "1 worker": [*command, "--workers", "1"],
                "2 workers": [*command, "--workers", "2"],
            },
            num_photos,
            photos,
            out,
            args.rounds,
        )


def memory(folder: Path, images: Path, labels: Path) -> None:
    """Peak memory, also for ten times as many images: the same ones under ten names."""
    tenfold = folder / "tenfold"
    tenfold.mkdir()
    with (folder / "tenfold.txt").open("w") as file:
        for turn in range(10):
            (tenfold / str(turn)).symlink_to(images)
            with labels.open() as lines:
                file.writelines(f'{{"{turn}/{line[2:]}' for line in lines)
    print("Memory of the largest process:\n")
    print("| images | seconds | peak memory |\n|---|---|---|")
    for root, label_file in ((images, labels), (tenfold, folder / "tenfold.txt")):
        seconds, peak = timed(convert_command(root, label_file, folder / "out"))
        with label_file.open() as lines:
            print(f"| {sum(1 for _ in lines):,} | {seconds:.1f} | {peak:.0f} MB |", flush=True)
        shutil.rmtree(folder / "out")
    print()


# -- helpers ------------------------------------------------------------------------------


def make_small(folder: Path, args: Namespace) -> tuple[Path, Path]:
    """Write PNG files of 28x28 and a label file, and return the paths of the two.

    The images are MNIST's, or the 50 digits transformed at random.
    """
    images = folder / "images"
    images.mkdir()
    if args.mnist:
        with gzip.open(os.path.join(args.mnist, "train-images-idx3-ubyte.gz")) as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    else:
        print("(no --mnist: the 50 digits, transformed at random)\n")
        digits = [
            cv2.imread(str(path), 0)
            for path in sorted((PROJECT / "data/images/train_set").iterdir())
        ]
        rng = np.random.default_rng(0)
        low, high = [[0.8, -0.2, -3], [-0.2, 0.8, -3]], [[1.2, 0.2, 3], [0.2, 1.2, 3]]
        pixels = (
            cv2.warpAffine(digits[index % 50], np.float32(rng.uniform(low, high)), (28, 28))
            for index in range(args.images)
        )
    with (folder / "labels.txt").open("w") as labels:
        bar = tqdm(
            islice(pixels, args.images), total=args.images, desc="making images", disable=None
        )
        for index, image in enumerate(bar):
            name = f"{index:08d}.png"
            (images / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
            labels.write(json.dumps({name: index % 10}) + "\n")
    return images, folder / "labels.txt"


def table(
    ways: dict[str, Sequence[object]], num_images: int, images: Path, out: Path, rounds: int
) -> None:
    """Run each way once to warm up and ``rounds`` times in turn, and print a table.

    The ratios are those to the last way.
    """
    times, peaks = {name: [] for name in ways}, {}
    for turn in range(rounds + 1):
        for name, command in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            for path in images.iterdir():
                path.read_bytes()
            seconds, peaks[name] = timed(command)
            if turn:
                times[name].append(seconds)
    shutil.rmtree(out, ignore_errors=True)
    last = times[list(ways)[-1]]
    print("| way | seconds | images/s | time / time of the last | peak memory |")
    print("|---|---|---|---|---|")
    for name, seconds in times.items():
        ratios = [one / other for one, other in zip(seconds, last, strict=True)]
        speed = num_images / statistics.median(seconds)
        print(
            f"| {name} | {spread(seconds, 2)} | {speed:,.0f} | {spread(ratios, 1)} "
            f"| {peaks[name]:.0f} MB |"
        )
    print(flush=True)


def timed(command: Sequence[object]) -> tuple[float, float]:
    """Run a command, which must succeed, and time it.

    Returns the seconds, and the peak memory of its largest process in MB.
    """
    # In a process between, so that only this command's children are counted.
    code = (
        "import json, resource, subprocess, sys, time; start = time.perf_counter(); "
        "code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(json.dumps([code, time.perf_counter() - start, "
        "resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        capture_output=True,
        encoding="utf-8",
    )
    code, seconds, peak = json.loads(process.stdout)
    if code != 0:
        sys.exit(f"{process.stderr}\nexit code {code}")
    return seconds, peak


if __name__ == "__main__":
    main()
