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


NOISE = np.repeat(np.repeat(DEEP_RGB[:30, :40] >> 11 << 3, 4, 0), 4, 1).astype(np.uint8)
END = b"\xff\xd9"  # of a JPEG


def on_white(pixels, alpha):
    alpha = alpha.reshape(alpha.shape + (1,) * (pixels.ndim - alpha.ndim)) / 255
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
            starts = [
                (y, x) for y in range(0, len(wide), side) for x in range(0, wide.shape[1], side)
            ]
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
    magic += (
        struct.pack(f"{order}HHHQ", 43, 8, 0, start)
        if big
        else struct.pack(f"{order}HI", 42, start)
    )
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
    header = struct.pack(
        "<IiiHHIIiiII",
        info,
        width,
        height,
        1,
        depth,
        compression,
        len(body),
        0,
        0,
        len(palette) // 4,
        0,
    )
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


# -- all of them ------------------------------------------------------------------------


def levels(depth, seed=3):
    return np.random.default_rng(seed).integers(0, 2**depth, (HEIGHT, WIDTH))


def several(kind, pixels=RGB, **options):
    return pillow(pixels, kind, save_all=True, append_images=[Image.fromarray(GRAY)], **options)


def draw_png():
    rgba, la = np.dstack([RGB, ALPHA]), np.dstack([GRAY, ALPHA])
    for depth in (1, 2, 4, 8):
        values, scale = levels(depth), 255 // (2**depth - 1)
        seen, colors = (values * scale).astype(np.uint8), COLORS[: 2**depth]
        hidden = np.where(values == 1, 255, seen).astype(np.uint8)
        palette, alpha = chunk(b"PLTE", colors.tobytes()), ALPHA[0, : 2**depth]
        veil = on_white(colors, np.resize(alpha, 2**depth))[values]
        yield f"gray{depth}.png", png(values, 0, depth), seen
        yield f"gray{depth}-interlaced.png", png(values, 0, depth, interlaced=True), seen
        yield f"gray{depth}-key.png", png(values, 0, depth, transparent_value(1)), hidden
        yield f"palette{depth}.png", png(values, 3, depth, palette), colors[values]
        alpha = chunk(b"tRNS", np.resize(alpha, 2**depth).tobytes())
        yield f"palette{depth}-alpha.png", png(values, 3, depth, palette + alpha), veil, 1
    for name, deep, color_type in (("gray16", DEEP_GRAY, 0), ("rgb16", DEEP_RGB, 2)):
        key = deep[5, 5]
        is_key = (deep == key).reshape(*deep.shape[:2], -1).all(2)
        seen = (deep >> 8).astype(np.uint8)
        hidden, wide = seen.copy(), np.dstack([deep, ALPHA * 257])
        hidden[is_key] = 255
        yield f"{name}.png", png(deep, color_type, 16), seen
        key_chunk = transparent_value(*np.ravel(key))
        yield f"{name}-key.png", png(deep, color_type, 16, key_chunk), hidden
        yield f"{name}-alpha.png", png(wide, color_type + 4, 16), on_white(seen, ALPHA), 1
    key = (RGB == RGB[5, 5]).all(2, keepdims=True)
    yield "rgb.png", png(RGB, 2), RGB
    yield "rgb-interlaced.png", png(RGB, 2, interlaced=True), RGB
    yield "rgb-key.png", png(RGB, 2, 8, transparent_value(*RGB[5, 5])), np.where(key, 255, RGB)
    yield "rgba.png", png(rgba, 6), on_white(RGB, ALPHA), 1
    yield "rgba-interlaced.png", png(rgba, 6, interlaced=True), on_white(RGB, ALPHA), 1
    yield "la.png", png(la, 4), on_white(GRAY, ALPHA), 1
    yield "animated.png", several("PNG"), RGB
    text = chunk(b"tEXt", b"Comment\0eXIf tRNS") + chunk(b"gAMA", struct.pack(">I", 100000))
    yield "text-and-gamma.png", png(RGB, 2, 8, text), RGB
    yield "bad-profile.png", png(RGB, 2, 8, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"none"))), RGB
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'  # nobody turns a PNG by that
    yield "xmp.png", png(rgba, 6, 8, chunk(b"iTXt", xmp)), on_white(RGB, ALPHA), 1


