"""What the headers of image files tell, and whether a PNG is whole."""

import struct
import zlib

from .formats import ADVICE, BadImage, Header, check_size
from .jpeg import jpeg_header
from .others import other_header


def read_header(data: bytes) -> Header:
    """Return the Header of a file's bytes.

    Raises BadImage for what is empty, cut off, damaged, too large or not of a kind that is read.
    """
    if not data:
        raise BadImage("the file is empty")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        header = _png_header(data)
    elif data.startswith(b"\xff\xd8"):
        header = jpeg_header(data)
    else:
        return other_header(data)
    check_size(*header.size)
    return header


# A chunk's length and type; after its data the checksum; and the contents of IHDR.
_CHUNK, _SUM, _IHDR = struct.Struct(">I4s"), struct.Struct(">I"), struct.Struct(">IIBB")
_IS_GRAY = {0: True, 2: False}  # by colour type, of those that may be plain
_SPECIAL = {b"tRNS", b"eXIf", b"acTL"}  # transparency, EXIF data, animation


def _png_header(data: bytes) -> Header:
    """Walk all chunks, down to IEND: their lengths and checksums, which decoders do not look at."""
    position, chunks, kind = 8, set(), None
    try:
        while kind != b"IEND":
            length, kind = _CHUNK.unpack_from(data, position)
            end = position + 8 + length
            if _SUM.unpack_from(data, end)[0] != zlib.crc32(data[position + 4 : end]):
                name = kind.decode("latin-1")
                raise BadImage(f"the PNG is damaged (wrong checksum of chunk {name})")
            chunks.add(kind)
            position = end + 4
        width, height, depth, color_type = _IHDR.unpack_from(data, 16)
    except struct.error:
        raise BadImage("the PNG is truncated") from None
    if data[12:16] != b"IHDR":
        raise BadImage(f"it is no standard PNG, as those in iPhone apps: {ADVICE}")
    if depth == 8 and color_type in _IS_GRAY and chunks.isdisjoint(_SPECIAL):
        return Header("PNG", _IS_GRAY[color_type], None, (width, height))
    if depth == 16 and color_type in _IS_GRAY and b"tRNS" in chunks:  # Pillow compares 8 bits of it
        raise BadImage("one of its 16-bit values is transparent: save it with an alpha channel")
    if color_type == 3 and b"PLTE" not in chunks:
        raise BadImage("the PNG has no palette")
    transparent = color_type in (4, 6) or b"tRNS" in chunks
    reasons = {
        "16-bit": depth == 16,
        "palette": color_type == 3,
        "transparency": transparent,
        f"{depth}-bit": depth != 8,
        "EXIF": b"eXIf" in chunks,
        "animation": True,
    }
    reason = next(reason for reason, holds in reasons.items() if holds)
    several = b"acTL" in chunks  # damaged animations end OpenCV's process
    use_pillow = several or transparent or b"eXIf" in chunks
    return Header("PNG", color_type in (0, 4), reason, (width, height), several, use_pillow)
