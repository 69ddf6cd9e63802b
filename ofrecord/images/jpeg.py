"""The markers of a JPEG: what they tell before decoding, and what libjpeg's messages mean."""

import re
import struct
import warnings

from .formats import BadImage, Header

# Markers of a frame; up to C2: baseline, extended and progressive Huffman.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE, _SCAN, _EXIF, _MPF = 0xC2, 0xDA, 0xE1, 0xE2
# Segments of an image: frame, tables, scan, number of lines, restart interval; and what stands
# before the first scan only: application data and comment.
_SEGMENTS = {*_FRAMES, 0xC4, 0xCC, _SCAN, 0xDB, 0xDC, 0xDD}
_MISCELLANEOUS = {*range(0xE0, 0xF0), 0xFE}
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # in a scan: no stuffing, no restart
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
# Warnings of what changes no pixel, of which the first hides all that come later.
ODDITIES = re.compile("Invalid SOS parameters|unknown JFIF revision")
END_MARKER = b"\xff\xd9"


def jpeg_header(data: bytes) -> Header:
    """Find the frame and look for the end marker; the decoder warns of damage in between."""
    position, rotated, several = 2, None, False
    try:
        while True:
            if data[position] != 0xFF:
                raise BadImage("the JPEG markers are damaged")
            marker = data[position + 1]
            if marker == 0xFF:  # a fill byte
                position += 1
                continue
            (length,) = struct.unpack_from(">H", data, position + 2)
            body, position = position + 4, position + 2 + length
            if marker == _EXIF and data.startswith(b"Exif\0\0", body) and rotated is None:
                rotated = _is_rotated(data[body:position])  # of several the first counts
            elif marker == _MPF and data.startswith(b"MPF\0", body):
                several = True  # but for a phone's table of gains, see below
            elif marker in _FRAMES:
                break
            elif marker == _SCAN:
                raise BadImage("the JPEG frame header is missing")
        precision, height, width, components = struct.unpack_from(">BHHB", data, body)
    except (struct.error, IndexError):
        raise BadImage("the JPEG is truncated") from None
    is_ended = data.rfind(END_MARKER, position) >= 0  # before it, a thumbnail may have one
    reasons = {
        "rare JPEG coding": marker > _PROGRESSIVE or precision != 8,
        "CMYK": components not in (1, 3),
        "EXIF rotation": rotated,
        "no end marker": not is_ended,
        "missing scans": marker == _PROGRESSIVE and _lacks_scans(data),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    several = several and b"hdrgm:" not in data[:position]
    return Header("JPEG", components == 1, reason, (width, height), several, is_ended=is_ended)


def _is_rotated(exif: bytes) -> bool:
    """Whether EXIF data tells to rotate or mirror the image."""
    from PIL import Image  # takes 0.05 s to import, and most images do not need it

    tags = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags.load(exif)
        return tags.get(0x0112, 1) != 1  # 1: upright
    except Exception:  # damaged: the pixels are decided here, not by OneFlow
        return True


def _walk(data: bytes) -> tuple[list[tuple[int, int, int]], int]:
    """Return (marker, start, end) of all segments of the image, and the position of what ends it."""
    position, segments, allowed = 2, [], _SEGMENTS | _MISCELLANEOUS
    while found := _NEXT_MARKER.search(data, position):
        marker, start = found[1][0], found.end() + 2
        if marker not in allowed:
            return segments, found.start()
        if marker == _SCAN:
            allowed = _SEGMENTS
        position = start + max(0, int.from_bytes(data[start - 2 : start], "big") - 2)
        segments.append((marker, start, position))
    return segments, len(data)


def _lacks_scans(data: bytes) -> bool:
    """Whether a progressive JPEG lacks bits, which OneFlow's and OpenCV's decoders guess otherwise."""
    lowest = {}  # by component: the lowest bit that is there of each of its coefficients
    try:
        for marker, start, end in _walk(data)[0]:
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
    changed, segments = bytearray(data), _walk(data)[0]
    is_sequential = _PROGRESSIVE not in {marker for marker, _, _ in segments}
    for marker, start, end in segments:
        if marker == _SCAN and is_sequential:
            changed[end - 3 : end] = b"\0\x3f\0"  # all coefficients, all bits
        elif data.startswith(b"JFIF\0", start):
            changed[start + 5] = 1  # of the format's version
    return bytes(changed)


def with_end_marker(data: bytes) -> bytes:
    """Return a JPEG without end marker with one: behind its trailer, or where that has markers."""
    return data[: _walk(data)[1]] + END_MARKER


def damage_of_jpeg(messages: list[str], data: bytes, is_ended: bool) -> str | None:
    """Return what messages of decoding a JPEG, with an end marker, tell of damage; or None.

    Bytes before the marker are harmless padding where all are 00 or FF. Where the file has no
    marker, any others are a trailer, and all pixels are there; with padding it is cut off.
    """
    if is_ended and not messages:
        return None
    end = _walk(data)[1]
    match = _EXTRANEOUS.search(messages[0]) if len(messages) == 1 else None
    number = int(match[1]) if match else 0
    is_padding = data[:end].rstrip(b"\xff").endswith(bytes(number))
    is_padding = is_padding or data[:end].endswith(b"\xff" * number)
    if is_ended:
        return None if match and is_padding else messages[0]
    has_trailer = not is_padding if match else not messages and end < len(data)
    return None if has_trailer else "the JPEG is truncated (no end marker)"