def draw_tiff():
    for depth in (1, 2, 4, 8, 12, 16, 32):
        values = levels(min(depth, 16))
        scaled = values * 255 // (2**depth - 1) if depth <= 8 else values >> min(depth, 16) - 8
        yield f"gray{depth}.tiff", tiff(values, 1, depth), scaled.astype(np.uint8)
        if depth not in (12, 32):
            yield f"white-is-0-{depth}.tiff", tiff(values, 0, depth), 255 - scaled.astype(np.uint8)
        if depth <= 8:
            colors = COLORS[: 2**depth]
            for unit in (257, 1):  # some write a palette of 8 bits
                tags = {320: (3, [int(value) * unit for value in colors.T.ravel()])}
                yield (
                    f"palette{depth}-{unit}.tiff",
                    tiff(values, 3, depth, tags=tags),
                    colors[values],
                )
    ways = [{}, {"planar": True}, {"tile": 16}, {"tile": 16, "planar": True}, {"order": ">"}]
    ways += [{"deflate": True}, {"deflate": True, "planar": True, "tile": 16}, {"big": True}]
    seen = (DEEP_RGB >> 8).astype(np.uint8)
    for number, way in enumerate(ways):
        yield f"rgb-{number}.tiff", tiff(RGB, 2, **way), RGB
        yield f"rgb16-{number}.tiff", tiff(DEEP_RGB, 2, 16, **way), seen
        yield f"gray16-{number}.tiff", tiff(DEEP_GRAY, 1, 16, **way), seen_gray
        inks = np.dstack([255 - RGB, np.zeros_like(GRAY)])
        yield f"cmyk-{number}.tiff", tiff(inks, 5, **way), RGB, 1
        for kind, name in ((0, "unused"), (1, "premultiplied"), (2, "alpha")):
            front = np.rint(RGB * (ALPHA[..., None] / 255)) if kind == 1 else RGB
            rgba = np.dstack([front.astype(np.uint8), ALPHA])
            data = tiff(rgba, 2, tags={338: (3, [kind])}, **way)
            yield (
                f"{name}-{number}.tiff",
                data,
                on_white(RGB, ALPHA) if kind else RGB,
                2 * bool(kind),
            )
    ycc = cv2.cvtColor(RGB, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    yield "ycbcr.tiff", tiff(ycc, 6, tags={530: (3, [1, 1])}), RGB, 3
    lightness = np.dstack([GRAY, np.zeros_like(RGB[..., :2])])
    gray = [round(255 * f) for f in map(_gray_of_lightness, np.arange(256) / 255 * 100)]
    yield "lab.tiff", tiff(lightness, 8), np.dstack([np.array(gray, np.uint8)[GRAY]] * 3), 2
    for name in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma", "jpeg"):
        yield f"{name}.tiff", pillow(RGB, "TIFF", compression=name), RGB, 40 * (name == "jpeg")
    one = levels(1).astype(bool)
    for name in ("group3", "group4", "tiff_ccitt"):
        yield f"{name}.tiff", pillow(one, "TIFF", compression=name), one * np.uint8(255)
    yield "pages.tiff", several("TIFF"), RGB


def _gray_of_lightness(lightness):
    """The sRGB value, 0 to 1, of a gray of CIE lightness 0 to 100."""
    part = (lightness + 16) / 116
    linear = part**3 if lightness > 8 else lightness / 903.3
    return 1.055 * linear ** (1 / 2.4) - 0.055 if linear > 0.0031308 else 12.92 * linear


def draw_bmp_and_pnm():
    for depth in (1, 4, 8):
        values, grays = levels(depth), np.arange(2**depth) * 255 // (2**depth - 1)
        for name, colors in (("", COLORS[: 2**depth]), ("-gray", np.stack([grays[::-1]] * 3, 1))):
            palette = np.pad(colors[:, ::-1], ((0, 0), (0, 1))).astype(np.uint8).tobytes()
            seen = colors[values].astype(np.uint8)
            seen = seen[..., 0] if name else seen
            yield f"palette{depth}{name}.bmp", bmp(values, depth, palette), seen
            if depth == 8:
                yield f"rle{name}.bmp", bmp(values, depth, palette, rle=rle8(values)), seen
    bgr, masks = RGB[..., ::-1], (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    unused = np.dstack([bgr, ALPHA])
    yield "alpha.bmp", bmp(unused, 32, masks=masks), on_white(RGB, ALPHA), 1
    yield "alpha-is-0.bmp", bmp(np.dstack([bgr, ALPHA * 0]), 32, masks=masks), RGB
    yield "no-mask-of-alpha.bmp", bmp(unused, 32, masks=masks[:3]), RGB
    yield "unused.bmp", bmp(unused, 32), RGB  # without masks the fourth byte means nothing
    red, green, blue = np.moveaxis(RGB.astype(int) >> 3, 2, 0)
    yield "555.bmp", bmp(red << 10 | green << 5 | blue, 16), RGB, 8
    masks = (0xF800, 0x7E0, 0x1F)
    yield "565.bmp", bmp(red << 11 | green << 6 | blue, 16, masks=masks), RGB, 8
    for error in (0, -2, 2, 100):
        yield f"size{error:+}.bmp", bmp(bgr, 24, size_error=error), RGB
    for maxval in (1, 15, 100, 255, 4095, 65535):
        values = np.random.default_rng(maxval).integers(0, maxval + 1, RGB.shape)
        gray, seen = values[..., 0], np.rint(values * 255 / maxval).astype(np.uint8)
        seen_gray = (
            np.rint(gray * 65535 / maxval).astype(int) >> 8 if maxval > 255 else seen[..., 0]
        )
        for magic in (b"P2", b"P5"):
            data = pnm(magic, gray, maxval, b"# a comment\n")
            yield f"{magic.decode()}-{maxval}.pgm", data, seen_gray.astype(np.uint8)
        for magic in (b"P3", b"P6"):
            seen = (values >> 8).astype(np.uint8) if (magic, maxval) == (b"P6", 65535) else seen
            yield (
                f"{magic.decode()}-{maxval}.ppm",
                pnm(magic, values, maxval),
                seen,
                maxval == 65535,
            )
    for magic in (b"P1", b"P4"):
        yield (
            f"{magic.decode()}.pbm",
            pnm(magic, levels(1)),
            ((1 - levels(1)) * 255).astype(np.uint8),
        )


def draw_others():
    rgba, indexed = np.dstack([RGB, ALPHA]), Image.fromarray(RGB).quantize(64)
    colors, file = np.asarray(indexed.convert("RGB")), io.BytesIO()
    hidden = np.where(np.asarray(indexed)[..., None] == 7, 255, colors).astype(np.uint8)
    yield "lossless.webp", pillow(RGB, "WEBP", lossless=True), RGB
    yield "lossy.webp", pillow(RGB, "WEBP", quality=95), RGB, 40
    yield "alpha.webp", pillow(rgba, "WEBP", lossless=True, exact=True), on_white(RGB, ALPHA), 1
    yield "animated.webp", several("WEBP", lossless=True), RGB
    indexed.save(file, "GIF", transparency=7)
    yield "transparent.gif", file.getvalue(), hidden
    yield "plain.gif", pillow(colors, "GIF"), colors
    yield "animated.gif", several("GIF", colors), colors
    for options, ending in ({}, "jp2"), ({"no_jp2": True}, "j2k"):
        yield f"rgb.{ending}", pillow(RGB, "JPEG2000", **options), RGB
        yield f"gray.{ending}", pillow(GRAY, "JPEG2000", **options), GRAY
        yield f"alpha.{ending}", pillow(rgba, "JPEG2000", **options), on_white(RGB, ALPHA), 1
        yield (
            f"gray16.{ending}",
            pillow(DEEP_GRAY.astype(np.uint16), "JPEG2000", **options),
            seen_gray,
        )
    deep = cv2.imencode(".jp2", DEEP_RGB[..., ::-1].astype(np.uint16), JP2_LOSSLESS)[1].tobytes()
    yield "rgb16.jp2", deep, (DEEP_RGB >> 8).astype(np.uint8), 1
    yield "rgb.avif", pillow(RGB, "AVIF", quality=100, subsampling="4:4:4"), RGB, 3
    yield (
        "alpha.avif",
        pillow(rgba, "AVIF", quality=100, subsampling="4:4:4"),
        on_white(RGB, ALPHA),
        4,
    )
    for name, options in {
        "plain": {},
        "progressive": {"progressive": True},
        "422": {"subsampling": 1},
        "rgb": {"keep_rgb": True},
        "optimized": {"optimize": True},
    }.items():
        yield f"{name}.jpg", pillow(RGB, "JPEG", quality=95, **options), RGB, 40
    yield "gray.jpg", pillow(GRAY, "JPEG", quality=95), GRAY, 40
    yield "cmyk.jpg", pillow(RGB, "JPEG", "CMYK", quality=95), RGB, 40
    yield "restarts.jpg", cv2.imencode(".jpg", RGB[..., ::-1], RESTARTS)[1].tobytes(), RGB, 40
    yield "mpo.jpg", several("MPO", quality=95), RGB, 40
    yield "motion.jpg", pillow(RGB, "JPEG", quality=95) + b"\0\0\0\x18ftypmp42" + bytes(99), RGB, 40


def draw_turned():
    gray = (DEEP_GRAY >> 8).astype(np.uint8)
    for turn in ORIENTATIONS:
        tag, data = {"tags": {274: (3, [turn])}}, exif(turn)
        part, alpha = chunk(b"eXIf", data[6:]), np.full_like(ALPHA, 255)
        files = {
            "rgb.png": (png(RGB, 2, 8, part), RGB),
            "gray16.png": (png(DEEP_GRAY, 0, 16, part), gray),
            "alpha.png": (png(np.dstack([RGB, alpha]), 6, 8, part), RGB),
            "key.png": (png(DEEP_GRAY, 0, 16, part + transparent_value(65536 - 1)), gray),
            "rgb.tiff": (tiff(RGB, 2, **tag), RGB),
            "gray16.tiff": (tiff(DEEP_GRAY, 1, 16, **tag), gray),
            "white-is-0.tiff": (tiff(DEEP_GRAY, 0, 16, **tag), 255 - gray),
            "x.webp": (pillow(RGB, "WEBP", lossless=True, exif=data), RGB),
            "x.avif": (pillow(RGB, "AVIF", quality=100, subsampling="4:4:4", exif=data), RGB),
            "x.jpg": (pillow(RGB, "JPEG", quality=95, exif=data), RGB),
            "cmyk.jpg": (pillow(RGB, "JPEG", "CMYK", quality=95, exif=data), RGB),
        }
        for name, (file, pixels) in files.items():
            yield f"turn{turn}-{name}", file, turned(pixels, turn), 40 if "j" in name else 3


COLORS = np.random.default_rng(4).integers(0, 256, (256, 3), dtype=np.uint8)
seen_gray = (DEEP_GRAY >> 8).astype(np.uint8)
JP2_LOSSLESS, RESTARTS = (
    [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000],
    [cv2.IMWRITE_JPEG_RST_INTERVAL, 2],
)
FILES = {
    name: Drawn(data, *what)
    for draw in (draw_png, draw_tiff, draw_bmp_and_pnm, draw_others, draw_turned)
    for name, data, *what in draw()
}
