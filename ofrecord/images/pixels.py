"""The pixels of an image: decoded as they are seen, brought to a size, and encoded."""

import math

import cv2
import numpy as np

from ..dataset.manifest import FORMATS
from .formats import ADVICE, BadImage, Header, ImageOptions
from .jpeg import (
    EXTRANEOUS,
    ODDITIES,
    has_trailer,
    with_end_marker,
    with_exif_first,
    without_oddities,
    without_padding,
)
from .messages import check_memory, decoder_messages
from .others import decode_with_pillow

_FLAGS = {True: cv2.IMREAD_GRAYSCALE, False: cv2.IMREAD_COLOR}
_REDUCED_FLAGS = {True: cv2.IMREAD_REDUCED_GRAYSCALE_8, False: cv2.IMREAD_REDUCED_COLOR_8}
LARGE = 2**26  # pixels


def decode(
    data: bytes, header: Header, options: ImageOptions | None = None, reduced: bool = False
) -> np.ndarray:
    """Return an image's pixels as they are seen: uint8, (height, width) gray or (…, 3) BGR.

    Turned as EXIF says, laid on the background, of 16 bits the upper 8. Raises BadImage, also
    where the decoder only warns that data is damaged, and MemoryError. ``reduced`` is for a
    JPEG: its pixels at an eighth of its size, in little more than half the time. Every bit of
    its compressed data is read all the same.
    """
    if not decoder_messages.is_open:
        with decoder_messages:
            return decode(data, header, options, reduced)
    decoder_messages.take()  # what was printed before is not of this image
    options = options or ImageOptions()
    gray = header.gray if options.color == "auto" else options.color == "gray"
    if header.uses_pillow:
        return decode_with_pillow(data, header.kind, gray, options.background)
    whole = with_exif_first(data) if header.is_turned else data
    whole = whole if header.is_ended else with_end_marker(whole)
    flag = (_REDUCED_FLAGS if reduced else _FLAGS)[gray]
    pixels, messages = _imdecode(whole, flag)
    # libjpeg prints its first warning only: a harmless one hides all that come after it.
    if messages and ODDITIES.search(messages[0]):
        whole = without_oddities(whole)
        pixels, messages = _imdecode(whole, flag)
    if messages and EXTRANEOUS.search(messages[0]):
        for shorter in without_padding(whole):
            pixels, messages = _imdecode(shorter, flag)
            if not messages:
                break
    if not header.is_ended:
        if not has_trailer(messages, data):
            raise BadImage("the JPEG is truncated (no end marker)")
    elif messages:
        raise BadImage(messages[0])
    return pixels


def may_be_reduced(header: Header, size: tuple[int, int] | None) -> bool:
    """Whether a file that is stored in this size, or its own, may be decoded at an eighth."""
    # A very large one may not fit in memory, or be more than OpenCV decodes.
    is_small = header.kind == "JPEG" and math.prod(header.size) <= LARGE
    return is_small and size in (None, header.size)


def _exception_of(error: cv2.error, action: str) -> Exception:
    """Return a MemoryError for one of OpenCV's errors, or a BadImage that names the action."""
    if error.code == cv2.Error.StsNoMem:
        return MemoryError()
    return BadImage(f"OpenCV cannot {action} it: {error.err or error}")


def _imdecode(data: bytes, flag: int) -> tuple[np.ndarray, list[str]]:
    """Return the pixels, and what the decoder printed of them."""
    try:  # no context manager: it takes 2 µs, a twentieth of a small image
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise _exception_of(error, "read") from None
    if pixels is None:
        check_memory()
        raise BadImage(f"OpenCV cannot read it as an image: {ADVICE}")
    return pixels, decoder_messages.take()


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
    except cv2.error as error:
        raise _exception_of(error, "resize") from None
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
    except cv2.error as error:
        raise _exception_of(error, "encode") from None
    if not done:
        height, width = pixels.shape[:2]
        raise BadImage(f"OpenCV cannot encode its {width}x{height} pixels as {ext}")
    return encoded.tobytes()
