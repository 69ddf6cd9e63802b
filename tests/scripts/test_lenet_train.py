"""The trainer: what it prints, the network and the reader, what it refuses."""

import csv
import io
import re
import shutil
import sys
from pathlib import Path

import helpers
import numpy as np
import pytest
from damage import MANIFEST, change_record, cut, rewrite_manifest, set_label
from helpers import PROJECT, assert_one_error, call, convert, losses, train
from making import picture
from runs import entries

SMALL = ["--image_size", 12]  # a step takes a fifth of the time

# -- what people see --------------------------------------------------------------------


def test_the_tutorials_training(tutorial_run):
    """Its losses, of which the seventh digit differs from CPU to CPU; and none of OneFlow's noise."""
    folder, result = tutorial_run
    found = losses(result)
    assert len(found) == 100
    assert found[:3] == pytest.approx([7.932042, 8.21261, 5.70085], rel=1e-4)
    assert found[-1] == pytest.approx(0.00461, rel=0.1)
    lines = [line for line in result.err.splitlines() if "tensorboard" not in line]
    assert lines[:-1] == [
        "dataset: 50 gray PNG images 28x28, 10 classes, in 5 parts, 14,997 bytes",
        "device: cpu",
        "model: LeNet, 1,663,370 parameters",
        "training: 100 steps of 25 images, 50 epochs, op by op on 1 rank",
        f"to resume after a stop: python {PROJECT}/lenet_train.py --run_dir {folder} --resume",
        "training accuracy: 50/50 (100.00%)",
    ]
    last = r"100 steps in [\d.]+ s, [\d,]+ images/s, final loss 0.00\d+"
    assert re.fullmatch(last, lines[-1]), result
    assert (folder / "mistakes.csv").read_text() == "file,label,predicted,probability\n"


def test_what_is_random(converted):
    """The same seed gives the same losses digit for digit; dropout and augmentation can be turned off."""
    runs = [["--seed", 3], ["--seed", 3, "--fetch_every", 3], ["--seed", 4]]
    first, again, other = (train(converted, *SMALL, "--steps", 4, *more).out for more in runs)
    assert first == again and len(first.splitlines()) == 4
    assert first.splitlines()[0] != other.splitlines()[0]
    # The whole dataset, in order, is each batch: nothing is random but the weights.
    plain = [*SMALL, "--batch_size", 50, "--steps", 1, "--shuffle_buffer", 0]
    plain += ["--dropout", 0, "--augment", "false"]
    without = losses(train(converted, *plain))
    for change in (["--augment", "true"], ["--dropout", 0.5], ["--label_smoothing", 0.1]):
        assert losses(train(converted, *plain, *change)) != without


def test_images_of_different_sizes_need_a_size(tmp_path):
    for seed in range(6):
        path = tmp_path / "in" / f"class {seed % 2}" / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed, (20 + seed, 36)))
    source = ["--image_root", tmp_path / "in", "--class_folders", "--part_num", 2]
    source += ["--save_dir", tmp_path / "d"]
    assert convert(*source).code == 0
    options = [tmp_path / "d", "--batch_size", 6, "--steps", 1, "--image_size"]
    assert_one_error(train(*options, "null"), "vary in size", "--image_size", started=True)
    result = train(*options, 24)
    text = "6 colour PNG images of different sizes, 2 classes, in 2 parts"
    assert result.code == 0 and text in result.err, result
    # As large as the converter makes them; and the model knows how they were fitted.
    assert convert(*source, "--size", "9999x9", "--fit", "pad").code == 0
    assert train(*options, 9).code == 0


def test_a_bar_on_a_terminal(converted):
    """With the speed and the recent loss; losses go elsewhere."""
    options = ["--device", "cpu", "--dataset_dir", converted, *SMALL, "--steps", 20]
    result = helpers.run_on_terminal("lenet_train.py", *options)
    assert len(losses(result)) == 20
    assert all(text in result.err for text in ("20/20", "images/s=", "mean loss=")), result


# -- weights, augmentation, evaluation --------------------------------------------------


