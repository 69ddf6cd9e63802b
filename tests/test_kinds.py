"""The decoder contract: OneFlow decodes from a record what OpenCV reads from the file as 8-bit.

Every kind of file in kinds.py, as every format, in gray and in colour, through
the real engine: exactly for lossless formats and for what is stored unchanged,
within JPEG's error where an image is encoded as JPEG.
"""

import io
import itertools
import json
import os
import re
import sys

import cv2
import numpy as np
import pytest
from decode import Dataset, decode_with_oneflow
from helpers import assert_one_error, convert, read_manifest, records
from kinds import GRAY, KINDS, RGB, exif, opencv, pillow
from PIL import Image

FORMATS = (".png", ".jpg", ".tiff", ".bmp", ".webp", ".pnm")
CASES = [(ext, color) for ext in FORMATS for color in ("gray", "color")]

# The files whose own bytes must be in the record, by --img_format and --color: they are plain,
# so encoding them again would only cost time, and quality. No other file's bytes may be.
STORED_UNCHANGED = {
    (".png", "gray"): {"gray.png", "interlaced.png", "png-named.jpg"},
    (".png", "color"): {
        "rgb.png",
        "interlaced-rgb.png",
        "gamma.png",
        "srgb-and-text.png",
        "bad-profile.png",
    },
    (".jpg", "gray"): {"gray.jpg"},
    (".jpg", "color"): {
        "rgb.jpg",
        "quality-50.jpg",
        "progressive.jpg",
        "444.jpg",
        "422.jpg",
        "restarts.jpg",
        "rgb-not-ycc.jpg",
        "thumbnail.jpg",
        "after-the-end.jpg",
        "rotated-1.jpg",
        "jpeg-named.png",
    },
}


def num_stored_unchanged(result):
    """How many images the converter says that it stored unchanged."""
    return int(re.search(r"(\d+) images? stored unchanged", result.err).group(1))


def skipped(dataset):
    """The names of the files that --skip_bad skipped, as the dataset's manifest says."""
    return {item["file"] for item in read_manifest(dataset)["skipped"]}


def write(folder, files):
    """Write {name: bytes} as images, labelled 0, 1, 2 …; return the converter's options for them."""
    (folder / "images").mkdir()
    for name, data in files.items():
        (folder / "images" / name).write_bytes(data)
    labels = [json.dumps({name: label}) + "\n" for label, name in enumerate(files)]
    (folder / "labels.txt").write_text("".join(labels))
    return ["--image_root", folder / "images", "--label_dir", folder / "labels.txt"]


