"""The contract: what OneFlow decodes from a record is what is seen in the file, whatever its format."""

import sys

import cv2
import numpy as np
import pytest
from decode import Dataset, decode_with_oneflow
from drawn import (
    DEEP_GRAY,
    FILES,
    GRAY,
    LA,
    RGB,
    bmp,
    chunk,
    exif,
    opencv,
    pillow,
    png,
    tiff,
    transparent_value,
    turned,
)

from ofrecord.images import BadImage, ImageOptions, decode, encode, read_header, resize


def seen(data, **options):
    """The pixels of a file, RGB where they are not gray."""
    pixels = decode(data, read_header(data), ImageOptions(**options))
    return pixels if pixels.ndim == 2 else pixels[:, :, ::-1]


def assert_close(pixels, expected, tolerance, name):
    assert pixels.shape == expected.shape, name
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance, name


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_are_those_that_were_drawn(name):
    assert_close(seen(FILES[name].data), FILES[name].pixels, FILES[name].tolerance, name)


# The files whose own bytes must be in the record; no other file's may be.
UNCHANGED = {
    ".png": "behind-the-end rgb rgb-interlaced gray8 gray8-interlaced text-and-gamma bad-profile",
    ".jpg": "plain progressive 422 rgb optimized restarts gray motion mpo turn1-x "
    "turn1-behind-xmp turn1-before-scan",
}
SEVERAL = "animated.png pages.tiff animated.gif animated.webp mpo.jpg".split()


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """{(format, whether it is gray): what OneFlow reads}, and what is stored of each file."""
    from img2ofrecord import encode_img_file, ndarray2ofrecords

    datasets, stored = {}, {}
    for ext in (".png", ".jpg"):
        for gray in (True, False):
            folder = tmp_path_factory.mktemp("records")
            names = [name for name in FILES if (FILES[name].pixels.ndim == 2) == gray]
            with open(folder / "part-0", "wb") as part:
                for label, name in enumerate(names):
                    image = encode_img_file(name, ext, None, FILES[name].data)
                    stored[ext, name] = image.data
                    ndarray2ofrecords(part, "images", image.data, "labels", label)
            shapes = [FILES[name].pixels.shape[:2] for name in names]
            datasets[ext, gray] = Dataset(folder, shapes, 1 if gray else 3, part_num=1)
    return decode_with_oneflow(datasets), stored


@pytest.mark.parametrize("gray", [True, False], ids=["gray", "colour"])
@pytest.mark.parametrize("ext", [".png", ".jpg"])
def test_oneflow_decodes_what_was_drawn(decoded, ext, gray):
    images, labels = decoded[0][ext, gray]
    names = [name for name in FILES if (FILES[name].pixels.ndim == 2) == gray]
    assert labels == list(range(len(names)))
    for name, image in zip(names, images, strict=True):
        file, image = FILES[name], image[:, :, 0] if gray else image
        if ext == ".png":
            assert_close(image, file.pixels, file.tolerance, name)
        elif decoded[1][ext, name] == file.data:  # stored unchanged
            assert_close(image, seen(file.data), 0, name)


@pytest.mark.parametrize("ext", UNCHANGED)
def test_what_is_stored_unchanged(decoded, ext):
    stored = {name: data for (kind, name), data in decoded[1].items() if kind == ext}
    unchanged = {name for name in FILES if stored[name] == FILES[name].data}
    assert unchanged == {f"{name}{ext}" for name in UNCHANGED[ext].split()}


def test_files_of_several_pictures_are_told():
    from img2ofrecord import encode_img_file

    several = [name for name, file in FILES.items() if read_header(file.data).several]
    assert several == SEVERAL
    assert encode_img_file("mpo.jpg", ".jpg", None, FILES["mpo.jpg"].data, reduced=True).several


def test_the_options():
    rgba = np.dstack([RGB, np.zeros_like(GRAY)])
    assert (seen(png(rgba, 6), background="#102030") == (16, 32, 48)).all()
    assert (seen(png(rgba, 6), background="black", color="gray") == 0).all()
    key = png(np.full((4, 5), 7), 0, 8, transparent_value(7))
    assert (seen(key, background="red", color="color") == (255, 0, 0)).all()
    assert (seen(key, background="#808080") == 128).all()
    assert (seen(png(GRAY, 0), color="color") == GRAY[..., None]).all()
    for name in ("rgb.png", "rgb-0.tiff", "plain.jpg", "lossless.webp"):
        luma = RGB @ (0.299, 0.587, 0.114)
        assert_close(seen(FILES[name].data, color="gray"), luma, 20 if "jpg" in name else 1, name)


def test_an_image_is_brought_to_a_size():
    stripes = np.repeat(np.repeat([[10, 20, 30]], 30, 0), 30, 1).astype(np.uint8)  # 90 x 30
    for fit, expected in (("crop", [20] * 30), ("stretch", [10] * 10 + [20] * 10 + [30] * 10)):
        assert (resize(stripes, (30, 30), fit, "white") == expected).all(), fit
    padded = resize(stripes, (90, 90), "pad", "#404040")
    assert (padded[30:60] == stripes).all()
    assert (padded[:30] == 64).all() and (padded[60:] == 64).all()
    padded = resize(np.dstack([stripes.T] * 3), (90, 90), "pad", "red")
    assert (padded[:, :30] == (0, 0, 255)).all() and padded.shape == (90, 90, 3)
    with pytest.raises(BadImage, match="cannot encode its 20000x1 pixels as .webp"):
        encode(np.zeros((1, 20_000, 3), np.uint8), ".webp", 95)


