"""The trainer: the network, the loop, what it prints, what it refuses."""

import json
import math
import os
import shutil
import signal
import time

import cv2
import numpy as np
import pytest
from damage import MANIFEST, change_record, cut, flip, rewrite_manifest, set_label
from helpers import (
    IMAGES,
    assert_one_error,
    convert,
    losses,
    start_script,
    train,
)

SMALL = ["--image_size", 12]  # a step takes a fifth of the time

# -- a run ------------------------------------------------------------------------


@pytest.fixture
def default_run(tutorial_run):
    return tutorial_run[1]


def test_the_loss_falls_as_the_tutorial_says(default_run):
    found = losses(default_run)
    assert len(found) == 100
    assert found[:3] == pytest.approx([7.932, 8.213, 5.701], abs=0.01)
    assert found[-1] < 0.02 and max(found[-10:]) < 0.2


def test_stderr_tells_device_model_and_outcome(default_run):
    said = default_run.err
    for text in (
        "device: cpu",
        "dataset: 50 gray images (28x28) in 5 parts, 10 classes\n",
        "model: LeNet, 1,663,370 parameters\n",
        "training: 100 steps of 25 images, 50 epochs, op by op on 1 rank\n",
        "100 steps in",
        "images/s",
        "final loss 0.00",
        "training accuracy: 50/50 (100.00%)",
    ):
        assert text in said, said
    lines = [line for line in said.splitlines() if "tensorboard" not in line]  # if it is installed
    assert len(lines) == 6, said  # as many as above, and none of OneFlow's noise


def test_same_seed_same_losses_digit_for_digit(converted):
    first, again, other = (train(converted, "--steps", 3, "--seed", seed).out for seed in (3, 3, 4))
    assert first == again and len(first.splitlines()) == 3
    assert first.splitlines()[0] != other.splitlines()[0]


def test_fetching_losses_more_often_changes_nothing(converted):
    assert (
        train(converted, "--steps", 4, "--fetch_every", 1).out
        == train(converted, "--steps", 4, "--fetch_every", 3).out
    )


def test_dropout_and_crop_can_be_turned_off(converted):
    """With neither, and the whole dataset in order as each batch, nothing is random but the weights."""
    plain = ["--batch_size", 50, "--steps", 1, "--shuffle_buffer", 0]
    plain += ["--dropout", 0, "--augment", "false"]
    without = losses(train(converted, *plain))
    for change in (["--augment", "true"], ["--dropout", 0.5]):
        assert losses(train(converted, *plain, *change)) != without


