"""The converter's options about images, labels and splits."""

import os
import re
import warnings
from functools import cached_property
from itertools import permutations
from typing import Literal

from pydantic import Field, field_validator, model_validator

from runtime.atomic import why_no_folder

from .classes import find_split_folders
from .images import FORMATS
from .manifest import PART_PATTERN, STAGING_NAME
from .settings import Name, StrictModel


def option(default, help, metavar=None, **limits):
    """A field of ConvertOptions."""
    return Field(default, description=help, json_schema_extra={"metavar": metavar}, **limits)


class SourceOptions(StrictModel):
    """Which images to convert, with which labels, into which datasets.

    The first five are the tutorial's.
    """

    image_root: Name = option("./data/images/train_set/", "the folder of the image files", "DIR")
    part_num: int = option(5, "number of part files", "N", ge=1, le=10**6)
    label_dir: Name = option(
        "./data/images/train_label/label.txt",
        'the label file: a JSON object {"image name": label} a line; a table (.csv, .tsv, .txt) '
        "with a header; lines of a name and a label; or a .lst file of im2rec",
        "FILE",
    )
    img_format: Literal[tuple(FORMATS)] = option(".png", "image format in the records")
    save_dir: Name = option(
        "./dataset/", "the folder to write; a dataset already there is replaced", "DIR"
    )
    class_folders: bool = option(
        False,
        "no label file: each folder in the image root is a class, named by the folder; folders "
        "train/, val/ and test/ that hold the class folders become a dataset each",
    )
    image_column: Name | None = option(None, "of image names, in a table; null: guessed", "NAME")
    label_column: str | None = option(
        None, "of labels (A,B,C), in a table; null: guessed", "NAME", min_length=1
    )
    label_type: Literal["auto", "float"] = option(
        "auto", "float: a table's labels are float32, also those of one column, or of 0 and 1 only"
    )
    classes: Name | None = option(
        None, "a file with a class name a line: the classes, in this order; null: sorted", "FILE"
    )
    limit: int | None = option(None, "take N images at random, of all classes", "N", ge=1)
    limit_per_class: int | None = option(None, "take N images of each class", "N", ge=1)
    shuffle: bool = option(
        False, "write the records in random order, which sorted labels need to be trained on"
    )
    val_fraction: float | None = option(
        None,
        "hold out this fraction of each class, chosen at random, as a second dataset",
        "FRACTION",
        gt=0,
        lt=1,
    )
    val_dir: Name | None = option(
        None, "the folder of that second dataset; null: --save_dir with _val", "DIR"
    )
    test_fraction: float | None = option(
        None, "hold out this fraction, too, as a dataset for testing", "FRACTION", gt=0, lt=1
    )
    test_dir: Name | None = option(None, "its folder; null: --save_dir with _test", "DIR")
    group: Name | None = option(
        None,
        "keep images in one dataset whose names have the same match of this regular expression, "
        "or of its first group in parentheses",
        "REGEX",
    )
    group_column: Name | None = option(None, "the same, by a column of the table", "NAME")
    seed: int = option(0, "of what is chosen at random, and of --shuffle", "N", ge=0, lt=2**63)

    @field_validator("group")
    @classmethod
    def _is_a_regex(cls, value):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(value or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"it should be a regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _go_together(self):
        problems = [text for text, holds in self.problems().items() if holds]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def problems(self) -> dict[str, object]:
        """Return what would be wrong with the options together, and whether it is."""
        folders = set(map(os.path.realpath, self.folders.values()))
        root, no_root = os.path.realpath(self.image_root), why_no_folder(self.image_root)
        random = self.shuffle or self.fractions or self.limit or self.limit_per_class
        columns = self.image_column or self.label_column or self.group_column
        return {
            "--seed is for --shuffle, --val_fraction, --test_fraction, --limit and "
            "--limit_per_class, and none is given": "seed" in self.model_fields_set and not random,
            **{
                f"--{name}_dir is the folder for --{name}_fraction, which is not given": (
                    folder is not None and name not in self.folders
                )
                for name, folder in (("val", self.val_dir), ("test", self.test_dir))
            },
            "--val_fraction and --test_fraction leave nothing to train on": (
                sum(self.fractions.values()) >= 1
            ),
            "two of --save_dir, --val_dir and --test_dir are the same folder": (
                len(folders) < len(self.folders)
            ),
            "one of --save_dir, --val_dir and --test_dir is a file of another": any(
                PART_PATTERN.fullmatch(name) or name == STAGING_NAME
                for one, other in permutations(folders, 2)
                for name in [os.path.relpath(one, other).split(os.sep)[0]]
            ),
            "--group and --group_column are for --val_fraction and --test_fraction: give one of the "
            "two with one of those": (
                bool(self.group) + bool(self.group_column) > bool(self.fractions)
            ),
            "--class_folders and --label_dir cannot both give the labels": (
                self.class_folders and "label_dir" in self.model_fields_set
            ),
            "--image_column, --label_column, --label_type and --group_column are for a table, not "
            "for --class_folders": self.class_folders and (columns or self.label_type != "auto"),
            "with --class_folders, --save_dir must be outside of --image_root": (
                self.class_folders
                and any(os.path.commonpath([each, root]) == root for each in folders)
            ),
            **{
                f"--{name}_fraction and the folder {folder}/ in {self.image_root} are both for "
                f"the {name} set: give one": name in self.fractions
                for name, folder in self.split_folders.items()
            },
            f"--image_root {self.image_root} {no_root}": no_root,
        }

    @cached_property
    def split_folders(self) -> dict[str, str]:
        """The folders in the image root that are datasets of their own, by split; often none."""
        return find_split_folders(self.image_root) if self.class_folders else {}

    @property
    def fractions(self) -> dict[str, float]:
        """The fractions to hold out, by split."""
        given = {"val": self.val_fraction, "test": self.test_fraction}
        return {split: fraction for split, fraction in given.items() if fraction is not None}

    @property
    def is_split(self) -> bool:
        """Whether there is more than one dataset to write."""
        return bool(self.fractions or self.split_folders)

    @property
    def folders(self) -> dict[str, str]:
        """The folders to write, by split, in this order."""
        given = {"train": self.save_dir, "val": self.val_dir, "test": self.test_dir}
        return {
            split: folder or os.path.join(self.default_folder(split), "")
            for split, folder in given.items()
            if split in {"train", *self.fractions, *self.split_folders}
        }

    def default_folder(self, split: str) -> str:
        folder = f"{os.path.abspath(self.save_dir)}_{split}"
        return folder if os.path.isabs(self.save_dir) else os.path.relpath(folder)
