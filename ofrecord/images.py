"""Image bytes: what OneFlow's decoder would make of them, and what to store instead.

The contract: what OneFlow 0.9.0 decodes from a record (``OFRecordBytesDecoder``
and ``nn.image.decode``) equals what OpenCV reads from the file as 8-bit. OneFlow
contains an older OpenCV than ours and reads with IMREAD_ANYDEPTH, so the two
agree on plain files only. Plain files are stored unchanged; all others are
decoded here and re-encoded as plain ones.
"""

import os
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np

# The formats of images in a record, by file extension. Each was seen to leave
# OneFlow's decoder unchanged. OpenCV writes more (.hdr, .pfm, .jp2 …), but
# OneFlow aborts on those or changes them.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".tiff": "TIFF",
    ".tif": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".webp": "WebP",
    ".pnm": "PNM",
}

# Extensions of files that OpenCV can read, for searching folders for images.
IMAGE_EXTENSIONS = set(FORMATS) | {
    ".pgm",
    ".ppm",
    ".pbm",
    ".pam",
    ".jp2",
    ".ras",
    ".sr",
    ".avif",
    ".gif",
}

DEFAULT_QUALITY = 95  # OpenCV's default for JPEG, from 0 to 100


class BadImage(Exception):
    """Raised for bytes that are not a complete image that OpenCV reads, with the reason."""


class ColorImage(Exception):
    """Raised for a colour image where all images were expected to be gray."""


class ImageOptions(NamedTuple):
    """How images are stored."""

    ext: str  # the format, a key of FORMATS
    channels: int  # 1 (gray) or 3 (colour)
    only_gray: bool  # with 1 channel: raise ColorImage for a colour file, do not convert it
    size: tuple[int, int] | None  # width and height to resize to; None keeps the image's
    quality: int  # of JPEG, from 0 to 100


class Encoded(NamedTuple):
    """An image as it is stored."""

    data: bytes  # encoded
    # Decoded from data, or for a lossy format what was encoded: uint8, (height, width)
    # for gray, (height, width, 3) BGR for colour.
    pixels: np.ndarray
    reencode_reason: str | None  # None where the file's bytes are stored unchanged


class Header(NamedTuple):
    """What an image's header tells."""

    kind: str  # the format, a value of FORMATS, or "other format"
    gray: bool | None  # None where only decoding tells
    reencode_reason: str | None  # why OneFlow may decode the image differently from OpenCV


def encode(
    data: bytes, options: ImageOptions, messages: "DecoderMessages | None" = None
) -> Encoded:
    """Return what to store for a file's bytes.

    ``messages`` captures the decoder's warnings, which make an image invalid;
    after a BadImage, the caller has to take() those that are left. Raises
    BadImage, and ColorImage as ImageOptions says.
    """
    header = read_header(data)
    pixels = decode(data, cv2.IMREAD_GRAYSCALE if options.channels == 1 else cv2.IMREAD_COLOR)
    gray = header.gray
    if gray is None:
        gray = decode(data, cv2.IMREAD_UNCHANGED).ndim == 2
    warning = messages.take() if messages else None
    if warning:
        raise BadImage(warning)
    if options.only_gray and not gray:
        raise ColorImage
    reencode_reason = _find_reencode_reason(header, gray, options, pixels)
    if reencode_reason is None:
        return Encoded(data, pixels, None)
    if options.size and (pixels.shape[1], pixels.shape[0]) != options.size:
        smaller = options.size[0] * options.size[1] < pixels.shape[0] * pixels.shape[1]
        pixels = cv2.resize(
            pixels, options.size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        )
    is_jpeg = FORMATS[options.ext] == "JPEG"
    parameters = [cv2.IMWRITE_JPEG_QUALITY, options.quality] if is_jpeg else []
    try:
        done, encoded = cv2.imencode(options.ext, pixels, parameters)
    except cv2.error as error:
        raise BadImage(f"OpenCV cannot encode it as {options.ext}: {error.err}") from error
    if not done:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise BadImage(f"OpenCV cannot encode its {size} pixels as {options.ext}")
    return Encoded(encoded.tobytes(), pixels, reencode_reason)


def decode(data: bytes, flag: int) -> np.ndarray:
    """Return the pixels of encoded bytes as ``cv2.imdecode`` reads them with this flag.

    Raises BadImage.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise BadImage(f"OpenCV cannot read it: {error.err or error}") from error
    if pixels is None:
        raise BadImage("OpenCV cannot read it as an image")
    return pixels


def _find_reencode_reason(header, gray, options, pixels):
    """Return why a file's bytes cannot be stored unchanged, or None."""
    if header.kind != FORMATS[options.ext]:
        return f"{header.kind} to {FORMATS[options.ext]}"
    if options.size and (pixels.shape[1], pixels.shape[0]) != options.size:
        return "resized"
    if header.reencode_reason:
        return header.reencode_reason
    if gray and options.channels == 3:
        return "gray to colour"
    if not gray and options.channels == 1:
        return "colour to gray"
    return None


# -- headers: the format of a file, and whether it is complete and plain -----------------
#
# Decoders accept truncated files in silence, so completeness is checked here.


