"""What the first bytes of an image file tell, and whether the file is whole.

Decoders accept truncated files silently, so wholeness is looked at here.
"""

import io
import re
import struct
import warnings
import zlib
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image


warnings.filterwarnings("ignore", module="PIL")  # what matters is decided here


class BadImage(Exception):
    """These bytes are not a whole image that OpenCV reads. The message says why."""


class Header(NamedTuple):
    """What the first bytes of an image file tell."""

    kind: str  # "PNG", "JPEG", or another format's name
    gray: bool | None  # None: only decoding tells
    reencode_reason: str | None  # why OneFlow may read it differently than OpenCV, or None
    transparent: bool = False
    several: bool = False  # an animation, or pages: it holds more pictures than the first
    size: tuple[int, int] | None = None  # a JPEG's width and height in pixels
    few_levels: bool = False  # the largest value is below 255, which OpenCV does not scale
    not_scaled: str | None = None  # why a 16-bit image's largest value cannot be given


# Formats that OpenCV does not turn as their EXIF data says, or does not read.
PILLOW_KINDS = {"WebP", "GIF", "AVIF", "HEIC"}
NO_HEIF = "HEIC needs a package that is not installed: pip install pillow-heif"


def read_header(data: bytes) -> Header:
    """Return the Header of a file's bytes.

    Raises BadImage for an empty, truncated or damaged file.
    """
    if not data:
        raise BadImage("the file is empty")
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png_header(data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg_header(data)
        if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):  # BigTIFF, too
            return _tiff_header(data)
        if data.startswith(b"BM") and len(data) < struct.unpack_from("<I", data, 2)[0]:
            raise BadImage("the BMP is truncated")
        if data.startswith(b"RIFF") and len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
            raise BadImage("the WebP is truncated")
    except (struct.error, IndexError):
        png = data.startswith(b"\x89PNG")
        raise BadImage("the PNG is truncated" if png else "the file is truncated") from None
    start = data[: min(int.from_bytes(data[:4], "big"), 256)]  # of an ISO media file: its first box
    kinds = (kind for kind, pattern in _KINDS.items() if re.match(pattern, start, re.DOTALL))
    kind = next(kinds, OTHER_KIND)
    if kind == "HEIC":
        _register_heif()
    several, white = kind in PILLOW_KINDS and _is_animated(data), _value_of_white(data)
    reason = "16-bit" if white > 255 else None
    return Header(kind, None, reason, several=several, few_levels=white < 255)


OTHER_KIND = "another format"
_KINDS = {
    "BMP": b"BM",
    "WebP": b"RIFF",
    "GIF": b"GIF8",
    "PNM": b"P[1-6]",
    "AVIF": b"....ftyp(....)*?(avif|avis)",  # among the brands of an ISO media file
    "HEIC": b"....ftyp(....)*?(heic|heix|heim|heis|hevc|mif1)",
}


@cache
def _register_heif() -> None:
    """Have Pillow read HEIC files. Raises BadImage where pillow-heif is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise BadImage(NO_HEIF) from None
    register_heif_opener()


def _png_header(data: bytes) -> Header:
    """Walk all chunks, down to IEND: their lengths and checksums must be right."""
    position, chunks, kind = 8, set(), None
    while kind != b"IEND":
        length, kind = _PNG_CHUNK.unpack_from(data, position)
        end = position + 8 + length
        if _PNG_SUM.unpack_from(data, end)[0] != zlib.crc32(data[position + 4 : end]):
            raise BadImage(f"the PNG is damaged (wrong checksum of chunk {kind.decode('latin-1')})")
        chunks.add(kind)
        position = end + 4
    depth, color_type = data[24], data[25]
    if depth == 8 and color_type in _PNG_PLAIN and chunks.isdisjoint(_PNG_SPECIAL):
        return _PNG_PLAIN[color_type]
    transparent = color_type in (4, 6) or b"tRNS" in chunks
    reasons = {
        "16-bit": depth == 16,
        "palette": color_type == 3,
        "alpha": transparent,
        f"{depth}-bit": depth != 8,
        "EXIF": b"eXIf" in chunks,
        "animation": True,
    }
    reason = next(reason for reason, holds in reasons.items() if holds)
    problem = "it is transparent" if transparent and depth == 16 else None
    several = b"acTL" in chunks
    return Header("PNG", color_type in (0, 4), reason, transparent, several, not_scaled=problem)


# A chunk's length and type; and after its data the checksum.
_PNG_CHUNK, _PNG_SUM = struct.Struct(">I4s"), struct.Struct(">I")
_PNG_SPECIAL = {b"tRNS", b"eXIf", b"acTL"}  # transparency, EXIF data, animation
_PNG_PLAIN = {0: Header("PNG", True, None), 2: Header("PNG", False, None)}  # by color type

# Markers of a JPEG frame; up to C2: baseline, extended and progressive Huffman.
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _jpeg_header(data: bytes) -> Header:
    """Find the frame and look for the end marker; the decoder warns of damage in between."""
    position, rotated = 2, None
    while True:
        if data[position] != 0xFF:
            raise BadImage("the JPEG markers are damaged")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body, end = position + 4, position + 2 + length
        if marker == 0xE1 and data[body : body + 6] == b"Exif\0\0" and rotated is None:
            rotated = _is_rotated(data[body:end])  # of several the first counts
        elif marker in _JPEG_FRAMES:
            if data.rfind(b"\xff\xd9", end) < 0:  # before it, a thumbnail may have one
                raise BadImage("the JPEG is truncated (no end marker)")
            precision, height, width, components = struct.unpack_from(">BHHB", data, body)
            reason = None
            if marker > 0xC2 or precision != 8:
                reason = "rare JPEG coding"
            elif components not in (1, 3):
                reason = "CMYK"
            elif rotated:
                reason = "EXIF rotation"
            return Header("JPEG", components == 1, reason, size=(width, height))
        elif marker == 0xDA:
            raise BadImage("the JPEG frame header is missing")
        position = end


def open_with_pillow(data: bytes) -> "Image.Image":
    """Open an image's bytes with Pillow. Raises whatever Pillow does."""
    from PIL import Image  # takes 0.05 s to import, and most images do not need it

    return Image.open(io.BytesIO(data))


