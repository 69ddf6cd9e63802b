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

import pytest
from damage import flip
from helpers import (
    ENVIRONMENT,
    PROJECT,
    assert_one_error,
    call,
    convert,
    losses,
    part_files,
    run_python,
    snapshot,
    start_script,
)
from runs import (
    EACH_LOSS,
    OPTIONS,
    STEPS,
    about,
    arrays,
    assert_same_run,
    files_of,
    rows,
    wait_for_losses,
)

slow = pytest.mark.slow
ENDLESS = ["--steps", 10**6]


def command(datasets, folder, *more):
    return [*datasets, *OPTIONS, "--run_dir", folder, *more]


def start(datasets, folder, *more, **options):
    return start_script("lenet_train.py", *command(datasets, folder, *more), **options)


def end(process):
    """(exit code, stderr) of a process that ends by itself."""
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def resume(folder, *more):
    return call("lenet_train", "--run_dir", folder, "--resume", *more)


def run_shell(line):
    """Type a command that a message names, in which ``python`` is this one; return stdout and stderr."""
    assert line.startswith("python "), line
    process = subprocess.run(
        f"{shlex.quote(sys.executable)}{line.removeprefix('python')}",
        shell=True,
        cwd=PROJECT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout, process.stderr


# -- Ctrl-C -------------------------------------------------------------------------------

INTERRUPTED = re.compile(
    r"lenet_train.py: error: interrupted: saved: (nothing yet|step (\d+) of 40); resume with: (.*)"
)


def assert_interrupted(process, whole, folder):
    """Its last line says what was saved and how to go on; that ends as a run that was never stopped."""
    code, err = end(process)
    if code == 0:  # it was faster
        return
    last = err.splitlines()[-1]
    assert code == 130 and "Traceback" not in err, err
    if last == "lenet_train.py: error: interrupted":  # before it said how to resume
        assert "to resume after a stop" not in err, err
        return
    _, step, line = INTERRUPTED.fullmatch(last).groups()
    assert f"\nto resume after a stop: {line}\n" in err, err  # as it was said at the start
    out, err = run_shell(line)
    beginning = f"{folder} has no last.npz yet: starting from the beginning\n"
    assert (f"\nresumed after step {step}\n" if step else beginning) in err, err
    assert whole[1].out.endswith(out)
    assert_same_run(folder, whole[0])


@pytest.mark.parametrize("number", [14, *(pytest.param(n, marks=slow) for n in (1, 9, 27, 38))])
def test_ctrl_c_while_it_trains(datasets, whole, tmp_path, number):
    process = start(datasets, tmp_path / "my run", *EACH_LOSS)
    wait_for_losses(process, number)
    process.send_signal(signal.SIGINT)
    assert_interrupted(process, whole, tmp_path / "my run")


START = [0.4, 0.9]
SLOW_START = [0.05 * n for n in range(28)]


def blocks_ctrl_c(process):
    """Whether the script has begun: it waits with Ctrl-C until what it imports stands it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"^SigBlk:\s*(\w+)", status, re.M)[1], 16) & 1 << (signal.SIGINT - 1)


@pytest.mark.parametrize("after", [*START, *(pytest.param(t, marks=slow) for t in SLOW_START)])
def test_ctrl_c_while_it_starts(datasets, whole, tmp_path, after):
    """Also while OneFlow is imported, which brings a handler of its own: no traceback, never its 255."""
    process = start(datasets, tmp_path / "run")
    while not blocks_ctrl_c(process):
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    assert_interrupted(process, whole, tmp_path / "run")


HOOKED = """
import os, runpy, sys

event, name, number, count = os.environ["HOOK"].split()
left = int(count)

def hook(found, arguments):
    global left
    if found == event and any(str(each).endswith(name) for each in arguments[:2]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), int(number))