def test_a_colour_dataset_of_another_size(tmp_path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    with (tmp_path / "labels.txt").open("w") as labels:
        for index in range(12):
            image = rng.integers(0, 90, (20, 36, 3), dtype=np.uint8)
            image[:, :, index % 3] += 120  # the class is a colour
            cv2.imwrite(str(tmp_path / "in" / f"{index}.jpg"), image)
            labels.write(json.dumps({f"{index}.jpg": index % 3}) + "\n")
    result = convert(
        "--image_root",
        tmp_path / "in",
        "--label_dir",
        tmp_path / "labels.txt",
        "--save_dir",
        tmp_path / "d",
        "--img_format",
        ".jpg",
    )
    assert result.code == 0, result
    result = train(tmp_path / "d", "--batch_size", 6, "--steps", 30)
    assert "12 colour images (36x20) in 5 parts, 3 classes" in result.err, result
    assert "training accuracy: 12/12" in result.err, result
    assert train(tmp_path / "d", "--batch_size", 6, "--steps", 2, "--image_size", 16).code == 0


# -- the network, in this process ------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    import lenet_train

    return lenet_train


def spec_of(channels=1, height=28, width=28, classes=10):
    from lenet.model import ModelSpec

    return ModelSpec(
        channels=channels,
        height=height,
        width=width,
        mean=[0.0] * channels,
        scale=[255.0] * channels,
        num_classes=classes,
        class_names=None,
    )


def lenet(spec=None, init="tutorial"):
    from lenet.model import LeNet

    return LeNet(spec or spec_of()).init_weights(init, 0)


def configured(**settings):
    from lenet.config import TrainConfig

    return TrainConfig(**settings)


def open_dataset(folder):
    from ofrecord.dataset import open_dataset

    return open_dataset(str(folder))


def reader_of(script, folder, batch_size, **options):
    """The reader and decoders as the trainer sets them up, and the model's spec."""
    dataset = open_dataset(folder)
    spec = script.ModelSpec.from_dataset(dataset, None)
    return script.ImageReader(dataset, spec, batch_size, **options), spec


def test_lenet_is_the_tutorials(script):
    model = lenet()
    counts = {
        name: sum(p.numel() for p in getattr(model, name).parameters())
        for name in ("conv1", "conv2", "dense1", "dense2")
    }
    assert counts == {
        "conv1": 25 * 32 + 32,
        "conv2": 25 * 32 * 64 + 64,
        "dense1": 3136 * 512 + 512,
        "dense2": 512 * 10 + 10,
    }
    assert sum(counts.values()) == 1663370
    assert tuple(model(script.flow.zeros(3, 1, 28, 28)).shape) == (3, 10)
    for size in ((3, 20, 36), (1, 4, 5), (3, 31, 29)):
        assert tuple(lenet(spec_of(*size, classes=7))(script.flow.zeros(2, *size)).shape) == (2, 7)


def test_weights_are_truncated_normal():
    weight = lenet().dense1.weight.numpy()
    assert np.abs(weight).max() <= 0.2
    # A normal deviate cut off at two sigma has 0.8796 of its standard deviation.
    assert weight.std() == pytest.approx(0.08796, abs=2e-4) and abs(weight.mean()) < 3e-4
    assert (np.abs(weight) > 0.1999).mean() < 1e-3  # drawn again, not clamped
    he = lenet(init="he")
    for layer, inputs in ((he.conv1, 25), (he.conv2, 800), (he.dense1, 3136), (he.dense2, 512)):
        assert layer.weight.numpy().std() == pytest.approx(0.8796 * np.sqrt(2 / inputs), rel=0.05)


def test_dropout_follows_its_generator_and_is_for_training_only(script):
    """oneflow.nn.Dropout would not: it has a generator of its own."""
    flow, model, images = script.flow, lenet(), script.flow.ones(4, 1, 28, 28)

    def mask(*seed):
        return script.make_dropout_mask(np.random.default_rng(seed), 4, 0.25)

    assert (mask(1, 2).numpy() == mask(1, 2).numpy()).all()
    assert (mask(1, 2).numpy() != mask(1, 3).numpy()).any()
    values, counts = np.unique(mask(1).numpy(), return_counts=True)
    assert values == pytest.approx([0, 1 / 0.75])
    assert counts[0] == pytest.approx(4 * 512 * 0.25, rel=0.2)
    assert (model(images, mask(1)).numpy() != model(images).numpy()).any()
    assert (model(images).numpy() == model(images, flow.ones(4, 512)).numpy()).all()


def test_one_step_moves_every_weight_tensor(script):
    flow, model = script.flow, lenet()
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    pixels = np.random.default_rng(0).standard_normal((8, 1, 28, 28)).astype(np.float32)
    labels, mask = flow.arange(8, dtype=flow.int32), flow.ones(8, 512)
    learner = script.make_learner(model, configured(learning_rate=1e-3), 10)
    assert math.isfinite(learner.step(flow.tensor(pixels), labels, mask).item())
    for name, p in learner.model.named_parameters():
        moved = np.abs(p.numpy() - before[name]).max()
        assert 0 < moved < 1.1e-3, name  # Adam's first step is at most the learning rate


def augmented(script, images, **amounts):
    """Images after augmentation by nothing but ``amounts`` of crop, rotation, zoom, shift."""
    config = configured(**{"crop": 0.0, **amounts})
    tensor = script.flow.tensor(np.ascontiguousarray(images, np.float32))
    return script.augment(tensor, config, np.random.default_rng(0)).numpy()


# 64 images that brighten from 0 at the left to 39 at the right
RAMP = np.tile(np.arange(40, dtype=np.float32), (64, 1, 40, 1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_is_cross_entropy_with_smoothed_labels(script, smoothing):
    from lenet.learner import loss_function

    flow, rng = script.flow, np.random.default_rng(0)
    x, labels = rng.standard_normal((8, 10)).astype("f4"), rng.integers(0, 10, 8)
    targets = (1 - smoothing) * np.eye(10)[labels] + smoothing / 10
    softmax = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    logits = flow.tensor(x, requires_grad=True)
    loss = loss_function(logits, flow.tensor(labels.astype("i4")), smoothing)
    loss.backward()
    expected = -(targets * np.log(softmax)).sum(axis=1).mean()
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), (softmax - targets) / 8, atol=1e-6)


def test_crop_stays_close_and_inside(script):
    cropped = augmented(script, RAMP, crop=0.05)
    assert cropped.shape == RAMP.shape
    assert cropped.min() >= 0 and cropped.max() <= 39
    widths = cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]
    assert (
        39 * 0.96 < widths.min() < widths.max() < 39.5
    )  # sqrt(0.95 * 0.99) = 0.97 of the width at least
    assert len(np.unique(widths)) > 60  # each image has its own window
    np.testing.assert_allclose(augmented(script, RAMP), RAMP, atol=1e-4)


