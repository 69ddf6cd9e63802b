"""The trainer: what it prints, the network and the reader, what it refuses."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import struct
import sys
import termios
from pathlib import Path

import cv2
import numpy as np
import pytest
from damage import MANIFEST, change_record, cut, flip, rewrite_manifest, set_label
from helpers import (
    IMAGES,
    PROJECT,
    assert_one_error,
    call,
    convert,
    losses,
    run_python,
    run_script,
    start_script,
    train,
    without_rights,
)

slow = pytest.mark.slow
SMALL = ["--image_size", 12]  # a step takes a fifth of the time

# -- what people see --------------------------------------------------------------------


def test_the_losses_are_the_tutorials(tutorial_run):
    """The seventh digit differs from CPU to CPU."""
    found = losses(tutorial_run[1])
    assert len(found) == 100
    assert found[:3] == pytest.approx([7.932042, 8.21261, 5.70085], rel=1e-4)
    assert found[-1] == pytest.approx(0.00461, rel=0.1)


def test_stderr_tells_datasets_device_model_and_outcome(tutorial_run):
    """And none of OneFlow's noise."""
    folder, result = tutorial_run
    lines = [line for line in result.err.splitlines() if "tensorboard" not in line]
    patterns = [
        "dataset: 50 gray images (28x28) in 5 parts, 10 classes",
        "device: cpu",
        "model: LeNet, 1,663,370 parameters",
        "training: 100 steps of 25 images, 50 epochs, op by op on 1 rank",
        f"to resume after a stop: python {PROJECT}/lenet_train.py --run_dir {folder} --resume",
        "training accuracy: 50/50 (100.00%)",
    ]
    assert lines[:-1] == patterns, result
    last = r"100 steps in [\d.]+ s, [\d,]+ images/s, final loss 0.00\d+"
    assert re.fullmatch(last, lines[-1]), result


def test_same_seed_same_losses_digit_for_digit(converted):
    runs = [["--seed", 3], ["--seed", 3, "--fetch_every", 3], ["--seed", 4]]
    first, again, other = (train(converted, *SMALL, "--steps", 4, *more).out for more in runs)
    assert first == again and len(first.splitlines()) == 4
    assert first.splitlines()[0] != other.splitlines()[0]


def test_dropout_and_crop_can_be_turned_off(converted):
    """With neither, and the whole dataset in order as each batch, nothing is random but the weights."""
    plain = [*SMALL, "--batch_size", 50, "--steps", 1, "--shuffle_buffer", 0]
    plain += ["--dropout", 0, "--augment", "false"]
    without = losses(train(converted, *plain))
    for change in (["--augment", "true"], ["--dropout", 0.5]):
        assert losses(train(converted, *plain, *change)) != without


def images_in(folder, shapes):
    """Images whose class is a colour or a brightness; the options that convert them."""
    (folder / "in").mkdir()
    rng = np.random.default_rng(0)
    for index, shape in enumerate(shapes):
        image = rng.integers(0, 90, shape, dtype=np.uint8)
        image[..., index % 3 : index % 3 + 1] += 120
        cv2.imwrite(str(folder / "in" / f"{index}.jpg"), image)
    lines = [json.dumps({f"{index}.jpg": index % 3}) for index in range(len(shapes))]
    (folder / "labels.txt").write_text("\n".join(lines))
    return ["--image_root", folder / "in", "--label_dir", folder / "labels.txt"]


@pytest.mark.parametrize("img_format", [".jpg", ".png"])
def test_a_colour_dataset_of_another_size(tmp_path, img_format):
    """Plain JPEG and all else go through different decoders of OneFlow."""
    source = images_in(tmp_path, 12 * [(20, 36, 3)])
    assert convert(*source, "--save_dir", tmp_path / "d", "--img_format", img_format).code == 0
    result = train(tmp_path / "d", "--batch_size", 6, "--steps", 30)
    assert "12 colour images (36x20) in 5 parts, 3 classes" in result.err, result
    assert "training accuracy: 12/12" in result.err, result
    assert train(tmp_path / "d", "--batch_size", 6, "--steps", 2, "--image_size", 16).code == 0


