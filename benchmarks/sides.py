"""What the benchmarks share: their options, and ways that are run in turn."""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import cv2

PROJECT = Path(__file__).resolve().parent.parent
CONVERT = [sys.executable, str(PROJECT / "img2ofrecord.py")]


def parse_options(description, parts, **more):
    """The options all benchmarks have; ``parts`` can be chosen from; ``more`` are defaults of whole-number options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--mnist", metavar="DIR", help="the folder of MNIST's four .gz files")
    parser.add_argument("--peers_python", metavar="FILE", help="a Python with benchmarks/requirements.txt installed")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--images", type=int, default=60000, help="how many small images (default: %(default)s)")
    parser.add_argument("--only", choices=parts, help="one part of it")
    for name, default in more.items():
        parser.add_argument("--" + name, type=int, default=default, help="(default: %(default)s)")
    return parser.parse_args()


@contextmanager
def workspace(args):
    """A folder that is removed afterwards; begins by saying what the machine is."""
    print("{} cores, Python {}, OpenCV {}; median of {} runs, spread in brackets\n".format(
        len(os.sched_getaffinity(0)), platform.python_version(), cv2.__version__, args.rounds))
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(str(folder))


def last_line(command, **environment):
    """The JSON in the last line that a command prints."""
    return json.loads(check(command, **environment).splitlines()[-1])


def check(command, **environment):
    """stdout of a command, which must succeed."""
    process = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                             env={**os.environ, **environment})
    if process.returncode != 0:
        sys.exit("{}\n{}\nended with code {}".format(command, process.stderr[-3000:], process.returncode))
    return process.stdout


def speed_table(ways, rounds, before=lambda: None):
    """Run ``ways``, {name: (command, environment)}, in turn and print images/s, and how they compare with the first.

    Each command prints {"images": …, "seconds": …} last. Ratios are of runs of the same turn.
    """
    speeds = {name: [] for name in ways}
    for turn in range(rounds):
        before()
        for name, (command, environment) in ways.items():
            result = last_line(command, **environment)
            speeds[name].append(result["images"] / result["seconds"])
    first = speeds[next(iter(ways))]
    print("| way | images/s | the first is so many times as fast |\n|---|---|---|")
    for name, figures in speeds.items():
        ratios = [one / other for one, other in zip(first, figures)]
        print("| {} | {:,.0f} ({:,.0f} to {:,.0f}) | {:.2f} ({:.2f} to {:.2f}) |".format(
            name, statistics.median(figures), min(figures), max(figures), statistics.median(ratios), min(ratios), max(ratios)))
    print(flush=True)
