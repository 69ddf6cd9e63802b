"""Using a trained model: predictions for image files, and ONNX."""

import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from conftest import IMAGES, PROJECT, assert_one_error, run_module, run_script

PREDICTION = re.compile(r"(?P<file>.*): (?P<label>\S+) \((?P<percent>[\d.]+)%\)\Z")


def predict(checkpoint, *arguments):
    return run_module("lenet.predict", "--checkpoint", checkpoint, *arguments)


def labels_of(result):
    return [PREDICTION.match(line).group("label") for line in result.out.splitlines()]


def test_it_says_what_it_learned(trained):
    files = sorted(IMAGES.glob("*.png"))
    result = predict(trained, *files)
    assert result.code == 0 and result.err == "", result
    assert [PREDICTION.match(line).group("file") for line in result.out.splitlines()] == [str(file) for file in files]
    assert labels_of(result) == [file.stem[-1] for file in files]
    assert all(float(PREDICTION.match(line).group("percent")) > 50 for line in result.out.splitlines())


def test_a_file_is_seen_as_in_training(trained, converted):
    """The same normalised pixels as from OneFlow's own decoders, and so the same outputs."""
    import lenet_train
    from lenet.checkpoint import open_checkpoint
    from lenet.predict import predict, read_image
    from ofrecord.manifest import check_dataset

    model = open_checkpoint(str(trained)).load_model()
    images, _ = lenet_train.ImagePipeline(str(converted), check_dataset(str(converted)), model.spec, 50)()
    logits = model(images).numpy().astype(np.float64)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    order = [json.loads(line) for line in (PROJECT / "data/images/train_label/label.txt").read_text().splitlines()]
    pixels = np.stack([read_image(str(IMAGES / next(iter(entry))), model.spec, True) for entry in order])
    np.testing.assert_allclose(predict(model, pixels), expected, atol=1e-5)


@pytest.mark.parametrize("size", [14, 20, 40])
def test_other_sizes_are_resized_as_in_training(converted, size):
    import lenet_train
    from lenet.predict import read_image
    from ofrecord.manifest import check_dataset

    dataset = check_dataset(str(converted))
    spec = lenet_train.Spec.of(dataset, size)
    expected, _ = lenet_train.ImagePipeline(str(converted), dataset, spec, 50).read()
    order = [json.loads(line) for line in (PROJECT / "data/images/train_label/label.txt").read_text().splitlines()]
    pixels = np.stack([read_image(str(IMAGES / next(iter(entry))), spec, False) for entry in order])
    assert (pixels == expected.numpy()).all()


def test_the_likeliest_classes(trained):
    result = predict(trained, "--top", 3, IMAGES / "00000000_5.png")
    said = [re.match(r"(\d) \(([\d.]+)%\)\Z", part).groups() for part in result.out.strip().split(": ")[1].split(", ")]
    assert len(said) == 3 and said[0][0] == "5"
    percents = [float(percent) for _, percent in said]
    assert percents == sorted(percents, reverse=True) and sum(percents) <= 100.01