def test_images_of_different_sizes_need_a_size(tmp_path):
    source = images_in(tmp_path, [(20 + index, 30) for index in range(6)])
    assert convert(*source, "--save_dir", tmp_path / "d", "--part_num", 2).code == 0
    result = train(tmp_path / "d", "--batch_size", 6)
    assert_one_error(result, "vary in size", "--image_size", started=True)
    assert train(tmp_path / "d", "--batch_size", 6, "--steps", 2, "--image_size", 24).code == 0


def test_a_bar_on_a_terminal(converted):
    """With the speed and the recent loss; losses go elsewhere."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    options = ["--device", "cpu", "--dataset_dir", converted, *SMALL, "--steps", 20]
    process = start_script("lenet_train.py", *options, stderr=theirs)
    os.close(theirs)
    with open(ours, "rb") as terminal:
        text = b""
        with contextlib.suppress(OSError):  # its other end is closed
            while block := terminal.read1():
                text += block
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and len(out.splitlines()) == 20, text
    assert b"20/20" in text and b"images/s=" in text and b"loss=" in text, text


# -- the network, in this process -------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    import lenet_train

    return lenet_train


def spec_of(script, channels=1, height=28, width=28, classes=10):
    return script.ModelSpec(
        channels=channels,
        height=height,
        width=width,
        mean=[0.0] * channels,
        scale=[255.0] * channels,
        num_classes=classes,
        class_names=None,
    )


def lenet(script, *size, init="tutorial", **spec):
    model = script.LeNet(spec_of(script, *size, **spec))
    script.init_weights(model, init, 0)
    return model


def reader_of(script, folder, batch_size, **options):
    """The reader and decoders as the trainer sets them up, and the model's spec."""
    from ofrecord.dataset.open_dataset import open_dataset

    dataset = open_dataset(str(folder))
    spec = script.ModelSpec.from_dataset(dataset, None)
    return script.ImageReader(dataset, spec, batch_size, **options), spec


def configured(script, **settings):
    return script.TrainConfig(**settings)


def test_lenet_is_the_tutorials(script):
    model = lenet(script)
    counts = {"conv1": 832, "conv2": 51264, "dense1": 1606144, "dense2": 5130}
    for name, number in counts.items():
        assert sum(p.numel() for p in getattr(model, name).parameters()) == number
    assert sum(p.numel() for p in model.parameters()) == 1663370
    assert tuple(model(script.flow.zeros(3, 1, 28, 28)).shape) == (3, 10)
    for size in ((3, 20, 36), (1, 4, 5), (3, 31, 29)):
        assert tuple(lenet(script, *size, classes=7)(script.flow.zeros(2, *size)).shape) == (2, 7)


def test_weights_are_truncated_normal(script):
    weight = lenet(script).dense1.weight.numpy()
    assert np.abs(weight).max() <= 0.2
    # A normal deviate cut off at two sigma has 0.8796 of its standard deviation.
    assert weight.std() == pytest.approx(0.08796, abs=2e-4) and abs(weight.mean()) < 3e-4
    assert (np.abs(weight) > 0.1999).mean() < 1e-3  # drawn again, not clamped
    he = lenet(script, init="he")
    for layer, inputs in ((he.conv1, 25), (he.conv2, 800), (he.dense1, 3136), (he.dense2, 512)):
        assert layer.weight.numpy().std() == pytest.approx(0.8796 * np.sqrt(2 / inputs), rel=0.05)


def test_dropout_follows_its_generator_and_is_for_training_only(script):
    """oneflow.nn.Dropout would not: it has a generator of its own."""
    flow, model, images = script.flow, lenet(script), script.flow.ones(4, 1, 28, 28)

    def mask(*seed):
        return script.make_dropout_mask(np.random.default_rng(seed), 4, 0.25)

    assert (mask(1, 2).numpy() == mask(1, 2).numpy()).all()
    assert (mask(1, 2).numpy() != mask(1, 3).numpy()).any()
    values, counts = np.unique(mask(1).numpy(), return_counts=True)
    assert values == pytest.approx([0, 1 / 0.75])
    assert counts[0] == pytest.approx(4 * 512 * 0.25, rel=0.2)
    assert (model(images, mask(1)).numpy() != model(images).numpy()).any()
    assert (model(images).numpy() == model(images, flow.ones(4, 512)).numpy()).all()


