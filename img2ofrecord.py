"""Convert image files and their labels to an OFRecord dataset.

    $ python img2ofrecord.py
    The image root is:  ./data/images/train_set/
    The amount of OFRecord data part is:  5
    The directory of Labels is:  ./data/images/train_label/label.txt
    The image format is:  .png
    The OFRecord save directory is:  ./dataset/
    Start Processing......
    ./data/images/train_set/00000030_3.png feature saved
    ...
    Process image successfully !!!

Read main() first: labels -> encode -> pack -> write. Results are printed to
stdout, everything else to stderr. Exit code 2 means that the input was
invalid, as one line per problem says; an existing dataset is then unchanged.
"""

from runtime.environment import check_environment

check_environment(__name__)

import hashlib
import io
import os
import random
import re
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import cache
from typing import BinaryIO, NamedTuple, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from ofrecord.images import (
    DEFAULT_QUALITY,
    FORMATS,
    BadImage,
    ColorImage,
    DecoderMessages,
    ImageOptions,
    PixelStatistics,
    encode,
    mean_and_std,
)
from ofrecord.labels import (
    Samples,
    list_images,
    read_class_folders,
    read_label_file,
    split_by_class,
)
from ofrecord.manifest import Manifest, Part, digest_of, part_name, part_sizes
from ofrecord.record import IMAGE_FEATURE, INT32_MAX, INT32_MIN, LABEL_FEATURE, LENGTH, OFRecord
from ofrecord.staging import Staging, check_target
from runtime.atomic import flush_to_disk
from runtime.cli import (
    SHOWN_PROBLEMS,
    ArgumentParser,
    InputError,
    InputErrors,
    count,
    first_few,
    log,
    output,
    run_main,
)
from runtime.workers import ordered_map


def main() -> None:
    args = parse_args()
    print_config(args)
    samples = read_labels(args)
    options = ImageOptions(
        ext=args.img_format,
        channels=3 if args.color == "color" else 1,
        only_gray=args.color == "auto",
        size=args.size,
        quality=args.quality,
    )
    if args.dry_run:
        dry_run(samples, options, args)
        return
    skipped = []
    if args.skip_bad:
        samples, options, skipped = skip_invalid(samples, options, args)
    with ExitStack() as stack:
        datasets = []
        for plan in plan_datasets(samples, args):
            part_names = [name for name, _ in plan.part_files]
            staging = stack.enter_context(Staging(plan.folder, part_names))
            datasets.append(StagedDataset(plan.samples, plan.part_files, staging))
        manifests = write_datasets(datasets, options, skipped, args)
        for dataset, manifest in zip(datasets, manifests, strict=True):
            dataset.staging.commit(manifest)
            if args.val_share:
                log(f"{dataset.staging.save_dir}: {count(manifest.num_records, 'image')}")
    output("Process image successfully !!!")


