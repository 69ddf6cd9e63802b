"""What a conversion will write, and what it has written, so that another run can continue it.

While a dataset is converted its hidden folder holds ``plan.json``, and beside each part that is
on the disk, such as ``part-7``, ``part-7.json``. The manifest is made from these files alone,
whether one run wrote them, several one after the other, or jobs on several machines. They are
removed when the dataset is committed.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Annotated, Any

from pydantic import Field

from runtime.atomic import create_file, read_small_file
from runtime.cli import InputError

from .dataset import sha256_of
from .images import FORMATS
from .manifest import (
    MANIFEST_NAME,
    PART_PATTERN,
    PART_PREFIX,
    Manifest,
    Part,
    Sha256,
    digest_of,
    part_name,
    part_sizes,
    seal,
    unseal,
)
from .settings import Model, StrictModel, load_json, validate
from .statistics import ImageStatistics, StatisticsState

PLAN_NAME, SURVEY_NAME = "plan.json", "survey.json"
# The files in the hidden folder.
STAGED_PATTERN = re.compile(
    rf"{PART_PATTERN.pattern}(\.json)?|{MANIFEST_NAME}|{PLAN_NAME}|{SURVEY_NAME}"
)
LARGEST_FILE = 2**32  # bytes of a JSON file


class Plan(StrictModel):
    """All that the bytes of the parts follow from, besides the images themselves."""

    samples: Sha256  # of the images' names and labels, in order
    num_records: Annotated[int, Field(ge=1, le=2**40)]
    part_num: Annotated[int, Field(ge=1, le=10**6)]
    digits: Annotated[int, Field(ge=1, le=9)]  # of the part names, at least
    encoding: dict[str, Any]  # options of the converter
    manifest_fields: dict[str, Any]  # those that do not follow from the images

    @cached_property
    def digest(self) -> str:
        return digest_of(self.model_dump())

    @cached_property
    def parts(self) -> list[range]:
        """The indices of each part's images."""
        ends = list(accumulate(part_sizes(self.num_records, self.part_num), initial=0))
        return [range(start, stop) for start, stop in pairwise(ends)]

    def differences(self, other: "Plan") -> list[str]:
        """Return the names of what differs in another plan."""
        ours, theirs = (
            {**plan.model_dump(), **plan.encoding, **plan.manifest_fields} for plan in (self, other)
        )
        names = {
            "samples": "the images' names and labels",
            "num_records": "the number of images",
            "digits": "part_name_suffix_length",
            "image_format": "img_format",
            "opencv": "the version of OpenCV",
        }
        ignored = {"encoding", "manifest_fields", "label_counts", "num_classes"}
        return [
            names.get(name, name)
            for name in ours
            if name not in ignored and ours[name] != theirs.get(name)
        ]


class FinishedPart(StrictModel):
    """A part that is on the disk."""

    plan: Sha256
    part: Part
    stamps: Sha256  # of the sizes and time stamps of its images' files
    statistics: StatisticsState


def save(path: str, model: StrictModel) -> None:
    """Write a model as a JSON file. Raises OSError."""
    with create_file(path, "w", encoding="utf-8") as file:
        json.dump(seal(model.model_dump()), file)


def load(path: str, model: type[Model]) -> Model | None:
    """Return the model in a JSON file, or None if there is none that is whole."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        return validate(model, unseal(load_json(read_small_file(path, LARGEST_FILE))))
    return None


def finished_parts(
    staging: str, plan: Plan, numbers: Iterable[int]
) -> Iterator[tuple[int, FinishedPart]]:
    """Yield (number, FinishedPart) of those of the parts with these numbers that are finished.

    Their bytes are not read; see is_whole().
    """
    for number in numbers:
        name = part_name(number, plan.digits)
        expected = plan.digest, name, len(plan.parts[number])
        found = load(os.path.join(staging, f"{name}.json"), FinishedPart)
        if found and (found.plan, found.part.file, found.part.num_records) == expected:
            yield number, found


def is_whole(staging: str, finished: FinishedPart) -> bool:
    """Whether the bytes of a part are those that were written."""
    path = os.path.join(staging, finished.part.file)
    with suppress(OSError):
        has_its_size = finished.part.bytes == os.path.getsize(path)
        return has_its_size and finished.part.sha256 == sha256_of(path)
    return False


def has_finished_parts(staging: str) -> bool:
    """Whether there is anything in the hidden folder that a conversion can continue with."""
    with suppress(OSError):
        names = set(os.listdir(staging))
        parts = {name for name in names if name.startswith(PART_PREFIX) and name.endswith(".json")}
        return bool(parts) or {PLAN_NAME, SURVEY_NAME} <= names
    return False


def make_manifest(plan: Plan, staging: str) -> tuple[Manifest, ImageStatistics]:
    """Return the manifest of a plan all of whose parts are finished, and the images' statistics.

    Raises InputError where they do not make one: they come from a stranger.
    """
    try:
        return _make_manifest(plan, staging)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        raise InputError(
            f"{staging} holds no dataset of img2ofrecord.py: remove it, or start again with --fresh"
        ) from None


def _make_manifest(plan: Plan, staging: str) -> tuple[Manifest, ImageStatistics]:
    statistics, parts = ImageStatistics(), []
    for _, each in finished_parts(staging, plan, range(plan.part_num)):  # one at a time in memory
        statistics.merge(ImageStatistics.from_state(each.statistics))
        parts.append(each.part.model_dump())
    if statistics.num_images != plan.num_records:
        raise ValueError
    fields = dict(plan.manifest_fields)
    channels = fields.pop("channels", None)
    manifest = Manifest.model_validate(
        {
            **fields,
            "num_records": plan.num_records,
            "parts": parts,
            # Of JPEG, what is not plain is re-encoded; OneFlow's faster decoder misreads gray ones.
            "plain_jpeg": FORMATS[fields["image_format"]] == "JPEG" and not statistics.num_gray,
            **statistics.manifest_fields(channels),
        }
    )
    return manifest, statistics