def augmented(script, images, **amounts):
    """Images after augmentation by nothing but ``amounts`` of crop, rotation, zoom, shift."""
    config = configured(script, **{"crop": 0.0, **amounts})
    tensor = script.flow.tensor(np.ascontiguousarray(images, np.float32))
    return script.augment(tensor, config, np.random.default_rng(0)).numpy()


# 64 images that brighten from 0 at the left to 39 at the right
RAMP = np.tile(np.arange(40, dtype=np.float32), (64, 1, 40, 1))


def test_crop_stays_close_and_inside(script):
    cropped = augmented(script, RAMP, crop=0.05)
    assert cropped.shape == RAMP.shape
    assert cropped.min() >= 0 and cropped.max() <= 39
    widths = cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]
    # sqrt(0.95 * 0.99) = 0.97 of the width at least
    assert 39 * 0.96 < widths.min() < widths.max() < 39.5
    assert len(np.unique(widths)) > 60  # each image has its own window
    np.testing.assert_allclose(augmented(script, RAMP), RAMP, atol=1e-4)


def test_shift_zoom_and_rotation_are_as_large_as_they_say(script):
    middle = (slice(None), 0, 20)
    moved = (augmented(script, RAMP, shift=0.1) - RAMP)[middle][:, 20]  # a pixel is a brightness
    assert 3.2 < moved.max() <= 4 and -4 <= moved.min() < -3.2
    slope = np.diff(augmented(script, RAMP, zoom=0.2)[middle][:, 19:22], axis=1)[:, 0]
    assert 1.12 < slope.max() <= 1.2001 and 0.7999 <= slope.min() < 0.88
    for height, width in ((40, 40), (20, 60)):  # a turn stays a turn where they differ
        ramp = np.tile(np.arange(width, dtype=np.float32), (64, 1, height, 1))
        turned = augmented(script, ramp, rotation=10.0)[:, 0]
        y, x = height // 2, width // 2
        across, down = turned[:, y, x + 1] - turned[:, y, x], turned[:, y + 1, x] - turned[:, y, x]
        angles = np.degrees(np.arctan2(down, across))
        assert 8 < angles.max() <= 10.01 and -10.01 <= angles.min() < -8
        np.testing.assert_allclose(across**2 + down**2, 1, atol=1e-3)


# -- the reader, and evaluation ---------------------------------------------------------


def test_the_reader_delivers_the_pixels_normalized(script, converted):
    images, labels = (tensor.numpy() for tensor in reader_of(script, converted, 50)[0].next_batch())
    assert images.shape == (50, 1, 28, 28) and labels.shape == (50,)
    assert labels[:6].tolist() == [3, 0, 4, 9, 5, 1]
    assert images.mean() == pytest.approx(0, abs=1e-4)
    assert images.std() == pytest.approx(0.5, abs=1e-4)
    first = cv2.imread(str(IMAGES / "00000030_3.png"), 0).astype(np.float32)
    assert np.corrcoef(images[0].ravel(), first.ravel())[0, 1] > 0.9999


def test_skipped_batches_are_those_that_would_have_been_read(script, converted):
    options = {"shuffle_buffer": 20, "seed": 3}
    read, skipped = (reader_of(script, converted, 7, **options)[0] for _ in range(2))
    batches = [read.next_batch()[0].numpy() for _ in range(20)]
    skipped.skip(17)
    for batch in batches[17:]:
        assert (skipped.next_batch()[0].numpy() == batch).all()


@pytest.mark.parametrize("batch_size", [1, 7, 49, 50])
def test_evaluation_counts_each_image_once(script, converted, batch_size):
    """Against a count by hand, for batch sizes that do not divide 50."""
    from ofrecord.dataset.open_dataset import open_dataset

    reader, spec = reader_of(script, converted, 50)
    model = script.LeNet(spec)
    script.init_weights(model, "tutorial", 0)
    images, labels = reader.next_batch()
    logits, labels = model(images).numpy().astype(np.float64), labels.numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    said = logits.argmax(1)

    evaluation = script.evaluate(model, open_dataset(str(converted)), "cpu", batch_size)
    assert (evaluation.num_images, evaluation.num_correct) == (50, (said == labels).sum())
    expected = -np.log(probabilities[np.arange(50), labels]).mean()
    assert evaluation.loss == pytest.approx(expected, rel=1e-5)
    pairs, counts = np.unique([labels, said], axis=1, return_counts=True)
    assert dict(evaluation.pairs) == dict(zip(map(tuple, pairs.T.tolist()), counts, strict=True))
    assert [prediction.label for prediction, _ in evaluation.samples] == labels[:40].tolist()
    wrong = np.flatnonzero(said != labels)
    surest = sorted(probabilities[wrong, said[wrong]], reverse=True)[:40]
    assert sorted(mistake.index for mistake in evaluation.mistakes) == wrong.tolist()
    found = [prediction.probability for prediction, _ in evaluation.worst]
    np.testing.assert_allclose(found, surest, rtol=1e-5)


