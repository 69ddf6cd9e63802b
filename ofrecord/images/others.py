"""Images that Pillow reads: all but JPEG and the PNG that are neither transparent nor turned."""

import io
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import cv2
import numpy as np

from .formats import ADVICE, BadImage, Header, check_size
from .messages import check_memory, decoder_messages

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
_GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B"}
# Numbers of tags of TIFF 6.0 and its supplements.
_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _COLOR_MAP = 258, 259, 262, 284, 320
_SUBFILE_TYPE, _SAMPLE_FORMAT = 254, 339
_STRIPS, _TILES = (273, 279), (324, 325)  # where they start, how long they are
# Values of _COMPRESSION: Deflate, which has checksums; and fax, JPEG and PackBits.
_DEFLATE, _UNCHECKED = {8, 32946}, {2, 3, 4, 7, 32773}
_DEBUG = 5  # of cv2.setLogLevel
_SCALE = "scale them to 0 to 255 and save it as an 8-bit PNG"


def other_header(data: bytes) -> Header:
    """Return the Header of a file that is neither PNG nor JPEG. Raises BadImage."""
    box = int.from_bytes(data[:4], "big")  # length of an ISO media file's first box
    start = data[: min(max(box, 12), 256)]
    kinds = (kind for kind, form in _STARTS.items() if re.match(form, start, re.DOTALL))
    kind = next(kinds, None)
    if kind is None:
        raise BadImage(f"it is none of PNG, JPEG, {', '.join(_STARTS)}: save it as PNG")
    if kind == "JPEG 2000":
        _check_depth(data)
    if kind in ("BMP", "PNM"):  # opened by decode() only, as that takes a tenth of a millisecond
        return Header(kind, uses_pillow=True)
    with _open(data, kind) as image:
        tags = getattr(image, "tag_v2", {})
        if kind == "TIFF":
            _check_tiff(data, image.mode, tags)
        reason = "16-bit" if max(tags.get(_BITS, (1,))) > 8 else None
        several = getattr(image, "is_animated", False)
        return Header(kind, reencode_reason=reason, several=several, uses_pillow=True)


def _check_depth(data: bytes) -> None:
    """Raise BadImage for a JPEG 2000 of other than 8 bits, which Pillow scales wrongly."""
    start = data.find(b"\xff\x4f\xff\x51")  # of the codestream, and in it of the sizes
    count = int.from_bytes(data[start + 40 : start + 42], "big")
    depths = data[start + 42 : start + 42 + 3 * count : 3]  # less 1; the upper bit: signed
    if {*depths} - {7}:
        raise BadImage(f"its values are signed, or have more or less than 8 bits: {_SCALE}")


def _check_tiff(data: bytes, mode: str, tags: Mapping) -> None:
    """Look at the type of the values, and at the checksums of deflated data, which Pillow ignores."""
    if {*tags.get(_SAMPLE_FORMAT, (1,))} != {1}:
        raise BadImage(f"its values are signed, or floating-point numbers: {_SCALE}")
    if tags.get(_SUBFILE_TYPE, 0) & 1:  # as in raw files of cameras
        raise BadImage("its first picture is a thumbnail: save the image as PNG")
    if mode in ("LA", "PA") and tags.get(_PLANAR) == 2:  # Pillow does not read the second plane
        raise BadImage("its alpha channel is stored apart: save it as PNG")
    if tags.get(_COMPRESSION) in _DEFLATE:
        starts, lengths = _STRIPS if _STRIPS[0] in tags else _TILES
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False):
            _check_deflate(data[start : start + length])


def _check_deflate(strip: bytes) -> None:
    """Raise BadImage where compressed data is damaged; takes little memory whatever it holds."""
    stream = zlib.decompressobj()
    try:
        while not stream.eof:
            if not stream.decompress(strip, 2**20) and not stream.eof:
                raise BadImage("the TIFF is truncated")
            strip = stream.unconsumed_tail
    except zlib.error as error:
        raise BadImage(f"the TIFF is damaged ({error})") from None


def _check_messages(data: bytes) -> None:
    """Raise BadImage where libtiff's messages, which Pillow drops, tell of damage in a TIFF."""
    level, stdout = cv2.setLogLevel(_DEBUG), os.dup(1)
    os.dup2(2, 1)  # OpenCV prints them to stdout, at that level
    try:
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        cv2.setLogLevel(level)
    if messages := decoder_messages.take():
        raise BadImage(messages[0])


@contextmanager
def _open(data: bytes, kind: str) -> Iterator["Image.Image"]:
    """Open an image with Pillow. Whatever that raises becomes BadImage, but for MemoryError."""
    from PIL import Image, TiffImagePlugin, UnidentifiedImageError

    if kind == "HEIC":
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise BadImage("it needs another package: pip install pillow-heif") from None
        register_heif_opener()
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
        reason = "" if unknown else f" ({str(error).strip() or type(error).__name__})"
        raise BadImage(f"Pillow cannot read it as {kind}{reason}: {ADVICE}") from None


def decode_with_pillow(data: bytes, kind: str, gray: bool | None, background: str) -> np.ndarray:
    """Return the first picture, turned as EXIF says and laid on the background, as decode() does."""
    from PIL import Image, ImageOps

    with _open(data, kind) as image:
        tags = getattr(image, "tag_v2", {})  # of TIFF
        if image.mode == "P" and max(tags.get(_COLOR_MAP, (256,))) < 256:
            image.putpalette(bytes(tags[_COLOR_MAP]), "RGB;L")  # 8 bits, where there should be 16
        _forget_xmp(image)  # before a TIFF is turned, which is when it is loaded
        image.load()
        _forget_xmp(image)  # of a PNG, where it may stand behind the pixels
        if tags.get(_COMPRESSION) in _UNCHECKED:
            _check_messages(data)
        if kind == "PNG" and image.mode == "L" and data[24] < 8 and "transparency" in image.info:
            image.info["transparency"] *= 255 // (2 ** data[24] - 1)  # the depth's largest
        if gray is None:
            gray = image.mode in _GRAY_MODES
            if kind == "BMP" and image.mode == "P":
                colors = np.reshape(image.getpalette(), (-1, 3))
                gray = bool((colors == colors[:, :1]).all())
        if kind == "GIF" and image.dispose_extent != (0, 0, *image.size):
            box = image.dispose_extent  # around a first picture that is smaller, there is nothing
            picture, image = image.convert("RGBA").crop(box), Image.new("RGBA", image.size)
            image.paste(picture, box)
        with suppress(SyntaxError):  # what should be EXIF data is none
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = Image.fromarray(_upper_bits(image, tags))
        # A BMP whose alpha is zero everywhere has none.
        if image.has_transparency_data and not (kind == "BMP" and image.getextrema()[-1] == (0, 0)):
            ground = Image.new("RGBA", image.size, background)
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        pixels = np.asarray(image.convert("L" if gray else "RGB"))
    return pixels.copy() if gray else pixels[:, :, ::-1].copy()


def _forget_xmp(image: "Image.Image") -> None:
    """Forget the orientation that XMP data or a text tells: programs turn images by EXIF only."""
    for key in ("Raw profile type exif", "XML:com.adobe.xmp", "xmp"):
        image.info.pop(key, None)


def _upper_bits(image: "Image.Image", tags: Mapping) -> np.ndarray:
    """Return the upper 8 bits of gray values that have more, as uint8. Raises BadImage."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage(f"its values are not all within 0 to 65,535: {_SCALE}")
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds for fewer bits only
        values = 65535 - values
    return (values >> (4 if tags.get(_BITS) == (12,) else 8)).astype(np.uint8)
