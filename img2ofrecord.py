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

Results are printed to stdout, everything else to stderr. Exit code 2: the input is wrong; each
problem is one line, and the dataset that was there before is untouched.
"""

from runtime.environment import check_environment

check_environment(__name__)

import io
from typing import BinaryIO

from ofrecord import images
from ofrecord.convert.commit import commit
from ofrecord.convert.datasets import open_folders, plan_datasets
from ofrecord.convert.options import ConvertOptions, parse_options, print_settings
from ofrecord.convert.packed import PackedImages, invalid_images, problem_of, read_image
from ofrecord.convert.packing import pack_in_workers
from ofrecord.convert.parts import PlannedPart
from ofrecord.convert.resume import parts_to_make, report_job
from ofrecord.dataset.images_csv import image_digest
from ofrecord.dataset.manifest import FORMATS
from ofrecord.dataset.statistics import EncodedImage
from ofrecord.labels.sources import read_samples
from ofrecord.record import LENGTH, OFRecord
from runtime.cli import output, run_main


def main() -> None:
    options = parse_options()
    print_settings(options)
    samples = read_samples(options)
    with open_folders(options, samples) as folders:  # locked
        datasets = plan_datasets(folders, samples, options)  # {"train": its parts, …}
        parts = [part for dataset in datasets.values() for part in dataset]
        write_parts(parts, options)
        if options.job:  # the run without --job commits the parts of all jobs
            report_job(parts)
        else:
            commit(datasets.values(), options)
    output("Process image successfully !!!")


def write_parts(parts: list[PlannedPart], options: ConvertOptions) -> None:
    """Write the parts that are not there yet; with ``--job`` a share of them.

    Raises InputErrors with every image that is missing or invalid, after looking at all.
    """
    parts, problems = parts_to_make(parts, options), []
    with pack_in_workers(pack_images, parts, options) as packed:  # some images at a time, in order
        for part in parts:
            problems += part.write(packed, options.skip_bad)
        if problems:
            raise invalid_images(problems, options)


def pack_images(part: PlannedPart, indices: range, options: ConvertOptions) -> PackedImages:
    """Read all, encode all, pack all of some images of a part; in a worker process."""
    packed, files, encoded = PackedImages(indices), {}, {}
    names, labels, image_options = part.samples.names, part.samples.labels, options.image_options
    for index in indices:
        try:
            files[index], packed.stamps[index] = read_image(part.path(index))  # size, time
        except (OSError, MemoryError) as error:
            packed.problems[index] = problem_of(names[index], error)
    with images.decoder_messages:
        for index, data in files.items():
            path, measured = part.path(index), part.is_measured(index)  # for mean and deviation
            try:
                image = encode_img_file(path, options.img_format, image_options, data, not measured)
                packed.statistics.add(image, measured)
                encoded[index] = image.data
            except (images.BadImage, OSError, MemoryError) as error:
                packed.problems[index] = problem_of(names[index], error)
    records, dataname, labelname = io.BytesIO(), options.image_feature, options.label_feature
    for index, data in encoded.items():
        packed.digests.append(image_digest(data))
        ndarray2ofrecords(records, dataname, data, labelname, labels[index])
    packed.records = records.getvalue()
    return packed


def encode_img_file(
    filename: str,
    ext: str = ".jpg",
    options: images.ImageOptions | None = None,
    data: bytes | None = None,
    reduced: bool = False,
) -> EncodedImage:
    """Return an image file as it is stored in a record, encoded as ``ext``.

    A PNG or JPEG of that format, size and color is stored unchanged if OneFlow decodes it as
    OpenCV does; anything else is decoded and encoded again. ``data``: its bytes, if they were
    read before; ``reduced``: a decode at an eighth of its size may do, to see whether it is
    whole. Raises BadImage for what is not a whole image, OSError and MemoryError.
    """
    options = options or images.ImageOptions()
    if data is None:
        with open(filename, "rb") as file:
            data = file.read()
    header = images.read_header(data)
    reason = header.reencode_reason  # such as "CMYK", which OneFlow decodes in its own way
    if header.kind != FORMATS[ext] or header.kind not in ("PNG", "JPEG"):
        reason = reason or f"{header.kind} to {FORMATS[ext]}"
    elif options.color != "auto" and header.gray != (options.color == "gray"):
        reason = reason or f"to {options.color}"
    reduced = reduced and not reason and images.may_be_reduced(header, options.size)
    pixels = images.decode(data, header, options, reduced)
    if reduced:
        return EncodedImage(data, header.size, pixels, None, header.several)
    if options.size and pixels.shape[1::-1] != options.size:
        reason = reason or "resized"
        pixels = images.resize(pixels, options.size, options.fit, options.background)
    if reason:
        data = images.encode(pixels, ext, options.quality)
    return EncodedImage(data, pixels.shape[1::-1], pixels, reason, header.several)


def ndarray2ofrecords(
    dsfile: BinaryIO, dataname: str, encoded_data: bytes, labelname: str, encoded_label: int
) -> int:
    """Pack one image and its label into a record, write it, and return the number of bytes.

    The record is an OFRecord with a bytes feature (``dataname``: the encoded image) and an int32
    feature (``labelname``); before it comes its length, 8 bytes little-endian.
    """
    record = OFRecord()
    record.feature[dataname].bytes_list.value.append(encoded_data)
    record.feature[labelname].int32_list.value.append(encoded_label)
    # deterministic: a map has no order of its own, and the same images should give the same bytes
    serialized = record.SerializeToString(deterministic=True)
    return dsfile.write(LENGTH.pack(len(serialized)) + serialized)


if __name__ == "__main__":
    run_main(main)
