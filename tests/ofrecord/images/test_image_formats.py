"""The contract: what OneFlow decodes from a record is what is seen in the file, whatever its format."""

import sys

import cv2
import numpy as np
import pytest
from decode import Dataset, decode_with_oneflow
from drawn import DEEP_GRAY, FILES, GRAY, RGB, bmp, chunk, jpeg, pillow, png, tiff, trns

from img2ofrecord import encode_img_file, ndarray2ofrecords
from ofrecord.images import BadImage, ImageOptions, decode, encode, read_header, resize


def seen(data, **options):
    """The pixels of a file, RGB where they are not gray."""
    pixels = decode(data, read_header(data), ImageOptions(**options))
    return pixels if pixels.ndim == 2 else pixels[:, :, ::-1]


def assert_close(pixels, expected, tolerance, name=""):
    assert pixels.shape == expected.shape, name
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance, name


# The files whose own bytes must be in the record; no other file's may be.
EXIF = "x little behind-xmp late first".split()
UPRIGHT = [f"turn{turn}-{kind}" for turn in (0, 1, 9) for kind in EXIF]
UNCHANGED = {
    ".png": "rgb rgb-interlaced gray8 gray8-interlaced behind-the-end tEXt gAMA iCCP iTXt".split(),
    ".jpg": "plain progressive 422 rgb optimized restarts gray motion mpo two".split() + UPRIGHT,
}
SEVERAL = "animated.png pages.tiff animated.gif animated.webp mpo.jpg".split()


def test_oneflow_decodes_what_was_drawn(tmp_path):
    """Every file, once its pixels are in a PNG; of JPEG those that are stored unchanged."""
    datasets, wanted = {}, {}
    for ext, unchanged in UNCHANGED.items():
        stored = {name: encode_img_file(name, ext, None, file.data) for name, file in FILES.items()}
        assert [name for name, image in stored.items() if image.several] == SEVERAL
        names = [name for name in FILES if stored[name].data == FILES[name].data]
        assert sorted(names) == sorted(name + ext for name in unchanged)
        for channels, ndim, decoder in (1, 2, "bytes"), (3, 3, "bytes"), (3, 3, "fused"):
            group = [name for name in FILES if FILES[name].pixels.ndim == ndim]
            assert {stored[name].pixels.ndim for name in group} == {ndim}
            expected = {name: (FILES[name].pixels, FILES[name].tolerance) for name in group}
            if ext == ".jpg":  # exactly as OpenCV reads it
                expected = {name: (seen(FILES[name].data), 0) for name in group if name in names}
            elif decoder == "fused":
                continue
            folder = tmp_path / f"{ext} {channels} {decoder}"
            folder.mkdir()
            with open(folder / "part-0", "wb") as part:
                for label, name in enumerate(expected):
                    ndarray2ofrecords(part, "images", stored[name].data, "labels", label)
            shapes = [pixels.shape[:2] for pixels, _ in expected.values()]
            datasets[folder] = Dataset(folder, shapes, channels, part_num=1, decoder=decoder)
            wanted[folder] = expected
    assert encode_img_file("", ".jpg", None, FILES["mpo.jpg"].data, reduced=True).several
    for folder, (images, labels) in decode_with_oneflow(datasets).items():
        assert labels == list(range(len(images)))
        for image, (name, (pixels, tolerance)) in zip(images, wanted[folder].items(), strict=True):
            image = image[:, :, 0] if pixels.ndim == 2 else image
            assert_close(image, pixels, tolerance, f"{folder}: {name}")


CLEAR, HIDDEN = png(np.dstack([RGB, 0 * GRAY]), 6), png(np.full((4, 5), 7), 0, 8, trns(7))
OPTIONS = [  # a file, the options, its pixels or one of them
    (CLEAR, {"background": "#102030"}, (16, 32, 48), 0),
    (HIDDEN, {"background": "red", "color": "color"}, (255, 0, 0), 0),
    (HIDDEN, {"background": "#808080"}, 128, 0),
    (FILES["rgb-0.tiff"].data, {"color": "gray"}, RGB @ (0.299, 0.587, 0.114), 1),
]


def test_the_background_and_the_colour_are_those_asked_for():
    for data, options, expected, tolerance in OPTIONS:
        pixels = seen(data, **options)
        assert_close(pixels, np.broadcast_to(expected, pixels.shape), tolerance, options)