def test_shift_zoom_and_rotation_are_as_large_as_they_say(script):
    middle = (slice(None), 0, 20)
    moved = (augmented(script, RAMP, shift=0.1) - RAMP)[middle][
        :, 20
    ]  # a brightness is a pixel here
    assert 3.2 < moved.max() <= 4 and -4 <= moved.min() < -3.2
    slope = np.diff(augmented(script, RAMP, zoom=0.2)[middle][:, 19:22], axis=1)[:, 0]
    assert 1.12 < slope.max() <= 1.2001 and 0.7999 <= slope.min() < 0.88
    for size in ((40, 40), (20, 60)):  # a turn stays a turn where width and height differ
        height, width = size
        ramp = np.tile(np.arange(width, dtype=np.float32), (64, 1, height, 1))
        turned = augmented(script, ramp, rotation=10.0)[:, 0]
        y, x = height // 2, width // 2
        across, down = turned[:, y, x + 1] - turned[:, y, x], turned[:, y + 1, x] - turned[:, y, x]
        angles = np.degrees(np.arctan2(down, across))
        assert 8 < angles.max() <= 10.01 and -10.01 <= angles.min() < -8
        np.testing.assert_allclose(across**2 + down**2, 1, atol=1e-3)


def test_the_reader_delivers_the_pixels_normalized(script, converted):
    images, labels = (tensor.numpy() for tensor in reader_of(script, converted, 50)[0].next_batch())
    assert images.shape == (50, 1, 28, 28) and labels.shape == (50,)
    assert labels[:6].tolist() == [3, 0, 4, 9, 5, 1]
    assert images.mean() == pytest.approx(0, abs=1e-4)
    assert images.std() == pytest.approx(0.5, abs=1e-4)
    first = cv2.imread(str(IMAGES / "00000030_3.png"), 0).astype(np.float32)
    assert np.corrcoef(images[0].ravel(), first.ravel())[0, 1] > 0.9999


def test_skipped_batches_are_those_that_would_have_been_read(script, converted):
    read, skipped = (
        reader_of(script, converted, 7, shuffle_buffer=20, seed=3)[0] for _ in range(2)
    )
    batches = [read.next_batch()[0].numpy() for _ in range(20)]
    skipped.skip(17)
    for batch in batches[17:]:
        assert (skipped.next_batch()[0].numpy() == batch).all()