sys.addaudithook(hook)
sys.argv[0], sys.path[0] = "lenet_train.py", os.getcwd()
runpy.run_path("lenet_train.py", run_name="__main__")
"""


def signalled(event, name, number, count, *words):
    """The Result of a training that gets a signal at the n-th opening or renaming of a file."""
    hook = f"{event} {name} {number.value} {count}"
    return run_python("-c", HOOKED, *words, env={"HOOK": hook})


@pytest.mark.parametrize(
    "name",
    ["/.config.yaml.new", *(pytest.param(n, marks=slow) for n in ("/cpuinfo", "/metrics.csv"))],
)
def test_ctrl_c_where_a_file_is_opened(datasets, tmp_path, name):
    """A command is named only where it works, and what is there can be gone on with."""
    words = command(datasets, tmp_path / "run", "--steps", 2)
    result = signalled("open", name, signal.SIGINT, 1, *words)
    assert result.code == 130 and "Traceback" not in result.err, result
    last = result.err.splitlines()[-1]
    assert last.startswith("lenet_train.py: error: interrupted"), result
    if "resume with: " in last:
        run_shell(last.partition("resume with: ")[2])
    elif (tmp_path / "run" / "config.yaml").exists():
        assert resume(tmp_path / "run").code == 0
    else:
        assert call("lenet_train", *words).code == 0


def test_ctrl_c_without_a_folder(converted):
    process = start(["--dataset_dir", converted], "null", *ENDLESS, *EACH_LOSS)
    wait_for_losses(process, 3)
    process.send_signal(signal.SIGINT)
    code, err = end(process)
    assert code == 130 and err.endswith("\nlenet_train.py: error: interrupted\n"), err
    assert "resume" not in err and "Traceback" not in err


# -- other signals have their default action ----------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGHUP", marks=slow)])
def test_a_signal_ends_it_at_once(datasets, tmp_path, name):
    process = start(datasets, tmp_path / "run", *EACH_LOSS)
    wait_for_losses(process, 14)
    process.send_signal(getattr(signal, name))
    code, err = end(process)
    assert code == -getattr(signal, name) and "Traceback" not in err, err
    line = f"python {PROJECT}/lenet_train.py --run_dir {tmp_path}/run --resume"
    assert f"\nto resume after a stop: {line}\n" in err, err
    assert about(tmp_path / "run" / "last.npz")["step"] >= 13


def test_nohup(converted):
    """What ignores SIGHUP goes on."""
    options = ["--dataset_dir", converted, *OPTIONS, *EACH_LOSS, "--steps", 60]
    words = ["nohup", sys.executable, PROJECT / "lenet_train.py", *options]
    process = subprocess.Popen(
        list(map(str, words)),
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    wait_for_losses(process, 3)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and len(out.splitlines()) == 57, err


def test_ctrl_z_pauses_and_fg_goes_on(converted, tmp_path):
    path = tmp_path / "losses.txt"

    def wait_for_more(size):
        while path.stat().st_size <= size:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)

    with path.open("w") as file:
        options = ["--dataset_dir", converted], "null", *ENDLESS, *EACH_LOSS
        process = start(*options, stdout=file)
    wait_for_more(0)
    # Ctrl-Z is SIGTSTP, whose action is the default one. (The kernel ignores it where the tests'
    # process group has no shell any more, so that SIGSTOP does the same here.)
    status = Path(f"/proc/{process.pid}/status").read_text()
    masks = re.findall("Sig(?:Ign|Cgt):\\t(\\w+)", status)
    assert len(masks) == 2 and not any(int(m, 16) >> signal.SIGTSTP - 1 & 1 for m in masks), status
    process.send_signal(signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    size = path.stat().st_size
    process.send_signal(signal.SIGCONT)
    wait_for_more(size)
    process.terminate()
    assert end(process)[0] == -signal.SIGTERM


def test_closed_stdout_loses_nothing(datasets, whole, tmp_path):
    """As with ``| head``."""
    process = start(datasets, tmp_path / "run", *EACH_LOSS)
    wait_for_losses(process, 12)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 141 and "stdout was closed" in err, err
    process.stderr.close()
    assert resume(tmp_path / "run").code == 0
    assert_same_run(tmp_path / "run", whole[0])


# -- SIGKILL at any moment ----------------------------------------------------------------

MODES = {
    "op by op": (1,),
    "graph": (1, "--graph"),
    "two ranks": (2,),
    "two ranks, graph": (2, "--graph"),
}


@pytest.mark.parametrize(
    "mode, kills",
    [
        *(pytest.param(mode, 20, marks=slow) for mode in MODES),
        ("op by op", 1),
        ("two ranks, graph", 1),
    ],
)
def test_killed_and_resumed_bit_for_bit(datasets, whole_of, trainer, tmp_path, mode, kills):
    """Killed at a random moment, as many runs as that takes end as one that was never stopped."""
    (ranks, *more), rng = MODES[mode], random.Random(f"{mode} {kills}")
    whole, _ = whole_of(ranks, *more)
    folder, runs = tmp_path / "run", 0

    def finish():
        result = trainer.run("--run_dir", folder, "--resume", ranks=ranks)
        assert result.code == 0, result
        assert_same_run(folder, whole)
        shutil.rmtree(folder)

    for kill in range(kills):
        often = [*EACH_LOSS, "--checkpoint_every", rng.randint(1, 10)]
        words = command(datasets, folder, *more, *often)
        if (folder / "config.yaml").exists():
            words = ["--run_dir", folder, "--resume", *often]
        process = trainer.start(*words, ranks=ranks)
        wait_for_losses(process, 14 if kill == 0 else rng.randint(0, STEPS + 1))
        time.sleep(rng.uniform(0, 0.1))
        # A rank that is killed ends the launcher, and the launcher ends all.
        victims = sorted(trainer.processes())
        os.kill(rng.choice(victims) if victims else process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        while trainer.processes():
            time.sleep(0.01)
        if kill % 4 == 3 and (folder / "last.npz").exists():
            finish()
            runs += 1
    if folder.exists():
        finish()
        runs += 1
    assert runs >= kills // 8


@pytest.mark.parametrize(
    "name, count, said, evaluations",
    [  # last.npz is saved after step 7, before its evaluation and after it, after step 13 …
        ("last.npz", 2, "resumed after step 7\n", 0),
        pytest.param("last.npz", 3, "resumed after step 7\n", 1, marks=slow),
        pytest.param("config.yaml", 1, None, 0, marks=slow),
        pytest.param(
            "metrics.csv", 1, "no last.npz yet: starting from the beginning", 0, marks=slow
        ),
        pytest.param("best.npz", 1, "resumed after step 7\n", 0, marks=slow),
    ],
)
def test_killed_where_it_saves(datasets, whole, tmp_path, name, count, said, evaluations):
    """An evaluation that is missing is made up for first."""
    folder = tmp_path / "run"
    words = command(datasets, folder)
    result = signalled("os.rename", f"/{name}", signal.SIGKILL, count, *words)
    assert result.code == -signal.SIGKILL, result
    if said is None:
        result = call("lenet_train", *words)
    else:
        result = resume(folder)
        assert said in result.err, result
        assert result.err.count("epoch 1/7: accuracy") == (evaluations == 0)
    assert result.code == 0, result
    assert_same_run(folder, whole[0])


@pytest.mark.parametrize(
    "move", [pytest.param(False, marks=slow, id="copied"), pytest.param(True, id="moved")]
)
def test_a_run_is_where_its_folder_is(datasets, whole, tmp_path, move):
    """It is resumed from config.yaml and last.npz alone; all else that follows from them comes back."""
    process = start(datasets, tmp_path / "run", *EACH_LOSS)
    wait_for_losses(process, 27)
    process.kill()
    process.communicate()
    folder = tmp_path / "elsewhere" / "run"
    (shutil.move if move else shutil.copytree)(tmp_path / "run", folder)
    best = about(folder / "best.npz")["step"]
    for name in set(files_of(folder)) - {"config.yaml", "last.npz", "best.npz"}:
        (folder / name).unlink()
    before = {} if move else snapshot(tmp_path / "run")
    result = resume(folder)
    assert result.code == 0 and "resumed after step 2" in result.err and best > 0, result
    assert_same_run(folder, whole[0])
    for name in ("loss.png", "predictions.png"):
        assert (folder / name).read_bytes() == (whole[0] / name).read_bytes(), name
    assert f"--run_dir {folder} --resume\n" in (folder / "config.yaml").read_text()
    assert move or snapshot(tmp_path / "run") == before


# -- the dataset goes away, or is damaged -------------------------------------------------


def test_a_dataset_that_is_moved_while_it_is_trained_on(dataset, tmp_path):
    """OneFlow ends the process at the last evaluation; no step is lost, and it is made up for."""
    options = [["--dataset_dir", dataset], tmp_path / "run", "--steps", 100, "--checkpoint_every"]
    process = start(*options, 1000, *EACH_LOSS)
    wait_for_losses(process, 3)
    process.send_signal(signal.SIGSTOP)  # so that it cannot have come to its end
    dataset.rename(tmp_path / "moved")
    process.send_signal(signal.SIGCONT)
    code, err = end(process)
    assert code == -signal.SIGABRT and "part-" in err, err
    assert about(tmp_path / "run" / "last.npz")["step"] == 100 and not rows(tmp_path / "run")[1]
    result = resume(tmp_path / "run", "--dataset_dir", tmp_path / "moved")
    assert losses(result) == [] and "resumed after step 100\n" in result.err, result
    assert re.search(r"^training accuracy: \d+/50 ", result.err, re.M), result
    moved = [["--dataset_dir", tmp_path / "moved"], tmp_path / "whole", *options[2:], 1000]
    assert call("lenet_train", *command(*moved)).code == 0
    for name in ("last.npz", "best.npz"):
        assert arrays(tmp_path / "run" / name) == arrays(tmp_path / "whole" / name)


def test_an_image_damaged_unseen(dataset):
    """Without hashes OneFlow aborts at it, says what it was doing, and leaves no core dump."""
    part = part_files(dataset)[3]
    content = part.read_bytes()
    start_of_image = content.find(b"\x89PNG", len(content) // 2)
    flip(part, start_of_image)
    assert_one_error(call("lenet_train", "--dataset_dir", dataset), "part-3", "SHA-256")
    words = ["--dataset_dir", dataset, "--check_hashes", "false"]
    process = start_script("lenet_train.py", *OPTIONS, *words)
    code, err = end(process)
    assert code == -signal.SIGABRT and "Check failed" in err, err
    assert "part-3, record " in call("ofrecord.__main__", "check", dataset).err


def allow_core_dumps():
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def test_limits_of_the_process(converted, trainer):
    """No core dump, which could be gigabytes; all the files that the system allows: all parts stay open."""
    options = ["--dataset_dir", converted, *OPTIONS, *ENDLESS, *EACH_LOSS]
    process = trainer.start(*options, preexec_fn=allow_core_dumps)
    wait_for_losses(process, 1)
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    process.kill()
    process.communicate()
    assert re.search(r"^Max core file size +0 ", limits, re.M), limits
    soft, hard = re.search(r"^Max open files +(\d+) +(\d+) ", limits, re.M).groups()
    assert int(soft) >= min(int(hard), 2**16)


def test_others_are_kept_out_while_it_trains(dataset, tmp_path):
    """Losses are in a file when they are fetched; no converter replaces the dataset, no training takes the run."""
    options = ["--dataset_dir", dataset], tmp_path / "run", *ENDLESS
    with (tmp_path / "losses.txt").open("w") as file:
        process = start(*options, stdout=file)
    while (tmp_path / "losses.txt").read_bytes().count(b"\n") < 13:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    before = snapshot(dataset)
    converting = convert("--save_dir", dataset, "--part_num", 3)
    assert_one_error(converting, "a training, is using", "wait", started=True)
    assert snapshot(dataset) == before
    text = "another training is using"
    assert_one_error(resume(tmp_path / "run"), text, "wait", started=True)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130
    assert convert("--save_dir", dataset, "--part_num", 3).code == 0