def test_bad_files_do_not_keep_it_from_the_good(trained, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((IMAGES / "00000000_5.png").read_bytes()[:150])
    (tmp_path / "text.jpg").write_text("no picture")
    result = predict(trained, tmp_path / "empty.png", IMAGES / "00000000_5.png", tmp_path / "nowhere.png", tmp_path,
                     tmp_path / "cut.png", tmp_path / "text.jpg")
    assert result.code == 2 and labels_of(result) == ["5"], result
    lines = result.err.splitlines()
    for name, said in (("empty.png", "empty"), ("nowhere.png", "No such file"), ("cut.png", ""), ("text.jpg", "cannot read")):
        assert any(name in line and said in line and ": error: " in line for line in lines), result
    assert lines[-1].endswith("5 of 6 files could not be read") and "Traceback" not in result.err


def on_paper(digit, seed):
    """A photo of a MNIST digit: written dark, thin or thick, on uneven light paper, off centre, blurred, noisy; a JPEG."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(150, 420))
    ink = cv2.resize(digit, (size, size), interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
    height, width = 600, 800
    y, x = int(rng.integers(20, height - size - 20)), int(rng.integers(20, width - size - 20))
    paper = np.full((height, width), rng.uniform(170, 240), np.float32)
    yy, xx = np.mgrid[:height, :width]
    paper *= 1 - 0.35 * (xx * rng.uniform(-1, 1) / width + yy * rng.uniform(0, 1) / height)  # light from one side
    paper[y:y + size, x:x + size] *= 1 - rng.uniform(0.55, 0.85) * ink
    paper = cv2.GaussianBlur(paper, (0, 0), rng.uniform(0.5, 2.5)) + rng.normal(0, rng.uniform(1, 5), paper.shape)
    return np.clip(paper, 0, 255).astype(np.uint8)


def test_photos_of_dark_digits_on_paper(trained, tmp_path):
    files = sorted(IMAGES.glob("*.png"))
    for seed, file in enumerate(files):
        photo = cv2.cvtColor(on_paper(cv2.imread(str(file), 0), seed), cv2.COLOR_GRAY2BGR)
        assert cv2.imwrite(str(tmp_path / (file.stem + ".jpg")), photo)
    result = predict(trained, *sorted(tmp_path.glob("*.jpg")))
    assert result.code == 0, result
    right = sum(label == file.stem[-1] for label, file in zip(labels_of(result), files))
    assert right >= 42, right  # a LeNet that has seen each digit once, centred
    assert result.err.count("taken for a picture of one digit") == 50
    as_it_is = predict(trained, "--digit", "no", *sorted(tmp_path.glob("*.jpg")))
    assert as_it_is.err == "" and sum(
        label == file.stem[-1] for label, file in zip(labels_of(as_it_is), files)) < right - 20  # it was needed


def test_light_digits_on_dark(trained, tmp_path):
    digit = cv2.imread(str(IMAGES / "00000000_5.png"), 0)
    cv2.imwrite(str(tmp_path / "chalk.png"), 255 - on_paper(digit, 3))
    canvas = np.zeros((28, 28), np.uint8)
    canvas[:14, 14:] = cv2.resize(digit, (14, 14))  # of the right size, and on black: taken as it is
    cv2.imwrite(str(tmp_path / "corner.png"), canvas)
    result = predict(trained, tmp_path / "chalk.png", tmp_path / "corner.png")
    assert labels_of(result)[0] == "5" and result.err.count("taken for a picture of one digit") == 1, result


def test_drawings_with_a_transparent_ground(trained, tmp_path):
    digit = cv2.resize(cv2.imread(str(IMAGES / "00000000_5.png"), 0), (200, 200))
    canvas = np.zeros((300, 300, 4), np.uint8)  # black ink, opaque where the digit is
    canvas[60:260, 40:240, 3] = digit
    assert cv2.imwrite(str(tmp_path / "drawn.png"), canvas)
    assert labels_of(predict(trained, tmp_path / "drawn.png")) == ["5"]


def test_blank_paper_is_no_digit(trained, tmp_path):
    noise = np.clip(np.random.default_rng(0).normal(220, 4, (300, 400)), 0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "blank.png"), noise)
    cv2.imwrite(str(tmp_path / "flat.png"), np.full((300, 400), 255, np.uint8))
    result = predict(trained, tmp_path / "blank.png", tmp_path / "flat.png")
    assert result.code == 2 and result.err.count("no digit found") == 2 and result.out == "", result


def test_class_names_and_colour(tmp_path):
    """Folders of colour pictures, named in Chinese: the names come back; sizes other than the model's are resized."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("蓝", "绿", "红")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for index in range(6):
            image = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
            image[:, :, channel] += 120
            cv2.imwrite(str(tmp_path / "in" / name / "{}.png".format(index)), image)
    assert run_script("img2ofrecord.py", "--image_root", tmp_path / "in", "--class_folders", "--save_dir", tmp_path / "d",
                      "--part_num", 2).code == 0
    result = run_script("lenet_train.py", "--dataset_dir", tmp_path / "d", "--batch_size", 6, "--steps", 40, "--run_dir",
                        tmp_path / "run", "--device", "cpu")
    assert "gets 18 of 18" in result.err, result
    red = np.zeros((40, 30, 3), np.uint8)
    red[:, :, 2] = 160
    cv2.imwrite(str(tmp_path / "red.jpg"), red)
    result = predict(tmp_path / "run" / "best", tmp_path / "red.jpg")
    assert result.code == 0 and labels_of(result) == ["红"], result
    result = run_module("lenet.export", "--checkpoint", tmp_path / "run" / "best", tmp_path / "x.onnx")
    import onnx

    metadata = onnx.load(str(tmp_path / "x.onnx")).metadata_props
    assert json.loads(metadata[0].value) == sorted(["蓝", "绿", "红"])
    assert_same_outputs(tmp_path / "run" / "best", tmp_path / "x.onnx")


def test_checkpoints_that_cannot_be_used(trained, tmp_path):
    image = IMAGES / "00000000_5.png"
    assert_one_error(predict(tmp_path / "none", image), "no checkpoint", "does not exist")
    assert_one_error(predict(trained.parent, image), "not a checkpoint", "best")
    copy = shutil.copytree(str(trained), str(tmp_path / "copy"))
    next((tmp_path / "copy").glob("model/tensor_*/out")).write_bytes(b"")
    assert_one_error(predict(copy, image), "damaged")
    assert_one_error(run_module("lenet.export", "--checkpoint", copy, tmp_path / "x.onnx"), "damaged")
    assert_one_error(run_module("lenet.predict", image), "--checkpoint")
    assert_one_error(predict(trained, "--top", 0, image), "--top")


def test_a_checkpoint_caught_between_two_renames(trained, tmp_path):
    """While the training replaces it, it is for a moment only beside its place."""
    for ending in (".new", ".old"):
        shutil.copytree(str(trained), str(tmp_path / ("best" + ending)))
        assert labels_of(predict(tmp_path / "best", IMAGES / "00000000_5.png")) == ["5"]
        shutil.rmtree(str(tmp_path / ("best" + ending)))


# -- ONNX -------------------------------------------------------------------------

def assert_same_outputs(checkpoint, file):
    onnxruntime = pytest.importorskip("onnxruntime")
    from lenet.checkpoint import open_checkpoint
    from lenet.predict import predict

    model = open_checkpoint(str(checkpoint)).load_model()
    spec, flow = model.spec, sys.modules["lenet.engine"].flow
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for n in (1, 7, 64):
        pixels = np.random.default_rng(n).integers(0, 256, (n, spec.height, spec.width, spec.channels), dtype=np.uint8)
        images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).astype(np.float32))
        logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
        normalized = (images - np.float32(spec.mean).reshape(1, -1, 1, 1)) / np.float32(spec.std).reshape(1, -1, 1, 1)
        expected = model(flow.tensor(normalized)).numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(probabilities, predict(model, pixels), atol=1e-5)


def test_onnx_gives_the_same_outputs(trained, tmp_path):
    result = run_module("lenet.export", "--checkpoint", trained, tmp_path / "lenet.onnx")
    assert result.code == 0 and "(n, 1, 28, 28)" in result.out, result
    assert_same_outputs(trained, tmp_path / "lenet.onnx")
    assert_one_error(run_module("lenet.export", "--checkpoint", trained, tmp_path / "no" / "x.onnx"), "cannot write")


def test_onnx_is_optional(trained, tmp_path):
    (tmp_path / "onnx.py").write_text("raise ImportError('not here')\n")
    process = subprocess.run([sys.executable, "-m", "lenet.export", "--checkpoint", str(trained), str(tmp_path / "x.onnx")],
                             cwd=str(PROJECT), env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}, stderr=subprocess.PIPE,
                             encoding="utf-8")
    assert process.returncode == 2 and "pip install onnx" in process.stderr, process.stderr
