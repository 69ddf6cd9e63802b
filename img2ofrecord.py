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

Read main() -> write_parts() -> pack_chunk(), in worker processes ->
encode_img_file() and ndarray2ofrecords(). Results are printed to stdout,
everything else to stderr. Exit code 2: the input is wrong; each problem is one
line, and the dataset that was there before is untouched.
"""

from runtime.environment import check_environment

check_environment(__name__)

import io
import os
import time
from contextlib import closing
from functools import partial
from typing import BinaryIO

from ofrecord.headers import BadImage, read_header
from ofrecord.images import (
    FORMATS,
    MAX_FILE_SIZE,
    STORED_UNCHANGED,
    EncodedImage,
    ImageOptions,
    decode,
    decoder_messages,
    encode,
    may_be_quick,
    resize,
)
from ofrecord.labels import Samples
from ofrecord.manifest import Manifest, digest_of
from ofrecord.options import ConvertOptions, parse_options
from ofrecord.packing import (
    Chunk,
    ConversionProgress,
    PackedPart,
    choose_part_num,
    find_max_value,
    invalid_images,
    pack_all,
)
from ofrecord.plan import Plan, make_manifest
from ofrecord.record import LENGTH, Label, reused_record
from ofrecord.report import report, report_conflicts, report_dry_run
from ofrecord.resume import begin, keep, make_plan, open_writers, report_jobs, stamp_of
from ofrecord.sources import read_samples
from ofrecord.splits import split
from ofrecord.statistics import ImageStatistics, sampling_interval
from ofrecord.survey import survey
from ofrecord.writer import DatasetWriter
from runtime.atomic import read_with_status
from runtime.cli import output, run_main


def main() -> None:
    options = parse_options()
    print_settings(options)
    samples = read_samples(options)
    fields = {}  # of the manifest
    with open_writers(options) as writers:
        if options.max_value == "auto":  # of the 16-bit images
            options = find_max_value(samples, options)
        sets = {"train": samples}
        if options.skip_bad or options.is_split:
            # A first pass over all images finds the invalid ones and the copies (by digests).
            look = partial(pack_chunk, options, 0)
            samples, digests, fields = survey(look, samples, options, writers["train"].staging)
            sets = split(samples, digests, options)
            if options.is_split:
                names = [subset.names for subset in sets.values()]
                fields["split_id"] = digest_of([names, digests])
        part_nums = choose_part_num(sets, options)  # a small validation set has fewer
        manifests = {}
        for name, subset in sets.items():
            plan = make_plan(subset, part_nums[name], options, fields)
            manifests[name] = write_parts(writers[name], plan, subset, options)
        for name, manifest in manifests.items():
            if options.dry_run:  # its writers wrote nothing
                report_dry_run(options.folders[name], manifest)
            elif not options.job:  # `python -m ofrecord finish` commits what all jobs wrote
                writers[name].commit(manifest)
    if not options.dry_run:
        output("Process image successfully !!!")


def print_settings(options: ConvertOptions) -> None:
    output(
        f"The image root is:  {options.image_root}",
        f"The amount of OFRecord data part is:  {options.part_num}",
        "The directory of Labels is:  "
        + (options.image_root if options.class_folders else options.label_dir),
        f"The image format is:  {options.img_format}",
        f"The OFRecord save directory is:  {options.save_dir}",
        "Start Processing......",
    )


# -- encode ---------------------------------------------------------------------


def encode_img_file(
    filename: str, ext: str = ".jpg", options: ImageOptions | None = None, measured: bool = True
) -> EncodedImage:
    """Read an image file and return it as it is stored in a record, encoded as ``ext``.

    A PNG or JPEG of that format, size and color is stored unchanged if OneFlow
    decodes it as OpenCV does; anything else is decoded and encoded again. If its pixels are not
    to be ``measured``, for the dataset's mean and standard deviation, it may be decoded at an
    eighth of its size. Raises BadImage for what is not a whole image and OSError for a file that
    cannot be read.
    """
    options = options or ImageOptions()
    data, status = read_with_status(filename, MAX_FILE_SIZE)
    header, stamp = read_header(data), stamp_of(status)
    reason = header.reencode_reason  # such as "CMYK", which OneFlow decodes in its own way
    if header.kind != FORMATS[ext] or header.kind not in STORED_UNCHANGED:
        reason = reason or f"{header.kind} to {FORMATS[ext]}"
    elif options.color != "auto" and header.gray != (options.color == "gray"):
        reason = reason or f"to {options.color}"
    if not (measured or reason) and may_be_quick(header, options.size):
        pixels = decode(data, header, quick=True)  # raises BadImage as a full decode does
        channels = 1 if header.gray else 3
        return EncodedImage(data, header.size, channels, pixels, None, reduced=True, stamp=stamp)
    pixels = decode(data, header, options)
    if options.size and pixels.shape[1::-1] != options.size:
        reason = reason or "resized"
        pixels = resize(pixels, options.size, options.fit, options.background)
    if reason:
        data = encode(pixels, ext, options.quality)
    channels = 1 if pixels.ndim == 2 else 3
    size = pixels.shape[1::-1]
    return EncodedImage(data, size, channels, pixels, reason, header.several, stamp=stamp)


# -- pack -----------------------------------------------------------------------


def ndarray2ofrecords(
    dsfile: BinaryIO, dataname: str, encoded_data: bytes, labelname: str, encoded_label: Label
) -> int:
    """Pack one image and its label into a record, write it, and return the number of bytes.

    (The names are the tutorial's: the data are an image file's bytes.) The record is an OFRecord
    with a bytes feature (``dataname``: the encoded image) and an int32 feature (``labelname``:
    the label, or a sequence of them), which is a float feature for a sequence with floats;
    before it comes its length, 8 bytes little-endian. ``dsfile`` is any binary file, here a
    chunk's buffer. Raises ValueError for a label that does not fit in int32, which
    read_samples() refuses.
    """
    labels = encoded_label if hasattr(encoded_label, "__len__") else [encoded_label]
    kind = "float_list" if float in map(type, labels) else "int32_list"
    # One record is filled again and again; the other two are the values of its features.
    record, images, values = reused_record(dataname, labelname, kind, len(labels))
    images[0] = encoded_data
    values[:] = labels
    # deterministic: a protobuf map has no order of its own, and the same
    # images should give the same bytes every time.
    serialized = record.SerializeToString(deterministic=True)
    return dsfile.write(LENGTH.pack(len(serialized)) + serialized)


def pack_chunk(
    options: ConvertOptions, interval: int, images: list[tuple[str, Label]], first: int = 0
) -> Chunk:
    """Read, encode and pack images, given as (name, label); in a worker process.

    ``first`` is the number of the first; every ``interval``-th is measured, and none if it is 0.
    """
    packed, saved, problems, stamps = io.BytesIO(), [], [], []
    statistics = ImageStatistics(sampled=interval > 1)
    ext, image_options = options.img_format, options.image_options
    features = options.image_feature, options.label_feature
    folder = os.path.join(options.image_root, "")  # ends in a slash
    with decoder_messages:
        for number, (name, label) in enumerate(images, first):
            measured = interval > 0 and number % interval == 0
            try:
                image = encode_img_file(folder + name, ext, image_options, measured)
            except FileNotFoundError:
                problems.append((name, "missing, but it has a label"))
            except OSError as error:
                problems.append((name, f"cannot be read: {error.strerror}"))
            except BadImage as error:
                problems.append((name, f"invalid image: {error}"))
            except MemoryError:
                problems.append((name, "too large: out of memory"))
            else:
                ndarray2ofrecords(packed, features[0], image.data, features[1], label)
                saved.append(name)
                stamps.append(image.stamp)
                statistics.add(image, measured)
    return Chunk(packed.getvalue(), saved, problems, statistics, b"".join(stamps))


# -- write ----------------------------------------------------------------------


def write_parts(
    writer: DatasetWriter, plan: Plan, samples: Samples, options: ConvertOptions
) -> Manifest | None:
    """Write the parts of a dataset that are not finished yet; with ``--job`` a share of them.

    Returns the dataset's manifest, or None with ``--job``. Raises InputErrors with every image
    that is missing or invalid, after looking at all.
    """
    start, problems = time.perf_counter(), []
    parts = begin(writer, plan, samples, options)
    num_images = sum(map(len, parts.values()))
    pack = partial(pack_chunk, options, sampling_interval(len(samples), options.img_format))
    chunks = pack_all(pack, samples, parts.values(), options)  # in order, none across two parts
    with ConversionProgress(num_images, options) as progress, closing(chunks):
        for number, part in parts.items():
            packed = PackedPart()
            with writer.new_part(number, len(part)) as file:
                while packed.num_images < len(part):
                    chunk = next(chunks)
                    file.write(chunk.data)
                    packed.add(chunk)
                    progress.saved(chunk)
            problems += packed.problems
            if not packed.problems:
                keep(writer, packed.finish(plan.digest, file.part))
    if problems:
        if len(parts) == plan.part_num:  # no earlier run left a part to continue with
            writer.clear()
        raise invalid_images(problems, options, writer.folder)
    if options.job:
        return report_jobs(writer, plan)
    manifest, statistics = make_manifest(plan, writer.staging)
    report(writer.folder, manifest, statistics, time.perf_counter() - start, num_images)
    report_conflicts(samples, statistics.digests, options.image_root)
    return manifest


if __name__ == "__main__":
    run_main(main)
