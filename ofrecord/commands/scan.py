"""Reading every byte of part files: their records, their images, and what is wrong with them."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial

import cv2

from runtime.atomic import why_no_folder
from runtime.cli import InputError, first_few
from runtime.workers import num_cpus, ordered_map

from ..dataset.images_csv import Row, image_digest
from ..dataset.manifest import (
    CONVERT,
    FORMATS,
    MANIFEST_NAME,
    PART_PATTERN,
    PART_PREFIX,
    STAGING_NAME,
    Manifest,
    Part,
    load_manifest,
)
from ..dataset.statistics import EncodedImage, ImageStatistics
from ..images import BadImage, Header, decode, decoder_messages, read_header
from ..record import LENGTH, BadRecord, read_record, split_part

# Why OneFlow turns an image into other pixels than we do without a word. (Of others, such as a
# palette, it makes much the same.)
MISREAD = {"16-bit", "CMYK", "rare JPEG coding"}


class PartReport:
    """What was found in a part file."""

    def __init__(self, file: str):
        self.file, self.sha256 = file, ""
        self.num_records = self.num_bytes = 0
        self.rows: list[Row] = []  # of images.csv, for the records that can be read
        self.label_types: set[str] = set()
        self.kinds: set[tuple[str, bool]] = set()  # (image format, whether it is gray)
        self.statistics = ImageStatistics()  # reencode_reasons: why OneFlow may misread an image
        self.problems: list[tuple[int | None, str]] = []  # (record, or None: all of it; reason)

    @property
    def part(self) -> Part:
        """The part as a manifest has it."""
        fields = {"num_records": self.num_records, "bytes": self.num_bytes}
        return Part(file=self.file, sha256=self.sha256, **fields)

    @property
    def labels(self) -> Counter[int]:
        return Counter(row.label for row in self.rows)


def scan_parts(
    folder: str, features: tuple[str, str], manifest: Manifest | None
) -> Iterator[PartReport]:
    """Yield a PartReport for each part file of a folder, in order.

    ``features`` are the names of the image's and the label's. Raises InputError where there is
    no part file.
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


def scan_part(
    folder: str, features: tuple[str, str], manifest: Manifest | None, file: str
) -> PartReport:
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
                    report.rows.append(Row(file, index, "", label, image_digest(data)))
                    report.label_types.add(kind)
                    compare(*scan_image(data, report), manifest)
                except BadRecord as error:
                    report.problems.append((index, error.reason))
                except BadImage as error:
                    report.problems.append((index, f"invalid image: {error}"))
                except MemoryError:
                    report.problems.append((index, "not enough memory to decode its image"))
    except BadRecord as error:  # the framing is lost: what follows cannot be read
        report.problems.append((error.index, error.reason))
    except OSError as error:
        report.problems.append((None, f"cannot be read: {error.strerror}"))
    report.sha256 = digest.hexdigest()
    return report


def scan_image(data: bytes, report: PartReport) -> tuple[Header, EncodedImage]:
    """Decode an image and count it in the report. Raises BadImage."""
    header = read_header(data)
    pixels = decode(data, header)
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():  # gray that is stored as colour
        pixels = pixels[:, :, 0]
    image = EncodedImage(data, pixels.shape[1::-1], pixels, header.reencode_reason)
    report.kinds.add((header.kind, bool(header.gray)))
    report.statistics.add(image)
    return header, image


def compare(header: Header, image: EncodedImage, manifest: Manifest | None) -> None:
    """Raise BadImage where OneFlow misreads an image, or it is not as the manifest says."""
    if header.kind not in FORMATS.values() or image.reencode_reason in MISREAD:
        reason = image.reencode_reason or header.kind
        raise BadImage(f"OneFlow would misread it ({reason}); {CONVERT}")
    if manifest is None:
        return
    is_gray, size = image.pixels.ndim == 2, (manifest.width, manifest.height)
    if (
        header.kind != FORMATS.get(manifest.image_format, header.kind)
        or not (is_gray or manifest.channels == 3)
        or size not in ((None, None), image.size)
        or (manifest.plain_jpeg and header.gray)
    ):
        found = f"{'gray' if is_gray else 'colour'} {header.kind} {'x'.join(map(str, image.size))}"
        raise BadImage(f"it is {found}, and {MANIFEST_NAME} says {manifest.summary}")
