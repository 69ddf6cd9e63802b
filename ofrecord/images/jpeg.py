"""The markers of a JPEG: what its header tells, and what its decoder's messages mean."""

import re
import struct

from .formats import BadImage, Header

# Markers of a frame; up to C2: baseline, extended and progressive Huffman.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE, _SCAN, _EXIF, _START = 0xC2, 0xDA, 0xE1, b"\xff\xd8\xff"
_END = b"\xff\xd9"
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # in a scan: no stuffing, no restart
# Segments between scans: tables, scan, number of lines, restart interval, application, comment.
_SEGMENTS = {0xC4, 0xCC, _SCAN, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE} | _FRAMES
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


def jpeg_header(data: bytes) -> Header:
    """Find the frame and look for the end marker; the decoder warns of damage in between."""
    try:
        return _find_frame(data)
    except (struct.error, IndexError):
        raise BadImage("the JPEG is truncated") from None


def _find_frame(data: bytes) -> Header:
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
        if marker == _EXIF and data[body : body + 6] == b"Exif\0\0" and rotated is None:
            rotated = _is_rotated(data[body:end])  # of several the first counts
        elif marker in _FRAMES:
            precision, height, width, components = struct.unpack_from(">BHHB", data, body)
            is_ended = data.rfind(_END, end) >= 0  # before it, a thumbnail may have one
            reason = None
            if marker > _PROGRESSIVE or precision != 8:
                reason = "rare JPEG coding"
            elif components not in (1, 3):
                reason = "CMYK"
            elif rotated:
                reason = "EXIF rotation"
            elif not is_ended:
                reason = "no end marker"
            elif marker == _PROGRESSIVE and _lacks_scans(data):
                reason = "scans are missing"
            several = data.find(_END + _START, end) >= 0
            return Header(
                "JPEG", components == 1, reason, (width, height), several, is_ended=is_ended
            )
        elif marker == _SCAN:
            raise BadImage("the JPEG frame header is missing")
        position = end


def _is_rotated(exif: bytes) -> bool:
    """Whether EXIF data tells to rotate or mirror the image."""
    from PIL import Image  # takes 0.05 s to import, and most images do not need it

    try:
        tags = Image.Exif()
        tags.load(exif)
        return tags.get(0x0112, 1) != 1  # 1: upright
    except Exception:  # damaged: the pixels are decided here, not by OneFlow
        return True


def _walk(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Return (marker, body) of all segments of the image, and the position of what ends it."""
    position, segments = 2, []
    while found := _NEXT_MARKER.search(data, position):
        marker, body = found[1][0], found.end()
        if marker not in _SEGMENTS:
            return segments, found.start()
        position = body + int.from_bytes(data[body : body + 2], "big")
        segments.append((marker, data[body + 2 : position]))
    return segments, len(data)


def _lacks_scans(data: bytes) -> bool:
    """Whether bits of coefficients of a progressive JPEG are missing, so that decoders guess.

    OneFlow's and OpenCV's do so differently.
    """
    lowest = {}  # by component: the lowest bit that is there of each of its coefficients
    try:
        for marker, body in _walk(data)[0]:
            if marker == _PROGRESSIVE:
                lowest = {component: [16] * 64 for component in body[6::3]}
            elif marker == _SCAN:
                first, last, bits = body[-3:]
                for component in body[1:-3:2]:
                    lowest[component][first : last + 1] = [bits & 15] * (last + 1 - first)
    except (KeyError, ValueError):  # damaged: the decoder tells
        return True
    return any(map(any, lowest.values()))


def with_end_marker(data: bytes) -> bytes:
    """Return a JPEG that has none with an end marker: before a trailer if that has markers."""
    return data[: _walk(data)[1]] + _END


def is_padding(message: str, data: bytes) -> bool:
    """Whether a message of libjpeg is about nothing but padding before the end marker."""
    match = _EXTRANEOUS.search(message)
    if not match:
        return False
    number, before = int(match[1]), data[: _walk(data)[1]]
    return before.rstrip(b"\xff").endswith(bytes(number)) or before.endswith(b"\xff" * number)


def is_trailer(messages: list[str], data: bytes) -> bool:
    """Whether all pixels are there in a JPEG without end marker, and then something else.

    ``messages`` are those of decoding it with one. Zeros are no trailer: the file is cut off.
    """
    if not messages:
        return _walk(data)[1] < len(data)
    only = len(messages) == 1 and _EXTRANEOUS.search(messages[0])
    return bool(only) and not is_padding(messages[0], data)
