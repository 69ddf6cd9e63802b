"""LeNet, and what one was made for."""

from dataclasses import asdict, dataclass
from typing import List, Optional

import numpy as np

from .engine import flow

nn = flow.nn
functional = flow.nn.functional

# Of the pixels that the network sees. The tutorial's weights (sigma 0.1 in every
# layer) start best a little below the usual 1: first losses of about 7, not 14.
PIXEL_STD = 0.5


@dataclass(frozen=True)
class Spec:
    """What a LeNet takes and tells apart; it is kept with the weights.

    Images are ``channels`` (1 gray, 3 RGB) x ``height`` x ``width`` pixels,
    0 to 255, of which ``mean`` is subtracted and which are then divided by
    ``std``, one figure a channel. ``class_names`` is None where classes are
    only numbers.
    """

    channels: int
    height: int
    width: int
    mean: List[float]
    std: List[float]
    classes: int
    class_names: Optional[List[str]]

    @classmethod
    def of(cls, dataset, image_size):
        """For the images of a dataset's Manifest, resized to ``image_size`` pixels a side unless that is None."""
        return cls(channels=dataset.channels, height=image_size or dataset.height, width=image_size or dataset.width,
                   mean=list(dataset.mean),
                   std=[max(std, 1.0) / PIXEL_STD for std in dataset.std],  # images of one flat colour have none
                   classes=dataset.classes, class_names=dataset.class_names)

    to_json = asdict

    def name(self, label):
        """A class as people call it: its name, or its number."""
        return self.class_names[label] if self.class_names else str(label)


class LeNet(nn.Module):
    """The tutorial's LeNet, for images of any size from 4x4 and any number of classes.

    ``spec`` is kept as an attribute. 28x28 gray images and 10 classes make
    1,663,370 parameters, which start as draw_weights says, or wherever
    load_state_dict is to put them.
    """

    def __init__(self, spec, dropout=0.0):
        super().__init__()
        self.spec = spec
        self.conv1 = nn.Conv2d(spec.channels, 32, kernel_size=5, padding=2)  # padding 2 keeps the size ("SAME")
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2)
        self.dense1 = nn.Linear(64 * (spec.height // 4) * (spec.width // 4), 512)
        self.dense2 = nn.Linear(512, spec.classes)
        self.dropout = dropout

    def draw_weights(self, kind, rng):
        """Start from weights that ``rng``, a numpy Generator, draws, the same on every device; returns itself.

        ``kind`` is ``"tutorial"`` (sigma 0.1 in every layer) or ``"he"``
        (sigma sqrt(2 / inputs of a unit), see He et al., Delving Deep into
        Rectifiers, 2015). Both are cut off at two sigma; biases start at 0.
        """
        for layer in (self.conv1, self.conv2, self.dense1, self.dense2):
            shape = tuple(layer.weight.shape)
            sigma = 0.1 if kind == "tutorial" else np.sqrt(2 / np.prod(shape[1:]))
            layer.weight.data.copy_(flow.tensor(truncated_normal(shape, sigma, rng)))
            nn.init.zeros_(layer.bias)
        return self

    def forward(self, images, kept=None):
        """Logits, float32 (n, classes). ``kept``, of draw_dropout, is for training."""
        # Shapes for 28x28 gray images:                                             (n, 1, 28, 28)
        x = functional.max_pool2d(functional.relu(self.conv1(images)), 2, stride=2)  # (n, 32, 14, 14)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2, stride=2)  # (n, 64, 7, 7)
        x = functional.relu(self.dense1(x.flatten(1)))  # (n, 512)
        return self.dense2(x if kept is None else x * kept)  # (n, 10)

    def draw_dropout(self, n):
        """What the dense features of ``n`` images are multiplied by: float32 (n, 512), 0 for a share of ``dropout``.

        Drawn by flow.manual_seed's generator, outside the forward pass: that
        of nn.Dropout, and of a compiled graph, are out of its reach.
        """
        weight = self.dense2.weight
        return functional.dropout(flow.ones(n, weight.shape[1], device=weight.device), self.dropout)


def truncated_normal(shape, sigma, rng):
    """float32 normal deviates of mean 0; those beyond two sigma are drawn again.

    (oneflow.nn.init.trunc_normal_ clamps instead, and at two, not two sigma.)
    """
    x = rng.standard_normal(shape)
    while True:
        beyond = np.abs(x) > 2
        if not beyond.any():
            return (sigma * x).astype(np.float32)
        x[beyond] = rng.standard_normal(beyond.sum())
