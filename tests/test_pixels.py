"""Images whose pixels are easily misread: transparent, turned, damaged, or only complained about."""

import io
import warnings

import cv2
import numpy as np
import pytest
from helpers import assert_one_error, convert, read_manifest, records
from PIL import Image

INK = np.zeros((24, 32), np.uint8)  # opaque in the left half
INK[:, :16] = 255
NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def stored(folder, name, data, *options):
    """Convert one image file; return its pixels as they are stored."""
    result = convert_one(folder, name, data, *options)
    assert result.code == 0, result
    ((encoded, _),) = records(folder / "d")
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)


def convert_one(folder, name, data, *options):
    (folder / "in" / "a").mkdir(parents=True)
    (folder / "in" / "a" / name).write_bytes(data)
    options = [
        "--image_root",
        folder / "in",
        "--class_folders",
        "--save_dir",
        folder / "d",
        *options,
    ]
    return convert(*options, "--part_num", 1)


# -- transparency -----------------------------------------------------------------------


def palette_with_transparency():
    image = Image.fromarray(np.where(INK > 0, 0, 1).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 0, 0, 0])
    return saved(image, "PNG", transparency=1)


def rgba():
    return Image.fromarray(np.dstack([np.zeros((24, 32, 3), np.uint8), INK]), "RGBA")


DRAWINGS = {  # black ink, opaque where INK is
    "rgba.png": lambda: saved(rgba(), "PNG"),
    "gray.png": lambda: saved(rgba().convert("LA"), "PNG"),
    "palette.png": palette_with_transparency,
    "drawing.webp": lambda: saved(rgba(), "WEBP", lossless=True),
    "drawing.tiff": lambda: saved(rgba(), "TIFF", compression="tiff_lzw"),
    "drawing.gif": lambda: saved(rgba(), "GIF"),
}


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize("background, level", [(None, 255), ("#808080", 128), ("black", 0)])
def test_transparent_drawings_are_laid_on_a_background(tmp_path, name, background, level):
    options = ["--background", background] if background else []
    pixels = stored(tmp_path, name, DRAWINGS[name](), *options)
    assert (pixels[:, :15] < 5).all() and (abs(pixels[:, 17:].astype(int) - level) < 5).all()
    assert read_manifest(tmp_path / "d")["background"] == background or "white"


def test_half_transparent_pixels_are_mixed(tmp_path):
    image = Image.fromarray(np.full((8, 8, 4), (200, 100, 0, 128), np.uint8), "RGBA")
    pixels = stored(tmp_path, "a.png", saved(image, "PNG"))
    assert abs(pixels[0, 0].astype(int) - (127, 177, 227)).max() <= 1  # B G R


def test_an_unknown_color_is_refused(tmp_path):
    result = convert_one(tmp_path, "a.png", DRAWINGS["rgba.png"](), "--background", "whitish")
    assert_one_error(result, "--background", "whitish")


