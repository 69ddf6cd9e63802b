"""Datasets that another converter made: a manifest is derived from the part files themselves.

All of it is checked before OneFlow starts, since OneFlow aborts the process
on most errors:

==========================================  =======================================
error                                       what OneFlow 0.9.0 does
==========================================  =======================================
a missing or empty part                     aborts
a truncated record, or not an OFRecord      aborts
a feature missing, or of another type       aborts
a truncated or damaged image                aborts, or an all-zero image
16-bit PNG                                  wrong pixels without an error
an empty part after the last                aborts (skipped here)
a negative label, or one out of range       wrong loss, or aborts
==========================================  =======================================
"""

import hashlib
import itertools
import mmap
import os
from array import array
from collections import Counter

import cv2

from runtime.cli import InputError, count, log

from .check import find_parts, read_image
from .images import FORMATS, BadImage, DecoderMessages, PixelStatistics, mean_and_std, read_header
from .manifest import (
    CONVERT,
    MANIFEST_NAME,
    PART_PREFIX,
    STAGING_NAME,
    Manifest,
    Part,
    check_dataset,
    part_name,
)
from .record import (
    IMAGE_FEATURE,
    LABEL_FEATURE,
    LENGTH,
    BadRecord,
    MissingFeature,
    read_record,
    split_records,
)

# About so many PNG and JPEG images are decoded; of the others, only the header is read.
SAMPLED = 500

# Those reencode reasons for which OneFlow decodes wrong pixels without an error. (For
# others, such as a palette, it decodes nearly the same as OpenCV.)
MISREAD = {"16-bit", "CMYK", "rare JPEG coding"}


def open_dataset(
    folder: str,
    image_feature: str = IMAGE_FEATURE,
    label_feature: str = LABEL_FEATURE,
    hashes: bool | None = None,
) -> Manifest:
    """Return the manifest of a dataset to train on, derived from its parts where it has none.

    A dataset with a manifest is checked against it (for ``hashes`` see
    check_dataset). Raises InputError for the first error found.
    """
    if (
        os.path.lexists(os.path.join(folder, MANIFEST_NAME))
        or os.path.isdir(os.path.join(folder, STAGING_NAME))
        or not os.path.isdir(folder)
        or not any(name.startswith(PART_PREFIX) for name in os.listdir(folder))
    ):
        if (image_feature, label_feature) != (IMAGE_FEATURE, LABEL_FEATURE) and os.path.isdir(
            folder
        ):
            log(
                f"{folder} has a {MANIFEST_NAME}, so its features are {IMAGE_FEATURE!r} and "
                f"{LABEL_FEATURE!r}, not {image_feature!r} and {label_feature!r}",
                "warning",
            )
        return check_dataset(folder, hashes)
    return scan_dataset(folder, image_feature, label_feature)


def scan_dataset(folder: str, image_feature: str, label_feature: str) -> Manifest:
    """Return a manifest of the part files in a folder, and log a summary. Raises InputError."""
    files = _consecutive_parts(folder)
    scan = _Scan(image_feature, label_feature)
    parts = [scan.scan_part(os.path.join(folder, file), file) for file in files]
    scan.decode_sample(folder, parts)
    return scan.manifest(folder, parts)


def _consecutive_parts(folder):
    """Return the part files by number, without empty ones at the end.

    Raises InputError where they are not numbered 0, 1, 2 … with equal numbers
    of digits.
    """
    files = find_parts(folder)
    while len(files) > 1 and os.path.getsize(os.path.join(folder, files[-1])) == 0:
        log(f"skipped an empty part: {os.path.join(folder, files.pop())}", "warning")
    digits = len(files[0]) - len(PART_PREFIX)
    for index, file in enumerate(files):
        expected = part_name(index, digits)
        if file != expected:
            raise InputError(
                f"{os.path.join(folder, expected)} is missing: parts must be numbered "
                f"consecutively from 0, but {file} exists"
            )
    return files


