"""What is counted over the images of a dataset, exactly and whatever the order they come in."""

import hashlib
from collections import Counter
from typing import Any

import cv2
import numpy as np

from .images import FORMATS, EncodedImage

BLOCK = 2**20  # pixels that are counted at once: calcHist's float32 is exact up to 2**24
SAMPLE = 10_000  # images, of which a JPEG dataset's statistics are at least
DIGEST_SIZE = 8  # bytes: two of 10 million images have the same by chance once in 370,000 times
WAIT = 2**17  # values; small images wait for each other, which takes a quarter of the time


def sampling_interval(num_images: int, ext: str) -> int:
    """Return n: mean, std and histogram are those of every n-th image, of 10,000 at least.

    1 for other formats than JPEG: those have to be decoded in full to see whether they are whole.
    """
    return max(1, num_images // SAMPLE) if FORMATS[ext] == "JPEG" else 1


class ImageStatistics:
    """Sizes, colours and pixel values of images that are added one by one."""

    def __init__(self):
        # (width, height), at most two: enough to know that they vary
        self.sizes: set[tuple[int, int]] = set()
        self._digests = bytearray()  # DIGEST_SIZE bytes an image
        self.num_images = 0
        self.num_measured = 0  # images whose pixels are counted
        self.num_gray = 0
        self.num_several = 0  # images of files that hold more pictures
        self.brightest = 0  # 8-bit level in 16-bit images
        self.reencode_reasons: Counter[str | None] = Counter()  # None: stored unchanged
        self._histogram = np.zeros((4, 256), np.int64)  # gray images', then B, G, R of colour ones
        # Pixels that are not counted yet, by channels
        self._waiting: dict[int, list[np.ndarray]] = {1: [], 3: []}
        self._num_waiting = 0

    @property
    def channels(self) -> int:
        """Of the dataset: 3 if any image is in colour."""
        return 1 if self.num_gray == self.num_images else 3

    @property
    def digests(self) -> np.ndarray:
        """A number for each image, in order: the same for the same bytes, and for no others."""
        return np.frombuffer(bytes(self._digests), "<u8")

    def add(self, image: EncodedImage) -> None:
        self.num_images += 1
        self.num_gray += image.channels == 1
        self.num_several += image.several
        self.reencode_reasons[image.reencode_reason] += 1
        if image.reencode_reason == "16-bit":
            self.brightest = max(self.brightest, int(image.pixels.max()))
        if len(self.sizes) < 2:
            self.sizes.add(image.size)
        self._digests += hashlib.sha256(image.data).digest()[:DIGEST_SIZE]
        if image.pixels is None:
            return
        self.num_measured += 1
        self._waiting[image.channels].append(image.pixels.reshape(-1, 1, image.channels))
        self._num_waiting += image.pixels.size
        if self._num_waiting > WAIT:
            self._count()

    def _count(self) -> None:
        for channels, waiting in self._waiting.items():
            pixels = waiting[0] if len(waiting) == 1 else np.concatenate(waiting or [()])
            for first in range(0, len(pixels), BLOCK):
                for channel in range(channels):
                    block = [pixels[first : first + BLOCK]], [channel], None, [256], [0, 256]
                    row = self._histogram[channel + (channels == 3)]
                    row += cv2.calcHist(*block)[:, 0].astype(np.int64)
        self._waiting, self._num_waiting = {1: [], 3: []}, 0

    def __getstate__(self) -> dict[str, Any]:
        self._count()  # so that no pixels are sent to another process
        return self.__dict__

    def merge(self, other: "ImageStatistics") -> None:
        other._count()
        self.num_images += other.num_images
        self.num_measured += other.num_measured
        self.num_gray += other.num_gray
        self.num_several += other.num_several
        self.brightest = max(self.brightest, other.brightest)
        self.reencode_reasons += other.reencode_reasons
        self._histogram += other._histogram
        self._digests += other._digests
        self.sizes.update(sorted(other.sizes - self.sizes)[: 2 - len(self.sizes)])

    def manifest_fields(self, channels: int | None = None) -> dict[str, Any]:
        """Return the fields of a Manifest that follow from the images, or from ``channels``."""
        self._count()
        channels = channels or self.channels
        gray, *bgr = self._histogram
        histogram = np.stack([gray] if channels == 1 else [gray + row for row in reversed(bgr)])
        mean, std = mean_and_std(histogram)
        width, height = next(iter(self.sizes)) if len(self.sizes) == 1 else (None, None)
        return {
            "channels": channels,
            "num_gray": self.num_gray,
            "width": width,
            "height": height,
            "mean": mean,
            "std": std,
            "histogram": histogram.tolist(),
            "num_measured": self.num_measured,
        }


def mean_and_std(counts: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each row of a histogram, in 0 to 255."""
    # As Python's integers, whose sums are exact for any number of pixels.
    counts, levels = counts.astype(object), np.arange(256).astype(object)
    sums = zip(counts.sum(axis=1), counts @ levels, counts @ levels**2, strict=True)
    figures = [(one / n, (two * n - one * one) ** 0.5 / n) for n, one, two in sums]
    means, stds = zip(*figures, strict=True)
    return [round(mean, 6) for mean in means], [round(std, 6) for std in stds]
