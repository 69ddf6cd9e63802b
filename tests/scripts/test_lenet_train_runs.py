"""Runs in a folder: what it holds, resumed from anywhere, for longer, and what is refused."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from damage import cut
from helpers import (
    assert_one_error,
    call,
    convert,
    losses,
    run_python,
    run_script,
    snapshot,
    without_rights,
)
from runs import (
    EPOCH_ENDS,
    FILES,
    OPTIONS,
    STEPS,
    Trainer,
    about,
    arrays,
    assert_same_run,
    edit,
    edit_about,
    entries,
    files_of,
    rows,
)


def train(datasets, folder, *more):
    """A training in this process; of equal options the last counts."""
    return call("lenet_train", *datasets, *OPTIONS, "--run_dir", folder, *more)


def resume(folder, *more, cwd="/"):
    return call("lenet_train", "--run_dir", folder, "--resume", *more, cwd=cwd)


def copied(folder, target):
    return Path(shutil.copytree(folder, target))


# -- what a run leaves --------------------------------------------------------------------


def test_the_folder_holds_what_was_printed(whole):
    folder, result = whole
    assert files_of(folder) == FILES
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["steps"] == STEPS and config["batch_size"] == 8 and "run_dir" not in config
    assert os.path.isabs(config["dataset_dir"]) and os.path.isabs(config["eval_dataset_dir"])
    steps, evaluations = rows(folder)
    assert [float(row["loss"]) for row in steps] == losses(result)  # the same digits
    assert [int(row["step"]) for row in steps] == list(range(1, STEPS + 1))
    assert [int(row["epoch"]) for row in steps][:9] == [1] * 7 + [2] * 2
    assert [int(row["step"]) for row in evaluations] == EPOCH_ENDS + [STEPS]
    for row in evaluations:
        correct = round(15 * float(row["eval_accuracy"]))
        text = f"epoch {row['epoch']}/7: accuracy {correct}/15 ("
        assert text in result.err and f", loss {float(row['eval_loss']):.4f}, " in result.err
    assert about(folder / "last.npz")["step"] == STEPS
    best = max(evaluations, key=lambda row: float(row["eval_accuracy"]))  # the first of equals
    assert about(folder / "best.npz")["step"] == int(best["step"])


def test_the_learning_rate_rises_and_falls(whole):
    rates = [float(row["learning_rate"]) for row in rows(whole[0])[0]]
    peak = int(np.argmax(rates))
    assert 3 <= peak <= 5 and 0.0018 < rates[peak] <= 0.002 and rates[0] == pytest.approx(0.0001)
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] < 2e-5


CLASS = re.compile(
    r"  (\d): (\d+)/(\d+) \(([\d.]+)%\)(?:, most often mistaken for (\d) \((\d+)\))?"
)


def test_the_accuracy_of_each_class_at_the_end(whole):
    report = whole[1].err.partition("accuracy of each class:\n")[2].splitlines()
    found = [match.groups() for match in map(CLASS.fullmatch, report) if match]
    totals = {int(label): int(total) for label, _, total, *_ in found}
    assert totals == {0: 3, 1: 3, 3: 2, 4: 1, 5: 2, 7: 1, 9: 3}, report  # of the 15 digits
    correct = sum(int(correct) for _, correct, *_ in found)
    assert correct == round(15 * float(rows(whole[0])[1][-1]["eval_accuracy"])) < 15
    for label, right, total, percent, mistaken, times in found:
        assert float(percent) == pytest.approx(100 * int(right) / int(total), abs=0.01)
        wrong = int(total) - int(right)
        assert (mistaken is not None) == (wrong > 0) and mistaken != label
        assert not wrong or 1 <= int(times) <= wrong


def test_many_classes(tmp_path):
    """The twenty of lowest accuracy, and the mistakes are pictured."""
    names = [f"class of pictures {index}" for index in range(60)]
    for seed, name in enumerate(names):
        (tmp_path / "in" / name).mkdir(parents=True)
        image = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "in" / name / "1.png"), image)
    source = ["--image_root", tmp_path / "in", "--class_folders"]
    for target, parts in (("d", 1), ("e", 2)):  # the same dataset would be refused
        assert convert(*source, "--part_num", parts, "--save_dir", tmp_path / target).code == 0
    folders = ["--dataset_dir", tmp_path / "d", "--eval_dataset_dir", tmp_path / "e"]
    result = train(folders, tmp_path / "run", "--batch_size", 60, "--steps", 1)
    _, _, report = result.err.partition("accuracy of the 20 classes where it is lowest:\n")
    lines = re.findall(r"^  (.+): 0/1 \(0.00%\), most often mistaken for (.+) \(1\)$", report, re.M)
    assert len(lines) == 20 and all(a != b and {a, b} <= set(names) for a, b in lines), result
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 5000


def test_pictures_show_something(whole):
    def reddish(image):
        return (image[:, :, 2] - image[:, :, 0] > 60).sum()

    def picture(folder, name):
        return cv2.imread(str(folder / name)).astype(int)

    loss = picture(whole[0], "loss.png")
    upper, lower = np.array_split(loss, [loss.shape[0] * 58 // 100])
    assert reddish(upper[:, :, ::-1]) > 500  # the losses, blue
    assert reddish(lower) > 300  # the accuracies
    predictions = picture(whole[0], "predictions.png")
    assert predictions.std() > 60  # digits, white on black on white
    assert reddish(predictions) > 300  # mistakes are marked


def test_losses_in_a_log(datasets, whole, tmp_path):
    """They are printed as often as asked and all are kept; without a terminal there is no bar."""
    result = train(datasets, tmp_path / "run", "--print_every", 15)
    kept = np.float32([row["loss"] for row in rows(tmp_path / "run")[0]])
    assert (np.float32(losses(result)) == kept[[14, 29]]).all() and len(kept) == STEPS
    assert "\r" not in result.err and "%|" not in result.err and "40 steps in" in result.err
    assert_same_run(tmp_path / "run", whole[0])


@pytest.mark.parametrize(
    "name",
    ["$run$ 100 %", *(pytest.param(n, marks=pytest.mark.slow) for n in ("\x01\U0001f600", "-x"))],
)
def test_odd_names_of_a_run(datasets, tmp_path, name):
    """They are no formulas in the title of its picture, and its command that resumes works."""
    command = ["lenet_train.py", *datasets, *OPTIONS, "--steps", 2, f"--run_dir={name}"]
    result = run_script(*command, cwd=tmp_path)
    assert result.code == 0 and "cannot draw" not in result.err and "missing" not in result.err
    assert (tmp_path / name / "loss.png").exists()
    if name.isprintable():
        (line,) = re.findall(r"^to resume after a stop: python (.*)$", result.err, re.M)
        line = f"{sys.executable} {line}"
        again = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert "is finished: 2 steps" in again.stderr, (line, again.stderr)


# -- resumed from config.yaml and last.npz alone ------------------------------------------


@pytest.fixture(scope="module")
def stopped(datasets, tmp_path_factory):
    """A run as it is after step 20 of 40. Read only."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    result = train(datasets, folder, "--steps", 20, "--schedule", "constant", "--warmup", 0)
    assert result.code == 0, result
    return folder


