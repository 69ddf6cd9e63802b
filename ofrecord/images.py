"""What OneFlow's decoder will make of an image's bytes, and what to store instead.

The contract: what OneFlow 0.9.0 decodes from a record (``OFRecordBytesDecoder``
and ``nn.image.decode``) equals what OpenCV reads from the file as 8-bit. OneFlow
carries an OpenCV of its own, older than ours, and reads with IMREAD_ANYDEPTH, so
the two agree on plain files only. Plain files are passed through untouched;
every other one is decoded here and encoded anew, plainly.
"""

import os
import struct
import zlib
from collections import namedtuple

import cv2
import numpy as np

# What images can be encoded as in a record: by file extension, the kind of
# bytes. Each was seen to come out of OneFlow's decoder as it went in. OpenCV
# writes more (.hdr, .pfm, .jp2 …), but OneFlow aborts on those or changes them.
FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".tiff": "TIFF", ".tif": "TIFF",
    ".bmp": "BMP", ".dib": "BMP", ".webp": "WebP", ".pnm": "PNM",
}

# Names that OpenCV can read, for folders that are searched for images.
IMAGE_EXTENSIONS = set(FORMATS) | {".pgm", ".ppm", ".pbm", ".pam", ".jp2", ".ras", ".sr", ".avif", ".gif"}

DEFAULT_QUALITY = 95  # OpenCV's own for JPEG, 0 to 100


class BadImage(Exception):
    """These bytes are no whole image that OpenCV reads. The message says why."""


class ColorImage(Exception):
    """A colour image where the dataset was taken to be gray."""


Target = namedtuple("Target", "ext channels only_gray size quality")
Target.__doc__ = """How images are to be stored.

ext: a key of FORMATS. channels: 1 gray, 3 colour. only_gray: with 1 channel,
raise ColorImage for a colour file instead of making it gray. size: (width,
height) to resize to, or None. quality: JPEG's, 0 to 100.
"""

Encoded = namedtuple("Encoded", "data pixels reason")
Encoded.__doc__ = """An image as it is stored.

data: the encoded bytes. pixels: what they decode to (for a lossy format: what
was encoded), uint8, (height, width) gray or (height, width, 3) BGR. reason:
why the file's bytes were encoded anew, None where they are passed through.
"""

# What is known of a file from its header. gray: True, False, or None for
# "ask the decoder". oddity: why OneFlow may read it differently, or None.
Header = namedtuple("Header", "kind gray oddity")


