"""Using a trained model: predictions for image files, and ONNX."""

import csv
import io
import json
import os
import re
import resource
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from damage import changed, flip, spec_with
from helpers import IMAGES, assert_one_error, call, convert, run_python, snapshot, train
from making import encoded
from photos import predicted_labels, predictions, write_photos
from PIL import Image

FILES = sorted(IMAGES.glob("*.png"))
FIVE = IMAGES / "00000000_5.png"


def predict(checkpoint, *arguments):
    return call("lenet.predict", "--checkpoint", checkpoint, *arguments)


def export(checkpoint, file):
    return call("lenet.export", "--checkpoint", checkpoint, file)


def right(result, files):
    """How many of the digits, whose labels are in their files' names, were recognized."""
    return sum(
        label == file.stem[-1] for label, file in zip(predicted_labels(result), files, strict=True)
    )


# -- predictions --------------------------------------------------------------------


# As a cluster sets them: predict and export are one process each, and do not wait for others.
LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29433"}


def test_the_digits_of_the_training(trained):
    """As a command of its own: a line for each file, in order, and nothing on stderr."""
    words = ["-m", "lenet.predict", "--checkpoint", trained, *FILES]
    result = run_python(*words, env=LAUNCHED, timeout=60)
    assert result.code == 0 and result.err == "", result
    assert [match["file"] for match in predictions(result)] == list(map(str, FILES))
    assert right(result, FILES) == len(FILES)
    assert all(float(match["percent"]) > 50 for match in predictions(result))


@pytest.mark.parametrize("fit", ["pad", "stretch", "crop"])
def test_a_picture_is_fitted_as_in_training(tmp_path, fit):
    """Transparent, turned, 16-bit and of all shapes: the network sees the pixels that it was trained on."""
    from lenet.predict import read_image
    from lenet.spec import ModelSpec
    from lenet_train import ImageReader
    from ofrecord.dataset.open_dataset import open_dataset

    rng = np.random.default_rng(0)

    def noise(*shape, values=256, dtype=np.uint8):
        return cv2.resize(rng.integers(0, values, shape).astype(dtype), None, fx=9, fy=9)

    (tmp_path / "in").mkdir()
    images = {
        "wide.png": noise(4, 9, 3),
        "alpha.png": noise(5, 8, 4),
        "gray.png": noise(7, 4),
        "deep.png": noise(4, 9, 3, values=65536, dtype=np.uint16),
        "small.bmp": noise(2, 3, 3)[:10, :15],
    }
    for name, image in images.items():
        assert cv2.imwrite(str(tmp_path / "in" / name), image)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise
    Image.fromarray(noise(4, 9, 3)).save(tmp_path / "in" / "turned.jpg", exif=exif)
    names = [*images, "turned.jpg"]
    labels = [json.dumps({name: n % 2}) for n, name in enumerate(names)]
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    options = ["--image_root", tmp_path / "in", "--label_dir", tmp_path / "labels.txt"]
    options += ["--size", "24x30", "--fit", fit, "--background", "#204060"]
    assert convert(*options, "--part_num", 1, "--save_dir", tmp_path / "d").code == 0
    dataset = open_dataset(str(tmp_path / "d"))
    for size in (None, 20, 40):  # the network's own size: the dataset's, a smaller, a larger one
        spec = ModelSpec.from_dataset(dataset, size)
        trained = ImageReader(dataset, spec, len(names)).next_pixels()[0].numpy().astype(int)
        predicted = [read_image(str(tmp_path / "in" / name), spec, False) for name in names]
        for name, one, other in zip(names, trained, predicted, strict=True):
            assert abs(one - other).max() <= 1, (name, size)


def test_folders_stand_for_the_images_in_them(trained, tmp_path):
    """And below, in natural order; other files and hidden ones are skipped, the first with a word."""
    names = ["10.png", "2.png", "b/2.PNG", "b/1.png", ".hidden/3.png", "b/notes.txt"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FIVE, tmp_path / "in" / name)
    result = predict(trained, FILES[1], tmp_path / "in")
    assert result.code == 0, result
    expected = ["2.png", "10.png", "b/1.png", "b/2.PNG"]
    expected = [str(FILES[1]), *(str(tmp_path / "in" / name) for name in expected)]
    assert [match["file"] for match in predictions(result)] == expected
    warning = f"skipped 1 file without an image's extension in {tmp_path / 'in'} (1 .txt)"
    assert warning in result.err and result.err.count("\n") == 1, result


