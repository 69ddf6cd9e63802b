"""The converter's options: names, defaults, ranges and help."""

import math
import os
import re
from typing import Any, Literal

import cv2
from pydantic import field_validator, model_validator

from runtime.cli import ArgumentParser, count
from runtime.workers import num_cpus

from .images import DEFAULT_BACKGROUND, DEFAULT_QUALITY, FORMATS, ImageOptions
from .record import IMAGE_FEATURE, LABEL_FEATURE
from .settings import Name, given_options, parse_settings
from .source_options import SourceOptions, option

MAX_SIDE, MAX_PIXELS = 2**16, 2**26
MOST_LINES = 1000  # images that get a line each; for more there is a bar
RENAMED = {"val_share": "it is named val_fraction now"}

# What --model_zoo sets: the image loaders of OneFlow's model zoo read no other datasets.
MODEL_ZOO = {
    "img_format": ".jpg",
    "color": "color",
    "part_name_suffix_length": 5,
    "image_feature": "encoded",
    "label_feature": "class/label",
}


class ConvertOptions(SourceOptions):
    """What to convert, and how."""

    size: str | None = option(None, "resize the images to this many pixels, such as 28x28", "WxH")
    fit: Literal["crop", "pad", "stretch"] = option(
        "crop",
        "how --size treats images of another aspect ratio: crop cuts off two sides, pad adds bars "
        "in the --background color, stretch distorts",
    )
    color: Literal["auto", "gray", "color"] = option(
        "auto", "channels to store: auto (gray stays gray), gray (1) or color (3)"
    )
    background: str = option(
        DEFAULT_BACKGROUND,
        "color behind transparent images, and of the bars of --fit pad: a name or #rrggbb",
        "COLOR",
    )
    max_value: str | None = option(
        None,
        "largest value in 16-bit images, such as 4095 if 12 bits are used; auto: of the bit depth "
        "that they use, for which all are read first; null: 65535",
        "N",
    )
    quality: int = option(DEFAULT_QUALITY, "JPEG quality of re-encoded images", "Q", ge=1, le=100)
    skip_bad: bool = option(
        False, "skip images that are missing or invalid, and list them in dataset.json"
    )
    fresh: bool = option(False, "start again where an interrupted conversion would be continued")
    job: str | None = option(
        None,
        "make the K-th of N shares of the parts, on one of several machines that share the folder; "
        "`python -m ofrecord finish DIR` makes the dataset of all",
        "K/N",
    )
    dry_run: bool = option(False, "read and encode every image, report all problems, write nothing")
    part_name_suffix_length: int = option(
        1, "minimum digits in part names, zero-padded: 5 for part-00000", "N", ge=1, le=9
    )
    progress: Literal["auto", "lines", "bar", "none"] = option(
        "auto", f"a line for each image, or a bar; auto: lines for up to {MOST_LINES:,} images"
    )
    workers: int = option(num_cpus(), "processes that read and encode images", "N", ge=1, le=1024)
    image_feature: Name = option(IMAGE_FEATURE, "the name of the records' image feature", "NAME")
    label_feature: Name = option(LABEL_FEATURE, "the name of the records' label feature", "NAME")
    model_zoo: bool = option(
        False,
        "a dataset for OneFlow's model zoo: save_dir/train and save_dir/validation (with "
        "--val_fraction), " + " ".join(f"--{name} {value}" for name, value in MODEL_ZOO.items()),
    )

    @model_validator(mode="before")
    @classmethod
    def _for_the_model_zoo(cls, given):
        if given.get("model_zoo") is not True:
            return given
        root = str(given.get("save_dir", cls.model_fields["save_dir"].default))
        convention = {**MODEL_ZOO, "val_dir": os.path.join(root, "validation", "")}
        problems = [
            f"--model_zoo sets --{name} {value}, and {given[name]!r} is given"
            for name, value in convention.items()
            if given.get(name, value) != value
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return {**given, **MODEL_ZOO, "save_dir": root and os.path.join(root, "train", "")}

    @field_validator("max_value")
    @classmethod
    def _is_a_value(cls, value):
        number = re.fullmatch("[0-9]{1,5}", value or "1")
        if value != "auto" and not (number and 1 <= int(number[0]) <= 65535):
            raise ValueError("it should be a number from 1 to 65535, or auto")
        return value

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
        match = re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", value or "1x1")
        sides = tuple(map(int, match.groups())) if match else (0, 0)
        if not match or max(sides) > MAX_SIDE or math.prod(sides) > MAX_PIXELS:
            raise ValueError(
                f"it should be WxH, such as 28x28, of at most {MAX_SIDE:,} pixels a side "
                f"and {MAX_PIXELS:,} in all"
            )
        return value

    @field_validator("background")
    @classmethod
    def _is_a_color(cls, value):
        from PIL import ImageColor  # takes 0.05 s to import

        # getrgb raises ValueError, and returns a fourth number where there is an alpha.
        if value != DEFAULT_BACKGROUND and len(ImageColor.getrgb(value)) > 3:
            raise ValueError("it should be an opaque color")
        return value

    def problems(self) -> dict[str, object]:
        return {
            f"--quality is for JPEG, and --img_format is {self.img_format}": (
                "quality" in self.model_fields_set and FORMATS[self.img_format] != "JPEG"
            ),
            "--fit says how images get the --size, which is not given": (
                "fit" in self.model_fields_set and self.size is None
            ),
            "--image_feature and --label_feature are the same name": (
                self.image_feature == self.label_feature
            ),
            f"--job {self.job}: there are only {count(self.part_num, 'part')} (--part_num)": (
                self.share[1] > self.part_num
            ),
            "--job and --fresh: remove the hidden folder .img2ofrecord before the first job": (
                self.job and self.fresh
            ),
            "--job and --dry_run: a dry run looks at all images": self.job and self.dry_run,
            **super().problems(),
        }

    @property
    def share(self) -> tuple[int, int]:
        """Of --job: its number, from 0, and the number of jobs."""
        number, num_jobs = (self.job or "1/1").split("/")
        return int(number) - 1, int(num_jobs)

    @property
    def encoding(self) -> dict[str, Any]:
        """What the records' bytes follow from, besides the images and ``manifest_fields``."""
        return {**self.model_dump(include={"color", "size", "quality"}), "opencv": cv2.__version__}

    def default_folder(self, split: str) -> str:
        if not self.model_zoo:
            return super().default_folder(split)
        root = os.path.dirname(os.path.normpath(self.save_dir))
        return os.path.join(root, "validation" if split == "val" else split)

    @property
    def manifest_fields(self) -> dict[str, Any]:
        """The fields of a Manifest that say how the images are stored."""
        fields = self.model_dump(include={"background", "image_feature", "label_feature"})
        fit, max_value = self.fit if self.size else None, self.image_options.max_value
        return {**fields, "fit": fit, "max_value": max_value}

    @property
    def image_options(self) -> ImageOptions:
        """How the images are stored."""
        size = tuple(map(int, self.size.split("x"))) if self.size else None
        max_value = int(self.max_value) if self.max_value else None
        return ImageOptions(self.color, size, self.quality, self.background, max_value, self.fit)


def parse_options() -> ConvertOptions:
    """Return the options of the command line. Raises InputErrors with every problem."""
    parser = ArgumentParser(description="Pack image files and labels into an OFRecord dataset.")
    return parse_settings(ConvertOptions, [given_options(parser, ConvertOptions)], RENAMED)
