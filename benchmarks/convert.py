"""Measure the speed and the memory of img2ofrecord.py and of other converters.

Whole processes are timed in turn (A B C, A B C …), each on files that were read
just before, and ratios are those of runs in the same turn, so that a change in
the machine's speed affects all alike. Prints a Markdown table.

    make bench                       all parts (half an hour on two cores)
    make bench MNIST=DIR             with MNIST: DIR holds its four .gz files
    make bench BENCH="--only small"  one of small, photos, large
"""

import shutil
import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from sides import (
    PROJECT,
    convert_command,
    make_small,
    parse_options,
    spread,
    timed,
    workspace,
    write_photos,
)

WRITERS = PROJECT / "benchmarks" / "writers.py"
PEERS = {"WebDataset's ShardWriter": "webdataset", "MosaicML's MDSWriter": "streaming"}
OURS = "**img2ofrecord.py**"


def main() -> None:
    parts = {"small": small, "photos": photos, "large": large}
    args = parse_options(
        "Compare img2ofrecord.py with other converters.", list(parts), photos=30_000, large=120
    )
    with workspace(args) as folder:
        print("| images | way | seconds | images/s | time / ours | peak memory |")
        print("|---|---|---|---|---|---|")
        for name, part in parts.items():
            if args.only in (None, name):
                part(folder, args)


# -- parts --------------------------------------------------------------------------------


def small(folder: Path, args: Namespace) -> None:
    """Small PNG files, which are stored unchanged, by every converter."""
    files = make_small(folder, args)
    tutorial = [sys.executable, WRITERS, "tutorial", *files, folder / "out"]
    ways = {"the tutorial's: decode, encode, open and append": tutorial}
    ways |= {**peers(folder, files, args), **ours(folder, files)}
    print_rows(f"{args.images:,} PNG of 28x28", ways, args.images, files[0], args.rounds)


def photos(folder: Path, args: Namespace) -> None:
    """Photos, which are stored unchanged."""
    files = write_photos(folder, args.photos, (500, 375))
    ways = {**peers(folder, files, args), **ours(folder, files, "--img_format", ".jpg")}
    print_rows(f"{args.photos:,} JPEG of 500x375", ways, args.photos, files[0], args.rounds)


def large(folder: Path, args: Namespace) -> None:
    """Photos of three megapixels, which are re-encoded."""
    files = write_photos(folder, args.large, (2000, 1500))
    for what, options in (
        ("to PNG", ["--img_format", ".png"]),
        ("to JPEG of 256x192", ["--img_format", ".jpg", "--size", "256x192"]),
    ):
        ways = ours(folder, files, *options)
        print_rows(
            f"{args.large} JPEG of 2000x1500 {what}", ways, args.large, files[0], args.rounds
        )


def peers(folder: Path, files: tuple[Path, Path], args: Namespace) -> dict[str, list]:
    """Return the commands of libraries that store the files' bytes without decoding them."""
    if not args.peers_python:
        return {}
    command = [args.peers_python, WRITERS]
    return {name: [*command, way, *files, folder / "out"] for name, way in PEERS.items()}


def ours(folder: Path, files: tuple[Path, Path], *options: str) -> dict[str, list]:
    command = convert_command(*files, folder / "out", *options)
    return {"img2ofrecord.py, one worker": [*command, "--workers", "1"], OURS: command}


# -- helpers ------------------------------------------------------------------------------


def print_rows(
    what: str, ways: dict[str, Sequence[object]], num_images: int, images: Path, rounds: int
) -> None:
    """Run each way once to warm up and ``rounds`` times in turn, and print a row for each."""
    times, peaks, out = {name: [] for name in ways}, {}, images.parent / "out"
    for turn in range(rounds + 1):
        for name, command in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            for path in images.iterdir():
                path.read_bytes()
            seconds, peaks[name] = timed(command)
            if turn:
                times[name].append(seconds)
    shutil.rmtree(out, ignore_errors=True)
    for name, seconds in times.items():
        ratios = [one / other for one, other in zip(seconds, times[OURS], strict=True)]
        speed = num_images / statistics.median(seconds)
        row = what, name, spread(seconds, 2), f"{speed:,.0f}", spread(ratios, 2)
        print("|", " | ".join(row), f"| {peaks[name]:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
