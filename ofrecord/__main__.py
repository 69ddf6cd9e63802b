"""Inspect a dataset: ``python -m ofrecord check DIR`` and ``python -m ofrecord show DIR``."""

from runtime.environment import check_environment

check_environment(__name__)

import mmap
import os
from argparse import Namespace
from collections import Counter

import cv2
import numpy as np
from tqdm import tqdm

from runtime.cli import ArgumentParser, InputError, InputErrors, count, run_main

from .check import check_every_byte, find_parts, read_image
from .images import BadImage, DecoderMessages
from .manifest import MANIFEST_NAME, Manifest, load_manifest
from .record import IMAGE_FEATURE, LABEL_FEATURE, BadRecord, read_record, split_records


def main() -> None:
    args = parse_args()
    args.action(args)


def parse_args() -> Namespace:
    """Return the options. Raises InputError for invalid ones."""
    parser = ArgumentParser(
        prog="python -m ofrecord", description="Inspect an OFRecord dataset of images."
    )
    actions = parser.add_subparsers(metavar="check|show", required=True)
    for name, action, text in (
        ("check", check, "check every byte and report errors by part and record"),
        ("show", show, "print a summary and draw a contact sheet of sample images"),
    ):
        command = actions.add_parser(name, help=text, description=f"{text.capitalize()}.")
        command.set_defaults(action=action)
        command.add_argument("folder", metavar="DIR", help="folder of the dataset")
        command.add_argument(
            "--image_feature",
            default=IMAGE_FEATURE,
            metavar="NAME",
            help="name of the records' image feature (default: %(default)s)",
        )
        command.add_argument(
            "--label_feature",
            default=LABEL_FEATURE,
            metavar="NAME",
            help="name of the records' label feature (default: %(default)s)",
        )
    command.add_argument(
        "--sheet",
        metavar="FILE",
        help="PNG file for the contact sheet (default: DIR_sheet.png beside the folder)",
    )
    return parser.parse_args()


def check(args: Namespace) -> None:
    """Print a line for each part and one for the dataset. Raises InputErrors with all problems."""
    problems, num_records, size = [], 0, 0
    for report in check_every_byte(
        args.folder, args.image_feature, args.label_feature, workers=len(os.sched_getaffinity(0))
    ):
        problems += report.problems
        if report.file is None:
            continue
        num_records += report.num_records
        size += report.bytes
        contents = f"{count(report.num_records, 'record')}, {count(report.bytes, 'byte')}"
        result = count(len(report.problems), "problem") if report.problems else "valid"
        print(f"{report.file}: {contents}, {result}", flush=True)
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {args.folder}")
    print(f"{args.folder}: {count(num_records, 'record')}, {count(size, 'byte')}, all valid")
    if not os.path.exists(os.path.join(args.folder, MANIFEST_NAME)):
        print(f"(there is no {MANIFEST_NAME}: the number of records could not be checked)")