def test_a_table_of_predictions(trained, tmp_path):
    """What --csv prints is read back by the csv module, whatever a file's name is."""
    odd = tmp_path / 'five, "the\nfifth".png'
    shutil.copy(FIVE, odd)
    (tmp_path / "bad.png").write_bytes(b"")
    result = predict(trained, "--csv", "--top", 2, odd, tmp_path / "bad.png", *FILES[1:])
    assert result.code == 2 and "bad.png: the file is empty" in result.err, result
    header, *rows = csv.reader(io.StringIO(result.out))
    assert header == ["file", "label", "probability", "label_2", "probability_2"]
    assert [row[0] for row in rows] == [str(odd), *map(str, FILES[1:])]
    assert [row[1] for row in rows] == [file.stem[-1] for file in FILES]
    text = predict(trained, "--top", 2, FIVE).out
    shown = re.search(r"png: (\d) \(([\d.]+)%\), (\d) \(([\d.]+)%\)$", text.strip()).groups()
    assert [100 * float(n) for n in rows[0][2::2]] == pytest.approx(
        [float(n) for n in shown[1::2]], abs=0.0051
    )
    assert rows[0][1::2] == [*shown[::2]]
    result = predict(trained, "--csv", "--top", 99, FIVE)
    assert len(result.out.splitlines()[0].split(",")) == 21  # no more columns than classes
    assert predict(trained, "--csv", FIVE).out.splitlines()[0] == "file,label,probability"


def test_bad_files_do_not_prevent_the_others(trained, tmp_path):
    """A file that is named twice has two lines."""
    noise = np.clip(np.random.default_rng(0).normal(220, 4, (300, 400)), 0, 255)
    bad = {  # what is in a file, and what is said of it
        "empty.png": (b"", "the file is empty"),
        "cut.png": (FIVE.read_bytes()[:150], ""),
        "text.jpg": (b"no picture", "it is none of PNG"),
        "flat.png": (encoded(".png", np.full((300, 400), 255, np.uint8)), "no digit found"),
        "noise.png": (encoded(".png", noise.astype(np.uint8)), "no digit found"),
        "wide.png": (encoded(".png", np.zeros((1, 20000), np.uint8)), "no digit found"),
    }
    for name, (content, _) in bad.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.png")
    texts = {"pipe.png": "it is not a regular file", "nowhere.png": "No such file"}
    texts |= {name: text for name, (_, text) in bad.items()}
    first, *others = [tmp_path / name for name in texts]
    result = predict(trained, first, FIVE, *others, FIVE)
    assert result.code == 2 and predicted_labels(result) == ["5", "5"], result
    *lines, last = result.err.splitlines()
    for line, (name, text) in zip(lines, texts.items(), strict=True):
        assert f": error: {tmp_path / name}: {text}" in line, line
    assert last.endswith("8 of 10 files could not be read"), last


# -- photos and drawings --------------------------------------------------------------


def test_photos_of_dark_digits_on_paper(trained, tmp_path):
    """A LeNet that has seen each digit once, centred, recognizes most photos, and nearly none unprepared."""
    photos = write_photos(FILES[:20], tmp_path)
    result = predict(trained, *photos)
    assert result.code == 0, result
    assert right(result, photos) >= 17, right(result, photos)
    assert result.err.count("prepared as an image of one digit") == len(photos)
    unprepared = predict(trained, "--digit", "no", *photos)
    assert unprepared.err == "" and right(unprepared, photos) < right(result, photos) - 8


# -- what is refused --------------------------------------------------------------------

