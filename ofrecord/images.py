"""The bytes of one image: what they are, whether they are whole, and how they are stored.

The contract: what OneFlow 0.9.0 decodes from a record (``OFRecordBytesDecoder``
and ``nn.image.decode``) equals what OpenCV reads from the file as 8-bit. OneFlow
carries an older OpenCV and reads with IMREAD_ANYDEPTH, so the two agree on
plain PNG and plain JPEG only. Those are stored unchanged; every other image is
decoded here and encoded again, plainly.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import cv2
import numpy as np

from .headers import OTHER_KIND, PILLOW_KINDS, BadImage, Header, open_with_pillow
from .messages import decoder_messages, libtiff_messages

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

# Extensions of image files, for folders that are searched for images.
IMAGE_EXTENSIONS = {
    *FORMATS,
    *".jfif .pgm .ppm .pbm .pam .jp2 .ras .sr .avif .gif .heic .heif".split(),
}

# Formats whose plain files are stored unchanged.
STORED_UNCHANGED = {"PNG", "JPEG"}

DEFAULT_QUALITY = 95  # OpenCV's own for JPEG, 0 to 100
DEFAULT_BACKGROUND = "white"
FLAGS = {True: cv2.IMREAD_GRAYSCALE, False: cv2.IMREAD_COLOR, None: cv2.IMREAD_ANYCOLOR}
MAX_FILE_SIZE = 2**30  # bytes of an image file
REDUCTION = 8  # of the sides of a JPEG that is decoded quickly
LARGE = 2**26  # pixels


class ImageOptions(NamedTuple):
    """How images are stored."""

    color: str = "auto"  # "gray", "color", or "auto": what the image is
    size: tuple[int, int] | None = None  # (width, height) in pixels to resize to
    quality: int = DEFAULT_QUALITY  # of JPEG, 0 to 100
    background: str = DEFAULT_BACKGROUND  # of a transparent image, as Pillow names colors
    max_value: int | None = None  # of 16-bit images, which becomes 255; None: 65,535
    fit: str = "crop"  # how an image of another aspect ratio gets the size: see resize()


class EncodedImage(NamedTuple):
    """An image as it is stored in a record."""

    data: bytes
    size: tuple[int, int]  # width and height in pixels
    channels: int  # 1: gray, 3: colour
    pixels: np.ndarray  # uint8, gray (height, width) or B G R (height, width, 3)
    reencode_reason: str | None  # None where the file's bytes are stored unchanged
    several: bool = False  # the file holds more pictures, of which this is the first
    reduced: bool = False  # ``pixels`` are those at an eighth of the size
    stamp: bytes = b""  # of its file: tells whether that was changed later


# -- pixels -------------------------------------------------------------------------


def decode(
    data: bytes, header: Header, options: ImageOptions | None = None, quick: bool = False
) -> np.ndarray:
    """Return an image's pixels as 8-bit: (height, width) gray or (height, width, 3) BGR.

    Raises BadImage, also where the decoder only warns that data is damaged. ``quick`` is
    for a JPEG: its pixels at an eighth of its size, in little more than half the time. Every
    bit of its compressed data is read all the same.
    """
    if not decoder_messages.is_open:
        with decoder_messages:
            return decode(data, header, options, quick)
    decoder_messages.take()  # what was printed before is not of this image
    options = options or ImageOptions()
    gray = header.gray if options.color == "auto" else options.color == "gray"
    flag = FLAGS[gray] | cv2.IMREAD_ANYDEPTH if options.max_value else FLAGS[gray]
    if quick:
        flag = cv2.IMREAD_REDUCED_GRAYSCALE_8 if gray else cv2.IMREAD_REDUCED_COLOR_8
    if options.max_value and header.not_scaled:
        raise BadImage(f"--max_value cannot be applied to it: {header.not_scaled}")
    if header.transparent or header.few_levels or header.kind in PILLOW_KINDS:
        return _decode_with_pillow(data, gray, options.background)
    with libtiff_messages() if header.kind == "TIFF" else nullcontext():
        pixels = _imdecode(data, flag)
    if pixels is None and header.kind == OTHER_KIND:
        return _decode_with_pillow(data, gray, options.background)
    if pixels is None:
        raise BadImage("OpenCV cannot read it as an image")
    if complaint := decoder_messages.take():
        raise BadImage(complaint)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise BadImage(f"--max_value cannot be applied to it: its values are {pixels.dtype}")
    if pixels.dtype == np.uint16:
        return np.minimum(np.rint(pixels * (255 / options.max_value)), 255).astype(np.uint8)
    return pixels


def may_be_quick(header: Header, size: tuple[int, int] | None) -> bool:
    """Whether a file that is stored in this size, or its own, may be decoded quickly."""
    stays = header.size and size in (None, header.size)
    # A very large one may not fit in memory, or be more than OpenCV decodes.
    return bool(stays) and math.prod(header.size) <= LARGE


def largest_value(data: bytes) -> int:
    """Return the largest value in a 16-bit image, or 0 for others. Raises BadImage."""
    pixels = _imdecode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    return int(pixels.max()) if pixels is not None and pixels.dtype == np.uint16 else 0


def _imdecode(data: bytes, flag: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise BadImage(f"OpenCV cannot read it: {error.err or error}") from None


def _decode_with_pillow(data: bytes, gray: bool | None, background: str) -> np.ndarray:
    """Decode what OpenCV leaves transparent, does not turn, or does not read."""
    from PIL import Image, ImageOps, UnidentifiedImageError  # 0.05 s, and few images need it

    try:
        with open_with_pillow(data) as image:
            if image.format == "EPS":
                raise ValueError("PostScript is a program, not an image")
            if image.mode.startswith(("I", "F")):
                raise ValueError("its pixels have more than 8 bits")
            if gray is None:
                gray = image.mode in ("1", "L", "LA")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                ground = Image.new("RGBA", image.size, background)
                image = Image.alpha_composite(ground, image.convert("RGBA"))
            pixels = np.asarray(image.convert("L" if gray else "RGB"))
    except UnidentifiedImageError:  # its message names an object in memory
        raise BadImage("OpenCV and Pillow cannot read it as an image") from None
    except Exception as error:
        raise BadImage(f"Pillow cannot read it: {error}") from None
    return pixels.copy() if gray else pixels[:, :, ::-1].copy()


def resize(pixels: np.ndarray, size: tuple[int, int], fit: str, background: str) -> np.ndarray:
    """Return the pixels, gray or BGR, brought to ``size``, (width, height). Raises BadImage.

    ``fit`` is ``"crop"`` (what is too wide or too high is cut off on both sides), ``"pad"``
    (the whole image, between bars in the ``background`` color) or ``"stretch"``.
    """
    height, width = pixels.shape[:2]
    inner = size
    if fit == "crop":
        width, height = _largest_inside((width, height), size)
        left, top = (pixels.shape[1] - width) // 2, (pixels.shape[0] - height) // 2
        pixels = pixels[top : top + height, left : left + width]
    elif fit == "pad":
        inner = _largest_inside(size, (width, height))
    fewer = inner[0] * inner[1] < width * height
    interpolation = cv2.INTER_AREA if fewer else cv2.INTER_CUBIC
    try:
        pixels = cv2.resize(pixels, inner, interpolation=interpolation)
    except cv2.error as error:  # out of memory
        raise BadImage(f"OpenCV cannot resize it: {error.err or error}") from None
    return pixels if inner == size else _pad(pixels, size, background)


def _largest_inside(frame: tuple[int, int], aspect: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (width, height) inside ``frame`` with the ratio of ``aspect``'s sides."""
    (width, height), (across, down) = frame, aspect
    if width * down > height * across:
        return max(1, round(height * across / down)), height
    return width, max(1, round(width * down / across))


def _pad(pixels: np.ndarray, size: tuple[int, int], background: str) -> np.ndarray:
    """Return the pixels in the middle of an image of this size."""
    from PIL import ImageColor  # takes 0.05 s to import, and most images do not need it

    gray, (height, width) = pixels.ndim == 2, pixels.shape[:2]
    color = ImageColor.getcolor(background, "L" if gray else "RGB")
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    bars = top, size[1] - height - top, left, size[0] - width - left
    value = color if gray else color[::-1]
    return cv2.copyMakeBorder(pixels, *bars, cv2.BORDER_CONSTANT, value=value)


def encode(pixels: np.ndarray, ext: str, quality: int) -> bytes:
    """Return the pixels, uint8 gray or BGR, encoded as ``ext``. Raises BadImage."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality] if FORMATS[ext] == "JPEG" else []
    try:
        done, encoded = cv2.imencode(ext, pixels, parameters)
    except cv2.error:  # out of memory
        done = False
    if not done:
        height, width = pixels.shape[:2]
        raise BadImage(f"OpenCV cannot encode its {width}x{height} pixels as {ext}")
    return encoded.tobytes()