# -- what is wrong is one line, and OneFlow never sees it -------------------------------


def edit_text(path):
    path.write_text(path.read_text().replace('"num_records": 50', '"num_records": 49'))


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def longer(path):
    path.write_bytes(path.read_bytes() + b"x")


def endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def manifest(**fields):
    return lambda folder: rewrite_manifest(folder, **fields)


def file(name, change, *arguments):
    return lambda folder: change(folder / name, *arguments)


DAMAGE = {  # what is done to a dataset, and texts of the line about it
    "no folder": (shutil.rmtree, "no dataset|img2ofrecord.py"),
    "an empty folder": (empty, "not a finished dataset|img2ofrecord.py"),
    "manifest cut off": (file(MANIFEST, cut, 99), "dataset.json|not a manifest"),
    "manifest edited": (file(MANIFEST, edit_text), "dataset.json|changed"),
    "manifest of bytes": (file(MANIFEST, Path.write_bytes, b"\xff"), "dataset.json|not a manifest"),
    "no manifest": (file(MANIFEST, Path.unlink), "no dataset.json|python -m ofrecord index "),
    "part missing": (file("part-3", Path.unlink), "part-3|missing"),
    "part cut off": (file("part-4", cut, -1), "part-4|bytes"),
    "part longer": (file("part-4", longer), "part-4|bytes"),
    "part empty": (file("part-0", cut, 0), "part-0|bytes"),
    "part not listed": (file("part-5", Path.touch), "part-5|does not belong to this dataset"),
    "a byte of an image": (file("part-1", flip, 150), "part-1|SHA-256"),
    "a byte of a length": (file("part-1", flip, 1), "part-1|SHA-256"),
    "label outside": (manifest(label_counts={"10": 50}), "dataset.json|classes agree"),
    "label below zero": (manifest(label_counts={"-1": 50}), "labels below 0"),
    "label miscounted": (manifest(label_counts={"1": 49}), "dataset.json|labels add up"),
    "an unknown field": (manifest(colour="red"), "dataset.json|colour"),
    "a device for a manifest": (file(MANIFEST, endless), "dataset.json|not a regular file"),
}


@pytest.mark.parametrize("damage, said", DAMAGE.values(), ids=list(DAMAGE))
def test_bad_datasets(dataset, damage, said):
    damage(dataset)
    assert_one_error(train(dataset), *said.split("|"))


def test_check_hashes(dataset):
    """It finds any changed byte; without it names and sizes are compared, and OneFlow trains on it."""
    manifest = (dataset / MANIFEST).read_bytes()
    change_record(dataset, set_label(4))
    (dataset / MANIFEST).write_bytes(manifest)
    assert_one_error(train(dataset), "part-0", "SHA-256")
    assert train(dataset, *SMALL, "--check_hashes", "false", "--steps", 1).code == 0
    cut(dataset / "part-0", -1)
    assert_one_error(train(dataset, "--check_hashes", "false"), "part-0", "bytes")


def test_check_hashes_of_the_dataset_to_evaluate_on(dataset, converted):
    flip(dataset / "part-1", 150)
    assert_one_error(train(converted, "--eval_dataset_dir", dataset), "part-1", "SHA-256")


@pytest.mark.parametrize(
    "options, texts",
    [
        (["--image_size", "3"], ["not for 3x3 images"]),
        (["--image_size", "1"], ["not for 1x1 images"]),
        (["--image_size", "6000"], ["not for 6000x6000 images", "--image_size, 4 to 1,024"]),
        (["--batch_size", 51], ["batch_size 51", "50 images"]),
        (["--steps", 9, *SMALL, "--learning_rate", 1e30], ["the loss is nan at step "]),
        (["--steps", 1, *SMALL, "--learning_rate", 1e30], ["the evaluation loss is ", "step 1"]),
    ],
    ids=lambda value: " ".join(map(str, value[:2])),
)
def test_what_cannot_be_trained(converted, options, texts):
    texts = [*texts, "reduce --learning_rate"] if "--learning_rate" in options else texts
    assert_one_error(train(converted, *options), *texts, started=True)


