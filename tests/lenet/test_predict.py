"""Using a trained model: predictions for image files, and ONNX."""

import csv
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from damage import cut, flip
from helpers import IMAGES, LABELS, assert_one_error, call, convert, run_python, snapshot, train
from photos import predicted_labels, predictions, write_photos
from PIL import Image
from runs import edit, edit_about, rows

FILES = sorted(IMAGES.glob("*.png"))
FIVE = IMAGES / "00000000_5.png"
slow = pytest.mark.slow
TAKEN = "prepared as an image of one digit"


def predict(checkpoint, *arguments):
    return call("lenet.predict", "--checkpoint", checkpoint, *arguments)


def export(checkpoint, file):
    return call("lenet.export", "--checkpoint", checkpoint, file)


def right(result, files):
    """How many of the digits, whose labels are in their files' names, were recognized."""
    return sum(
        label == file.stem[-1] for label, file in zip(predicted_labels(result), files, strict=True)
    )


# -- the only inner names of this module --------------------------------------------


def logits_of(checkpoint, pixels):
    """OneFlow's logits of a checkpoint's model for float32 pixels (n, channels, height, width) from 0 to 255."""
    from lenet.checkpoint import open_checkpoint
    from lenet.engine import flow
    from lenet.predict import load_model

    model = load_model(open_checkpoint(str(checkpoint)))
    mean, std = (
        np.float32(values).reshape(1, -1, 1, 1) for values in (model.spec.mean, model.spec.scale)
    )
    return model(flow.tensor((pixels - mean) / std)).numpy()


def pixels_in_training_and_prediction(dataset, size):
    """The 50 digits as uint8 pixels at ``size``: as the trainer reads them from a dataset, and as lenet.predict from files."""
    import lenet_train
    from lenet.predict import read_image
    from ofrecord.dataset.open_dataset import open_dataset

    dataset = open_dataset(str(dataset))
    spec = lenet_train.ModelSpec.from_dataset(dataset, size)
    trained, _ = lenet_train.ImageReader(dataset, spec, len(FILES)).next_pixels()
    names = [next(iter(json.loads(line))) for line in LABELS.read_text().splitlines()]
    return trained.numpy(), np.stack(
        [read_image(str(IMAGES / name), spec, False) for name in names]
    )


# -- predictions --------------------------------------------------------------------


def test_the_digits_of_the_training(trained):
    """As a command of its own: a line for each file, in order, and nothing on stderr."""
    result = run_python("-m", "lenet.predict", "--checkpoint", trained, *FILES)
    assert result.code == 0 and result.err == "", result
    assert [match["file"] for match in predictions(result)] == list(map(str, FILES))
    assert right(result, FILES) == len(FILES)
    assert all(float(match["percent"]) > 50 for match in predictions(result))


@pytest.mark.parametrize("size", [14, 40])
def test_other_sizes_are_resized_as_in_training(converted, size):
    trained, predicted = pixels_in_training_and_prediction(converted, size)
    assert (trained == predicted).all()


@pytest.mark.parametrize(
    "fit", [*(pytest.param(each, marks=slow) for each in ("stretch", "crop")), "pad"]
)
def test_a_picture_is_fitted_as_in_training(tmp_path, fit):
    """Transparent, turned, 16-bit and of all shapes: the network sees the pixels that it was trained on."""
    import lenet_train
    from lenet.checkpoint import open_checkpoint
    from lenet.predict import read_image
    from ofrecord.dataset.open_dataset import open_dataset

    rng = np.random.default_rng(0)

    def noise(*shape, values=256, dtype=np.uint8):
        return cv2.resize(rng.integers(0, values, shape).astype(dtype), None, fx=9, fy=9)

    (tmp_path / "in").mkdir()
    images = {
        "wide.png": noise(4, 9, 3),
        "tall.jpg": noise(9, 3, 3),
        "alpha.png": noise(5, 8, 4),
        "gray.png": noise(7, 4),
        "deep.png": noise(4, 9, 3, values=65536, dtype=np.uint16),
        "small.bmp": noise(2, 3, 3)[:10, :15],
    }
    for name, image in images.items():
        assert cv2.imwrite(str(tmp_path / "in" / name), image)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(noise(4, 9, 3)).save(tmp_path / "in" / "turned.jpg", exif=exif)
    names = [*images, "turned.jpg"]
    labels = [json.dumps({name: n % 2}) for n, name in enumerate(names)]
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    options = ["--image_root", tmp_path / "in", "--label_dir", tmp_path / "labels.txt"]
    options += ["--size", "24x30", "--fit", fit, "--background", "#204060"]
    assert convert(*options, "--part_num", 1, "--save_dir", tmp_path / "d").code == 0
    for size in (None, 20):  # the network's own size: the dataset's, a smaller one
        run = tmp_path / f"run{size}"
        more = ["--steps", 1, "--batch_size", len(names), "--image_size", size or "null"]
        assert train(tmp_path / "d", "--run_dir", run, *more).code == 0
        spec = open_checkpoint(str(run / "last.npz")).info.spec
        reader = lenet_train.ImageReader(open_dataset(str(tmp_path / "d")), spec, len(names))
        trained = reader.next_pixels()[0].numpy().astype(int)
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
    text = predict(trained, "--top", 2, *FILES).out.splitlines()
    for row, line, file in zip(rows, text, FILES, strict=True):
        shown = re.search(r"png: (\d) \(([\d.]+)%\), (\d) \(([\d.]+)%\)$", line).groups()
        assert row[1::2] == list(shown[::2]) and row[1] == file.stem[-1]
        for probability, percent in zip(row[2::2], shown[1::2], strict=True):
            assert 100 * float(probability) == pytest.approx(float(percent), abs=0.0051)
    result = predict(trained, "--csv", "--top", 99, FIVE)
    assert len(result.out.splitlines()[0].split(",")) == 21  # no more columns than classes
    assert predict(trained, "--csv", FIVE).out.splitlines()[0] == "file,label,probability"


