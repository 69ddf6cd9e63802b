"""Look at a dataset: ``python -m ofrecord check DIR`` and ``python -m ofrecord show DIR``."""

from .environment import check_environment

check_environment(__name__)

import mmap
import os
from collections import Counter

import cv2
from tqdm import tqdm

from .check import check_every_byte, find_parts, read_image
from .cli import ArgumentParser, InputError, InputErrors, run
from .images import BadImage, DecoderNoise
from .manifest import MANIFEST_NAME, load_manifest
from .record import IMAGE_FEATURE, LABEL_FEATURE, BadRecord, read_record, split_records


def main():
    args = parse_args()
    args.action(args)


def parse_args():
    parser = ArgumentParser(prog="python -m ofrecord", description="Look at an OFRecord dataset of images.")
    actions = parser.add_subparsers(metavar="check|show", required=True)
    for name, action, text in (
            ("check", check, "read every byte again and name what is wrong by part and record"),
            ("show", show, "print what is in it and draw a contact sheet of sample images")):
        command = actions.add_parser(name, help=text, description=text.capitalize() + ".")
        command.set_defaults(action=action)
        command.add_argument("folder", metavar="DIR", help="the dataset's folder")
        command.add_argument("--image_feature", default=IMAGE_FEATURE, metavar="NAME",
                             help="the name of the records' image feature (default: %(default)s)")
        command.add_argument("--label_feature", default=LABEL_FEATURE, metavar="NAME",
                             help="the name of the records' label feature (default: %(default)s)")
    command.add_argument("--sheet", metavar="FILE",
                         help="the PNG file of the contact sheet (default: DIR_sheet.png beside the folder)")
    return parser.parse_args()


def check(args):
    """Print a line for each part and one for the whole. Raises InputErrors with all that is wrong."""
    problems, records, size = [], 0, 0
    for report in check_every_byte(args.folder, args.image_feature, args.label_feature,
                                   workers=len(os.sched_getaffinity(0))):
        problems += report.problems
        if report.file is None:
            continue
        records += report.records
        size += report.bytes
        print("{}: {:,} records, {:,} bytes, {}".format(
            report.file, report.records, report.bytes,
            "{:,} problems".format(len(report.problems)) if report.problems else "good"), flush=True)
    if problems:
        raise InputErrors(problems, "{:,} problems in {}".format(len(problems), args.folder))
    print("{}: {:,} records, {:,} bytes, every one is good".format(args.folder, records, size))
    if not os.path.exists(os.path.join(args.folder, MANIFEST_NAME)):
        print("(there is no {}: nothing says how many there should be)".format(MANIFEST_NAME))


def show(args):
    """Print counts, sizes and a histogram of the classes; draw the contact sheet."""
    from .sheet import Sampler, draw_sheet  # matplotlib takes a second to import

    files = find_parts(args.folder)
    manifest = load_manifest(args.folder) if os.path.exists(os.path.join(args.folder, MANIFEST_NAME)) else None
    sheet = args.sheet or args.folder.rstrip("/") + "_sheet.png"
    sampler, labels, size = Sampler(), Counter(), 0
    for file in tqdm(files, unit="part", disable=None, leave=False):
        path = os.path.join(args.folder, file)
        try:
            with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                size += len(content)
                for index, serialized in enumerate(split_records(content)):
                    data, label = read_record(serialized, index, args.image_feature, args.label_feature)
                    labels[label] += 1
                    sampler.add(label, data)
        except BadRecord as error:
            raise InputError("{}, {}; `python -m ofrecord check {}` tells all".format(path, error, args.folder))
        except (OSError, ValueError) as error:
            raise InputError("cannot read {}: {}".format(path, getattr(error, "strerror", None) or error))

    kept, kinds, sizes, channels = decode_samples(sampler.kept, args.folder)
    names = {label: str(label) for label in labels}
    if manifest and manifest.class_names:
        names.update({label: name for label, name in enumerate(manifest.class_names) if label in names})
    if manifest:
        what = "{} {}".format("gray" if manifest.channels == 1 else "colour", manifest.image_format)
        where = "{}x{}".format(manifest.width, manifest.height) if manifest.width else "of different sizes"
    else:  # from the samples
        what = "{} {}".format("/".join("gray" if n == 1 else "colour" for n in sorted(channels)), "/".join(sorted(kinds)))
        where = "{}x{}".format(*next(iter(sizes))) if len(sizes) == 1 else "of different sizes"
    title = "{:,} {} images {}, {:,} classes".format(sum(labels.values()), what, where, len(labels))
    print("{}: {}, in {} parts, {:,} bytes".format(args.folder, title, len(files), size))
    if manifest:
        print("pixels: mean {}, standard deviation {} (0 to 255)".format(
            *(" ".join("{:.1f}".format(value) for value in values) for values in (manifest.mean, manifest.std))))
        if manifest.left_out:
            print("{:,} images were left out as bad; {} lists them".format(len(manifest.left_out), MANIFEST_NAME))
    else:
        print("there is no {}: this was read from the parts themselves".format(MANIFEST_NAME))
    print_histogram(labels, names)
    try:
        draw_sheet(sheet, title, kept, names, labels)
    except OSError as error:
        raise InputError("cannot write the contact sheet {}: {}".format(sheet, error.strerror))
    print("contact sheet: {}".format(sheet))


def decode_samples(samples, folder):
    """Images of each label, and what kinds, sizes and channels they have. Raises InputError."""
    kept, kinds, sizes, channels = {}, set(), set(), set()
    cv2.setNumThreads(1)
    with DecoderNoise() as noise:
        for label, encoded in samples.items():
            for data in encoded:
                try:
                    header, pixels = read_image(data, noise)
                except BadImage as error:
                    raise InputError("{}: an image with label {} is no good: {}; `python -m ofrecord check {}` tells all"
                                     .format(folder, label, error, folder))
                kept.setdefault(label, []).append(pixels)
                kinds.add(header.kind)
                sizes.add((pixels.shape[1], pixels.shape[0]))
                channels.add(1 if pixels.ndim == 2 else 3)
    return kept, kinds, sizes, channels


BAR, MOST_CLASSES = 40, 50


def print_histogram(labels, names):
    """One line for each class: name, count, bar; the fifty largest where there are more."""
    most = max(labels.values())
    shown = sorted(labels) if len(labels) <= MOST_CLASSES else [label for label, _ in labels.most_common(MOST_CLASSES)]
    width = min(max(len(names[label]) for label in shown), 30)
    for label in shown:
        print("  {:>{}}  {:>{},}  {}".format(names[label][:30], width, labels[label], len("{:,}".format(most)),
                                             "█" * max(1, round(BAR * labels[label] / most))))
    if len(labels) > len(shown):
        print("  … and {:,} smaller classes".format(len(labels) - len(shown)))


if __name__ == "__main__":
    run(main)