def parse_args() -> Namespace:
    """Return the options, with defaults filled in. Raises InputError for invalid ones."""
    parser = ArgumentParser(
        description="Convert image files and their labels to an OFRecord dataset."
    )
    parser.add_argument(
        "--image_root",
        default="./data/images/train_set/",
        metavar="DIR",
        help="folder of the image files (default: %(default)s)",
    )
    parser.add_argument(
        "--part_num",
        type=int,
        default=5,
        metavar="N",
        help="number of part files to write, from 1 to the number of images (default: %(default)s)",
    )
    parser.add_argument(
        "--label_dir",
        default="./data/images/train_label/label.txt",
        metavar="FILE",
        help='label file: one JSON object {"image name": label} per line or, if its name ends in '
        ".csv, a table with the columns image and label (default: %(default)s)",
    )
    parser.add_argument(
        "--img_format",
        default=".png",
        metavar="EXT",
        choices=sorted(FORMATS),
        help=f"format of the images in the records: {' '.join(FORMATS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--save_dir",
        default="./dataset/",
        metavar="DIR",
        help="folder to write the dataset to; an existing dataset is replaced "
        "(default: %(default)s)",
    )
    more = parser.add_argument_group("beyond the tutorial")
    more.add_argument(
        "--class_folders",
        action="store_true",
        help="instead of a label file: each folder in the image root is a class of that name",
    )
    more.add_argument(
        "--shuffle",
        action="store_true",
        help="write the records in random order; needed where the labels are sorted, as with class "
        "folders, because the reader shuffles within a small buffer only",
    )
    more.add_argument(
        "--val_share",
        type=float,
        metavar="FRACTION",
        help="write this fraction of each class's images, such as 0.1, chosen at random, to a "
        "second dataset, the validation set",
    )
    more.add_argument(
        "--val_dir",
        metavar="DIR",
        help="folder of the validation set (default: --save_dir with _val appended)",
    )
    more.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="random seed of --shuffle and --val_share (default: 0)",
    )
    more.add_argument(
        "--size",
        type=image_size,
        metavar="WxH",
        help="resize the images to this width and height in pixels, such as 28x28",
    )
    more.add_argument(
        "--color",
        choices=["auto", "gray", "color"],
        default="auto",
        help="store one channel or three; auto: one if all images are gray (default: %(default)s)",
    )
    more.add_argument(
        "--quality",
        type=int,
        metavar="Q",
        help=f"JPEG quality of re-encoded images, 1 to 100 (default: {DEFAULT_QUALITY})",
    )
    more.add_argument(
        "--skip_bad",
        action="store_true",
        help="skip missing and invalid images, and list them in dataset.json",
    )
    more.add_argument(
        "--dry_run",
        action="store_true",
        help="check every image, report the plan and all problems, and write nothing",
    )
    more.add_argument(
        "--part_name_suffix_length",
        type=int,
        default=1,
        metavar="N",
        help="digits in the part names, zero-padded: 5 for part-00000 (default: not padded)",
    )
    more.add_argument(
        "--progress",
        choices=["auto", "lines", "bar", "none"],
        default="auto",
        help="print a line per image or show a progress bar on the terminal "
        f"(auto: lines for up to {MAX_LINES:,} images)",
    )
    more.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="number of processes that read and encode images (default: one per CPU core)",
    )
    args = parser.parse_args()

    for name, least, most in (
        ("part_num", 1, None),
        ("workers", 1, None),
        ("quality", 1, 100),
        ("part_name_suffix_length", 1, 9),
    ):
        value = getattr(args, name)
        if value is not None and not least <= value <= (most or value):
            expected = f"from {least} to {most}" if most else f"at least {least}"
            parser.error(f"argument --{name}: must be {expected}, not {value}")
    if args.quality is not None and FORMATS[args.img_format] != "JPEG":
        parser.error(
            f"argument --quality: applies to JPEG only, but --img_format is {args.img_format}"
        )
    if args.seed is not None and not args.shuffle and args.val_share is None:
        parser.error("argument --seed: requires --shuffle or --val_share")
    if args.val_share is not None and not 0 < args.val_share < 1:
        parser.error(
            f"argument --val_share: must be between 0 and 1, such as 0.1, not {args.val_share}"
        )
    if args.val_dir is not None and args.val_share is None:
        parser.error("argument --val_dir: requires --val_share")
    if args.val_share is not None and args.val_dir is None:
        args.val_dir = os.path.join(args.save_dir.rstrip("/") + "_val", "")
    if args.val_dir is not None and os.path.abspath(args.val_dir) == os.path.abspath(args.save_dir):
        parser.error("argument --val_dir: must differ from --save_dir")
    if args.class_folders and args.label_dir != parser.get_default("label_dir"):
        parser.error("argument --class_folders: not allowed with --label_dir")
    if not os.path.isdir(args.image_root):
        what = "is not a folder" if os.path.lexists(args.image_root) else "does not exist"
        parser.error(f"argument --image_root: {args.image_root} {what}")
    args.quality = args.quality or DEFAULT_QUALITY
    return args


