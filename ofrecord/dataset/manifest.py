"""The manifest: what a dataset holds, as a model that checks it as a whole; names on the disk.

``dataset.json`` is written last. A folder without it is not a finished dataset; a folder with it
holds exactly what it says. It may come from a stranger, so it is checked before anything is done
because of it.
"""

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from runtime.cli import count
from runtime.settings import LONGEST_NAME, Count, Name, StrictModel

from ..record import IMAGE_FEATURE, LABEL_FEATURE

MANIFEST_NAME = "dataset.json"
TABLE_NAME = "images.csv"
STAGING_NAME = ".img2ofrecord"  # where a dataset is written, inside its folder
LAYOUT = 3  # raised when a reader of the old layout would misread the new one
OLD_LAYOUT = 2  # without images.csv

PART_PREFIX = "part-"
PART_PATTERN = re.compile(re.escape(PART_PREFIX) + r"[0-9]{1,9}")

# What images can be encoded as in a record, by file extension. Each was seen to
# come out of OneFlow's decoder as it went in. OpenCV writes more (.hdr, .pfm,
# .jp2), but OneFlow aborts on those or changes them.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".tiff": "TIFF",
    ".tif": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".webp": "WebP",
    ".pnm": "PNM",
}

DEFAULT_BACKGROUND = "white"  # behind transparent images

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=2**20)]  # pixels; the most that OpenCV decodes
MAX_FITTED = 9999  # pixels a side: images are resized to at most so many
Level = Annotated[float, Field(ge=0, le=255)]


class Part(StrictModel):
    """A part file."""

    file: Annotated[str, Field(pattern=rf"^{PART_PATTERN.pattern}$")]
    num_records: Annotated[int, Field(ge=1, le=2**40)]
    bytes: Count
    sha256: Sha256


class SkippedImage(StrictModel):
    """An image that ``--skip_bad`` did not store."""

    file: Annotated[str, Field(max_length=LONGEST_NAME)]  # "" with --anonymous
    reason: Name


class Manifest(StrictModel):
    """What a dataset holds."""

    layout: Literal[3] = LAYOUT
    num_records: Annotated[int, Field(ge=1, le=2**40)]
    num_classes: Annotated[int, Field(ge=0, le=2**31)]  # of names, or the largest label + 1
    class_names: list[Name] | None  # None where classes are unnamed
    label_counts: dict[Annotated[str, Field(pattern="^(0|-?[1-9][0-9]{0,9})$")], Count]
    image_format: Literal[tuple(FORMATS)] | None  # as a file extension; None: mixed
    channels: Literal[1, 3]  # 3 if any image is in colour
    num_gray: Count  # images that are gray
    plain_jpeg: bool  # all are 3-channel JPEG, which OneFlow's faster decoder reads
    background: Name = DEFAULT_BACKGROUND  # color behind transparent images
    fit: Literal["stretch", "crop", "pad"] | None = None  # to one size; None: not resized
    width: Side | None  # None where it varies
    height: Side | None
    mean: list[Level]  # over all pixels, one figure a channel (R, G, B), 0 to 255
    std: list[Level]
    histogram: list[list[Count]]  # of pixel values: 256 counts a channel
    num_measured: Count  # images that mean, std and histogram are of
    image_feature: Name = IMAGE_FEATURE
    label_feature: Name = LABEL_FEATURE
    label_type: Literal["int32", "int64"] = "int32"
    # The same in all datasets of one split.
    split_id: Annotated[str, Field(max_length=64)] | None = None
    skipped: list[SkippedImage] = []
    images_csv: Sha256  # of the table of images
    parts: Annotated[list[Part], Field(min_length=1, max_length=10**6)]

    @model_validator(mode="after")
    def _agrees_with_itself(self):
        names = self.class_names
        checks = {
            "parts are named": [part.file for part in self.parts] == self.part_names,
            "records add up": sum(part.num_records for part in self.parts) == self.num_records,
            "labels add up": sum(self.label_counts.values()) == self.num_records,
            "classes agree": max(map(int, self.label_counts), default=-1) < self.num_classes,
            "class names agree": names is None or len(set(names)) == len(names) == self.num_classes,
            "channels agree": (
                len(self.mean) == len(self.std) == len(self.histogram) == self.channels
                and all(len(counts) == 256 and sum(counts) for counts in self.histogram)
            ),
            "sizes agree": (self.width is None) == (self.height is None),
        }
        for name, holds in checks.items():
            if not holds:
                raise ValueError(f"it does not hold that {name}")
        return self

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
        return (
            f"{count(self.num_records, kind)} {size}, {count(len(self.label_counts), 'class')}, "
            f"in {count(len(self.parts), 'part')}, {sum(part.bytes for part in self.parts):,} bytes"
        )

    @property
    def digest(self) -> str:
        """A SHA-256 that identifies the whole dataset, as it covers every part's."""
        return digest_of(self.model_dump())

    def to_json(self) -> str:
        """Return the manifest file's text: the same dataset always gives the same text."""
        fields = self.model_dump()
        text = json.dumps({**fields, "sha256": digest_of(fields)}, indent=2, ensure_ascii=False)
        # Lists of numbers on one line each. (No line break is inside of a string in JSON.)
        return re.sub(r"\[\n[\s\d.,]+\]", lambda m: re.sub(r"\s+", " ", m[0]), text) + "\n"


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
