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
# What libjpeg warns of though all pixels may be right.
ODDITIES = re.compile("Invalid SOS parameters|unknown JFIF revision")
EXTRANEOUS = re.compile("extraneous bytes before marker 0xd9")
_ORIENTATION = 0x0112  # an entry of EXIF data
_END_MARKER = b"\xff\xd9"


def jpeg_header(data: bytes) -> Header:
    """Find the frame and look for the end marker; the decoder warns of damage in between."""
    frame, turned, several = None, None, False
    for marker, start, end in _segments(data):
        if marker == _SCAN:
            break
        if marker in _FRAMES:
            frame = marker, start
        elif marker == _EXIF and data.startswith(b"Exif\0", start) and turned is None:
            turned = _orientation(data[start + 6 : end]) in range(2, 9)  # the first one counts
        elif marker == _MPF and data.startswith(b"MPF\0", start):
            several = True
    if frame is None or len(data) < frame[1] + 6:
        raise BadImage("the JPEG is truncated or damaged (no frame header)")
    in_scan, (kind, start) = data[start : start + 1], frame
    precision, height, width, components = struct.unpack_from(">BHHB", data, start)
    in_scans = kind == _PROGRESSIVE or kind < _PROGRESSIVE and in_scan != bytes([components])
    several = several and b"hdrgm:" not in data[:start]  # a phone's table of gains is no picture
    is_ended = data.rfind(_END_MARKER, start) >= 0  # before it, a thumbnail may have one
    reasons = {
        "rare JPEG coding": kind > _PROGRESSIVE or precision != 8,
        "CMYK": components not in (1, 3),
        "EXIF rotation": turned,
        "no end marker": not is_ended,
        "missing scans": in_scans and _lacks_scans(data),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return Header(
        "JPEG",
        gray=components == 1,
        reencode_reason=reason,
        size=(width, height),
        several=several,
        is_turned=bool(turned),
        is_ended=is_ended,
    )


def _orientation(exif: bytes) -> int:
    """Return the orientation in the first directory of EXIF data; 2 to 8 are not upright."""
    order = "<" if exif.startswith(b"II") else ">"
    try:
        (position,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, position)
        for start in range(position + 2, position + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, start)
            if tag == _ORIENTATION:
                return value
    except struct.error:  # cut off
        pass
    return 1


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
    """Whether a JPEG of several scans lacks bits, which decoders guess each in its own way."""
    lowest = {}  # by component: the lowest bit that is there of each of its coefficients
    try:
        for marker, start, end in _segments(data):
            if marker in _FRAMES:
                lowest = {component: [16] * 64 for component in data[start + 6 : end : 3]}
            elif marker == _SCAN:
                first, last, bits = data[end - 3 : end]
                for component in data[start + 1 : end - 3 : 2]:
                    lowest[component][first : last + 1] = [bits & 15] * (last + 1 - first)
    except (KeyError, ValueError):  # damaged: the decoder tells
        return True
    return any(map(any, lowest.values()))


def with_exif_first(data: bytes) -> bytes:
    """Return a JPEG whose EXIF data is where OpenCV looks for it: in its first APP1 segment."""
    for marker, start, end in _segments(data):
        if marker == _EXIF and data.startswith(b"Exif\0", start):
            return data[:2] + data[start - 4 : end] + data[2:]
    return data


def with_end_marker(data: bytes) -> bytes:
    """Return a JPEG without end marker with one: behind its trailer, or where that has markers."""
    return data[: _end(data)] + _END_MARKER


def _end(data: bytes) -> int:
    """Return where the end marker is, or another marker that does not belong to the image."""
    *_, (_, end, _) = _segments(data)
    return end


def without_oddities(data: bytes) -> bytes:
    """Return a JPEG with the usual parameters of a sequential scan and the usual version of JFIF."""
    changed, segments = bytearray(data), list(_segments(data))
    is_sequential = _PROGRESSIVE not in {marker for marker, _, _ in segments}
    for marker, start, end in segments:
        if marker == _SCAN and is_sequential:
            changed[end - 3 : end] = b"\0\x3f\0"  # all coefficients, all bits
        elif data.startswith(b"JFIF\0", start):
            changed[start + 5] = 1  # of the format's version
    return bytes(changed)


def without_padding(data: bytes) -> list[bytes]:
    """Return a JPEG without the zeros before its end marker, and with one, which may be data.

    Where data is cut off before them, libjpeg reads zeros as pixels, and then warns of the rest.
    """
    whole = data[: _end(data)].rstrip(b"\xff")
    zeros = len(whole) - len(whole.rstrip(b"\0"))
    return [whole[: len(whole) - zeros + kept] + _END_MARKER for kept in range(min(zeros, 1) + 1)]


def has_trailer(messages: list[str], data: bytes) -> bool:
    """Whether a JPEG without end marker, with messages of decoding it, has something in its place.

    Then all pixels are there; otherwise it is cut off.
    """
    if messages:
        return len(messages) == 1 and bool(EXTRANEOUS.search(messages[0]))
    return _end(data) < len(data)
