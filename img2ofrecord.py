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

check_environment()

import hashlib
import io
import os
from collections import Counter, namedtuple
from contextlib import closing
from functools import partial

import cv2

from ofrecord.cli import ArgumentParser, InputError, InputErrors, run, talk
from ofrecord.images import (DEFAULT_QUALITY, FORMATS, BadImage, ColorImage, DecoderNoise, PixelStatistics, Target,
                             encode, mean_and_std)
from ofrecord.labels import read_label_file
from ofrecord.manifest import Manifest, Part, part_name, part_sizes
from ofrecord.record import IMAGE_FEATURE, INT32_MAX, INT32_MIN, LABEL_FEATURE, LENGTH, OFRecord
from ofrecord.staging import Staging, flush_to_disk
from ofrecord.workers import ordered_map


def main():
    args = parse_args()
    print_config(args)
    samples = read_label_file(args.label_dir)
    part_files = plan_parts(len(samples), args.part_num)
    with Staging(args.save_dir, [file for file, _ in part_files]) as staging:
        manifest = write_dataset(samples, part_files, staging, args)
        staging.commit(manifest)
    print("Process image successfully !!!")


def parse_args():
    parser = ArgumentParser(description="Turn image files and their labels into an OFRecord dataset.")
    parser.add_argument("--image_root", default="./data/images/train_set/", metavar="DIR",
                        help="the folder of the image files (default: %(default)s)")
    parser.add_argument("--part_num", type=int, default=5, metavar="N",
                        help="how many part files to write, from 1 to the number of images (default: %(default)s)")
    parser.add_argument("--label_dir", default="./data/images/train_label/label.txt", metavar="FILE",
                        help='the label file: one JSON object {"image name": label} a line (default: %(default)s)')
    parser.add_argument("--img_format", default=".png", metavar="EXT", choices=sorted(FORMATS),
                        help="what the images are encoded as in the records: {} (default: %(default)s)"
                        .format(" ".join(FORMATS)))
    parser.add_argument("--save_dir", default="./dataset/", metavar="DIR",
                        help="the folder to write the dataset to; a dataset already there is replaced "
                             "(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="how many processes read and encode images (default: one per CPU core)")
    args = parser.parse_args()
    for name in ("part_num", "workers"):
        if getattr(args, name) < 1:
            parser.error("argument --{}: it must be 1 or more, not {}".format(name, getattr(args, name)))
    if not os.path.isdir(args.image_root):
        what = "is not a folder" if os.path.lexists(args.image_root) else "does not exist"
        parser.error("argument --image_root: {} {}".format(args.image_root, what))
    return args


def print_config(args):
    print("The image root is: ", args.image_root)
    print("The amount of OFRecord data part is: ", args.part_num)
    print("The directory of Labels is: ", args.label_dir)
    print("The image format is: ", args.img_format)
    print("The OFRecord save directory is: ", args.save_dir)
    print("Start Processing......")


def plan_parts(records, part_num):
    """[(file name, number of records)] of the part files. Raises InputError for too many parts."""
    if part_num > records:
        raise InputError("--part_num {} is more than the {} images: every part needs one at least"
                         .format(part_num, records))
    return [(part_name(index), size) for index, size in enumerate(part_sizes(records, part_num))]


# -- encode ---------------------------------------------------------------------

def encode_img_file(filename, ext=".jpg"):
    """Return the bytes to store for one image file, encoded as ``ext``.

    A plain file of that format is returned as it is; any other is decoded and
    encoded. Gray stays gray. Raises BadImage for what is no whole image and
    OSError for a file that cannot be read.
    """
    data = read_file(filename)
    try:
        return encode(data, Target(ext, channels=1, only_gray=True, size=None, quality=DEFAULT_QUALITY)).data
    except ColorImage:
        return encode(data, Target(ext, channels=3, only_gray=False, size=None, quality=DEFAULT_QUALITY)).data


def read_file(filename):
    with open(filename, "rb", buffering=0) as file:
        return file.readall()


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
    record = OFRecord()
    record.feature[dataname].bytes_list.value.append(encoded_data)
    record.feature[labelname].int32_list.value.append(encoded_label)
    # deterministic: a protobuf map has no order of its own, and the same
    # images should give the same bytes every time.
    serialized = record.SerializeToString(deterministic=True)
    return dsfile.write(LENGTH.pack(len(serialized))) + dsfile.write(serialized)


Chunk = namedtuple("Chunk", "records saved problems sizes histogram reasons")
Chunk.__doc__ = """What became of some images that belong to one part file.

records: bytes to append to the part file. saved: the names in them. problems:
a line for each image that is no good. sizes: the set of (width, height).
histogram: of the pixels, (channels, 256). reasons: a Counter of why images
were encoded anew, with None for those passed through.
"""


def pack_chunk(image_root, target, samples):
    """Read, encode and pack some images: the work of a worker process.

    ``samples`` is a list of (name, label). Returns a Chunk. Raises ColorImage
    as Target says.
    """
    packed, saved, problems = io.BytesIO(), [], []
    sizes, pixels, reasons = set(), PixelStatistics(target.channels), Counter()
    with DecoderNoise() as noise:
        for name, label in samples:
            path = os.path.join(image_root, name)
            try:
                image = encode(read_file(path), target, noise)
            except FileNotFoundError:
                problems.append("{} has a label but does not exist".format(path))
            except OSError as error:
                problems.append("cannot read {}: {}".format(path, error.strerror))
            except BadImage as error:
                problems.append("{} is not a good image: {}".format(path, error))
            else:
                ndarray2ofrecords(packed, IMAGE_FEATURE, image.data, LABEL_FEATURE, label)
                saved.append(name)
                sizes.add((image.pixels.shape[1], image.pixels.shape[0]))
                pixels.add(image.pixels)
                reasons[image.reason] += 1
    return Chunk(packed.getvalue(), saved, problems, sizes, pixels.counts(), reasons)


# -- write ----------------------------------------------------------------------

def write_dataset(samples, part_files, staging, args):
    """Write every part file to the staging folder; return the Manifest.

    A dataset is gray where all its images are. That is certain at the end
    only, so gray is tried first and the first colour image starts it again.
    """
    target = Target(args.img_format, channels=1, only_gray=True, size=None, quality=DEFAULT_QUALITY)
    lines = SavedLines(args.image_root)
    try:
        return write_parts(samples, part_files, staging, target, args, lines)
    except ColorImage:
        lines.start_again()
        target = target._replace(channels=3, only_gray=False)
        return write_parts(samples, part_files, staging, target, args, lines)


def write_parts(samples, part_files, staging, target, args, lines):
    """Pack all images into the part files, in the samples' order; return the Manifest.

    Raises InputErrors with every image that is no good, after looking at all.
    """
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    jobs = (samples[first:last] for first, last in plan_chunks(part_files, mean_file_size(samples, args.image_root)))
    chunks = ordered_map(partial(pack_chunk, args.image_root, target), jobs, args.workers,
                         close_in_workers=[staging.lock])
    parts, problems, sizes, histogram, reasons = [], [], set(), 0, Counter()
    with closing(chunks):
        for index, (file_name, records) in enumerate(part_files):
            digest, done = hashlib.sha256(), 0
            with open(staging.part_path(index), "wb") as file:
                while done < records:
                    chunk = next(chunks)
                    file.write(chunk.records)
                    digest.update(chunk.records)
                    done += len(chunk.saved) + len(chunk.problems)
                    lines.saved(chunk.saved)
                    problems += chunk.problems
                    sizes |= chunk.sizes
                    histogram += chunk.histogram
                    reasons += chunk.reasons
                flush_to_disk(file)
                parts.append(Part(file_name, records, file.tell(), digest.hexdigest()))
    if problems:
        raise InputErrors(problems, "{} of {} images are no good; nothing was changed in {}"
                          .format(len(problems), len(samples), args.save_dir))
    report_encoding(reasons)
    mean, std = mean_and_std(histogram)
    width, height = sizes.pop() if len(sizes) == 1 else (None, None)
    return Manifest(parts=parts, image_format=args.img_format, channels=target.channels, width=width, height=height,
                    mean=mean, std=std, labels=dict(Counter(samples.labels)))


# A worker's job: enough images that handing it over costs little, few enough
# that their bytes fit in memory many times.
CHUNK_IMAGES, CHUNK_BYTES = 256, 4 * 2**20


def plan_chunks(part_files, mean_size):
    """Yield (first, last) sample indices of the jobs; no job crosses from one part into the next."""
    step = max(1, min(CHUNK_IMAGES, int(CHUNK_BYTES / max(mean_size, 1))))
    part_start = 0
    for _, records in part_files:
        part_end = part_start + records
        for first in range(part_start, part_end, step):
            yield first, min(first + step, part_end)
        part_start = part_end


def mean_file_size(samples, image_root):
    """Bytes of an image file, from 64 of them spread over the samples."""
    sizes = []
    for name, _ in samples[::max(1, len(samples) // 64)]:
        try:
            sizes.append(os.path.getsize(os.path.join(image_root, name)))
        except OSError:  # reported by the worker that reads it
            pass
    return sum(sizes) / max(len(sizes), 1)


class SavedLines:
    """The tutorial's line for each image; an image is named once, however often it is read."""

    def __init__(self, image_root):
        self.image_root = image_root
        self.printed = self.skip = 0

    def saved(self, names):
        fresh = names[self.skip:]
        self.skip -= len(names) - len(fresh)
        for name in fresh:
            print("{} feature saved".format(os.path.join(self.image_root, name)))
        self.printed += len(fresh)

    def start_again(self):
        self.skip = self.printed


def report_encoding(reasons):
    """Say on stderr how many images were stored as they are, and how many anew and why."""
    passed = reasons.pop(None, 0)
    anew = ", ".join("{:,} {}".format(count, reason) for reason, count in reasons.most_common())
    talk("{:,} images passed through untouched{}".format(passed, "; encoded anew: " + anew if anew else ""))


if __name__ == "__main__":
    run(main)