def image_size(text: str) -> tuple[int, int]:
    """Return (width, height) in pixels of a text such as ``28x28``, as an argparse type."""
    match = re.match(r"([1-9]\d{0,4})x([1-9]\d{0,4})\Z", text)
    if not match:
        raise ValueError
    return int(match.group(1)), int(match.group(2))


def print_config(args: Namespace) -> None:
    """Print the tutorial's settings, in its words."""
    labels = args.image_root if args.class_folders else args.label_dir
    output(
        f"The image root is:  {args.image_root}",
        f"The amount of OFRecord data part is:  {args.part_num}",
        f"The directory of Labels is:  {labels}",
        f"The image format is:  {args.img_format}",
        f"The OFRecord save directory is:  {args.save_dir}",
        "Start Processing......",
    )


# -- labels ---------------------------------------------------------------------


def read_labels(args: Namespace) -> Samples:
    """Return the images and their labels in the order in which they will be written.

    Logs the files in the image root that are skipped. Raises InputError for
    unusable labels.
    """
    if args.class_folders:
        samples, unused = read_class_folders(args.image_root)
        noun, reason = "file", "without an image file extension"
    else:
        samples = read_label_file(args.label_dir)
        unused = set(list_images(args.image_root)[0]).difference(samples.names)
        noun, reason = "image", "without a label"
    if unused:
        skipped = f"{count(len(unused), noun)} {reason} in {args.image_root}"
        log(f"skipped {skipped}: {first_few(unused)}", "warning")
    if min(samples.labels) < 0:
        log("there are negative labels: lenet_train.py only accepts labels from 0", "warning")
    if args.shuffle:
        order = list(range(len(samples)))
        random.Random(args.seed or 0).shuffle(order)
        samples = samples.take(order)
    return samples


class PlannedDataset(NamedTuple):
    """A dataset to be written."""

    folder: str
    samples: Samples
    part_files: list[tuple[str, int]]  # name and number of records of each part


def plan_datasets(samples: Samples, args: Namespace) -> list[PlannedDataset]:
    """Return the dataset to write and, with --val_share, the validation set split off from it.

    Raises InputError where no image can be split off, and for too many parts.
    """

    def plan(folder, samples, num_parts):
        return PlannedDataset(folder, samples, plan_parts(len(samples), num_parts, args))

    if args.val_share is None:
        return [plan(args.save_dir, samples, args.part_num)]
    train, validation, single = split_by_class(samples, args.val_share, args.seed or 0)
    if single:
        names = [samples.class_names[i] if samples.class_names else str(i) for i in single]
        log(
            f"{count(len(single), 'class')} with a single image, kept in the training set: "
            f"{first_few(names)}",
            "warning",
        )
    if not len(validation):
        raise InputError("--val_share: no class has two images or more, so none can be split")
    return [
        plan(args.save_dir, train, args.part_num),
        plan(args.val_dir, validation, min(args.part_num, len(validation))),
    ]


# -- encode ---------------------------------------------------------------------


def encode_img_file(filename: str, ext: str = ".jpg") -> bytes:
    """Return the bytes to store for one image file, encoded as ``ext``.

    A plain file of that format is stored unchanged; any other is decoded and
    re-encoded. Gray stays gray. Raises BadImage for an invalid image and
    OSError for a file that cannot be read.
    """
    data = read_file(filename)
    options = ImageOptions(ext, channels=1, only_gray=True, size=None, quality=DEFAULT_QUALITY)
    with DecoderMessages() as messages:
        try:
            return encode(data, options, messages).data
        except ColorImage:
            options = options._replace(channels=3, only_gray=False)
            return encode(data, options, messages).data


