"""What is counted over the images of a dataset, whatever the order they come in."""

import hashlib
from collections import Counter
from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import Field

from .images import FORMATS, REDUCTION, EncodedImage
from .settings import Count, StrictModel

BLOCK = 2**20  # pixels that are counted at once: calcHist's float32 is exact up to 2**24
SAMPLE = 10_000  # images of a JPEG dataset that are measured at least
DIGEST_SIZE = 8  # bytes: two of 10 million images have the same by chance once in 370,000 times
WAIT = 2**17  # values; small images wait for each other, which takes a quarter of the time


def sampling_interval(num_images: int, ext: str) -> int:
    """Return n: every n-th image is measured at its full size, 10,000 at least.

    1 for other formats than JPEG: those have to be decoded in full to see whether they are whole.
    """
    return max(1, num_images // SAMPLE) if FORMATS[ext] == "JPEG" else 1


# Four rows of 256 counts: gray images', then B, G, R of colour ones; [] for nothing but zeros.
Row = Annotated[list[Count], Field(max_length=256)]
PixelRows = Annotated[list[Row], Field(min_length=4, max_length=4)]


class PixelCounts:
    """How often each pixel value occurs, in gray images and in each channel of colour ones."""

    def __init__(self):
        self._counts = np.zeros((4, 256), np.int64)  # gray images', then B, G, R of colour ones
        self._waiting: dict[int, list[np.ndarray]] = {1: [], 3: []}  # pixels, by channels
        self._num_waiting = 0

    def add(self, pixels: np.ndarray) -> None:
        """Add an image, uint8 (height, width) or (height, width, 3)."""
        channels = 1 if pixels.ndim == 2 else 3
        self._waiting[channels].append(pixels.reshape(-1, 1, channels))
        self._num_waiting += pixels.size
        if self._num_waiting > WAIT:
            self._count()

    def _count(self) -> None:
        for channels, waiting in self._waiting.items():
            pixels = waiting[0] if len(waiting) == 1 else np.concatenate(waiting or [()])
            for first in range(0, len(pixels), BLOCK):
                for channel in range(channels):
                    block = [pixels[first : first + BLOCK]], [channel], None, [256], [0, 256]
                    row = self._counts[channel + (channels == 3)]
                    row += cv2.calcHist(*block)[:, 0].astype(np.int64)
        self._waiting, self._num_waiting = {1: [], 3: []}, 0

    def __getstate__(self) -> dict[str, Any]:
        self._count()  # so that no pixels are sent to another process
        return self.__dict__

    def merge(self, other: "PixelCounts") -> None:
        other._count()
        self._counts += other._counts

    @property
    def rows(self) -> list[list[int]]:
        """The counts as PixelRows."""
        self._count()
        return [row.tolist() if row.any() else [] for row in self._counts]

    def add_rows(self, rows: list[list[int]]) -> None:
        for counts, row in zip(self._counts, rows, strict=True):
            if row:
                counts += row

    def histogram(self, channels: int) -> np.ndarray:
        """Return the counts, int64 (channels, 256): gray, or R, G, B, of which gray is a part."""
        self._count()
        gray, *bgr = self._counts
        return np.stack([gray] if channels == 1 else [gray + row for row in reversed(bgr)])


Digests = Annotated[str, Field(pattern="^([0-9a-f]{16})*$")]  # DIGEST_SIZE bytes an image


def digests_in(text: Digests) -> np.ndarray:
    """Return the number for each image; see ImageStatistics.digests."""
    return np.frombuffer(bytes.fromhex(text), "<u8")


class StatisticsState(StrictModel):
    """ImageStatistics as a JSON file has them."""

    sizes: Annotated[
        list[Annotated[list[Count], Field(min_length=2, max_length=2)]], Field(max_length=2)
    ]
    digests: Digests
    num_measured: Count
    num_gray: Count
    num_several: Count
    brightest: Annotated[int, Field(ge=0, le=255)]
    reencode_reasons: dict[str, Count]  # "": stored unchanged
    sampled: bool
    pixels: Annotated[list[PixelRows], Field(min_length=3, max_length=3)]


PLAIN_FIELDS = "num_measured", "num_gray", "num_several", "brightest", "sampled"


class ImageStatistics:
    """Sizes, colours and pixel values of images that are added one by one.

    Where the images are ``sampled``, all of them are counted at an eighth of their size too.
    Images differ more from each other than these small ones from their originals.
    """

    def __init__(self, sampled: bool = False):
        # (width, height), at most two: enough to know that they vary
        self.sizes: set[tuple[int, int]] = set()
        self._digests = bytearray()  # DIGEST_SIZE bytes an image
        self.num_measured = 0  # images whose pixels are counted in full
        self.num_gray = 0
        self.num_several = 0  # images of files that hold more pictures
        self.brightest = 0  # 8-bit level in 16-bit images
        self.reencode_reasons: Counter[str | None] = Counter()  # None: stored unchanged
        self.sampled = sampled
        # Of the measured images; of these at an eighth of their size; of all at an eighth.
        self._measured, self._measured_small, self._small = (PixelCounts() for _ in range(3))

    @property
    def num_images(self) -> int:
        return len(self._digests) // DIGEST_SIZE

    @property
    def channels(self) -> int:
        """Of the dataset: 3 if any image is in colour."""
        return 1 if self.num_gray == self.num_images else 3

    @property
    def digests(self) -> np.ndarray:
        """A number for each image, in order: the same for the same bytes, and for no others."""
        return np.frombuffer(bytes(self._digests), "<u8")

    def add(self, image: EncodedImage, measured: bool = True) -> None:
        """Add an image; its pixels at full size are counted if it is ``measured``."""
        self.num_gray += image.channels == 1
        self.num_several += image.several
        self.reencode_reasons[image.reencode_reason] += 1
        if image.reencode_reason == "16-bit":
            self.brightest = max(self.brightest, int(image.pixels.max()))
        if len(self.sizes) < 2:
            self.sizes.add(image.size)
        self._digests += hashlib.sha256(image.data).digest()[:DIGEST_SIZE]
        if measured:
            self.num_measured += 1
            self._measured.add(image.pixels)
        if self.sampled:
            small = image.pixels
            if not image.reduced:
                size = [max(1, -(-side // REDUCTION)) for side in image.size]
                small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
            self._small.add(small)
            if measured:
                self._measured_small.add(small)

    def merge(self, other: "ImageStatistics") -> None:
        self.num_measured += other.num_measured
        self.num_gray += other.num_gray
        self.num_several += other.num_several
        self.brightest = max(self.brightest, other.brightest)
        self.reencode_reasons += other.reencode_reasons
        self._digests += other._digests
        self.sizes.update(sorted(other.sizes - self.sizes)[: 2 - len(self.sizes)])
        self.sampled |= other.sampled
        self._measured.merge(other._measured)
        self._measured_small.merge(other._measured_small)
        self._small.merge(other._small)

    @property
    def state(self) -> StatisticsState:
        """All of this, to be kept in a file."""
        return StatisticsState(
            sizes=[list(size) for size in sorted(self.sizes)],
            digests=self._digests.hex(),
            reencode_reasons={reason or "": n for reason, n in self.reencode_reasons.items()},
            pixels=[each.rows for each in (self._measured, self._measured_small, self._small)],
            **{name: getattr(self, name) for name in PLAIN_FIELDS},
        )

    @classmethod
    def from_state(cls, state: StatisticsState) -> "ImageStatistics":
        statistics = cls()
        statistics.sizes = {tuple(size) for size in state.sizes}
        statistics._digests = bytearray.fromhex(state.digests)
        statistics.reencode_reasons = Counter(
            {k or None: n for k, n in state.reencode_reasons.items()}
        )
        counts = statistics._measured, statistics._measured_small, statistics._small
        for each, rows in zip(counts, state.pixels, strict=True):
            each.add_rows(rows)
        for name in PLAIN_FIELDS:
            setattr(statistics, name, getattr(state, name))
        return statistics

    def manifest_fields(self, channels: int | None = None) -> dict[str, Any]:
        """Return the fields of a Manifest that follow from the images, or from ``channels``."""
        channels = channels or self.channels
        histogram = self._measured.histogram(channels)
        mean, variance = mean_and_variance(histogram)
        if self.sampled:  # the mean and variance of all, small, and what full size adds to them
            mean_small, variance_small = mean_and_variance(self._measured_small.histogram(channels))
            mean_all, variance_all = mean_and_variance(self._small.histogram(channels))
            mean += mean_all - mean_small
            variance += variance_all - variance_small
        width, height = next(iter(self.sizes)) if len(self.sizes) == 1 else (None, None)
        return {
            "channels": channels,
            "num_gray": self.num_gray,
            "width": width,
            "height": height,
            "mean": mean.clip(0, 255).round(6).tolist(),
            "std": np.sqrt(variance.clip(0)).round(6).tolist(),
            "histogram": histogram.tolist(),
            "num_measured": self.num_measured,
        }


def mean_and_variance(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the variance of each row of a histogram, float64."""
    # As Python's integers, whose sums are exact for any number of pixels.
    counts, levels = histogram.astype(object), np.arange(256).astype(object)
    sums = zip(counts.sum(axis=1), counts @ levels, counts @ levels**2, strict=True)
    figures = [(one / n, (two * n - one * one) / n**2) for n, one, two in sums]
    mean, variance = np.array(figures).T
    return mean, variance