def encode(data, target, noise=None):
    """Return what to store for a file's bytes, as Encoded.

    ``noise`` is a DecoderNoise that hears what the decoder says meanwhile;
    what it said of an image that raised BadImage is the caller's to take.
    Raises ColorImage as Target says.
    """
    header = read_header(data)
    pixels = decode(data, cv2.IMREAD_GRAYSCALE if target.channels == 1 else cv2.IMREAD_COLOR)
    gray = header.gray
    if gray is None:
        gray = decode(data, cv2.IMREAD_UNCHANGED).ndim == 2
    complaint = noise.take() if noise else None
    if complaint:
        raise BadImage(complaint)
    if target.only_gray and not gray:
        raise ColorImage
    reason = _reason_to_encode(header, gray, target, pixels)
    if reason is None:
        return Encoded(data, pixels, None)
    if target.size and (pixels.shape[1], pixels.shape[0]) != target.size:
        smaller = target.size[0] * target.size[1] < pixels.shape[0] * pixels.shape[1]
        pixels = cv2.resize(pixels, target.size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    parameters = [cv2.IMWRITE_JPEG_QUALITY, target.quality] if FORMATS[target.ext] == "JPEG" else []
    try:
        done, encoded = cv2.imencode(target.ext, pixels, parameters)
    except cv2.error as error:
        raise BadImage("OpenCV cannot encode it as {}: {}".format(target.ext, error.err))
    if not done:
        raise BadImage("OpenCV cannot encode its {}x{} pixels as {}"
                       .format(pixels.shape[1], pixels.shape[0], target.ext))
    return Encoded(encoded.tobytes(), pixels, reason)


def decode(data, flag):
    """OpenCV's 8-bit reading of encoded bytes. Raises BadImage."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise BadImage("OpenCV cannot read it: {}".format(error.err or error))
    if pixels is None:
        raise BadImage("OpenCV cannot read it as an image")
    return pixels


def _reason_to_encode(header, gray, target, pixels):
    """Why a file's bytes cannot be stored as they are, or None."""
    if header.kind != FORMATS[target.ext]:
        return "{} to {}".format(header.kind, FORMATS[target.ext])
    if target.size and (pixels.shape[1], pixels.shape[0]) != target.size:
        return "resized"
    if header.oddity:
        return header.oddity
    if gray and target.channels == 3:
        return "gray to colour"
    if not gray and target.channels == 1:
        return "colour to gray"
    return None


# -- headers: what kind of file, is it whole, and is it a plain one? -------------------
#
# Decoders accept cut-off files in silence, so wholeness is looked at here.

def read_header(data):
    """Header of a file's bytes, by content. Raises BadImage for an empty, cut-off or damaged file."""
    if not data:
        raise BadImage("the file is empty")
    for magic, reader in _READERS:
        if data.startswith(magic):
            try:
                return reader(data)
            except (struct.error, IndexError):
                raise BadImage("the file is cut off in its header")
    return Header("other format", None, None)


def _png_header(data):
    """Walks all chunks, down to IEND: their lengths and CRCs must be right."""
    chunks = _png_chunks(data)
    depth, color_type = data[24], data[25]
    if depth == 16:
        oddity = "16-bit"
    elif color_type == 3:
        oddity = "palette"
    elif color_type in (4, 6) or b"tRNS" in chunks:
        oddity = "alpha"
    elif depth != 8:
        oddity = "{}-bit".format(depth)
    elif b"eXIf" in chunks:
        oddity = "EXIF"
    elif b"acTL" in chunks:
        oddity = "animation"
    else:
        oddity = None
    return Header("PNG", color_type in (0, 4), oddity)


def _png_chunks(data):
    """The types of a PNG's chunks. Raises BadImage where one is cut off or damaged."""
    position, chunks, size = 8, [], len(data)
    while position + 8 <= size:
        length, kind = _PNG_CHUNK.unpack_from(data, position)
        end = position + 8 + length
        if end + 4 > size:
            break
        if zlib.crc32(data[position + 4:end]) != _PNG_SUM.unpack_from(data, end)[0]:
            raise BadImage("the PNG is damaged (checksum of chunk {})".format(kind.decode("latin-1")))
        chunks.append(kind)
        if kind == b"IEND":
            return chunks
        position = end + 4
    raise BadImage("the PNG is cut off")


_PNG_CHUNK, _PNG_SUM = struct.Struct(">I4s"), struct.Struct(">I")  # length and type; and after the data its CRC


_JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive Huffman
_JPEG_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


def _jpeg_header(data):
    """Looks for the end marker; of damage before it, the decoder's warnings tell."""
    if data.rfind(b"\xff\xd9") < 0:
        raise BadImage("the JPEG is cut off (no end marker)")
    position, orientation = 2, 1
    while True:
        if data[position] != 0xFF:
            raise BadImage("its JPEG markers are damaged")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = position + 4
        if marker == 0xE1 and data[body:body + 6] == b"Exif\0\0":
            orientation = _orientation(data[body + 6:position + 2 + length])
        elif marker in _JPEG_FRAMES or marker in _JPEG_OTHER_FRAMES:
            precision, components = data[body], data[body + 5]
            if marker in _JPEG_OTHER_FRAMES or precision != 8:
                oddity = "rare JPEG coding"
            elif components not in (1, 3):
                oddity = "CMYK"
            elif orientation != 1:
                oddity = "EXIF rotation"
            else:
                oddity = None
            return Header("JPEG", components == 1, oddity)
        elif marker == 0xDA:
            raise BadImage("its JPEG frame header is missing")
        position += 2 + length


def _bmp_header(data):
    pixel_offset, header_size = struct.unpack_from("<I", data, 10)[0], struct.unpack_from("<I", data, 14)[0]
    if len(data) < struct.unpack_from("<I", data, 2)[0]:
        raise BadImage("the BMP is cut off")
    bits, compression = struct.unpack_from("<H", data, 28)[0], struct.unpack_from("<I", data, 30)[0]
    palette = data[14 + header_size:pixel_offset]
    gray = bits == 8 and palette == _GRAY_PALETTE
    plain = compression == 0 and header_size == 40 and (bits == 24 or gray)
    return Header("BMP", True if gray else None, None if plain else "{}-bit or packed BMP".format(bits))


_GRAY_PALETTE = bytes(value for level in range(256) for value in (level, level, level, 0))  # cv2.imwrite's


def _tiff_header(data):
    order = "<" if data[:2] == b"II" else ">"
    tags, next_directory = _tiff_tags(data, order)
    bits, samples = tags.get(258, 1), tags.get(277, 1)
    photometric, compression = tags.get(262), tags.get(259, 1)
    gray = samples == 1 and photometric in (0, 1)
    plain = (
        bits == 8 and (samples, photometric) in ((1, 1), (3, 2))  # black is zero; RGB
        and compression in (1, 5)  # none, LZW
        and tags.get(284, 1) == 1  # samples of a pixel side by side
        and tags.get(274, 1) == 1  # upright
        and tags.get(339, 1) == 1  # unsigned
        and 322 not in tags and 338 not in tags  # no tiles, no extra samples
        and not next_directory  # one page
        and order == "<"
    )
    return Header("TIFF", True if gray and bits == 8 else None, None if plain else "TIFF variant")


def _webp_header(data):
    if len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
        raise BadImage("the WebP is cut off")
    # VP8X is the extended format: alpha, animation, EXIF; VP8L may hold alpha.
    chunk = data[12:16]
    plain = chunk == b"VP8 " or (chunk == b"VP8L" and not data[24] & 0x10)
    return Header("WebP", False, None if plain else "WebP variant")


def _pnm_header(data):
    # Binary gray (P5) or RGB (P6) with 8 bits a sample; the ASCII kinds and
    # bitmaps are encoded anew, and so are headers with comments.
    fields = data[:64].split(None, 4)
    plain = data[:2] in (b"P5", b"P6") and len(fields) > 3 and fields[3] == b"255" and b"#" not in data[:64]
    gray = {b"P5": True, b"P2": True, b"P6": False, b"P3": False}.get(data[:2])
    return Header("PNM", gray, None if plain else "PNM variant")


_READERS = [(b"\x89PNG\r\n\x1a\n", _png_header), (b"\xff\xd8", _jpeg_header), (b"BM", _bmp_header),
            (b"II*\0", _tiff_header), (b"MM\0*", _tiff_header), (b"RIFF", _webp_header)]
_READERS += [(b"P%d" % kind, _pnm_header) for kind in range(1, 7)]


def _tiff_tags(data, order):
    """First value of each tag of the first directory, and the offset of the next directory."""
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, offset)
    tags = {}
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, entry)
        value_format = {1: "B", 3: "H", 4: "I"}.get(kind)
        if value_format is None:
            tags[tag] = None
            continue
        at = entry + 8
        if length * struct.calcsize(value_format) > 4:
            (at,) = struct.unpack_from(order + "I", data, at)
        values = struct.unpack_from("{}{}{}".format(order, min(length, 4), value_format), data, at)
        tags[tag] = values[0] if len(set(values)) == 1 else values
    (next_directory,) = struct.unpack_from(order + "I", data, offset + 2 + 12 * count)
    return tags, next_directory


