"""What the benchmarks share: their options, and alternatives that are run in turn."""

import argparse
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
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent


def convert_command(images: Path, labels: Path, out: Path, *options: str) -> list[str | Path]:
    """Return the command with which img2ofrecord.py converts images to a dataset."""
    script = PROJECT / "img2ofrecord.py"
    folders = ["--image_root", images, "--label_dir", labels, "--save_dir", out]
    return [sys.executable, script, *folders, *options]


def parse_options(description: str, parts: Sequence[str], **more: int) -> argparse.Namespace:
    """Parse the options of all benchmarks.

    ``parts`` are the choices of --only; ``more`` are the defaults of further
    integer options.
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
    parser.add_argument("--only", choices=parts, help="run only this part")
    for name, default in more.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    return parser.parse_args()


@contextmanager
def workspace(args: argparse.Namespace) -> Iterator[Path]:
    """Print what the machine is, and yield a folder that is removed afterwards."""
    cores = len(os.sched_getaffinity(0))
    print(
        f"{cores} cores, Python {platform.python_version()}, OpenCV {cv2.__version__}; "
        f"median of {args.rounds} runs, range in brackets\n"
    )
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(str(folder))


def write_photos(
    folder: Path, number: int, size: tuple[int, int], aspect: tuple[int, int], scales: Sequence[int]
) -> tuple[Path, Path]:
    """Write random JPEG photos and a label file, and return their folder and the file.

    ``size`` is (width, height) in pixels, ``aspect`` their ratio in small
    numbers; ``scales`` are how fine the patterns are that a photo is the sum of.
    """
    photos, rng = folder / "photos", np.random.default_rng(0)
    photos.mkdir()
    with (folder / "photos.txt").open("w") as labels:
        for index in tqdm(range(number), desc="making photos", disable=None):
            photo = sum(
                cv2.resize(
                    rng.integers(0, 64, (aspect[1] * n, aspect[0] * n, 3), dtype=np.uint8),
                    size,
                    interpolation=cv2.INTER_CUBIC,
                )
                for n in scales
            )
            cv2.imwrite(str(photos / f"{index}.jpg"), photo)
            labels.write(json.dumps({f"{index}.jpg": index % 10}) + "\n")
    return photos, folder / "photos.txt"


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


def speed_table(
    ways: dict[str, tuple[Sequence[object], dict[str, str]]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
) -> None:
    """Run ``ways``, {name: (command, environment)}, in turn, and print a table of their speeds.

    Each command prints {"images": …, "seconds": …} last. The ratios to the
    first way are those of runs in the same turn.
    """
    speeds = {name: [] for name in ways}
    for _ in range(rounds):
        before()
        for name, (command, environment) in ways.items():
            result = last_line(command, **environment)
            speeds[name].append(result["images"] / result["seconds"])
    first = speeds[next(iter(ways))]
    print("| way | images/s | speed of the first / this |\n|---|---|---|")
    for name, figures in speeds.items():
        ratios = [one / other for one, other in zip(first, figures, strict=True)]
        print(f"| {name} | {spread(figures, 0)} | {spread(ratios, 2)} |")
    print(flush=True)