def test_an_image_is_brought_to_a_size():
    stripes = np.repeat(np.repeat([[10, 20, 30]], 30, 0), 30, 1).astype(np.uint8)  # 90 x 30
    for fit, expected in (("crop", [20] * 30), ("stretch", [10] * 10 + [20] * 10 + [30] * 10)):
        assert (resize(stripes, (30, 30), fit, "white") == expected).all(), fit
    padded = resize(np.dstack([stripes.T] * 3), (90, 90), "pad", "red")
    assert (padded[:, :30] == (0, 0, 255)).all() and padded.shape == (90, 90, 3)
    with pytest.raises(BadImage, match="cannot encode its 20000x1 pixels as .webp"):
        encode(np.zeros((1, 20_000, 3), np.uint8), ".webp", 95)


def test_heic_needs_another_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadImage, match="pip install pillow-heif"):
        read_header(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf")


PNG, JPEG, J2K = png(GRAY, 0), jpeg(GRAY), pillow(GRAY, "JPEG2000", no_jp2=True)
HUGE = chunk(b"IHDR", b"\0\1\0\0" * 2 + PNG[24:29])
PAIR, DEEP_JP2 = np.dstack([GRAY] * 2), cv2.imencode(".jp2", DEEP_GRAY.astype(np.uint16))[1]
OTHER = "none of PNG, JPEG, TIFF"
MANY, ANEW = "1,073,741,824 at most, 1,048,576 on", "save it as PNG, if another program can read it"
UNKNOWN, SCALE = f"Pillow cannot read it as TIFF: {ANEW}", ": scale them to 0 to 255 and save it as"
TYPE, DEPTH = f"signed, or floating-point numbers{SCALE}", f"more or less than 8 bits{SCALE}"
REFUSED = {
    "pam": (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 1\nENDHDR\n\0", OTHER),
    "hdr": (cv2.imencode(".hdr", RGB.astype(np.float32))[1].tobytes(), OTHER),
    "eps": (pillow(RGB, "EPS"), OTHER),
    "huge png": (PNG[:8] + HUGE + PNG[33:], MANY),  # small files of more pixels than are decoded
    "huge jpeg": (JPEG.replace(b"\x08\0\x25\0\x2d", b"\x08\xff\xff\xff\xff"), MANY),
    "huge pnm": (b"P5 65536 65536 255\n", MANY),
    "huge tiff": (tiff(GRAY, tags={256: [2**16], 257: [2**16]}), MANY),
    "wide pnm": (b"P5 1048577 1 255\n", MANY),
    "signed tiff": (tiff(GRAY, 1, 8, tags={339: [2]}), TYPE),
    "float tiff": (tiff(GRAY, 1, 32, tags={339: [3]}), TYPE),
    "half-float tiff": (tiff(GRAY, 1, 16, tags={339: [3]}), UNKNOWN),
    "big values": (tiff(DEEP_GRAY + 1000, 1, 32), f"not all within 0 to 65,535{SCALE}"),
    "deep key": (png(DEEP_GRAY, 0, 16, trns(9)), "one of its 16-bit values is transpa"),
    "deep jp2": (DEEP_JP2.tobytes(), DEPTH),
    "4-bit jp2": (J2K[:42] + b"\3" + J2K[43:], DEPTH),
    "alpha apart": (tiff(PAIR, planar=True, tags={338: [2]}), "stored apart: save it as PNG"),
    "raw photo": (
        tiff(GRAY, tags={254: [1]}),
        "its first picture is a thumbnail: save the image as",
    ),
    "no palette": (png(GRAY, 3, 8, chunk(b"tRNS", b"\0")), "the PNG has no palette"),
    "iphone png": (PNG[:8] + chunk(b"CgBI", bytes(4)) + PNG[8:], f"in iPhone apps: {ANEW}"),
    "444 bmp": (
        bmp(GRAY, 16, masks=(15, 240, 15)),
        f"BMP (Unsupported BMP bitfields layout): {ANEW}",
    ),
    "few rows": (PNG[:33] + png(GRAY[:1], 0)[33:], f"OpenCV cannot read it as an image: {ANEW}"),
    "empty": (b"", "the file is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_why(name):
    data, text = REFUSED[name]
    with pytest.raises(BadImage) as error:
        decode(data, read_header(data))
    assert text in str(error.value)
    assert str(error.value).isprintable() and " at 0x" not in str(error.value)