def _orientation(exif):
    """EXIF orientation, 1 (upright) to 8, from the TIFF structure in an APP1 segment."""
    try:
        return _tiff_tags(exif, "<" if exif[:2] == b"II" else ">")[0].get(274, 1)
    except struct.error:
        return 0  # damaged: let the pixels be decided here


class DecoderNoise:
    """Hears what the C libraries print to stderr while they decode.

    libjpeg accepts damaged data and only prints a warning; that warning is the
    one sign that the pixels are wrong. Between ``with`` and its end the
    process's stderr goes to a file in memory.
    """

    # Said of images whose pixels are right all the same.
    HARMLESS = ("libpng warning: ", "[ WARN:")

    def __enter__(self):
        self._file = os.memfd_create("decoder-noise")
        self._stderr = os.dup(2)
        os.dup2(self._file, 2)
        self._taken = 0
        return self

    def __exit__(self, *_):
        os.dup2(self._stderr, 2)
        os.close(self._stderr)
        os.close(self._file)

    def take(self):
        """The first complaint since the last call that means wrong pixels, or None."""
        size = os.lseek(self._file, 0, os.SEEK_CUR)
        if size == self._taken:
            return None
        text = os.pread(self._file, size - self._taken, self._taken).decode("utf-8", "replace")
        self._taken = size
        return next((line.strip() for line in text.splitlines()
                     if line.strip() and not line.startswith(self.HARMLESS)), None)


class PixelStatistics:
    """Mean and standard deviation over all pixels, exact whatever the order they come in."""

    def __init__(self, channels):
        self.histogram = np.zeros((channels, 256), np.int64)
        self._waiting, self._count = [], 0

    def add(self, pixels):
        """pixels: uint8, (height, width) or (height, width, 3) BGR."""
        self._waiting.append(pixels.reshape(-1, len(self.histogram)))
        self._count += pixels.size
        if self._count > 2**20:  # counted in bunches: one call for many small images
            self._count_waiting()

    def _count_waiting(self):
        if self._waiting:
            pixels = np.concatenate(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
            for channel, counts in enumerate(self.histogram):
                counts += np.bincount(pixels[:, channel], minlength=256)
            self._waiting, self._count = [], 0

    def counts(self):
        """The histogram, (channels, 256) int64."""
        self._count_waiting()
        return self.histogram


def mean_and_std(histogram):
    """Per channel, R G B or gray, in 0 to 255, from a (channels, 256) histogram of B G R or gray."""
    levels = range(256)
    means, stds = [], []
    for counts in histogram[::-1].tolist():  # Python's integers: exact for any number of pixels
        total = sum(counts)
        first = sum(level * count for level, count in zip(levels, counts))
        second = sum(level * level * count for level, count in zip(levels, counts))
        means.append(round(first / total, 6))
        stds.append(round(((second * total - first * first) ** 0.5) / total, 6))
    return means, stds
