"""What a LeNet is made for, and the numbers that it starts with."""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from ofrecord.dataset.manifest import MAX_FITTED
from ofrecord.dataset.open_dataset import Dataset
from runtime.cli import InputError, one_line
from runtime.settings import Name, StrictModel

from .engine import flow

# Standard deviation of the pixels that the network sees. The tutorial's weights (sigma 0.1 in
# every layer) start best a little below the usual 1: first losses of about 7, not 14.
PIXEL_STD = 0.5

MIN_SIDE, MAX_PIXELS = 4, 2**20  # of an image: the network halves it twice; 8 GB of weights
MAX_CLASSES = 2**20

Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_PIXELS)]  # pixels
FittedSide = Annotated[int, Field(ge=1, le=MAX_FITTED)]
Level = Annotated[float, Field(ge=0, le=255)]
Fit = Annotated[  # not strict, as JSON has no tuples
    tuple[Literal["stretch", "crop", "pad"], FittedSide, FittedSide], Field(strict=False)
]


class ModelSpec(StrictModel):
    """What a LeNet takes and distinguishes; it is kept with the weights."""

    channels: Literal[1, 3]  # gray, or RGB
    height: Side
    width: Side
    mean: list[Level]  # a figure a channel, subtracted from pixels
    scale: list[Annotated[float, Field(gt=0, le=1000)]]  # by which they are then divided
    num_classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    class_names: list[Name] | None  # None where classes are unnamed
    background: Name = "white"  # color behind transparent images
    # How images were brought to one size (ofrecord.images.resize) before they are stretched to
    # width and height: the method, width, height. None: not at all.
    fit: Fit | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self):
        if not len(self.mean) == len(self.scale) == self.channels:
            raise ValueError("mean and scale should have a figure a channel")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"there should be {self.num_classes} class names")
        if self.width * self.height > MAX_PIXELS:
            raise ValueError("its images have too many pixels")
        return self

    @classmethod
    def from_dataset(cls, dataset: Dataset, image_size: int | None) -> "ModelSpec":
        """Return the spec for a dataset's images; ``image_size``: pixels a side, if resized.

        Raises InputError for images and numbers of classes that LeNet is not for.
        """
        folder, manifest = dataset
        width, height = image_size or manifest.width, image_size or manifest.height
        if width is None:
            raise InputError(f"the images in {folder} vary in size: give --image_size")
        if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
            sides = f"{MIN_SIDE} to {math.isqrt(MAX_PIXELS):,}"
            raise InputError(
                f"LeNet is not for {width}x{height} images: give --image_size, {sides}"
            )
        if manifest.num_classes > MAX_CLASSES:
            raise InputError(
                f"{folder} has labels up to {manifest.num_classes - 1:,}, and LeNet has an output "
                f"for each number: renumber them, below {MAX_CLASSES:,}"
            )
        fit = manifest.fit and (manifest.fit, manifest.width, manifest.height)
        return cls(
            channels=manifest.channels,
            height=height,
            width=width,
            mean=manifest.mean,
            # Images of one flat colour have no deviation.
            scale=[max(std, 1.0) / PIXEL_STD for std in manifest.std],
            num_classes=manifest.num_classes,
            class_names=manifest.class_names,
            background=manifest.background,
            fit=fit if manifest.width else None,
        )

    def class_name(self, label: int) -> str:
        """Return a class's name as it can be printed, or its number where it has none."""
        return one_line(self.class_names[label]) if self.class_names else str(label)


def init_weights(model: flow.nn.Module, init: str, seed: int) -> None:
    """Draw a model's weights, the same on every device, and set its biases to 0.

    ``init`` is ``"tutorial"`` (sigma 0.1 in every layer) or ``"he"`` (sigma sqrt(2 / fan-in), see
    He et al., Delving Deep into Rectifiers, 2015). Both are cut off at two sigma.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith("bias"):
            flow.nn.init.zeros_(parameter)
        else:
            sigma = 0.1 if init == "tutorial" else math.sqrt(2 / math.prod(shape[1:]))
            parameter.data.copy_(flow.tensor(truncated_normal(shape, sigma, rng)))


def truncated_normal(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return float32 normal deviates of mean 0; those beyond two sigma are drawn again.

    (oneflow.nn.init.trunc_normal_ clamps instead, and at two, not two sigma.)
    """
    x = rng.standard_normal(shape)
    while (beyond := np.abs(x) > 2).any():
        x[beyond] = rng.standard_normal(beyond.sum())
    return (sigma * x).astype(np.float32)


def make_dropout_mask(rng: np.random.Generator, n: int, dropout: float) -> flow.Tensor:
    """Return what the dense features of ``n`` images are multiplied by, float32 (n, 512).

    It is 0 with probability ``dropout`` and 1 / (1 - dropout) otherwise. (OneFlow's own
    generators can be neither saved nor restored, so that no run could be resumed.)
    """
    kept = rng.random((n, 512), np.float32) >= dropout
    return flow.tensor(kept.astype(np.float32) / np.float32(1 - dropout))