def test_heic(monkeypatch):
    start = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"
    with monkeypatch.context() as context, pytest.raises(BadImage, match="pip install pillow-heif"):
        context.setitem(sys.modules, "pillow_heif", None)
        read_header(start)
    heif = pytest.importorskip("pillow_heif", reason="optional: pip install pillow-heif")
    heif.register_heif_opener()
    wide = cv2.resize(RGB, (360, 296))
    for turn in range(1, 9):
        data = pillow(wide, "HEIF", quality=100, chroma=444, exif=exif(turn))
        assert_close(seen(data), turned(wide, turn), 20, turn)
        with pytest.raises(BadImage):
            seen(data[:-100])


# -- what is refused --------------------------------------------------------------------

FLOATS, SIGNED, HUGE = {339: (3, [3])}, {339: (3, [2])}, {256: (4, [2**16]), 257: (4, [2**16])}
IHDR = png(GRAY, 0)[8:33]
BOMBS = {  # small files of more pixels than are ever decoded
    "png": png(GRAY, 0).replace(IHDR, chunk(b"IHDR", b"\0\1\0\0" * 2 + IHDR[16:21])),
    "jpeg": pillow(GRAY, "JPEG").replace(b"\x08\0\x25\0\x2d", b"\x08\xff\xff\xff\xff"),
    "pnm": b"P5 65536 65536 255\n",
    "bmp": bmp(GRAY, 8, bytes(1024)).replace(b"\x2d\0\0\0\x25\0\0", b"\0\0\1\0\0\0\1"),
    "tiff": tiff(GRAY, tags=HUGE),
    "a wide pnm": b"P5 1048577 1 255\n",
}
OTHER_KINDS = {
    "pam": b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 1\nENDHDR\n\0",
    "hdr": opencv(RGB.astype(np.float32), ".hdr"),
    "pfm": b"Pf\n1 1\n1.0\n\0\0\0\0",
    "html": b"<!DOCTYPE html>" * 9,
    **{kind: pillow(RGB, kind) for kind in ("EPS", "ICO", "TGA", "PCX", "PDF")},
}
PNG, J2K = png(RGB, 2), pillow(GRAY, "JPEG2000", no_jp2=True)
FEW = np.zeros((3, 3), int)
UNKNOWN = "Pillow cannot read it as TIFF: save it as PNG"
TYPE = "signed, or floating-point numbers: scale them to 0 to"
REFUSED = {
    **{f"bomb: {name}": (data, "pixels are too many: 1,073") for name, data in BOMBS.items()},
    **{name: (data, "none of PNG, JPEG, TIFF") for name, data in OTHER_KINDS.items()},
    **{f"float{n}": (tiff(FEW, 1, n, tags=FLOATS), UNKNOWN) for n in (16, 64)},
    "float32": (tiff(FEW, 1, 32, tags=FLOATS), TYPE),
    **{f"signed{n}": (tiff(FEW, 1, n, tags=SIGNED), TYPE) for n in (8, 16, 32)},
    "signed64": (tiff(FEW, 1, 64, tags=SIGNED), UNKNOWN),
    "signed rgb": (tiff(RGB, 2, tags={339: (3, [2] * 3)}), UNKNOWN),
    "big values": (tiff(DEEP_GRAY + 1000, 1, 32), "not all within 0 to 65,535: scale them to 0 to"),
    "deep key": (
        png(DEEP_GRAY, 0, 16, transparent_value(9)),
        "one of its 16-bit values is transpa",
    ),
    "deep jp2": (opencv(DEEP_GRAY.astype(np.uint16)[..., None], ".jp2"), "more or less than 8"),
    "4-bit jp2": (J2K[:42] + b"\3" + J2K[43:], "more or less than 8 bits: scale them to 0 to 255"),
    "alpha apart": (tiff(LA, 1, planar=True, tags={338: (3, [2])}), "stored apart: save it as PNG"),
    "indices without colors": (png(GRAY, 3, 8, chunk(b"tRNS", b"\0")), "the PNG has no palette"),
    "iphone png": (
        PNG[:8] + chunk(b"CgBI", bytes(4)) + PNG[8:],
        "no standard PNG, as those in iPhone apps: save it as PNG, if another program can read it",
    ),
    "444 bmp": (
        bmp(GRAY.astype(int), 16, masks=(0xF00, 0xF0, 0xF)),
        "BMP (Unsupported BMP bitfields layout): save it as PNG, if another program can read it",
    ),
    "png without rows": (
        png(GRAY[:0], 0)[:8] + png(GRAY, 0)[8:33] + png(GRAY[:1], 0)[33:],
        "OpenCV cannot read it as an image: save it as PNG",
    ),
    "deep alpha": (tiff(LA, 1, 16), "Pillow cannot read it as TIFF: save it as PNG"),
    "text": (b"BMW makes cars. " * 9, "Pillow cannot read it as BMP"),
    "empty": (b"", "the file is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_why(name):
    data, text = REFUSED[name]
    with pytest.raises(BadImage) as error:
        decode(data, read_header(data))
    assert text in str(error.value)
    assert "\n" not in str(error.value) and " at 0x" not in str(error.value)
