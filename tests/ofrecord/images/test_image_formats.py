"""The contract: what OneFlow decodes from a record is what is seen in the file, whatever its format."""

import cv2
import numpy as np
import pytest
from decode import Dataset, decode_with_oneflow
from drawn import DEEP_GRAY, FILES, GRAY, LA, RGB, bmp, chunk, pillow, png, tiff

from ofrecord.images import BadImage, ImageOptions, decode, read_header


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
    ".png": "rgb rgb-interlaced gray8 gray8-interlaced text-and-gamma bad-profile",
    ".jpg": "plain progressive 422 rgb optimized restarts gray motion mpo turn1-x",
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
    several = [name for name, file in FILES.items() if read_header(file.data).several]
    assert several == SEVERAL


# -- what is refused --------------------------------------------------------------------

FLOATS, SIGNED = {339: (3, [3])}, {339: (3, [2])}
REFUSED = {
    "float16.tiff": (tiff(DEEP_GRAY, 1, 16, tags=FLOATS), "floating-point numbers: scale them"),
    "float32.tiff": (tiff(DEEP_GRAY, 1, 32, tags=FLOATS), "floating-point numbers: scale them"),
    "float64.tiff": (tiff(DEEP_GRAY, 1, 64, tags=FLOATS), "floating-point numbers: scale them"),
    "signed8.tiff": (tiff(GRAY, 1, 8, tags=SIGNED), "signed integers: scale them"),
    "signed16.tiff": (tiff(DEEP_GRAY, 1, 16, tags=SIGNED), "signed integers: scale them"),
    "signed rgb.tiff": (tiff(RGB, 2, tags={339: (3, [2] * 3)}), "signed integers: scale them"),
    "big values.tiff": (tiff(DEEP_GRAY + 1000, 1, 32), "not all within 0 to 65,535: scale them"),
    "deep alpha.tiff": (tiff(LA, 1, 16), "as TIFF: save it as PNG"),
    "pam": (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 1\nENDHDR\n\0", "none of PNG, JPEG"),
    "pfm": (b"Pf\n1 1\n1.0\n\0\0\0\0", "none of PNG, JPEG, TIFF"),
    "hdr": (cv2.imencode(".hdr", RGB.astype(np.float32))[1].tobytes(), "none of PNG, JPEG"),
    "eps": (pillow(RGB, "EPS"), "none of PNG, JPEG"),
    "ico": (pillow(RGB, "ICO"), "none of PNG, JPEG"),
    "tga": (pillow(RGB, "TGA"), "AVIF, HEIC: save it as PNG"),
    "html": (b"<!DOCTYPE html>" * 9, "none of PNG, JPEG"),
    "text": (b"BMW makes cars. " * 9, "Pillow cannot read it as BMP"),
    "empty": (b"", "the file is empty"),
    # Bombs: small files of more pixels than are ever decoded.
    "bomb.png": (
        png(GRAY, 0)[:8] + chunk(b"IHDR", b"\0\1\0\0" * 2 + b"\1\0\0\0\0") + png(GRAY, 0)[33:],
        "65536x65536 pixels are too many",
    ),
    "bomb.jpg": (
        pillow(GRAY, "JPEG").replace(b"\x08\0\x25\0\x2d", b"\x08\xff\xff\xff\xff"),
        "65535x65535 pixels are too many",
    ),
    "bomb.pgm": (b"P5 65536 65536 255\n", "65536x65536 pixels are too many"),
    "bomb.bmp": (
        bmp(GRAY, 8, bytes(1024)).replace(b"\x2d\0\0\0\x25\0\0", b"\0\0\1\0\0\0\1"),
        "pixels are too many: 1,073,741,824",
    ),
    "bomb.tiff": (
        tiff(GRAY, tags={256: (4, [2**16]), 257: (4, [2**16])}),
        "pixels are too many: 1,073,741,824",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_why(name):
    data, text = REFUSED[name]
    with pytest.raises(BadImage) as error:
        decode(data, read_header(data))
    assert (
        text in str(error.value)
        and "\n" not in str(error.value)
        and " at 0x" not in str(error.value)
    )