class _Scan:
    """What was found in the parts so far."""

    def __init__(self, image_feature, label_feature) -> None:
        self.image_feature, self.label_feature = image_feature, label_feature
        self.lengths = array("q")  # of all records, in bytes
        self.labels, self.kinds, self.label_kinds = Counter(), Counter(), Counter()
        self.gray, self.reencode_reasons = Counter(), Counter()
        self.sizes, self.pixels, self.colorful = Counter(), PixelStatistics(3), False

    def scan_part(self, path, file):
        """Read a part's records and the headers of its images, and return its Part."""
        index = -1
        try:
            with (
                open(path, "rb") as opened,
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                for index, serialized in enumerate(split_records(content)):
                    self.lengths.append(len(serialized))
                    data, label = read_record(
                        serialized, index, self.image_feature, self.label_feature, self.label_kinds
                    )
                    header = read_header(data)
                    self.labels[label] += 1
                    self.kinds[header.kind] += 1
                    self.gray[header.gray] += 1
                    if header.reencode_reason in MISREAD:
                        reason = header.reencode_reason
                        raise BadImage(f"{reason}, which OneFlow decodes incorrectly: {CONVERT}")
                    if header.reencode_reason:
                        self.reencode_reasons[header.reencode_reason] += 1
                return Part(file, index + 1, len(content), hashlib.sha256(content).hexdigest())
        except MissingFeature as error:
            raise InputError(
                f"{path}: {error}; specify the features with --image_feature and --label_feature"
            ) from error
        except BadRecord as error:
            raise InputError(f"{path}: {error}") from error
        except BadImage as error:
            raise InputError(f"{path}, record {index}: invalid image: {error}") from error
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot read {path}: {reason}") from error

    def decode_sample(self, folder, parts):
        """Decode some of the images, evenly spaced.

        All of them where there are formats whose headers do not tell enough.
        """
        every = max(1, len(self.lengths) // SAMPLED) if self.kinds.keys() <= {"PNG", "JPEG"} else 1
        lengths = iter(self.lengths)
        number = 0
        with DecoderMessages() as messages:
            for part in parts:
                path = os.path.join(folder, part.file)
                with open(path, "rb") as file:
                    position = 0
                    for index, length in enumerate(itertools.islice(lengths, part.num_records)):
                        position += LENGTH.size
                        if number % every == 0:
                            file.seek(position)
                            self._decode(file.read(length), path, index, messages)
                        position += length
                        number += 1

    def _decode(self, serialized, path, index, messages):
        data, _ = read_record(serialized, index, self.image_feature, self.label_feature)
        try:
            _, pixels = read_image(data, messages)
        except BadImage as error:
            raise InputError(f"{path}, record {index}: invalid image: {error}") from error
        if pixels.ndim == 2:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
        self.sizes[pixels.shape[1], pixels.shape[0]] += 1
        self.colorful = self.colorful or bool((pixels != pixels[:, :, :1]).any())
        self.pixels.add(pixels)

    def manifest(self, folder, parts):
        """Return the Manifest and log what was found. Raises InputError for unusable labels."""
        if min(self.labels) < 0:
            raise InputError(f"{folder}: invalid label {min(self.labels)}: labels start at 0")
        if len(self.label_kinds) > 1:
            raise InputError(f"{folder}: some labels are int32 and some int64")
        channels = 3 if self.colorful else 1
        mean, std = mean_and_std(self.pixels.counts())
        ((kind, _),) = self.kinds.most_common(1)
        width, height = next(iter(self.sizes)) if len(self.sizes) == 1 else (None, None)
        self._log_summary(folder, parts, f"{width}x{height}" if width else "varying sizes")
        extension = {name: ext for ext, name in reversed(list(FORMATS.items()))}.get(kind, "")
        return Manifest(
            parts=parts,
            image_format=extension,
            channels=channels,
            width=width,
            height=height,
            mean=mean if channels == 3 else mean[:1],
            std=std if channels == 3 else std[:1],
            labels=dict(self.labels),
            image_feature=self.image_feature,
            label_feature=self.label_feature,
            label_kind=next(iter(self.label_kinds)),
            plain_jpeg=channels == 3
            and dict(self.kinds) == {"JPEG": sum(self.kinds.values())}
            and not self.gray[True]
            and not self.reencode_reasons,
        )

    def _log_summary(self, folder, parts, size):
        num_records, num_decoded = len(self.lengths), sum(self.sizes.values())
        found = f"{count(num_records, 'record')} in {count(len(parts), 'part')}"
        kinds = _join_counts(self.kinds)
        if self.colorful:
            color = "colour"
        else:
            color = "gray stored as colour" if self.gray[False] else "gray"
        (label_kind,) = self.label_kinds
        labels = f"labels {min(self.labels)} to {max(self.labels)} ({label_kind})"
        log(
            f"{folder} has no {MANIFEST_NAME}: made by another converter. "
            f"Found: {found}; {kinds}; {size}, {color}; {labels}"
        )
        hint = "; `python -m ofrecord check` decodes all images"
        log(
            "mean, standard deviation, size and colour were computed from "
            f"{count(num_decoded, 'image')}{hint if num_decoded < num_records else ''}"
        )
        if self.reencode_reasons:
            log(
                f"{folder}: OneFlow may decode some images slightly differently from other "
                f"programs: {_join_counts(self.reencode_reasons)}",
                "warning",
            )


def _join_counts(counter):
    """Return the counts for a message, the largest first: ``40 JPEG, 2 PNG``."""
    return ", ".join(f"{number:,} {name}" for name, number in counter.most_common())
