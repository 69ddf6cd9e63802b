"""Measure how img2ofrecord.py's time and memory grow with images, parts and workers.

Prints a Markdown table, and draws a picture.

    make bench-growth                        (half an hour on two cores)
    make bench-growth BENCH="--most 10000"   up to 10,000 images
"""

import json
import shutil
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from sides import convert_command, make_small, parse_options, timed, workspace

IMAGES = 1_000, 10_000, 100_000, 1_000_000
KINDS = (1, 1), (5, 1), (5, 2), (1_000, 2)  # parts, workers
DIFFERENT = 1_000  # image files; in larger image roots each has several names


def main() -> None:
    args = parse_options("Measure growth.", [], most=IMAGES[-1], picture="growth.png")
    args.images = DIFFERENT
    measured = {kind: [] for kind in KINDS}
    with workspace(args) as folder:
        images, _ = make_small(folder, args)
        print("| images | parts | workers | seconds | images/s | peak memory |")
        print("|---|---|---|---|---|---|")
        for num_images in [each for each in IMAGES if each <= args.most]:
            root, labels = write_names(folder, images, num_images)
            for parts, workers in KINDS:
                options = ["--part_num", str(parts), "--workers", str(workers)]
                command = convert_command(root, labels, folder / "out", *options)
                runs = zip(*(timed(command) for _ in range(args.rounds)), strict=True)
                seconds, peak = map(statistics.median, runs)
                measured[parts, workers].append((num_images, seconds, peak))
                row = f"{num_images:,} | {parts:,} | {workers} | {seconds:.2f}"
                print(f"| {row} | {num_images / seconds:,.0f} | {peak:.0f} MB |", flush=True)
                shutil.rmtree(folder / "out")
    draw(measured, args.picture)


def write_names(folder: Path, images: Path, num_images: int) -> tuple[Path, Path]:
    """Return an image root where the images have ``num_images`` names, and its label file."""
    root, labels = folder / f"root-{num_images}", folder / f"labels-{num_images}.txt"
    root.mkdir()
    names = sorted(path.name for path in images.iterdir())
    with labels.open("w") as file:
        for first in range(0, num_images, len(names)):
            (root / str(first)).symlink_to(images)
            for index, name in enumerate(names[: num_images - first]):
                file.write(json.dumps({f"{first}/{name}": index % 10}) + "\n")
    return root, labels


def draw(measured: dict[tuple[int, int], list[tuple]], path: str) -> None:
    """Draw seconds and memory over the number of images, a line for each (parts, workers)."""
    figure = Figure((9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (parts, workers), rows in measured.items():
        images, seconds, peaks = zip(*rows, strict=True)
        label = f"--part_num {parts} --workers {workers}"
        left.loglog(images, seconds, "o-", label=label)
        right.semilogx(images, peaks, "o-", label=label)
    left.set(xlabel="images", ylabel="seconds")
    right.set(xlabel="images", ylabel="MB, of the largest process")
    right.set_ylim(0)
    for axes in left, right:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
