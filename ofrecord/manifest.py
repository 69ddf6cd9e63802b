"""The manifest of a dataset folder: what is in it, and the mark that it is finished.

``dataset.json`` is written last. A folder without it is not a finished
dataset; a folder with it holds exactly what it says, or check_dataset names
the difference.
"""

import hashlib
import json
import mmap
import os
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

from .cli import InputError
from .images import FORMATS
from .record import IMAGE_FEATURE, LABEL_FEATURE, BadRecord, read_record, split_records

MANIFEST_NAME = "dataset.json"
STAGING_NAME = ".img2ofrecord"  # where the converter writes, inside the dataset's folder
LAYOUT = 1  # raised when a reader of the old layout would misread the new one

PART_PREFIX = "part-"
PART_PATTERN = re.compile(re.escape(PART_PREFIX) + r"\d+\Z")

# What to do about a dataset that is damaged: the converter replaces what it
# wrote itself, and nothing else.
CONVERT = "convert the images again with img2ofrecord.py"
REMOVE_AND_CONVERT = "remove the folder, or name another, and " + CONVERT


@dataclass(frozen=True)
class Part:
    file: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a dataset folder holds.

    ``image_format`` is the file extension of what the images are encoded as.
    ``width`` and ``height`` are in pixels, None where they vary. ``channels``
    is 1 (gray) or 3 (colour). ``mean`` and ``std`` are over all pixels, one
    figure a channel (R, G, B), in 0 to 255. ``labels`` counts the records of
    each label. ``class_names`` is None where labels are only numbers.
    ``left_out`` lists the bad images, ``{"file", "reason"}``, that the user
    had left out. ``halves`` is None, or the same in two datasets that one run
    split its images into: no image is in both.
    """

    parts: List[Part]
    image_format: str
    channels: int
    width: Optional[int]
    height: Optional[int]
    mean: List[float]
    std: List[float]
    labels: Dict[int, int]
    class_names: Optional[List[str]] = None
    left_out: Sequence[Dict[str, str]] = ()
    halves: Optional[str] = None
    # Of a dataset that another converter made, see scan.py:
    image_feature: str = IMAGE_FEATURE
    label_feature: str = LABEL_FEATURE
    label_kind: str = "int32"
    plain_jpeg: Optional[bool] = None

    @property
    def records(self):
        return sum(part.records for part in self.parts)

    @property
    def bytes(self):
        return sum(part.bytes for part in self.parts)

    @property
    def classes(self):
        """How many classes: labels count from 0, so one more than the largest."""
        return len(self.class_names) if self.class_names else max(max(self.labels) + 1, 0)

    @property
    def suits_fused_decoder(self):
        """Is every image a three-channel JPEG without rotation, all that OneFlow's fused decoders read rightly?

        Of our own converter's JPEGs every one is, where they are colour.
        """
        if self.plain_jpeg is not None:
            return self.plain_jpeg
        return FORMATS.get(self.image_format) == "JPEG" and self.channels == 3

    @property
    def part_name_suffix_length(self):
        """The reader's argument for these part names: digits after the prefix, -1 for unpadded."""
        digits = len(self.parts[0].file) - len(PART_PREFIX)
        return digits if digits > 1 else -1

    @property
    def digest(self):
        """One sum for the whole dataset: it covers the manifest's fields and so every part's SHA-256."""
        return digest_of(self._fields())

    def to_json(self):
        """The manifest file's text: the same dataset gives the same text, always."""
        fields = self._fields()
        fields["sha256"] = digest_of(fields)
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    def _fields(self):
        return {
            "layout": LAYOUT,
            "records": self.records,
            "image": {"format": self.image_format, "channels": self.channels,
                      "width": self.width, "height": self.height},
            "pixels": {"mean": self.mean, "std": self.std},
            "classes": {"count": self.classes, "names": self.class_names},
            "labels": {str(label): self.labels[label] for label in sorted(self.labels)},
            "left_out": list(self.left_out),
            **({"halves": self.halves} if self.halves else {}),
            "parts": [vars(part) for part in self.parts],
        }

    @classmethod
    def from_json(cls, text):
        """Raises ValueError, with the reason, for text that to_json did not write."""
        try:
            fields = json.loads(text)
            layout, digest = fields["layout"], fields.pop("sha256")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError("it is not a manifest of this converter")
        if layout != LAYOUT:
            raise ValueError("its layout is {!r} and this version reads layout {}".format(layout, LAYOUT))
        if digest != digest_of(fields):
            raise ValueError("it was changed or damaged after it was written")
        try:
            image, pixels = fields["image"], fields["pixels"]
            return cls(parts=[Part(**part) for part in fields["parts"]],
                       image_format=image["format"], channels=image["channels"],
                       width=image["width"], height=image["height"],
                       mean=pixels["mean"], std=pixels["std"],
                       labels={int(label): count for label, count in fields["labels"].items()},
                       class_names=fields["classes"]["names"], left_out=fields["left_out"], halves=fields.get("halves"))
        except (KeyError, TypeError):
            raise ValueError("it was written by another version of this converter")