UNUSABLE = {  # what is done to a checkpoint, and what prediction and export say of it
    "missing": (Path.unlink, "cannot open the checkpoint {}: No such file"),
    "a bit": (lambda p: flip(p, p.stat().st_size // 2), "{} is damaged: "),
    "more classes": (spec_with(num_classes=12), "dense2.bias does not match the model"),
    "a large fit": (spec_with(fit=["pad", 10000, 28]), "{} is damaged: spec.fit"),
    "an edited network": (changed("dense2.weight", lambda a: a[:, :64]), "dense2.weight does not"),
}


@pytest.mark.parametrize("change, text", UNUSABLE.values(), ids=UNUSABLE)
def test_checkpoints_that_cannot_be_used(trained, tmp_path, change, text):
    other = Path(shutil.copy(trained, tmp_path / "other.npz"))
    change(other)
    for result in (predict(other, FIVE), export(other, tmp_path / "x.onnx")):
        assert_one_error(result, text.format(other))
    assert not (tmp_path / "x.onnx").exists()


def test_wrong_arguments(trained, tmp_path):
    """Nothing is predicted, not even for the files that are there; nothing is replaced."""
    copy = shutil.copy(trained, tmp_path / "best.npz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.onnx").mkdir()
    before = snapshot(tmp_path)
    for result, text in (
        (call("lenet.predict", FIVE), "--checkpoint"),
        (predict(trained), "required: FILE"),
        (predict(trained, "--top", 0, FIVE), "--top must be at least 1"),
        (predict(trained, tmp_path / "empty", FIVE), f"no images in {tmp_path / 'empty'}"),
        (call("lenet.device", "x"), "unrecognized arguments: x"),
        (export(trained, tmp_path / "no" / "x.onnx"), "cannot write"),
        (export(trained, tmp_path / "x.onnx"), "x.onnx: Is a directory"),
        (export(trained, copy), "must end in .onnx"),
    ):
        assert result.out == ""
        assert_one_error(result, text)
    assert snapshot(tmp_path) == before


def test_class_names_of_a_stranger_are_printed_in_one_line(trained, tmp_path):
    """A name may hold what would clear the terminal or look like another line; joiners are shown."""
    strange = shutil.copy(trained, tmp_path / "strange.npz")
    spec_with(class_names=[f"{n}\n\x1b[2J\u202f\u200cx.png: {n} (99%)" for n in range(10)])(strange)
    result = predict(strange, FIVE)
    assert result.code == 0 and r"5\n\x1b[2J" + "\u202f\u200cx.png" in result.out.rstrip("\n"), (
        result
    )
    assert result.out.count("\n") == 1 and "\x1b" not in result.out, result


# -- ONNX -----------------------------------------------------------------------------


def assert_same_outputs(checkpoint, file, images):
    """An ONNX model says what lenet.predict says of images, for any number of them."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    _, *table = csv.reader(io.StringIO(predict(checkpoint, "--csv", "--top", 99, *images).out))
    of_classes = [sorted(zip(row[1::2], map(float, row[2::2]), strict=True)) for row in table]
    expected = np.array([[probability for _, probability in row] for row in of_classes])
    pixels = [np.atleast_3d(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)) for path in images]
    pixels = np.float32(pixels)[..., ::-1].transpose(0, 3, 1, 2)  # OpenCV's order is BGR
    for n in (1, 7, len(images)):
        outputs = session.run(["logits", "probabilities"], {"images": pixels[:n].copy()})
        logits, probabilities = (output.astype(np.float64) for output in outputs)
        np.testing.assert_allclose(probabilities, expected[:n], atol=2e-6)
        exponents = np.exp(logits - logits.max(1, keepdims=True))
        softmax = exponents / exponents.sum(1, keepdims=True)
        np.testing.assert_allclose(probabilities, softmax, atol=1e-5)


def test_an_onnx_model(trained, tmp_path):
    file = tmp_path / "lenet.onnx"
    words = ["-m", "lenet.export", "--checkpoint", trained, file]
    result = run_python(*words, env=LAUNCHED, timeout=60)
    assert result.code == 0 and "(n, 1, 28, 28)" in result.out and result.err == "", result
    assert_same_outputs(trained, file, FILES)


def test_class_names_and_colour(tmp_path):
    """Class folders of colour JPEG, named in Chinese: the names come back, and other sizes are resized."""
    rng = np.random.default_rng(0)
    names = ["红", "绿", "蓝"]
    for channel, name in enumerate(reversed(names)):  # OpenCV's order
        (tmp_path / "in" / name).mkdir(parents=True)
        for index in range(6):
            image = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
            image[:, :, channel] += 120
            (tmp_path / "in" / name / f"{index}.jpg").write_bytes(encoded(".jpg", image))
    dataset, best = tmp_path / "dataset", tmp_path / "run" / "best.npz"
    options = ["--image_root", tmp_path / "in", "--class_folders", "--img_format", ".jpg"]
    assert convert(*options, "--save_dir", dataset, "--part_num", 2).code == 0
    result = train(dataset, "--batch_size", 6, "--steps", 40, "--run_dir", tmp_path / "run")
    assert result.code == 0 and "18/18" in result.err, result

    red = np.zeros((40, 30, 3), np.uint8)
    red[:, :, 2] = 160
    assert cv2.imwrite(str(tmp_path / "red.jpg"), red)
    result = predict(best, tmp_path / "red.jpg")
    assert result.code == 0 and predicted_labels(result) == ["红"], result
    result = predict(best, "--digit", "yes", tmp_path / "red.jpg")
    assert_one_error(result, "--digit yes is for models of gray images")

    assert export(best, tmp_path / "x.onnx").code == 0
    onnx = pytest.importorskip("onnx")
    metadata = onnx.load(tmp_path / "x.onnx").metadata_props
    assert json.loads(metadata[0].value) == sorted(names)
    assert_same_outputs(best, tmp_path / "x.onnx", sorted((tmp_path / "in").rglob("*.jpg")))


def test_a_model_that_no_onnx_file_can_hold(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("lenet.export.MOST", 10**6)
    text = f"{trained}: its weights take 6,653,480 bytes, and an ONNX file holds 2 GB at most"
    assert_one_error(export(trained, tmp_path / "x.onnx"), text)


def test_onnx_is_optional(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # makes its import fail
    assert_one_error(export(trained, tmp_path / "x.onnx"), "pip install onnx")


def test_an_export_that_cannot_be_written(trained, tmp_path):
    """One line that names the file, and nothing is lost or left."""
    (tmp_path / "x.onnx").write_text("old")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        result = export(trained, tmp_path / "x.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert_one_error(result, f"cannot write {tmp_path / 'x.onnx'}: File too large")
    assert snapshot(tmp_path) == {"x.onnx": b"old"}
