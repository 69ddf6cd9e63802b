"""Image files whose pixels are known, as the tests drew them: FILES, {name: Drawn}.

PNG, TIFF, BMP and PNM are written by hand: Pillow and OpenCV would agree with themselves.
"""

import io
import struct
import zlib
from contextlib import suppress
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

with suppress(ImportError):
    import pillow_heif  # optional

    pillow_heif.register_heif_opener()

HEIGHT, WIDTH = 37, 45  # odd, and not square: a rotation shows
BYTE = np.uint8


class Drawn(NamedTuple):
    data: bytes
    pixels: np.ndarray  # what a person sees, on white: uint8, gray (h, w) or RGB (h, w, 3)
    tolerance: int = 0  # levels that lossy compression or mixing may change


def smooth(seed, channels):
    """Pixels that JPEG keeps well: uint8 (HEIGHT, WIDTH, channels)."""
    few = np.random.default_rng(seed).integers(0, 256, (3, 4, channels), dtype=BYTE)
    return cv2.resize(few, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)


def levels(depth, *more):
    return np.random.default_rng(depth).integers(0, 2**depth, (HEIGHT, WIDTH, *more))


RGB, GRAY = smooth(0, 3), smooth(1, 1)
ALPHA = np.tile(np.linspace(0, 255, WIDTH).astype(BYTE), (HEIGHT, 1))
RGBA, LA = np.dstack([RGB, ALPHA]), np.dstack([GRAY, ALPHA])
DEEP_GRAY, DEEP_RGB = levels(16), levels(16, 3)
COLORS = np.random.default_rng(4).integers(0, 256, (256, 3), dtype=BYTE)
NOISE = np.repeat(np.repeat(DEEP_RGB[:30, :40] >> 11 << 3, 4, 0), 4, 1).astype(BYTE)
XMP = b'<x tiff:Orientation="6"/>'  # programs turn no image by that


def on_white(pixels, alpha=ALPHA):
    alpha = alpha.reshape(alpha.shape + (1,) * (pixels.ndim - alpha.ndim)) / 255
    return np.rint(pixels * alpha + 255 * (1 - alpha))


def turned(pixels, orientation):
    """Pixels as they are seen where EXIF has this orientation, 1 to 8."""
    pixels = pixels.swapaxes(0, 1) if 5 <= orientation <= 8 else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def pillow(array, kind, mode=None, **options):
    image, file = Image.fromarray(array), io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def several(kind, pixels=RGB, **options):
    return pillow(pixels, kind, save_all=True, append_images=[Image.fromarray(GRAY)], **options)


def exif(orientation, order=">"):
    """EXIF data; before its orientation stand what looks like one, and a text of 274 at 274."""
    other, entry = (struct.pack(order + "HHIHH", 274, 3, 1, n, 0) for n in (1, orientation))
    table = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 20) + other
    table += struct.pack(order + "HHHII", 2, 271, 2, 274, 274) + entry + bytes(4)
    return b"Exif\0\0" + table.ljust(548, b"x")


def packed(samples, depth, order=">"):
    """Rows of samples, (height, …), as bytes: the samples of a row side by side, of any depth."""
    if depth >= 16:
        return samples.astype(f"{order}u{depth // 8}").reshape(len(samples), -1).view(BYTE)
    bits = samples[..., None] >> np.arange(depth)[::-1] & 1
    return np.packbits(bits.reshape(len(samples), -1).astype(bool), axis=1)


