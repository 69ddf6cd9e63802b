"""``show``: what is in a dataset, as text and as a picture of sample images."""

import argparse
import os
from collections import Counter

import numpy as np

from runtime.cli import InputError, count, one_line, os_errors, output

from ..dataset.manifest import MANIFEST_NAME, Manifest
from ..dataset.open_dataset import Dataset, dataset_in_use, open_dataset, read_records
from ..images import BadImage, decode, decoder_messages, read_header

HELP = "Print what is in a dataset and draw a contact sheet of sample images"
BAR, MOST_CLASSES, COLUMNS = 40, 50, 12
TILES, TILES_OF_CLASS = 144, 12  # of the contact sheet, at most
MOST_PIXELS = 400  # of a side of an image in it, which is 88 there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the dataset's folder")
    help = "the PNG file of the contact sheet (default: DIR_sheet.png beside the folder)"
    parser.add_argument("--sheet", metavar="FILE", help=help)


def run(args: argparse.Namespace) -> None:
    from .sheet import Tile, draw_groups  # matplotlib takes a second to import

    folder, sheet = args.folder, args.sheet or f"{os.path.abspath(args.folder)}_sheet.png"
    if not sheet.lower().endswith(".png"):
        raise InputError(f"--sheet {sheet}: the name must end in .png")
    with dataset_in_use(folder):
        dataset = open_dataset(folder, check_hashes=False)
        samples = read_samples(dataset)
    manifest = dataset.manifest
    output(f"{folder}: {manifest.summary}")
    figures = [" ".join(f"{value:.1f}" for value in each) for each in (manifest.mean, manifest.std)]
    output(f"pixels: mean {figures[0]}, standard deviation {figures[1]} (0 to 255)")
    if manifest.skipped:
        output(f"skipped: {count(len(manifest.skipped), 'image')}, listed in {MANIFEST_NAME}")
    print_histogram(manifest)
    with os_errors("write the contact sheet", sheet):
        tiles = [Tile(caption(manifest, label), pixels) for label, pixels in samples]
        some = f" ({len(tiles)} of them)" if len(tiles) < manifest.num_records else ""
        draw_groups(sheet, [(manifest.summary + some, tiles)], COLUMNS)
    output(f"contact sheet: {sheet if args.sheet else os.path.relpath(sheet)}")


def caption(manifest: Manifest, label: int) -> str:
    """Return a class's number, which every font has, and its name."""
    return one_line(f"{label} {manifest.class_names[label]}" if manifest.class_names else label)


def read_samples(dataset: Dataset) -> list[tuple[int, np.ndarray]]:
    """Return (label, pixels) of images of each class, evenly from its first to its last.

    Pixels are gray or RGB.
    """
    counts = {int(label): n for label, n in dataset.manifest.label_counts.items() if n}
    most = min(TILES_OF_CLASS, max(1, TILES // len(counts)))  # of a class
    shown, samples, seen = set(sorted(counts)[:TILES]), [], Counter()
    with decoder_messages:
        for path, _, _, row, image in read_records(dataset):
            seen[row.label] += 1
            number, total = seen[row.label], counts.get(row.label)
            if row.label in shown and number * most // total > (number - 1) * most // total:
                try:
                    pixels = decode(image, read_header(image))
                except BadImage as error:
                    where = f"{path}, record {row.record}"
                    raise InputError(f"{where}: invalid image: {error}") from None
                step = -(-max(pixels.shape) // MOST_PIXELS)  # not to hold 144 large photos
                pixels = pixels[::step, ::step].copy()
                samples.append((row.label, pixels if pixels.ndim == 2 else pixels[:, :, ::-1]))
    return sorted(samples, key=lambda sample: sample[0])


def print_histogram(manifest: Manifest) -> None:
    """Print a line for each class: name, count, bar; the fifty largest where there are more."""
    counts = {int(label): number for label, number in manifest.label_counts.items()}
    shown = sorted(sorted(counts, key=counts.get, reverse=True)[:MOST_CLASSES])
    names = {n: one_line(manifest.class_names[n] if manifest.class_names else n) for n in shown}
    width, most = min(30, max(map(len, names.values()))), max(counts.values())
    for label, name in names.items():
        bar = "█" * round(BAR * counts[label] / most)
        output(f"  {name[:30]:>{width}}  {counts[label]:>{len(f'{most:,}')},}  {bar}".rstrip())
    if len(counts) > MOST_CLASSES:
        output(f"  … and {len(counts) - MOST_CLASSES:,} smaller classes")
