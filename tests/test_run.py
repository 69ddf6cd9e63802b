"""Runs: evaluation as they go, checkpoints, killed and resumed, what is refused, the pictures."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from conftest import PROJECT, assert_one_error, run_script

# Seven does not divide fifty: epochs end in the midst of batches. Everything random is on.
OPTIONS = ["--device", "cpu", "--batch_size", 7, "--steps", 45, "--learning_rate", 0.002, "--schedule", "cosine", "--warmup", 0.1,
           "--rotation", 10, "--zoom", 0.1, "--shift", 0.05, "--checkpoint_every", 10, "--fetch_every", 4]
STEPS, EPOCH_ENDS = 45, [8, 15, 22, 29, 36, 43]


def command(dataset, run_dir, *more):
    return [str(word) for word in (
        "--dataset_dir", dataset, "--eval_dataset_dir", dataset, "--run_dir", run_dir, *OPTIONS, *more)]


def train(dataset, run_dir, *more, **options):
    return run_script("lenet_train.py", *command(dataset, run_dir, *more), **options)


def weights(path):
    """One hash over every tensor of a checkpoint, with its name, and the optimizer's where it has them."""
    from lenet.checkpoint import open_checkpoint

    digest, checkpoint = hashlib.sha256(), open_checkpoint(str(path))

    def add(name, value):
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                add("{}.{}".format(name, key), value[key])
        else:
            digest.update(name.encode() + (value.numpy().tobytes() if hasattr(value, "numpy") else repr(value).encode()))
    add("model", dict(checkpoint.load("model")))
    if path.name == "last":
        add("optimizer", checkpoint.load("training")["optimizer"]["state"])
    return digest.hexdigest()