PASSES = "0088 0488 4084 0244 2042 0122 1021".split()  # first row and column, steps down and right


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples, color_type, depth=8, before=b"", interlaced=False):
    steps = (map(int, text) for text in (PASSES if interlaced else ["0011"]))
    parts = [samples[y::down, x::right] for y, x, down, right in steps]
    rows = (row for part in parts if part.size for row in packed(part, depth))
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    size = samples.shape[1], samples.shape[0]
    header = struct.pack(">IIBBBBB", *size, depth, color_type, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def trns(*values):
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def draw_png():
    for depth in (1, 2, 4, 8):
        values, colors, alpha = levels(depth), COLORS[: 2**depth], np.resize(ALPHA, 2**depth)
        seen, palette = values * (255 // (2**depth - 1)), chunk(b"PLTE", colors.tobytes())
        veiled, veil = palette + chunk(b"tRNS", alpha.tobytes()), on_white(colors, alpha)
        hidden, key = np.where(values == 1, 255, seen), trns(1)
        yield f"gray{depth}.png", png(values, 0, depth), seen
        yield f"gray{depth}-interlaced.png", png(values, 0, depth, interlaced=True), seen
        yield f"gray{depth}-key.png", png(values, 0, depth, key), hidden
        yield f"palette{depth}.png", png(values, 3, depth, palette), colors[values]
        yield f"palette{depth}-alpha.png", png(values, 3, depth, veiled), veil[values], 1
    for name, values, depth in ("gray16", DEEP_GRAY, 16), ("rgb16", DEEP_RGB, 16), ("rgb", RGB, 8):
        kind, seen = 2 * (values.ndim == 3), values >> depth - 8
        veiled = np.dstack([values, ALPHA.astype(int) * (2**depth // 255)])
        yield f"{name}.png", png(values, kind, depth), seen
        yield f"{name}-interlaced.png", png(values, kind, depth, interlaced=True), seen
        yield f"{name}-alpha.png", png(veiled, kind + 4, depth), on_white(seen), 1
    hidden = np.where((RGB == RGB[5, 5]).all(2)[..., None], 255, RGB)
    yield "rgb-key.png", png(RGB, 2, 8, trns(*RGB[5, 5])), hidden
    yield "la.png", png(LA, 4), on_white(GRAY), 1
    yield "animated.png", several("PNG"), RGB
    yield "behind-the-end.png", png(RGB, 2) + png(GRAY, 0), RGB
    texts = {"tEXt": b"Comment\0eXIf tRNS", "gAMA": b"\0\1\x86\xa0", "eXIf": b"no EXIF data"}
    texts |= {"iCCP": b"x\0\0no profile", "iTXt": b"XML:com.adobe.xmp" + bytes(5) + XMP}
    for kind, text in texts.items():
        yield f"{kind}.png", png(RGB, 2, 8, chunk(kind.encode(), text)), RGB
        yield f"{kind}-alpha.png", png(RGBA, 6, 8, chunk(kind.encode(), text)), on_white(RGB), 1


def tiff(samples, photometric=1, depth=8, order="<", **options):
    """A TIFF. Options: ``planar``, ``deflate``, ``tile`` (its side), ``tags`` ({number: values})."""
    samples = samples.reshape(*samples.shape[:2], -1)
    planar, side, (height, width, count) = options.get("planar"), options.get("tile"), samples.shape
    down, right = (side, side) if side else (10, width)  # of a block: a tile, or a strip of rows
    if side:
        samples = np.pad(samples, ((0, -height % side), (0, -width % side), (0, 0)))
    planes, blocks = np.split(samples, count, 2) if planar else [samples], []
    for plane, y, x in product(planes, range(0, height, down), range(0, width, right)):
        block = packed(plane[y : y + down, x : x + right], depth, order).tobytes()
        blocks.append(zlib.compress(block) if options.get("deflate") else block)
    sizes = list(map(len, blocks))
    starts = [16 + sum(sizes[:number]) for number in range(len(sizes))]
    tags = {256: [width], 257: [height], 258: [depth] * count, 262: [photometric], 277: [count]}
    tags |= {259: [8 if options.get("deflate") else 1], 284: [2 if planar else 1], 278: [down]}
    tags |= {322: [side], 323: [side]} if side else {}
    tags |= {324: starts, 325: sizes} if side else {273: starts, 279: sizes}
    tags |= options.get("tags", {})
    body = b"".join(blocks) + bytes(sum(sizes) % 2)
    start, entries, extra = 16 + len(body), b"", b""
    behind = start + 2 + 12 * len(tags) + 4
    for number, values in sorted(tags.items()):
        is_long = max(values) >= 2**16
        value = struct.pack(f"{order}{len(values)}{'HI'[is_long]}", *values)
        if len(value) > 4:
            extra, value = extra + value, struct.pack(order + "I", behind + len(extra))
        entries += struct.pack(order + "HHI", number, 3 + is_long, len(values))
        entries += value.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(tags)) + entries + bytes(4)
    return (magic + struct.pack(order + "I", start)).ljust(16, b"\0") + body + directory + extra


def draw_tiff():
    for depth in (1, 2, 4, 8, 12, 16, 32):
        values, colors = levels(min(depth, 16)), COLORS[: 2**depth]
        seen = values >> min(depth, 16) - 8 if depth > 8 else values * (255 // (2**depth - 1))
        yield f"gray{depth}.tiff", tiff(values, 1, depth), seen
        if depth not in (12, 32):
            yield f"white-is-0-{depth}.tiff", tiff(values, 0, depth), 255 - seen
        for unit in (257, 1) if depth <= 8 else ():  # some write a palette of 8 bits
            tags = {320: [int(value) * unit for value in colors.T.ravel()]}
            yield f"palette{depth}-{unit}.tiff", tiff(values, 3, depth, tags=tags), colors[values]
    ways = [{}, {"planar": True}, {"tile": 16}, {"tile": 16, "planar": True}, {"order": ">"}]
    ways += [{"deflate": True}, {"deflate": True, "planar": True, "tile": 16}]
    inks = np.dstack([255 - RGB, 0 * GRAY])
    for number, way in enumerate(ways):
        yield f"rgb-{number}.tiff", tiff(RGB, 2, **way), RGB
        yield f"rgb16-{number}.tiff", tiff(DEEP_RGB, 2, 16, **way), DEEP_RGB >> 8
        yield f"gray16-{number}.tiff", tiff(DEEP_GRAY, 1, 16, **way), DEEP_GRAY >> 8
        yield f"cmyk-{number}.tiff", tiff(inks, 5, **way), RGB, 1
        yield f"alpha-{number}.tiff", tiff(RGBA, 2, tags={338: [2]}, **way), on_white(RGB), 1
    for name in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma", "jpeg"):
        yield f"{name}.tiff", pillow(RGB, "TIFF", compression=name), RGB, 40 * (name == "jpeg")
    differences = pillow(RGB, "TIFF", compression="tiff_lzw", tiffinfo={317: 2})  # of neighbours
    yield "predictor.tiff", differences, RGB
    for name in ("group3", "group4", "tiff_ccitt"):
        yield f"{name}.tiff", pillow(levels(1) > 0, "TIFF", compression=name), levels(1) * 255
    yield "la.tiff", tiff(LA, tags={338: [2]}), on_white(GRAY), 1
    yield "pages.tiff", several("TIFF"), RGB
    yield "big.tiff", pillow(RGB, "TIFF", big_tiff=True), RGB
    yield "xmp.tiff", pillow(RGB, "TIFF", tiffinfo={700: XMP}), RGB


def bmp(samples, depth, palette=b"", masks=()):
    """A BMP of samples, the rows of which are stored from below: indices, or B G R."""
    rows = packed(samples, 8 if samples.ndim == 3 else depth, "<")[::-1]
    body = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()
    extra = struct.pack(f"<{len(masks)}I", *masks)
    size, start = len(extra) if len(masks) == 4 else 0, 54 + len(extra) + len(palette)
    info = struct.pack("<IiiHH", 40 + size, samples.shape[1], samples.shape[0], 1, depth)
    info += struct.pack("<II8xII", 3 if masks else 0, len(body), len(palette) // 4, 0)
    file = struct.pack("<2sI4xI", b"BM", start + len(body), start)
    return file + info + extra + palette + body


def draw_bmp_and_pnm():
    for depth in (1, 4, 8):
        values, grays = levels(depth), np.arange(2**depth)[::-1] * (255 // (2**depth - 1))
        for name, colors in (("", COLORS[: 2**depth]), ("-gray", np.stack([grays] * 3, 1))):
            palette = np.pad(colors[:, ::-1], ((0, 0), (0, 1))).astype(BYTE).tobytes()
            seen = (grays if name else colors)[values]
            yield f"palette{depth}{name}.bmp", bmp(values, depth, palette), seen
    bgr, masks = RGB[..., ::-1], (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    unused = np.dstack([bgr, ALPHA])
    yield "alpha.bmp", bmp(unused, 32, masks=masks), on_white(RGB), 1
    yield "alpha-is-0.bmp", bmp(np.dstack([bgr, ALPHA * 0]), 32, masks=masks), RGB
    yield "unused.bmp", bmp(unused, 32), RGB  # without masks the fourth byte means nothing
    yield "rgb.bmp", bmp(bgr, 24), RGB
    for maxval, depth in (15, 8), (255, 8), (4095, 16), (65535, 16):
        values = np.random.default_rng(maxval).integers(0, maxval + 1, RGB.shape)
        seen, header = values * (65535 // maxval) // 256, b"\n# a comment\n45 37\n%d\n" % maxval
        gray, colour = (packed(each, depth).tobytes() for each in (values[..., 0], values))
        text = b" ".join(b"%d" % value for value in values[..., 0].ravel())
        yield f"P2-{maxval}.pgm", b"P2" + header + text + b"\n", seen[..., 0]
        yield f"P5-{maxval}.pgm", b"P5" + header + gray, seen[..., 0]
        yield f"P6-{maxval}.ppm", b"P6" + header + colour, np.rint(values * 255 / maxval)
    yield "P4.pbm", b"P4\n45 37\n" + packed(levels(1), 1).tobytes(), 255 - levels(1) * 255


BEST_AVIF = {"quality": 100, "subsampling": "4:4:4"}
END, SCAN = b"\xff\xd9", b"\xff\xda\0\x0c\3\1"  # markers of a JPEG, that of a scan with its start


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(array=RGB, *segments, mode=None, **options):
    """A JPEG with these segments before all others."""
    data = pillow(array, "JPEG", mode, **{"quality": 95, **options})
    return data[:2] + b"".join(segments) + data[2:]


def draw_others():
    indexed, file = Image.fromarray(RGB).quantize(64), io.BytesIO()
    indexed.save(file, "GIF", transparency=7)
    colors, hidden = np.asarray(indexed.convert("RGB")), np.asarray(indexed)[..., None] == 7
    plain = pillow(colors, "GIF")
    screen = plain[:6] + struct.pack("<HH", WIDTH + 5, HEIGHT + 9) + plain[10:]
    yield "transparent.gif", file.getvalue(), np.where(hidden, 255, colors)
    yield "small.gif", screen, np.pad(colors, ((0, 9), (0, 5), (0, 0)), constant_values=255)
    yield "animated.gif", several("GIF", colors), colors
    yield "lossless.webp", pillow(RGB, "WEBP", lossless=True), RGB
    yield "xmp.webp", pillow(RGB, "WEBP", lossless=True, xmp=XMP), RGB
    yield "no-exif.webp", pillow(RGB, "WEBP", lossless=True, exif=b"none"), RGB
    yield "alpha.webp", pillow(RGBA, "WEBP", lossless=True, exact=True), on_white(RGB), 1
    yield "animated.webp", several("WEBP", lossless=True), RGB
    for ending, raw in (("jp2", False), ("j2k", True)):
        yield f"rgb.{ending}", pillow(RGB, "JPEG2000", no_jp2=raw), RGB
        yield f"gray.{ending}", pillow(GRAY, "JPEG2000", no_jp2=raw), GRAY
        yield f"alpha.{ending}", pillow(RGBA, "JPEG2000", no_jp2=raw), on_white(RGB), 1
    yield "rgb.avif", pillow(RGB, "AVIF", **BEST_AVIF), RGB, 3
    yield "alpha.avif", pillow(RGBA, "AVIF", **BEST_AVIF), on_white(RGB), 4
    ways = {"plain": {}, "progressive": {"progressive": True}, "422": {"subsampling": 1}}
    ways |= {"rgb": {"keep_rgb": True}, "optimized": {"optimize": True}, "cmyk": {"mode": "CMYK"}}
    for name, options in ways.items():
        yield f"{name}.jpg", jpeg(**options), RGB, 40
    yield "gray.jpg", jpeg(GRAY), GRAY, 40
    restarts = cv2.imencode(".jpg", RGB[..., ::-1], (cv2.IMWRITE_JPEG_RST_INTERVAL, 2))[1]
    yield "restarts.jpg", restarts.tobytes(), RGB, 40
    yield "mpo.jpg", several("MPO", quality=95), RGB, 40
    yield "motion.jpg", jpeg() + b"\0\0\0\x18ftypmp42" + bytes(99), RGB, 40
    yield "two.jpg", jpeg() + jpeg(GRAY), RGB, 40


def draw_turned():
    opaque = np.dstack([RGB, np.full_like(ALPHA, 255)])
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
    for turn in range(10):  # 0 and 9 mean nothing
        tag, data, part = {274: [turn]}, exif(turn), chunk(b"eXIf", exif(turn)[6:])
        files = {
            "rgb.png": (png(RGB, 2, 8, part), RGB),
            "alpha.png": (png(opaque, 6, 8, part), RGB),
            "rgb.tiff": (tiff(RGB, 2, tags=tag), RGB),
            "white-is-0.tiff": (tiff(DEEP_GRAY, 0, 16, tags=tag), 255 - (DEEP_GRAY >> 8)),
            "x.webp": (pillow(RGB, "WEBP", lossless=True, exif=data), RGB),
            "x.avif": (pillow(RGB, "AVIF", exif=data, **BEST_AVIF), RGB),
            "x.jpg": (jpeg(RGB, segment(0xE1, data)), RGB),
            "little.jpg": (jpeg(RGB, segment(0xE1, exif(turn, "<"))), RGB),
            "behind-xmp.jpg": (jpeg(RGB, xmp, segment(0xE1, data)), RGB),
            "late.jpg": (jpeg().replace(SCAN, segment(0xE1, data) + SCAN), RGB),
            "first.jpg": (jpeg(RGB, segment(0xE1, data), segment(0xE1, exif(5))), RGB),
        }
        if "HEIF" in Image.SAVE:
            files["x.heic"] = (pillow(RGB, "HEIF", quality=100, chroma=444, exif=data), RGB)
        for name, (file, pixels) in files.items():
            yield f"turn{turn}-{name}", file, turned(pixels, turn), 40 if "j" in name else 4


FILES = {
    name: Drawn(data, pixels.astype(BYTE), *tolerance)
    for draw in (draw_png, draw_tiff, draw_bmp_and_pnm, draw_others, draw_turned)
    for name, data, pixels, *tolerance in draw()
}