# -- orientation ------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "PNG with alpha"])
def test_images_are_turned_as_exif_says(tmp_path, kind, orientation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = Image.fromarray(
            cv2.resize(NOISE[:6, :8], (64, 48), interpolation=cv2.INTER_NEAREST)
        )
        if kind == "PNG with alpha":
            image.putalpha(255)
        exif = Image.Exif()
        exif[0x0112] = orientation
        kind = kind.split()[0]
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
        data = saved(image, kind, exif=exif, **options.get(kind, {}))
    upright = np.asarray(image.convert("RGB"))[:, :, ::-1].astype(int)
    if orientation >= 5:
        upright = upright.transpose(1, 0, 2)
    upright = upright[:, ::-1] if orientation in (2, 3, 6, 7) else upright
    upright = upright[::-1] if orientation in (3, 4, 7, 8) else upright
    pixels = stored(tmp_path, f"a.{kind.lower()}", data, "--img_format", ".png")
    assert pixels.shape == upright.shape and abs(pixels - upright).mean() < 3


# -- damage -----------------------------------------------------------------------------


def jpeg_with_thumbnail():
    image, exif = Image.fromarray(cv2.resize(NOISE, (320, 240))), Image.Exif()
    thumbnail = saved(image.resize((32, 24)), "JPEG")
    exif._info = None
    data = saved(image, "JPEG", exif=exif)
    # A segment of another kind with a whole JPEG in it, as cameras put one into EXIF data.
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    return data[:2] + segment + data[2:]


def test_a_jpeg_whose_end_is_zeros_behind_a_thumbnail(tmp_path):
    data = jpeg_with_thumbnail()
    assert stored(tmp_path / "whole", "a.jpg", data).shape == (240, 320, 3)
    damaged = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    assert_one_error(convert_one(tmp_path, "a.jpg", damaged), "a.jpg", "truncated", started=True)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"])
def test_damaged_tiff(tmp_path, compression):
    rng = np.random.default_rng(0)
    image = Image.fromarray(cv2.resize(NOISE, (160, 120)) // 8 * 8)
    data = saved(image, "TIFF", compression=compression)
    assert stored(tmp_path / "whole", "a.tiff", data).shape == (120, 160, 3)
    noticed = 0
    for turn in range(10):
        damaged = bytearray(data)
        start = int(rng.integers(200, len(data) - 1200))
        damaged[start : start + 500] = rng.bytes(500)
        result = convert_one(tmp_path / str(turn), "a.tiff", bytes(damaged))
        noticed += result.code == 2 and "a.tiff: invalid image" in result.err
    assert noticed == 10


def test_messages_of_libjpeg_that_change_no_pixel(tmp_path):
    data = bytearray(saved(Image.fromarray(NOISE), "JPEG"))
    whole = stored(tmp_path / "whole", "a.jpg", bytes(data))
    start = data.rindex(b"\xff\xda")
    data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") - 1] = 7  # spectral end
    extraneous = bytes(data[:-2]) + b"\0" * 5 + bytes(data[-2:])
    assert (stored(tmp_path, "a.jpg", extraneous) == whole).all()


# -- sixteen bits ---------------------------------------------------------------------------


TWELVE = np.linspace(0, 4095, 32 * 24).reshape(24, 32).astype(np.uint16)
PAM = b"P7\nWIDTH 32\nHEIGHT 24\nDEPTH 1\nMAXVAL 4095\nTUPLTYPE GRAYSCALE\nENDHDR\n"
DEEP = {
    "png": lambda: cv2.imencode(".png", TWELVE)[1].tobytes(),
    "tiff": lambda: cv2.imencode(".tiff", TWELVE)[1].tobytes(),
    "pgm": lambda: cv2.imencode(".pgm", TWELVE)[1].tobytes(),
    "pnm": lambda: b"P5\n# a comment\n32 24 # 1\n4095\n" + TWELVE.astype(">u2").tobytes(),
    "pam": lambda: PAM + TWELVE.astype(">u2").tobytes(),
    "jp2": lambda: cv2.imencode(".jp2", np.tile(TWELVE, (8, 8)))[1].tobytes(),
}


@pytest.mark.parametrize("kind", DEEP)
def test_twelve_bits_in_sixteen(tmp_path, kind):
    data, kind = DEEP[kind](), f".{kind}"
    twelve = np.tile(TWELVE, (8, 8)) if kind == ".jp2" else TWELVE
    result = convert_one(tmp_path / "dark", f"a{kind}", data)
    assert result.code == 0 and ": warning: 1 16-bit image reach" in result.err, result
    assert "--max_value 4095" in result.err
    pixels = stored(tmp_path, f"a{kind}", data, "--max_value", 4095)
    np.testing.assert_allclose(pixels, twelve / 4095 * 255, atol=1 if kind == ".jp2" else 0.6)
    assert read_manifest(tmp_path / "d")["max_value"] == 4095


@pytest.mark.parametrize("kind", DEEP)
def test_a_header_that_ends_anywhere(kind):
    """Nothing but BadImage, whatever of a file is there."""
    from ofrecord.headers import BadImage, read_header

    data = DEEP[kind]()
    for size in range(200):
        try:
            read_header(data[:size])
        except BadImage:
            pass


def test_all_sixteen_bits(tmp_path):
    sixteen = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(np.uint16)
    result = convert_one(tmp_path, "a.png", cv2.imencode(".png", sixteen)[1].tobytes())
    assert result.code == 0 and "warning: 1 16-bit" not in result.err, result


def sixteen_bits(kind, largest):
    values = np.linspace(0, largest, 32 * 24).reshape(24, 32).astype(np.uint16)
    return values, cv2.imencode(kind, values)[1].tobytes()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "kind, largest, found",
    [
        (".png", 200, 255),
        (".png", 1023, 1023),
        (".tiff", 1024, 4095),
        (".pgm", 4000, 4095),
        (".png", 4096, 16383),
        (".tiff", 65535, 65535),
    ],
)
def test_max_value_auto_is_the_depth_that_the_images_use(tmp_path, kind, largest, found, workers):
    """Whatever else lies beside them: 8-bit images, and files that are none."""
    values, data = sixteen_bits(kind, largest)
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "b.png").write_bytes(sixteen_bits(".png", largest // 2)[1])
    (tmp_path / "in" / "a" / "c.jpg").write_bytes(cv2.imencode(".jpg", NOISE)[1].tobytes())
    (tmp_path / "in" / "a" / "d.png").write_bytes(b"no image")
    (tmp_path / "in" / "a" / f"a{kind}").write_bytes(data)
    options = ["--image_root", tmp_path / "in", "--class_folders", "--save_dir", tmp_path / "d"]
    options += ["--part_num", 1, "--skip_bad", "--max_value", "auto", "--workers", workers]
    result = convert(*options)
    assert result.code == 0 and result.err.count("--max_value") == 1, result
    assert f"--max_value auto: {found}, as the largest value " in result.err, result
    assert read_manifest(tmp_path / "d")["max_value"] == found
    pixels = cv2.imdecode(np.frombuffer(records(tmp_path / "d")[0][0], np.uint8), -1)
    np.testing.assert_allclose(pixels, values / found * 255, atol=0.6)


def test_max_value_auto_without_16_bit_images(tmp_path):
    result = convert_one(tmp_path, "a.png", saved(rgba(), "PNG"), "--max_value", "auto")
    assert result.code == 0 and "auto: there are no 16-bit images" in result.err, result
    assert read_manifest(tmp_path / "d")["max_value"] is None


@pytest.mark.parametrize("value", ["0", "65536", "-1", "4095.0", "automatic", "", "٣"])
def test_a_max_value_that_is_none(tmp_path, value):
    result = convert_one(tmp_path, "a.png", b"", f"--max_value={value}")
    if value:
        assert_one_error(result, "--max_value: it should be a number from 1 to 65535, or auto")
    else:  # the default
        assert_one_error(result, "the file is empty", started=True)


# -- several pictures in a file -----------------------------------------------------------


def several(kind, number, **options):
    images = [Image.fromarray(np.roll(NOISE, 5 * n, 0)) for n in range(number)]
    return saved(images[0], kind, save_all=True, append_images=images[1:], **options)


KINDS = {"gif": "GIF", "webp": "WebP", "png": "PNG", "tiff": "TIFF", "avif": "AVIF"}
WIDE = [np.full((24, 32), 65535, np.uint16)] * 2


def test_the_pictures_after_the_first_are_warned_of(tmp_path):
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    files = {f"{number}.{ext}": several(KINDS[ext], number) for ext in KINDS for number in (1, 3)}
    files["deep.tiff"] = cv2.imencodemulti(".tiff", WIDE)[1].tobytes()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    options = ["--image_root", tmp_path / "in", "--class_folders", "--save_dir", tmp_path / "d"]
    for more, number in ([], 6), (["--skip_bad"], 6):
        result = convert(*options, *more, "--part_num", 1)
        warning = f": warning: {number} files with several pictures (an animation, or pages): only"
        assert result.code == 0 and warning in result.err, result
    assert read_manifest(tmp_path / "d")["num_records"] == len(files)
    for name in files:
        if "3" in name or name == "deep.tiff":
            (folder / name).unlink()
    result = convert(*options, "--part_num", 1)
    assert result.code == 0 and "several pictures" not in result.err, result


# -- found by trying ----------------------------------------------------------------------


def test_an_image_that_cannot_be_encoded_does_not_make_the_next_one_invalid(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    wide = np.zeros((4, 20_000, 3), np.uint8)  # more than WebP has
    for name, pixels in (("0", NOISE), ("1", wide), ("2", NOISE), ("3", NOISE)):
        cv2.imwrite(str(tmp_path / "in" / "a" / f"{name}.png"), pixels)
    result = convert(
        *("--image_root", tmp_path / "in", "--class_folders", "--save_dir", tmp_path / "d"),
        *("--part_num", 1, "--img_format", ".webp", "--skip_bad"),
    )
    assert result.code == 0 and len(records(tmp_path / "d")) == 3, result
    (skipped,) = read_manifest(tmp_path / "d")["skipped"]
    assert skipped["file"] == "a/1.png" and "cannot encode" in skipped["reason"]


def tiff(pixels, **tags):
    numbers = {"photometric": 262, "planes": 284}
    given = {numbers[name]: value for name, value in tags.items()}
    return saved(Image.fromarray(pixels), "TIFF", tiffinfo=given)


NOT_SCALED = {  # name of a file: (its bytes, why --max_value is refused)
    "white is 0.tiff": (lambda: tiff(TWELVE, photometric=0), "its smallest value is white"),
    "signed.tiff": (
        lambda: cv2.imencode(".tiff", TWELVE.astype(np.int16))[1].tobytes(),
        "its values are not unsigned integers",
    ),
    "float.tiff": (
        lambda: cv2.imencode(".tiff", TWELVE.astype(np.float32))[1].tobytes(),
        "it has 32 bits a value",
    ),
    "hdr.png": (
        lambda: cv2.imencode(".hdr", np.dstack([TWELVE / 4095] * 3).astype(np.float32))[
            1
        ].tobytes(),
        "its values are float32",
    ),
    "alpha.png": (
        lambda: cv2.imencode(".png", np.dstack([TWELVE] * 4))[1].tobytes(),
        "it is transparent",
    ),
}


@pytest.mark.parametrize("largest", ["4095", "auto"])
@pytest.mark.parametrize("name", NOT_SCALED)
def test_a_largest_value_is_not_given_where_it_would_be_wrong(tmp_path, name, largest):
    data, why = NOT_SCALED[name]
    (tmp_path / "in" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in" / "a" / "other.png"), TWELVE)  # so that auto finds a value
    (tmp_path / "in" / "a" / name).write_bytes(data())
    source = ["--image_root", tmp_path / "in", "--class_folders", "--save_dir", tmp_path / "d"]
    result = convert(*source, "--part_num", 1, "--max_value", largest)
    assert_one_error(result, name, "--max_value cannot be applied to it", why, started=True)


@pytest.mark.parametrize("name, magic", [("m.pgm", b"P5"), ("m.pnm", b"P2")])
def test_an_image_of_few_levels_is_scaled(tmp_path, name, magic):
    rows = np.tile(np.arange(16, dtype=np.uint8), (16, 1))
    body = rows.tobytes() if magic == b"P5" else " ".join(map(str, rows.flat)).encode() + b"\n"
    pixels = stored(tmp_path, name, magic + b"\n16 16\n15\n" + body)
    np.testing.assert_array_equal(pixels, rows * 17)


def test_of_two_orientations_the_first_counts(tmp_path):
    def segment(orientation):
        exif = Image.Exif()
        exif[0x112] = orientation
        data = exif.tobytes()
        return b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data

    jpeg = cv2.imencode(".jpg", NOISE)[1].tobytes()
    data = jpeg[:2] + segment(6) + segment(1) + jpeg[2:]
    assert stored(tmp_path, "x.jpg", data, "--img_format", ".jpg").shape == (32, 24, 3)


def test_a_transparent_bigtiff_is_laid_on_the_background(tmp_path):
    image = Image.fromarray(np.full((20, 24, 4), (200, 100, 50, 0), np.uint8))
    assert (stored(tmp_path, "x.tiff", saved(image, "TIFF", big_tiff=True)) == 255).all()


def test_images_of_one_size_may_be_very_wide(tmp_path):
    data = cv2.imencode(".png", np.zeros((4, 66_000), np.uint8))[1].tobytes()
    assert stored(tmp_path, "x.png", data).shape == (4, 66_000)
    assert read_manifest(tmp_path / "d")["width"] == 66_000
