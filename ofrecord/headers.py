"""What the first bytes of an image file tell, and whether the file is whole.

Decoders accept cut-off files silently, so wholeness is looked at here.
"""

import struct
import zlib
from typing import NamedTuple


class BadImage(Exception):
    """These bytes are no whole image that OpenCV reads. The message says why."""


class Header(NamedTuple):
    """What the first bytes of an image file tell."""

    kind: str  # "PNG", "JPEG", or another format's name
    gray: bool | None  # None: only decoding tells
    reencode_reason: str | None  # why OneFlow may read it differently than OpenCV, or None


def read_header(data: bytes) -> Header:
    """Return the Header of a file's bytes. Raises BadImage for an empty, cut-off or damaged file."""
    if not data:
        raise BadImage("the file is empty")
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png_header(data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg_header(data)
        if data.startswith(b"BM") and len(data) < struct.unpack_from("<I", data, 2)[0]:
            raise BadImage("the BMP is cut off")
        if data.startswith(b"RIFF") and len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
            raise BadImage("the WebP is cut off")
    except (struct.error, IndexError):
        raise BadImage("the file is cut off in its header") from None
    kind = next(
        (kind for magic, kind in _MAGIC.items() if data.startswith(magic)), "another format"
    )
    return Header(kind, None, None)


_MAGIC = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"BM": "BMP", b"RIFF": "WebP"}
_MAGIC.update({b"P%d" % kind: "PNM" for kind in range(1, 7)})


def _png_header(data: bytes) -> Header:
    """Walk all chunks, down to IEND: their lengths and checksums must be right."""
    position, chunks = 8, set()
    while True:
        if position + 8 > len(data):
            raise BadImage("the PNG is cut off")
        length, kind = _PNG_CHUNK.unpack_from(data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise BadImage("the PNG is cut off")
        if zlib.crc32(data[position + 4 : end]) != _PNG_SUM.unpack_from(data, end)[0]:
            raise BadImage(f"the PNG is damaged (checksum of chunk {kind.decode('latin-1')})")
        chunks.add(kind)
        if kind == b"IEND":
            break
        position = end + 4
    depth, color_type = data[24], data[25]
    reasons = {
        "16-bit": depth == 16,
        "palette": color_type == 3,
        "alpha": color_type in (4, 6) or b"tRNS" in chunks,
        f"{depth}-bit": depth != 8,
        "EXIF": b"eXIf" in chunks,
        "animation": b"acTL" in chunks,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return Header("PNG", color_type in (0, 4), reason)


# A chunk's length and type; and after its data the checksum.
_PNG_CHUNK, _PNG_SUM = struct.Struct(">I4s"), struct.Struct(">I")

# Markers of a JPEG frame: baseline, extended and progressive Huffman; and others.
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2}
_JPEG_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


def _jpeg_header(data: bytes) -> Header:
    """Look for the end marker; of damage before it, the decoder's warnings tell."""
    if data.rfind(b"\xff\xd9") < 0:
        raise BadImage("the JPEG is cut off (no end marker)")
    position, rotated = 2, False
    while True:
        if data[position] != 0xFF:
            raise BadImage("its JPEG markers are damaged")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body, end = position + 4, position + 2 + length
        if marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            rotated = _is_rotated(data[body:end])
        elif marker in _JPEG_FRAMES | _JPEG_OTHER_FRAMES:
            precision, components = data[body], data[body + 5]
            reason = None
            if marker in _JPEG_OTHER_FRAMES or precision != 8:
                reason = "rare JPEG coding"
            elif components not in (1, 3):
                reason = "CMYK"
            elif rotated:
                reason = "EXIF rotation"
            return Header("JPEG", components == 1, reason)
        elif marker == 0xDA:
            raise BadImage("its JPEG frame header is missing")
        position = end


def _is_rotated(exif: bytes) -> bool:
    """Whether EXIF data tells to rotate or mirror the image."""
    from PIL import Image  # takes 0.05 s to import, and most images have no EXIF data

    try:
        tags = Image.Exif()
        tags.load(exif)
        return tags.get(0x0112, 1) != 1  # 1: upright
    except Exception:  # damaged: the pixels are decided here, not by OneFlow
        return True