def opencv_reads(data, color):
    """What OpenCV reads from a file's bytes, as (height, width, 1 or 3) in RGB."""
    if color == "gray":
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)[:, :, None]
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def expected_pixels(name, data, color):
    """As opencv_reads, but on white where the image is transparent; and how much rounding may change."""
    image = Image.open(io.BytesIO(data))
    if name.endswith(".bmp") or not image.has_transparency_data:
        return opencv_reads(data, color), int(name.endswith(".webp") and color == "gray")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    pixels = np.asarray(image.convert("L" if color == "gray" else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1), 1


@pytest.fixture(scope="session")
def converted_kinds(tmp_path_factory):
    """All kinds in all formats: {(format, color): (dataset, Result)}."""
    folder = tmp_path_factory.mktemp("kinds")
    options = write(folder, KINDS) + ["--part_num", 3]
    datasets = {}
    for ext, color in CASES:
        dataset = folder / f"{color}{ext}"
        result = convert(*options, "--save_dir", dataset, "--img_format", ext, "--color", color)
        assert result.code == 0, result
        datasets[ext, color] = dataset, result
    return datasets


@pytest.fixture(scope="session")
def decoded_kinds(converted_kinds):
    """What OneFlow reads from them, as {(format, color) or "fused": (images, labels)}."""
    datasets = {}
    for (ext, color), (dataset, _) in converted_kinds.items():
        shapes = [opencv_reads(data, color).shape[:2] for data in KINDS.values()]
        datasets[ext, color] = Dataset(dataset, shapes, 1 if color == "gray" else 3, part_num=3)
    datasets["fused"] = datasets[".jpg", "color"]._replace(decoder="fused")
    return decode_with_oneflow(datasets)


JPEGS = [name for name in sorted(STORED_UNCHANGED[".jpg", "color"]) if name != "after-the-end.jpg"]


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_is_not_measured_is_checked_as_well(name):
    """Decoded at an eighth of its size, it shows all damage that decoding it in full shows."""
    from ofrecord.headers import BadImage, read_header
    from ofrecord.images import decode

    def verdict(data, quick):
        try:
            header = read_header(data)
            return decode(data, header, quick=quick) is not None if header.size else None
        except BadImage as error:
            return str(error)

    rng, verdicts = np.random.default_rng(0), set()
    for _ in range(100):
        damaged, position = bytearray(KINDS[name]), int(rng.integers(len(KINDS[name])))
        if rng.random() < 0.5:
            damaged[position] ^= 1 << int(rng.integers(8))
        else:
            damaged[position : position + 100] = bytes(len(damaged[position : position + 100]))
        verdicts.add(verdict(bytes(damaged), True))
        assert verdict(bytes(damaged), True) == verdict(bytes(damaged), False), position
    assert True in verdicts and len(verdicts) > 2, verdicts


@pytest.mark.parametrize("ext, color", CASES)
def test_what_is_stored_unchanged(converted_kinds, ext, color):
    dataset, result = converted_kinds[ext, color]
    stored = [image for image, _ in records(dataset)]
    unchanged = {
        name for (name, data), image in zip(KINDS.items(), stored, strict=True) if image == data
    }
    if ext in (".png", ".jpg"):
        assert unchanged == STORED_UNCHANGED[ext, color]
        assert num_stored_unchanged(result) == len(unchanged)
    else:  # encoding a plain file again may give the same bytes
        assert num_stored_unchanged(result) == 0


@pytest.mark.parametrize("ext, color", CASES)
def test_oneflow_decodes_what_opencv_reads(decoded_kinds, ext, color):
    images, labels = decoded_kinds[ext, color]
    assert labels == list(range(len(KINDS)))
    wrong = {}
    for (name, data), image in zip(KINDS.items(), images, strict=True):
        expected, rounding = expected_pixels(name, data, color)
        error = np.abs(image.astype(int) - expected)
        if ext == ".jpg" and name not in STORED_UNCHANGED[ext, color]:
            # JPEG 95 with halved colour resolution, on a picture with strong colours; dithered and
            # palette pictures, all edges, are what it does worst.
            edges = any(word in name for word in ("palette", "1-bit", "2-bit"))
            if error.mean() > (25 if edges else 4):
                wrong[name] = error.mean()
        elif error.max() > rounding:
            wrong[name] = error.max()
    assert not wrong


def test_the_fused_decoder_too_reads_every_colour_jpeg(converted_kinds, decoded_kinds):
    """OneFlow's faster JPEG decoder ignores EXIF and dies of CMYK: neither is in a dataset."""
    dataset, _ = converted_kinds[".jpg", "color"]
    images, labels = decoded_kinds["fused"]
    assert labels == list(range(len(KINDS)))
    for name, (stored, _), image in zip(KINDS, records(dataset), images, strict=True):
        np.testing.assert_array_equal(image, opencv_reads(stored, "color"), err_msg=name)


# -- files that are truncated or damaged: decoders accept them silently, the converter does not ---


@pytest.mark.parametrize("keep", [0.5, 0.9, -3], ids=["half", "nine tenths", "all but 3 bytes"])
def test_a_truncated_file_is_invalid_whatever_its_kind(tmp_path, keep):
    files = {
        name: data[: int(len(data) * keep) if keep > 0 else keep] for name, data in KINDS.items()
    }
    options = write(tmp_path, {**files, "whole.png": KINDS["gray.png"]})
    result = convert(*options, "--save_dir", tmp_path / "d", "--part_num", 1, "--skip_bad")
    assert result.code == 0, result
    # Of these, only what follows the image that OpenCV reads is cut off.
    accepted = {0.5: set(), 0.9: {"two-pages.tiff"}, -3: {"two-pages.tiff", "after-the-end.jpg"}}
    assert set(KINDS) - skipped(tmp_path / "d") == accepted[keep]
    assert "whole.png" not in skipped(tmp_path / "d")


# Of damage in a text chunk, as the last of these has, libpng only warns.
@pytest.mark.parametrize(
    "name",
    ["rgb.png", "gray.png", "interlaced.png", "palette.png", "rgb16.png", "srgb-and-text.png"],
)
def test_no_changed_bit_of_a_png_goes_unnoticed(tmp_path, name):
    rng = np.random.default_rng(0)
    files = {"whole.png": KINDS[name]}
    for position in rng.choice(len(KINDS[name]), 200, replace=False):
        damaged = bytearray(KINDS[name])
        damaged[position] ^= 1 << rng.integers(8)
        files[f"{position}.png"] = bytes(damaged)
    options = write(tmp_path, files)
    result = convert(*options, "--save_dir", tmp_path / "d", "--part_num", 1, "--skip_bad")
    assert result.code == 0, result
    assert skipped(tmp_path / "d") == set(files) - {"whole.png"}


def test_a_jpeg_that_libjpeg_only_warns_of_is_invalid(tmp_path):
    data = bytearray(opencv(cv2.resize(RGB, (400, 300)), ".jpg"))
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff\xd9" * 20  # an end marker in the middle of the image
    options = write(tmp_path, {"a.jpg": bytes(data)})
    result = convert(*options, "--save_dir", tmp_path / "d", "--part_num", 1)
    assert_one_error(result, "a.jpg", "invalid image")


def test_an_image_that_opencv_cannot_read_as_8_bit_is_named(tmp_path):
    options = write(tmp_path, {"float.tiff": opencv(GRAY.astype(np.float32), ".tiff")})
    result = convert(*options, "--save_dir", tmp_path / "d", "--part_num", 1)
    assert_one_error(result, "float.tiff", "cannot read it")


def raise_at_line(number):
    """A trace function that raises KeyboardInterrupt at the line of this number, from 0."""
    lines = itertools.count()

    def trace(frame, event, argument):
        if event == "line" and next(lines) == number:
            raise KeyboardInterrupt
        return trace

    return trace


def test_an_interrupt_at_any_line_of_decoding_leaves_stderr_where_it_was():
    """Else the one line about it is lost."""
    from ofrecord.headers import read_header
    from ofrecord.images import decode, decoder_messages

    data, stderr = KINDS["gray.png"], os.fstat(2)
    header = read_header(data)
    for number in itertools.count():
        try:
            with decoder_messages:
                sys.settrace(raise_at_line(number))
                try:
                    decode(data, header)
                finally:
                    sys.settrace(None)
            break  # it ended before that line
        except KeyboardInterrupt:
            assert os.path.samestat(os.fstat(2), stderr), number
    assert number > 10


# -- what Pillow reads ------------------------------------------------------------------


def heif(array, **options):
    """The bytes of a HEIC file, as an iPhone writes them; skips the test without pillow-heif."""
    heif = pytest.importorskip("pillow_heif", reason="optional: pip install pillow-heif")
    heif.register_heif_opener()
    return pillow(array, "HEIF", **options)


def convert_files(folder, files, *options):
    """Convert {name: bytes} to PNG in one part; return the Result and the stored pixels, BGR."""
    source = write(folder, files)
    result = convert(*source, "--save_dir", folder / "d", "--part_num", 1, *options)
    stored = records(folder / "d") if result.code == 0 else []
    return result, [cv2.imdecode(np.frombuffer(data, np.uint8), -1) for data, _ in stored]


def test_what_only_pillow_reads(tmp_path):
    files = {f"a.{kind.lower()}": pillow(RGB, kind) for kind in ("TGA", "PCX", "QOI", "SGI", "ICO")}
    result, stored = convert_files(tmp_path, files)
    assert result.code == 0 and "5 another format to PNG" in result.err, result
    for pixels in stored[:-1]:
        np.testing.assert_array_equal(pixels, RGB[:, :, ::-1])
    assert stored[-1].shape[2] == 3  # an icon, of another size


def test_what_pillow_would_read_wrong_or_run_is_invalid(tmp_path):
    files = {
        "deep.im": pillow(GRAY.astype(np.int32) * 300, "IM"),
        "program.eps": pillow(RGB, "EPS"),
        "noise.tga": bytes(range(200)),
        "cut.tga": pillow(RGB, "TGA")[:-100],
        "whole.png": KINDS["rgb.png"],
    }
    result, _ = convert_files(tmp_path, files, "--skip_bad")
    assert skipped(tmp_path / "d") == set(files) - {"whole.png"}
    for text in ("more than 8 bits", "PostScript", "OpenCV and Pillow cannot read it"):
        assert text in result.err, result
    assert " at 0x" not in result.err, result  # the same words every time


def test_heic_is_read_upright(tmp_path):
    # HEIC stores colours at half the size, like JPEG; so a picture of wide areas.
    picture = np.repeat(np.repeat(RGB[::12, ::12], 32, axis=0), 32, axis=1)
    files = {
        "a.heic": heif(picture, quality=100),
        "b.HEIC": heif(picture, quality=100, exif=exif(6)),
    }
    result, stored = convert_files(tmp_path, files)
    assert result.code == 0 and "2 HEIC to PNG" in result.err, result
    for pixels, expected in zip(stored, (picture, np.rot90(picture, -1)), strict=True):
        assert pixels.shape == expected.shape
        assert np.abs(pixels[:, :, ::-1].astype(int) - expected)[16::32, 16::32].max() < 12


@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_a_truncated_heic_is_invalid(tmp_path, keep):
    data = heif(RGB)
    result, _ = convert_files(tmp_path, {"a.heic": data[: int(len(data) * keep)]})
    assert_one_error(result, "a.heic: invalid image")


HEIC_START = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"


@pytest.mark.parametrize("options", [[], ["--skip_bad"]], ids=["", "skip_bad"])
def test_heic_without_pillow_heif(tmp_path, monkeypatch, options):
    """One line says how many there are and what to do; it does not matter what is in them."""
    from ofrecord import headers

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    headers._register_heif.cache_clear()
    files = {f"{number}.heic": HEIC_START for number in range(30)}
    result, _ = convert_files(tmp_path, {**files, "a.png": KINDS["rgb.png"]}, *options)
    line = "30 files in .*0.heic, 1.heic, 10.heic, ….: HEIC needs .*: pip install pillow-heif"
    assert len(re.findall(line, result.err)) == 1, result
    assert result.err.count("pillow-heif") == 1, result
    if options:
        assert result.code == 0 and "skipped 30 of 31 images" in result.err, result
    else:
        assert_one_error(result, "pip install pillow-heif")


def test_files_are_read_by_content_whatever_their_names(tmp_path):
    """In a label file any name will do."""
    jpeg, png = KINDS["rgb.jpg"], KINDS["rgb.png"]
    names = {"a.jfif": jpeg, "B.JPG": jpeg, "c": png, "d.txt": png, "e.gif": jpeg, "f.heic": png}
    result, stored = convert_files(tmp_path, names)
    assert result.code == 0 and len(stored) == 6, result
    for (name, data), pixels in zip(names.items(), stored, strict=True):
        np.testing.assert_array_equal(pixels[:, :, ::-1], opencv_reads(data, "color"), name)


def test_files_that_are_skipped_are_counted_by_format(tmp_path):
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(KINDS["rgb.jpg"])
    for number in range(12):
        for ending in [".mov", ".MOV", "", f".x{number:02d}"][: 2 if number > 4 else 4]:
            (folder / f"{number}{ending}").touch()
    for ending in range(20, 24):
        (folder / f"y.x{ending}").touch()
    options = ["--image_root", tmp_path / "in", "--class_folders", "--part_num", 1]
    result = convert(*options, "--save_dir", tmp_path / "d")
    line = "skipped 38 files without an image's extension in .*: 24 .mov, 5 without extension, 1 .x"
    assert result.code == 0 and re.search(line, result.err), result
    assert re.search("1 .x20, 1 .x21, 1 .x22, 1 others .such as a/0, ", result.err), result


def test_class_folders_take_every_image_extension(tmp_path):
    from ofrecord.labels import is_image

    files = {
        "a/1.jfif": KINDS["rgb.jpg"],
        "a/2.JPeG": KINDS["rgb.jpg"],
        "b/3.GIF": pillow(RGB, "GIF"),
        "b/4.AVIF": pillow(RGB, "AVIF"),
    }
    for name, data in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    options = ["--image_root", tmp_path / "in", "--class_folders", "--part_num", 1]
    result = convert(*options, "--save_dir", tmp_path / "d")
    assert result.code == 0 and "skipped" not in result.err, result
    assert [label for _, label in records(tmp_path / "d")] == [0, 0, 1, 1]
    assert all(map(is_image, ("x/IMG_0001.HEIC", "a.heif", "b.Heif"))) and not is_image("a.mov")