@pytest.mark.parametrize("batch_size", [1, 7, 25, 49, 50])
def test_evaluation_counts_each_image_once(script, converted, batch_size):
    """Against a count by hand, for batch sizes that do not divide 50."""
    reader, spec = reader_of(script, converted, 50)
    model = lenet(spec)
    images, labels = reader.next_batch()
    logits, labels = model(images).numpy().astype(np.float64), labels.numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    said = logits.argmax(1)

    evaluation = script.evaluate(model, open_dataset(converted), "cpu", batch_size)
    assert (evaluation.num_images, evaluation.num_correct) == (50, (said == labels).sum())
    assert evaluation.loss == pytest.approx(
        -np.log(probabilities[np.arange(50), labels]).mean(), rel=1e-5
    )
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, said), 1)
    assert {pair: count for pair, count in evaluation.pairs.items()} == {
        (label, answer): confusion[label, answer]
        for label, answer in zip(*np.nonzero(confusion), strict=True)
    }
    assert [sample.label for sample in evaluation.samples] == labels[:40].tolist()
    surest = sorted(
        (probabilities[index, said[index]] for index in np.flatnonzero(said != labels)),
        reverse=True,
    )[:40]
    np.testing.assert_allclose(
        [sample.probability for sample in evaluation.mistakes], surest, rtol=1e-5
    )


# -- what is wrong is one line, and OneFlow never sees it ----------------------------------

DAMAGE = {
    "no folder": (lambda d: shutil.rmtree(str(d)), ["no dataset", "img2ofrecord.py"]),
    "an empty folder": (
        lambda d: [path.unlink() for path in d.iterdir()],
        ["not a finished dataset", "img2ofrecord.py"],
    ),
    "a stopped conversion": (
        lambda d: ((d / MANIFEST).unlink(), (d / ".img2ofrecord").mkdir()),
        ["not a finished dataset", "stopped", "img2ofrecord.py"],
    ),
    "manifest cut off": (lambda d: cut(d / MANIFEST, 99), ["dataset.json", "not a manifest"]),
    "manifest edited": (
        lambda d: (d / MANIFEST).write_text(
            (d / MANIFEST).read_text().replace('"num_records": 50', '"num_records": 49')
        ),
        ["dataset.json", "changed"],
    ),
    "manifest of bytes": (
        lambda d: (d / MANIFEST).write_bytes(b"\xff\xfe\x00"),
        ["dataset.json", "not a manifest"],
    ),
    "manifest of another converter": (
        lambda d: (d / MANIFEST).unlink(),
        ["part files but no dataset.json", "`python -m ofrecord index "],
    ),
    "part missing": (lambda d: (d / "part-3").unlink(), ["part-3", "missing"]),
    "part cut off": (
        lambda d: (d / "part-4").write_bytes((d / "part-4").read_bytes()[:-1]),
        ["part-4", "bytes"],
    ),
    "part longer": (
        lambda d: (d / "part-4").write_bytes((d / "part-4").read_bytes() + b"x"),
        ["part-4", "bytes"],
    ),
    "part empty": (lambda d: (d / "part-0").write_bytes(b""), ["part-0", "bytes"]),
    "part not listed": (
        lambda d: (d / "part-5").write_bytes(b"x"),
        ["part-5", "does not belong to this dataset"],
    ),
    "a byte of an image": (lambda d: flip(d / "part-1", 150), ["part-1", "SHA-256"]),
    "a byte of a length": (lambda d: flip(d / "part-1", 1), ["part-1", "SHA-256"]),
    "label outside": (
        lambda d: rewrite_manifest(d, label_counts={"10": 50}),
        ["dataset.json", "classes agree"],
    ),
    "label below zero": (
        lambda d: rewrite_manifest(d, label_counts={"-1": 50}),
        ["labels below 0"],
    ),
    "label miscounted": (
        lambda d: rewrite_manifest(d, label_counts={"1": 49}),
        ["dataset.json", "labels add up"],
    ),
    "an unknown field": (
        lambda d: rewrite_manifest(d, colour="red"),
        ["dataset.json", "colour"],
    ),
}


