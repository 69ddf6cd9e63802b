"""Measure how fast a dataset is read into float batches to train on.

Each way runs in a process of its own, in turn (A B C, A B C …), on files that
are in memory; ratios are those of runs in the same turn. Prints Markdown tables.

    make bench-load                  (MNIST=DIR with MNIST)
"""

import sys
from argparse import Namespace
from pathlib import Path

from convert import make_small
from sides import (
    PROJECT,
    check,
    convert_command,
    parse_options,
    speed_table,
    workspace,
    write_photos,
)

LOADERS = PROJECT / "benchmarks" / "loaders.py"
WRITERS = PROJECT / "benchmarks" / "writers.py"


def main() -> None:
    args = parse_options("Compare ways to read images for training.", ["small", "color"], seconds=5)
    with workspace(args) as folder:
        if args.only in (None, "small"):
            small(folder, args)
        if args.only in (None, "color"):
            color(folder, args)


def small(folder: Path, args: Namespace) -> None:
    """Small gray PNG files, which every way decodes."""
    images, labels = make_small(folder, args)
    check(convert_command(images, labels, folder / "ofrecord"))
    ours = [sys.executable, LOADERS, "oneflow", folder / "ofrecord", images, args.seconds]
    ways = {
        "**OneFlow's reader, our dataset**": (ours, {}),
        # Where there is no GPU, lenet/engine.py turns them off.
        "the same, with OneFlow's own threads": (
            ours,
            {"ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD": "1"},
        ),
    }
    if args.peers_python:
        for name in ("webdataset", "streaming"):
            check([args.peers_python, WRITERS, name, images, labels, folder / name])
        for name, way, dataset in (
            ("PyTorch DataLoader, PNG files, 2 workers", "pytorch", "-"),
            ("WebDataset, 2 workers", "webdataset", folder / "webdataset"),
            ("MosaicML streaming, 2 workers", "streaming", folder / "streaming"),
        ):
            ways[name] = ([args.peers_python, LOADERS, way, dataset, images, args.seconds], {})
    else:
        print("(no --peers_python: PyTorch, WebDataset and streaming are skipped)\n")
    print(f"{args.images:,} gray PNG of 28x28, batches of 256:\n")
    speed_table(ways, args.rounds, before=lambda: read_all(images))


def read_all(folder: Path) -> None:
    """Read every file of a folder, so that none comes from the disk later."""
    for path in folder.iterdir():
        path.read_bytes()


def color(folder: Path, args: Namespace) -> None:
    """Colour JPEG: OneFlow's fused decoder against its bytes decoder."""
    images, labels = write_photos(folder, 3000, (256, 256), (1, 1), (2, 6, 20, 90))
    dataset = folder / "jpeg"
    check(convert_command(images, labels, dataset, "--img_format", ".jpg"))
    command = [sys.executable, LOADERS, "oneflow", dataset, images, args.seconds]
    print("3,000 colour JPEG of 256x256, batches of 256:\n")
    speed_table(
        {
            f"{decoder} decoder": ([*command, decoder], {"COLOR": "1"})
            for decoder in ("fused", "bytes")
        },
        args.rounds,
    )


if __name__ == "__main__":
    main()
