"""Check every byte of a dataset and report what is wrong, record by record."""

import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from runtime.cli import InputError, count
from runtime.workers import ordered_map

from .images import FORMATS, BadImage, DecoderMessages, Header, decode, read_header
from .manifest import MANIFEST_NAME, PART_PATTERN, PART_PREFIX, Part, load_manifest
from .record import BadRecord, read_record, split_records


class PartReport(NamedTuple):
    """What was found in one part file."""

    file: str | None  # None: in the dataset as a whole
    num_records: int  # those whose framing is valid
    bytes: int
    labels: Counter[int]
    kinds: Counter[str]  # of the images' formats
    sizes: Counter[tuple[int, int]]  # of (width, height)
    channels: Counter[int]  # of 1 and 3
    problems: list[str]  # one line each, with file, record and reason


def check_every_byte(
    folder: str, image_feature: str, label_feature: str, workers: int
) -> Iterator[PartReport]:
    """Yield a PartReport for each part, then one for the dataset as a whole (``file`` None).

    Without a manifest, only what the parts themselves tell is checked. Raises
    InputError where there is no dataset.
    """
    manifest = (
        load_manifest(folder) if os.path.lexists(os.path.join(folder, MANIFEST_NAME)) else None
    )
    files = find_parts(folder)
    listed = {part.file: part for part in manifest.parts} if manifest else {}
    job = partial(
        check_part,
        folder,
        listed,
        image_feature,
        label_feature,
        manifest and FORMATS.get(manifest.image_format),
        manifest and manifest.channels,
    )
    labels, problems = Counter(), []
    for report in ordered_map(job, files, workers):
        labels += report.labels
        yield report
    if manifest:
        problems += [
            f"{os.path.join(folder, name)} is missing" for name in listed if name not in files
        ]
        problems += [
            f"{os.path.join(folder, name)} does not belong to this dataset: "
            f"{MANIFEST_NAME} does not list it"
            for name in files
            if name not in listed
        ]
        if dict(labels) != manifest.labels:
            label = min(
                label
                for label in set(labels) | set(manifest.labels)
                if labels[label] != manifest.labels.get(label, 0)
            )
            problems.append(
                f"{folder}: label {label} has {count(labels[label], 'record')}, "
                f"but {MANIFEST_NAME} lists {manifest.labels.get(label, 0):,}"
            )
        classes = count(manifest.num_classes, "class")
        problems += [
            f"{folder}: label {label} is out of range for {classes}"
            for label in sorted(labels)
            if not 0 <= label < manifest.num_classes
        ]
    else:
        numbers = sorted(int(name[len(PART_PREFIX) :]) for name in files)
        gaps = sorted(set(range(numbers[-1] + 1)) - set(numbers))
        problems += [f"{folder}: part {gap} is missing, but {files[-1]} exists" for gap in gaps[:3]]
        problems += [
            f"{folder}: invalid label {label}: labels start at 0"
            for label in sorted(labels)
            if label < 0
        ]
    yield PartReport(None, 0, 0, labels, Counter(), Counter(), Counter(), problems)


def find_parts(folder: str) -> list[str]:
    """Return the names of the part files in a folder, sorted by number.

    Raises InputError where there are none.
    """
    if not os.path.isdir(folder):
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise InputError(f"no dataset: {folder} {what}")
    files = sorted(
        (name for name in os.listdir(folder) if PART_PATTERN.match(name)),
        key=lambda name: (int(name[len(PART_PREFIX) :]), name),
    )
    if not files:
        raise InputError(f"no dataset: there are no part files in {folder}")
    return files


def check_part(
    folder: str,
    listed: dict[str, Part],
    image_feature: str,
    label_feature: str,
    kind: str | None,
    channels: int | None,
    file: str,
) -> PartReport:
    """Check one part file: its framing, hash, records and images.

    ``listed`` maps file names to the manifest's Part; ``kind`` and
    ``channels`` are the manifest's description of the images, or None.
    """
    path = os.path.join(folder, file)
    labels, kinds, sizes, seen_channels, problems = Counter(), Counter(), Counter(), Counter(), []
    num_records = size = 0
    cv2.setNumThreads(1)
    try:
        size = os.path.getsize(path)
        with (
            open(path, "rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
            DecoderMessages() as messages,
        ):
            part = listed.get(file)
            if part and (size != part.bytes or hashlib.sha256(content).hexdigest() != part.sha256):
                problems.append(
                    f"{path}: changed or damaged after it was written (size or SHA-256 differs)"
                )
            for index, serialized in enumerate(split_records(content)):
                num_records += 1
                try:
                    data, label = read_record(serialized, index, image_feature, label_feature)
                    labels[label] += 1
                    header, pixels = read_image(data, messages)
                except BadRecord as error:
                    problems.append(f"{path}, {error}")
                    continue
                except BadImage as error:
                    problems.append(f"{path}, record {index}: invalid image: {error}")
                    continue
                image_channels = 1 if header.gray else 3
                kinds[header.kind] += 1
                sizes[pixels.shape[1], pixels.shape[0]] += 1
                seen_channels[image_channels] += 1
                difference = _find_difference(header, image_channels, kind, channels)
                if difference:
                    problems.append(f"{path}, record {index}: {difference}")
            if part and num_records != part.num_records:
                problems.append(
                    f"{path}: {count(num_records, 'record')}, "
                    f"but {MANIFEST_NAME} lists {part.num_records:,}"
                )
    except BadRecord as error:  # an invalid length: the rest cannot be read
        problems.append(f"{path}, {error}")
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = getattr(error, "strerror", None) or error
        problems.append(f"{path}: cannot be read: {reason}")
    return PartReport(file, num_records, size, labels, kinds, sizes, seen_channels, problems)


def read_image(data: bytes, messages: DecoderMessages) -> tuple[Header, np.ndarray]:
    """Return the Header, with ``gray`` not None, and the 8-bit pixels of an encoded image.

    Raises BadImage.
    """
    messages.take()  # those of a preceding invalid image
    header = read_header(data)
    flags = {None: cv2.IMREAD_UNCHANGED, True: cv2.IMREAD_GRAYSCALE, False: cv2.IMREAD_COLOR}
    pixels = decode(data, flags[header.gray])
    warning = messages.take()
    if warning:
        raise BadImage(warning)
    return header._replace(gray=pixels.ndim == 2), pixels


def _find_difference(header, channels, expected_kind, expected_channels):
    """Return how an image differs from the manifest's description, or None."""
    if header.reencode_reason:
        return f"OneFlow may decode it incorrectly ({header.reencode_reason})"
    if expected_kind and header.kind != expected_kind:
        return f"the image is {header.kind}, but {MANIFEST_NAME} says {expected_kind}"
    if expected_channels and expected_kind != "WebP" and channels != expected_channels:
        found = count(channels, "channel")
        return f"the image has {found}, but {MANIFEST_NAME} says {expected_channels}"
    return None
