"""Runs: evaluation, checkpoints, killed and resumed, interrupted, refused; metrics, bar and pictures."""

import csv
import fcntl
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from damage import rewrite_manifest
from helpers import (
    ENVIRONMENT,
    IMAGES,
    LABELS,
    PROJECT,
    assert_one_error,
    call,
    convert,
    losses,
    run_python,
    run_script,
    snapshot,
    start_script,
)

# Seven does not divide fifty: epochs end within batches. Everything random is on. At 12 x 12
# pixels a step takes a fifth of the time, and some digits are still mistaken at the end.
OPTIONS = ["--batch_size", 7, "--steps", 45, "--image_size", 12, "--learning_rate", 0.002]
OPTIONS += ["--schedule", "cosine", "--warmup", 0.1, "--rotation", 10, "--zoom", 0.1]
OPTIONS += ["--shift", 0.05, "--checkpoint_every", 10, "--fetch_every", 4, "--device", "cpu"]
STEPS, EPOCH_ENDS = 45, [8, 15, 22, 29, 36, 43]
FILES = ["best.npz", "config.yaml", "last.npz", "loss.png", "metrics.csv", "predictions.png"]


@pytest.fixture(scope="module")
def datasets(converted, tmp_path_factory):
    """The options that name the dataset to train on and one of 15 of its images to evaluate on. Read only.

    (Most of the time that a picture of predictions takes goes with the number of images.)
    """
    folder = tmp_path_factory.mktemp("evaluation")
    lines = LABELS.read_text().splitlines(keepends=True)[:15]
    (folder / "labels.txt").write_text("".join(lines))
    (folder / "images").mkdir()
    for name in json.loads("[" + ",".join(lines) + "]"):
        shutil.copy(IMAGES / next(iter(name)), folder / "images")
    source = ["--image_root", folder / "images", "--label_dir", folder / "labels.txt"]
    result = convert(*source, "--part_num", 2, "--save_dir", folder / "dataset")
    assert result.code == 0, result
    return ["--dataset_dir", converted, "--eval_dataset_dir", folder / "dataset"]


def command(datasets, run_dir, *more):
    """The arguments of a training; of equal options the last counts."""
    return [str(word) for word in (*datasets, "--run_dir", run_dir, *OPTIONS, *more)]


def train(datasets, run_dir, *more):
    return call("lenet_train", *command(datasets, run_dir, *more))


def start(datasets, run_dir, *more, **options):
    return start_script("lenet_train.py", *command(datasets, run_dir, *more), **options)


