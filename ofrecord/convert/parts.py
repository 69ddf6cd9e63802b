"""Parts: each follows from its images and the options, and its key says whether it is there.

While a dataset is made its hidden folder holds ``part-3.KEY``, and ``part-3.KEY.json``, which is
written after it. KEY is the SHA-256 of all that the part's bytes follow from. So a conversion
that was interrupted is continued, and jobs on several machines share one, by looking for files.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import cv2

from runtime.atomic import read_small_file

from ..dataset.manifest import FORMATS, digest_of, part_name
from ..dataset.staging import DatasetFolder, NewFile
from ..dataset.statistics import ImageStatistics
from ..labels import Samples
from .chunk import STAMP, Chunk, Problem
from .options import ConvertOptions

CODE = 1  # raised when a change of the code changes the bytes of parts, or their statistics
SAMPLE = 4000  # images of a JPEG dataset that are decoded in full, about
LARGEST_FILE = 2**32  # bytes of a JSON file

# Options that the bytes follow from.
OPTIONS = "img_format size fit color background quality image_feature label_feature".split()
INTERVAL = "how many JPEG files are decoded in full"


def make_recipe(options: ConvertOptions, num_images: int) -> dict[str, Any]:
    """Return what the parts of a dataset follow from besides the images, by names for people."""
    # Images of other formats have to be decoded in full, to see whether they are whole.
    interval = num_images // SAMPLE if FORMATS[options.img_format] == "JPEG" else 1
    return {
        **{f"--{name}": getattr(options, name) for name in OPTIONS},
        INTERVAL: max(1, interval),  # every n-th of a part
        "the version of OpenCV": cv2.__version__,
        "the version of Pillow": _version_of("pillow"),
        "the version of pillow-heif": _version_of("pillow-heif"),
        "the version of img2ofrecord.py": CODE,
    }


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class FinishedPart(NamedTuple):
    """What is kept beside a part that is on the disk."""

    recipe: dict[str, Any]
    images: str  # SHA-256 of the images' names and labels
    stamps: str  # of each image's file, as hexadecimal digits
    bytes: int
    sha256: str
    digests: list[str]  # those of images.csv
    statistics: dict[str, Any]
    skipped: list[tuple[str, str]]  # (name, reason)


class PlannedPart:
    """A part of a dataset to write; its ``key`` is None until it is there."""

    def __init__(
        self, folder: DatasetFolder, number: int, samples: Samples, recipe: dict[str, Any]
    ):
        self.folder, self.number, self.samples, self.recipe = folder, number, samples, recipe
        self.key: str | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def interval(self) -> int:
        return self.recipe[INTERVAL]

    @property
    def images(self) -> str:
        """A SHA-256 of the images' names and labels."""
        digest = hashlib.sha256(os.fsencode("\0".join(self.samples.names)))
        digest.update(self.samples.labels.tobytes())
        return digest.hexdigest()

    def key_of(self, stamps: str) -> str:
        """Return the key for images whose files have these stamps, as hexadecimal digits."""
        return digest_of([self.recipe, self.images, stamps])

    @property
    def file(self) -> str:
        """The name of its file in the hidden folder, when it is there."""
        return f"{part_name(self.number)}.{self.key}"

    @contextmanager
    def write(self, skip_bad: bool) -> Iterator["PartWriter"]:
        """Open the part to write it; at the end of the block it is there.

        It is not where it has problems, unless ``skip_bad`` and they may be skipped.
        """
        with self.folder.new_file() as file:
            writer = PartWriter(file)
            yield writer
            if not writer.errors(skip_bad):
                self.key = self.key_of(writer.stamps.hex())
                file.name = self.file
        if self.key:
            finished = FinishedPart(
                recipe=self.recipe,
                images=self.images,
                stamps=writer.stamps.hex(),
                bytes=file.num_bytes,
                sha256=file.sha256,
                digests=writer.digests,
                statistics=writer.statistics.state(),
                skipped=[(problem.name, problem.reason) for problem in writer.problems],
            )
            with self.folder.new_file(f"{self.file}.json") as beside:
                beside.write(json.dumps(finished._asdict()).encode())


class PartWriter:
    """Adds chunks of packed images to a part, in order."""

    def __init__(self, file: NewFile):
        self.problems: list[Problem] = []
        self.stamps = bytearray()
        self.digests: list[str] = []
        self.statistics = ImageStatistics()
        self._file = file

    @property
    def num_images(self) -> int:
        return len(self.stamps) // STAMP.size

    def add(self, chunk: Chunk) -> None:
        self._file.write(chunk.packed.getbuffer())
        self.stamps += chunk.stamps
        self.digests += chunk.digests
        self.statistics.merge(chunk.statistics.state())
        by_name = {problem.name: problem for problem in chunk.problems}
        self.problems += [by_name[name] for name in chunk.paths if name in by_name]

    def errors(self, skip_bad: bool) -> list[Problem]:
        """Return the problems for which the part cannot be kept."""
        return [each for each in self.problems if not (skip_bad and each.may_be_skipped)]


def load_finished(folder: DatasetFolder, name: str) -> FinishedPart:
    """Return what is kept beside a part file. Raises OSError, and ValueError for a damaged one."""
    path = os.path.join(folder.staging, f"{name}.json")
    try:
        return FinishedPart(**json.loads(read_small_file(path, LARGEST_FILE)))
    except (TypeError, RecursionError):
        raise ValueError(f"{path} is damaged") from None
