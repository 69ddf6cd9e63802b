"""LeNet and the description of what it was made for."""

from dataclasses import dataclass

import numpy as np

from ofrecord.manifest import Manifest

from .engine import flow

nn = flow.nn
functional = flow.nn.functional

# Standard deviation of the pixels that the network sees. The tutorial's weights
# (sigma 0.1 in every layer) start best a little below the usual 1: first losses
# of about 7, not 14.
PIXEL_STD = 0.5


@dataclass(frozen=True)
class Spec:
    """The images and classes of a LeNet, stored together with its weights.

    Pixels from 0 to 255 are normalized as ``(pixel - mean) / scale``, with one
    mean and one scale per channel.
    """

    channels: int  # 1 (gray) or 3 (RGB)
    height: int  # pixels
    width: int  # pixels
    mean: list[float]  # per channel, 0 to 255
    scale: list[float]  # per channel: the dataset's standard deviation / PIXEL_STD
    num_classes: int
    class_names: list[str] | None  # None where classes are only numbers

    @classmethod
    def from_dataset(cls, dataset: Manifest, image_size: int | None) -> "Spec":
        """Return the Spec for a dataset's images.

        ``image_size`` is the width and height in pixels that they are resized
        to; None keeps the dataset's own.
        """
        return cls(
            channels=dataset.channels,
            height=image_size or dataset.height,
            width=image_size or dataset.width,
            mean=list(dataset.mean),
            # At least 1: images of one flat color have a standard deviation of 0.
            scale=[max(std, 1.0) / PIXEL_STD for std in dataset.std],
            num_classes=dataset.num_classes,
            class_names=dataset.class_names,
        )

    def to_json(self) -> dict:
        """Return the fields as checkpoint.json has them."""
        return {
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "mean": self.mean,
            "std": self.scale,
            "classes": self.num_classes,
            "class_names": self.class_names,
        }

    @classmethod
    def from_json(cls, fields: dict) -> "Spec":
        """Return the Spec whose to_json returned ``fields``."""
        names = {"std": "scale", "classes": "num_classes"}
        return cls(**{names.get(name, name): value for name, value in fields.items()})

    def class_name(self, label: int) -> str:
        """Return the name of a label's class, or the label as text where classes have no names."""
        return self.class_names[label] if self.class_names else str(label)


class LeNet(nn.Module):
    """The tutorial's LeNet, for images of at least 4x4 pixels and any number of classes.

    28x28 gray images and 10 classes make 1,663,370 parameters. Initialize them
    with init_weights or load_state_dict.
    """

    def __init__(self, spec: Spec, dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        # Padding 2 keeps the size ("SAME").
        self.conv1 = nn.Conv2d(spec.channels, 32, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2)
        self.dense1 = nn.Linear(64 * (spec.height // 4) * (spec.width // 4), 512)
        self.dense2 = nn.Linear(512, spec.num_classes)
        self.dropout = dropout

    def init_weights(self, kind: str, rng: np.random.Generator) -> "LeNet":
        """Initialize weights at random and biases with 0, and return the model itself.

        ``kind`` is ``"tutorial"`` (sigma 0.1 in every layer) or ``"he"``
        (sigma sqrt(2 / fan-in), see He et al., Delving Deep into Rectifiers,
        2015). Both are normal distributions truncated at two sigma. ``rng``
        draws the same weights on every device.
        """
        for layer in (self.conv1, self.conv2, self.dense1, self.dense2):
            shape = tuple(layer.weight.shape)
            sigma = 0.1 if kind == "tutorial" else np.sqrt(2 / np.prod(shape[1:]))
            layer.weight.data.copy_(flow.tensor(truncated_normal(shape, sigma, rng)))
            nn.init.zeros_(layer.bias)
        return self

    def forward(self, images: flow.Tensor, dropout_mask: flow.Tensor | None = None) -> flow.Tensor:
        """Return logits, float32 (n, num_classes).

        ``images`` is float32 (n, channels, height, width), normalized;
        ``dropout_mask``, for training only, comes from make_dropout_mask.
        """
        # Shapes in comments: for 28x28 gray images, (n, 1, 28, 28), and 10 classes.
        x = functional.relu(self.conv1(images))  # (n, 32, 28, 28)
        x = functional.max_pool2d(x, 2, stride=2)  # (n, 32, 14, 14)
        x = functional.relu(self.conv2(x))  # (n, 64, 14, 14)
        x = functional.max_pool2d(x, 2, stride=2)  # (n, 64, 7, 7)
        x = functional.relu(self.dense1(x.flatten(1)))  # (n, 512)
        return self.dense2(x if dropout_mask is None else x * dropout_mask)  # (n, 10)

    def make_dropout_mask(self, n: int) -> flow.Tensor:
        """Return the factors for the dense features of ``n`` images, float32 (n, 512).

        A fraction ``dropout`` of them is 0, the others are 1 / (1 - dropout).
        The mask is drawn outside the forward pass by the generator that
        flow.manual_seed seeds; it does not seed those of nn.Dropout and of a
        compiled graph.
        """
        weight = self.dense2.weight
        return functional.dropout(flow.ones(n, weight.shape[1], device=weight.device), self.dropout)


def truncated_normal(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return float32 normal deviates of mean 0; those beyond two sigma are drawn again.

    (oneflow.nn.init.trunc_normal_ clamps instead, and at 2, not at two sigma.)
    """
    x = rng.standard_normal(shape)
    while True:
        beyond = np.abs(x) > 2
        if not beyond.any():
            return (sigma * x).astype(np.float32)
        x[beyond] = rng.standard_normal(beyond.sum())
