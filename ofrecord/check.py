"""Read every byte of a dataset again and say what is wrong with it, record by record."""

import hashlib
import mmap
import os
from collections import Counter, namedtuple
from functools import partial

import cv2

from .cli import InputError
from .images import FORMATS, BadImage, DecoderNoise, decode, read_header
from .manifest import MANIFEST_NAME, PART_PATTERN, PART_PREFIX, load_manifest
from .record import BadRecord, read_record, split_records
from .workers import ordered_map

PartReport = namedtuple("PartReport", "file records bytes labels kinds sizes channels problems")
PartReport.__doc__ = """What was found in one part file.

records: how many are whole. labels: a Counter. kinds: a Counter of the
images' formats. sizes: of (width, height). channels: of 1 and 3. problems: a
list of lines, each with file, record and reason.
"""


def check_every_byte(folder, image_feature, label_feature, workers):
    """Yield a PartReport for each part, then one of the dataset as a whole (``file`` None).

    Works without a manifest too, as far as the parts themselves tell. Raises
    InputError where there is no dataset at all.
    """
    manifest = load_manifest(folder) if os.path.lexists(os.path.join(folder, MANIFEST_NAME)) else None
    files = find_parts(folder)
    listed = {part.file: part for part in manifest.parts} if manifest else {}
    job = partial(check_part, folder, listed, image_feature, label_feature,
                  manifest and FORMATS.get(manifest.image_format), manifest and manifest.channels)
    labels, problems = Counter(), []
    for report in ordered_map(job, files, workers):
        labels += report.labels
        yield report
    if manifest:
        problems += ["{} is missing".format(os.path.join(folder, name)) for name in listed if name not in files]
        problems += ["{} is not of this dataset: {} does not list it".format(os.path.join(folder, name), MANIFEST_NAME)
                     for name in files if name not in listed]
        if dict(labels) != manifest.labels:
            wrong = sorted(label for label in set(labels) | set(manifest.labels)
                           if labels[label] != manifest.labels.get(label, 0))
            problems.append("{}: label {} is there {} times and {} says {} times".format(
                folder, wrong[0], labels[wrong[0]], MANIFEST_NAME, manifest.labels.get(wrong[0], 0)))
        classes = manifest.classes
        problems += ["{}: label {} is outside the {} classes".format(folder, label, classes)
                     for label in sorted(labels) if not 0 <= label < classes]
    else:
        numbers = sorted(int(name[len(PART_PREFIX):]) for name in files)
        gaps = sorted(set(range(numbers[-1] + 1)) - set(numbers))
        problems += ["{}: part {} is missing, and {} is there".format(folder, gap, files[-1]) for gap in gaps[:3]]
        problems += ["{}: label {} is no class: labels count from 0".format(folder, label)
                     for label in sorted(labels) if label < 0]
    yield PartReport(None, 0, 0, labels, Counter(), Counter(), Counter(), problems)


def find_parts(folder):
    """The names of the part files in a folder, by their numbers. Raises InputError where there are none."""
    if not os.path.isdir(folder):
        raise InputError("no dataset: {} {}".format(
            folder, "is not a folder" if os.path.lexists(folder) else "does not exist"))
    files = sorted((name for name in os.listdir(folder) if PART_PATTERN.match(name)),
                   key=lambda name: (int(name[len(PART_PREFIX):]), name))
    if not files:
        raise InputError("no dataset: there are no part files in {}".format(folder))
    return files


def check_part(folder, listed, image_feature, label_feature, kind, channels, file):
    """Check one part file: framing, hash, records, images. Returns a PartReport.

    ``listed`` maps file names to the manifest's Part; ``kind`` and
    ``channels`` are what the manifest says of the images, or None.
    """
    path = os.path.join(folder, file)
    labels, kinds, sizes, seen_channels, problems = Counter(), Counter(), Counter(), Counter(), []
    records = size = 0
    cv2.setNumThreads(1)
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content, \
                DecoderNoise() as noise:
            part = listed.get(file)
            if part and (size != part.bytes or hashlib.sha256(content).hexdigest() != part.sha256):
                problems.append("{}: {:,} bytes, which are not those that were written (size or SHA-256 differs)"
                                .format(path, size))
            for index, serialized in enumerate(split_records(content)):
                records += 1
                try:
                    data, label = read_record(serialized, index, image_feature, label_feature)
                    labels[label] += 1
                    header, pixels = read_image(data, noise)
                except BadRecord as error:
                    problems.append("{}, {}".format(path, error))
                    continue
                except BadImage as error:
                    problems.append("{}, record {}: its image is no good: {}".format(path, index, error))
                    continue
                here = 1 if header.gray else 3
                kinds[header.kind] += 1
                sizes[pixels.shape[1], pixels.shape[0]] += 1
                seen_channels[here] += 1
                unlike = _unlike(header, here, kind, channels)
                if unlike:
                    problems.append("{}, record {}: {}".format(path, index, unlike))
            if part and records != part.records:
                problems.append("{}: {} records, and {} says {}".format(path, records, MANIFEST_NAME, part.records))
    except BadRecord as error:  # the framing is lost: what follows cannot be read
        problems.append("{}, {}".format(path, error))
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        problems.append("{}: cannot be read: {}".format(path, getattr(error, "strerror", None) or error))
    return PartReport(file, records, size, labels, kinds, sizes, seen_channels, problems)


def read_image(data, noise):
    """Header, with ``gray`` settled, and 8-bit pixels of an encoded image. Raises BadImage."""
    noise.take()  # what the image before, a bad one, left
    header = read_header(data)
    pixels = decode(data, cv2.IMREAD_UNCHANGED if header.gray is None else
                    cv2.IMREAD_GRAYSCALE if header.gray else cv2.IMREAD_COLOR)
    complaint = noise.take()
    if complaint:
        raise BadImage(complaint)
    return header._replace(gray=pixels.ndim == 2), pixels


def _unlike(header, channels, expected_kind, expected_channels):
    """How an image differs from what its dataset promises, or None."""
    if header.oddity:
        return "OneFlow may decode it wrongly ({})".format(header.oddity)
    if expected_kind and header.kind != expected_kind:
        return "it is {}, and {} says {}".format(header.kind, MANIFEST_NAME, expected_kind)
    if expected_channels and expected_kind != "WebP" and channels != expected_channels:
        return "it has {} channels, and {} says {}".format(channels, MANIFEST_NAME, expected_channels)
    return None