@pytest.fixture(scope="module")
def longer(datasets, tmp_path_factory):
    """A run of 40 steps, whose first 20 are those of ``stopped``. Read only."""
    folder = tmp_path_factory.mktemp("longer") / "run"
    result = train(datasets, folder, "--schedule", "constant", "--warmup", 0)
    assert result.code == 0, result
    return folder


def test_a_finished_run_is_not_trained_further(whole, tmp_path):
    folder = copied(whole[0], tmp_path / "copy")
    metrics, loss = (folder / name for name in ("metrics.csv", "loss.png"))
    before = metrics.read_text()
    metrics.unlink()
    loss.unlink()
    result = resume(folder)
    assert losses(result) == [] and "is finished: 40 steps, accuracy " in result.err
    assert metrics.read_text() == before and loss.stat().st_size > 5000


def test_a_finished_run_is_trained_for_longer(stopped, longer, tmp_path):
    """As if it had been started so: the same weights and losses, and its config.yaml says it."""
    folder = copied(stopped, tmp_path / "run")
    result = resume(folder, "--steps", STEPS)
    assert "resumed after step 20\n" in result.err and len(losses(result)) == 20, result
    # An evaluation after step 20, the end of the shorter run, is in the longer run's history only
    # where an epoch ends.
    found, expected = arrays(folder / "last.npz"), arrays(longer / "last.npz")
    assert {**found, "history/rows": 0} == {**expected, "history/rows": 0}
    assert yaml.safe_load((folder / "config.yaml").read_text())["steps"] == STEPS
    before = snapshot(folder)
    text = "it has taken 40 steps, and would end after 30"
    assert_one_error(resume(folder, "--steps", 30), text, started=True)
    assert snapshot(folder) == before