@pytest.mark.parametrize("damage, said", DAMAGE.values(), ids=list(DAMAGE))
def test_bad_datasets(dataset, damage, said):
    damage(dataset)
    assert_one_error(train(dataset), *said)


def test_hashes_of_what_did_not_change_only_when_asked(dataset):
    """A part that lost a bit on the disk looks untouched: --check_hashes finds it. (An edited one is always found.)"""
    path = dataset / "part-1"
    before = path.stat()
    flip(path, 150)
    os.utime(str(path), ns=(before.st_atime_ns, before.st_mtime_ns - 10**9))
    open_dataset(dataset)
    assert_one_error(train(dataset, "--check_hashes", "true"), "part-1", "SHA-256")
    flip(path, 150)
    assert train(dataset, "--check_hashes", "true", "--steps", 1).code == 0


def test_a_part_changed_in_the_same_tick_as_the_manifest(dataset):
    """As by `cp -r dataset copy && damage copy/part-3`: a file system's clock stands still for milliseconds."""
    flip(dataset / "part-3", 150)
    os.utime(dataset / "part-3", ns=(0, (dataset / "dataset.json").stat().st_mtime_ns))
    assert_one_error(train(dataset), "part-3", "SHA-256")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--image_size", "3"], "too small"),
        (["--image_size", "1"], "too small"),
        (["--image_size", "6000"], "GB"),
        (["--image_size", "10000000000"], "GB"),
    ],
)
def test_what_would_not_fit_is_refused(converted, arguments, said):
    assert_one_error(train(converted, *arguments), said, started=said == "GB")


def test_more_classes_than_memory_are_refused(project):
    (project / "labels.txt").write_text('{"00000000_5.png": 2147483647}\n{"00000001_0.png": 0}\n')
    assert convert("--label_dir", "labels.txt", "--part_num", 1, cwd=project).code == 0
    result = train(project / "dataset", "--batch_size", 2)
    assert_one_error(result, "2,147,483,648 classes", "GB", started=True)


def start(dataset, *arguments, **options):
    return start_script(
        "lenet_train.py", "--device", "cpu", "--dataset_dir", dataset, *arguments, **options
    )


def test_a_converter_waits_for_a_training(dataset):
    process = start(dataset, "--steps", 12, "--fetch_every", 1)
    assert process.stdout.readline().startswith("[")
    assert_one_error(convert("--save_dir", dataset, "--part_num", 3), "a training")
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert convert("--save_dir", dataset, "--part_num", 3).code == 0


def test_losses_are_written_when_they_are_fetched(converted, tmp_path):
    """A run that is killed leaves the losses it had printed, also in a file."""
    path, deadline = tmp_path / "losses.txt", time.time() + 60
    buffered = {"PYTHONUNBUFFERED": ""}  # as in a shell
    with path.open("w") as file:
        process = start(converted, "--steps", 100000, "--fetch_every", 2, stdout=file, env=buffered)
        while path.stat().st_size < 60 and time.time() < deadline:
            time.sleep(0.1)
        process.kill()
        process.communicate()
    assert len(path.read_text().splitlines()) >= 4


