"""What is counted over the images of a dataset: sums, whatever the order they come in."""

from collections import Counter
from typing import Any, NamedTuple

import cv2
import numpy as np

BLOCK = 2**20  # pixels that are counted at once: calcHist's float32 is exact up to 2**24
WAIT = 2**17  # values; small images wait for each other, which takes a quarter of the time
SUMS = "num_images", "num_gray", "num_measured", "num_several"


class EncodedImage(NamedTuple):
    """An image as it is stored in a record."""

    data: bytes
    size: tuple[int, int]  # width and height in pixels
    pixels: np.ndarray  # uint8, gray (height, width) or B G R (height, width, 3)
    reencode_reason: str | None = None  # None where the file's bytes are stored unchanged
    several: bool = False  # the file holds more pictures, of which this is the first


class ImageStatistics:
    """Sizes, colours and pixel values of images that are added one by one."""

    def __init__(self):
        # (width, height), at most two: enough to know that they vary
        self.sizes: set[tuple[int, int]] = set()
        self.num_images = self.num_gray = 0
        self.num_measured = 0  # images whose pixels are counted
        self.num_several = 0  # images of files that hold more pictures
        self.brightest = 0  # 8-bit level in 16-bit images
        self.reencode_reasons: Counter[str] = Counter()  # of those that are not stored unchanged
        self._counts = np.zeros((4, 256), np.int64)  # gray images', then B, G, R of colour ones
        self._waiting = {1: [], 3: []}  # pixels to count, by their channels
        self._num_waiting = 0

    @property
    def channels(self) -> int:
        """Of the dataset: 3 if any image is in colour."""
        return 1 if self.num_gray == self.num_images else 3

    def add(self, image: EncodedImage, measured: bool = True) -> None:
        """Add an image; its pixels are counted if it is ``measured``."""
        channels = 1 if image.pixels.ndim == 2 else 3
        self.num_images += 1
        self.num_gray += channels == 1
        self.num_several += image.several
        if len(self.sizes) < 2:
            self.sizes.add(image.size)
        if image.reencode_reason:
            self.reencode_reasons[image.reencode_reason] += 1
            if image.reencode_reason == "16-bit":
                self.brightest = max(self.brightest, int(image.pixels.max()))
        if measured:
            self.num_measured += 1
            self._waiting[channels].append(image.pixels.reshape(-1, 1, channels))
            self._num_waiting += image.pixels.size
            if self._num_waiting > WAIT:
                self._count()

    def _count(self) -> None:
        """Count the pixels that wait."""
        for channels, waiting in self._waiting.items():
            pixels = waiting[0] if len(waiting) == 1 else np.concatenate(waiting or [()])
            for first in range(0, len(pixels), BLOCK):
                for channel in range(channels):
                    block = [pixels[first : first + BLOCK]], [channel], None, [256], [0, 256]
                    row = self._counts[channel + (channels == 3)]
                    row += cv2.calcHist(*block)[:, 0].astype(np.int64)
            waiting.clear()
        self._num_waiting = 0

    def __getstate__(self) -> dict[str, Any]:
        self._count()  # so that no pixels are sent to another process
        return self.__dict__

    def state(self) -> dict[str, Any]:
        """Return all of this as JSON has it."""
        self._count()
        return {
            **{name: getattr(self, name) for name in SUMS},
            "brightest": self.brightest,
            "sizes": sorted(self.sizes),
            "reencode_reasons": dict(self.reencode_reasons),
            "counts": [row if any(row) else [] for row in self._counts.tolist()],
        }

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one's ``state`` has."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + state[name])
        self.brightest = max(self.brightest, state["brightest"])
        self.sizes = set(sorted(self.sizes.union(map(tuple, state["sizes"])))[:2])
        self.reencode_reasons.update(state["reencode_reasons"])
        for counts, row in zip(self._counts, state["counts"], strict=True):
            counts += row or 0

    def manifest_fields(self, channels: int | None = None) -> dict[str, Any]:
        """Return the fields of a Manifest that follow from the images, or from ``channels``."""
        self._count()
        gray, *bgr = self._counts
        channels = channels or self.channels
        # A gray image is a part of each channel of a colour one: R, G, B.
        rows = [gray] if channels == 1 else [gray + row for row in reversed(bgr)]
        figures = [mean_and_std(row) for row in rows]
        width, height = next(iter(self.sizes)) if len(self.sizes) == 1 else (None, None)
        return {
            "channels": channels,
            "num_gray": self.num_gray,
            "width": width,
            "height": height,
            "mean": [mean for mean, _ in figures],
            "std": [std for _, std in figures],
            "histogram": [row.tolist() for row in rows],
            "num_measured": self.num_measured,
        }


def mean_and_std(counts: np.ndarray) -> tuple[float, float]:
    """Return the mean and the standard deviation of pixels, of which 256 counts are given.

    Six decimals; both are 0 where no pixel was counted.
    """
    # As Python's integers, whose sums are exact for any number of pixels.
    rows = list(enumerate(counts.tolist()))
    number = sum(n for _, n in rows) or 1
    one, two = sum(level * n for level, n in rows), sum(level**2 * n for level, n in rows)
    variance = (two * number - one * one) / number**2
    return round(one / number, 6), round(variance**0.5, 6)
