"""The trainer: what it prints, the network and the reader, what it refuses."""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shutil
import struct
import sys
import termios
from pathlib import Path

import cv2
import helpers
import numpy as np
import pytest
from damage import MANIFEST, change_record, cut, flip, rewrite_manifest, set_label
from helpers import PROJECT, assert_one_error, call, cases, convert, losses, train

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
        "dataset: 50 gray images (28x28) in 5 parts, 10 classes",
        "device: cpu",
        "model: LeNet, 1,663,370 parameters",
        "training: 100 steps of 25 images, 50 epochs, op by op on 1 rank",
        f"to resume after a stop: python {PROJECT}/lenet_train.py --run_dir {folder} --resume",
        "training accuracy: 50/50 (100.00%)",
    ]
    last = r"100 steps in [\d.]+ s, [\d,]+ images/s, final loss 0.00\d+"
    assert re.fullmatch(last, lines[-1]), result


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
    options = ["--image_root", folder / "in", "--label_dir", folder / "labels.txt"]
    return [*options, "--save_dir", folder / "d", "--part_num", 2]


@pytest.mark.parametrize("img_format", [".jpg", ".png"])
def test_a_colour_dataset_of_another_size(tmp_path, img_format):
    """Plain JPEG and all else go through different decoders of OneFlow."""
    assert convert(*images_in(tmp_path, 12 * [(20, 36, 3)]), "--img_format", img_format).code == 0
    result = train(tmp_path / "d", "--batch_size", 6, "--steps", 30)
    assert "12 colour images (36x20) in 2 parts, 3 classes" in result.err, result
    assert "training accuracy: 12/12" in result.err, result
    assert train(tmp_path / "d", "--batch_size", 6, "--steps", 2, "--image_size", 16).code == 0


def test_images_of_different_sizes_need_a_size(tmp_path):
    source = images_in(tmp_path, [(20 + index, 30) for index in range(6)])
    assert convert(*source).code == 0
    result = train(tmp_path / "d", "--batch_size", 6)
    assert_one_error(result, "vary in size", "--image_size", started=True)
    assert train(tmp_path / "d", "--batch_size", 6, "--steps", 2, "--image_size", 24).code == 0
    # As large as the converter makes them; and the model knows how they were fitted.
    assert convert(*source, "--size", "9999x9", "--fit", "pad").code == 0
    assert train(tmp_path / "d", "--batch_size", 6, "--steps", 1, "--image_size", 9).code == 0