@pytest.fixture(scope="module")
def whole(converted, tmp_path_factory):
    """A run that was never stopped: its folder and its Result. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = train(converted, folder)
    assert result.code == 0, result
    return folder, result


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_keeps_what_it_says(whole):
    folder, result = whole
    assert sorted(path.name for path in folder.iterdir()) == [
        "best", "config.yaml", "last", "loss.png", "metrics.csv", "predictions.png"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["steps"] == STEPS and config["batch_size"] == 7 and config["crop"] == 0.05
    losses = [row for row in rows(folder) if row["loss"]]
    assert ["[{}]".format(row["loss"].rstrip("0") if "." in row["loss"] else row["loss"]) for row in losses] == [
        line.replace("[0.", "[0.") for line in result.out.split()]
    assert [int(row["step"]) for row in losses] == list(range(1, STEPS + 1))
    assert [int(row["epoch"]) for row in losses][:9] == [1] * 8 + [2]
    evaluations = [row for row in rows(folder) if row["eval_loss"]]
    assert [int(row["step"]) for row in evaluations] == EPOCH_ENDS + [STEPS]
    for row in evaluations:
        right = "{} of 50 right".format(round(50 * float(row["eval_accuracy"])))
        assert right in result.err and "loss {:.4f};".format(float(row["eval_loss"])) in result.err
    last, best = (json.loads((folder / name / "checkpoint.json").read_text())["about"] for name in ("last", "best"))
    assert last["step"] == STEPS
    assert best["eval_accuracy"] == max(float(row["eval_accuracy"]) for row in evaluations)


def test_the_learning_rate_rises_and_falls(whole):
    rates = [float(row["learning_rate"]) for row in rows(whole[0]) if row["loss"]]
    peak = int(np.argmax(rates))
    assert 3 <= peak <= 5 and 0.0018 < rates[peak] <= 0.002 and rates[0] == pytest.approx(0.0001)
    assert (np.diff(rates[:peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all() and rates[-1] < 1e-5


def test_the_confusion_table_adds_up(whole):
    lines = whole[1].err.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("is \\ said"))
    table = np.array([[0 if cell == "·" else int(cell) for cell in line.split()[1:]] for line in lines[start + 1:start + 11]])
    assert table.shape == (10, 10) and table.sum() == 50
    accuracy = float([row for row in rows(whole[0]) if row["eval_loss"]][-1]["eval_accuracy"])
    assert np.trace(table) == round(50 * accuracy)
    assert table.sum(1).tolist() == [4, 7, 4, 7, 4, 4, 5, 4, 4, 7]  # of each digit


def start(dataset, run_dir, *more):
    return subprocess.Popen([sys.executable, str(PROJECT / "lenet_train.py")] + command(dataset, run_dir, *more),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


def same_run(folder, whole):
    assert (folder / "metrics.csv").read_text() == (whole[0] / "metrics.csv").read_text()
    for name in ("last", "best"):
        assert weights(folder / name) == weights(whole[0] / name), name


@pytest.mark.parametrize("lines", [12, 27, 41])
def test_killed_and_resumed_bit_for_bit(converted, whole, tmp_path, lines):
    folder = tmp_path / "run"
    process = start(converted, folder)
    for _ in range(lines):
        assert process.stdout.readline()
    process.kill()
    process.communicate()
    result = train(converted, folder, "--resume")
    assert result.code == 0, result
    assert "resumed: " in result.err
    assert whole[1].out.endswith(result.out) and 0 < len(result.out.split()) < STEPS
    same_run(folder, whole)


def test_killed_at_every_system_call_that_saves(converted, whole, tmp_path):
    """Stopped by SIGKILL before each of a checkpoint's renames: whatever is left can be gone on from."""
    code = ("import os, signal, sys; sys.argv[0] = 'lenet_train.py'; sys.path.insert(0, {!r})\n"
            "import lenet_train, lenet.checkpoint\n"
            "rename, count = os.rename, [0]\n"
            "def deadly(*names):\n"
            "    count[0] += 1\n"
            "    if count[0] == int(os.environ['DIE']): os.kill(os.getpid(), signal.SIGKILL)\n"
            "    rename(*names)\n"
            "os.rename = deadly\n"
            "lenet_train.run(lenet_train.main)").format(str(PROJECT))
    for die in (2, 3, 6):  # a checkpoint's first save has one rename, each later two
        folder = tmp_path / str(die)
        process = subprocess.run([sys.executable, "-c", code] + command(converted, folder), stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, env=dict(os.environ, DIE=str(die)))
        assert process.returncode == -signal.SIGKILL, process.stderr
        if die >= 5:  # two checkpoints were complete
            assert "resumed" in train(converted, folder, "--resume", "--steps", STEPS).err
        else:
            assert train(converted, folder, "--resume").code == 0
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole[0].iterdir())
    same_run(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(converted, whole, tmp_path, number):
    folder = tmp_path / "my run"
    process = start(converted, folder, "--fetch_every", 1)
    for _ in range(13):
        process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    message = err.splitlines()[-1]
    assert "interrupted" in message and "is saved as it was after step" in message
    going_on = message.split("to go on: ")[1]
    assert going_on.startswith("python lenet_train.py --config '") and going_on.endswith("--resume")
    step = int(message.split("after step ")[1].split(" ")[0])
    assert 13 <= step <= 30
    result = subprocess.run(going_on.replace("python ", sys.executable + " ", 1), shell=True, cwd=str(PROJECT),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    assert "resumed: {} steps".format(step) in result.stderr
    same_run(folder, whole)


def test_a_finished_run_is_finished(converted, whole, tmp_path):
    folder = Path(shutil.copytree(str(whole[0]), str(tmp_path / "copy")))
    result = train(converted, folder, "--resume")
    assert result.code == 0 and result.out == "" and "is finished: 45 steps" in result.err
    same_run(folder, whole)


def test_where_nothing_may_be_overwritten(converted, whole, tmp_path):
    before = {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()}
    assert_one_error(train(converted, whole[0]), "holds a run already", "--resume")
    assert before == {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert_one_error(train(converted, tmp_path / "mine"), "not empty", "thesis.txt")
    assert_one_error(train(converted, tmp_path / "mine" / "thesis.txt"), "is a file")
    assert_one_error(train(converted, tmp_path / "none", "--resume"), "no run to resume")
    assert not (tmp_path / "none").exists()
    assert_one_error(run_script("lenet_train.py", "--dataset_dir", converted, "--resume"), "--resume needs")


def test_a_start_that_fails_leaves_no_folder(converted, tmp_path):
    result = train(converted, tmp_path / "run", "--learning_rate", 1e30)
    assert result.code == 2 and "the loss is nan" in result.err, result
    assert not (tmp_path / "run").exists()
    assert train(converted, tmp_path / "run", "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""}).code == 2
    assert not (tmp_path / "run").exists()


def test_two_trainings_in_one_folder(converted, tmp_path):
    process = start(converted, tmp_path / "run", "--steps", 500)
    process.stdout.readline()
    assert_one_error(train(converted, tmp_path / "run", "--steps", 500, "--resume"), "another training is using")
    process.kill()
    process.communicate()


@pytest.fixture
def copy(whole, tmp_path):
    """A run that is not finished: the whole one, to resume with more steps and to damage."""
    return Path(shutil.copytree(str(whole[0]), str(tmp_path / "copy")))


def damaged(folder, pattern, change):
    path = sorted(folder.glob(pattern))[0]
    path.write_bytes(change(path.read_bytes()))


REFUSED = {
    "other batch size": (["--batch_size", 8], None, ["batch_size 7 and not 8", "--resume"]),
    "other learning rate and seed": (["--learning_rate", 0.1, "--seed", 4], None, ["learning_rate 0.002", "seed 0 and not 4"]),
    "a bit of a weight": ([], lambda d: damaged(d, "last/model/tensor_*/out", lambda b: bytes([b[0] ^ 1]) + b[1:]),
                          ["last is damaged", "was changed"]),
    "a weight cut off": ([], lambda d: damaged(d, "last/training/tensor_*/out", lambda b: b[:-4]), ["last is damaged"]),
    "a file missing": ([], lambda d: (d / "last/model/pickled_data").unlink(), ["last is damaged", "is missing"]),
    "a file too many": ([], lambda d: (d / "last/model/more").write_bytes(b"x"), ["last is damaged", "more"]),
    "checkpoint.json edited": ([], lambda d: damaged(d, "last/checkpoint.json", lambda b: b.replace(b'"step": 45', b'"step": 44')),
                               ["last is damaged", "checkpoint.json was changed"]),
    "checkpoint.json cut off": ([], lambda d: damaged(d, "last/checkpoint.json", lambda b: b[:99]), ["checkpoint.json cannot be read"]),
    "no checkpoint.json": ([], lambda d: (d / "last/checkpoint.json").unlink(), ["not a checkpoint"]),
    "metrics cut off": ([], lambda d: damaged(d, "metrics.csv", lambda b: b[:len(b) // 2]), ["metrics.csv", "damaged"]),
    "metrics edited": ([], lambda d: damaged(d, "metrics.csv", lambda b: b.replace(b"\n7,1,", b"\n6,1,")), ["metrics.csv", "step 6"]),
    "configuration damaged": ([], lambda d: (d / "config.yaml").write_text("[1, 2"), ["config.yaml cannot be read"]),
}


@pytest.mark.parametrize("options, change, said", REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_resumed(converted, copy, options, change, said):
    if change:
        change(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert_one_error(train(converted, copy, *options, "--resume"), *said)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_other_images_are_refused(project, whole, tmp_path):
    assert run_script("img2ofrecord.py", "--part_num", 3, cwd=project).code == 0  # the same images, dealt otherwise
    folder = shutil.copytree(str(whole[0]), str(tmp_path / "copy"))
    assert_one_error(train(project / "dataset", folder, "--resume"), "cannot resume", "another dataset")


def test_another_model_is_refused(converted, copy):
    """As a later version of this project might have: the same options, another shape."""
    path = copy / "last" / "checkpoint.json"
    fields = json.loads(path.read_text())
    fields.pop("sha256")
    fields["spec"]["std"] = [255.0]
    sys.path.insert(0, str(PROJECT))
    from ofrecord.manifest import digest_of

    fields["sha256"] = digest_of(fields)
    path.write_text(json.dumps(fields))
    metrics = copy / "metrics.csv"
    metrics.write_text("\n".join(metrics.read_text().splitlines()[:-1]) + "\n")  # not finished: evaluated again
    result = train(converted, copy, "--resume")
    assert result.code == 2 and "its checkpoint is of another model" in result.err, result


def test_datasets_that_do_not_fit_together(converted, tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(4):
        cv2.imwrite(str(tmp_path / "in" / "{}.png".format(index)), np.full((28, 28), 40 * index, np.uint8))
    labels = tmp_path / "labels.txt"

    def convert(name, first_label, *more):
        labels.write_text("".join('{"%d.png": %d}\n' % (index, first_label + index) for index in range(4)))
        assert run_script("img2ofrecord.py", "--image_root", tmp_path / "in", "--label_dir", labels, "--part_num", 1,
                          "--save_dir", tmp_path / name, *more).code == 0
        return run_script("lenet_train.py", "--dataset_dir", converted, "--eval_dataset_dir", tmp_path / name)
    assert_one_error(convert("colour", 0, "--color", "color"), "do not fit together", "gray and colour")
    assert_one_error(convert("large", 0, "--size", "32x32"), "do not fit together", "28x28 and 32x32")
    assert_one_error(convert("classes", 8), "do not fit together", "10 and 12")


def test_full_disk(converted, small_disk):
    """There is room for a checkpoint, not for the next beside it: the run ends in one line and can go on from the first."""
    result = train(converted, small_disk / "run")
    assert result.code == 2 and result.err.splitlines()[-1].endswith("No space left on device"), result
    shutil.move(str(small_disk / "run"), str(small_disk.parent / "run"))
    assert "resumed: 10 steps" in train(converted, small_disk.parent / "run", "--resume").err


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)],
                                           stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("mounting a small file system takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_pictures_show_something(whole):
    loss = cv2.imread(str(whole[0] / "loss.png")).astype(int)
    upper, lower = np.array_split(loss, [loss.shape[0] * 58 // 100])
    blue, green, red = 0, 1, 2
    assert ((upper[:, :, blue] - upper[:, :, red]) > 60).sum() > 500  # the losses
    assert ((lower[:, :, red] - lower[:, :, blue]) > 60).sum() > 300  # the accuracies
    predictions = cv2.imread(str(whole[0] / "predictions.png"))
    assert predictions.std() > 60  # digits, white on black on white
    marked = predictions.astype(int)
    assert ((marked[:, :, red] - marked[:, :, blue]) > 60).sum() > 300  # some mistakes, after 45 steps of 7


def test_predictions_of_many_classes_and_of_none_wrong(tmp_path):
    """The commonest mistakes instead of a table, long names, and a model that makes no mistake."""
    from lenet.evaluation import Evaluation
    from lenet.model import Spec
    from lenet.picture import draw_predictions

    names = ["class of pictures {}".format(index) for index in range(100)]
    spec = Spec(3, 8, 8, [0.0] * 3, [1.0] * 3, 100, names)
    evaluation = Evaluation()
    pixels, labels = np.zeros((60, 8, 8, 3), np.uint8), np.arange(60)
    evaluation.add(pixels, labels, 9 * np.eye(100)[labels])
    assert evaluation.confusion(spec) == ["commonest mistakes:"] and evaluation.accuracy == 1
    draw_predictions(str(tmp_path / "right.png"), spec, evaluation)
    evaluation.add(pixels, labels, 9 * np.eye(100)[np.zeros(60, int)])
    assert "  class of pictures 1 taken for class of pictures 0: 1" in evaluation.confusion(spec)
    assert evaluation.right == 61 and evaluation.count == 120
    draw_predictions(str(tmp_path / "wrong.png"), spec, evaluation)
    assert (tmp_path / "wrong.png").stat().st_size > (tmp_path / "right.png").stat().st_size > 5000


def test_lines_in_a_log(converted, tmp_path):
    """Without a terminal no bar; losses as often as asked."""
    result = train(converted, tmp_path / "run", "--print_every", 20)
    losses = [row["loss"] for row in rows(tmp_path / "run") if row["loss"]]
    assert [float(line.strip("[]")) for line in result.out.split()] == [float(losses[19]), float(losses[39])]
    assert "\r" not in result.err and "%|" not in result.err
    assert "45 steps in" in result.err


@pytest.mark.parametrize("kept", [True, False], ids=["a run that is kept", "one that is not"])
def test_a_bar_on_a_terminal(converted, tmp_path, kept):
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, str(PROJECT / "lenet_train.py")] + command(converted, tmp_path / "run" if kept else ""),
                               stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # its end closed
            break
        if not block:
            break
        said += block
    assert process.wait(timeout=60) == 0, said
    text = said.decode()
    assert "45/45" in text and "images/s=" in text and "loss=" in text and "epoch 3 of" in text
