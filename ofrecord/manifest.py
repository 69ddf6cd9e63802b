"""The manifest of a dataset: what is in it, and the mark that it is finished.

``dataset.json`` is written last. A folder without it is not a finished
dataset; a folder with it holds exactly what it says. It may come from a
stranger, so it is checked as a whole before anything is done because of it.
"""

import hashlib
import json
import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from runtime.atomic import read_small_file, why_no_folder
from runtime.cli import InputError, count, os_errors

from .images import DEFAULT_BACKGROUND, FORMATS
from .record import IMAGE_FEATURE, LABEL_FEATURE, LabelKind
from .settings import Count, Name, StrictModel, load_json, validate

MANIFEST_NAME = "dataset.json"
STAGING_NAME = ".img2ofrecord"  # where a dataset is written, inside its folder
LAYOUT = 2  # raised when a reader of the old layout would misread the new one

PART_PREFIX = "part-"
PART_PATTERN = re.compile(re.escape(PART_PREFIX) + r"[0-9]{1,9}")

CONVERT = "convert the images again with img2ofrecord.py"
INDEX = "`python -m ofrecord index {}` writes one for the parts of another converter"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=2**20)]  # pixels; the most that OpenCV decodes
MaxValue = Annotated[int, Field(ge=1, le=65535)] | None
Level = Annotated[float, Field(ge=0, le=255)]


class Part(StrictModel):
    """A part file."""

    file: Annotated[str, Field(pattern=rf"^{PART_PATTERN.pattern}$")]
    num_records: Annotated[int, Field(ge=1, le=2**40)]
    bytes: Count
    sha256: Sha256


class SkippedImage(StrictModel):
    """An image that ``--skip_bad`` did not store."""

    file: Name
    reason: Name


class Manifest(StrictModel):
    """What a dataset holds."""

    layout: Literal[2] = LAYOUT
    num_records: Annotated[int, Field(ge=1, le=2**40)]
    num_classes: Annotated[int, Field(ge=0, le=2**31)]  # the largest label + 1; or label_length
    class_names: list[Name] | None  # or columns'; None where labels are unnamed
    label_counts: dict[Annotated[str, Field(pattern="^(0|-?[1-9][0-9]{0,9})$")], Count]
    image_format: Annotated[str, Field(max_length=8)] | None  # as a file extension; None: mixed
    channels: Literal[1, 3]  # 3 if any image is in colour
    num_gray: Count  # images that are gray
    plain_jpeg: bool  # all are 3-channel JPEG, which OneFlow's faster decoder reads
    background: Name = DEFAULT_BACKGROUND  # color behind transparent images
    fit: Literal["stretch", "crop", "pad"] | None = None  # to one size; None: not resized
    max_value: MaxValue = None  # of 16-bit images, which became 255; None: 65,535
    width: Side | None  # None where it varies
    height: Side | None
    mean: list[Level]  # over all pixels, one figure a channel (R, G, B), 0 to 255
    std: list[Level]
    histogram: list[list[Count]]  # of pixel values: 256 counts a channel
    num_measured: Count  # images that mean, std and histogram are of
    image_feature: Name = IMAGE_FEATURE
    label_feature: Name = LABEL_FEATURE
    label_type: Literal["int32", "int64", "float32"] = "int32"
    # k: a label is a list of k numbers, of columns, not a class. Then label_counts are the records
    # in which a column is not 0; none for float32.
    label_length: Annotated[int, Field(ge=1, le=2**20)] | None = None
    split_id: Annotated[str, Field(max_length=64)] | None = (
        None  # the same in datasets of one split
    )
    split_ids: list[Annotated[str, Field(max_length=64)]] = []  # of several that were merged
    mixed_split_ids: list[Annotated[str, Field(max_length=64)]] = []  # both sides were merged
    skipped: list[SkippedImage] = []
    parts: Annotated[list[Part], Field(min_length=1, max_length=10**6)]

    @model_validator(mode="after")
    def _agrees_with_itself(self):
        length, is_float = self.label_length, self.label_type == "float32"
        columns = {str(column) for column in range(0 if is_float else length or 0)}
        checks = {
            "parts are named": [part.file for part in self.parts] == self.part_names,
            "records add up": sum(part.num_records for part in self.parts) == self.num_records,
            "labels add up": length or sum(self.label_counts.values()) == self.num_records,
            "labels are classes": length or not is_float,
            "columns are named": not length or (self.class_names and length == self.num_classes),
            "columns are counted": not length or self.label_counts.keys() == columns,
            "classes agree": max(map(int, self.label_counts), default=-1) < self.num_classes,
            "class names agree": self.class_names is None
            or len(set(self.class_names)) == len(self.class_names) == self.num_classes,
            "channels agree": len(self.mean)
            == len(self.std)
            == len(self.histogram)
            == self.channels
            and all(len(counts) == 256 and sum(counts) for counts in self.histogram),
            "sizes agree": (self.width is None) == (self.height is None),
            "format is known": self.image_format in (None, *FORMATS),
        }
        wrong = [name for name, holds in checks.items() if not holds]
        if wrong:
            raise ValueError(f"it does not hold that {wrong[0]}")
        return self

    @property
    def splits(self) -> set[str]:
        """The ids of the splits that its images come from."""
        return {self.split_id, *self.split_ids} - {None}

    @property
    def digits(self) -> int:
        """How many digits the part names have at least."""
        return len(self.parts[0].file) - len(PART_PREFIX)

    @property
    def part_names(self) -> list[str]:
        """The part files' names, computed from their number."""
        return [part_name(index, self.digits) for index in range(len(self.parts))]

    @property
    def color_name(self) -> str:
        return "gray" if self.channels == 1 else "colour"

    @property
    def summary(self) -> str:
        """What is in the dataset, in one line."""
        kind = f"{self.color_name} "
        kind += f"{FORMATS[self.image_format]} image" if self.image_format else "image"
        size = f"{self.width}x{self.height}" if self.width else "of different sizes"
        labels = f"{len(self.label_counts):,} classes"
        if self.label_length:
            labels = count(self.label_length, f"{self.label_type} label column")
        return (
            f"{count(self.num_records, kind)} {size}, {labels}, "
            f"in {count(len(self.parts), 'part')}, {self.num_bytes:,} bytes"
        )

    @property
    def label_kind(self) -> LabelKind:
        return LabelKind(self.label_type, self.label_length)

    @property
    def num_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def digest(self) -> str:
        """A SHA-256 that identifies the whole dataset, as it covers every part's."""
        # Runs of earlier versions keep the digest of the fields that there were.
        later = {"label_length": self.label_length, "mixed_split_ids": self.mixed_split_ids}
        return digest_of(self.model_dump(exclude={name for name in later if not later[name]}))

    def to_json(self) -> str:
        """Return the manifest file's text: the same dataset always gives the same text."""
        text = json.dumps(seal(self.model_dump()), indent=2, ensure_ascii=False)
        # Lists of numbers on one line each.
        return re.sub(r"\[[\s\d.,]+\]", lambda m: re.sub(r"\s+", " ", m[0]), text) + "\n"


