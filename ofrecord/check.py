"""Reading every byte of a dataset: what is wrong with it; a manifest for others' parts."""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import cv2

from runtime.atomic import replace_file, why_no_folder
from runtime.cli import InputError, InputErrors, count, first_few, log, os_errors
from runtime.workers import ordered_map

from .headers import BadImage, Header, read_header
from .images import FORMATS, EncodedImage, decode, decoder_messages
from .labels import counted, label_fields
from .manifest import (
    CONVERT,
    MANIFEST_NAME,
    PART_PATTERN,
    PART_PREFIX,
    STAGING_NAME,
    Manifest,
    Part,
    load_manifest,
    manifest_of,
    part_name,
)
from .record import LENGTH, BadRecord, LabelKind, read_record, split_part
from .statistics import ImageStatistics

# Why OneFlow turns an image into other pixels than OpenCV without a word. (Of
# others, such as a palette, it makes much the same.)
MISREAD = {"16-bit", "CMYK", "rare JPEG coding", "rare format"}


class Features(NamedTuple):
    """The names of a record's two features."""

    image: str
    label: str


class PartReport:
    """What was found in one part file."""

    def __init__(self, path: str):
        self.path, self.file = path, os.path.basename(path)
        self.num_records, self.num_bytes, self.sha256 = 0, 0, ""
        self.labels = Counter()  # {label: records}, or of labels that are lists {column: records}
        self.records = array("q")  # the label of each record with a valid image; 0 for a list
        self.label_kinds: set[LabelKind] = set()
        self.kinds = set()  # (image format, whether its header says gray), such as ("PNG", False)
        self.statistics = ImageStatistics()  # reencode_reasons: why OneFlow may misread an image
        self.problems: list[str] = []  # lines with file, record and reason


def check_parts(
    folder: str, features: Features, manifest: Manifest | None, workers: int
) -> Iterator[PartReport]:
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
    return ordered_map(partial(check_part, folder, features, manifest), names, workers)


def check_part(folder: str, features: Features, manifest: Manifest | None, file: str) -> PartReport:
    """Check one part file: framing, sum, records and images, against the manifest if any."""
    path, digest = os.path.join(folder, file), hashlib.sha256()
    report, kind = PartReport(path), manifest.label_kind if manifest else None
    problems = report.problems
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    try:
        with decoder_messages:
            for index, serialized in split_part(path):
                digest.update(LENGTH.pack(len(serialized)) + serialized)
                report.num_bytes += LENGTH.size + len(serialized)
                try:
                    data, label, label_kind = read_record(serialized, index, *features, kind)
                    report.num_records += 1
                    report.labels.update(counted(label, label_kind))
                    report.label_kinds.add(label_kind)
                    header, image = read_image(data)
                    report.kinds.add((header.kind, header.gray))
                    report.statistics.add(image)
                    report.records.append(label if label_kind.length is None else 0)
                    _compare(header, image, manifest)
                except BadRecord as error:
                    problems.append(f"{path}, {error}")
                except BadImage as error:
                    problems.append(f"{path}, record {index}: invalid image: {error}")
    except BadRecord as error:  # the framing is lost: what follows cannot be read
        problems.append(f"{path}, {error}")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
    report.sha256 = digest.hexdigest()
    for part in manifest.parts if manifest else ():
        if part.file != file:
            continue
        if part.sha256 != report.sha256:
            problems.append(f"{path}: its bytes are not those that were written (SHA-256 differs)")
        elif (part.num_records, part.bytes) != (report.num_records, report.num_bytes):
            found = f"{count(report.num_records, 'record')} and {report.num_bytes:,} bytes"
            text = f"{count(part.num_records, 'record')} and {part.bytes:,} bytes"
            problems.append(f"{path} has {found}, and {MANIFEST_NAME} says {text}")
    return report


def read_image(data: bytes) -> tuple[Header, EncodedImage]:
    """Return what the bytes of an image are, and the image. Raises BadImage.

    Gray pixels that are stored as colour, as OpenCV's imread delivers them, count as gray.
    """
    header = read_header(data)
    pixels = decode(data, header)
    reason = header.reencode_reason
    if header.kind not in FORMATS.values():
        reason = "rare format"
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    channels = 1 if pixels.ndim == 2 else 3
    return header, EncodedImage(data, pixels.shape[1::-1], channels, pixels, reason)


