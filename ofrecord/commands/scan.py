"""Reading every byte of part files: their records, their images, and what is wrong with them."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import cv2

from runtime.atomic import why_no_folder
from runtime.cli import ArgumentParser, InputError, first_few
from runtime.workers import num_cpus, ordered_map

from ..dataset.images_csv import image_digest
from ..dataset.manifest import (
    CONVERT,
    FORMATS,
    MANIFEST_NAME,
    PART_PATTERN,
    PART_PREFIX,
    STAGING_NAME,
    Manifest,
    load_manifest,
    part_name,
)
from ..dataset.statistics import EncodedImage, ImageStatistics
from ..images import BadImage, decode, decoder_messages, read_header
from ..record import IMAGE_FEATURE, LABEL_FEATURE, LENGTH, BadRecord, read_record, split_part

# Why OneFlow turns an image into other pixels than we do without a word. (Of others, such as a
# palette, it makes much the same.)
MISREAD = {"16-bit", "CMYK", "rare JPEG coding"}


class Features(NamedTuple):
    """The names of a record's two features."""

    image: str = IMAGE_FEATURE
    label: str = LABEL_FEATURE


def add_feature_arguments(parser: ArgumentParser) -> None:
    for kind, default in Features()._asdict().items():
        help = f"the name of the records' {kind} feature (default: {default})"
        parser.add_argument(f"--{kind}_feature", default=default, metavar="NAME", help=help)


class PartReport:
    """What was found in a part file."""

    def __init__(self, file: str):
        self.file, self.sha256 = file, ""
        self.num_records, self.num_bytes = 0, 0
        self.images: dict[int, tuple[int, str]] = {}  # {record: (label, digest of its image)}
        self.label_types: set[str] = set()
        self.kinds: set[tuple[str, bool]] = set()  # (image format, whether it is gray)
        self.statistics = ImageStatistics()  # reencode_reasons: why OneFlow may misread an image
        self.problems: list[tuple[int | None, str]] = []  # (record, or None: all of it; reason)

    @property
    def labels(self) -> Counter[int]:
        return Counter(label for label, _ in self.images.values())


def scan_parts(folder: str, features: Features, manifest: Manifest | None) -> Iterator[PartReport]:
    """Yield a PartReport for each part file of a folder, in order.

    Raises InputError where there is none.
    """
    if reason := why_no_folder(folder):
        raise InputError(f"no dataset: {folder} {reason}")
    found = os.listdir(folder)
    names = [name for name in found if PART_PATTERN.fullmatch(name)]
    if manifest is None and STAGING_NAME in found:  # old and new parts may be mixed
        load_manifest(folder)  # says that it is unfinished
    if not names:
        others = f", but {first_few(found)}" if found else ""
        raise InputError(f"no dataset: there are no part files in {folder}{others}")
    names.sort(key=lambda name: (int(name[len(PART_PREFIX) :]), name))
    return ordered_map(partial(scan_part, folder, features, manifest), names, num_cpus())


def scan_part(folder: str, features: Features, manifest: Manifest | None, file: str) -> PartReport:
    """Read a part file: framing, SHA-256, records and images, against the manifest if any."""
    report, digest = PartReport(file), hashlib.sha256()
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    try:
        with decoder_messages:
            for index, serialized in split_part(os.path.join(folder, file)):
                digest.update(LENGTH.pack(len(serialized)) + serialized)
                report.num_bytes += LENGTH.size + len(serialized)
                report.num_records += 1
                try:
                    data, label, kind = read_record(serialized, index, *features)
                    report.images[index] = label, image_digest(data)
                    report.label_types.add(kind)
                    scan_image(data, report, manifest)
                except BadRecord as error:
                    report.problems.append((index, error.reason))
                except BadImage as error:
                    report.problems.append((index, f"invalid image: {error}"))
                except MemoryError:
                    report.problems.append((index, "not enough memory to decode the image"))
    except BadRecord as error:  # the framing is lost: what follows cannot be read
        report.problems.append((error.index, error.reason))
    except OSError as error:
        report.problems.append((None, f"cannot be read: {error.strerror}"))
    report.sha256 = digest.hexdigest()
    return report


def scan_image(data: bytes, report: PartReport, manifest: Manifest | None) -> None:
    """Decode an image and count it in the report.

    Raises BadImage where it is invalid, where OneFlow misreads it, or the manifest says otherwise.
    """
    header = read_header(data)
    pixels = decode(data, header)
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():  # gray that is stored as colour
        pixels = pixels[:, :, 0]
    reason, (height, width) = header.reencode_reason, pixels.shape[:2]
    report.kinds.add((header.kind, bool(header.gray)))
    report.statistics.add(EncodedImage(data, (width, height), pixels, reason))
    if header.kind not in FORMATS.values():
        raise BadImage(f"OneFlow would misread it ({header.kind}); {CONVERT}")
    if reason in MISREAD:
        raise BadImage(f"OneFlow would misread it ({reason}); {CONVERT}")
    if manifest is None:
        return
    found = f"it is {header.kind}, {'gray' if pixels.ndim == 2 else 'in colour'}, {width}x{height}"
    if (
        header.kind != FORMATS.get(manifest.image_format, header.kind)
        or (pixels.ndim == 3 and manifest.channels == 1)
        or (manifest.width and (width, height) != (manifest.width, manifest.height))
        or (manifest.plain_jpeg and header.gray)
    ):
        raise BadImage(f"{found}, and {MANIFEST_NAME} says: {manifest.summary}")


def missing_parts(folder: str, reports: list[PartReport], manifest: Manifest | None) -> list[str]:
    """Return a line for each part file that is missing, or belongs to another dataset."""
    found = [report.file for report in reports]
    if manifest:
        names = manifest.part_names
    else:  # from part-0 to the last, unless most are missing
        digits, last = len(found[0]) - len(PART_PREFIX), int(found[-1][len(PART_PREFIX) :])
        names = [part_name(index, digits) for index in range(min(last, 2 * len(found)) + 1)]
    missing = [name for name in names if name not in found]
    strangers = [name for name in found if name not in names]
    problems = [f"{os.path.join(folder, name)} is missing" for name in missing[:3]]
    return problems + [
        f"{os.path.join(folder, name)} does not belong to this dataset" for name in strangers
    ]