def manifest_of(fields: dict[str, Any], problem: str) -> Manifest:
    """Return a Manifest of what was found in files; where that makes none, raise InputError."""
    try:
        return validate(Manifest, fields)
    except ValueError as error:
        raise InputError(f"{problem}: {error}") from None


def parse_manifest(text: str | bytes) -> Manifest:
    """Return the Manifest that a file's text holds. Raises ValueError, with the reason."""
    try:
        sealed = load_json(text)
        layout, _ = sealed["layout"], sealed["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("not a manifest of img2ofrecord.py") from None
    if layout != LAYOUT:
        raise ValueError(f"its layout is {str(layout)[:20]}, and this version reads {LAYOUT}")
    return validate(Manifest, unseal(sealed))


def seal(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields with a checksum of them."""
    return {**fields, "sha256": digest_of(fields)}


def unseal(sealed: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that were sealed. Raises ValueError where they are others now."""
    fields = {name: value for name, value in sealed.items() if name != "sha256"}
    if sealed.get("sha256") != digest_of(fields):
        raise ValueError("changed or damaged after it was written")
    return fields


def digest_of(fields: Any) -> str:
    """Return the SHA-256 of a value, the same however JSON lays it out."""
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def part_name(index: int, digits: int = 1) -> str:
    """Return ``part-7``, or ``part-00007`` with five ``digits``."""
    return f"{PART_PREFIX}{index:0{digits}d}"


def part_sizes(num_records: int, num_parts: int) -> list[int]:
    """Return how many records each part gets: they differ by one at most, the larger first."""
    small, larger = divmod(num_records, num_parts)
    return [small + 1] * larger + [small] * (num_parts - larger)


def load_manifest(folder: str) -> Manifest:
    """Return the manifest of a finished dataset. Raises InputError where there is none."""
    path = os.path.join(folder, MANIFEST_NAME)
    if reason := why_no_folder(folder):
        raise InputError(f"no dataset: {folder} {reason}; make one first with img2ofrecord.py")
    if not os.path.lexists(path):
        if os.path.isdir(os.path.join(folder, STAGING_NAME)):
            reason = (
                "its conversion was interrupted or is still running: the same command of "
                "img2ofrecord.py continues it, or, after several jobs, "
                f"`python -m ofrecord finish {folder}`; a merge is started again"
            )
        elif any(PART_PATTERN.fullmatch(name) for name in os.listdir(folder)):
            reason = f"it has part files but no {MANIFEST_NAME}: {INDEX.format(folder)}"
        else:
            reason = f"there is no {MANIFEST_NAME} in it; make one first with img2ofrecord.py"
        raise InputError(f"{folder} is not a finished dataset: {reason}")
    try:
        with os_errors("read", path):
            return parse_manifest(read_small_file(path))
    except ValueError as error:
        raise InputError(
            f"{path}: {error}; remove the folder and {CONVERT}, or write a new manifest: "
            f"`python -m ofrecord index {folder}`"
        ) from None
