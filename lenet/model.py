"""LeNet, and what one was made for."""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from ofrecord.dataset import Dataset
from ofrecord.images import DEFAULT_BACKGROUND
from ofrecord.manifest import MaxValue
from ofrecord.options import MAX_PIXELS
from ofrecord.settings import Name, StrictModel
from runtime.cli import one_line

from .engine import flow

nn = flow.nn
functional = flow.nn.functional

# Standard deviation of the pixels that the network sees. The tutorial's weights (sigma 0.1 in
# every layer) start best a little below the usual 1: first losses of about 7, not 14.
PIXEL_STD = 0.5

Side = Annotated[int, Field(ge=4, le=2**16)]  # pixels; the network halves them twice


class Fit(StrictModel):
    """How the dataset's images were brought to one size: see ofrecord.images.resize."""

    method: Literal["stretch", "crop", "pad"]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _fits_in_memory(self):
        if self.width * self.height > MAX_PIXELS:
            raise ValueError(f"{self.width}x{self.height} pixels are too many")
        return self


class ModelSpec(StrictModel):
    """What a LeNet takes and distinguishes; it is kept with the weights."""

    channels: Literal[1, 3]  # gray, or RGB
    height: Side
    width: Side
    mean: list[Annotated[float, Field(ge=0, le=255)]]  # a figure a channel, subtracted from pixels
    scale: list[Annotated[float, Field(gt=0, le=1000)]]  # by which they are then divided
    num_classes: Annotated[int, Field(ge=1, le=2**31)]
    class_names: list[Name] | None  # None where classes are unnamed
    background: Name = DEFAULT_BACKGROUND  # color behind transparent images
    max_value: MaxValue = None  # of 16-bit images, which became 255; None: 65,535
    fit: Fit | None = None  # before images are stretched to width and height; None: nothing

    @model_validator(mode="after")
    def _agrees_with_itself(self):
        if not len(self.mean) == len(self.scale) == self.channels:
            raise ValueError("mean and scale should have a figure a channel")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"there should be {self.num_classes} class names")
        return self

    @classmethod
    def from_dataset(cls, dataset: Dataset, image_size: int | None) -> "ModelSpec":
        """Return the spec for a dataset's images; ``image_size``: pixels a side, if resized."""
        manifest = dataset.manifest
        fit, width, height = manifest.fit, manifest.width, manifest.height
        return cls(
            channels=manifest.channels,
            height=image_size or height,
            width=image_size or width,
            mean=manifest.mean,
            # Images of one flat colour have no deviation.
            scale=[max(std, 1.0) / PIXEL_STD for std in manifest.std],
            num_classes=manifest.num_classes,
            class_names=manifest.class_names,
            background=manifest.background,
            max_value=manifest.max_value,
            fit=Fit(method=fit, width=width, height=height) if fit and width else None,
        )

    def class_name(self, label: int) -> str:
        """Return a class's name as it can be printed, or its number where it has none."""
        return one_line(self.class_names[label]) if self.class_names else str(label)


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight and bias of a LeNet, by its name in the state_dict."""
    features = 64 * (spec.height // 4) * (spec.width // 4)
    return {
        "conv1.weight": (32, spec.channels, 5, 5),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 5, 5),
        "conv2.bias": (64,),
        "dense1.weight": (512, features),
        "dense1.bias": (512,),
        "dense2.weight": (spec.num_classes, 512),
        "dense2.bias": (spec.num_classes,),
    }


class LeNet(nn.Module):
    """The tutorial's LeNet, for images of any size from 4x4 and any number of classes.

    28x28 gray images and 10 classes make 1,663,370 parameters.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        # Padding 2 keeps the size ("SAME").
        self.conv1 = nn.Conv2d(spec.channels, 32, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2)
        self.dense1 = nn.Linear(64 * (spec.height // 4) * (spec.width // 4), 512)
        self.dense2 = nn.Linear(512, spec.num_classes)

    def init_weights(self, init: str, seed: int) -> "LeNet":
        """Draw the weights, the same on every device, and return the model.

        ``init`` is ``"tutorial"`` (sigma 0.1 in every layer) or ``"he"``
        (sigma sqrt(2 / fan-in), see He et al., Delving Deep into Rectifiers,
        2015). Both are cut off at two sigma; biases are 0.
        """
        rng = np.random.default_rng(seed)
        for layer in (self.conv1, self.conv2, self.dense1, self.dense2):
            shape = tuple(layer.weight.shape)
            sigma = 0.1 if init == "tutorial" else math.sqrt(2 / math.prod(shape[1:]))
            layer.weight.data.copy_(flow.tensor(truncated_normal(shape, sigma, rng)))
            nn.init.zeros_(layer.bias)
        return self

    def forward(self, images, dropout_mask=None):
        """Return logits, float32 (n, num_classes); ``dropout_mask`` is for training."""
        # Shapes for 28x28 gray images:                                          (n, 1, 28, 28)
        x = functional.max_pool2d(functional.relu(self.conv1(images)), 2, stride=2)  # 32, 14, 14
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2, stride=2)  # (n, 64, 7, 7)
        x = functional.relu(self.dense1(x.flatten(1)))  # (n, 512)
        return self.dense2(x if dropout_mask is None else x * dropout_mask)  # (n, 10)


def make_dropout_mask(rng: np.random.Generator, n: int, dropout: float) -> flow.Tensor:
    """Return what the dense features of ``n`` images are multiplied by, float32 (n, 512).

    It is 0 with probability ``dropout`` and 1 / (1 - dropout) otherwise. (OneFlow's own
    generators can be neither saved nor restored, so that no run could be resumed.)
    """
    kept = rng.random((n, 512), np.float32) >= dropout
    return flow.tensor(kept.astype(np.float32) / np.float32(1 - dropout))


def truncated_normal(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return float32 normal deviates of mean 0; those beyond two sigma are drawn again.

    (oneflow.nn.init.trunc_normal_ clamps instead, and at two, not two sigma.)
    """
    x = rng.standard_normal(shape)
    while (beyond := np.abs(x) > 2).any():
        x[beyond] = rng.standard_normal(beyond.sum())
    return (sigma * x).astype(np.float32)
