"""Turn image files and their labels into an OFRecord dataset.

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
stdout, everything else to stderr. Exit code 2 means that something you gave
was wrong, in one line; the dataset that was there before is then untouched.
"""

from ofrecord.environment import check_environment

check_environment(__name__)

import hashlib
import io
import os
import random
import re
import time
from collections import Counter, namedtuple
from contextlib import ExitStack, closing
from functools import lru_cache

import cv2
from tqdm import tqdm

from ofrecord.cli import (
    SHOWN_PROBLEMS,
    ArgumentParser,
    InputError,
    InputErrors,
    run,
    say,
    some,
    talk,
)
from ofrecord.images import (
    DEFAULT_QUALITY,
    FORMATS,
    BadImage,
    ColorImage,
    DecoderNoise,
    PixelStatistics,
    Target,
    encode,
    mean_and_std,
)
from ofrecord.labels import hold_out, list_images, read_class_folders, read_label_file
from ofrecord.manifest import Manifest, Part, digest_of, part_name, part_sizes
from ofrecord.record import IMAGE_FEATURE, INT32_MAX, INT32_MIN, LABEL_FEATURE, LENGTH, OFRecord
from ofrecord.staging import Staging, check_target, flush_to_disk
from ofrecord.workers import ordered_map


def main():
    args = parse_args()
    print_config(args)
    samples = read_labels(args)
    target = Target(args.img_format, 3 if args.color == "color" else 1, args.color == "auto", args.size, args.quality)
    left_out = []
    if args.dry_run:
        return dry_run(samples, target, args)
    if args.skip_bad:
        samples, target, left_out = leave_out_bad(samples, target, args)
    with ExitStack() as stack:
        outputs = []
        for folder, share, part_files in split(samples, args):
            staging = stack.enter_context(Staging(folder, [file for file, _ in part_files]))
            outputs.append(Output(share, part_files, staging))
        for output, manifest in zip(outputs, write_datasets(outputs, target, left_out, args)):
            output.staging.commit(manifest)
            if args.val_share:
                talk("{}: {:,} images".format(output.staging.save_dir, manifest.records))
    say("Process image successfully !!!")


def parse_args():
    parser = ArgumentParser(description="Turn image files and their labels into an OFRecord dataset.")
    parser.add_argument("--image_root", default="./data/images/train_set/", metavar="DIR",
                        help="the folder of the image files (default: %(default)s)")
    parser.add_argument("--part_num", type=int, default=5, metavar="N",
                        help="how many part files to write, from 1 to the number of images (default: %(default)s)")
    parser.add_argument("--label_dir", default="./data/images/train_label/label.txt", metavar="FILE",
                        help='the label file: one JSON object {"image name": label} a line, or, if its name ends in '
                             ".csv, a table with the columns image and label (default: %(default)s)")
    parser.add_argument("--img_format", default=".png", metavar="EXT", choices=sorted(FORMATS),
                        help="what the images are encoded as in the records: {} (default: %(default)s)"
                        .format(" ".join(FORMATS)))
    parser.add_argument("--save_dir", default="./dataset/", metavar="DIR",
                        help="the folder to write the dataset to; a dataset already there is replaced "
                             "(default: %(default)s)")
    more = parser.add_argument_group("beyond the tutorial")
    more.add_argument("--class_folders", action="store_true",
                      help="no label file: each folder in the image root is a class, named by the folder")
    more.add_argument("--shuffle", action="store_true",
                      help="write the records in random order; the reader itself only shuffles a little, so labels "
                           "that come sorted, as from class folders, need it")
    more.add_argument("--val_share", type=float, metavar="SHARE",
                      help="hold out this share of each class's images, 0.1 for a tenth, chosen at random, and write them to "
                           "a second dataset, to validate the training with")
    more.add_argument("--val_dir", metavar="DIR", help="the folder of that second dataset (default: --save_dir with _val)")
    more.add_argument("--seed", type=int, metavar="N", help="of --shuffle and --val_share (default: 0)")
    more.add_argument("--size", type=image_size, metavar="WxH", help="resize the images to this many pixels, such as 28x28")
    more.add_argument("--color", choices=["auto", "gray", "color"], default="auto",
                      help="store one channel or three; auto: gray where all images are gray (default: %(default)s)")
    more.add_argument("--quality", type=int, metavar="Q",
                      help="JPEG quality of what is encoded anew, 1 to 100 (default: {})".format(DEFAULT_QUALITY))
    more.add_argument("--skip_bad", action="store_true",
                      help="leave out images that are missing or damaged, and list them in dataset.json")
    more.add_argument("--dry_run", action="store_true",
                      help="look at every image, tell the plan and every problem, and write nothing")
    more.add_argument("--part_name_suffix_length", type=int, default=1, metavar="N",
                      help="digits in the part names, zero-padded: 5 for part-00000 (default: as many as it takes)")
    more.add_argument("--progress", choices=["auto", "lines", "bar", "none"], default="auto",
                      help="a line for each image, or a bar on the terminal (auto: lines for up to {:,} images)"
                      .format(MOST_LINES))
    more.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
                      help="how many processes read and encode images (default: one per CPU core)")
    args = parser.parse_args()

    for name, least, most in (("part_num", 1, None), ("workers", 1, None), ("quality", 1, 100),
                              ("part_name_suffix_length", 1, 9)):
        value = getattr(args, name)
        if value is not None and not least <= value <= (most or value):
            parser.error("argument --{}: it must be {}, not {}".format(
                name, "from {} to {}".format(least, most) if most else "{} or more".format(least), value))
    if args.quality is not None and FORMATS[args.img_format] != "JPEG":
        parser.error("argument --quality: it is for JPEG, and --img_format is {}".format(args.img_format))
    if args.seed is not None and not args.shuffle and args.val_share is None:
        parser.error("argument --seed: it is the seed of --shuffle and --val_share, of which none is given")
    if args.val_share is not None and not 0 < args.val_share < 1:
        parser.error("argument --val_share: it must be between 0 and 1, such as 0.1, not {}".format(args.val_share))
    if args.val_dir is not None and args.val_share is None:
        parser.error("argument --val_dir: it is the folder of what --val_share holds out, which is not given")
    if args.val_share is not None and args.val_dir is None:
        args.val_dir = os.path.join(args.save_dir.rstrip("/") + "_val", "")
    if args.val_dir is not None and os.path.abspath(args.val_dir) == os.path.abspath(args.save_dir):
        parser.error("argument --val_dir: it is the folder of --save_dir")
    if args.class_folders and args.label_dir != parser.get_default("label_dir"):
        parser.error("argument --class_folders: the labels come from the folders or from --label_dir, not from both")
    if not os.path.isdir(args.image_root):
        what = "is not a folder" if os.path.lexists(args.image_root) else "does not exist"
        parser.error("argument --image_root: {} {}".format(args.image_root, what))
    args.quality = args.quality or DEFAULT_QUALITY
    return args