def test_weights_as_he_proposes(converted, tmp_path):
    """(Those of the tutorial are seen by its losses.) A step of no size leaves them."""
    words = ["--steps", 1, "--init", "he", "--learning_rate", 1e-30, "--run_dir", tmp_path / "run"]
    assert train(converted, *words).code == 0
    weights = entries(tmp_path / "run" / "last.npz")
    for name, inputs in ("conv1", 25), ("conv2", 800), ("dense1", 3136), ("dense2", 512):
        # A normal deviate cut off at two sigma has 0.8796 of its standard deviation.
        sigma, weight = np.sqrt(2 / inputs), weights[f"{name}.weight"]
        assert weight.std() == pytest.approx(0.8796 * sigma, rel=0.05)
        assert (np.abs(weight) > 1.999 * sigma).mean() < 2e-3  # drawn again, not clamped
        assert np.abs(weight).max() <= 2 * sigma and weights[f"{name}.bias"].max() < 1e-20


# 64 images that brighten from 0 at the left to 39 at the right
RAMP = np.tile(np.arange(40, dtype=np.float32), (64, 1, 40, 1))


def test_images_vary_as_much_as_the_settings_say():
    """The only inner names of this module: no file holds augmented images."""
    from lenet_train import TrainConfig, augment, flow

    def augmented(images=RAMP, crop=0.0, **amounts):
        config, rng = TrainConfig(crop=crop, **amounts), np.random.default_rng(0)
        return augment(flow.tensor(images), config, rng).numpy()

    np.testing.assert_allclose(augmented(), RAMP, atol=1e-4)
    cropped = augmented(crop=0.05)
    assert cropped.shape == RAMP.shape and cropped.min() >= 0 and cropped.max() <= 39
    widths = cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]
    # sqrt(0.95 * 0.99) = 0.97 of the width at least
    assert 39 * 0.96 < widths.min() < widths.max() < 39.5
    assert len(np.unique(widths)) > 60  # each image has its own window
    middle = (slice(None), 0, 20)
    moved = (augmented(shift=0.1) - RAMP)[middle][:, 20]  # a pixel is a brightness
    assert 3.2 < moved.max() <= 4 and -4 <= moved.min() < -3.2
    slope = np.diff(augmented(zoom=0.2)[middle][:, 19:22], axis=1)[:, 0]
    assert 1.12 < slope.max() <= 1.2001 and 0.7999 <= slope.min() < 0.88
    for height, width in ((40, 40), (20, 60)):  # a turn stays a turn where they differ
        ramp = np.tile(np.arange(width, dtype=np.float32), (64, 1, height, 1))
        turned = augmented(ramp, rotation=10.0)[:, 0]
        y, x = height // 2, width // 2
        across, down = turned[:, y, x + 1] - turned[:, y, x], turned[:, y + 1, x] - turned[:, y, x]
        angles = np.degrees(np.arctan2(down, across))
        assert 8 < angles.max() <= 10.01 and -10.01 <= angles.min() < -8
        np.testing.assert_allclose(across**2 + down**2, 1, atol=1e-3)


def test_evaluation_counts_each_image_once(converted, tmp_path):
    """Against what lenet.predict says of each file, in batches that do not divide 50."""
    run, words = tmp_path / "run", ["--csv", "--top", 10, "--digit", "no", helpers.IMAGES]
    result = train(converted, *SMALL, "--steps", 9, "--batch_size", 7, "--run_dir", run)
    predicted = call("lenet.predict", "--checkpoint", run / "last.npz", *words).out
    _, *table = csv.reader(io.StringIO(predicted))
    loss, wrong = 0, []
    for path, *classes in table:
        name = Path(path).name
        probabilities = dict(zip(classes[::2], map(float, classes[1::2]), strict=True))
        loss -= np.log(probabilities[name[9]]) / 50
        if classes[0] != name[9]:
            wrong.append((name, name[9], classes[0], float(classes[1])))
    assert f"training accuracy: {50 - len(wrong)}/50 " in result.err and len(table) == 50, result
    _, *found = csv.reader((run / "mistakes.csv").open())
    assert sorted(tuple(row[:3]) for row in found) == sorted(row[:3] for row in wrong) != []
    probabilities = sorted((row[3] for row in wrong), reverse=True)
    assert [float(row[3]) for row in found] == pytest.approx(probabilities, abs=2e-5)
    evaluation = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert float(evaluation[4]) == pytest.approx(loss, rel=1e-3)


# -- what is wrong is one line, and OneFlow never sees it -------------------------------