def read_header(data: bytes) -> Header:
    """Return the Header of a file's bytes, by content and not by name.

    Raises BadImage for an empty, truncated or damaged file.
    """
    if not data:
        raise BadImage("the file is empty")
    for magic, reader in _READERS:
        if data.startswith(magic):
            try:
                return reader(data)
            except (struct.error, IndexError):
                raise BadImage("the file is truncated in its header") from None
    return Header("other format", None, None)


def _png_header(data):
    """Return the Header of a PNG, all of whose chunks must have valid lengths and CRCs."""
    chunks = _png_chunks(data)
    depth, color_type = data[24], data[25]
    if depth == 16:
        reencode_reason = "16-bit"
    elif color_type == 3:
        reencode_reason = "palette"
    elif color_type in (4, 6) or b"tRNS" in chunks:
        reencode_reason = "alpha"
    elif depth != 8:
        reencode_reason = f"{depth}-bit"
    elif b"eXIf" in chunks:
        reencode_reason = "EXIF"
    elif b"acTL" in chunks:
        reencode_reason = "animation"
    else:
        reencode_reason = None
    return Header("PNG", color_type in (0, 4), reencode_reason)


def _png_chunks(data):
    """Return the types of a PNG's chunks. Raises BadImage for a truncated or damaged one."""
    position, chunks, size = 8, [], len(data)
    while position + 8 <= size:
        length, kind = _PNG_CHUNK.unpack_from(data, position)
        end = position + 8 + length
        if end + 4 > size:
            break
        if zlib.crc32(data[position + 4 : end]) != _PNG_SUM.unpack_from(data, end)[0]:
            name = kind.decode("latin-1")
            raise BadImage(f"the PNG is damaged (wrong checksum of chunk {name})")
        chunks.append(kind)
        if kind == b"IEND":
            return chunks
        position = end + 4
    raise BadImage("the PNG is truncated")


_PNG_CHUNK = struct.Struct(">I4s")  # length and type
_PNG_SUM = struct.Struct(">I")  # after the chunk's data, its CRC


_JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive Huffman
_JPEG_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


def _jpeg_header(data):
    """Return the Header of a JPEG, which must have an end marker.

    Damage before that is left to the decoder's warnings.
    """
    if data.rfind(b"\xff\xd9") < 0:
        raise BadImage("the JPEG is truncated (no end marker)")
    position, orientation = 2, 1
    while True:
        if data[position] != 0xFF:
            raise BadImage("the JPEG markers are damaged")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = position + 4
        if marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _orientation(data[body + 6 : position + 2 + length])
        elif marker in _JPEG_FRAMES or marker in _JPEG_OTHER_FRAMES:
            precision, components = data[body], data[body + 5]
            if marker in _JPEG_OTHER_FRAMES or precision != 8:
                reencode_reason = "rare JPEG coding"
            elif components not in (1, 3):
                reencode_reason = "CMYK"
            elif orientation != 1:
                reencode_reason = "EXIF rotation"
            else:
                reencode_reason = None
            return Header("JPEG", components == 1, reencode_reason)
        elif marker == 0xDA:
            raise BadImage("the JPEG frame header is missing")
        position += 2 + length


def _bmp_header(data):
    pixel_offset, header_size = struct.unpack_from("<2I", data, 10)
    (file_size,) = struct.unpack_from("<I", data, 2)
    if len(data) < file_size:
        raise BadImage("the BMP is truncated")
    bits, compression = struct.unpack_from("<HI", data, 28)
    palette = data[14 + header_size : pixel_offset]
    gray = bits == 8 and palette == _GRAY_PALETTE
    plain = compression == 0 and header_size == 40 and (bits == 24 or gray)
    return Header("BMP", True if gray else None, None if plain else f"{bits}-bit or packed BMP")


# As cv2.imwrite writes it.
_GRAY_PALETTE = bytes(value for level in range(256) for value in (level, level, level, 0))


def _tiff_header(data):
    order = "<" if data[:2] == b"II" else ">"
    tags, next_directory = _tiff_tags(data, order)
    bits, samples = tags.get(258, 1), tags.get(277, 1)
    photometric, compression = tags.get(262), tags.get(259, 1)
    gray = samples == 1 and photometric in (0, 1)
    plain = (
        bits == 8
        and (samples, photometric) in ((1, 1), (3, 2))  # gray with black as zero; RGB
        and compression in (1, 5)  # none, LZW
        and tags.get(284, 1) == 1  # the samples of a pixel are adjacent
        and tags.get(274, 1) == 1  # upright
        and tags.get(339, 1) == 1  # unsigned
        and 322 not in tags  # no tiles
        and 338 not in tags  # no extra samples
        and not next_directory  # one page
        and order == "<"
    )
    return Header("TIFF", True if gray and bits == 8 else None, None if plain else "TIFF variant")


def _webp_header(data):
    if len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
        raise BadImage("the WebP is truncated")
    # VP8X is the extended format: alpha, animation, EXIF; VP8L may hold alpha.
    chunk = data[12:16]
    plain = chunk == b"VP8 " or (chunk == b"VP8L" and not data[24] & 0x10)
    return Header("WebP", False, None if plain else "WebP variant")


