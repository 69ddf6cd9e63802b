"""What the benchmarks share: their options, and alternatives that are run in turn."""

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from runtime.environment import installed_version
from runtime.workers import num_cpus

PEERS = ["webdataset", "mosaicml-streaming", "torch"]  # packages


def convert_command(images: Path, labels: Path, out: Path, *options: str) -> list[str | Path]:
    """Return the command with which img2ofrecord.py converts images to a dataset."""
    script = PROJECT / "img2ofrecord.py"
    folders = ["--image_root", images, "--label_dir", labels, "--save_dir", out]
    return [sys.executable, script, *folders, *options]


def parse_options(
    description: str, parts: Sequence[str], **more: int | float | str
) -> argparse.Namespace:
    """Parse the options of all benchmarks.

    ``parts`` are the choices of --only; ``more`` are the defaults of further options.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--mnist", metavar="DIR", help="folder of MNIST's four .gz files")
    parser.add_argument(
        "--peers_python",
        metavar="FILE",
        help="Python in which benchmarks/requirements.txt is installed",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="timed runs of each alternative (default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=int, default=60000, help="number of small images (default: %(default)s)"
    )
    if parts:
        parser.add_argument("--only", choices=parts, help="run only this part")
    for name, default in more.items():
        kind, help = type(default), "(default: %(default)s)"
        parser.add_argument(f"--{name}", type=kind, default=default, help=help)
    return parser.parse_args()


@contextmanager
def workspace(args: argparse.Namespace) -> Iterator[Path]:
    """Print what the machine is, and yield a folder that is removed afterwards."""
    versions = [f"Python {platform.python_version()}", f"OpenCV {cv2.__version__}"]
    versions.append(f"OneFlow {installed_version('oneflow')}")
    if args.peers_python:
        code = f"from importlib.metadata import version as v; print(*map(v, {PEERS}))"
        found = check([args.peers_python, "-c", code]).split()
        versions += map(" ".join, zip(PEERS, found, strict=True))
    print(f"{cpu_name()}, {num_cpus()} cores; {', '.join(versions)}.")
    print(f"Medians of {args.rounds} runs, their range in brackets.")
    if not args.peers_python:
        print("(No --peers_python: other libraries are skipped.)")
    print(flush=True)
    for name in "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE":  # as most people have them
        os.environ.pop(name, None)
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(str(folder))


def cpu_name() -> str:
    """Return the name that /proc/cpuinfo gives to the CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def make_small(folder: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    """Write PNG files of 28x28 and a label file, and return the paths of the two.

    The images are MNIST's, or the 50 digits transformed at random.
    """
    images = folder / "images"
    images.mkdir()
    if args.mnist:
        with gzip.open(os.path.join(args.mnist, "train-images-idx3-ubyte.gz")) as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    else:
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


# A photo is the sum of random patterns, {cells along its longer side: levels}.
PATTERNS = {8: 64, 24: 64, 80: 64, 360: 32}
DIFFERENT = 1000  # photos; more are copies of these


def write_photos(folder: Path, number: int, size: tuple[int, int]) -> tuple[Path, Path]:
    """Write random JPEG photos of ``size``, (width, height) in pixels, and a label file.

    Of 500x375 they have 49 KB on average. Returns their folder and the label file.
    """
    name = f"photos-{size[0]}x{size[1]}"
    photos, labels, rng = folder / name, folder / f"{name}.txt", np.random.default_rng(0)
    photos.mkdir()
    with labels.open("w") as lines:
        for index in tqdm(range(number), desc="making photos", disable=None):
            path = photos / f"{index}.jpg"
            if index < DIFFERENT:
                photo = 0
                for fineness, strength in PATTERNS.items():
                    height, width = (fineness * side // max(size) for side in size[::-1])
                    pattern = rng.integers(0, strength, (height, width, 3), dtype=np.uint8)
                    photo = photo + cv2.resize(pattern, size, interpolation=cv2.INTER_CUBIC)
                cv2.imwrite(str(path), photo, [cv2.IMWRITE_JPEG_QUALITY, 85])
            else:
                shutil.copyfile(photos / f"{index % DIFFERENT}.jpg", path)
            lines.write(json.dumps({path.name: index % 10}) + "\n")
    return photos, labels


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


def last_line(command: Sequence[object], **environment: str) -> Any:
    """Run a command and return the value of the JSON in the last line that it prints."""
    return json.loads(check(command, **environment).splitlines()[-1])


def check(command: Sequence[object], **environment: str) -> str:
    """Run a command, which must succeed, and return its stdout."""
    process = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **environment},
    )
    if process.returncode != 0:
        sys.exit(f"{command}\n{process.stderr[-3000:]}\nexit code {process.returncode}")
    return process.stdout


def spread(figures: Sequence[float], digits: int) -> str:
    """Return the median of figures and their range: ``1.9 (1.8 to 2.1)``."""
    middle, low, high = (
        f"{figure:,.{digits}f}"
        for figure in (statistics.median(figures), min(figures), max(figures))
    )
    return f"{middle} ({low} to {high})"


def speed_rows(
    what: str,
    ways: dict[str, tuple[Sequence[object], dict[str, str]]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
) -> None:
    """Run ``ways``, {name: (command, environment)}, in turn, and print a row for each.

    Each command prints {"images": …, "seconds": …} last. The ratios of the
    first way's speed are those of runs in the same turn.
    """
    speeds = {name: [] for name in ways}
    for _ in range(rounds):
        before()
        for name, (command, environment) in ways.items():
            result = last_line(command, **environment)
            speeds[name].append(result["images"] / result["seconds"])
    first = speeds[next(iter(ways))]
    for name, figures in speeds.items():
        ratios = [one / other for one, other in zip(first, figures, strict=True)]
        print(f"| {what} | {name} | {spread(figures, 0)} | {spread(ratios, 2)} |", flush=True)
