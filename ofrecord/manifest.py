"""The manifest of a dataset folder: its contents, and the mark that it is finished.

``dataset.json`` is written last. A folder without it is not a finished
dataset; check_dataset reports any difference between a folder and its
manifest.
"""

import hashlib
import json
import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.cli import InputError, count

from .images import FORMATS
from .record import IMAGE_FEATURE, LABEL_FEATURE, BadRecord, read_record, split_records

MANIFEST_NAME = "dataset.json"
STAGING_NAME = ".img2ofrecord"  # where the converter writes, inside the dataset's folder
LAYOUT = 1  # increased when a reader of the old layout would misread the new one

PART_PREFIX = "part-"
PART_PATTERN = re.compile(re.escape(PART_PREFIX) + r"\d+\Z")

# The remedies for a damaged dataset: the converter only replaces datasets that
# it wrote itself.
CONVERT = "convert the images again with img2ofrecord.py"
REMOVE_AND_CONVERT = f"remove the folder, or choose another, and {CONVERT}"


@dataclass(frozen=True)
class Part:
    """One part file, as the manifest lists it."""

    file: str  # its name in the dataset's folder
    num_records: int
    bytes: int  # its size
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a dataset folder."""

    parts: list[Part]
    image_format: str  # the images' encoding, as a file extension
    channels: int  # 1 (gray) or 3 (colour)
    width: int | None  # pixels; None where images differ in size, as is height
    height: int | None
    mean: list[float]  # over all pixels, one value per channel (R, G, B), from 0 to 255
    std: list[float]  # likewise
    labels: dict[int, int]  # number of records of each label
    class_names: list[str] | None = None  # None where labels are only numbers
    skipped: Sequence[dict[str, str]] = ()  # invalid images, {"file", "reason"}
    # The same in the two datasets of one split: no image is in both. Otherwise None.
    split_id: str | None = None
    # Of a dataset that another converter made, see scan.py:
    image_feature: str = IMAGE_FEATURE
    label_feature: str = LABEL_FEATURE
    label_kind: str = "int32"
    plain_jpeg: bool | None = None

    @property
    def num_records(self) -> int:
        """The number of records in all parts."""
        return sum(part.num_records for part in self.parts)

    @property
    def bytes(self) -> int:
        """The size of all parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def num_classes(self) -> int:
        """The number of classes: one more than the largest label, as labels start at 0."""
        return len(self.class_names) if self.class_names else max(max(self.labels) + 1, 0)

    @property
    def suits_fused_decoder(self) -> bool:
        """Whether every image is a three-channel JPEG without rotation.

        OneFlow's fused decoders read nothing else correctly. All colour JPEGs
        of our own converter are such images.
        """
        if self.plain_jpeg is not None:
            return self.plain_jpeg
        return FORMATS.get(self.image_format) == "JPEG" and self.channels == 3

    @property
    def part_name_suffix_length(self) -> int:
        """The reader's argument for these part names: digits after the prefix, -1 for unpadded."""
        digits = len(self.parts[0].file) - len(PART_PREFIX)
        return digits if digits > 1 else -1

    @property
    def digest(self) -> str:
        """A SHA-256 of the whole dataset: it covers the manifest's fields and so every part's."""
        return digest_of(self._fields())

    def to_json(self) -> str:
        """Return the text of the manifest file: the same dataset always gives the same text."""
        fields = self._fields()
        fields["sha256"] = digest_of(fields)
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    def _fields(self):
        return {
            "layout": LAYOUT,
            "records": self.num_records,
            "image": {
                "format": self.image_format,
                "channels": self.channels,
                "width": self.width,
                "height": self.height,
            },
            "pixels": {"mean": self.mean, "std": self.std},
            "classes": {"count": self.num_classes, "names": self.class_names},
            "labels": {str(label): self.labels[label] for label in sorted(self.labels)},
            "left_out": list(self.skipped),
            **({"halves": self.split_id} if self.split_id else {}),
            "parts": [
                {
                    "file": part.file,
                    "records": part.num_records,
                    "bytes": part.bytes,
                    "sha256": part.sha256,
                }
                for part in self.parts
            ],
        }

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Return the Manifest of a manifest file's text.

        Raises ValueError, with the reason, for text that to_json did not write.
        """
        try:
            fields = json.loads(text)
            layout, digest = fields["layout"], fields.pop("sha256")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError("not a manifest of img2ofrecord.py") from None
        if layout != LAYOUT:
            raise ValueError(f"unsupported layout {layout!r}; this version reads layout {LAYOUT}")
        if digest != digest_of(fields):
            raise ValueError("changed or damaged after it was written")
        try:
            image, pixels = fields["image"], fields["pixels"]
            return cls(
                parts=[_read_part(**part) for part in fields["parts"]],
                image_format=image["format"],
                channels=image["channels"],
                width=image["width"],
                height=image["height"],
                mean=pixels["mean"],
                std=pixels["std"],
                labels={int(label): number for label, number in fields["labels"].items()},
                class_names=fields["classes"]["names"],
                skipped=fields["left_out"],
                split_id=fields.get("halves"),
            )
        except (KeyError, TypeError):
            raise ValueError("written by another version of img2ofrecord.py") from None


def _read_part(file, records, bytes, sha256):
    """Return the Part of a manifest file's entry, whose keys are the parameters."""
    return Part(file, records, bytes, sha256)