@pytest.mark.parametrize("setting", ["--schedule=cosine", "--warmup=0.5"])
def test_a_learning_rate_that_follows_from_the_length_forbids_another(datasets, tmp_path, setting):
    options = ["--schedule", "constant", "--warmup", 0, "--steps", 2, setting]
    assert train(datasets, tmp_path / "run", *options).code == 0
    before = snapshot(tmp_path / "run")
    text = "only with schedule constant and warmup 0 can a run be trained for longer"
    result = resume(tmp_path / "run", "--steps", 3)
    assert_one_error(result, "it was started with steps 2, not 3", text, started=True)
    assert snapshot(tmp_path / "run") == before


def test_a_run_whose_dataset_was_moved(dataset, tmp_path):
    """One line says how to name it; another dataset is refused."""
    options = ["--dataset_dir", dataset], tmp_path / "run", "--steps", 2
    assert train(*options).code == 0
    dataset.rename(tmp_path / "moved")
    text = f"{dataset} does not exist; if it was moved, give --dataset_dir DIR too"
    assert_one_error(resume(tmp_path / "run"), text)
    result = resume(tmp_path / "run", "--dataset_dir", tmp_path / "moved")
    assert result.code == 0 and "is finished: 2 steps" in result.err, result
    # The same images in other parts are read in another order.
    assert convert("--part_num", 3, "--save_dir", tmp_path / "other").code == 0
    result = resume(tmp_path / "run", "--dataset_dir", tmp_path / "other")
    assert_one_error(result, "trained on a different dataset", started=True)


def test_a_run_without_a_checkpoint_yet_starts_from_the_beginning(whole, tmp_path):
    folder = copied(whole[0], tmp_path / "run")
    (folder / "last.npz").unlink()
    result = resume(folder)
    text = f"{folder} has no last.npz yet: starting from the beginning\n"
    assert result.code == 0 and text in result.err and result.out == whole[1].out, result
    assert_same_run(folder, whole[0])


