"""One small picture as every kind of image file that people have: KINDS, {file name: bytes}."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 37, 45  # odd, and not square: a rotation shows


def picture(seed=0):
    """RGB uint8, smooth, so that JPEG's error stays small; (HEIGHT, WIDTH, 3)."""
    rng = np.random.default_rng(seed)
    return cv2.resize(
        rng.integers(0, 256, (4, 5, 3), dtype=np.uint8),
        (WIDTH, HEIGHT),
        interpolation=cv2.INTER_CUBIC,
    )


RGB = picture()
GRAY = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)
ALPHA = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))


def pillow(array, file_format, mode=None, **options):
    image = Image.fromarray(array)
    if mode:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def opencv(array, ext, *parameters):
    pixels = array[:, :, ::-1] if array.ndim == 3 else array
    return cv2.imencode(ext, pixels, parameters)[1].tobytes()


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(array, color_type, depth=8, before=b"", interlaced=False):
    """A PNG written by hand, for what Pillow and OpenCV do not write."""
    height, width = array.shape[:2]
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = b"".join(
        b"\0" + row.tobytes()
        for y, x, down, right in (passes if interlaced else [(0, 0, 1, 1)])
        for row in array[y::down, x::right]
        if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    chunks = [
        png_chunk(b"IHDR", header),
        before,
        png_chunk(b"IDAT", zlib.compress(rows)),
        png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def make():
    sixteen = (GRAY.astype(np.uint16) << 8) + 37
    sixteen_rgb = (RGB.astype(np.uint16) << 8) + 37
    rgba, la = np.dstack([RGB, ALPHA]), np.dstack([GRAY, ALPHA])
    kinds = {
        # PNG
        "gray.png": opencv(GRAY, ".png"),
        "rgb.png": opencv(RGB, ".png"),
        "gray16.png": opencv(sixteen, ".png"),
        "rgb16.png": opencv(sixteen_rgb, ".png"),
        "rgba.png": pillow(rgba, "PNG"),
        "gray-alpha.png": pillow(la, "PNG"),
        "palette.png": pillow(RGB, "PNG", "P"),
        "palette-gray.png": pillow(np.dstack([GRAY] * 3), "PNG", "P"),
        "palette-transparent.png": pillow(RGB, "PNG", "P", transparency=3),
        "rgb-transparent.png": pillow(RGB, "PNG", transparency=(255, 0, 0)),
        "gray-transparent.png": pillow(GRAY, "PNG", transparency=7),
        "1-bit.png": pillow(GRAY, "PNG", "1"),
        "2-bit.png": pillow(GRAY // 64, "PNG", "P", bits=2),
        "rotated.png": pillow(RGB, "PNG", exif=exif(6)),
        "interlaced.png": png(GRAY, 0, interlaced=True),
        "interlaced-rgb.png": png(RGB, 2, interlaced=True),
        "gamma.png": png(RGB, 2, before=png_chunk(b"gAMA", struct.pack(">I", 100000))),
        "srgb-and-text.png": png(
            RGB, 2, before=png_chunk(b"sRGB", b"\0") + png_chunk(b"tEXt", b"Comment\0eXIf tRNS")
        ),
        "bad-profile.png": png(
            RGB, 2, before=png_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))
        ),
        "animated.png": pillow(
            RGB, "PNG", save_all=True, append_images=[Image.fromarray(picture(1))]
        ),
        # JPEG
        "gray.jpg": opencv(GRAY, ".jpg"),
        "rgb.jpg": opencv(RGB, ".jpg"),
        "quality-50.jpg": opencv(RGB, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 50),
        "progressive.jpg": opencv(RGB, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "444.jpg": pillow(RGB, "JPEG", subsampling=0, quality=90),
        "422.jpg": pillow(RGB, "JPEG", subsampling=1, quality=90),
        "restarts.jpg": opencv(RGB, ".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        "cmyk.jpg": pillow(RGB, "JPEG", "CMYK", quality=95),
        "rgb-not-ycc.jpg": pillow(RGB, "JPEG", keep_rgb=True, quality=95),
        "thumbnail.jpg": pillow(
            RGB, "JPEG", exif=exif(1), icc_profile=b"x" * 400, comment=b"a comment"
        ),
        "after-the-end.jpg": opencv(RGB, ".jpg") + b"\0" * 100,
        # TIFF
        "gray.tiff": opencv(GRAY, ".tiff"),
        "rgb.tiff": opencv(RGB, ".tiff"),
        "gray16.tiff": opencv(sixteen, ".tiff"),
        "rgba.tiff": pillow(rgba, "TIFF"),
        "palette.tiff": pillow(RGB, "TIFF", "P"),
        "1-bit.tiff": pillow(GRAY, "TIFF", "1"),
        "cmyk.tiff": pillow(RGB, "TIFF", "CMYK"),
        "lzw.tiff": pillow(RGB, "TIFF", compression="tiff_lzw"),
        "deflate.tiff": pillow(RGB, "TIFF", compression="tiff_adobe_deflate"),
        "packbits.tiff": pillow(GRAY, "TIFF", compression="packbits"),
        "jpeg-in.tiff": pillow(RGB, "TIFF", compression="jpeg"),
        "white-is-zero.tiff": pillow(GRAY, "TIFF", tiffinfo={262: 0}),
        "rotated.tiff": pillow(RGB, "TIFF", tiffinfo={274: 6}),
        "two-pages.tiff": pillow(
            RGB, "TIFF", save_all=True, append_images=[Image.fromarray(picture(1))]
        ),
        # BMP, WebP, PNM and what is only read
        "gray.bmp": opencv(GRAY, ".bmp"),
        "rgb.bmp": opencv(RGB, ".bmp"),
        "rgba.bmp": pillow(rgba, "BMP"),
        "palette.bmp": pillow(RGB, "BMP", "P"),
        "1-bit.bmp": pillow(GRAY, "BMP", "1"),
        "lossless.webp": opencv(RGB, ".webp"),
        "lossy.webp": opencv(RGB, ".webp", cv2.IMWRITE_WEBP_QUALITY, 80),
        "alpha.webp": pillow(rgba, "WEBP", lossless=True),
        "animated.webp": pillow(
            RGB, "WEBP", save_all=True, append_images=[Image.fromarray(picture(1))]
        ),
        "gray.pgm": opencv(GRAY, ".pgm"),
        "rgb.ppm": opencv(RGB, ".ppm"),
        "comment.pgm": b"P5\n# drawn by hand\n%d %d\n255\n" % (WIDTH, HEIGHT) + GRAY.tobytes(),
        "16-bit.pgm": b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + sixteen.astype(">u2").tobytes(),
        "ascii.pgm": f"P2\n{WIDTH} {HEIGHT}\n255\n{' '.join(map(str, GRAY.ravel()))}\n".encode(),
        "rgb.ras": opencv(RGB, ".ras")[:-1] + b"\0",  # OpenCV leaves the last byte, padding, unset
        # names that lie: what counts is the content
        "jpeg-named.png": opencv(RGB, ".jpg"),
        "png-named.jpg": opencv(GRAY, ".png"),
    }
    for orientation in range(1, 9):
        kinds[f"rotated-{orientation}.jpg"] = pillow(
            RGB, "JPEG", exif=exif(orientation), quality=95
        )
    return kinds


KINDS = make()
