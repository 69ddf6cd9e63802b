"""Varying training images at random."""

import numpy as np

from .config import TrainConfig
from .engine import flow

functional = flow.nn.functional

CROP_ASPECT = (0.99, 1.0)  # width over height of what is cut out, relative to the image's


def augment(images: flow.Tensor, config: TrainConfig, rng: np.random.Generator) -> flow.Tensor:
    """Return the images cropped, rotated, stretched and moved at random, each differently.

    ``images``: float32 (n, channels, height, width), on any device; ``config.crop``,
    ``rotation``, ``zoom`` and ``shift`` say by how much. It works on decoded
    images, so for every format, unlike the decoders' own crop.
    """
    if not (config.augment and (config.crop or config.rotation or config.zoom or config.shift)):
        return images
    n, _, frame_height, frame_width = images.shape
    # Of the window that is cut out: width and height as fractions of the image's, and its
    # centre, where the image spans -1 to 1. Drawn in this order, whether they are used or not.
    area, aspect = rng.uniform(1 - config.crop, 1, n), rng.uniform(*CROP_ASPECT, n)
    size = (
        np.minimum(np.sqrt([area * aspect, area / aspect]), 1) if config.crop else np.ones((2, n))
    )
    centre = (1 - size) * rng.uniform(-1, 1, (2, n))  # inside
    width, height = size * rng.uniform(1 - config.zoom, 1 + config.zoom, (2, n))
    x, y = centre + rng.uniform(-2 * config.shift, 2 * config.shift, (2, n))
    angle = np.radians(rng.uniform(-config.rotation, config.rotation, n))
    cos, sin, slant = np.cos(angle), np.sin(angle), frame_height / frame_width
    rows = [[width * cos, -width * sin * slant, x], [height * sin / slant, height * cos, y]]
    theta = flow.tensor(np.array(rows, np.float32).transpose(2, 0, 1).copy()).to(images.device)
    grid = functional.affine_grid(theta, tuple(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