def show(args: Namespace) -> None:
    """Print counts, sizes and a histogram of the classes; draw the contact sheet."""
    from .sheet import Sampler, draw_sheet  # matplotlib takes a second to import

    files = find_parts(args.folder)
    has_manifest = os.path.exists(os.path.join(args.folder, MANIFEST_NAME))
    manifest = load_manifest(args.folder) if has_manifest else None
    sheet = args.sheet or args.folder.rstrip("/") + "_sheet.png"
    sampler, labels, size = Sampler(), Counter(), 0
    for file in tqdm(files, unit="part", disable=None, leave=False):
        path = os.path.join(args.folder, file)
        try:
            with open(path, "rb") as opened:
                with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    size += len(content)
                    for index, serialized in enumerate(split_records(content)):
                        data, label = read_record(
                            serialized, index, args.image_feature, args.label_feature
                        )
                        labels[label] += 1
                        sampler.add(label, data)
        except BadRecord as error:
            raise InputError(f"{path}, {error}; {run_check(args.folder)}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot read {path}: {reason}") from error

    images, kinds, sizes, channels = decode_samples(sampler.samples, args.folder)
    names = {label: str(label) for label in labels}
    if manifest and manifest.class_names:
        names.update(
            {label: name for label, name in enumerate(manifest.class_names) if label in names}
        )
    title = describe_images(sum(labels.values()), manifest, kinds, sizes, channels)
    title += f", {count(len(labels), 'class')}"
    print(f"{args.folder}: {title}, in {count(len(files), 'part')}, {count(size, 'byte')}")
    if manifest:
        mean, std = (
            " ".join(f"{value:.1f}" for value in values) for values in (manifest.mean, manifest.std)
        )
        print(f"pixels: mean {mean}, standard deviation {std} (0 to 255)")
        if manifest.skipped:
            skipped = count(len(manifest.skipped), "invalid image")
            print(f"the converter skipped {skipped}; {MANIFEST_NAME} lists them")
    else:
        print(f"there is no {MANIFEST_NAME}: all figures are from the parts themselves")
    print_histogram(labels, names)
    try:
        draw_sheet(sheet, title, images, names, labels)
    except OSError as error:
        raise InputError(f"cannot write the contact sheet {sheet}: {error.strerror}") from error
    print(f"contact sheet: {sheet}")


def run_check(folder: str) -> str:
    """Return the remedy that messages about damaged datasets end with."""
    return f"`python -m ofrecord check {folder}` reports all errors"


def decode_samples(
    samples: dict[int, list[bytes]], folder: str
) -> tuple[dict[int, list[np.ndarray]], set[str], set[tuple[int, int]], set[int]]:
    """Return the decoded images of each label, and the set of their formats, sizes and channels.

    Raises InputError for an invalid image.
    """
    images, kinds, sizes, channels = {}, set(), set(), set()
    cv2.setNumThreads(1)
    with DecoderMessages() as messages:
        for label, encoded in samples.items():
            for data in encoded:
                try:
                    header, pixels = read_image(data, messages)
                except BadImage as error:
                    raise InputError(
                        f"{folder}: invalid image with label {label}: {error}; {run_check(folder)}"
                    ) from error
                images.setdefault(label, []).append(pixels)
                kinds.add(header.kind)
                sizes.add((pixels.shape[1], pixels.shape[0]))
                channels.add(1 if pixels.ndim == 2 else 3)
    return images, kinds, sizes, channels


def describe_images(
    number: int,
    manifest: Manifest | None,
    kinds: set[str],
    sizes: set[tuple[int, int]],
    channels: set[int],
) -> str:
    """Return a line such as ``50 gray .png images 28x28``, without a manifest from the samples."""
    if manifest:
        colors, formats = {manifest.channels}, manifest.image_format
        size = (manifest.width, manifest.height) if manifest.width else None
    else:
        colors, formats = channels, "/".join(sorted(kinds))
        size = next(iter(sizes)) if len(sizes) == 1 else None
    color = "/".join("gray" if n == 1 else "colour" for n in sorted(colors))
    images = count(number, f"{color} {formats} image")
    return f"{images} {size[0]}x{size[1]}" if size else f"{images} of different sizes"


BAR_LENGTH, MAX_CLASSES = 40, 50


def print_histogram(labels: Counter[int], names: dict[int, str]) -> None:
    """Print a line per class: name, count, bar. Of more than fifty, the largest fifty."""
    largest = max(labels.values())
    if len(labels) <= MAX_CLASSES:
        shown = sorted(labels)
    else:
        shown = [label for label, _ in labels.most_common(MAX_CLASSES)]
    name_width = min(max(len(names[label]) for label in shown), 30)
    count_width = len(f"{largest:,}")
    for label in shown:
        number = labels[label]
        bar = "█" * max(1, round(BAR_LENGTH * number / largest))
        print(f"  {names[label][:30]:>{name_width}}  {number:>{count_width},}  {bar}")
    if len(labels) > len(shown):
        print(f"  … and {count(len(labels) - len(shown), 'smaller class')}")


if __name__ == "__main__":
    run_main(main)
