"""A dataset that another converter made: parts without a manifest. What is in them is found out by looking.

All of it is looked at before OneFlow starts, since OneFlow aborts the process
on most of what can be wrong:

==========================================  =======================================
what is wrong                               what OneFlow 0.9.0 does
==========================================  =======================================
a part missing, or empty                    aborts
a record cut off, or no OFRecord            aborts
a feature missing, or of another kind       aborts
an image cut off or damaged                 aborts, or an all-zero image
16-bit PNG                                  wrong pixels, in silence
an empty part after the last                aborts (here it is left out)
a label below 0, or beyond the classes      wrong loss, or aborts
==========================================  =======================================
"""

import hashlib
import itertools
import mmap
import os
from array import array
from collections import Counter

import cv2

from .check import find_parts, read_image
from .cli import InputError, talk
from .images import FORMATS, BadImage, DecoderNoise, PixelStatistics, mean_and_std, read_header
from .manifest import MANIFEST_NAME, PART_PREFIX, STAGING_NAME, Manifest, Part, check_dataset
from .record import (
    IMAGE_FEATURE,
    LABEL_FEATURE,
    LENGTH,
    BadRecord,
    MissingFeature,
    read_record,
    split_records,
)

SAMPLED = 500  # PNG and JPEG images that are decoded; of all others the header is read

# Of what Header calls an oddity: OneFlow turns these into other pixels without
# a word. (Of others, such as a palette, it makes much the same as OpenCV.)
MISREAD = {"16-bit", "CMYK", "rare JPEG coding"}


def open_dataset(folder, image_feature=IMAGE_FEATURE, label_feature=LABEL_FEATURE, hashes=None):
    """The Manifest of a dataset to train on, made from its parts where it has none.

    With a manifest it is held against it (check_dataset, which see for
    ``hashes``). Raises InputError for the first thing that is wrong.
    """
    if (os.path.lexists(os.path.join(folder, MANIFEST_NAME)) or os.path.isdir(os.path.join(folder, STAGING_NAME))
            or not os.path.isdir(folder) or not any(name.startswith(PART_PREFIX) for name in os.listdir(folder))):
        if (image_feature, label_feature) != (IMAGE_FEATURE, LABEL_FEATURE) and os.path.isdir(folder):
            talk("{} has a {}, so its features are {!r} and {!r}, not {!r} and {!r}".format(
                folder, MANIFEST_NAME, IMAGE_FEATURE, LABEL_FEATURE, image_feature, label_feature), "warning")
        return check_dataset(folder, hashes)
    return scan_dataset(folder, image_feature, label_feature)


def scan_dataset(folder, image_feature, label_feature):
    """A Manifest of what the part files in a folder hold; says on stderr what was found. Raises InputError."""
    files = _consecutive_parts(folder)
    scan = _Scan(image_feature, label_feature)
    parts = [scan.part(os.path.join(folder, file), file) for file in files]
    scan.sample(folder, parts)
    return scan.manifest(folder, parts)


def _consecutive_parts(folder):
    """Part files by number: 0, 1, 2 … with as many digits each. Empty ones at the end are left out."""
    files = find_parts(folder)
    while len(files) > 1 and os.path.getsize(os.path.join(folder, files[-1])) == 0:
        talk("{} is empty and is left out".format(os.path.join(folder, files.pop())), "warning")
    digits = len(files[0]) - len(PART_PREFIX)
    for index, file in enumerate(files):
        expected = "{}{:0{}d}".format(PART_PREFIX, index, digits)
        if file != expected:
            raise InputError("{} is missing: the parts must be numbered from 0 on, and {} is there".format(
                os.path.join(folder, expected), file))
    return files