@pytest.mark.parametrize(
    "script, option", [("img2ofrecord.py", "--save_dir"), ("lenet_train.py", "--dataset_dir")]
)
def test_stdout_on_a_full_disk(dataset, script, option):
    more = ["--steps", 2] if option == "--dataset_dir" else []
    with open("/dev/full", "w") as full:
        process = start_script(script, option, dataset, *more, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "cannot write to stdout: No space left" in err, err
    assert "Traceback" not in err and "Exception" not in err


SLOW_DELAYS = (0.05, 0.3, 0.5, 0.9, 1.1, 1.4)


@pytest.mark.parametrize(
    "delay", [0.15, 0.7, *(pytest.param(delay, marks=pytest.mark.slow) for delay in SLOW_DELAYS)]
)
def test_ctrl_c_while_starting(converted, delay):
    """Also while OneFlow is imported, which brings a handler of its own: never a traceback, never its 255."""
    process = start(converted, "--steps", 500)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if delay > 0.1:  # before, Python itself is starting
        assert process.returncode == 130 and "Traceback" not in err, err
        assert err.endswith("error: interrupted\n"), err


def test_cuda_where_there_is_none_names_the_remedy(converted, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert_one_error(train(converted, "--device", "cuda"), "device cuda", "--device cpu")


@pytest.mark.parametrize("steps, name", [(9, "the loss is nan"), (1, "the evaluation loss is")])
def test_a_loss_that_is_no_number_ends_the_training(converted, steps, name):
    result = train(converted, *SMALL, "--steps", steps, "--learning_rate", 1e30)
    assert_one_error(result, name, " at step ", "reduce --learning_rate", started=True)


def test_a_batch_larger_than_the_dataset(converted):
    assert_one_error(train(converted, "--batch_size", 51), "batch_size 51", "50 images")


def test_images_of_different_sizes_need_a_size(tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(6):
        cv2.imwrite(
            str(tmp_path / "in" / f"{index}.png"),
            np.full((20 + index, 30), 40 * index, np.uint8),
        )
    (tmp_path / "labels.txt").write_text(
        "".join(f'{{"{index}.png": {index % 2}}}\n' for index in range(6))
    )
    result = convert(
        "--image_root",
        tmp_path / "in",
        "--label_dir",
        tmp_path / "labels.txt",
        "--save_dir",
        tmp_path / "d",
        "--part_num",
        2,
    )
    assert result.code == 0, result
    assert_one_error(train(tmp_path / "d", "--batch_size", 6), "vary in size", "--image_size")
    assert train(tmp_path / "d", "--batch_size", 6, "--steps", 2, "--image_size", 24).code == 0


def test_ctrl_c_ends_tidily(converted):
    process = start(converted, "--steps", 100000, "--fetch_every", 1)
    for _ in range(3):
        assert process.stdout.readline().startswith("[")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err


@pytest.mark.parametrize("label", [4, -1])
@pytest.mark.parametrize("evaluated", [False, True], ids=["trained on", "evaluated on"])
def test_a_label_that_the_manifest_does_not_have(dataset, converted, label, evaluated):
    """A manifest may say anything of the records; OneFlow trains on such labels without a word."""
    change_record(dataset, set_label(label))
    rewrite_manifest(dataset, label_counts={"3": 50}, num_classes=4)
    text = f"{dataset} has 4 classes and a record with label "
    command = f"`python -m ofrecord check {dataset}`"
    if evaluated:
        dataset_of_4 = dataset.with_name("other")
        shutil.copytree(converted, dataset_of_4)
        rewrite_manifest(dataset_of_4, label_counts={"9": 50}, num_classes=10)
        result = train(dataset_of_4, *SMALL, "--steps", 1, "--eval_dataset_dir", dataset)
        assert len(result.out.splitlines()) == 1
    else:
        result = train(dataset, *SMALL, "--steps", 50, "--fetch_every", 2)
        assert len(result.out.splitlines()) < 5
    assert_one_error(result, text, command, started=True)


def test_every_wrong_label_is_found(dataset):
    """Of one record, the first, in whatever batch it is."""
    change_record(dataset, set_label(-1))
    result = train(dataset, *SMALL, "--batch_size", 5, "--steps", 30)
    assert_one_error(result, "has 10 classes and a record with label -1", started=True)