def read_file(filename: str) -> bytes:
    """Return a file's bytes, in a third of the time that open() takes for small files."""
    # Without blocking: a pipe with an image's name is an empty file, not an endless one.
    descriptor = os.open(filename, os.O_RDONLY | os.O_NONBLOCK)
    try:
        pieces = [os.read(descriptor, 2**16)]
        while len(pieces[-1]) == 2**16:
            pieces.append(os.read(descriptor, os.fstat(descriptor).st_size + 1))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    finally:
        os.close(descriptor)


# -- pack -----------------------------------------------------------------------


def ndarray2ofrecords(
    dsfile: BinaryIO, dataname: str, encoded_data: bytes, labelname: str, encoded_label: int
) -> int:
    """Pack one image and its label into a record and write it to an open binary file.

    The record is an OFRecord with a bytes feature (``dataname``: the encoded
    image) and an int32 feature (``labelname``); on disk its length comes
    first, 8 bytes little-endian. Returns the number of bytes written. Raises
    ValueError for a label that does not fit in int32.
    """
    if not INT32_MIN <= encoded_label <= INT32_MAX:
        raise ValueError(f"label {encoded_label} does not fit in int32")
    record, images, labels = reusable_record(dataname, labelname)
    images[0] = encoded_data
    labels[0] = encoded_label
    # deterministic: a protobuf map has no order, but the same images must always
    # give the same bytes.
    serialized = record.SerializeToString(deterministic=True)
    return dsfile.write(LENGTH.pack(len(serialized))) + dsfile.write(serialized)


@cache
def reusable_record(dataname: str, labelname: str) -> tuple[OFRecord, list[bytes], list[int]]:
    """Return an OFRecord with the two features, and their lists of one value.

    Making a new one for each image takes a third of the time of packing.
    """
    record = OFRecord()
    images = record.feature[dataname].bytes_list.value
    labels = record.feature[labelname].int32_list.value
    images.append(b"")
    labels.append(0)
    return record, images, labels


class Chunk(NamedTuple):
    """The results for some consecutive images of one part file."""

    records: bytes  # to append to the part file
    saved: list[str]  # names of the images in them
    problems: list[tuple[str, str]]  # name and reason of each invalid or missing image
    sizes: set[tuple[int, int]]  # (width, height)
    histogram: np.ndarray  # of the pixels, int64 (channels, 256)
    reencode_reasons: Counter  # number of images by reason, None for those stored unchanged


def pack_chunk(image_root: str, options: ImageOptions, samples: list[tuple[str, int]]) -> Chunk:
    """Read, encode and pack some (name, label) samples: the work of a worker process.

    Raises ColorImage as ImageOptions says.
    """
    packed, saved, problems = io.BytesIO(), [], []
    sizes, pixels, reencode_reasons = set(), PixelStatistics(options.channels), Counter()
    folder = os.path.join(image_root, "")  # ends in a slash
    with DecoderMessages() as messages:
        for name, label in samples:
            try:
                image = encode(read_file(folder + name), options, messages)
            except FileNotFoundError:
                problems.append((name, "missing, but it has a label"))
            except OSError as error:
                problems.append((name, f"cannot be read: {error.strerror}"))
            except BadImage as error:
                problems.append((name, f"invalid image: {error}"))
                messages.take()  # so that the next image is not blamed for them
            else:
                ndarray2ofrecords(packed, IMAGE_FEATURE, image.data, LABEL_FEATURE, label)
                saved.append(name)
                sizes.add(image.pixels.shape[1::-1])  # (width, height)
                pixels.add(image.pixels)
                reencode_reasons[image.reencode_reason] += 1
    return Chunk(packed.getvalue(), saved, problems, sizes, pixels.counts(), reencode_reasons)


# A worker's job: enough images that the cost of handing it over is small, but few
# enough that their bytes fit in memory many times.
CHUNK_IMAGES, CHUNK_BYTES = 256, 4 * 2**20


