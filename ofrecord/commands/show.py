"""``show``: what is in a dataset, as text and as a picture of sample images."""

import argparse
import os
import random
from collections import defaultdict

import numpy as np

from runtime.cli import InputError, count, module_command, one_line, os_errors, output

from ..dataset.images_csv import read_rows
from ..dataset.manifest import MANIFEST_NAME, Manifest
from ..dataset.open_dataset import Dataset, dataset_in_use, open_dataset, read_records
from ..images import BadImage, decode, decoder_messages, read_header

HELP = "Print what is in a dataset and draw a contact sheet of sample images"
BAR, MOST_CLASSES, COLUMNS = 40, 50, 12
TILES, TILES_OF_CLASS = 144, 12  # of the contact sheet, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the dataset's folder")
    help = "the PNG file of the contact sheet (default: DIR_sheet.png beside the folder)"
    parser.add_argument("--sheet", metavar="FILE", help=help)


def run(args: argparse.Namespace) -> None:
    from .sheet import Tile, draw_groups, legible  # matplotlib takes a second to import

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
        tiles = [Tile(legible(name, str(label)), pixels) for name, label, pixels in samples]
        draw_groups(sheet, [(manifest.summary, tiles)], COLUMNS)
    output(f"contact sheet: {sheet if args.sheet else os.path.relpath(sheet)}")


def class_name(manifest: Manifest, label: int) -> str:
    return one_line(manifest.class_names[label] if manifest.class_names else label)


def read_samples(dataset: Dataset) -> list[tuple[str, int, np.ndarray]]:
    """Return (class, label, pixels) of some images of each class, drawn at random: gray or RGB."""
    folder, manifest = dataset
    rows = defaultdict(list)
    for row in read_rows(folder):
        if str(row.label) in manifest.label_counts:  # else the table is not this dataset's
            rows[row.label].append(row[:2])
    number = min(TILES_OF_CLASS, max(1, TILES // max(1, len(rows))))
    rng, chosen = random.Random(0), {}
    for label, places in sorted(rows.items())[:TILES]:
        for place in rng.sample(places, min(number, len(places))):
            chosen[place] = class_name(manifest, label)
    samples = []
    with decoder_messages:
        for path, record, data, label in read_records(folder, manifest):
            if name := chosen.get((os.path.basename(path), record)):
                try:
                    pixels = decode(data, read_header(data))
                except BadImage as error:
                    check = module_command("ofrecord check", folder)
                    reason = f"invalid image: {error}; {check} lists all problems"
                    raise InputError(f"{path}, record {record}: {reason}") from None
                samples.append((name, label, pixels if pixels.ndim == 2 else pixels[:, :, ::-1]))
    return sorted(samples, key=lambda sample: sample[1])


def print_histogram(manifest: Manifest) -> None:
    """Print a line for each class: name, count, bar; the fifty largest where there are more."""
    counts = {int(label): number for label, number in manifest.label_counts.items()}
    shown = sorted(sorted(counts, key=counts.get, reverse=True)[:MOST_CLASSES])
    names = {label: class_name(manifest, label)[:30] for label in shown}
    width, most = max(map(len, names.values())), max(counts.values()) or 1
    for label, name in names.items():
        number = counts[label]
        bar = "█" * max(number > 0, round(BAR * number / most))
        output(f"  {name:>{width}}  {number:>{len(f'{most:,}')},}  {bar}".rstrip())
    if len(counts) > len(shown):
        output(f"  … and {len(counts) - len(shown):,} smaller classes")