def test_labels_that_would_make_too_many_outputs(project):
    (project / "labels.txt").write_text('{"00000000_5.png": 2147483647}\n{"00000001_0.png": 0}\n')
    assert convert("--label_dir", "labels.txt", "--part_num", 1, cwd=project).code == 0
    result = train(project / "dataset", "--batch_size", 2)
    texts = "labels up to 2,147,483,647", "renumber them, below 1,048,576"
    assert_one_error(result, *texts, started=True)


DIFFERENT = {  # of the dataset to train on, of the other one, what is said
    "classes": ({}, {"num_classes": 12, "label_counts": {"11": 50}}, "are 10 and 12"),
    "names": ({"class_names": list("abcdefghij")}, {"class_names": list("abcdefgxij")}, "h and x"),
    "no names": (
        {"class_names": list("abcdefghij")},
        {},
        "class 0 is a and unnamed: convert both with one --classes file",
    ),
    "colour": ({}, None, "gray and colour"),
    "size": ({}, {"width": 32, "height": 32}, "28x28 and 32x32"),
    "same": ({}, {}, "are the same dataset: evaluate on other images"),
}


@pytest.mark.parametrize("train_fields, eval_fields, text", DIFFERENT.values(), ids=DIFFERENT)
def test_datasets_that_do_not_fit_together(
    dataset, converted, tmp_path, train_fields, eval_fields, text
):
    shutil.copytree(converted, tmp_path / "train")
    rewrite_manifest(tmp_path / "train", **train_fields)
    if eval_fields is None:
        assert convert("--color", "color", "--save_dir", dataset).code == 0
    else:
        rewrite_manifest(dataset, **eval_fields)
    result = train(tmp_path / "train", "--eval_dataset_dir", dataset)
    assert_one_error(result, text, started=True)


# -- odd machines -----------------------------------------------------------------------


def shell(line, *arguments, **options):
    """Run a line of shell, in which "$@" is the trainer with these arguments; return its Result."""
    words = [sys.executable, PROJECT / "lenet_train.py", *arguments]
    return run_python("-c", line, "sh", *words, python="/bin/sh", timeout=60, **options)


CLOSED = ["<&- >&- 2>&-", *(pytest.param(each, marks=slow) for each in ("<&-", ">&-", "2>&-"))]


@pytest.mark.parametrize("closing", CLOSED)
def test_closed_streams(converted, closing):
    options = ["--device", "cpu", "--dataset_dir", converted, *SMALL, "--steps", 1]
    result = shell(f'"$@" {closing}', *options)
    assert result.code == 0 and "Traceback" not in result.err + result.out, result
    if "2>" in closing:  # messages do not take the way of results
        assert "images/s" not in result.out and "final loss" not in result.out, result


@pytest.mark.parametrize("options", [[], ["--help"], ["--print_config"]], ids=str)
def test_stdout_on_a_full_disk(converted, options):
    train = ["--device", "cpu", "--dataset_dir", converted, *SMALL, "--steps", 2]
    result = shell('"$@" > /dev/full', *train, *options)
    text = "cannot write to stdout: No space left on device"
    assert_one_error(result, text, started=True)
    assert "Exception" not in result.err


def test_a_working_folder_that_was_removed(tmp_path):
    result = shell('mkdir gone; cd gone; rmdir ../gone; "$@"', cwd=tmp_path)
    assert_one_error(result, "the working folder was removed")


def test_a_dataset_without_rights(dataset):
    """As root the tests can read everything, the trainer here cannot."""
    for path in (dataset / "part-1", dataset / MANIFEST, dataset):
        rights = path.stat().st_mode
        path.chmod(0)
        command = ["lenet_train.py", "--device", "cpu", "--dataset_dir", dataset]
        result = run_script(*command, preexec_fn=without_rights)
        path.chmod(rights)
        assert_one_error(result, str(path), "Permission denied")


def test_no_dataset_yet(tmp_path):
    result = call("lenet_train", cwd=tmp_path)
    assert_one_error(result, "./dataset/", "img2ofrecord.py")
