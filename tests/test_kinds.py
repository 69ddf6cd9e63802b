"""The decoder contract: OneFlow decodes from a record what OpenCV reads from the file as 8-bit.

Every kind of file in kinds.py, as every format, in gray and in colour, through
the real engine: exactly for lossless formats and for what is passed through,
within JPEG's error where JPEG is encoded anew.
"""

import json

import cv2
import numpy as np
import pytest

import kinds
from conftest import assert_one_error, decode_with_oneflow, run_script
from ofrecord.record import split_records, read_record

KINDS = kinds.make()

# The files whose own bytes must be in the record, by format and channels: they
# are plain, so encoding them anew would only cost time (and quality).
PASSED = {
    (".png", 1): {"gray.png", "interlaced.png", "png-named.jpg"},
    (".png", 3): {"rgb.png", "interlaced-rgb.png", "gamma.png", "srgb-and-text.png", "bad-profile.png"},
    (".jpg", 1): {"gray.jpg"},
    (".jpg", 3): {"rgb.jpg", "quality-50.jpg", "progressive.jpg", "444.jpg", "422.jpg", "restarts.jpg",
                  "rgb-not-ycc.jpg", "thumbnail.jpg", "after-the-end.jpg", "rotated-1.jpg", "jpeg-named.png"},
    (".tiff", 1): {"gray.tiff"},
    (".tiff", 3): {"rgb.tiff", "lzw.tiff"},
    (".bmp", 1): {"gray.bmp"},
    (".bmp", 3): {"rgb.bmp"},
    (".webp", 1): set(),  # WebP is always colour
    (".webp", 3): {"lossless.webp", "lossy.webp"},
    (".pnm", 1): {"gray.pgm"},
    (".pnm", 3): {"rgb.ppm"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    (root / "images").mkdir()
    for name, data in KINDS.items():
        (root / "images" / name).write_bytes(data)
    (root / "labels.txt").write_text("".join(json.dumps({name: index}) + "\n" for index, name in enumerate(KINDS)))
    return root


def opencv_reads(path, flag):
    pixels = cv2.imread(str(path), flag)
    if pixels is None:  # imread of OpenCV 4.11 trips over its own check where a TIFF's rotation swaps the sides
        assert path.name == "rotated.tiff"
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flag)
    return pixels


@pytest.mark.parametrize("ext, channels", list(PASSED), ids=lambda value: str(value).replace("3", "colour"))
def test_oneflow_decodes_what_opencv_reads(folder, tmp_path, ext, channels):
    result = run_script("img2ofrecord.py", "--image_root", folder / "images", "--label_dir", folder / "labels.txt",
                        "--save_dir", tmp_path / "d", "--img_format", ext, "--part_num", 3,
                        "--color", "gray" if channels == 1 else "color")
    assert result.code == 0, result
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    expected = [opencv_reads(folder / "images" / name, flag) for name in KINDS]

    stored = [read_record(record)[0] for part in range(3)
              for record in split_records((tmp_path / "d" / "part-{}".format(part)).read_bytes())]
    passed = {name for name, data in zip(KINDS, stored) if data == KINDS[name]}
    assert passed == PASSED[ext, channels]
    assert "{} images passed through untouched".format(len(passed)) in result.err

    decoded, labels = decode_with_oneflow(tmp_path / "d", [image.shape[:2] for image in expected], channels, part_num=3)
    assert labels == list(range(len(KINDS)))
    wrong = {}
    for name, image, wanted in zip(KINDS, decoded, expected):
        wanted = wanted[:, :, None] if channels == 1 else wanted[:, :, ::-1]
        error = np.abs(image.astype(int) - wanted)
        if ext == ".jpg" and name not in passed:
            # JPEG 95 with halved colour resolution, on a picture with strong colours; dithered and
            # palette pictures, all edges, are what it does worst.
            if error.mean() > (25 if any(word in name for word in ("palette", "1-bit", "2-bit")) else 4):
                wrong[name] = error.mean()
        elif error.any():
            wrong[name] = error.max()
    assert not wrong


def test_the_fused_decoder_too_reads_every_colour_jpeg(folder, tmp_path):
    """OneFlow's faster JPEG path, which ignores EXIF and dies of CMYK, finds nothing to trip over."""
    import subprocess
    import sys

    from conftest import PROJECT

    result = run_script("img2ofrecord.py", "--image_root", folder / "images", "--label_dir", folder / "labels.txt",
                        "--save_dir", tmp_path / "d", "--img_format", ".jpg", "--part_num", 1, "--color", "color")
    assert result.code == 0, result
    code = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        import cv2, numpy as np
        from lenet.engine import flow
        from ofrecord.record import split_records, read_record
        reader = flow.nn.OFRecordReader(sys.argv[2], batch_size=1, data_part_num=1)
        decode = flow.nn.OFRecordImageDecoder("images", color_space="RGB")
        for record in split_records(open(sys.argv[2] + "/part-0", "rb").read()):
            data = read_record(record)[0]
            wanted = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
            image = flow.nn.image.Resize(target_size=(wanted.shape[1], wanted.shape[0]), channels=3)(decode(reader()))
            assert (image[1].numpy() == 1).all() and (image[0].numpy()[0] == wanted).all()
        print("all equal")
        """
    process = subprocess.run([sys.executable, "-c", code, str(PROJECT), str(tmp_path / "d")], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, encoding="utf-8")
    assert process.stdout == "all equal\n", process.stderr[-2000:]


# -- cut-off and damaged files: decoders accept them in silence, the converter does not ------

@pytest.mark.parametrize("keep", [0.5, 0.9, -3], ids=["half", "nine tenths", "all but 3 bytes"])
def test_a_file_that_is_cut_off_is_bad_whatever_its_kind(folder, tmp_path, keep):
    (tmp_path / "images").mkdir()
    for name, data in KINDS.items():
        (tmp_path / "images" / name).write_bytes(data[:int(len(data) * keep) if keep > 0 else keep])
    (tmp_path / "images" / "whole.png").write_bytes(KINDS["gray.png"])
    labels = (folder / "labels.txt").read_text() + '{"whole.png": 0}\n'
    (tmp_path / "labels.txt").write_text(labels)
    result = run_script("img2ofrecord.py", "--image_root", tmp_path / "images", "--label_dir", tmp_path / "labels.txt",
                        "--save_dir", tmp_path / "d", "--skip_bad", "--part_num", 1)
    assert result.code == 0, result
    bad = {item["file"] for item in json.loads((tmp_path / "d/dataset.json").read_text())["left_out"]}
    # Of these, only what follows the image that OpenCV reads is cut off.
    assert set(KINDS) - bad == {"two-pages.tiff"} | ({"after-the-end.jpg"} if keep == -3 else set())


@pytest.mark.parametrize("name", ["rgb.png", "gray.png", "interlaced.png", "palette.png", "rgb16.png"])
def test_no_changed_byte_of_a_png_goes_unnoticed(name):
    from ofrecord.images import BadImage, Target, encode

    data, target = KINDS[name], Target(".png", 3, False, None, 95)
    rng = np.random.default_rng(0)
    for position in rng.choice(len(data), 200):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        with pytest.raises(BadImage):
            encode(bytes(damaged), target)


def test_a_jpeg_that_libjpeg_only_warns_of_is_bad(tmp_path):
    data = bytearray(kinds.opencv(cv2.resize(kinds.RGB, (400, 300)), ".jpg"))
    middle = len(data) // 2
    data[middle:middle + 40] = b"\xff\xd9" * 20  # an end marker in the middle of the image
    (tmp_path / "a.jpg").write_bytes(bytes(data))
    (tmp_path / "labels.txt").write_text('{"a.jpg": 0}\n')
    result = run_script("img2ofrecord.py", "--image_root", tmp_path, "--label_dir", tmp_path / "labels.txt",
                        "--save_dir", tmp_path / "d", "--part_num", 1)
    assert_one_error(result, "a.jpg", "is not a good image")


def test_an_image_that_opencv_cannot_read_as_8_bit_is_named(tmp_path):
    (tmp_path / "float.tiff").write_bytes(kinds.opencv(kinds.GRAY.astype(np.float32), ".tiff"))
    (tmp_path / "labels.txt").write_text('{"float.tiff": 0}\n')
    result = run_script("img2ofrecord.py", "--image_root", tmp_path, "--label_dir", tmp_path / "labels.txt",
                        "--save_dir", tmp_path / "d", "--part_num", 1)
    assert_one_error(result, "float.tiff", "cannot read it")