def _pnm_header(data):
    # Binary gray (P5) or RGB (P6) with 8 bits per sample is plain; the ASCII
    # formats, bitmaps and headers with comments are re-encoded.
    fields = data[:64].split(None, 4)
    plain = (
        data[:2] in (b"P5", b"P6")
        and len(fields) > 3
        and fields[3] == b"255"
        and b"#" not in data[:64]
    )
    gray = {b"P5": True, b"P2": True, b"P6": False, b"P3": False}.get(data[:2])
    return Header("PNM", gray, None if plain else "PNM variant")


_READERS = [
    (b"\x89PNG\r\n\x1a\n", _png_header),
    (b"\xff\xd8", _jpeg_header),
    (b"BM", _bmp_header),
    (b"II*\0", _tiff_header),
    (b"MM\0*", _tiff_header),
    (b"RIFF", _webp_header),
]
_READERS += [(f"P{kind}".encode(), _pnm_header) for kind in range(1, 7)]


def _tiff_tags(data, order):
    """Return the tags of the first directory and the offset of the next one.

    A tag maps to its value, or a tuple of them where they differ (of more
    than four, only the first four are read), or None for an unknown type.
    """
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (num_entries,) = struct.unpack_from(order + "H", data, offset)
    tags = {}
    for entry in range(offset + 2, offset + 2 + 12 * num_entries, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, entry)
        value_format = {1: "B", 3: "H", 4: "I"}.get(kind)
        if value_format is None:
            tags[tag] = None
            continue
        at = entry + 8
        if length * struct.calcsize(value_format) > 4:
            (at,) = struct.unpack_from(order + "I", data, at)
        values = struct.unpack_from(f"{order}{min(length, 4)}{value_format}", data, at)
        tags[tag] = values[0] if len(set(values)) == 1 else values
    (next_directory,) = struct.unpack_from(order + "I", data, offset + 2 + 12 * num_entries)
    return tags, next_directory


def _orientation(exif):
    """Return the EXIF orientation, 1 (upright) to 8, from the TIFF data of an APP1 segment.

    0 for damaged data, so that the image is re-encoded.
    """
    try:
        return _tiff_tags(exif, "<" if exif[:2] == b"II" else ">")[0].get(274, 1)
    except struct.error:
        return 0


class DecoderMessages:
    """Captures what the C libraries print to stderr while they decode.

    libjpeg accepts damaged data and only prints a warning; that warning is the
    only sign that the pixels are wrong. Inside the ``with`` block the process's
    stderr is redirected to a file in memory.
    """

    # Printed for images whose pixels are right all the same.
    HARMLESS = ("libpng warning: ", "[ WARN:")

    def __enter__(self) -> "DecoderMessages":
        self._file = os.memfd_create("decoder-messages")
        self._stderr = os.dup(2)
        os.dup2(self._file, 2)
        self._taken = 0
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._stderr, 2)
        os.close(self._stderr)
        os.close(self._file)

    def take(self) -> str | None:
        """Return the first warning of wrong pixels since the last call, or None."""
        size = os.lseek(self._file, 0, os.SEEK_CUR)
        if size == self._taken:
            return None
        text = os.pread(self._file, size - self._taken, self._taken).decode("utf-8", "replace")
        self._taken = size
        lines = (line for line in text.splitlines() if line.strip())
        return next((line.strip() for line in lines if not line.startswith(self.HARMLESS)), None)


class PixelStatistics:
    """A histogram of all pixels: exact, whatever the order they are added in."""

    def __init__(self, channels: int) -> None:
        self.histogram = np.zeros((channels, 256), np.int64)
        self._waiting, self._num_waiting = [], 0

    def add(self, pixels: np.ndarray) -> None:
        """Add an image: uint8, (height, width) for gray or (height, width, 3) BGR."""
        self._waiting.append(pixels.reshape(-1, len(self.histogram)))
        self._num_waiting += pixels.size
        if self._num_waiting > 2**20:  # counted together: one call for many small images
            self._count_waiting()

    def _count_waiting(self):
        if self._waiting:
            pixels = np.concatenate(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
            for channel, counts in enumerate(self.histogram):
                counts += np.bincount(pixels[:, channel], minlength=256)
            self._waiting, self._num_waiting = [], 0

    def counts(self) -> np.ndarray:
        """Return the histogram, int64 (channels, 256), in the order of the images' channels."""
        self._count_waiting()
        return self.histogram


def mean_and_std(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel, R G B or gray, from 0 to 255.

    ``histogram``: (channels, 256), B G R or gray.
    """
    levels = range(256)
    means, stds = [], []
    for counts in histogram[::-1].tolist():  # Python's integers: exact for any number of pixels
        total = sum(counts)
        first = sum(level * number for level, number in zip(levels, counts, strict=True))
        second = sum(level * level * number for level, number in zip(levels, counts, strict=True))
        means.append(round(first / total, 6))
        stds.append(round(((second * total - first * first) ** 0.5) / total, 6))
    return means, stds
