"""What is counted over the images of a dataset, exactly and whatever the order they come in."""

from collections import Counter
from typing import Any

import numpy as np

from .images import EncodedImage, mean_and_std


class ImageStatistics:
    """Sizes, colours and pixel values of images that are added one by one."""

    def __init__(self):
        self.sizes: set[tuple[int, int]] = (
            set()
        )  # (width, height); two are kept, which says "varies"
        self.num_gray = 0
        self.reencode_reasons: Counter[str | None] = Counter()  # None: stored unchanged
        self._histogram = np.zeros((4, 256), np.int64)  # gray images', then B, G, R of colour ones

    @property
    def num_images(self) -> int:
        return self.reencode_reasons.total()

    @property
    def channels(self) -> int:
        """Of the dataset: 3 if any image is in colour."""
        return 1 if self.num_gray == self.num_images else 3

    def add(self, image: EncodedImage) -> None:
        gray = image.channels == 1
        self.num_gray += gray
        self.reencode_reasons[image.reencode_reason] += 1
        self._histogram[slice(0, 1) if gray else slice(1, 4)] += image.histogram
        self._add_size((image.width, image.height))

    def _add_size(self, size: tuple[int, int]) -> None:
        if len(self.sizes) < 2:
            self.sizes.add(size)

    def merge(self, other: "ImageStatistics") -> None:
        self.num_gray += other.num_gray
        self.reencode_reasons += other.reencode_reasons
        self._histogram += other._histogram
        for size in sorted(other.sizes):
            self._add_size(size)

    def manifest_fields(self) -> dict[str, Any]:
        """Return the fields of a Manifest that follow from the images."""
        gray, *bgr = self._histogram
        histogram = np.stack(
            [gray] if self.channels == 1 else [gray + row for row in reversed(bgr)]
        )
        mean, std = mean_and_std(histogram)
        width, height = next(iter(self.sizes)) if len(self.sizes) == 1 else (None, None)
        return {
            "channels": self.channels,
            "num_gray": self.num_gray,
            "width": width,
            "height": height,
            "mean": mean,
            "std": std,
            "histogram": histogram.tolist(),
            "num_measured": self.num_images,
        }