def _compare(header: Header, image: EncodedImage, manifest: Manifest | None) -> None:
    """Raise BadImage where an image is not as the manifest says, or OneFlow misreads it."""
    if image.reencode_reason in MISREAD:
        raise BadImage(f"OneFlow would misread it ({image.reencode_reason}); {CONVERT}")
    kind = FORMATS[manifest.image_format] if manifest and manifest.image_format else header.kind
    if header.kind != kind:
        raise BadImage(f"it is {header.kind}, and {MANIFEST_NAME} says {kind}")
    if manifest is None:
        return
    if image.channels > manifest.channels:
        raise BadImage(f"it is in colour, and {MANIFEST_NAME} says gray")
    size, expected = image.size, (manifest.width, manifest.height)
    if manifest.width and size != expected:
        sizes = [f"{width}x{height}" for width, height in (size, expected)]
        raise BadImage(f"it is {sizes[0]}, and {MANIFEST_NAME} says {sizes[1]}")
    if manifest.plain_jpeg and (header.kind, header.gray) != ("JPEG", False):
        raise BadImage(f"{MANIFEST_NAME} says that all are JPEG in colour")


def compare_totals(folder: str, reports: list[PartReport], manifest: Manifest | None) -> list[str]:
    """Return what is wrong with a dataset as a whole, a line each."""
    found = [report.file for report in reports]
    if manifest:
        names = manifest.part_names
    else:  # from part-0 to the last, unless most are missing
        digits, last = len(found[0]) - len(PART_PREFIX), int(found[-1][len(PART_PREFIX) :])
        names = [part_name(index, digits) for index in range(min(last, 2 * len(found)) + 1)]
    missing = [name for name in names if name not in found]
    strangers = [name for name in found if name not in names]
    problems = [f"{os.path.join(folder, name)} is missing" for name in missing[:3]]
    problems += [
        f"{os.path.join(folder, name)} does not belong to this dataset" for name in strangers
    ]
    kinds = sorted(map(str, set().union(*(report.label_kinds for report in reports))))
    if len(kinds) > 1:
        problems.append(f"{folder}: some labels are {' and some '.join(kinds[:3])}")
    labels = sum((report.labels for report in reports), Counter())
    listed = manifest.label_counts if manifest else labels
    for label in sorted({*labels, *map(int, listed)}):
        expected = labels[label] if manifest is None else listed.get(str(label), 0)
        if label < 0:
            problems.append(f"{folder}: invalid label {label}: labels start at 0")
        elif manifest and label >= manifest.num_classes:
            classes = count(manifest.num_classes, "class")
            problems.append(f"{folder}: label {label} is out of range for {classes}")
        elif labels[label] != expected:
            records = count(labels[label], "record")
            listing = f"{MANIFEST_NAME} lists {expected}"
            problems.append(f"{folder}: label {label} has {records}, but {listing}")
    return problems


# -- a manifest for parts of another converter --------------------------------------------


def index_parts(folder: str, features: Features, workers: int) -> Manifest:
    """Write the manifest of part files that another converter wrote, and return it.

    Every record is read and every image decoded. Raises InputErrors with all that OneFlow
    would abort on or misread, and InputError where there is a manifest already.
    """
    try:
        load_manifest(folder)
    except InputError:
        reports = list(check_parts(folder, features, None, workers))
    else:
        raise InputError(f"{folder} has its {MANIFEST_NAME} already")
    problems = [problem for report in reports for problem in report.problems]
    problems += compare_totals(folder, reports, None)
    if problems:
        raise InputErrors(
            problems, f"{count(len(problems), 'problem')} in {folder}; nothing was written"
        )
    manifest = _make_manifest(folder, features, reports)
    path = os.path.join(folder, MANIFEST_NAME)
    with os_errors("write", path), replace_file(path, "w") as file:
        file.write(manifest.to_json())
    return manifest


def _make_manifest(folder: str, features: Features, reports: list[PartReport]) -> Manifest:
    labels = sum((report.labels for report in reports), Counter())
    kinds = set().union(*(report.kinds for report in reports))
    statistics = ImageStatistics()
    for report in reports:
        statistics.merge(report.statistics)
    reasons = Counter({why: n for why, n in statistics.reencode_reasons.items() if why})
    if reasons:
        log(
            f"{folder}: OneFlow may decode some images slightly differently from other programs: "
            + ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common()),
            "warning",
        )
    extensions = {kind: ext for ext, kind in reversed(FORMATS.items())}
    formats = {kind for kind, _ in kinds}
    parts = [
        Part(file=each.file, num_records=each.num_records, bytes=each.num_bytes, sha256=each.sha256)
        for each in reports
    ]
    fields = {
        "num_records": sum(report.num_records for report in reports),
        "image_format": extensions[formats.pop()] if len(formats) == 1 else None,
        "plain_jpeg": kinds == {("JPEG", False)} and statistics.channels == 3 and not reasons,
        "image_feature": features.image,
        "label_feature": features.label,
        **label_fields(*reports[0].label_kinds, labels, None),
        "parts": parts,
        **statistics.manifest_fields(),
    }
    return manifest_of(fields, f"{folder} cannot be a dataset")
