"""Reading every byte of part files: their records, their images, and what is wrong with them."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import cv2

from runtime.cli import InputError, first_few, os_errors
from runtime.workers import num_cpus, ordered_map

from ..dataset.images_csv import Row, image_digest
from ..dataset.loading import CONVERT, load_manifest
from ..dataset.manifest import FORMATS, PART_PATTERN, PART_PREFIX, STAGING_NAME, Part
from ..dataset.statistics import EncodedImage, ImageStatistics
from ..images import BadImage, decode, decoder_messages, read_header
from ..record import LENGTH, BadRecord, read_record, split_part

# Why OneFlow turns an image into other pixels than we do without a word. (Of others, such as a
# palette, it makes much the same.)
MISREAD = {"16-bit", "CMYK", "rare JPEG coding", "missing scans"}
EXTENSIONS = {kind: ext for ext, kind in reversed(FORMATS.items())}  # PNG: .png, JPEG: .jpg


class PartReport:
    """What was found in a part file."""

    def __init__(self, file: str):
        self.file, self.sha256 = file, ""
        self.num_records = self.bytes = 0
        self.rows: list[Row] = []  # of images.csv, for the records that can be read
        self.label_types: set[str] = set()
        self.kinds: set[tuple[str, bool]] = set()  # (image format, whether it is gray)
        self.statistics = ImageStatistics()  # reencode_reasons: why OneFlow may misread an image
        self.problems: dict[int, str] = {}  # {record: what is wrong}


def scan_parts(folder: str, features: tuple[str, str]) -> Iterator[PartReport]:
    """Yield a PartReport for each part file of a folder, in order.

    ``features`` are the names of the image's and the label's. Raises InputError for no parts.
    """
    with os_errors("read", folder):
        found = os.listdir(os.path.join(folder, "."))  # so that files in it may be opened, too
    if STAGING_NAME in found:  # old and new parts may be mixed
        load_manifest(folder)  # says that it is unfinished
    names = [name for name in found if PART_PATTERN.fullmatch(name)]
    if not names:
        others = f", but {first_few(found)}" if found else ""
        raise InputError(f"no dataset: there are no part files in {folder}{others}")
    names.sort(key=lambda name: (int(name[len(PART_PREFIX) :]), name))
    return ordered_map(partial(scan_part, folder, features), names, num_cpus())


def scan_part(folder: str, features: tuple[str, str], file: str) -> PartReport:
    """Read a part file: framing, SHA-256, records and images."""
    report, digest = PartReport(file), hashlib.sha256()
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    try:
        with decoder_messages:
            for index, serialized in split_part(os.path.join(folder, file)):
                digest.update(LENGTH.pack(len(serialized)) + serialized)
                report.bytes += LENGTH.size + len(serialized)
                report.num_records += 1
                try:
                    image, label, kind = read_record(serialized, index, *features)
                    report.rows.append(Row(file, index, "", label, image_digest(image)))
                    report.label_types.add(kind)
                    scan_image(image, report)
                    if label < 0:
                        raise BadRecord(index, f"invalid label {label}: labels start at 0")
                except BadRecord as error:
                    report.problems[index] = error.reason
                except BadImage as error:
                    report.problems[index] = f"invalid image: {error}"
                except MemoryError:  # what was read so far differs from the manifest, too
                    where = f"{os.path.join(folder, file)}, record {index}"
                    raise InputError(f"{where}: not enough memory to decode its image") from None
    except BadRecord as error:  # the framing is lost: what follows cannot be read
        report.problems[error.index] = error.reason
    except OSError as error:
        report.problems[report.num_records] = f"cannot be read: {error.strerror}"
    report.sha256 = digest.hexdigest()
    return report


def scan_image(data: bytes, report: PartReport) -> None:
    """Decode an image and count it. Raises BadImage, also where OneFlow would misread it."""
    header = read_header(data)
    pixels, reason = decode(data, header), header.reencode_reason
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():  # gray that is stored as colour
        pixels = pixels[:, :, 0]
    report.kinds.add((header.kind, bool(header.gray)))
    report.statistics.add(EncodedImage(data, pixels.shape[1::-1], pixels, reason))
    if header.kind not in EXTENSIONS or reason in MISREAD:
        raise BadImage(f"OneFlow would misread it ({reason or header.kind}); {CONVERT}")


def found_parts(reports: list[PartReport]) -> list[dict[str, Any]]:
    """Return what a Manifest has of the part files."""
    return [{name: getattr(each, name) for name in Part.model_fields} for each in reports]


def found_fields(reports: list[PartReport], channels: int = 1) -> dict[str, Any]:
    """Return the fields of a Manifest of what is in part files, but names of any kind.

    ``channels`` is what is known of the records: 3 also where all images look gray.
    """
    statistics, labels = ImageStatistics(), Counter()
    for report in reports:
        statistics.merge(report.statistics.state())
        labels.update(row.label for row in report.rows)
    kinds = set().union(*(report.kinds for report in reports))
    formats = {kind for kind, _ in kinds}
    channels = max(channels, statistics.channels)
    is_plain = channels == 3 and not statistics.reencode_reasons
    return {
        **statistics.manifest_fields(channels),
        "num_records": sum(report.num_records for report in reports),
        "num_classes": max(labels, default=-1) + 1,
        "label_counts": {str(label): labels[label] for label in sorted(labels)},
        "label_type": " and ".join(sorted(set().union(*(each.label_types for each in reports)))),
        "image_format": EXTENSIONS.get(*formats) if len(formats) == 1 else None,
        "plain_jpeg": is_plain and kinds == {("JPEG", False)},
        "parts": found_parts(reports),
    }
