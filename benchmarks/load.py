"""Measure how fast a dataset is read into float batches to train on.

Each way runs in a process of its own, in turn (A B C, A B C …), on files that
are in memory; ratios are those of runs in the same turn. Prints a Markdown table.

    make bench-load                  (MNIST=DIR with MNIST)
"""

import sys
from argparse import Namespace
from pathlib import Path

from sides import (
    PROJECT,
    check,
    convert_command,
    make_small,
    parse_options,
    speed_rows,
    workspace,
    write_photos,
)

LOADERS = PROJECT / "benchmarks" / "loaders.py"
WRITERS = PROJECT / "benchmarks" / "writers.py"
OURS = "**OneFlow's reader, our dataset**"
PEERS = {
    "PyTorch's DataLoader, files, 2 workers": "pytorch",
    "WebDataset, 2 workers": "webdataset",
    "MosaicML streaming, 2 workers": "streaming",
}
PHOTOS = (256, 256), (500, 375)  # width and height
SIZE = 256  # pixels, to which photos are resized


def main() -> None:
    args = parse_options(
        "Compare ways to read images for training.", ["small", "photos"], seconds=5.0, photos=3000
    )
    with workspace(args) as folder:
        print("| images | way | images/s | ours / this |\n|---|---|---|---|")
        if args.only in (None, "small"):
            images, labels = make_small(folder, args)
            dataset = folder / "small"
            check(convert_command(images, labels, dataset))
            ways = {OURS: oneflow(dataset, images, args)}
            ways |= peers(folder, images, labels, args)
            print_rows(f"{args.images:,} gray PNG of 28x28", ways, images, args)
        for size in PHOTOS if args.only in (None, "photos") else ():
            images, labels = write_photos(folder, args.photos, size)
            dataset = folder / f"{images.name}-ofrecord"
            convert = convert_command(images, labels, dataset, "--img_format", ".jpg")
            check(convert)
            command = oneflow(dataset, images, args, SIZE)
            ways = {OURS: command, "the same, decoder for all formats": [*command, "bytes"]}
            if size != (SIZE, SIZE):
                resized = folder / f"{images.name}-resized"
                check([*convert, "--save_dir", resized, "--size", f"{SIZE}x{SIZE}"])
                ways["the same, converted with --size"] = oneflow(resized, images, args, SIZE)
            ways |= peers(folder, images, labels, args, SIZE)
            print_rows(f"{args.photos:,} colour JPEG of {size[0]}x{size[1]}", ways, images, args)
    print()


def oneflow(dataset: Path, images: Path, args: Namespace, *size: int) -> list:
    """Return the command that reads our dataset."""
    return [sys.executable, LOADERS, "oneflow", dataset, images, args.seconds, *size]


def peers(folder: Path, images: Path, labels: Path, args: Namespace, *size: int) -> dict:
    """Return the commands of the other loaders, for whom the images are written as they need."""
    ways = {}
    for name, way in PEERS.items() if args.peers_python else ():
        dataset = folder / f"{images.name}-{way}"
        if way != "pytorch":
            check([args.peers_python, WRITERS, way, images, labels, dataset])
        ways[name] = [args.peers_python, LOADERS, way, dataset, images, args.seconds, *size]
    return ways


def print_rows(what: str, commands: dict[str, list], images: Path, args: Namespace) -> None:
    def read_all() -> None:  # so that no file comes from the disk later
        for path in images.iterdir():
            path.read_bytes()

    ways = {name: (command, {}) for name, command in commands.items()}
    speed_rows(what, ways, args.rounds, before=read_all)


if __name__ == "__main__":
    main()