def test_bad_files_do_not_prevent_the_others(trained, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(FIVE.read_bytes()[:150])
    (tmp_path / "text.jpg").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    bad = ["empty.png", "nowhere.png", "pipe.png", "cut.png", "text.jpg"]
    result = predict(trained, tmp_path / bad[0], FIVE, *(tmp_path / name for name in bad[1:]))
    assert result.code == 2 and predicted_labels(result) == ["5"], result
    lines = result.err.splitlines()
    for name, text in zip(
        bad, ("empty", "No such file", "not a regular file", "", "it is none of PNG"), strict=True
    ):
        assert any(
            str(tmp_path / name) in line and text in line and ": error: " in line for line in lines
        ), result
    assert lines[-1].endswith("5 of 6 files could not be read") and "Traceback" not in result.err


# -- photos and drawings --------------------------------------------------------------


def test_photos_of_dark_digits_on_paper(trained, tmp_path):
    """A LeNet that has seen each digit once, centred, recognizes most photos, and nearly none unprepared."""
    photos = write_photos(FILES[:20], tmp_path)
    result = predict(trained, *photos)
    assert result.code == 0, result
    assert right(result, photos) >= 17, right(result, photos)
    assert result.err.count(TAKEN) == len(photos)
    unprepared = predict(trained, "--digit", "no", *photos)
    assert unprepared.err == "" and right(unprepared, photos) < right(result, photos) - 8


def test_a_drawing_that_exif_turns(trained, tmp_path):
    """Colours and alpha are turned together."""
    digit = cv2.resize(cv2.imread(str(FIVE), cv2.IMREAD_GRAYSCALE), (200, 240))
    ink = np.dstack([np.zeros((240, 200, 3), np.uint8), digit])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(ink).copy(), "RGBA").save(tmp_path / "turned.png", exif=exif)
    assert predicted_labels(predict(trained, tmp_path / "turned.png")) == ["5"]


# -- checkpoints ----------------------------------------------------------------------