def digest_of(fields):
    """SHA-256 of a JSON-able value, however it is laid out in its file."""
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def part_name(index, digits=1):
    """``part-7``, or ``part-00007`` with five ``digits``."""
    return "{}{:0{}d}".format(PART_PREFIX, index, digits)


def part_sizes(records, parts):
    """How many records each part gets: they differ by one at most, the larger first."""
    small, larger = divmod(records, parts)
    return [small + 1] * larger + [small] * (parts - larger)


def load_manifest(folder):
    """The manifest of a finished dataset. Raises InputError where there is none."""
    path = os.path.join(folder, MANIFEST_NAME)
    if not os.path.isdir(folder):
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise InputError("no dataset: {} {}; make one first with img2ofrecord.py".format(folder, what))
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        if os.path.isdir(os.path.join(folder, STAGING_NAME)):
            raise InputError("{} is not a finished dataset: its conversion was stopped, or still runs; {}"
                             .format(folder, CONVERT))
        elif any(PART_PATTERN.match(name) for name in os.listdir(folder)):
            reason = "it has part files but no {}, the mark of a finished dataset".format(MANIFEST_NAME)
        else:
            reason = "there is no {} in it".format(MANIFEST_NAME)
        raise InputError("{} is not a finished dataset: {}; {}".format(folder, reason, REMOVE_AND_CONVERT))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot read {}: {}".format(path, getattr(error, "strerror", None) or error))
    try:
        return Manifest.from_json(text)
    except ValueError as error:
        raise InputError("{}: {}; {}".format(path, error, REMOVE_AND_CONVERT))


def check_dataset(folder, hashes=None):
    """Load a dataset's manifest and hold the folder against it; return the manifest.

    OneFlow aborts the whole process on a missing part, a cut-off record or a
    damaged image, so all of it is looked at here first: the parts are there,
    no other is, sizes agree, every record is framed and has an image and a
    label, labels are classes, and every byte is as the converter, which
    decoded every image, wrote it. For that, SHA-256 sums are compared, which
    takes a second for a gigabyte: of the parts that were written to after
    their manifest; of all with ``hashes`` True, of none with False. Raises
    InputError for the first thing that is wrong.
    """
    manifest = load_manifest(folder)
    finished = os.stat(os.path.join(folder, MANIFEST_NAME)).st_mtime_ns
    listed = {part.file for part in manifest.parts}
    for name in sorted(os.listdir(folder)):
        if PART_PATTERN.match(name) and name not in listed:
            raise InputError("{} is not part of this dataset ({} does not list it): move it away"
                             .format(os.path.join(folder, name), MANIFEST_NAME))
    labels = {}
    for part in manifest.parts:
        path = os.path.join(folder, part.file)
        try:
            _check_part(path, part, labels, hashes, finished)
        except BadRecord as error:
            raise InputError("{}: {}; {}".format(path, error, CONVERT))
    for label in sorted(labels):
        if not 0 <= label < manifest.classes:
            raise InputError("{}: label {} is outside the {} classes: labels count from 0"
                             .format(folder, label, manifest.classes))
    if labels != manifest.labels:
        raise InputError("{}: its labels are not those that {} counts; {}"
                         .format(folder, MANIFEST_NAME, CONVERT))
    return manifest


def _check_part(path, part, labels, hashes, finished):
    """One part file against the manifest's entry; adds its labels to the counts."""
    try:
        status = os.stat(path)
        size, changed = status.st_size, status.st_mtime_ns > finished
        if size != part.bytes:
            raise InputError("{} has {:,} bytes and should have {:,}: it was cut off or changed; "
                             "{}".format(path, size, part.bytes, CONVERT))
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if (changed if hashes is None else hashes) and hashlib.sha256(content).hexdigest() != part.sha256:
                raise InputError("{} was changed or damaged after it was written (SHA-256 differs); "
                                 "{}".format(path, CONVERT))
            records = 0
            for records, serialized in enumerate(split_records(content), start=1):
                _, label = read_record(serialized, index=records - 1)
                labels[label] = labels.get(label, 0) + 1
    except FileNotFoundError:
        raise InputError("{} is missing; {}".format(path, CONVERT))
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise InputError("cannot read {}: {}".format(path, getattr(error, "strerror", None) or error))
    if records != part.records:
        raise InputError("{} has {} records and should have {}; {}"
                         .format(path, records, part.records, CONVERT))