def test_a_bar_on_a_terminal(converted):
    """With the speed and the recent loss; losses go elsewhere."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    options = ["--device", "cpu", "--dataset_dir", converted, *SMALL, "--steps", 20]
    process = helpers.start_script("lenet_train.py", *options, stderr=theirs)
    os.close(theirs)
    with open(ours, "rb") as terminal:
        text = b""
        with contextlib.suppress(OSError):  # its other end is closed
            while block := terminal.read1():
                text += block
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and len(out.splitlines()) == 20, text
    assert b"20/20" in text and b"images/s=" in text and b"loss=" in text, text


# -- weights, augmentation, evaluation --------------------------------------------------


def test_weights_as_he_proposes(converted, tmp_path):
    """(Those of the tutorial are seen by its losses.) A step of no size leaves them."""
    words = ["--steps", 1, "--init", "he", "--learning_rate", 1e-30, "--run_dir", tmp_path / "run"]
    assert train(converted, *words).code == 0
    with np.load(tmp_path / "run" / "last.npz") as weights:
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

    def augmented(images=RAMP, **amounts):
        config = TrainConfig(**{"crop": 0.0, **amounts})
        tensor = flow.tensor(np.ascontiguousarray(images, np.float32))
        return augment(tensor, config, np.random.default_rng(0)).numpy()

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


@pytest.mark.parametrize("batch_size", [1, 7, 49])
def test_evaluation_counts_each_image_once(converted, tmp_path, batch_size):
    """Against what lenet.predict says of each file, for batch sizes that do not divide 50."""
    run, options = tmp_path / "run", ["--steps", 9, "--batch_size", batch_size]
    result = train(converted, *SMALL, *options, "--run_dir", run)
    words = [
        "--checkpoint",
        run / "last.npz",
        "--csv",
        "--top",
        10,
        "--digit",
        "no",
        helpers.IMAGES,
    ]
    _, *table = csv.reader(io.StringIO(call("lenet.predict", *words).out))
    loss, wrong = 0, set()
    for path, *classes in table:
        name, of_class = (
            Path(path).name,
            dict(zip(classes[::2], map(float, classes[1::2]), strict=True)),
        )
        loss -= np.log(of_class[name[9]]) / 50
        wrong |= {(name, name[9], classes[0], classes[1])} if name[9] != classes[0] else set()
    assert f"training accuracy: {50 - len(wrong)}/50 " in result.err and len(table) == 50, result
    _, *found = csv.reader((run / "mistakes.csv").open())
    assert {tuple(row[:3]) for row in found} == {row[:3] for row in wrong} and wrong
    assert [float(row[3]) for row in found] == pytest.approx(
        sorted((float(row[3]) for row in wrong), reverse=True), abs=2e-5
    )
    evaluation = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert float(evaluation[4]) == pytest.approx(loss, rel=1e-3)


# -- what is wrong is one line, and OneFlow never sees it -------------------------------


def edit_text(path):
    path.write_text(path.read_text().replace('"num_records": 50', '"num_records": 49'))


def endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def manifest(**fields):
    return lambda folder: rewrite_manifest(folder, **fields)


def file(name, change, *arguments):
    return lambda folder: change(folder / name, *arguments)


LONGER = bytes(10**4)
DAMAGE = {  # what is done to a dataset, and texts of the line about it
    "no folder": (shutil.rmtree, "no dataset|img2ofrecord.py"),
    "manifest cut off": (file(MANIFEST, cut, 99), "dataset.json|not a manifest"),
    "manifest edited": (file(MANIFEST, edit_text), "dataset.json|changed"),
    "manifest of bytes": (file(MANIFEST, Path.write_bytes, b"\xff"), "dataset.json|not a manifest"),
    "part cut off": (file("part-4", cut, -1), "part-4|bytes"),
    "part longer": (file("part-4", Path.write_bytes, LONGER), "part-4|has 10,000 bytes"),
    "a byte of an image": (file("part-1", flip, 150), "part-1|SHA-256"),
    "label outside": (manifest(label_counts={"10": 50}), "dataset.json|classes agree"),
    "label below zero": (manifest(label_counts={"-1": 50}), "labels below 0"),
    "label miscounted": (manifest(label_counts={"1": 49}), "dataset.json|labels add up"),
    "an unknown field": (manifest(colour="red"), "dataset.json|colour"),
    "a device for a manifest": (file(MANIFEST, endless), "dataset.json|not a regular file"),
}


@pytest.mark.parametrize("damage, said", DAMAGE.values(), ids=list(DAMAGE))
def test_bad_datasets(dataset, converted, damage, said):
    """The one to evaluate on, too."""
    damage(dataset)
    for words in ([dataset], [converted, "--eval_dataset_dir", dataset]):
        assert_one_error(train(*words), *said.split("|"))


def test_check_hashes(dataset):
    """It finds any changed byte; without it names and sizes are compared, and OneFlow trains on it."""
    manifest = (dataset / MANIFEST).read_bytes()
    change_record(dataset, set_label(4))
    (dataset / MANIFEST).write_bytes(manifest)
    assert_one_error(train(dataset), "part-0", "SHA-256")
    assert train(dataset, *SMALL, "--check_hashes", "false", "--steps", 1).code == 0
    cut(dataset / "part-0", -1)
    assert_one_error(train(dataset, "--check_hashes", "false"), "part-0", "bytes")


UNTRAINABLE = {
    "--image_size 3": "not for 3x3 images",
    "--image_size 1": "not for 1x1 images",
    "--image_size 6000": "not for 6000x6000 images: give --image_size, 4 to 1,024",
    "--batch_size 51": "batch_size 51 is larger than the 50 images",
    "--steps 9 --learning_rate 1e30": "the loss is nan at step 2: reduce --learning_rate",
    "--steps 1 --learning_rate 1e30": "the evaluation loss is ",
}


@pytest.mark.parametrize("options", UNTRAINABLE)
def test_what_cannot_be_trained(converted, options):
    result = train(converted, *SMALL, *options.split())
    assert_one_error(result, UNTRAINABLE[options], started=True)


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
    return helpers.run_python("-c", line, "sh", *words, python="/bin/sh", timeout=60, **options)


@pytest.mark.parametrize("closing", cases(["<&- >&- 2>&-"], ["<&-", ">&-", "2>&-"]))
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


def test_a_dataset_without_rights(dataset):
    """As root the tests can read everything, the trainer here cannot."""
    for path in (dataset / "part-1", dataset / MANIFEST, dataset):
        rights = path.stat().st_mode
        path.chmod(0)
        command = ["lenet_train.py", "--device", "cpu", "--dataset_dir", dataset]
        result = helpers.run_script(*command, preexec_fn=helpers.without_rights)
        path.chmod(rights)
        assert_one_error(result, str(path), "Permission denied")


def test_where_there_is_no_dataset(tmp_path):
    assert_one_error(call("lenet_train", cwd=tmp_path), "./dataset/", "img2ofrecord.py")
    result = shell('mkdir gone; cd gone; rmdir ../gone; "$@"', cwd=tmp_path)
    assert_one_error(result, "the working folder was removed")
