"""The converter's options: names, defaults, ranges and help."""

import os
import re
from typing import Literal

from pydantic import field_validator

from runtime.cli import ArgumentParser, count, output
from runtime.settings import Name, given_options, parse_settings, setting
from runtime.workers import num_cpus

from ..dataset.manifest import DEFAULT_BACKGROUND, FORMATS, MAX_FITTED
from ..images import ImageOptions
from ..labels.options import SourceOptions
from ..record import IMAGE_FEATURE, LABEL_FEATURE


class ConvertOptions(SourceOptions):
    """What to convert, and how.

    The tutorial's are image_root, part_num, label_dir, img_format and save_dir.
    """

    part_num: int = setting(5, "number of part files", "N", ge=1, le=10**6)
    img_format: Literal[tuple(FORMATS)] = setting(".png", "image format in the records")
    save_dir: Name = setting(
        "./dataset/",
        "the folder to write; a dataset already there is replaced. A validation and a test set "
        "get the same name with _val and _test",
        "DIR",
    )
    size: str | None = setting(None, "resize the images to this many pixels, such as 28x28", "WxH")
    fit: Literal["crop", "pad", "stretch"] = setting(
        "crop",
        "how --size treats images of another aspect ratio: crop cuts off two sides, pad adds bars "
        "in the --background color, stretch distorts",
    )
    color: Literal["auto", "gray", "color"] = setting(
        "auto", "channels to store: auto (gray stays gray), gray (1) or color (3)"
    )
    background: str = setting(
        DEFAULT_BACKGROUND,
        "color behind transparent images, and of the bars of --fit pad: a name or #rrggbb",
        "COLOR",
    )
    quality: int = setting(95, "JPEG quality of re-encoded images", "Q", ge=1, le=100)
    skip_bad: bool = setting(
        False, "skip images that are missing or invalid, and list them in dataset.json"
    )
    anonymous: bool = setting(False, "leave the images' names out of images.csv and dataset.json")
    job: str | None = setting(
        None,
        "make every N-th part only, from the K-th, on one of several machines that share the "
        "folder; afterwards the same command without --job makes the dataset of all",
        "K/N",
    )
    part_name_suffix_length: int = setting(
        1, "minimum digits in part names, zero-padded: 5 for part-00000", "N", ge=1, le=9
    )
    workers: int = setting(num_cpus(), "processes that read and encode images", "N", ge=1, le=1024)
    image_feature: Name = setting(IMAGE_FEATURE, "the name of the records' image feature", "NAME")
    label_feature: Name = setting(LABEL_FEATURE, "the name of the records' label feature", "NAME")

    @field_validator("job")
    @classmethod
    def _is_a_share(cls, value):
        match = re.fullmatch("([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", value or "1/1")
        if not match or int(match[1]) > int(match[2]):
            raise ValueError("it should be K/N with K from 1 to N, such as 3/8")
        return value

    @field_validator("size")
    @classmethod
    def _is_size(cls, value):
        if value is not None and not re.fullmatch("[1-9][0-9]{0,3}x[1-9][0-9]{0,3}", value):
            limit = f"at most {MAX_FITTED:,} pixels a side"
            raise ValueError(f"it should be WxH, such as 28x28, of {limit}")
        return value

    @field_validator("background")
    @classmethod
    def _is_a_color(cls, value):
        if value != DEFAULT_BACKGROUND:
            from PIL import ImageColor  # takes 0.05 s to import

            # getrgb raises ValueError, and returns a fourth number where there is an alpha.
            if len(ImageColor.getrgb(value)) > 3:
                raise ValueError("it should be an opaque color")
        return value

    def problems(self) -> list[str]:
        problems = super().problems()
        if "quality" in self.model_fields_set and FORMATS[self.img_format] != "JPEG":
            problems.append(f"--quality is for JPEG, and --img_format is {self.img_format}")
        if "fit" in self.model_fields_set and self.size is None:
            problems.append("--fit says how images get the --size, which is not given")
        if self.image_feature == self.label_feature:
            problems.append("--image_feature and --label_feature are the same name")
        if self.share[1] > self.part_num:
            parts = count(self.part_num, "part")
            problems.append(f"--job {self.job}: there are only {parts} (--part_num)")
        root = os.path.realpath(self.image_root)
        targets = (os.path.realpath(self.folder(split)) for split in ("train", *self.fractions))
        if self.class_folders and any(os.path.commonpath([each, root]) == root for each in targets):
            problems.append("with --class_folders, --save_dir must be outside of --image_root")
        return problems

    @property
    def share(self) -> tuple[int, int]:
        """Of --job: its number, from 0, and the number of jobs."""
        number, num_jobs = (self.job or "1/1").split("/")
        return int(number) - 1, int(num_jobs)

    def folder(self, split: str) -> str:
        """Return the folder of a dataset: ``"train"``, ``"val"`` or ``"test"``."""
        if split == "train":
            return self.save_dir
        folder = f"{os.path.abspath(self.save_dir)}_{split}"
        folder = folder if os.path.isabs(self.save_dir) else os.path.relpath(folder)
        return os.path.join(folder, "")

    @property
    def image_options(self) -> ImageOptions:
        """How the images are stored."""
        size = tuple(map(int, self.size.split("x"))) if self.size else None
        return ImageOptions(self.color, size, self.quality, self.background, self.fit)


def parse_options() -> ConvertOptions:
    """Return the options of the command line. Raises InputErrors as parse_settings does."""
    parser = ArgumentParser(description="Pack image files and labels into an OFRecord dataset.")
    return parse_settings(ConvertOptions, [given_options(parser, ConvertOptions)])


def print_settings(options: ConvertOptions) -> None:
    """Print the lines that the tutorial begins with."""
    labels = options.image_root if options.class_folders else options.label_dir
    output(
        f"The image root is:  {options.image_root}",
        f"The amount of OFRecord data part is:  {options.part_num}",
        f"The directory of Labels is:  {labels}",
        f"The image format is:  {options.img_format}",
        f"The OFRecord save directory is:  {options.save_dir}",
        "Start Processing......",
    )
