"""Images that Pillow reads: all but JPEG and the PNG that are neither transparent nor turned."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .formats import NO_HEIF, BadImage, Header, check_size
from .messages import check_memory
from .tiff import ADVICE, BITS, COLOR_MAP, PHOTOMETRIC, tiff_header

if TYPE_CHECKING:  # Pillow takes 0.05 s to import, and most datasets do not need it
    from PIL import Image

_STARTS = {  # what a file starts with
    "TIFF": rb"II[*+]\0|MM\0[*+]",  # with a plus: BigTIFF
    "BMP": rb"BM",
    "WebP": rb"RIFF....WEBP",
    "GIF": rb"GIF8",
    "PNM": rb"P[1-6]\s",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "AVIF": rb"....ftyp(....)*?(avif|avis)",  # among the brands of an ISO media file
    "HEIC": rb"....ftyp(....)*?(heic|heix|heim|heis|hevc|mif1)",
}
_PILLOW_NAMES = {"PNM": "PPM", "JPEG 2000": "JPEG2000", "HEIC": "HEIF"}  # others: in capitals
_MAY_MOVE = {"WebP", "GIF", "AVIF", "HEIC"}
_GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B"}
_DEEP_PPM = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+65535\s")


def other_header(data: bytes) -> Header:
    """Return the Header of a file that is neither PNG nor JPEG. Raises BadImage."""
    box = int.from_bytes(data[:4], "big")  # length of an ISO media file's first box
    start = data[: min(max(box, 12), 256)]
    kinds = (kind for kind, form in _STARTS.items() if re.match(form, start, re.DOTALL))
    kind = next(kinds, None)
    if kind is None:
        raise BadImage(f"it is none of PNG, JPEG, {', '.join(_STARTS)}: save it as PNG")
    if kind == "TIFF":
        return tiff_header(data)
    if kind == "JPEG 2000":
        return _jpeg_2000_header(data)
    if kind not in _MAY_MOVE:
        return Header(kind, uses_pillow=True)
    with _open(data, kind) as image:
        return Header(kind, several=image.is_animated, uses_pillow=True)


def _jpeg_2000_header(data: bytes) -> Header:
    """Look at the depth of the values: Pillow turns the largest of 16-bit colors into 0."""
    start = data.find(b"\xff\x4f\xff\x51")  # of the codestream, and in it of the sizes
    count = int.from_bytes(data[start + 40 : start + 42], "big")
    depths = data[start + 42 : start + 42 + 3 * count : 3]  # less 1; the upper bit: signed
    if start < 0 or not depths:
        raise BadImage("the JPEG 2000 is truncated")
    if max(depths) < 8:
        return Header("JPEG 2000", uses_pillow=True)
    if max(depths) > 127 or count not in (1, 3):
        raise BadImage(f"its values are signed, or transparent with over 8 bits: {ADVICE}")
    return Header("JPEG 2000", count == 1, "16-bit", uses_pillow=count == 1)


@contextmanager
def _open(data: bytes, kind: str) -> Iterator["Image.Image"]:
    """Open an image with Pillow. Whatever that raises becomes BadImage, but for MemoryError."""
    from PIL import Image, TiffImagePlugin, UnidentifiedImageError

    if kind == "HEIC":
        _register_heif()
    TiffImagePlugin.READ_LIBTIFF = True  # its own reader mixes up planes of 16 bits
    Image.MAX_IMAGE_PIXELS = None  # here it is check_size() that says how many
    name = _PILLOW_NAMES.get(kind, kind.upper())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is decided here
            with Image.open(io.BytesIO(data), formats=[name]) as image:
                check_size(*image.size)
                yield image
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        check_memory()
        # The message of an UnidentifiedImageError names an object in memory.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "save it as PNG" if unknown else str(error) or type(error).__name__
        raise BadImage(f"Pillow cannot read it as {kind}: {reason}") from None


@cache
def _register_heif() -> None:
    """Have Pillow read HEIC files. Raises BadImage where pillow-heif is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise BadImage(NO_HEIF) from None
    register_heif_opener()


def decode_with_pillow(data: bytes, kind: str, gray: bool | None, background: str) -> np.ndarray:
    """Return the first picture, turned as EXIF says and laid on the background, as decode() does."""
    from PIL import Image, ImageOps

    if match := _DEEP_PPM.match(data):  # Pillow would take a second for a megapixel, and round
        data = b"P6 %b %b 255\n" % match.groups() + data[match.end() :: 2]
    with _open(data, kind) as image:
        tags = getattr(image, "tag_v2", {})  # of TIFF
        if image.mode == "P" and max(tags.get(COLOR_MAP, (256,))) < 256:
            image.putpalette(bytes(tags[COLOR_MAP]), "RGB;L")  # 8 bits, where there should be 16
        image.load()
        if kind == "PNG":  # programs turn it by its EXIF chunk only
            for key in ("Raw profile type exif", "XML:com.adobe.xmp", "xmp"):
                image.info.pop(key, None)
        if gray is None:
            gray = image.mode in _GRAY_MODES
            if kind == "BMP" and image.mode == "P":
                colors = np.reshape(image.getpalette(), (-1, 3))
                gray = bool((colors == colors[:, :1]).all())
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            image = Image.fromarray(_upper_bits(image, tags))
        # A BMP whose alpha is zero everywhere has none.
        if image.has_transparency_data and not (kind == "BMP" and image.getextrema()[-1] == (0, 0)):
            ground = Image.new("RGBA", image.size, background)
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        pixels = np.asarray(image.convert("L" if gray else "RGB"))
    return pixels.copy() if gray else pixels[:, :, ::-1].copy()


def _upper_bits(image: "Image.Image", tags: Mapping) -> np.ndarray:
    """Return the upper 8 bits of gray values that have more, as uint8. Raises BadImage."""
    values = np.asarray(image)
    if image.mode == "F":
        raise BadImage(f"its values are floating-point numbers: {ADVICE}")
    if values.min() < 0 or values.max() > 65535:
        raise BadImage(f"its values are not all within 0 to 65,535: {ADVICE}")
    if tags.get(PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds for fewer bits only
        values = 65535 - values
    return (values >> (4 if tags.get(BITS) == (12,) else 8)).astype(np.uint8)
