"""Trainings that are stopped: by Ctrl-C, signals, SIGKILL at any moment, a lost dataset; and resumed."""

import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import helpers
import pytest
import runs
from helpers import PROJECT, assert_one_error, call, cases, convert, snapshot
from runs import EACH_LOSS, OPTIONS, assert_same_run, end, resume, train, wait_for_losses

ENDLESS = ["--steps", 10**6, *EACH_LOSS]


def started(datasets, folder, *more, number=0, **options):
    """The process of a training that has printed so many losses."""
    words = [*datasets, *OPTIONS, "--run_dir", folder, *more]
    process = helpers.start_script("lenet_train.py", *words, **options)
    wait_for_losses(process, number)
    return process


HOOKED = """
import os, runpy, shutil, sys

event, name, count, action = os.environ["HOOK"].split("|")
left = int(count)

def hook(found, arguments):
    global left
    if found == event and any(str(each).endswith(name) for each in arguments[:2]):
        left -= 1
        if left == 0:
            exec(action)

sys.addaudithook(hook)
sys.argv[0], sys.path[0] = "lenet_train.py", os.getcwd()
runpy.run_path("lenet_train.py", run_name="__main__")
"""
CTRL_C, KILL = (
    f"os.kill(os.getpid(), {number.value})" for number in (signal.SIGINT, signal.SIGKILL)
)


def hooked(event, name, count, action, *words):
    """The Result of a training that does something at its n-th import, opening or renaming of a file."""
    hook = f"{event}|{name}|{count}|{action}"
    return helpers.run_python("-c", HOOKED, *words, env={"HOOK": hook})


# -- Ctrl-C -------------------------------------------------------------------------------

SAVED = re.compile(r"saved: (nothing yet|step (\d+) of 40); resume with: python (.*)")


def assert_interrupted(result, folder, whole):
    """Its last line says what was saved and how to go on; that ends as a run that was never stopped."""
    *_, last = result.err.splitlines()
    assert result.code == 130 and "Traceback" not in result.err, result
    assert last.startswith("lenet_train.py: error: interrupted"), result
    if last.endswith(": interrupted"):  # before it said how to resume
        assert "to resume after a stop" not in result.err, result
        return
    said = last.removeprefix("lenet_train.py: error: interrupted: ")
    _, step, line = SAVED.fullmatch(said).groups()
    assert f"\nto resume after a stop: python {line}\n" in result.err, result  # as at the start
    again = helpers.run_python(*shlex.split(line))
    beginning = f"{folder} has no last.npz yet: starting from the beginning\n"
    assert (f"\nresumed after step {step}\n" if step else beginning) in again.err, again
    assert again.code == 0 and whole[1].out.endswith(again.out), again
    assert_same_run(folder, whole[0])


def test_ctrl_c_while_it_trains(datasets, whole, tmp_path):
    process = started(datasets, tmp_path / "my $run", *EACH_LOSS, number=14)
    process.send_signal(signal.SIGINT)
    result = end(process)
    if result.code:  # else it was faster
        assert_interrupted(result, tmp_path / "my $run", whole)


STARTS = cases(
    [("import", "oneflow._oneflow_internal"), ("open", "/.config.yaml.new")],
    [("import", "numpy"), ("import", "lenet.ranks"), ("open", "/metrics.csv")],
)


@pytest.mark.parametrize("event, name", STARTS)
def test_ctrl_c_while_it_starts(datasets, whole, tmp_path, event, name):
    """Also while OneFlow is imported, which brings a handler of its own: no traceback, never its 255."""
    folder = tmp_path / "run"
    words = [*datasets, *OPTIONS, "--run_dir", folder]
    assert_interrupted(hooked(event, name, 1, CTRL_C, *words), folder, whole)
    if not (folder / "last.npz").exists():  # what is there can be gone on with
        again = resume(folder) if (folder / "config.yaml").exists() else call("lenet_train", *words)
        assert again.code == 0, again
    assert_same_run(folder, whole[0])


def test_ctrl_c_without_a_folder(converted):
    process = started(["--dataset_dir", converted], "null", *ENDLESS, number=3)
    process.send_signal(signal.SIGINT)
    result = end(process)
    assert result.code == 130, result
    assert result.err.endswith("\nlenet_train.py: error: interrupted\n"), result
    assert "resume" not in result.err and "Traceback" not in result.err