def files_of(folder):
    """The sorted names of a run's files, without those for TensorBoard, where it is installed."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("events."))


def rows(folder):
    """The rows of a run's metrics: those of steps, and those of evaluations."""
    with (folder / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [row for row in found if row["loss"]], [row for row in found if row["eval_loss"]]


# -- the inside of checkpoints ----------------------------------------------------------


def entries(path):
    """The arrays of a checkpoint, by name."""
    with np.load(path) as file:
        return dict(file)


def about(path):
    """What a checkpoint says of itself."""
    return json.loads(entries(path)["checkpoint"].tobytes())


def arrays(path):
    """{name: bytes} of all the arrays in a checkpoint but what it says of itself."""
    return {
        name: (array.dtype, array.shape, array.tobytes())
        for name, array in entries(path).items()
        if name != "checkpoint"
    }


def edit(path, change):
    """Let ``change`` alter the arrays of a checkpoint, and write it as NumPy does."""
    found = entries(path)
    change(found)
    np.savez(path, **found)


def edit_about(path, change):
    """Let ``change`` alter what a checkpoint says of itself."""
    fields = about(path)
    change(fields)
    text = np.frombuffer(json.dumps(fields).encode(), np.uint8)
    edit(path, lambda found: found.update(checkpoint=text))


def edit_bytes(path, change):
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before


def flip_in(entry):
    """Flips a bit in the data of an entry of a checkpoint."""

    def flip(path):
        def change(content):
            data = entries(path)[entry].tobytes()
            position = content.index(data) + len(data) // 2
            byte = bytes([content[position] ^ 1])
            return content[:position] + byte + content[position + 1 :]

        edit_bytes(path, change)

    return flip


def add_npy(name, content, **options):
    """Appends an entry to a checkpoint."""

    def add(path):
        with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
            warnings.simplefilter("ignore")  # that it is there already
            file.writestr(f"{name}.npy", content, **options)

    return add


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


HUGE = npy(np.zeros(8, np.float32)).replace(b"(8,), }", b"(2000000000,), }")
PICKLE = npy(np.array([{}], object))
WEIGHT, MOMENT, STEP = "dense1.weight", "training/dense1.weight/exp_avg", "training/step"


def without(name):
    return lambda path: edit(path, lambda found: found.pop(name))


def changed(name, change):
    return lambda path: edit(path, lambda found: found.update({name: change(found[name])}))


def about_with(**fields):
    return lambda path: edit_about(path, lambda found: found.update(fields))


DAMAGED_CHECKPOINTS = {  # what is done to last.npz, and texts of the line about it
    "cut off": (lambda p: edit_bytes(p, lambda b: b[: len(b) // 2]), ["is damaged"]),
    "empty": (lambda p: p.write_bytes(b""), ["is damaged"]),
    "a bit of a weight": (flip_in(WEIGHT), ["is damaged", "CRC"]),
    "a bit of a moment": (flip_in(MOMENT), ["is damaged", "CRC"]),
    "a bit of its description": (flip_in("checkpoint"), ["is damaged", "CRC"]),
    "a weight missing": (without(WEIGHT), [f"{WEIGHT} is missing"]),
    "a moment missing": (without(MOMENT), ["dense1.weight/exp_avg is missing"]),
    "the step missing": (without(STEP), ["step is missing"]),
    "its description missing": (without("checkpoint"), ["is damaged", "no entry checkpoint"]),
    "an entry too many": (add_npy("more", npy(np.zeros(3))), ["more does not match"]),
    "a moment too many": (add_npy("training/x", npy(np.zeros(3))), ["x does not match"]),
    "an entry twice": (add_npy(WEIGHT, npy(np.zeros(3))), [f"entry {WEIGHT}"]),
    "a shape": (changed(WEIGHT, lambda a: a.reshape(-1)), [f"{WEIGHT} does not match"]),
    "a moment's shape": (changed(MOMENT, lambda a: a[1:]), ["exp_avg does not match"]),
    "a type": (changed(WEIGHT, np.float64), [f"{WEIGHT} does not match"]),
    "a moment's type": (changed(MOMENT, np.float16), ["exp_avg does not match"]),
    "a pickle": (add_npy("more", PICKLE), ["is damaged", "Object arrays cannot be loaded"]),
    "a size that is not there": (add_npy("more", HUGE), ["is damaged", "EOF: reading array data"]),
    "compressed": (
        add_npy("more", npy(np.zeros(3)), compress_type=zipfile.ZIP_DEFLATED),
        ["is damaged", "entry more"],
    ),
    "no JSON": (changed("checkpoint", lambda a: a[1:]), ["is damaged"]),
    "an unknown field": (about_with(more=1), ["is damaged", "more"]),
    "a step that is no number": (about_with(step="20"), ["is damaged", "step"]),
    "another model": (
        lambda p: edit_about(p, lambda found: found["spec"].update(scale=[255.0])),
        ["its checkpoint is of a different model"],
    ),
    "another mode": (
        about_with(execution_mode="as a graph in mixed precision on 1 rank"),
        ["it was trained as a graph in mixed precision, not op by op"],
    ),
    "more figures than channels": (
        lambda p: edit_about(p, lambda found: found["spec"].update(mean=[1.0, 2.0, 3.0])),
        ["is damaged", "a figure a channel"],
    ),
    "fewer names than classes": (
        lambda p: edit_about(p, lambda found: found["spec"].update(class_names=["a", "b"])),
        ["is damaged", "10 class names"],
    ),
    "a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), ["is not a regular file"]),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), ["is a folder, and a checkpoint is a file"]),
    "a folder of an earlier version": (
        lambda p: (p.unlink(), (p.parent / "last").mkdir()),
        ["last is a folder", "earlier versions cannot be read"],
    ),
}


# -- a run that was never stopped ---------------------------------------------------------


@pytest.fixture(scope="module")
def whole(datasets, tmp_path_factory):
    """A run from start to end in this process: its folder and its Result. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = train(datasets, folder)
    assert result.code == 0, result
    return folder, result


def assert_same_run(folder, whole):
    """It ended bit for bit as the whole one, and nothing is left of being stopped."""
    assert (folder / "metrics.csv").read_text() == (whole[0] / "metrics.csv").read_text()
    for name in ("last.npz", "best.npz"):
        found, expected = arrays(folder / name), arrays(whole[0] / name)
        assert found.keys() == expected.keys() and len(found) == (25 if name[0] == "l" else 8)
        for entry in expected:
            assert found[entry] == expected[entry], (name, entry)
    assert files_of(folder) == FILES


def test_run_folder_holds_what_was_printed(whole):
    folder, result = whole
    assert files_of(folder) == FILES
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["steps"] == STEPS and config["batch_size"] == 7 and config["crop"] == 0.05
    steps, evaluations = rows(folder)
    assert [float(row["loss"]) for row in steps] == losses(result)
    assert [int(row["step"]) for row in steps] == list(range(1, STEPS + 1))
    assert [int(row["epoch"]) for row in steps][:9] == [1] * 8 + [2]
    assert [int(row["step"]) for row in evaluations] == EPOCH_ENDS + [STEPS]
    for row in evaluations:
        correct = round(15 * float(row["eval_accuracy"]))
        assert f"accuracy {correct}/15" in result.err
        assert f"loss {float(row['eval_loss']):.4f}, " in result.err
    best = max(float(row["eval_accuracy"]) for row in evaluations)
    assert about(folder / "last.npz")["step"] == STEPS
    assert about(folder / "best.npz")["eval_accuracy"] == best


def test_learning_rate_rises_and_falls(whole):
    rates = [float(row["learning_rate"]) for row in rows(whole[0])[0]]
    peak = int(np.argmax(rates))
    assert 3 <= peak <= 5 and 0.0018 < rates[peak] <= 0.002 and rates[0] == pytest.approx(0.0001)
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] < 1e-5


def test_confusion_table_adds_up(whole):
    lines = whole[1].err.splitlines()
    first = (
        next(index for index, line in enumerate(lines) if line.startswith("label \\ predicted")) + 1
    )
    lines = [line.split() for line in lines[first:][:10]]
    table = np.array([[int(cell.replace("·", "0")) for cell in line[1:11]] for line in lines])
    assert table.shape == (10, 10)
    for row, line in zip(table, lines, strict=True):  # each ends with the class's accuracy
        correct, number = row[int(line[0])], row.sum()
        percent = [f"({correct / number:.2%})"] if number else []
        assert line[11:] == [f"{correct}/{number}", *percent]
    assert table.sum(1).tolist() == [3, 3, 0, 2, 1, 2, 0, 1, 0, 3]  # of each digit
    accuracy = float(rows(whole[0])[1][-1]["eval_accuracy"])
    assert np.trace(table) == round(15 * accuracy)


def test_pictures_show_something(whole, tutorial_run):
    def redder(image, than=60):
        return (image[:, :, 2] - image[:, :, 0] > than).sum()

    def bluer(image, than=60):
        return (image[:, :, 0] - image[:, :, 2] > than).sum()

    loss = cv2.imread(str(whole[0] / "loss.png")).astype(int)
    upper, lower = np.array_split(loss, [loss.shape[0] * 58 // 100])
    assert bluer(upper) > 500  # the losses
    assert redder(lower) > 300  # the accuracies
    some_wrong, none_wrong = (
        cv2.imread(str(folder / "predictions.png")).astype(int)
        for folder in (whole[0], tutorial_run[0])
    )
    assert some_wrong.std() > 60 and none_wrong.std() > 60  # digits, white on black on white
    assert redder(some_wrong) > 300 and redder(none_wrong) == 0  # mistakes are marked


def test_losses_in_a_log(datasets, whole, tmp_path):
    """Without a terminal there is no bar; losses are printed as often as asked and all are kept."""
    result = train(datasets, tmp_path / "run", "--print_every", 20)
    kept = [float(row["loss"]) for row in rows(tmp_path / "run")[0]]
    assert losses(result) == [kept[19], kept[39]] and len(kept) == STEPS
    assert "\r" not in result.err and "%|" not in result.err
    assert "45 steps in" in result.err
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    "kept",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["without a run folder", "with a run folder"],
)
def test_bar_on_a_terminal(datasets, tmp_path, kept):
    ours, theirs = os.openpty()
    size = struct.pack("HHHH", 24, 120, 0, 0)  # a terminal of 0 rows gets no bar from tqdm
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    folder = tmp_path / "run" if kept else ""
    process = start(datasets, folder, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    output = b""
    try:
        while block := os.read(ours, 4096):
            output += block
    except OSError:  # its end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0, output
    text = output.decode()
    assert f"{STEPS}/{STEPS}" in text and "images/s=" in text and "loss=" in text
    assert "epoch 3/" in text


# -- stopped and resumed ------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines", [13, *(pytest.param(n, marks=pytest.mark.slow) for n in (27, 41))]
)
def test_killed_and_resumed_bit_for_bit(datasets, whole, tmp_path, lines):
    folder = tmp_path / "run"
    process = start(datasets, folder)
    for _ in range(lines):
        assert process.stdout.readline()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    wait_until_free(folder)
    result = train(datasets, folder, "--resume")
    assert result.code == 0 and "resumed after step " in result.err, result
    assert whole[1].out.endswith(result.out) and len(losses(result)) < STEPS
    assert_same_run(folder, whole)


def wait_until_free(folder):
    """Wait until the process that trained in the folder is gone, which its guard does not wait for when killed."""
    deadline = time.monotonic() + 30
    while any(str(folder) in words for words in command_lines()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended meanwhile
            pass


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_stopped_again_and_again_bit_for_bit(datasets, whole, tmp_path, kills):
    """By SIGKILL or SIGINT after random steps: as many runs as that takes end as the whole one."""
    rng = np.random.default_rng(kills)
    folder, runs = tmp_path / "run 0", 0
    for _ in range(kills):
        options = ["--fetch_every", 1, "--checkpoint_every", rng.integers(1, 5)]
        process = start(datasets, folder, *options, *(["--resume"] if folder.exists() else []))
        for _ in range(rng.integers(1, 9)):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL if rng.random() < 0.5 else signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, 130, 0), err
        wait_until_free(folder)
        if len(rows(folder)[0]) == STEPS:
            finish(datasets, folder, whole)
            runs += 1
            folder = tmp_path / f"run {runs}"
    if folder.exists():
        finish(datasets, folder, whole)


def finish(datasets, folder, whole, text=""):
    """Resume a run, which says ``text`` and ends as the whole one."""
    result = train(datasets, folder, "--resume")
    assert result.code == 0 and text in result.err, result
    assert_same_run(folder, whole)


# Trainings to which something happens in the middle, as it might on a slow computer.
HOOKED = """
import os, signal, sys, time
import lenet_train
from lenet.run import Run
from runtime.cli import run_main

{}
sys.argv[0] = "lenet_train.py"
run_main(lenet_train.main)
"""
SLEEPS = """
augment, calls = lenet_train.augment, []

def hooked(*arguments):
    calls.append(None)
    if len(calls) == int(os.environ["HOOK_AT"]):
        os.write(1, b"[0]\\n")
        time.sleep(60)
    return augment(*arguments)

lenet_train.augment = hooked
"""
FAILS = """
lenet_train.augment = lambda *arguments: open("other.txt")
"""
INTERRUPTED = """
should_save, calls = Run.should_save, []

def hooked(self, step):
    calls.append(step)
    if calls[-2:] == [6, 6]:  # after the loss was logged
        os.kill(os.getpid(), signal.SIGINT)
    return should_save(self, step)

Run.should_save = hooked
"""


IN_EVALUATION = """
from lenet.evaluation import Evaluation

add, calls = Evaluation.add, []

def hooked(self, *batch):
    calls.append(None)
    if len(calls) == int(os.environ["HOOK_AT"]):
        os.kill(os.getpid(), signal.SIGINT)
    return add(self, *batch)

Evaluation.add = hooked
"""


def start_hooked(folder, hook, arguments, **environment):
    (folder / "hooked.py").write_text(HOOKED.format(hook))
    environment["PYTHONPATH"] = str(PROJECT)
    return start_script(folder / "hooked.py", *arguments, env=environment)


def test_interrupted_between_two_fetches_of_losses(datasets, whole, tmp_path):
    """The losses of steps 5 and 6 are still on the device when the request comes, and must be kept."""
    folder = tmp_path / "run"
    process = start_hooked(tmp_path, INTERRUPTED, command(datasets, folder, "--fetch_every", 4))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "after step 7 of 45" in err, err
    finish(datasets, folder, whole, "resumed after step 7\n")


def test_interrupted_in_the_last_evaluation(datasets, whole, tmp_path):
    """Twice: what is resumed is that evaluation alone, and it is not skipped."""
    folder = tmp_path / "run"
    for batch, more in ((6 * 3 + 2, []), (1, ["--resume"])):
        arguments = command(datasets, folder, *more)
        process = start_hooked(tmp_path, IN_EVALUATION, arguments, HOOK_AT=str(batch))
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "after step 45 of 45; resume with" in err, err
        assert len(rows(folder)[1]) == len(EPOCH_ENDS)
    finish(datasets, folder, whole, "resumed after step 45\n")


@pytest.mark.parametrize("step, saved", [pytest.param(3, 0, marks=pytest.mark.slow), (13, 10)])
def test_a_second_ctrl_c_ends_at_once(datasets, whole, tmp_path, step, saved):
    """Then the last checkpoint counts, and nothing that is there is lost."""
    folder = tmp_path / "run"
    process = start_hooked(tmp_path, SLEEPS, command(datasets, folder), HOOK_AT=str(step))
    while (line := process.stdout.readline()) != "[0]\n":
        assert line, process.stderr.read()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)  # within a second: a copy of the same request
    time.sleep(1)
    assert process.poll() is None
    before = snapshot(folder)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.count("press Ctrl-C again") == 1, err
    assert err.endswith("error: interrupted\n"), err
    where = f"saved {folder} after step {saved} of 45; resume with: python lenet_train.py "
    assert (where in err) == (saved > 0), err
    assert {**snapshot(folder), "metrics.csv": b""} == {**before, "metrics.csv": b""}
    text = f"resumed after step {saved}" if saved else "stopped before its first checkpoint"
    finish(datasets, folder, whole, text)


def test_closed_stdout_loses_nothing(datasets, whole, tmp_path):
    """As with ``| head``, before and after the first checkpoint."""
    folder = tmp_path / "run"
    for lines, more in ((3, []), (12, ["--resume"])):
        process = start(datasets, folder, "--fetch_every", 1, *more)
        for _ in range(lines):
            assert process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == 141 and "stdout was closed" in err, err
        process.stderr.close()
        assert {"config.yaml", "metrics.csv"} <= {path.name for path in folder.iterdir()}
    finish(datasets, folder, whole)


DEADLY = """
import os, runpy, signal, sys
count = 0
def die(event, arguments):
    global count
    names = [os.path.basename(str(path)) for path in arguments[:2]]
    if event == "os.rename" and "last.npz" in names:
        count += 1
        if count == int(os.environ["DIE_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
sys.argv[0] = "lenet_train.py"
sys.path.insert(0, os.getcwd())
runpy.run_path("lenet_train.py", run_name="__main__")
"""


def killed_at(datasets, folder, die_at):
    """A run that was killed before the n-th rename to ``last.npz``."""
    result = run_python("-c", DEADLY, *command(datasets, folder), env={"DIE_AT": str(die_at)})
    assert result.code == 128 + signal.SIGKILL, result  # said by the guard
    assert "the training was killed, perhaps out of memory" in result.err, result


@pytest.mark.parametrize(
    "die_at, said",
    [
        pytest.param(1, "run was stopped before its first checkpoint", marks=pytest.mark.slow),
        pytest.param(2, "resumed after step 10"),
        pytest.param(4, "resumed after step 30", marks=pytest.mark.slow),
    ],
)
def test_killed_at_the_renames_that_save(datasets, whole, tmp_path, die_at, said):
    killed_at(datasets, tmp_path / "run", die_at)
    finish(datasets, tmp_path / "run", whole, said)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupted_run_is_saved_and_its_command_resumes_it(datasets, whole, tmp_path, number):
    folder = tmp_path / "my run"
    process = start(datasets, folder, "--fetch_every", 1)
    for _ in range(13):
        assert process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    message, last = err.splitlines()[-2:]
    assert last == "lenet_train.py: error: interrupted", err
    step = int(re.search(r" after step (\d+) of 45; ", message).group(1))
    assert 13 <= step <= STEPS
    resume = message.split("; resume with: ")[1]
    assert resume == f"python {PROJECT}/lenet_train.py --config '{folder}/config.yaml' --resume"
    result = subprocess.run(
        resume.replace("python ", f"{sys.executable} ", 1),
        shell=True,
        cwd=PROJECT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert result.returncode == 0 and f"resumed after step {step}" in result.stderr, result.stderr
    assert_same_run(folder, whole)


def test_running_training_writes_at_once_and_keeps_others_out(dataset, tmp_path):
    """Losses are in a file when they are fetched; no converter replaces the dataset, no second training takes the run."""
    options = [["--dataset_dir", dataset], tmp_path / "run", "--steps", 100_000]
    with (tmp_path / "losses.txt").open("w") as file:
        process = start(*options, stdout=file)
    try:
        wait_for_lines(tmp_path / "losses.txt", 13)
        before = snapshot(dataset)
        converting = convert("--save_dir", dataset, "--part_num", 3)
        assert_one_error(converting, "a training, is using", "wait")
        assert snapshot(dataset) == before
        assert_one_error(train(*options, "--resume"), "another training is using", "wait")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and " after step " in err, err
    assert convert("--save_dir", dataset, "--part_num", 3).code == 0


def wait_for_lines(path, number):
    deadline = time.monotonic() + 60
    while path.read_bytes().count(b"\n") < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_finished_run_is_not_trained_further(datasets, whole, tmp_path):
    folder = Path(shutil.copytree(whole[0], tmp_path / "copy"))
    before = snapshot(folder)
    result = train(datasets, folder, "--resume")
    assert losses(result) == [] and "is finished: 45 steps, accuracy " in result.err
    assert snapshot(folder) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for three of the four copies of a model that two saves take."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system takes root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(datasets, small_disk):
    """There is room for a checkpoint, not for a second: one line, and the run goes on from the first."""
    process = start(datasets, small_disk / "run")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    line = f"error: cannot write {small_disk}/run/\\w+.npz: No space left on device"
    assert re.search(line, err.splitlines()[-1]), err
    shutil.move(small_disk / "run", small_disk.parent / "run")
    result = train(datasets, small_disk.parent / "run", "--resume")
    assert result.code == 0 and "resumed after step 10" in result.err, result


def test_an_error_of_another_file_does_not_blame_the_run(datasets, tmp_path):
    """What fails is named as what it is; the run is kept."""
    process = start_hooked(tmp_path, FAILS, command(datasets, tmp_path / "run"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "No such file or directory: 'other.txt'" in err, err
    assert "cannot write" not in err, err
    assert (tmp_path / "run" / "metrics.csv").exists()


# -- refused ------------------------------------------------------------------------------


def test_nothing_is_overwritten(datasets, whole, tmp_path):
    before = snapshot(whole[0])
    assert_one_error(train(datasets, whole[0]), "contains a run already", "--resume")
    assert snapshot(whole[0]) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert_one_error(train(datasets, tmp_path / "mine"), "not empty", "thesis.txt")
    file = tmp_path / "mine" / "thesis.txt"
    assert_one_error(train(datasets, file), f"cannot use run_dir {file}: File exists; name another")
    assert_one_error(train(datasets, file / "x"), f"cannot use run_dir {file}/x: Not a directory")
    assert snapshot(tmp_path / "mine") == {"thesis.txt": b"x"}


def test_nothing_to_resume(datasets, tmp_path):
    result = call("lenet_train", "--run_dir", tmp_path / "none", "--resume", cwd=tmp_path)
    assert_one_error(result, f"no run to resume in {tmp_path / 'none'}: start it without --resume")
    assert not (tmp_path / "none").exists()
    assert_one_error(train(datasets, "", "--resume"), "--resume requires")


def test_a_failed_start_can_be_repeated(datasets, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = train(datasets, tmp_path / "run", "--device", "cuda")
    assert_one_error(result, "device cuda", "--device cpu")
    assert train(datasets, tmp_path / "run", "--steps", 1).code == 0


@pytest.mark.parametrize("checkpoint_every", [1, 10])
def test_a_loss_that_is_no_number_loses_nothing(datasets, whole, tmp_path, checkpoint_every):
    folder = tmp_path / "run"
    wrong = ["--learning_rate", 1e30, "--warmup", 0, "--checkpoint_every", checkpoint_every]
    text = "the loss is nan at step "
    assert_one_error(train(datasets, folder, *wrong), text, started=True)
    files, before = snapshot(folder), files_of(folder)
    assert {"config.yaml", "metrics.csv"} <= set(files)
    assert ("last.npz" in files) == (checkpoint_every == 1)
    assert_one_error(train(datasets, folder), "contains a run already")
    assert snapshot(folder) == files
    assert_one_error(train(datasets, folder, *wrong, "--resume"), text, started=True)
    assert files_of(folder) == before
    result = train(datasets, folder, "--resume")  # with sound settings
    if checkpoint_every == 1:
        assert_one_error(result, "it was started with learning_rate 1e+30, not 0.002; warmup 0")
    else:
        assert result.code == 0, result
        assert_same_run(folder, whole)


@pytest.fixture(scope="module")
def stopped(datasets, tmp_path_factory):
    """A run that was killed after its checkpoint of step 20. Read only."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    killed_at(datasets, folder, 3)
    return folder


@pytest.mark.parametrize("damage, texts", DAMAGED_CHECKPOINTS.values(), ids=DAMAGED_CHECKPOINTS)
def test_a_damaged_checkpoint_is_not_resumed(datasets, stopped, tmp_path, damage, texts):
    copy = Path(shutil.copytree(stopped, tmp_path / "copy"))
    damage(copy / "last.npz")
    before = snapshot(copy)
    assert_one_error(train(datasets, copy, "--resume"), str(copy), *texts, started=True)
    assert snapshot(copy) == before


def test_an_undamaged_copy_is_resumed(datasets, stopped, whole, tmp_path):
    copy = Path(shutil.copytree(stopped, tmp_path / "copy"))
    edit_about(copy / "last.npz", lambda found: None)  # written anew, as the damaged ones were
    finish(datasets, copy, whole, "resumed after step 20")


DAMAGED_METRICS = {
    "cut off": (lambda b: b[: len(b) // 3], ["it ends with step "]),
    "edited": (lambda b: b.replace(b"\n7,1,", b"\n6,1,"), ["step 6 follows step 6"]),
    "no table": (lambda b: b"x" + b, ["not a table of metrics"]),
    "no numbers": (lambda b: b.replace(b"\n7,1,", b"\nseven,1,"), ["seven"]),
    "bytes": (lambda b: b"\xff" + b, ["decode"]),
}


@pytest.mark.parametrize("damage, texts", DAMAGED_METRICS.values(), ids=DAMAGED_METRICS)
def test_damaged_metrics_are_not_resumed(datasets, stopped, tmp_path, damage, texts):
    copy = Path(shutil.copytree(stopped, tmp_path / "copy"))
    edit_bytes(copy / "metrics.csv", damage)
    before = snapshot(copy)
    result = train(datasets, copy, "--resume")
    assert_one_error(result, "metrics.csv was changed or damaged", *texts)
    assert snapshot(copy) == before


@pytest.mark.parametrize(
    "options, texts",
    [
        (["--batch_size", 8], ["it was started with batch_size 7, not 8; --run_dir DIR"]),
        (
            ["--learning_rate", 0.1, "--seed", 4],
            ["learning_rate 0.002, not 0.1", "seed 0, not 4"],
        ),
    ],
    ids=["batch size", "learning rate and seed"],
)
def test_resuming_with_other_options_is_refused(datasets, whole, options, texts):
    before = snapshot(whole[0])
    assert_one_error(train(datasets, whole[0], *options, "--resume"), *texts)
    assert snapshot(whole[0]) == before


def test_resuming_on_another_dataset_is_refused(datasets, whole, tmp_path):
    """The same images in other parts are read in another order."""
    assert convert("--part_num", 3, "--save_dir", tmp_path / "dataset").code == 0
    before = snapshot(whole[0])
    result = train(datasets, whole[0], "--dataset_dir", tmp_path / "dataset", "--resume")
    assert_one_error(result, "cannot resume", "trained on a different dataset")
    assert snapshot(whole[0]) == before


@pytest.mark.parametrize(
    "first_label, options, texts",
    [
        (0, ["--color", "color"], ["gray and colour"]),
        (0, ["--size", "32x32"], ["28x28 and 32x32"]),
        (8, [], ["10 and 12"]),
    ],
    ids=["colour", "size", "classes"],
)
def test_datasets_that_do_not_fit_together(converted, tmp_path, first_label, options, texts):
    (tmp_path / "in").mkdir()
    labels = {f"{index}.png": first_label + index for index in range(4)}
    for index, name in enumerate(labels):
        cv2.imwrite(str(tmp_path / "in" / name), np.full((28, 28), 40 * index, np.uint8))
    (tmp_path / "labels.txt").write_text(
        "".join(json.dumps({name: label}) + "\n" for name, label in labels.items())
    )
    arguments = ["--image_root", tmp_path / "in", "--label_dir", tmp_path / "labels.txt"]
    arguments += ["--part_num", 1, "--save_dir", tmp_path / "other"]
    assert convert(*arguments, *options).code == 0
    folders = ["--dataset_dir", converted, "--eval_dataset_dir", tmp_path / "other"]
    assert_one_error(call("lenet_train", *folders), "do not match", *texts)


@pytest.mark.parametrize(
    "names, wrong",
    [("abcdefgxij", "class 7 is h and x"), (None, "class 0 is a and unnamed")],
    ids=["another", "none"],
)
def test_the_class_that_differs_is_named(converted, tmp_path, names, wrong):
    folders = [shutil.copytree(converted, tmp_path / name) for name in ("train", "eval")]
    rewrite_manifest(folders[0], class_names=list("abcdefghij"))
    rewrite_manifest(folders[1], class_names=names and list(names))
    result = call("lenet_train", "--dataset_dir", folders[0], "--eval_dataset_dir", folders[1])
    assert_one_error(result, "do not match", wrong)


# -- more classes than a table holds ------------------------------------------------------


def many_classes(folder, names, *options):
    """A training on one image of noise for each of some class names; its Result. The run is kept in ``run``."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / "in" / name).mkdir(parents=True)
        image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "in" / name / "1.png"), image)
    source = ["--image_root", folder / "in", "--class_folders", "--part_num", 1]
    assert convert(*source, "--save_dir", folder / "d").code == 0
    source[-1] = 2  # the same images in other parts, as the same dataset would be refused
    assert convert(*source, "--save_dir", folder / "e").code == 0
    folders = ["--dataset_dir", folder / "d", "--eval_dataset_dir", folder / "e"]
    settings = ["--batch_size", len(names), "--dropout", 0, "--augment", "false"]
    return train(folders, folder / "run", "--image_size", 8, *settings, *options)


def test_many_classes_and_some_mistakes(tmp_path):
    """Instead of a table the commonest mistakes, with long names."""
    names = [f"class of pictures {index}" for index in range(60)]
    result = many_classes(tmp_path, names, "--steps", 1)
    assert result.code == 0 and "label \\ predicted" not in result.err, result
    report = result.err.split("classes of lowest accuracy:\n")[1]
    lowest, lines = (text.splitlines() for text in report.split("most frequent mistakes:\n"))
    wrong = [line.partition(" predicted")[0].strip() for line in lines if " predicted" in line]
    wrong.sort(key=names.index)
    assert lowest[: len(wrong)] == [f"  {name}: 0/1 (0.00%)" for name in wrong][:20], result
    assert len(lowest) == 20
    mistakes = [
        re.match(r"  (class .+\d) predicted as (class .+\d): (\d+)\Z", line) for line in lines
    ]
    mistakes = [match.groups() for match in mistakes if match]
    assert 5 < len(mistakes) < 40
    assert all(a != b and {a, b} <= set(names) and n == "1" for a, b, n in mistakes)
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 5000


def test_many_classes_and_no_mistake(tmp_path):
    names = [f"{index:02}" for index in range(60)]
    result = many_classes(tmp_path, names, "--steps", 40)
    assert result.code == 0 and "accuracy 60/60" in result.err, result
    assert (
        "most frequent mistakes:\n" in result.err
        and " predicted as " not in result.err.split("40 of")[-1]
    )
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 5000


@pytest.mark.parametrize("move", [False, True], ids=["copied", "moved"])
def test_a_run_lies_where_its_configuration_does(stopped, whole, tmp_path, move):
    """config.yaml names the folder that the run was started in, which stays as it is."""
    first = Path(shutil.copytree(stopped, tmp_path / "first"))
    second = tmp_path / "second"
    (shutil.move if move else shutil.copytree)(first, second)
    before = [snapshot(folder) for folder in (stopped, first) if folder.exists()]
    result = call("lenet_train", "--config", second / "config.yaml", "--resume")
    assert result.code == 0 and "resumed after step 20" in result.err, result
    assert [snapshot(folder) for folder in (stopped, first) if folder.exists()] == before
    assert_same_run(second, whole)


# -- resumed from elsewhere, and for longer -----------------------------------------------


def train_in(folder, *options):
    settings = ["--batch_size", 10, "--image_size", 12, "--device", "cpu", "--run_dir", "runs/x"]
    return call("lenet_train", *settings, *options, cwd=folder)


@pytest.mark.parametrize("named", ["--config", "--run_dir"])
def test_a_run_is_resumed_from_another_folder(dataset, tmp_path, named):
    """Its config.yaml names its datasets so that they are found from everywhere."""
    (tmp_path / "elsewhere").mkdir()
    assert train_in(tmp_path, "--dataset_dir", "dataset", "--steps", 2).code == 0
    run = "../runs/x/config.yaml" if named == "--config" else "../runs/x"
    result = call("lenet_train", named, run, "--resume", cwd=tmp_path / "elsewhere")
    assert result.code == 0 and "x is finished: 2 steps" in result.err, result
    more = ["--steps", 3, "--resume"]
    result = call("lenet_train", named, run, *more, cwd=tmp_path / "elsewhere")
    assert result.code == 0 and len(losses(result)) == 1, result


def test_a_run_whose_dataset_was_moved(dataset, tmp_path):
    """One line says how to name it; another dataset is refused."""
    assert train_in(tmp_path, "--dataset_dir", "dataset", "--steps", 2).code == 0
    dataset.rename(tmp_path / "moved")
    resume = ["lenet_train", "--run_dir", tmp_path / "runs" / "x", "--resume"]
    assert_one_error(call(*resume), f"{dataset} does not exist", "give --dataset_dir DIR too")
    result = call(*resume, "--dataset_dir", tmp_path / "moved")
    assert result.code == 0 and "is finished: 2 steps" in result.err, result
    assert convert("--part_num", 3, "--save_dir", tmp_path / "other").code == 0
    result = call(*resume, "--dataset_dir", tmp_path / "other")
    assert_one_error(result, "trained on a different dataset")


def test_a_finished_run_is_trained_for_longer(dataset, tmp_path):
    """As if it had been started so: the same weights and losses, and its config.yaml says it."""
    once, twice = tmp_path / "runs" / "once", tmp_path / "runs" / "twice"
    options = ["--dataset_dir", dataset, "--steps", "null"]
    whole = train_in(tmp_path, *options, "--epochs", 3, "--run_dir", once)
    first = train_in(tmp_path, *options, "--epochs", 2, "--run_dir", twice)
    more = ["lenet_train", "--run_dir", twice, "--resume", "--epochs"]
    second = call(*more, 3)
    assert "resumed after step 10\n" in second.err, second
    assert losses(first) + losses(second) == losses(whole) and len(losses(second)) == 5
    assert arrays(twice / "last.npz") == arrays(once / "last.npz")
    assert yaml.safe_load((twice / "config.yaml").read_text())["epochs"] == 3
    before = snapshot(twice)
    assert_one_error(call(*more, 2), "it has taken 15 steps, and would end after 10")
    assert snapshot(twice) == before


@pytest.mark.parametrize("setting", ["--schedule=cosine", "--warmup=0.5"])
def test_a_learning_rate_that_follows_from_the_length_forbids_another(dataset, tmp_path, setting):
    assert train_in(tmp_path, "--dataset_dir", dataset, "--steps", 2, setting).code == 0
    before = snapshot(tmp_path / "runs")
    result = train_in(tmp_path, "--resume", "--steps", 3)
    text = "only with schedule constant and warmup 0 can a run be trained for longer"
    assert_one_error(result, "it was started with steps 2, not 3", text)
    assert snapshot(tmp_path / "runs") == before


def test_a_picture_that_cannot_be_drawn_is_a_warning(dataset, tmp_path):
    """The training goes on, and everything else is kept."""
    assert train_in(tmp_path, "--dataset_dir", dataset, "--steps", 2).code == 0
    for name in ("loss.png", "predictions.png"):
        (tmp_path / "runs" / "x" / name).unlink()
        (tmp_path / "runs" / "x" / name).mkdir()
    result = train_in(tmp_path, "--resume", "--steps", 4)
    assert len(losses(result)) == 2 and result.err.count("warning: cannot draw ") == 2, result
    assert about(tmp_path / "runs" / "x" / "last.npz")["step"] == 4


def test_settings_that_a_checkpoint_does_not_have_yet_are_their_defaults(dataset, tmp_path):
    """A run of an earlier version is resumed, unless it is to be trained differently now."""
    run = tmp_path / "runs" / "x"
    assert train_in(tmp_path, "--dataset_dir", dataset, "--steps", 2).code == 0

    def forget(*names):
        edit_about(run / "last.npz", lambda found: [found["config"].pop(name) for name in names])

    forget("label_smoothing", "print_every")
    result = train_in(tmp_path, "--resume", "--steps", 3)
    assert result.code == 0 and len(losses(result)) == 1, result
    forget("dropout")
    result = train_in(tmp_path, "--resume", "--steps", 4, "--dropout", 0.3)
    assert_one_error(result, "it was started with dropout 0.5, not 0.3")


def test_a_run_without_its_last_checkpoint_starts_again_with_the_same_settings_only(
    datasets, tmp_path
):
    assert train(datasets, tmp_path / "run", "--steps", 3).code == 0
    (tmp_path / "run" / "last.npz").unlink()
    before = snapshot(tmp_path / "run")
    result = train(datasets, tmp_path / "run", "--steps", 3, "--seed", 9, "--resume")
    assert_one_error(result, "cannot resume", "it was started with seed 0, not 9", started=True)
    assert snapshot(tmp_path / "run") == before
    result = train(datasets, tmp_path / "run", "--steps", 3, "--resume")
    assert result.code == 0 and "starting from the beginning" in result.err, result
    assert (tmp_path / "run" / "best.npz").read_bytes() == before["best.npz"]


def test_a_start_that_was_killed_in_its_first_write_is_no_obstacle(datasets, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".metrics.csv.new").write_text("ste")
    assert train(datasets, tmp_path / "run", "--steps", 1).code == 0
    assert ".metrics.csv.new" not in files_of(tmp_path / "run")


def test_the_title_of_a_run_whose_name_no_font_has(datasets, tmp_path):
    result = run_script(
        "lenet_train.py", *command(datasets, tmp_path / "\x01\U0001f600", "--steps", 1)
    )
    assert result.code == 0 and "Warning" not in result.err and "missing" not in result.err, result
