"""The bytes of one image: what they are, whether they are whole, and how they are stored.

The contract: what OneFlow 0.9.0 decodes from a record (``OFRecordBytesDecoder``
and ``nn.image.decode``) equals what OpenCV reads from the file as 8-bit. OneFlow
carries an older OpenCV and reads with IMREAD_ANYDEPTH, so the two agree on
plain PNG and plain JPEG only. Those are stored unchanged; every other image is
decoded here and encoded again, plainly.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import cv2
import numpy as np

from .headers import BadImage, Header

# What images can be encoded as in a record, by file extension. Each was seen to
# come out of OneFlow's decoder as it went in. OpenCV writes more (.hdr, .pfm,
# .jp2), but OneFlow aborts on those or changes them.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".tiff": "TIFF",
    ".tif": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".webp": "WebP",
    ".pnm": "PNM",
}

# Extensions that OpenCV can read, for folders that are searched for images.
IMAGE_EXTENSIONS = {
    *FORMATS,
    ".pgm",
    ".ppm",
    ".pbm",
    ".pam",
    ".jp2",
    ".ras",
    ".sr",
    ".avif",
    ".gif",
}

# Formats whose plain files are stored unchanged.
STORED_UNCHANGED = {"PNG", "JPEG"}

DEFAULT_QUALITY = 95  # OpenCV's own for JPEG, 0 to 100


class EncodedImage(NamedTuple):
    """An image as it is stored in a record."""

    data: bytes
    width: int  # pixels
    height: int
    channels: int  # 1 gray, 3 colour
    histogram: np.ndarray  # of the pixel values, int64 (channels, 256), B G R
    reencode_reason: str | None  # None where the file's bytes are stored unchanged


# -- pixels -------------------------------------------------------------------------


def decode(data: bytes, header: Header, color: str = "auto") -> np.ndarray:
    """Return an image's pixels as 8-bit: (height, width) gray or (height, width, 3) BGR.

    ``color`` is ``"gray"``, ``"color"``, or ``"auto"`` for what the image is.
    Raises BadImage, also where the decoder only warns that data is damaged.
    """
    gray = {"gray": True, "color": False, "auto": header.gray}[color]
    flag = {True: cv2.IMREAD_GRAYSCALE, False: cv2.IMREAD_COLOR, None: cv2.IMREAD_ANYCOLOR}[gray]
    with decoder_messages() as messages:
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error as error:
            raise BadImage(f"OpenCV cannot read it: {error.err or error}") from None
        finally:
            complaint = messages.take()
    if pixels is None:
        raise BadImage("OpenCV cannot read it as an image")
    if complaint:
        raise BadImage(complaint)
    return pixels


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels resized to ``size``, (width, height)."""
    fewer = size[0] * size[1] < pixels.shape[0] * pixels.shape[1]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if fewer else cv2.INTER_CUBIC)


def encode(pixels: np.ndarray, ext: str, quality: int) -> bytes:
    """Return the pixels, uint8 gray or BGR, encoded as ``ext``. Raises BadImage."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality] if FORMATS[ext] == "JPEG" else []
    try:
        done, encoded = cv2.imencode(ext, pixels, parameters)
    except cv2.error as error:
        raise BadImage(f"OpenCV cannot encode it as {ext}: {error.err}") from None
    if not done:
        height, width = pixels.shape[:2]
        raise BadImage(f"OpenCV cannot encode its {width}x{height} pixels as {ext}")
    return encoded.tobytes()


def histogram(pixels: np.ndarray) -> np.ndarray:
    """Return how often each value occurs, int64 (channels, 256)."""
    channels = pixels.reshape(-1, 1 if pixels.ndim == 2 else 3).T
    return np.stack([np.bincount(values, minlength=256) for values in channels])


def mean_and_std(counts: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each row of a histogram, in 0 to 255."""
    means, stds = [], []
    for row in counts.tolist():  # Python's integers: exact for any number of pixels
        total = sum(row)
        first = sum(level * count for level, count in enumerate(row))
        second = sum(level * level * count for level, count in enumerate(row))
        means.append(round(first / total, 6))
        stds.append(round(((second * total - first * first) ** 0.5) / total, 6))
    return means, stds


# -- messages of the decoders ---------------------------------------------------------


class DecoderMessages:
    """What the C libraries print to stderr while they decode.

    libjpeg accepts damaged data and only prints a warning, the one sign that
    the pixels are wrong.
    """

    # Printed about images whose pixels are right all the same.
    HARMLESS = ("libpng warning: ", "[ WARN:")

    def __init__(self, file: int):
        self._file, self._taken = file, 0

    def take(self) -> str | None:
        """Return the first message since the last call that means wrong pixels, or None."""
        size = os.lseek(self._file, 0, os.SEEK_CUR)
        if size == self._taken:
            return None
        text = os.pread(self._file, size - self._taken, self._taken).decode("utf-8", "replace")
        self._taken = size
        lines = (line.strip() for line in text.splitlines())
        return next((line for line in lines if line and not line.startswith(self.HARMLESS)), None)


_open_messages: list[DecoderMessages] = []


@contextmanager
def decoder_messages() -> Iterator[DecoderMessages]:
    """Send the process's stderr to a file in memory, unless an outer ``with`` does so already.

    Around many images it saves the time that switching takes for each.
    """
    if _open_messages:
        yield _open_messages[-1]
        return
    file, stderr = os.memfd_create("decoder-messages"), os.dup(2)
    os.dup2(file, 2)
    _open_messages.append(DecoderMessages(file))
    try:
        yield _open_messages[-1]
    finally:
        _open_messages.pop()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(file)
