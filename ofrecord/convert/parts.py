"""Parts: each follows from its images and the options, and its key says whether it is there.

While a dataset is made its hidden folder holds ``part-3.KEY``, and ``part-3.KEY.json``, which is
written after it. KEY is the SHA-256 of all that the part's bytes follow from. So a conversion
that was interrupted is continued, and jobs on several machines share one, by looking for files.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import cv2

from runtime.atomic import read_small_file
from runtime.settings import load_json

from ..dataset.manifest import FORMATS, digest_of, part_name, part_sizes
from ..dataset.staging import DatasetFolder
from ..dataset.statistics import ImageStatistics
from ..labels.samples import Samples
from .options import ConvertOptions
from .packed import STAMP, PackedImages, Problem

CODE = 2  # raised when a change of the code changes the bytes of parts, or their statistics
SAMPLE = 4000  # images of a JPEG dataset that are decoded in full, about
LARGEST_FILE = 2**32  # bytes of a JSON file

# What a part follows from, by names for people: "parts that differ in …". First the options.
OPTIONS = "img_format size fit color background quality image_feature label_feature".split()
INTERVAL = "number of JPEG files that are decoded in full"
IMAGES = "images or number of parts"


class FinishedPart(NamedTuple):
    """What is kept beside a part that is on the disk."""

    recipe: dict[str, Any]
    stamps: str  # of each image's file, as hexadecimal digits
    bytes: int
    sha256: str
    digests: list[str]  # those of images.csv
    statistics: dict[str, Any]
    skipped: list[tuple[str, str]]  # (name, reason)


@dataclass(eq=False)
class PlannedPart:
    """A part of a dataset to write."""

    folder: DatasetFolder
    number: int
    samples: Samples
    image_root: str  # ends in a slash
    recipe: dict[str, Any]  # all that its bytes follow from, but for the images' files
    file: str | None = None  # its name in the hidden folder, once it is there

    def __len__(self) -> int:
        return len(self.samples)

    def path(self, index: int) -> str:
        """Return the path of an image's file."""
        return self.image_root + self.samples.names[index]

    def file_of(self, stamps: str) -> str:
        """Return the name, with the key, that follows from the stamps of its images' files."""
        return f"{part_name(self.number)}.{digest_of([self.recipe, stamps])}"

    def is_measured(self, index: int) -> bool:
        """Whether an image's pixels are counted for mean and standard deviation."""
        return index % self.recipe[INTERVAL] == 0

    def write(self, packed: Iterator[PackedImages], skip_bad: bool) -> list[Problem]:
        """Write the part, whose images are the next that are packed.

        Returns the problems for which it is not kept; with ``skip_bad`` those that may not be
        skipped.
        """
        stamps, digests, problems, statistics = bytearray(), [], [], ImageStatistics()
        with self.folder.new_file() as file:
            while len(stamps) < len(self) * STAMP.size:
                images = next(packed)
                file.write(images.records)
                stamps += b"".join(images.stamps.values())
                digests += images.digests
                problems += [problem for _, problem in sorted(images.problems.items())]
                statistics.merge(images.statistics.state())
            errors = [each for each in problems if not (skip_bad and each.may_be_skipped)]
            if errors:
                return errors
            file.name = self.file = self.file_of(stamps.hex())
        finished = FinishedPart(
            recipe=self.recipe,
            stamps=stamps.hex(),
            bytes=file.num_bytes,
            sha256=file.sha256,
            digests=digests,
            statistics=statistics.state(),
            skipped=[(problem.name, problem.reason) for problem in problems],
        )
        with self.folder.new_file(f"{self.file}.json") as beside:
            beside.write(json.dumps(finished._asdict()).encode())
        return []


def plan_parts(
    folder: DatasetFolder, samples: Samples, options: ConvertOptions
) -> list[PlannedPart]:
    """Return the parts of a dataset, at least one image in each."""
    # Images of other formats have to be decoded in full, to see whether they are whole.
    interval = len(samples) // SAMPLE if FORMATS[options.img_format] == "JPEG" else 1
    recipe = {
        **{f"--{name}": getattr(options, name) for name in OPTIONS},
        INTERVAL: max(1, interval),  # every n-th of a part
        "version of OpenCV": cv2.__version__,
        "version of img2ofrecord.py": CODE,
    }
    for package in ("pillow", "pillow-heif"):
        with suppress(PackageNotFoundError):
            recipe[f"version of {package}"] = version(package)
    image_root, parts, first = os.path.join(options.image_root, ""), [], 0
    sizes = part_sizes(len(samples), min(options.part_num, len(samples)))
    for number, size in enumerate(sizes):
        taken = samples.take(range(first, first + size))
        first += size
        names = hashlib.sha256(os.fsencode("\0".join(taken.names)))
        names.update(taken.labels.tobytes())
        of_images = {**recipe, IMAGES: names.hexdigest()}
        parts.append(PlannedPart(folder, number, taken, image_root, of_images))
    return parts


def load_finished(folder: DatasetFolder, name: str) -> FinishedPart:
    """Return what is kept beside a part file.

    Raises OSError, and ValueError or TypeError for a damaged one.
    """
    path = os.path.join(folder.staging, f"{name}.json")
    return FinishedPart(**load_json(read_small_file(path, LARGEST_FILE)))
