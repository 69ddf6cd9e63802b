"""Runs in a folder: what it holds, resumed from anywhere, for longer, and what is refused."""

import csv
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import cv2
import damage
import helpers
import numpy as np
import pytest
import runs
import yaml
from helpers import assert_one_error, call, cases, convert, losses, snapshot
from making import make
from runs import FILES, OPTIONS, STEPS, about, arrays, resume, rows, train

CONSTANT = ["--schedule", "constant", "--warmup", 0]


def copied(folder, target):
    return Path(shutil.copytree(folder, target))


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# -- what a run leaves --------------------------------------------------------------------


def test_the_folder_holds_what_was_printed(whole):
    folder, result = whole
    assert runs.files_of(folder) == FILES
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["steps"] == STEPS and config["batch_size"] == 8 and "run_dir" not in config
    assert os.path.isabs(config["dataset_dir"]) and os.path.isabs(config["eval_dataset_dir"])
    steps, evaluations = rows(folder)
    assert [float(row["loss"]) for row in steps] == losses(result)  # the same digits
    assert [int(row["step"]) for row in steps] == list(range(1, STEPS + 1))
    assert [int(row["epoch"]) for row in steps][:9] == [1] * 7 + [2] * 2
    assert [int(row["step"]) for row in evaluations] == runs.EPOCH_ENDS + [STEPS]
    for row in evaluations:
        correct = round(15 * float(row["eval_accuracy"]))
        text = f"epoch {row['epoch']}/7: accuracy {correct}/15 ("
        assert text in result.err and f", loss {float(row['eval_loss']):.4f}, " in result.err
    assert about(folder / "last.npz")["step"] == STEPS
    best = max(evaluations, key=lambda row: (row["eval_accuracy"], -float(row["eval_loss"])))
    assert about(folder / "best.npz")["step"] == int(best["step"])
    assert f"{folder}/best.npz is the model of epoch {best['epoch']}\n" in result.err
    rates = np.array([float(row["learning_rate"]) for row in steps])  # rises, and falls
    peak = int(rates.argmax())
    assert 3 <= peak <= 5 and 0.0018 < rates[peak] <= 0.002 and rates[0] == pytest.approx(0.0001)
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] < 2e-5


def test_the_accuracy_of_each_class_at_the_end(whole):
    expected, mistakes = [], table_of(whole[0] / "mistakes.csv")
    for label, total in zip("0134579", (3, 3, 2, 1, 2, 1, 3), strict=True):  # of the 15 digits
        wrong = Counter(sorted(row["predicted"] for row in mistakes if row["label"] == label))
        right = total - wrong.total()
        expected.append(f"  {label}: {right}/{total} ({right / total:.2%})")
        if wrong:
            predicted, times = wrong.most_common(1)[0]
            expected[-1] += f", most often mistaken for {predicted} ({times})"
    report = whole[1].err.partition("accuracy of each class:\n")[2]
    assert report.startswith("\n".join([*expected, ""])) and mistakes, report


def test_many_classes(tmp_path):
    """The twenty of lowest accuracy, and the mistakes are pictured."""
    pictures = {f"class of pictures {index}": {"1.png": index} for index in range(60)}
    folders = ["--dataset_dir", make(tmp_path / "d", pictures, part_num=1)]
    folders += ["--eval_dataset_dir", make(tmp_path / "e", pictures, part_num=2)]
    result = train(folders, tmp_path / "run", "--batch_size", 60, "--steps", 1)
    _, _, report = result.err.partition("accuracy of the 20 classes where it is lowest:\n")
    lines = re.findall(r"^  (.+): 0/1 \(0.00%\), most often mistaken for (.+) \(1\)$", report, re.M)
    assert len(lines) == 20 and all(a != b and {a, b} <= {*pictures} for a, b in lines), result
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 5000