class _Scan:
    """What was found so far."""

    def __init__(self, image_feature, label_feature):
        self.image_feature, self.label_feature = image_feature, label_feature
        self.lengths = array("q")  # of all records, in bytes
        self.labels, self.kinds, self.label_kinds = Counter(), Counter(), Counter()
        self.gray, self.oddities = Counter(), Counter()
        self.sizes, self.pixels, self.colorful = Counter(), PixelStatistics(3), False

    def part(self, path, file):
        """Read a part's records and the headers of its images. Returns a Part."""
        index = -1
        try:
            with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for index, serialized in enumerate(split_records(content)):
                    self.lengths.append(len(serialized))
                    data, label = read_record(serialized, index, self.image_feature, self.label_feature, self.label_kinds)
                    header = read_header(data)
                    self.labels[label] += 1
                    self.kinds[header.kind] += 1
                    self.gray[header.gray] += 1
                    if header.oddity in MISREAD:
                        raise BadImage("{}, which OneFlow reads wrongly: convert the images again with img2ofrecord.py"
                                       .format(header.oddity))
                    if header.oddity:
                        self.oddities[header.oddity] += 1
                return Part(file, index + 1, len(content), hashlib.sha256(content).hexdigest())
        except MissingFeature as error:
            raise InputError("{}: {}; name the features with --image_feature and --label_feature".format(path, error))
        except BadRecord as error:
            raise InputError("{}: {}".format(path, error))
        except BadImage as error:
            raise InputError("{}, record {}: its image is no good: {}".format(path, index, error))
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise InputError("cannot read {}: {}".format(path, getattr(error, "strerror", None) or error))

    def sample(self, folder, parts):
        """Decode some of the images, evenly spread; all of them where there are formats whose header does not tell enough."""
        every = max(1, len(self.lengths) // SAMPLED) if self.kinds.keys() <= {"PNG", "JPEG"} else 1
        lengths = iter(self.lengths)
        number = 0
        with DecoderNoise() as noise:
            for part in parts:
                path = os.path.join(folder, part.file)
                with open(path, "rb") as file:
                    position = 0
                    for index, length in enumerate(itertools.islice(lengths, part.records)):
                        position += LENGTH.size
                        if number % every == 0:
                            file.seek(position)
                            self._decode(file.read(length), path, index, noise)
                        position += length
                        number += 1

    def _decode(self, serialized, path, index, noise):
        data, _ = read_record(serialized, index, self.image_feature, self.label_feature)
        try:
            _, pixels = read_image(data, noise)
        except BadImage as error:
            raise InputError("{}, record {}: its image is no good: {}".format(path, index, error))
        if pixels.ndim == 2:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
        self.sizes[pixels.shape[1], pixels.shape[0]] += 1
        self.colorful = self.colorful or bool((pixels != pixels[:, :, :1]).any())
        self.pixels.add(pixels)

    def manifest(self, folder, parts):
        if min(self.labels) < 0:
            raise InputError("{}: label {} is no class: labels count from 0".format(folder, min(self.labels)))
        if len(self.label_kinds) > 1:
            raise InputError("{}: some labels are int32 and some int64".format(folder))
        channels = 3 if self.colorful else 1
        mean, std = mean_and_std(self.pixels.counts())
        (kind, _), = self.kinds.most_common(1)
        width, height = next(iter(self.sizes)) if len(self.sizes) == 1 else (None, None)
        gray_in_color = not self.colorful and self.gray[False]
        sampled = sum(self.sizes.values())
        talk("{} has no {}: made by another converter. Found: {:,} records in {:,} parts; {}; {}{}; "
             "labels {} to {} ({})".format(
                 folder, MANIFEST_NAME, sum(part.records for part in parts), len(parts),
                 ", ".join("{:,} {}".format(count, kind) for kind, count in self.kinds.most_common()),
                 "{}x{}".format(width, height) if width else "sizes that vary",
                 ", gray stored as colour" if gray_in_color else ", colour" if self.colorful else ", gray",
                 min(self.labels), max(self.labels), next(iter(self.label_kinds))))
        talk("mean, standard deviation, size and colour are of {:,} images".format(sampled) +
             ("" if sampled == sum(part.records for part in parts) else "; `python -m ofrecord check` decodes every one"))
        if self.oddities:
            talk("{}: OneFlow may decode some of these a little differently than other programs do: {}".format(
                folder, ", ".join("{:,} {}".format(count, oddity) for oddity, count in self.oddities.most_common())),
                "warning")
        extension = {name: ext for ext, name in reversed(list(FORMATS.items()))}.get(kind, "")
        return Manifest(parts=parts, image_format=extension, channels=channels, width=width, height=height,
                        mean=mean if channels == 3 else mean[:1], std=std if channels == 3 else std[:1],
                        labels=dict(self.labels), image_feature=self.image_feature, label_feature=self.label_feature,
                        label_kind=next(iter(self.label_kinds)),
                        plain_jpeg=channels == 3 and dict(self.kinds) == {"JPEG": sum(self.kinds.values())} and not self.gray[True]
                        and not self.oddities)