def image_size(text):
    """argparse's type of ``28x28``: (width, height) in pixels."""
    match = re.match(r"([1-9]\d{0,4})x([1-9]\d{0,4})\Z", text)
    if not match:
        raise ValueError
    return int(match.group(1)), int(match.group(2))


def print_config(args):
    say("The image root is:  {}".format(args.image_root),
        "The amount of OFRecord data part is:  {}".format(args.part_num),
        "The directory of Labels is:  {}".format(args.image_root if args.class_folders else args.label_dir),
        "The image format is:  {}".format(args.img_format),
        "The OFRecord save directory is:  {}".format(args.save_dir),
        "Start Processing......")


# -- labels ---------------------------------------------------------------------

def read_labels(args):
    """The images and their labels, in the order in which they will be written, as Samples.

    Says on stderr which files in the image root it leaves out. Raises
    InputError for labels that cannot be used.
    """
    if args.class_folders:
        samples, unused = read_class_folders(args.image_root)
        why = "{:,} files in {} are no images by their names and are left out: {}"
    else:
        samples = read_label_file(args.label_dir)
        unused = set(list_images(args.image_root)[0]).difference(samples.names)
        why = "{:,} images in {} have no label and are left out: {}"
    if unused:
        talk(why.format(len(unused), args.image_root, some(unused)), "warning")
    if min(samples.labels) < 0:
        talk("there are labels below 0, which are no classes: lenet_train.py will not train on them", "warning")
    if args.shuffle:
        order = list(range(len(samples)))
        random.Random(args.seed or 0).shuffle(order)
        samples = samples.take(order)
    return samples


def split(samples, args):
    """The dataset and, with --val_share, a second one of what is held out of it.

    A list of (folder, Samples, [(part file, number of records)]). Raises
    InputError where nothing can be held out, and for too many parts.
    """
    if args.val_share is None:
        return [(args.save_dir, samples, plan_parts(len(samples), args.part_num, args))]
    train, held_out, single = hold_out(samples, args.val_share, args.seed or 0)
    if single:
        names = samples.class_names
        talk("{:,} classes have a single image, which stays in training: {}".format(
            len(single), some([names[label] if names else str(label) for label in single])), "warning")
    if not len(held_out):
        raise InputError("--val_share: no class has two images, so none can be held out")
    return [(args.save_dir, train, plan_parts(len(train), args.part_num, args)),
            (args.val_dir, held_out, plan_parts(len(held_out), min(args.part_num, len(held_out)), args))]