def test_check_hashes(dataset, converted):
    """It finds any changed byte; without it names and sizes are compared, and OneFlow trains on it."""
    manifest = (dataset / MANIFEST).read_bytes()
    change_record(dataset, set_label(4))
    (dataset / MANIFEST).write_bytes(manifest)
    for words in ([dataset], [converted, "--eval_dataset_dir", dataset]):
        assert_one_error(train(*words), "part-0", "SHA-256")
    assert train(dataset, *SMALL, "--check_hashes", "false", "--steps", 1).code == 0
    cut(dataset / "part-0", -1)
    assert_one_error(train(dataset, "--check_hashes", "false"), "part-0", "bytes")


MANY = {"num_classes": 2**31, "label_counts": {"2147483647": 50}}
FIELDS = {  # what a line says of other fields in the manifest
    "dataset.json|classes agree": {"label_counts": {"10": 50}},
    "dataset.json|labels add up": {"label_counts": {"1": 49}},
    "dataset.json|colour": {"colour": "red"},
    "labels up to 2,147,483,647|renumber them, below 1,048,576": MANY,
}


@pytest.mark.parametrize("said", FIELDS)
def test_bad_manifests(dataset, said):
    rewrite_manifest(dataset, **FIELDS[said])
    assert_one_error(train(dataset), *said.split("|"), started=True)


UNTRAINABLE = {
    "--image_size 3": "not for 3x3 images",
    "--image_size 6000": "not for 6000x6000 images: give --image_size, 4 to 1,024",
    "--batch_size 51": "batch_size 51 is larger than the 50 images",
    "--steps 9 --learning_rate 1e30": "the loss is nan at step 2: reduce --learning_rate",
    "--steps 1 --learning_rate 1e30": "the evaluation loss is ",
}


@pytest.mark.parametrize("options", UNTRAINABLE)
def test_what_cannot_be_trained(converted, options):
    result = train(converted, *SMALL, *options.split())
    assert_one_error(result, UNTRAINABLE[options], started=True)


NAMES = {"class_names": list("abcdefghij")}
COLOUR = {"channels": 3, "mean": [9.0] * 3, "std": [9.0] * 3, "histogram": 3 * [256 * [1]]}
DIFFERENT = {  # of the dataset to train on, of the other one, what is said
    "classes": ({}, {"num_classes": 12, "label_counts": {"11": 50}}, "are 10 and 12"),
    "names": (NAMES, {"class_names": list("abcdefgxij")}, "class 7 is h and x"),
    "no names": (NAMES, {}, "class 0 is a and unnamed: convert both with one --classes file"),
    "colour": ({}, COLOUR, "gray and colour"),
    "size": ({}, {"width": 32, "height": 32}, "28x28 and 32x32"),
    "same": ({}, {}, "are the same dataset: evaluate on other images"),
    "splits": ({"split_id": "a" * 16}, {"split_id": "b" * 16}, "come from different splits"),
}


@pytest.mark.parametrize("one, other, text", DIFFERENT.values(), ids=DIFFERENT)
def test_datasets_that_do_not_fit_together(dataset, converted, tmp_path, one, other, text):
    shutil.copytree(converted, tmp_path / "train")
    rewrite_manifest(tmp_path / "train", **one)
    rewrite_manifest(dataset, **other)
    result = train(tmp_path / "train", "--eval_dataset_dir", dataset)
    assert_one_error(result, text, started=True)


# -- odd machines -----------------------------------------------------------------------


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>&-", "> /dev/full"])
def test_closed_streams_and_a_full_disk(converted, streams):
    train = [PROJECT / "lenet_train.py", "--device", "cpu", "--dataset_dir", converted]
    words = ["-c", f'"$@" {streams}', "sh", sys.executable, *train, *SMALL, "--steps", 2]
    result = helpers.run_python(*words, python="/bin/sh", timeout=60)
    assert "Traceback" not in result.err + result.out and "Exception" not in result.err, result
    if "full" in streams:
        text = "cannot write to stdout: No space left on device"
        assert_one_error(result, text, started=True)
    else:  # messages do not take the way of results
        assert len(losses(result)) == (0 if ">&- " in streams else 2)


def test_where_there_is_no_dataset(tmp_path):
    assert_one_error(call("lenet_train", cwd=tmp_path), "./dataset/", "img2ofrecord.py")