def _is_rotated(exif: bytes) -> bool:
    """Whether EXIF data tells to rotate or mirror the image."""
    from PIL import Image

    try:
        tags = Image.Exif()
        tags.load(exif)
        return tags.get(0x0112, 1) != 1  # 1: upright
    except Exception:  # damaged: the pixels are decided here, not by OneFlow
        return True


def _value_of_white(data: bytes) -> int:
    """The largest value that a PNM, PAM or JPEG 2000 file may have; 255 for others."""
    text = re.sub(rb"#[^\n]*", b"", data[:1000])  # without comments
    match = re.match(rb"P[2356]\s+\d+\s+\d+\s+(\d+)\s|P7\s.*?MAXVAL\s+(\d+)\s", text, re.DOTALL)
    if match:
        return int(match[1] or match[2])
    start = data.find(b"ihdr", 0, 100)  # JPEG 2000's box of sizes; then, 10 bytes on, the depth - 1
    if start < 0:
        return 255
    depth = (int.from_bytes(data[start + 14 : start + 15], "big") & 0x7F) + 1
    return max(2**depth - 1, 255)


def _is_animated(data: bytes) -> bool:
    try:
        with open_with_pillow(data) as image:
            return image.is_animated
    except Exception:  # the decoder tells what is wrong with it
        return False


def _tiff_header(data: bytes) -> Header:
    """Look for transparency, and at the checksums of deflated data, which decoders ignore."""
    try:
        with open_with_pillow(data) as image:
            tags, transparent = image.tag_v2, image.has_transparency_data
            several = image.is_animated
        depth = max(tags.get(_TIFF_BITS, (1,)))
        problems = {
            "it is transparent": transparent,
            f"it has {depth} bits a value": depth != 16,
            "its values are not unsigned integers": set(tags.get(_TIFF_FORMAT, (1,))) != {1},
            "its colors are in separate planes": tags.get(_TIFF_PLANES) == 2,
            "its smallest value is white": tags.get(_TIFF_PHOTOMETRIC) == 0,
        }
        problem = next((text for text, holds in problems.items() if holds and depth > 8), None)
        spans = []
        if tags.get(_TIFF_COMPRESSION) in _TIFF_DEFLATE:
            starts, lengths = _TIFF_STRIPS if _TIFF_STRIPS[0] in tags else _TIFF_TILES
            spans = list(zip(tags[starts], tags[lengths], strict=True))
    except Exception:  # OpenCV may read it all the same
        return Header("TIFF", None, None)
    for start, length in spans:
        try:
            zlib.decompress(data[start : start + length])
        except zlib.error as error:
            raise BadImage(f"the TIFF is damaged ({error})") from None
    reason = "16-bit" if depth == 16 else None
    return Header("TIFF", None, reason, transparent, several, not_scaled=problem)


# Tag numbers of TIFF 6.0 and its supplements; values of Compression for Deflate.
_TIFF_BITS, _TIFF_COMPRESSION, _TIFF_DEFLATE = 258, 259, {8, 32946}
_TIFF_PHOTOMETRIC, _TIFF_PLANES, _TIFF_FORMAT = 262, 284, 339
_TIFF_STRIPS, _TIFF_TILES = (273, 279), (324, 325)