# -- encode ---------------------------------------------------------------------

def encode_img_file(filename, ext=".jpg"):
    """Return the bytes to store for one image file, encoded as ``ext``.

    A plain file of that format is returned as it is; any other is decoded and
    encoded. Gray stays gray. Raises BadImage for what is no whole image and
    OSError for a file that cannot be read.
    """
    data, gray = read_file(filename), Target(ext, channels=1, only_gray=True, size=None, quality=DEFAULT_QUALITY)
    with DecoderNoise() as noise:
        try:
            return encode(data, gray, noise).data
        except ColorImage:
            return encode(data, gray._replace(channels=3, only_gray=False), noise).data


def read_file(filename):
    """A file's bytes, without the two thirds of the time that open() takes for small ones."""
    descriptor = os.open(filename, os.O_RDONLY | os.O_NONBLOCK)  # a pipe with an image's name is empty, not endless
    try:
        pieces = [os.read(descriptor, 2**16)]
        while len(pieces[-1]) == 2**16:
            pieces.append(os.read(descriptor, os.fstat(descriptor).st_size + 1))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    finally:
        os.close(descriptor)


# -- pack -----------------------------------------------------------------------

def ndarray2ofrecords(dsfile, dataname, encoded_data, labelname, encoded_label):
    """Pack one image and its label into a record and write it to an open binary file.

    The record is an OFRecord with a bytes feature (``dataname``: the encoded
    image) and an int32 feature (``labelname``); on disk its length comes
    first, 8 bytes little-endian. Returns the number of bytes written. Raises
    ValueError for a label that does not fit int32.
    """
    if not INT32_MIN <= encoded_label <= INT32_MAX:
        raise ValueError("label {} does not fit int32".format(encoded_label))
    record, images, labels = reusable_record(dataname, labelname)
    images[0] = encoded_data
    labels[0] = encoded_label
    # deterministic: a protobuf map has no order of its own, and the same
    # images should give the same bytes every time.
    serialized = record.SerializeToString(deterministic=True)
    return dsfile.write(LENGTH.pack(len(serialized))) + dsfile.write(serialized)


@lru_cache(maxsize=None)
def reusable_record(dataname, labelname):
    """An OFRecord with the two features, and their lists of one value: making one anew takes a third of packing."""
    record = OFRecord()
    images = record.feature[dataname].bytes_list.value
    labels = record.feature[labelname].int32_list.value
    images.append(b"")
    labels.append(0)
    return record, images, labels


Chunk = namedtuple("Chunk", "records saved problems sizes histogram reasons")
Chunk.__doc__ = """What became of some images that belong to one part file.

records: bytes to append to the part file. saved: the names in them. problems:
(name, reason) of each image that is no good. sizes: the set of (width,
height). histogram: of the pixels, (channels, 256). reasons: a Counter of why
images were encoded anew, with None for those passed through.
"""


def pack_chunk(image_root, target, samples):
    """Read, encode and pack some images: the work of a worker process.

    ``samples`` is a list of (name, label). Returns a Chunk. Raises ColorImage
    as Target says.
    """
    packed, saved, problems = io.BytesIO(), [], []
    sizes, pixels, reasons = set(), PixelStatistics(target.channels), Counter()
    folder = os.path.join(image_root, "")  # ends in a slash
    with DecoderNoise() as noise:
        for name, label in samples:
            try:
                image = encode(read_file(folder + name), target, noise)
            except FileNotFoundError:
                problems.append((name, "has a label but does not exist"))
            except OSError as error:
                problems.append((name, "cannot be read: {}".format(error.strerror)))
            except BadImage as error:
                problems.append((name, "is not a good image: {}".format(error)))
                noise.take()  # so that the next image is not blamed for it
            else:
                ndarray2ofrecords(packed, IMAGE_FEATURE, image.data, LABEL_FEATURE, label)
                saved.append(name)
                sizes.add(image.pixels.shape[1::-1])  # (width, height)
                pixels.add(image.pixels)
                reasons[image.reason] += 1
    return Chunk(packed.getvalue(), saved, problems, sizes, pixels.counts(), reasons)


# A worker's job: enough images that handing it over costs little, few enough
# that their bytes fit in memory many times.
CHUNK_IMAGES, CHUNK_BYTES = 256, 4 * 2**20