# -- other signals have their default action ----------------------------------------------


def wait_for_more(process, path, size):
    """Wait until a file that the process writes is larger."""
    while path.stat().st_size <= size:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def allow_core_dumps():
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def test_nohup_ctrl_z_and_sigterm(converted, tmp_path):
    """What ignores SIGHUP goes on; what Ctrl-Z has paused does when ``fg`` tells it to.

    It makes no core dump, which could be gigabytes, and all parts can stay open.
    """
    options = ["--dataset_dir", converted, *OPTIONS, *ENDLESS]
    words = map(str, ["nohup", sys.executable, PROJECT / "lenet_train.py", *options])
    path, how = tmp_path / "losses.txt", {"stderr": subprocess.PIPE, "env": helpers.ENVIRONMENT}
    with path.open("w") as file:
        process = subprocess.Popen([*words], stdout=file, preexec_fn=allow_core_dumps, **how)
    wait_for_more(process, path, 0)
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 ", limits, re.M), limits
    soft, hard = re.search(r"^Max open files +(\d+) +(\d+) ", limits, re.M).groups()
    assert int(soft) >= min(int(hard), 2**16)
    # Ctrl-Z is SIGTSTP, whose action is the default one. (The kernel ignores it where the tests'
    # process group has no shell any more, so that SIGSTOP does the same here.)
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search("SigCgt:\t(\\w+)", status)[1], 16)
    for number in (signal.SIGTSTP, signal.SIGHUP, signal.SIGTERM):
        assert not caught >> number - 1 & 1, number
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    size = path.stat().st_size
    process.send_signal(signal.SIGCONT)
    wait_for_more(process, path, size)
    process.terminate()
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert b"Traceback" not in process.stderr.read()


# -- SIGKILL at any moment ----------------------------------------------------------------

MODES = {
    "op by op": (1,),
    "graph": (1, "--graph"),
    "two ranks": (2,),
    "two ranks, graph": (2, "--graph"),
}
KILLS = cases([("op by op", 2)], [(mode, 5) for mode in MODES if mode != "op by op"])


