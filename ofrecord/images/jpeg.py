"""The markers of a JPEG: what they tell before decoding, and what libjpeg's messages mean."""

import re
import struct
from collections.abc import Iterator

from .formats import BadImage, Header

# Markers of a frame; up to C2: baseline, extended and progressive Huffman.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE, _SCAN, _EXIF, _MPF = 0xC2, 0xDA, 0xE1, 0xE2
# Segments of an image: frame, tables, scan, number of lines, restart interval; and what stands
# before the first scan only: application data and comment.
_SEGMENTS = {*_FRAMES, 0xC4, 0xCC, _SCAN, 0xDB, 0xDC, 0xDD}
_FIRST_SEGMENTS = _SEGMENTS | {*range(0xE0, 0xF0), 0xFE}
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # in a scan: no stuffing, no restart
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
# The first entry 0x0112 of EXIF data, in its byte order: a type, a count, the orientation.
_ORIENTATION = re.compile(
    rb"Exif\0\0(?:II.*?\x12\x01[^\0]\0|MM.*?\x01\x12\0[^\0]).{4}(..)", re.DOTALL
)
_UPRIGHT = {b"\1\0", b"\0\1"}
_END_MARKER = b"\xff\xd9"
# Warnings of what changes no pixel; libjpeg prints its first one only, so they hide all later ones.
ODDITIES = re.compile("Invalid SOS parameters|unknown JFIF revision")


def jpeg_header(data: bytes) -> Header:
    """Find the frame and look for the end marker; the decoder warns of damage in between."""
    rotated, several = None, False
    for marker, start, end in _segments(data):
        if marker in _FRAMES or marker == _SCAN:
            break
        if marker == _EXIF and data.startswith(b"Exif\0\0", start) and rotated is None:
            found = _ORIENTATION.match(data, start, end)  # of several segments the first counts
            rotated = found is not None and found[1] not in _UPRIGHT
        elif marker == _MPF and data.startswith(b"MPF\0", start):
            several = True
    if marker not in _FRAMES or len(data) < start + 6:
        raise BadImage("the JPEG is truncated or damaged (no frame header)")
    precision, height, width, components = struct.unpack_from(">BHHB", data, start)
    several = several and b"hdrgm:" not in data[:start]  # a phone's table of gains is no picture
    is_ended = data.rfind(_END_MARKER, start) >= 0  # before it, a thumbnail may have one
    reasons = {
        "rare JPEG coding": marker > _PROGRESSIVE or precision != 8,
        "CMYK": components not in (1, 3),
        "EXIF rotation": rotated,
        "no end marker": not is_ended,
        "missing scans": marker == _PROGRESSIVE and _lacks_scans(data),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return Header("JPEG", components == 1, reason, (width, height), several, is_ended=is_ended)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each segment of the image; at last 0 and where it ends."""
    position, allowed = 2, _FIRST_SEGMENTS
    while found := _NEXT_MARKER.search(data, position):
        marker, start = found[1][0], found.end() + 2
        if marker not in allowed:
            break
        if marker == _SCAN:
            allowed = _SEGMENTS
        position = start + max(0, int.from_bytes(data[start - 2 : start], "big") - 2)
        yield marker, start, position
    end = found.start() if found else len(data)
    yield 0, end, end


def _lacks_scans(data: bytes) -> bool:
    """Whether a progressive JPEG lacks bits, which OneFlow's and OpenCV's decoders guess otherwise."""
    lowest = {}  # by component: the lowest bit that is there of each of its coefficients
    try:
        for marker, start, end in _segments(data):
            if marker == _PROGRESSIVE:
                lowest = {component: [16] * 64 for component in data[start + 6 : end : 3]}
            elif marker == _SCAN:
                first, last, bits = data[end - 3 : end]
                for component in data[start + 1 : end - 3 : 2]:
                    lowest[component][first : last + 1] = [bits & 15] * (last + 1 - first)
    except (KeyError, ValueError):  # damaged: the decoder tells
        return True
    return any(map(any, lowest.values()))


def without_oddities(data: bytes) -> bytes:
    """Return a JPEG that libjpeg does not warn of for what changes no pixel."""
    changed, segments = bytearray(data), list(_segments(data))
    is_sequential = _PROGRESSIVE not in {marker for marker, _, _ in segments}
    for marker, start, end in segments:
        if marker == _SCAN and is_sequential:
            changed[end - 3 : end] = b"\0\x3f\0"  # all coefficients, all bits
        elif data.startswith(b"JFIF\0", start):
            changed[start + 5] = 1  # of the format's version
    return bytes(changed)


def with_end_marker(data: bytes) -> bytes:
    """Return a JPEG without end marker with one: behind its trailer, or where that has markers."""
    *_, (_, end, _) = _segments(data)
    return data[:end] + _END_MARKER


def damage_of_jpeg(messages: list[str], data: bytes, is_ended: bool) -> str | None:
    """Return what messages of decoding a JPEG, with an end marker, tell of damage; or None.

    Bytes before the marker are harmless padding where all are 00 or FF. Where the file has no
    marker, any others are a trailer, and all pixels are there; with padding it is cut off.
    """
    if is_ended and not messages:
        return None
    *_, (_, end, _) = _segments(data)
    match = _EXTRANEOUS.search(messages[0]) if len(messages) == 1 else None
    number = int(match[1]) if match else 0
    is_padding = data[:end].rstrip(b"\xff").endswith(bytes(number))
    is_padding = is_padding or data[:end].endswith(b"\xff" * number)
    if is_ended:
        return None if match and is_padding else messages[0]
    has_trailer = not is_padding if match else not messages and end < len(data)
    return None if has_trailer else "the JPEG is truncated (no end marker)"