def test_checkpoints_that_cannot_be_used(trained, tmp_path):
    assert_one_error(predict(trained, "--top", 0, FIVE), "--top")
    assert_one_error(call("lenet.predict", FIVE), "--checkpoint")
    assert_one_error(predict(tmp_path / "none", FIVE), "cannot open the checkpoint", "No such file")
    assert_one_error(predict(trained.parent, FIVE), "is not a regular file")
    copy = Path(shutil.copy(trained, tmp_path / "copy.npz"))
    flip(copy, copy.stat().st_size // 2)
    assert_one_error(predict(copy, FIVE), str(copy), "damaged")
    assert_one_error(export(copy, tmp_path / "x.onnx"), str(copy), "damaged")
    cut(copy, 1000)
    assert_one_error(predict(copy, FIVE), str(copy), "damaged")
    assert_one_error(predict(FIVE, FIVE), str(FIVE), "damaged")
    assert_one_error(predict("/dev/zero", FIVE), "/dev/zero: it is not a regular file")
    assert not (tmp_path / "x.onnx").exists()


OTHERS = {  # checkpoints of other networks, and texts of the line about them
    "an earlier version": (
        lambda found: found.update(layout=1),
        ["another version", "train again"],
    ),
    "no layout": (lambda found: found.pop("layout"), ["another version", "train again"]),
    "more classes": (
        lambda found: found["spec"].update(num_classes=12, class_names=None),
        ["dense2.bias does not match the model"],
    ),
    "larger images": (
        lambda found: found["spec"].update(width=36),
        ["dense1.weight does not match the model"],
    ),
}


@pytest.mark.parametrize("change, texts", OTHERS.values(), ids=OTHERS)
def test_checkpoints_of_other_networks(trained, tmp_path, change, texts):
    other = shutil.copy(trained, tmp_path / "other.npz")
    edit_about(other, change)
    for result in (predict(other, FIVE), export(other, tmp_path / "x.onnx")):
        assert_one_error(result, str(other), *texts)
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("shape", [(64, 10), (512, 10, 1)], ids=str)
def test_a_checkpoint_of_a_lenet_of_other_shapes(trained, tmp_path, shape):
    """As of a script whose network was edited."""
    other = shutil.copy(trained, tmp_path / "other.npz")
    weights = {"dense2.weight": np.zeros(shape, np.float32)}
    edit(other, lambda found: found.update(weights))
    text = f"the checkpoint {other} cannot be used: dense2.weight does not match the model"
    for result in (predict(other, FIVE), export(other, tmp_path / "x.onnx")):
        assert_one_error(result, text)


def test_class_names_of_a_stranger_are_printed_in_one_line(trained, tmp_path):
    """A name may hold what would clear the terminal or look like another line."""
    names = [f"{n}\n\x1b[2Jx.png: {n} (99%)" for n in range(10)]
    strange = shutil.copy(trained, tmp_path / "strange.npz")
    edit_about(strange, lambda found: found["spec"].update(class_names=names))
    result = predict(strange, FIVE)
    assert result.code == 0 and result.out.count("\n") == 1 and "\x1b" not in result.out, result
    assert r"5\n\x1b[2Jx.png" in result.out, result


# -- ONNX -----------------------------------------------------------------------------


def run_onnx(file, pixels):
    """onnxruntime's (logits, probabilities) for pixels (n, height, width, channels) or, gray, (n, height, width)."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["logits", "probabilities"], {"images": as_input(pixels)})


def as_input(pixels):
    pixels = pixels.reshape(*pixels.shape[:3], -1).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels.astype(np.float32))


def assert_same_outputs(checkpoint, file, shape):
    for n in (1, 7, 64):
        pixels = np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)
        logits, probabilities = run_onnx(file, pixels)
        expected = logits_of(checkpoint, as_input(pixels)).astype(np.float64)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        exponents = np.exp(expected - expected.max(1, keepdims=True))
        np.testing.assert_allclose(
            probabilities, exponents / exponents.sum(1, keepdims=True), atol=1e-5
        )


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The trained model as an ONNX file. Read only."""
    file = tmp_path_factory.mktemp("onnx") / "lenet.onnx"
    result = run_python("-m", "lenet.export", "--checkpoint", trained, file)
    assert result.code == 0 and "(n, 1, 28, 28)" in result.out and result.err == "", result
    return file


def test_onnx_gives_the_same_outputs(trained, exported):
    assert_same_outputs(trained, exported, (28, 28, 1))


def test_class_names_and_colour(tmp_path):
    """Class folders of colour pictures, named in Chinese: the names come back, and other sizes are resized."""
    rng = np.random.default_rng(0)
    names = ["红", "绿", "蓝"]
    for channel, name in enumerate(reversed(names)):  # OpenCV's order
        (tmp_path / "in" / name).mkdir(parents=True)
        for index in range(6):
            image = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
            image[:, :, channel] += 120
            data = cv2.imencode(".png", image)[1].tobytes()
            (tmp_path / "in" / name / f"{index}.png").write_bytes(data)
    dataset, best = tmp_path / "dataset", tmp_path / "run" / "best.npz"
    options = ["--image_root", tmp_path / "in", "--class_folders", "--save_dir", dataset]
    assert convert(*options, "--part_num", 2).code == 0
    result = train(dataset, "--batch_size", 6, "--steps", 40, "--run_dir", tmp_path / "run")
    assert result.code == 0 and "18/18" in result.err, result

    red = np.zeros((40, 30, 3), np.uint8)
    red[:, :, 2] = 160
    assert cv2.imwrite(str(tmp_path / "red.jpg"), red)
    result = predict(best, tmp_path / "red.jpg")
    assert result.code == 0 and predicted_labels(result) == ["红"], result

    assert export(best, tmp_path / "x.onnx").code == 0
    onnx = pytest.importorskip("onnx")
    metadata = onnx.load(tmp_path / "x.onnx").metadata_props
    assert json.loads(metadata[0].value) == sorted(names)
    assert_same_outputs(best, tmp_path / "x.onnx", (16, 16, 3))


def test_a_folder_that_cannot_be_written_to(trained, tmp_path):
    assert_one_error(export(trained, tmp_path / "no" / "x.onnx"), "cannot write")


def test_onnx_is_optional(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # makes its import fail
    assert_one_error(export(trained, tmp_path / "x.onnx"), "pip install onnx")


def test_an_export_to_a_full_disk(trained, tmp_path, own_mounts):
    """A disk of 1 MB: one line that names the file, and nothing is left."""
    script = """
mount -t tmpfs -o size=1m none "$1" && echo old > "$1/x.onnx" && shift
"$@"; code=$?; ls -A "$(dirname "$6")" && cat "$6"; exit $code"""
    command = [sys.executable, "-m", "lenet.export", "--checkpoint", trained, tmp_path / "x.onnx"]
    words = [*own_mounts, "sh", "-c", script, "sh", tmp_path, *command]
    result = run_python(*words[1:], python=words[0])
    assert_one_error(result, f"cannot write {tmp_path / 'x.onnx'}: No space left on device")
    assert result.out == "x.onnx\nold\n", result


def test_images_without_a_digit_do_not_prevent_the_others(trained, tmp_path):
    noise = np.random.default_rng(0).normal(220, 4, (300, 400))
    images = {"noise": np.clip(noise, 0, 255), "flat": np.full((300, 400), 255)}
    images |= {"wide": np.zeros((1, 20000)), "high": np.zeros((20000, 1))}
    for name, image in images.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), image.astype(np.uint8))
    result = predict(trained, *(tmp_path / f"{name}.png" for name in images), FIVE)
    assert result.code == 2 and predicted_labels(result) == ["5"], result
    assert result.err.count("no digit found") == 4 and "Traceback" not in result.err