def pack_all(samples, sizes, target, args, close_in_workers=()):
    """Yield the Chunks of all images, in order, packed by args.workers processes.

    ``sizes`` are the parts' numbers of records: no chunk crosses from one part
    into the next.
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
        return pack_chunk(args.image_root, target, samples[first:last])

    return ordered_map(pack, jobs(), args.workers, close_in_workers)


def mean_file_size(samples, image_root):
    """Bytes of an image file, 1 at least, from 64 of them spread over the samples."""
    sizes = []
    for name, _ in samples[::max(1, len(samples) // 64)]:
        try:
            sizes.append(os.path.getsize(os.path.join(image_root, name)))
        except OSError:  # reported by the worker that reads it
            pass
    return max(sum(sizes) / max(len(sizes), 1), 1)


def gray_then_color(work, target, progress):
    """Return ``work(target)``; where a colour image turns up in what was taken for gray, work again in colour.

    A dataset is gray where all its images are, which is certain at the end
    only. ``progress`` names no image twice.
    """
    try:
        return work(target)
    except ColorImage:
        progress.start_again()
        return work(target._replace(channels=3, only_gray=False))


# -- write ----------------------------------------------------------------------

def plan_parts(records, parts, args):
    """[(file name, number of records)] of so many part files. Raises InputError for too many."""
    if parts > records:
        raise InputError("--part_num {} is more than the {} images: every part needs one at least"
                         .format(parts, records))
    return [(part_name(index, args.part_name_suffix_length), size) for index, size in enumerate(part_sizes(records, parts))]


Output = namedtuple("Output", "samples part_files staging")
Output.__doc__ = """A dataset to be written: its Samples, [(part file, number of records)] and the Staging to write them in."""


def write_datasets(outputs, target, left_out, args):
    """Write every part file of the Outputs to their staging folders; return a Manifest of each.

    They are all gray or all colour. Raises InputErrors with every image that
    is no good, after looking at all.
    """
    locks = [output.staging.lock for output in outputs]

    def write(target):
        return [write_parts(output, target, args, progress, locks) for output in outputs]

    with Progress(sum(len(output.samples) for output in outputs), args) as progress:
        written = gray_then_color(write, target, progress)
    together = sum((totals for _, totals in written), Totals())
    if together.problems:
        raise together.errors(args, "nothing was changed in {}".format(" and ".join(
            output.staging.save_dir for output in outputs)))
    together.report()
    halves = digest_of([output.samples.names for output in outputs]) if len(outputs) > 1 else None
    return [make_manifest(output.samples, parts, totals, left_out, halves, args)
            for output, (parts, totals) in zip(outputs, written)]


def make_manifest(samples, parts, totals, left_out, halves, args):
    mean, std = mean_and_std(totals.histogram)
    width, height = next(iter(totals.sizes)) if len(totals.sizes) == 1 else (None, None)
    return Manifest(parts=parts, image_format=args.img_format, channels=len(totals.histogram), width=width,
                    height=height, mean=mean, std=std, labels=dict(Counter(samples.labels)),
                    class_names=samples.class_names, halves=halves,
                    left_out=[{"file": name, "reason": reason} for name, reason in left_out])


def write_parts(output, target, args, progress, locks):
    """Fill an Output's part files in the samples' order. Returns their list of Part and the Totals."""
    samples, part_files, staging = output
    chunks = pack_all(samples, [size for _, size in part_files], target, args, close_in_workers=locks)
    parts, totals = [], Totals()
    with closing(chunks):
        for index, (file_name, records) in enumerate(part_files):
            digest, done = hashlib.sha256(), 0
            with open(staging.part_path(index), "wb") as file:
                while done < records:
                    chunk = next(chunks)
                    file.write(chunk.records)
                    digest.update(chunk.records)
                    done += len(chunk.saved) + len(chunk.problems)
                    totals.add(chunk)
                    progress.done(chunk)
                flush_to_disk(file)
                parts.append(Part(file_name, records, file.tell(), digest.hexdigest()))
    return parts, totals


# -- look, and do not write --------------------------------------------------------

def look_at_all(samples, target, args):
    """Read and encode every image and write nothing. Returns the Totals."""
    def look(target):
        totals = Totals()
        with closing(pack_all(samples, [len(samples)], target, args)) as chunks:
            for chunk in chunks:
                totals.add(chunk)
                progress.done(chunk)
        return totals

    with Progress(len(samples), args, lines=False) as progress:
        return gray_then_color(look, target, progress)


def leave_out_bad(samples, target, args):
    """Find the bad images before anything is written, so that the parts come out equal.

    Returns the good Samples, the Target with its channels settled, and the
    bad images' (name, reason). Raises InputError where none is good.
    """
    totals = look_at_all(samples, target, args)
    bad = {name for name, _ in totals.problems}
    for line in totals.lines(args)[:SHOWN_PROBLEMS]:
        talk("left out: " + line, "warning")
    if bad:
        talk("{:,} of {:,} images are left out, and listed in dataset.json".format(len(bad), len(samples)), "warning")
    if len(bad) == len(samples):
        raise InputError("no good image among the {} in {}; nothing was written".format(len(samples), args.image_root))
    return samples.without(bad), target._replace(channels=len(totals.histogram), only_gray=False), totals.problems


def dry_run(samples, target, args):
    """Print what a run would do. Raises InputErrors with every problem that it would meet."""
    totals = look_at_all(samples, target, args)
    good = samples.without(name for name, _ in totals.problems) if args.skip_bad else samples
    problems = [] if args.skip_bad else totals.lines(args)
    try:
        plans = []
        for folder, share, part_files in split(good, args):
            check_target(folder, [name for name, _ in part_files])
            plans.append("{} in each of {:,} parts".format(
                " or ".join(map(str, sorted({size for _, size in part_files}))), len(part_files)))
        say("Dry run: {:,} {} images in {:,} classes, {:,} bytes, {}; nothing was written"
            .format(len(good), "gray" if len(totals.histogram) == 1 else "colour", len(set(good.labels)), totals.bytes,
                    ", and held out ".join(plans)))
    except InputError as error:
        problems.append(str(error))
    totals.report()
    if problems:
        raise InputErrors(problems, "{:,} problems; nothing was written".format(len(problems)))
    for line in totals.lines(args)[:SHOWN_PROBLEMS]:
        talk("would be left out: " + line, "warning")


# -- what is seen on the way --------------------------------------------------------

class Totals:
    """The sum of all Chunks."""

    def __init__(self):
        self.problems, self.sizes, self.histogram, self.reasons = [], set(), 0, Counter()
        self.bytes, self._start = 0, time.perf_counter()

    def add(self, chunk):
        self.problems += chunk.problems
        if len(self.sizes) < 2:  # one size or several is all that is asked
            self.sizes |= chunk.sizes
        self.histogram = self.histogram + chunk.histogram
        self.reasons += chunk.reasons
        self.bytes += len(chunk.records)

    def __add__(self, other):
        both = Totals()
        both.problems, both.sizes = self.problems + other.problems, self.sizes | other.sizes
        both.histogram, both.reasons = self.histogram + other.histogram, self.reasons + other.reasons
        both.bytes, both._start = self.bytes + other.bytes, min(self._start, other._start)
        return both

    def lines(self, args):
        """The problems, a line each."""
        return ["{} {}".format(os.path.join(args.image_root, name), reason) for name, reason in self.problems]

    def errors(self, args, consequence):
        return InputErrors(self.lines(args), "{:,} images are no good; {} (--skip_bad leaves them out)"
                           .format(len(self.problems), consequence))

    def report(self):
        """Say on stderr how many images are stored as they are, how many anew and why, and how fast."""
        passed, seconds = self.reasons[None], time.perf_counter() - self._start
        anew = ", ".join("{:,} {}".format(count, reason) for reason, count in self.reasons.most_common() if reason)
        talk("{:,} images passed through untouched{} ({:.1f} s, {:,.0f} images/s)".format(
            passed, "; encoded anew: " + anew if anew else "", seconds, sum(self.reasons.values()) / seconds))


MOST_LINES = 1000


class Progress:
    """The tutorial's line for each image on stdout, or a bar on stderr where that is a terminal.

    An image is named once, however often it is read.
    """

    def __init__(self, images, args, lines=True):
        self._root = args.image_root
        auto = "lines" if images <= MOST_LINES and lines else "bar"
        kind = auto if args.progress == "auto" else args.progress
        self._lines = kind == "lines" and lines
        self._bar = tqdm(total=images, unit="image", disable=None if kind == "bar" else True)
        self._named = self._skip = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def done(self, chunk):
        self._bar.update(len(chunk.saved) + len(chunk.problems))
        if self._lines:
            fresh = chunk.saved[self._skip:]
            self._skip -= len(chunk.saved) - len(fresh)
            self._named += len(fresh)
            say(*("{} feature saved".format(os.path.join(self._root, name)) for name in fresh))

    def start_again(self):
        self._skip = self._named
        self._bar.reset()


if __name__ == "__main__":
    run(main)