def pack_all(
    samples: Samples,
    sizes: list[int],
    options: ImageOptions,
    args: Namespace,
    close_in_workers: Iterable[int] = (),
) -> Iterator[Chunk]:
    """Yield the Chunks of all images, in order, packed by args.workers processes.

    ``sizes`` are the parts' numbers of records: each Chunk belongs to one part.
    """
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    step = max(1, min(CHUNK_IMAGES, int(CHUNK_BYTES / mean_file_size(samples, args.image_root))))

    def jobs():
        start = 0
        for size in sizes:
            for first in range(start, start + size, step):
                yield first, min(first + step, start + size)
            start += size

    def pack(job):
        first, last = job
        return pack_chunk(args.image_root, options, samples[first:last])

    return ordered_map(pack, jobs(), args.workers, close_in_workers)


def mean_file_size(samples: Samples, image_root: str) -> float:
    """Return the mean size of an image file in bytes, at least 1, from about 64 samples."""
    sizes = []
    for name, _ in samples[:: max(1, len(samples) // 64)]:
        try:
            sizes.append(os.path.getsize(os.path.join(image_root, name)))
        except OSError:  # reported by the worker that reads it
            pass
    return max(sum(sizes) / max(len(sizes), 1), 1)


Result = TypeVar("Result")


def gray_then_color(
    work: Callable[[ImageOptions], Result], options: ImageOptions, progress: "Progress"
) -> Result:
    """Return ``work(options)``, started again for colour if an image in colour turns up.

    Whether all images of a dataset are gray is only known at the end.
    ``progress`` prints no name twice.
    """
    try:
        return work(options)
    except ColorImage:
        progress.start_again()
        return work(options._replace(channels=3, only_gray=False))


# -- write ----------------------------------------------------------------------


def plan_parts(num_records: int, num_parts: int, args: Namespace) -> list[tuple[str, int]]:
    """Return the name and number of records of each part. Raises InputError for too many parts."""
    if num_parts > num_records:
        raise InputError(
            f"--part_num {num_parts} is more than the number of images ({num_records:,}): "
            "each part needs at least one"
        )
    return [
        (part_name(index, args.part_name_suffix_length), size)
        for index, size in enumerate(part_sizes(num_records, num_parts))
    ]


class StagedDataset(NamedTuple):
    """A dataset that is being written."""

    samples: Samples
    part_files: list[tuple[str, int]]  # name and number of records of each part
    staging: Staging


def write_datasets(
    datasets: list[StagedDataset],
    options: ImageOptions,
    skipped: list[tuple[str, str]],
    args: Namespace,
) -> list[Manifest]:
    """Write all part files to their staging folders and return the datasets' manifests.

    The datasets are either all gray or all in colour. Raises InputErrors with
    every invalid image, after all images were read.
    """
    locks = [dataset.staging.lock for dataset in datasets]

    def write(options):
        return [write_parts(dataset, options, args, progress, locks) for dataset in datasets]

    with Progress(sum(len(dataset.samples) for dataset in datasets), args) as progress:
        written = gray_then_color(write, options, progress)
    together = sum((totals for _, totals in written), Totals())
    if together.problems:
        folders = " and ".join(dataset.staging.save_dir for dataset in datasets)
        raise together.errors(args, f"nothing was changed in {folders}")
    together.report()
    split_id = None
    if len(datasets) > 1:
        split_id = digest_of([dataset.samples.names for dataset in datasets])
    return [
        make_manifest(dataset.samples, parts, totals, skipped, split_id, args)
        for dataset, (parts, totals) in zip(datasets, written, strict=True)
    ]


def make_manifest(
    samples: Samples,
    parts: list[Part],
    totals: "Totals",
    skipped: list[tuple[str, str]],
    split_id: str | None,
    args: Namespace,
) -> Manifest:
    """Return the manifest of a dataset whose parts are written."""
    mean, std = mean_and_std(totals.histogram)
    width, height = next(iter(totals.sizes)) if len(totals.sizes) == 1 else (None, None)
    return Manifest(
        parts=parts,
        image_format=args.img_format,
        channels=len(totals.histogram),
        width=width,
        height=height,
        mean=mean,
        std=std,
        labels=dict(Counter(samples.labels)),
        class_names=samples.class_names,
        split_id=split_id,
        skipped=[{"file": name, "reason": reason} for name, reason in skipped],
    )


def write_parts(
    dataset: StagedDataset,
    options: ImageOptions,
    args: Namespace,
    progress: "Progress",
    locks: list[int],
) -> tuple[list[Part], "Totals"]:
    """Write a dataset's part files in the samples' order."""
    samples, part_files, staging = dataset
    sizes = [size for _, size in part_files]
    chunks = pack_all(samples, sizes, options, args, close_in_workers=locks)
    parts, totals = [], Totals()
    with closing(chunks):
        for index, (file_name, num_records) in enumerate(part_files):
            digest, num_done = hashlib.sha256(), 0
            with open(staging.part_path(index), "wb") as file:
                while num_done < num_records:
                    chunk = next(chunks)
                    file.write(chunk.records)
                    digest.update(chunk.records)
                    num_done += len(chunk.saved) + len(chunk.problems)
                    totals.add(chunk)
                    progress.update(chunk)
                flush_to_disk(file)
                parts.append(Part(file_name, num_records, file.tell(), digest.hexdigest()))
    return parts, totals


# -- check without writing ------------------------------------------------------------


def encode_all(samples: Samples, options: ImageOptions, args: Namespace) -> "Totals":
    """Read and encode every image without writing anything."""

    def encode_samples(options):
        totals = Totals()
        with closing(pack_all(samples, [len(samples)], options, args)) as chunks:
            for chunk in chunks:
                totals.add(chunk)
                progress.update(chunk)
        return totals

    with Progress(len(samples), args, lines=False) as progress:
        return gray_then_color(encode_samples, options, progress)


def skip_invalid(
    samples: Samples, options: ImageOptions, args: Namespace
) -> tuple[Samples, ImageOptions, list[tuple[str, str]]]:
    """Find the invalid images before anything is written, so that the parts are of equal size.

    Returns the valid Samples, the ImageOptions with the number of channels
    determined, and the (name, reason) of each invalid image. Raises InputError
    where none is valid.
    """
    totals = encode_all(samples, options, args)
    invalid = {name for name, _ in totals.problems}
    for line in totals.problem_lines(args)[:SHOWN_PROBLEMS]:
        log(f"skipped: {line}", "warning")
    if invalid:
        log(
            f"skipped {len(invalid):,} of {count(len(samples), 'image')}; dataset.json lists them",
            "warning",
        )
    if len(invalid) == len(samples):
        raise InputError(f"no valid images in {args.image_root}; nothing was written")
    return (
        samples.without(invalid),
        options._replace(channels=len(totals.histogram), only_gray=False),
        totals.problems,
    )


def dry_run(samples: Samples, options: ImageOptions, args: Namespace) -> None:
    """Print what a run would do. Raises InputErrors with all problems that it would meet."""
    totals = encode_all(samples, options, args)
    valid = samples.without(name for name, _ in totals.problems) if args.skip_bad else samples
    problems = [] if args.skip_bad else totals.problem_lines(args)
    try:
        plans = plan_datasets(valid, args)
        for plan in plans:
            check_target(plan.folder, [name for name, _ in plan.part_files])
        color = "gray" if len(totals.histogram) == 1 else "colour"
        images = (
            f"{count(len(valid), color + ' image')} in {count(len(set(valid.labels)), 'class')}"
        )
        parts = "; validation set: ".join(describe_parts(plan.part_files) for plan in plans)
        output(f"Dry run: {images}, {count(totals.bytes, 'byte')}, {parts}; nothing was written")
    except InputError as error:
        problems.append(str(error))
    totals.report()
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'problem')}; nothing was written")
    for line in totals.problem_lines(args)[:SHOWN_PROBLEMS]:
        log(f"would be skipped: {line}", "warning")


