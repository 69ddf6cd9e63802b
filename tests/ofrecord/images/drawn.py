"""Image files whose pixels are known, as the tests drew them: FILES, {name: Drawn}.

PNG, TIFF, BMP and PNM are written by hand here: Pillow and OpenCV, which read them
in the converter, write few of their kinds, and would agree with themselves.
"""

import io
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 37, 45  # odd, and not square: a rotation shows
ORIENTATIONS = range(1, 9)


class Drawn(NamedTuple):
    data: bytes
    pixels: np.ndarray  # what a person sees, on white: uint8, gray (h, w) or RGB (h, w, 3)
    tolerance: int = 0  # levels that lossy compression or mixing may change


def smooth(seed, channels=3):
    """Pixels that JPEG keeps well: uint8 (HEIGHT, WIDTH, channels)."""
    few = np.random.default_rng(seed).integers(0, 256, (3, 4, channels), dtype=np.uint8)
    return cv2.resize(few, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)


RGB = smooth(0)
GRAY = smooth(1, 1)
ALPHA = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
DEEP_GRAY, DEEP_RGB = (
    np.random.default_rng(2).integers(0, 65536, shape) for shape in ((HEIGHT, WIDTH), RGB.shape)
)


def on_white(pixels, alpha):
    alpha = alpha.reshape(alpha.shape + (1,) * (pixels.ndim - 2)) / 255
    return np.rint(pixels * alpha + 255 * (1 - alpha)).astype(np.uint8)


def turned(pixels, orientation):
    """Pixels as they are seen where EXIF has this orientation."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def pillow(array, kind, mode=None, **options):
    image, file = Image.fromarray(array), io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def packed(samples, depth, order=">"):
    """Rows of samples, (height, …), as bytes: the samples of a row side by side, of any depth."""
    if depth >= 16:
        return samples.astype(f"{order}u{depth // 8}").reshape(len(samples), -1).view(np.uint8)
    bits = samples[..., None] >> np.arange(depth)[::-1] & 1
    return np.packbits(bits.reshape(len(samples), -1).astype(bool), axis=1)


# -- PNG --------------------------------------------------------------------------------

PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
PASSES += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples, color_type, depth=8, before=b"", interlaced=False):
    height, width = samples.shape[:2]
    passes = (samples[y::down, x::right] for y, x, down, right in PASSES)
    rows = b"".join(
        b"\0" + row.tobytes()
        for part in (passes if interlaced else [samples])
        if part.size
        for row in packed(part, depth)
    )
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + ends


def transparent_value(*values):
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


# -- TIFF -------------------------------------------------------------------------------


def tiff(samples, photometric=1, depth=8, order="<", big=False, **options):
    """A TIFF of (height, width) or (height, width, n) samples.

    Options: ``planar``, ``tile`` (the side), ``rows`` (of a strip), ``deflate``, and ``tags``,
    {number: (type, values)}, with 3 for uint16.
    """
    samples = samples.reshape(*samples.shape[:2], -1)
    planar, side = options.get("planar", False), options.get("tile")
    planes = [samples[:, :, n : n + 1] for n in range(samples.shape[2])] if planar else [samples]
    blocks = []
    for plane in planes:
        if side:
            down, right = (-size % side for size in plane.shape[:2])
            wide = np.pad(plane, ((0, down), (0, right), (0, 0)))
            starts = [(y, x) for y in range(0, len(wide), side) for x in range(0, wide.shape[1], side)]
            blocks += (wide[y : y + side, x : x + side] for y, x in starts)
        else:
            rows = options.get("rows", 10)
            blocks += (plane[y : y + rows] for y in range(0, len(plane), rows))
    blocks = [packed(block, depth, order).tobytes() for block in blocks]
    if options.get("deflate"):
        blocks = [zlib.compress(block) for block in blocks]
    starts = np.cumsum([16] + [len(block) for block in blocks])
    height, width, count = samples.shape
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [depth] * count)}
    tags |= {259: (3, [8 if options.get("deflate") else 1]), 262: (3, [photometric])}
    tags |= {277: (3, [count]), 284: (3, [2 if planar else 1])}
    sizes = (4, [len(block) for block in blocks])
    if side:
        tags |= {322: (4, [side]), 323: (4, [side]), 324: (4, list(starts[:-1])), 325: sizes}
    else:
        tags |= {273: (4, list(starts[:-1])), 278: (4, [options.get("rows", 10)]), 279: sizes}
    tags |= options.get("tags", {})
    return _tiff_file(blocks, tags, order, big)


def _tiff_file(blocks, tags, order, big):
    word, count, inline = ("Q", "Q", 8) if big else ("I", "H", 4)
    body = b"".join(blocks)
    body += bytes(-len(body) % 8)
    start = 16 + len(body)
    size = struct.calcsize(f"={count}") + len(tags) * (4 + 2 * inline) + inline
    entries, extra = b"", b""
    for number, (kind, values) in sorted(tags.items()):
        value = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
        if len(value) > inline:
            extra, value = extra + value, struct.pack(order + word, start + size + len(extra))
        entries += struct.pack(f"{order}HH{word}", number, kind, len(values))
        entries += value.ljust(inline, b"\0")
    magic = b"II" if order == "<" else b"MM"
    magic += struct.pack(f"{order}HHHQ", 43, 8, 0, start) if big else struct.pack(f"{order}HI", 42, start)
    directory = struct.pack(order + count, len(tags)) + entries + bytes(inline)
    return magic.ljust(16, b"\0") + body + directory + extra


# -- BMP and PNM ------------------------------------------------------------------------


def bmp(samples, depth, palette=b"", masks=(), rle=None, size_error=0):
    """A BMP of samples, the rows of which are stored from below: indices, or whole pixels."""
    height, width = samples.shape[:2]
    if rle is None:
        rows = packed(samples, 8 if samples.ndim == 3 else depth, "<")[::-1]
        body = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()
    else:
        body = rle
    compression = 3 if masks else {None: 0}.get(rle, 1 if depth == 8 else 2)
    extra = b"".join(struct.pack("<I", mask) for mask in masks)
    info = 40 + len(extra) if len(masks) == 4 else 40
    start = 14 + 40 + len(extra) + len(palette)
    header = struct.pack("<IiiHHIIiiII", info, width, height, 1, depth, compression, len(body), 0, 0,
                         len(palette) // 4, 0)
    file = struct.pack("<2sIHHI", b"BM", start + len(body) + size_error, 0, 0, start)
    return file + header + extra + palette + body


def rle8(samples):
    """Rows from below, each as runs of one pixel and an end of line; then the end."""
    rows = (b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in samples[::-1])
    return b"".join(rows)[:-2] + b"\0\1"


def pnm(magic, samples, maxval=None, comment=b""):
    height, width = samples.shape[:2]
    header = b"%s\n%s%d %d\n" % (magic, comment, width, height)
    header += b"%d\n" % maxval if maxval else b""
    if magic in (b"P1", b"P2", b"P3"):
        rows = samples.reshape(height, -1)
        return header + b"".join(b" ".join(b"%d" % value for value in row) + b"\n" for row in rows)
    depth = 1 if magic == b"P4" else 8 if maxval < 256 else 16
    return header + packed(samples, depth).tobytes()