def test_a_start_that_was_killed_in_its_first_write_is_no_obstacle(datasets, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.new").write_text("ste")
    assert train(datasets, tmp_path / "run", "--steps", 1).code == 0
    assert files_of(tmp_path / "run") == FILES


def test_a_picture_that_cannot_be_drawn_is_a_warning(datasets, stopped, tmp_path):
    """The training goes on, and everything else is kept."""
    folder = copied(stopped, tmp_path / "run")
    for name in ("loss.png", "predictions.png"):
        (folder / name).unlink()
        (folder / name).mkdir()
    result = resume(folder, "--steps", 22)
    assert len(losses(result)) == 2 and "warning: cannot draw " in result.err, result
    assert "loss.png" in result.err and "predictions.png" in result.err, result
    assert about(folder / "last.npz")["step"] == 22


# -- refused ------------------------------------------------------------------------------


def test_nothing_is_overwritten(datasets, whole, tmp_path):
    before = snapshot(whole[0])
    assert_one_error(train(datasets, whole[0]), "contains a run already", "--resume", started=True)
    assert snapshot(whole[0]) == before
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "thesis.txt"
    file.write_text("x")
    for folder, texts in (
        (tmp_path / "mine", ["not empty", "thesis.txt"]),
        (file, [f"cannot use run_dir {file}: File exists; name another"]),
        (file / "x", [f"cannot use run_dir {file}/x: Not a directory"]),
    ):
        assert_one_error(train(datasets, folder), *texts, started=True)
    assert snapshot(tmp_path / "mine") == {"thesis.txt": b"x"}


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_unreadable_run_is_not_started_again(whole, tmp_path, kind):
    """No line says that there is no run, or that it should be started without --resume."""
    folder = copied(whole[0], tmp_path / "run")
    paths = {"folder": [folder], "file": [folder / "config.yaml", folder / "last.npz"]}[kind]
    for path in paths:
        rights = path.stat().st_mode
        path.chmod(0)
        command = ["lenet_train.py", "--run_dir", folder, "--resume"]
        result = run_script(*command, preexec_fn=without_rights)
        path.chmod(rights)
        assert_one_error(result, str(folder), "Permission denied", started=True)
        assert "without --resume" not in result.err, result
    (tmp_path / "loop").symlink_to("loop")
    assert_one_error(
        resume(tmp_path / "loop"), "cannot resume ", "Too many levels of symbolic links"
    )


def test_nothing_to_resume(datasets, tmp_path):
    none = tmp_path / "none"
    text = f"cannot resume the run in {none}: config.yaml: No such file or directory"
    assert_one_error(resume(none), text)
    assert not none.exists()
    none.mkdir()
    assert_one_error(resume(none), text)
    for folder in ([], ["--run_dir", "null"]):
        text = "--resume takes the settings of a run: give --run_dir DIR, and no --config"
        assert_one_error(call("lenet_train", "--resume", *folder), text)
    other = call("lenet_train", "--run_dir", none, "--config", "x.yaml", "--resume")
    assert_one_error(other, text)


def test_a_failed_start_can_be_repeated(datasets, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = train(datasets, tmp_path / "run", "--device", "cuda")
    assert_one_error(result, "device cuda", "--device cpu", started=True)
    assert train(datasets, tmp_path / "run", "--steps", 1).code == 0


@pytest.mark.parametrize(
    "options, text",
    [
        (["--batch_size", 16], "it was started with batch_size 8, not 16; --run_dir DIR"),
        (["--dropout", 0.1, "--seed", 4], "dropout 0.5, not 0.1; seed 0, not 4; --run_dir DIR"),
        (["--graph"], "graph false, not true; --run_dir DIR starts another run"),
    ],
)
def test_resuming_with_other_settings_is_refused(whole, options, text):
    before = snapshot(whole[0])
    assert_one_error(resume(whole[0], *options), f"cannot resume {whole[0]}", text, started=True)
    assert snapshot(whole[0]) == before


@pytest.mark.parametrize("checkpoint_every", [1, 10])
def test_a_loss_that_is_no_number_loses_nothing(datasets, tmp_path, checkpoint_every):
    folder, more = tmp_path / "run", ["--checkpoint_every", checkpoint_every]
    more += ["--learning_rate", 1e30, "--schedule", "constant", "--warmup", 0]
    text = "the loss is nan at step "
    assert_one_error(train(datasets, folder, *more), text, "--learning_rate", started=True)
    assert (folder / "last.npz").exists() == (checkpoint_every == 1)
    before = snapshot(folder)
    assert_one_error(train(datasets, folder), "contains a run already", started=True)
    assert snapshot(folder) == before
    assert_one_error(resume(folder), text, started=True)
    assert snapshot(folder) == before
    result = resume(folder, "--learning_rate", 0.001)
    if checkpoint_every == 1:
        text = "it was started with learning_rate 1e+30, not 0.001"
        assert_one_error(result, text, started=True)
    else:
        assert len(losses(result)) == STEPS, result


# -- damaged checkpoints ------------------------------------------------------------------


def flip_in(entry):
    """Flips a bit in the data of an entry of a checkpoint."""

    def flip(path):
        content, data = bytearray(path.read_bytes()), entries(path)[entry].tobytes()
        content[content.index(data) + len(data) // 2] ^= 1
        path.write_bytes(content)

    return flip


def add_npy(name, array, replaced=(b"", b""), **options):
    """Appends an entry to a checkpoint."""

    def add(path):
        file = io.BytesIO()
        np.save(file, array)
        with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
            warnings.simplefilter("ignore")  # that it is there already
            archive.writestr(f"{name}.npy", file.getvalue().replace(*replaced), **options)

    return add


def without(name):
    return lambda path: edit(path, lambda found: found.pop(name))


def changed(name, change):
    return lambda path: edit(path, lambda found: found.update({name: change(found[name])}))


def about_with(**fields):
    return lambda path: edit_about(path, lambda found: found.update(fields))


def spec_with(**fields):
    return lambda path: edit_about(path, lambda found: found["spec"].update(fields))


WEIGHT, MOMENT = "dense1.weight", "training/dense1.weight/exp_avg"
MORE, HUGE = np.zeros(8, np.float32), (b"(8,), }", b"(2000000000,), }")
PICKLE, ZIPPED = np.array([{}], object), {"compress_type": zipfile.ZIP_DEFLATED}
AMP = "as a graph in mixed precision"
DAMAGED = {  # what is done to last.npz, and texts of the line about it
    "cut off": (lambda p: cut(p, -(10**6)), "is damaged"),
    "empty": (lambda p: cut(p, 0), "is damaged"),
    "a bit of a weight": (flip_in(WEIGHT), "is damaged|CRC"),
    "a bit of a moment": (flip_in(MOMENT), "is damaged|CRC"),
    "a bit of its description": (flip_in("checkpoint"), "is damaged|CRC"),
    "a weight missing": (without(WEIGHT), f"{WEIGHT} is missing"),
    "a moment missing": (without(MOMENT), "dense1.weight/exp_avg is missing"),
    "the step missing": (without("training/step"), "step is missing"),
    "its description missing": (without("checkpoint"), "is damaged"),
    "its history missing": (without("history/rows"), "history"),
    "a history of other columns": (changed("history/rows", lambda a: a[:, :1]), "history"),
    "a shorter history": (changed("history/rows", lambda a: a[:-5]), "history"),
    "an entry too many": (add_npy("more", MORE), "more does not match"),
    "a moment too many": (add_npy("training/x", MORE), "x does not match"),
    "an entry twice": (add_npy(WEIGHT, MORE), f"entry {WEIGHT}"),
    "a shape": (changed(WEIGHT, np.ravel), f"{WEIGHT} does not match"),
    "a moment's shape": (changed(MOMENT, lambda a: a[1:]), "exp_avg does not match"),
    "a type": (changed(WEIGHT, np.float64), f"{WEIGHT} does not match"),
    "a moment's type": (changed(MOMENT, np.float16), "exp_avg does not match"),
    "a pickle": (add_npy("more", PICKLE), "is damaged|Object arrays cannot be loaded"),
    "a size that is not there": (add_npy("more", MORE, HUGE), "is damaged|EOF: reading array"),
    "compressed": (add_npy("more", MORE, **ZIPPED), "is damaged|entry more"),
    "no JSON": (changed("checkpoint", lambda a: a[1:]), "is damaged"),
    "an unknown field": (about_with(more=1), "is damaged|more"),
    "a step that is no number": (about_with(step="20"), "is damaged|step"),
    "another model": (spec_with(scale=[255.0]), "it is of a different model"),
    "another mode": (about_with(execution_mode=AMP), f"was trained {AMP}, not op by op"),
    "more figures than channels": (spec_with(mean=[1.0] * 3), "is damaged|a figure a channel"),
    "fewer names than classes": (spec_with(class_names=["a"]), "is damaged|10 class names"),
    "more classes than weights": (spec_with(num_classes=2**20), "its weights are missing"),
    "an earlier version": (about_with(layout=1), "another version|train again"),
    "a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "is not a regular file"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "is not a regular file"),
}


@pytest.mark.parametrize("damage, texts", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_checkpoint_is_not_resumed(stopped, tmp_path, damage, texts):
    copy = copied(stopped, tmp_path / "copy")
    damage(copy / "last.npz")
    before = snapshot(copy)
    assert_one_error(resume(copy, "--steps", 22), str(copy), *texts.split("|"), started=True)
    assert snapshot(copy) == before


def test_an_undamaged_copy_is_resumed(stopped, tmp_path):
    copy = copied(stopped, tmp_path / "copy")
    edit_about(copy / "last.npz", lambda found: None)  # written anew, as the damaged ones were
    assert len(losses(resume(copy, "--steps", 22))) == 2


# -- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
def test_mistakes_are_named(datasets, tmp_path, ranks):
    """mistakes.csv has the file, label and prediction of each image that is counted as wrong."""
    folder, evaluated = tmp_path / "run", Path(datasets[datasets.index("--eval_dataset_dir") + 1])
    options = [*datasets, *OPTIONS, "--steps", 4, "--batch_size", 8, "--run_dir", folder]
    process = Trainer(tmp_path).start(*options, ranks=ranks)
    _, err = process.communicate()
    assert process.returncode == 0, err
    with (evaluated / "images.csv").open(newline="") as file:
        labels = {row["image"]: row["label"] for row in csv.DictReader(file)}
    with (folder / "mistakes.csv").open(newline="") as file:
        mistakes = list(csv.DictReader(file))
    correct = int(re.search(r"accuracy (\d+)/15", err)[1])
    assert len({row["file"] for row in mistakes}) == len(mistakes) == 15 - correct > 0
    for row in mistakes:
        assert labels[row["file"]] == row["label"] != row["predicted"], row
    probabilities = [float(row["probability"]) for row in mistakes]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < probabilities[-1] < 1


def test_images_that_are_trained_and_evaluated_on(datasets, tmp_path):
    result = call("lenet_train", *datasets, *OPTIONS, "--steps", 1)
    assert "warning: 15 images of " in result.err and "names them" in result.err, result


# -- full disks ---------------------------------------------------------------------------


def test_full_disk(datasets, tmp_path, own_mounts):
    """There is room for one checkpoint, not for a second beside it: one line, and nothing is lost."""
    disk, saved = tmp_path / "disk", tmp_path / "saved"
    disk.mkdir()
    script = """
mount -t tmpfs -o size=8m none "$1" || exit 9
"${@:3}" --run_dir "$1/run"; code=$?
cp -r "$1/run" "$2"; exit $code"""
    words = [*own_mounts, "bash", "-c", script, "bash", disk, saved, sys.executable]
    result = run_python(*words[1:], "lenet_train.py", *datasets, *OPTIONS, python=words[0])
    assert_one_error(result, f"cannot write {disk}/run/", "No space left on device", started=True)
    result = resume(saved)
    assert result.code == 0 and "resumed after step 7" in result.err, result