def describe_parts(part_files: list[tuple[str, int]]) -> str:
    """Return the number of parts and of their records: ``5 parts of 9 or 10 records``."""
    *smaller, largest = sorted({size for _, size in part_files})
    sizes = " or ".join([f"{size:,}" for size in smaller] + [count(largest, "record")])
    return f"{count(len(part_files), 'part')} of {sizes}"


# -- progress and totals --------------------------------------------------------------


class Totals:
    """The sum of Chunks."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []  # name and reason
        self.sizes: set[tuple[int, int]] = set()  # (width, height); where they vary, at least two
        self.histogram: np.ndarray | int = 0  # int64 (channels, 256), or 0 for no Chunks
        self.reencode_reasons = Counter()  # None: stored unchanged
        self.bytes = 0  # of all records
        self._start = time.perf_counter()

    def add(self, chunk: Chunk) -> None:
        """Add a Chunk."""
        self.problems += chunk.problems
        if len(self.sizes) < 2:
            self.sizes |= chunk.sizes
        self.histogram = self.histogram + chunk.histogram
        self.reencode_reasons += chunk.reencode_reasons
        self.bytes += len(chunk.records)

    def __add__(self, other: "Totals") -> "Totals":
        both = Totals()
        both.problems = self.problems + other.problems
        both.sizes = self.sizes | other.sizes
        both.histogram = self.histogram + other.histogram
        both.reencode_reasons = self.reencode_reasons + other.reencode_reasons
        both.bytes = self.bytes + other.bytes
        both._start = min(self._start, other._start)
        return both

    def problem_lines(self, args: Namespace) -> list[str]:
        """Return the problems, one line each."""
        root = args.image_root
        return [f"{os.path.join(root, name)}: {reason}" for name, reason in self.problems]

    def errors(self, args: Namespace, consequence: str) -> InputErrors:
        """Return the exception that reports the problems."""
        images = count(len(self.problems), "invalid image")
        return InputErrors(
            self.problem_lines(args), f"{images}; {consequence} (use --skip_bad to skip them)"
        )

    def report(self) -> None:
        """Log how many images are stored unchanged, how many re-encoded and why, and the speed."""
        num_images, seconds = sum(self.reencode_reasons.values()), time.perf_counter() - self._start
        reencoded = ", ".join(
            f"{number:,} {reason}"
            for reason, number in self.reencode_reasons.most_common()
            if reason
        )
        unchanged = f"{count(self.reencode_reasons[None], 'image')} stored unchanged"
        log(
            f"{unchanged}{'; re-encoded: ' + reencoded if reencoded else ''} "
            f"({seconds:.1f} s, {num_images / seconds:,.0f} images/s)"
        )


MAX_LINES = 1000


class Progress:
    """Prints the tutorial's line for each image to stdout, or shows a bar on a terminal's stderr.

    An image's line is printed once, even if the image is read twice.
    """

    def __init__(self, num_images: int, args: Namespace, lines: bool = True) -> None:
        self._root = args.image_root
        auto = "lines" if num_images <= MAX_LINES and lines else "bar"
        kind = auto if args.progress == "auto" else args.progress
        self._lines = kind == "lines" and lines
        self._bar = tqdm(total=num_images, unit="image", disable=None if kind == "bar" else True)
        self._num_printed = self._num_to_skip = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, chunk: Chunk) -> None:
        """Report the images of a Chunk."""
        self._bar.update(len(chunk.saved) + len(chunk.problems))
        if self._lines:
            new = chunk.saved[self._num_to_skip :]
            self._num_to_skip -= len(chunk.saved) - len(new)
            self._num_printed += len(new)
            output(*(f"{os.path.join(self._root, name)} feature saved" for name in new))

    def start_again(self) -> None:
        """Start again from the first image, without printing any line twice."""
        self._num_to_skip = self._num_printed
        self._bar.reset()


if __name__ == "__main__":
    run_main(main)