def digest_of(fields: object) -> str:
    """Return the SHA-256 of a JSON-serializable value, however its file is formatted."""
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def part_name(index: int, digits: int = 1) -> str:
    """Return a part file's name: ``part-7``, or ``part-00007`` with five ``digits``."""
    return f"{PART_PREFIX}{index:0{digits}d}"


def part_sizes(num_records: int, num_parts: int) -> list[int]:
    """Return the number of records of each part: they differ by at most one, the larger first."""
    small, num_larger = divmod(num_records, num_parts)
    return [small + 1] * num_larger + [small] * (num_parts - num_larger)


def load_manifest(folder: str) -> Manifest:
    """Return the manifest of a finished dataset. Raises InputError where there is none."""
    path = os.path.join(folder, MANIFEST_NAME)
    if not os.path.isdir(folder):
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise InputError(f"no dataset: {folder} {what}; make one first with img2ofrecord.py")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        if os.path.isdir(os.path.join(folder, STAGING_NAME)):
            raise InputError(
                f"{folder} is not a finished dataset: "
                f"its conversion was interrupted or is still running; {CONVERT}"
            ) from None
        if any(PART_PATTERN.match(name) for name in os.listdir(folder)):
            reason = f"it has part files but no {MANIFEST_NAME}, the mark of a finished dataset"
        else:
            reason = f"there is no {MANIFEST_NAME} in it"
        raise InputError(
            f"{folder} is not a finished dataset: {reason}; {REMOVE_AND_CONVERT}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}") from error
    try:
        return Manifest.from_json(text)
    except ValueError as error:
        raise InputError(f"{path}: {error}; {REMOVE_AND_CONVERT}") from error


def check_dataset(folder: str, hashes: bool | None = None) -> Manifest:
    """Return a dataset's manifest after checking the folder against it.

    OneFlow aborts the whole process on a missing part, a truncated record or
    a damaged image, so all of it is checked here first: all parts exist and
    no others, their sizes are right, every record has valid framing, an image
    and a label, labels are classes, and every byte is as the converter, which
    decoded every image, wrote it. The last is checked by SHA-256, which takes
    a second per gigabyte: by default of the parts that were modified after
    their manifest; of all with ``hashes`` True, of none with False. Raises
    InputError for the first error found.
    """
    manifest = load_manifest(folder)
    finished = os.stat(os.path.join(folder, MANIFEST_NAME)).st_mtime_ns
    listed = {part.file for part in manifest.parts}
    for name in sorted(os.listdir(folder)):
        if PART_PATTERN.match(name) and name not in listed:
            raise InputError(
                f"{os.path.join(folder, name)} does not belong to this dataset "
                f"({MANIFEST_NAME} does not list it): move it away"
            )
    labels = {}
    for part in manifest.parts:
        path = os.path.join(folder, part.file)
        try:
            _check_part(path, part, labels, hashes, finished)
        except BadRecord as error:
            raise InputError(f"{path}: {error}; {CONVERT}") from error
    for label in sorted(labels):
        if not 0 <= label < manifest.num_classes:
            classes = count(manifest.num_classes, "class")
            raise InputError(
                f"{folder}: label {label} is out of range for {classes}: labels start at 0"
            )
    if labels != manifest.labels:
        raise InputError(
            f"{folder}: the labels differ from those that {MANIFEST_NAME} lists; {CONVERT}"
        )
    return manifest


def _check_part(path, part, labels, hashes, finished):
    """Check one part file against the manifest's entry and add its labels to the counts."""
    try:
        status = os.stat(path)
        size, modified = status.st_size, status.st_mtime_ns > finished
        if size != part.bytes:
            raise InputError(
                f"{path} has {count(size, 'byte')} instead of {part.bytes:,}: "
                f"it was truncated or changed; {CONVERT}"
            )
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            check_hash = modified if hashes is None else hashes
            if check_hash and hashlib.sha256(content).hexdigest() != part.sha256:
                raise InputError(
                    f"{path} was changed or damaged after it was written (SHA-256 differs); "
                    f"{CONVERT}"
                )
            num_records = 0
            for num_records, serialized in enumerate(split_records(content), start=1):
                _, label = read_record(serialized, index=num_records - 1)
                labels[label] = labels.get(label, 0) + 1
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {CONVERT}") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}") from error
    if num_records != part.num_records:
        raise InputError(
            f"{path} has {count(num_records, 'record')} instead of {part.num_records:,}; {CONVERT}"
        )