def test_pictures_show_something(whole):
    loss, predictions = (
        cv2.imread(str(whole[0] / name)).astype(int) for name in ("loss.png", "predictions.png")
    )
    redness = loss[:, :, 2] - loss[:, :, 0]
    upper, lower = np.array_split(redness, [len(redness) * 58 // 100])
    assert (upper < -60).sum() > 500  # the losses, blue
    assert (lower > 60).sum() > 300  # the accuracies
    assert predictions.std() > 60  # digits, white on black on white
    assert (predictions[:, :, 2] - predictions[:, :, 0] > 60).sum() > 300  # mistakes are marked


def test_losses_in_a_log(datasets, whole, tmp_path):
    """They are printed as often as asked and all are kept; without a terminal there is no bar.

    The name of a run is no formula in the title of its picture.
    """
    folder = tmp_path / "$run$ 100 %"
    result = train(datasets, folder, "--print_every", 15)
    kept = np.float32([row["loss"] for row in rows(folder)[0]])
    assert (np.float32(losses(result)) == kept[[14, 29]]).all() and len(kept) == STEPS
    assert "\r" not in result.err and "%|" not in result.err and "40 steps in" in result.err
    assert "cannot draw" not in result.err and "missing" not in result.err
    runs.assert_same_run(folder, whole[0])


# -- mistakes.csv -------------------------------------------------------------------------

ODD_NAMES = ['a, "quoted"', "two\nlines"]


@pytest.mark.parametrize("case", cases(["named", "anonymous"], ["uneven parts on two ranks"]))
def test_mistakes_are_named(tmp_path, case):
    """mistakes.csv has file, label and prediction of each image that is counted as wrong, worst first."""
    for index, path in enumerate(sorted(helpers.IMAGES.iterdir())):
        (tmp_path / "in" / ODD_NAMES[index % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "in" / ODD_NAMES[index % 2] / f"{index},\n.png")
    source = ["--image_root", tmp_path / "in", "--class_folders", "--part_num"]
    anonymous = ["--anonymous"] if case == "anonymous" else []
    assert convert(*source, 4, "--save_dir", tmp_path / "d").code == 0
    assert convert(*source, 3, *anonymous, "--save_dir", tmp_path / "e").code == 0
    options = ["--dataset_dir", tmp_path / "d", "--eval_dataset_dir", tmp_path / "e", *OPTIONS]
    words = [*options, "--steps", 4, "--run_dir", tmp_path / "run"]
    result = runs.Trainer(tmp_path).run(*words, ranks=2 if "two ranks" in case else 1)
    labels = {
        row["image"] or f"{row['part']}, record {row['record']}": row["label"]
        for row in table_of(tmp_path / "e" / "images.csv")
    }
    names, mistakes = ['a, "quoted"', r"two\nlines"], table_of(tmp_path / "run" / "mistakes.csv")
    correct = int(re.findall(r"accuracy (\d+)/50", result.err)[-1])
    assert len({row["file"] for row in mistakes}) == len(mistakes) == 50 - correct > 0
    for row in mistakes:
        assert names[int(labels[row["file"]])] == row["label"] != row["predicted"] in names
    probabilities = [float(row["probability"]) for row in mistakes]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < probabilities[-1] <= 1
    leaks = f"warning: {tmp_path}/d has 50 images of {tmp_path}/e, too (such as "
    assert result.err.count(leaks) == result.err.count("names all") == 1, result


# -- resumed from config.yaml and last.npz alone ------------------------------------------


@pytest.fixture(scope="module")
def stopped(datasets, tmp_path_factory):
    """A run as it is after step 20 of 40. Read only."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert train(datasets, folder, "--steps", 20, *CONSTANT).code == 0
    return folder


MISSING = {
    "is finished: 40 steps, accuracy ": ["metrics.csv", "loss.png"],
    "/run has no last.npz yet: starting from the beginning\n": ["last.npz", "best.npz"],
}


@pytest.mark.parametrize("said", MISSING)
def test_what_is_missing_comes_back(whole, tmp_path, said):
    """A finished run is not trained further; without a checkpoint it starts anew from its config.yaml."""
    folder = copied(whole[0], tmp_path / "run")
    for name in MISSING[said]:
        (folder / name).unlink()
    result = resume(folder)
    assert result.code == 0 and said in result.err, result
    assert result.out == (whole[1].out if "starting" in said else "")
    runs.assert_same_run(folder, whole[0])


def test_the_best_model_is_not_lost_with_the_last(whole, stopped, tmp_path):
    """Neither is written over, nor said to be there."""
    folder = copied(whole[0], tmp_path / "run")
    (folder / "last.npz").unlink()
    before = snapshot(folder)
    text = f"last.npz is missing, and {folder}/best.npz would be overwritten: put it back"
    assert_one_error(resume(folder), text, started=True)
    assert snapshot(folder) == before
    folder = copied(stopped, tmp_path / "stopped")
    (folder / "best.npz").unlink()
    # After step 7, in epoch 1, all were right: no evaluation that follows is better.
    all_right = [7, 1, np.nan, np.nan, 0.1, 1]
    damage.edit(folder / "last.npz", lambda found: found["history/rows"].__setitem__(7, all_right))
    result = resume(folder, "--steps", 21)
    assert f"{folder}/best.npz is missing; it was the model of epoch 1\n" in result.err, result


def test_a_path_through_a_link(datasets, tmp_path):
    """LINK/.. is not the folder in which the link is: config.yaml and last.npz are in one."""
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/sub")
    folder = tmp_path / "link" / ".." / "run"
    for number in 1, 2:
        more = ["--resume"] if number == 2 else [*datasets, *OPTIONS, *CONSTANT]
        words = [*more, "--steps", number, "--run_dir", f"{folder}/"]
        result = call("lenet_train", *words)
        assert len(losses(result)) == 1 and f" {folder} --resume\n" in result.err, result
    assert about(tmp_path / "real" / "run" / "last.npz")["step"] == 2


def test_a_finished_run_is_trained_for_longer(datasets, stopped, tmp_path):
    """As if it had been started so: the same weights and losses, and its config.yaml says it."""
    folder, longer = copied(stopped, tmp_path / "run"), tmp_path / "longer"
    result = resume(folder, "--steps", STEPS)
    assert "resumed after step 20\n" in result.err and len(losses(result)) == 20, result
    assert train(datasets, longer, *CONSTANT).code == 0
    # An evaluation after step 20, the end of the shorter run, is in the longer run's history only
    # where an epoch ends.
    found, expected = arrays(folder / "last.npz"), arrays(longer / "last.npz")
    assert {**found, "history/rows": 0} == {**expected, "history/rows": 0}
    assert yaml.safe_load((folder / "config.yaml").read_text())["steps"] == STEPS
    before = snapshot(folder)
    text = "it has taken 40 steps, and would end after 30"
    assert_one_error(resume(folder, "--steps", 30), text, started=True)
    assert snapshot(folder) == before


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


def test_a_picture_that_cannot_be_drawn_is_a_warning(stopped, tmp_path):
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
    for folder, *texts in (
        (tmp_path / "mine", "not empty", "thesis.txt"),
        (file, f"cannot use run_dir {file}: File exists; name another"),
        (file / "x", f"cannot use run_dir {file}/x: Not a directory"),
    ):
        assert_one_error(train(datasets, folder), *texts, started=True)
    assert snapshot(tmp_path) == {"mine/thesis.txt": b"x"}


def test_nothing_to_resume(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").mkdir()
    for name, reason in (
        ("none", "config.yaml: No such file or directory"),
        ("empty", "config.yaml: No such file or directory"),
        ("loop", "config.yaml: Too many levels of symbolic links"),
    ):
        text = f"cannot resume the run in {tmp_path / name}: {reason}"
        assert_one_error(resume(tmp_path / name), text)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "loop"]
    text = "--resume takes the settings of a run: give --run_dir DIR, and no --config"
    for words in ([], ["--run_dir", "null"], ["--run_dir", "x", "--config", "x.yaml"]):
        assert_one_error(call("lenet_train", "--resume", *words), text)


OTHER_SETTINGS = [  # of a resumed run, from the command line or its edited config.yaml
    (["--dropout", 0.1, "--seed", 4], "dropout 0.5, not 0.1; seed 0, not 4; --run_dir DIR"),
    (["--steps", 41], "only with schedule constant and warmup 0 can a run be trained for longer"),
    (("schedule: cosine", "schedule: constant"), "schedule cosine, not constant; --run_dir DIR"),
    (("steps", "stepz"), "stepz: unknown setting; did you mean steps?"),
]


@pytest.mark.parametrize("change, text", OTHER_SETTINGS)
def test_resuming_with_other_settings_is_refused(whole, tmp_path, change, text):
    folder, options = copied(whole[0], tmp_path / "run"), change
    if isinstance(change, tuple):
        config, options = folder / "config.yaml", []
        config.write_text(config.read_text().replace(*change))
    before = snapshot(folder)
    assert_one_error(resume(folder, *options), str(folder), text, started=True)
    assert snapshot(folder) == before


def test_warmup_alone_forbids_another_length(datasets, tmp_path):
    assert train(datasets, tmp_path / "run", *CONSTANT, "--steps", 2, "--warmup", 0.5).code == 0
    result = resume(tmp_path / "run", "--steps", 3)
    assert_one_error(result, "it was started with steps 2, not 3; its learning rate", started=True)


def test_a_loss_that_is_no_number_loses_nothing(datasets, tmp_path):
    folder, text = tmp_path / "run", "the loss is nan at step "
    result = train(datasets, folder, *CONSTANT, "--learning_rate", 1e30, "--checkpoint_every", 1)
    assert_one_error(result, text, "--learning_rate", started=True)
    before = snapshot(folder)
    assert_one_error(resume(folder), text, started=True)
    assert snapshot(folder) == before


# -- damaged checkpoints ------------------------------------------------------------------

WEIGHT, MOMENT = "dense1.weight", "training/dense1.weight/exp_avg"
MORE, HUGE = np.zeros(8, np.float32), (b"(8,), }", b"(2000000000,), }")
PICKLE, AMP = np.array([{}], object), "as a graph in mixed precision"
NO_NUMBERS, HISTORY = "weights that are no numbers|train again", "its history is not that of 20 st"
DAMAGED = {  # what is done to last.npz, and texts of the line about it
    "cut off": (lambda p: damage.cut(p, -(10**6)), "is damaged"),
    "a bit of a moment": (damage.flip_in(MOMENT), "is damaged|CRC"),
    "a weight missing": (damage.without(WEIGHT), f"{WEIGHT} is missing"),
    "a moment missing": (damage.without(MOMENT), "dense1.weight/exp_avg is missing"),
    "its history missing": (damage.without("history/rows"), "history"),
    "a shorter history": (damage.changed("history/rows", lambda a: a[:-5]), HISTORY),
    "a weight that is nan": (damage.changed(WEIGHT, lambda a: a * np.nan), NO_NUMBERS),
    "a type": (damage.changed(WEIGHT, lambda a: a.astype(">f4")), f"{WEIGHT} does not match"),
    "an entry too many": (damage.add_npy("more", MORE), "more does not match"),
    "an entry twice": (damage.add_npy(WEIGHT, MORE), f"entry {WEIGHT}"),
    "a pickle": (damage.add_npy("more", PICKLE), "is damaged|Object arrays cannot be loaded"),
    "a size that is not there": (damage.add_npy("more", MORE, HUGE), "is damaged|EOF: read"),
    "no JSON": (damage.changed("checkpoint", lambda a: a[1:]), "is damaged"),
    "another model": (damage.spec_with(scale=[255.0]), "it is of a different model"),
    "another mode": (damage.about_with(execution_mode=AMP), f"was trained {AMP}, not op by op"),
    "more classes than weights": (damage.spec_with(num_classes=2**20), "its weights are missing"),
    "an earlier version": (damage.about_with(layout=1), "another version|train again"),
    "a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "is not a regular file"),
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
    damage.edit(copy / "last.npz", lambda found: None)  # written anew, as the damaged ones were
    assert len(losses(resume(copy, "--steps", 22))) == 2


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
    result = helpers.run_python(*words[1:], "lenet_train.py", *datasets, *OPTIONS, python=words[0])
    assert_one_error(result, f"cannot write {disk}/run/", "No space left on device", started=True)
    result = resume(saved)
    assert result.code == 0 and "resumed after step 7" in result.err, result