@pytest.mark.parametrize("mode, kills", KILLS)
def test_killed_and_resumed_bit_for_bit(datasets, whole_of, trainer, tmp_path, mode, kills):
    """Killed at random moments, so often, a run ends as one that was never stopped."""
    (ranks, *more), rng, folder = MODES[mode], random.Random(f"{mode} {kills}"), tmp_path / "run"
    again = ["--run_dir", folder, "--resume"]
    for kill in range(kills):
        words = again if kill else [*datasets, *OPTIONS, *more, "--run_dir", folder]
        often = ["--checkpoint_every", rng.randint(1, 10)]
        process = trainer.start(*words, *EACH_LOSS, *often, ranks=ranks)
        wait_for_losses(process, rng.randint(0, 12) if kill else 14)
        time.sleep(rng.uniform(0, 0.1))  # at any moment
        # A rank that is killed ends the launcher, and the launcher ends all.
        victims = sorted(trainer.processes())
        os.kill(rng.choice(victims) if victims else process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        while trainer.processes():
            time.sleep(0.01)
    result = trainer.run(*again, ranks=ranks)
    assert result.code == 0, result
    assert_same_run(folder, whole_of(ranks, *more)[0])


SAVES = cases(
    # Evaluations follow steps 7, 13, …, 38 and 40; last.npz is saved before and after each.
    [("last.npz", 2, "resumed after step 7\n"), ("mistakes.csv", 7, "resumed after step 40\n")],
    [
        ("best.npz", 1, "resumed after step 7\n"),
        ("metrics.csv", 1, "no last.npz yet: starting from the beginning"),
        ("config.yaml", 1, None),
    ],
)


@pytest.mark.parametrize("name, count, said", SAVES)
def test_killed_where_it_saves(datasets, whole, tmp_path, name, count, said):
    """An evaluation that is missing is made up for first: once for each epoch, and for the end."""
    folder = tmp_path / "run"
    words = [*datasets, *OPTIONS, "--run_dir", folder]
    result = hooked("os.rename", f"/{name}", count, KILL, *words)
    assert result.code == -signal.SIGKILL, result
    if said is None:
        assert train(datasets, folder).code == 0
    else:
        again = resume(folder)
        assert again.code == 0 and said in again.err, again
        epochs = re.findall(r"^epoch (\d)/7: accuracy", result.err + again.err, re.M)
        assert sorted({*epochs}) == list("1234567"), (result, again)
    assert_same_run(folder, whole[0])


def test_a_run_is_where_its_folder_is(datasets, whole, tmp_path):
    """It is resumed from config.yaml and last.npz alone; all else that follows from them comes back."""
    words = [*datasets, *OPTIONS, "--run_dir", tmp_path / "run"]
    hooked("os.rename", "/last.npz", 8, KILL, *words)
    folder = tmp_path / "elsewhere" / "run"
    shutil.move(tmp_path / "run", folder)
    for name in set(runs.files_of(folder)) - {"config.yaml", "last.npz", "best.npz"}:
        (folder / name).unlink()
    result = resume(folder)
    assert result.code == 0 and "resumed after step 2" in result.err, result
    assert_same_run(folder, whole[0])
    for name in ("loss.png", "predictions.png"):
        assert (folder / name).read_bytes() == (whole[0] / name).read_bytes(), name
    assert f"--run_dir {folder} --resume\n" in (folder / "config.yaml").read_text()
    assert not (tmp_path / "run").exists()


# -- the dataset goes away, or is damaged -------------------------------------------------

CUT = "open({path!r}, 'r+b').truncate({size})"
LOST = {  # at which saving, what happens then to which file or folder, and what is said of it
    "evaluation set removed": (3, "evaluation", "shutil.rmtree({path!r})", "Fail to open file"),
    "training part cut off": (2, "train/part-2", CUT, "Read EOF"),
    "table cut off": (2, "evaluation/images.csv", CUT, "images.csv has fewer rows than"),
    "evaluation part cut off": (5, "evaluation/part-1", CUT, "Check failed"),
}
LOST_CASES = cases([*LOST][:3], LOST)


@pytest.mark.parametrize("case", LOST_CASES)
def test_a_dataset_that_is_lost_while_it_is_trained_on(datasets, whole, tmp_path, case):
    """OneFlow ends the process, or one line does; when it is back, all goes on from the last saving."""
    count, name, action, text = LOST[case]
    folder, original = tmp_path / "run", datasets[1].parent
    copies = [tmp_path / each.name if isinstance(each, Path) else each for each in datasets]
    for each in ("train", "evaluation"):
        shutil.copytree(original / each, tmp_path / each)
    action = action.format(path=str(tmp_path / name), size=100)
    words = [*copies, *OPTIONS, "--run_dir", folder]
    result = hooked("os.rename", "/last.npz", count, action, *words)
    assert result.code == (2 if ".csv" in name else -signal.SIGABRT) and text in result.err, result
    assert "Traceback" not in result.err, result
    before = snapshot(folder)
    assert_one_error(resume(folder), str(tmp_path / name))
    assert snapshot(folder) == before
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    again = resume(folder)
    assert again.code == 0, again
    lost = len(result.out.splitlines()) - int(re.search(r"resumed after step (\d+)", again.err)[1])
    assert 0 <= lost < 10 if "training" in case else lost == 0, (result, again)
    assert_same_run(folder, whole[0])


def test_others_are_kept_out_while_it_trains(dataset, tmp_path):
    """Losses are in a file when they are fetched; no converter replaces the dataset, no training takes the run."""
    path, options = tmp_path / "losses.txt", ["--steps", 10**6]
    with path.open("w") as file:
        process = started(["--dataset_dir", dataset], tmp_path / "run", *options, stdout=file)
    wait_for_more(process, path, 99)  # more than the first losses
    before = snapshot(dataset)
    converting = convert("--save_dir", dataset, "--part_num", 3)
    assert_one_error(converting, "a training, is using", "wait", started=True)
    assert snapshot(dataset) == before
    text = "another training is using"
    assert_one_error(resume(tmp_path / "run"), text, "wait", started=True)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert end(process).code == 130
    assert convert("--save_dir", dataset, "--part_num", 3).code == 0