def test_folders_without_images(trained, tmp_path):
    """Nothing is predicted, not even for the files that are there."""
    (tmp_path / "a").mkdir()
    result = predict(trained, tmp_path / "a", FIVE)
    assert result.out == ""
    assert_one_error(result, f"no images in {tmp_path / 'a'}")


FITS = {"squeeze": (28, "fit"), "pad": (2**16, "too many pixels")}


@pytest.mark.parametrize("method", FITS)
def test_a_fit_that_cannot_be(trained, tmp_path, method):
    side, text = FITS[method]
    fit = [method, side, side]
    other = shutil.copy(trained, tmp_path / "other.npz")
    edit_about(other, lambda found: found["spec"].update(fit=fit))
    assert_one_error(predict(other, FIVE), "is damaged", text)


def test_a_file_is_seen_as_in_training(trained, exported, tutorial_run):
    """The same outputs by lenet.predict and ONNX, and the loss that the training's evaluation found."""
    pixels = np.stack([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in FILES])
    probabilities = run_onnx(exported, pixels)[1]
    result = predict(trained, "--top", 10, *FILES)
    found = [sorted(re.findall(r"(\d) \(([\d.]+)%\)", line)) for line in result.out.splitlines()]
    found = [[float(percent) for _, percent in classes] for classes in found]
    np.testing.assert_allclose(found, 100 * probabilities, atol=0.0051)
    labels = [int(file.stem[-1]) for file in FILES]
    loss = -np.log(probabilities[np.arange(len(FILES)), labels].astype(np.float64)).mean()
    _, (evaluation,) = rows(tutorial_run[0])
    assert loss == pytest.approx(float(evaluation["eval_loss"]), rel=1e-3)


@pytest.mark.parametrize("name", ["pipe", "best.npz", "x"])
def test_an_export_replaces_nothing_else(trained, tmp_path, name):
    file = shutil.copy(trained, tmp_path / "best.npz").with_name(name)
    if name == "pipe":
        os.mkfifo(file)
    before = snapshot(tmp_path)
    assert_one_error(export(trained, file), str(file), "must end in .onnx")
    assert snapshot(tmp_path) == before and file.is_fifo() == (name == "pipe")


LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29433"}


@pytest.mark.parametrize("variables", [LAUNCHED, pytest.param({"WORLD_SIZE": "abc"}, marks=slow)])
def test_on_a_cluster_that_sets_the_launchers_variables(trained, tmp_path, variables):
    """Both are one process: they do not wait for others."""
    for module, argument in (("predict", FIVE), ("export", tmp_path / "x.onnx")):
        arguments = ["-m", f"lenet.{module}", "--checkpoint", trained, argument]
        result = run_python(*arguments, env=variables, timeout=60)
        assert result.code == 0 and result.out and result.err == "", result
