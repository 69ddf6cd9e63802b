"""Several ranks, started by OneFlow's launcher: the same training as one process, and what happens when one fails."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    ENVIRONMENT,
    IMAGES,
    PROJECT,
    Result,
    call,
    convert,
    default_signals,
    losses,
    snapshot,
)

MINUTE = 60
SECONDS_TO_END = 30  # of all ranks after one has failed; in most cases it takes 3

# Every batch is the whole dataset, in whatever order, and nothing is random.
PLAIN = "--batch_size 50 --shuffle_buffer 0 --steps 6 --image_size 14".split()
PLAIN += "--dropout 0 --augment false --learning_rate 0.0005".split()
RANDOM = "--batch_size 10 --steps 16 --image_size 14 --rotation 10 --checkpoint_every 10".split()
RANDOM += "--schedule cosine --warmup 0.1".split()
ENDLESS = "--batch_size 10 --steps 10000 --fetch_every 1".split()

# What the launched script does differently in some tests.
KEEPS_WEIGHTS = """
import os

evaluate_as_it_is = evaluate

def evaluate(model, *rest, **named):
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    np.savez(f"{os.environ['WEIGHTS']}-{max(int(os.environ['RANK']), 0)}.npz", **weights)
    return evaluate_as_it_is(model, *rest, **named)
"""
FAILS = """
import os

augment_as_it_is, calls = augment, []

def augment(*arguments, **named):
    calls.append(None)
    if len(calls) == 6 and os.environ["RANK"] == os.environ["FAILS"]:
        raise ZeroDivisionError("this rank divides by zero")
    return augment_as_it_is(*arguments, **named)
"""
OWN_SEED = "import os, sys; sys.argv += ['--seed', os.environ['RANK']]\n"


class Launcher:
    """Starts two ranks of the trainer, and finds their processes by a variable in their environment."""

    def __init__(self, folder):
        self.folder, self.mark = folder, f"TESTED_RANKS={folder}"

    def start(self, *arguments, change="", ranks=2, port=None, **environment):
        """Start the trainer, or a copy that has the lines ``change`` before its last ones. One rank: no launcher."""
        script = PROJECT / "lenet_train.py"
        if change:
            body, start, end = script.read_text(encoding="utf-8").rpartition(
                'if __name__ == "__main__":'
            )
            script = self.folder / "changed_train.py"
            script.write_text(f"{body}{change}\n\n{start}{end}", encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = port or free.getsockname()[1]
        launch = [
            "-m",
            "oneflow.distributed.launch",
            "--nproc_per_node",
            ranks,
            "--master_port",
            port,
        ]
        words = [*(launch if ranks > 1 else []), script, "--device", "cpu", *arguments]
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env={
                **ENVIRONMENT,
                **environment,
                "PYTHONPATH": str(PROJECT),  # for the changed copy
                "OMP_NUM_THREADS": "1",  # else the launcher says on stdout that it sets it
                "TESTED_RANKS": str(self.folder),
            },
            cwd=PROJECT,
            start_new_session=True,
            preexec_fn=default_signals,
        )

    def run(self, *arguments, **options):
        """As start, until it ends; return its Result."""
        process = self.start(*arguments, **options)
        try:
            out, err = process.communicate(timeout=2 * MINUTE)
        finally:
            self.kill_all()
        return Result(process.returncode, out, err)

    def processes(self):
        """{process id: (its parent's, its rank; None for the launcher)} of what was started and has not ended."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environment = (path / "environ").read_bytes().decode(errors="replace").split("\0")
                state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has just ended, or is not ours
                continue
            if self.mark in environment and state != "Z":
                rank = [entry[5:] for entry in environment if entry.startswith("RANK=")]
                found[int(path.name)] = int(parent), int(rank[0]) if rank else None
        return found

    def trainer(self, rank):
        """The process of a rank in which OneFlow runs: not the guard, which is its parent."""
        ranks = {
            pid: parent for pid, (parent, its_rank) in self.processes().items() if its_rank == rank
        }
        (trainer,) = set(ranks) - set(ranks.values())
        return trainer

    def kill_all(self):
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def wait_for_steps(self, process, steps):
        """Read stdout until that many losses are printed."""
        deadline = threading.Timer(2 * MINUTE, self.kill_all)
        deadline.start()
        try:
            for _ in range(steps):
                line = process.stdout.readline()
                assert line.startswith("["), line + process.stderr.read()
        finally:
            deadline.cancel()

    def assert_all_end(self, process, text):
        """Soon no process is left, the launcher's exit code says that it failed, and ``text`` is on stderr."""
        deadline = time.monotonic() + SECONDS_TO_END
        try:
            _, err = process.communicate(timeout=SECONDS_TO_END)
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not self.processes(), err
        finally:
            self.kill_all()
        assert process.returncode != 0 and text in err, err
        return err


@pytest.fixture
def launcher(tmp_path):
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.kill_all()


@pytest.fixture(scope="module")
def dealt(tmp_path_factory):
    """The tutorial's images in so many parts: dealt(4). Read only."""
    made = {}

    def deal(parts):
        if parts not in made:
            made[parts] = tmp_path_factory.mktemp("dealt") / str(parts)
            assert convert("--part_num", parts, "--save_dir", made[parts]).code == 0
        return made[parts]

    return deal


def weights(folder):
    """{name: array} of a run's last checkpoint."""
    with np.load(folder / "last.npz") as file:
        return {name: array for name, array in file.items() if name != "checkpoint"}


def assert_same_run(folder, whole):
    """Its figures and its last checkpoint are bit for bit those of a run that was never stopped."""
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    found, expected = weights(folder), weights(whole)
    assert found.keys() == expected.keys() and len(found) == 25
    for name, array in expected.items():
        assert (found[name] == array).all(), name


def resume_command(folder):
    """The words of the command that resumes a run, without the launcher's."""
    first = (folder / "config.yaml").read_text(encoding="utf-8").splitlines()[0]
    launch = "# To resume: python -m oneflow.distributed.launch --nproc_per_node 2 --master_port "
    assert first.startswith(launch)
    _, script, *words = first.removeprefix(launch).split()
    assert script == str(PROJECT / "lenet_train.py")
    return words


# -- the same training ------------------------------------------------------------------


EPOCH = re.compile(r"epoch \d+/6: accuracy (\d+)/50 .*?\bloss ([\d.]+),", re.M)


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_ranks_train_as_one_process_does(launcher, dealt, tmp_path, graph):
    """The same losses, weights and evaluations, equal weights on both ranks; rank 0 alone prints and saves.

    50 images are evaluated from three parts, 34 of them by one rank and 16 by
    the other, in batches of 25.
    """
    options = ["--dataset_dir", dealt(2), "--eval_dataset_dir", dealt(3), *PLAIN]
    options += ["--graph"] if graph else []
    run_dir = ["--run_dir", tmp_path / "run"] if graph else []  # drawing its pictures takes long
    changes = {"change": KEEPS_WEIGHTS, "WEIGHTS": str(tmp_path / "two")}
    two = launcher.run(*options, *run_dir, **changes)
    changes["WEIGHTS"] = str(tmp_path / "one")
    one = launcher.run(*options, **changes, ranks=1)

    assert len(losses(two)) == 6  # and nothing else on stdout
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-4)
    assert "world size: 2, batch per rank: 25 images" in two.err
    assert two.err.count("device: cpu") == 1, two
    evaluations = [np.array(EPOCH.findall(result.err), float) for result in (two, one)]
    assert evaluations[0].shape == (6, 2), two
    assert (evaluations[0][:, 0] == evaluations[1][:, 0]).all()  # how many are right
    np.testing.assert_allclose(*evaluations, rtol=1e-4, atol=1.1e-4)  # printed with four decimals
    confusion = [
        [line for line in result.err.splitlines() if line[:1].isdigit() and " · " in line]
        for result in (two, one)
    ]
    assert confusion[0] == confusion[1] and len(confusion[0]) == 10

    of_ranks = [np.load(tmp_path / f"two-{rank}.npz") for rank in (0, 1)]
    of_one = np.load(tmp_path / "one-0.npz")
    assert len(of_one.files) == 8
    for name in of_one.files:
        assert (of_ranks[0][name] == of_ranks[1][name]).all(), name
        np.testing.assert_allclose(of_ranks[0][name], of_one[name], atol=1e-4, err_msg=name)
    if graph:
        saved = weights(tmp_path / "run")
        for name in of_one.files:
            assert (saved[name] == of_ranks[0][name]).all(), name


@pytest.mark.slow
def test_killed_and_resumed_bit_for_bit(launcher, dealt, tmp_path):
    """One rank is killed; the command that the run's folder names ends as a run that was never stopped."""
    options = ["--dataset_dir", dealt(4), *RANDOM, "--graph"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert launcher.run(*options, "--run_dir", whole).code == 0
    process = launcher.start(*options, "--fetch_every", 1, "--run_dir", killed)
    launcher.wait_for_steps(process, 12)
    os.kill(launcher.trainer(1), signal.SIGKILL)
    launcher.assert_all_end(process, "rank 1 was killed, perhaps out of memory")

    result = launcher.run(*resume_command(killed))
    assert result.code == 0 and "resumed after step 10" in result.err, result
    assert_same_run(killed, whole)

    # One process uses the model that two made.
    answer = call("lenet.predict", "--checkpoint", killed / "best.npz", IMAGES / "00000030_3.png")
    assert answer.code == 0 and "_3.png: " in answer.out, answer


@pytest.fixture(scope="module")
def whole(dealt, tmp_path_factory):
    """A function that returns a run, of a mode, that was never stopped. Made once a mode; read only."""
    folders = {}

    def folder_of(*mode):
        if mode not in folders:
            folders[mode] = tmp_path_factory.mktemp("whole") / "run"
            launcher = Launcher(tmp_path_factory.mktemp("launcher"))
            options = ["--dataset_dir", dealt(4), *RANDOM, *mode, "--run_dir", folders[mode]]
            result = launcher.run(*options)
            assert result.code == 0, result
        return folders[mode]

    return folder_of


@pytest.mark.parametrize(
    "who, mode",
    [
        ("all", ()),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((0, ()), (1, ()), ("all", ("--graph",)), (1, ("--graph",)))
        ),
    ],
)
def test_ctrl_c_saves_all_ranks_after_the_same_step(launcher, dealt, whole, tmp_path, who, mode):
    """Whether it reaches all of them, as from a terminal, or one alone."""
    folder = tmp_path / "run"
    options = ["--dataset_dir", dealt(4), *RANDOM, *mode, "--run_dir", folder]
    process = launcher.start(*options, "--fetch_every", 2, "--checkpoint_every", 100)
    launcher.wait_for_steps(process, 4)
    if who == "all":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(launcher.trainer(who), signal.SIGINT)
    err = launcher.assert_all_end(process, f"saved {folder} after step ")
    assert "Traceback" not in err.split("saved ")[0], err
    if who == "all":  # else OneFlow may abort the rank that ends last, once all is saved
        assert "error: interrupted\n" in err and "SIGABRT" not in err, err
    step = int(re.search(r"after step (\d+) of 16; resume with: python -m oneflow", err)[1])
    assert 4 <= step < 16 and step % 2 == 0  # all learn of it when losses are fetched
    result = launcher.run(*resume_command(folder))
    assert result.code == 0 and f"resumed after step {step}" in result.err, result
    assert_same_run(folder, whole(*mode))


@pytest.mark.slow
def test_a_rank_without_the_checkpoint_is_refused(launcher, dealt, whole):
    """As on a second machine that does not share the folder: it would start from the beginning."""
    other = "import lenet.run_folder\n\nif RANK:\n    lenet.run_folder.LAST = 'other.npz'\n"
    result = launcher.run(*resume_command(whole()), "--steps", 16, change=other)
    text = "all ranks must have the same checkpoint in run_dir, but it is of step 16 on rank 0"
    assert result.code != 0 and text in result.err, result


# -- one falls, all fall ----------------------------------------------------------------

SIGNALS = {
    "killed": (signal.SIGKILL, "rank {} was killed, perhaps out of memory"),
    "interrupted": (signal.SIGINT, "interrupted"),
    "crashed": (signal.SIGSEGV, "rank {} was ended by SIGSEGV"),
}


SLOW_FAILURES = [(failure, rank) for failure in SIGNALS for rank in (0, 1)]
SLOW_FAILURES.remove(("killed", 1))


@pytest.mark.parametrize(
    "failure, rank",
    [("killed", 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_FAILURES)],
)
def test_a_rank_that_fails_takes_all_down(launcher, dealt, failure, rank):
    process = launcher.start("--dataset_dir", dealt(4), *ENDLESS)
    launcher.wait_for_steps(process, 3)
    number, text = SIGNALS[failure]
    os.kill(launcher.trainer(rank), number)
    launcher.assert_all_end(process, text.format(rank))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_takes_all_down(launcher, dealt, rank):
    process = launcher.start("--dataset_dir", dealt(4), *ENDLESS, change=FAILS, FAILS=str(rank))
    launcher.wait_for_steps(process, 3)
    launcher.assert_all_end(process, "ZeroDivisionError: this rank divides by zero")


@pytest.mark.slow
@pytest.mark.parametrize(
    "end, text",
    [
        (lambda pid: os.killpg(pid, signal.SIGINT), "error: interrupted"),
        (lambda pid: os.kill(pid, signal.SIGKILL), ""),
    ],
    ids=["Ctrl-C", "SIGKILL"],
)
def test_no_rank_outlives_its_launcher(launcher, dealt, end, text):
    process = launcher.start("--dataset_dir", dealt(4), *ENDLESS)
    launcher.wait_for_steps(process, 3)
    end(process.pid)
    launcher.assert_all_end(process, text)


# -- what is refused --------------------------------------------------------------------


UNEVEN = "has {} parts, not divisible by the world size 2: `python -m ofrecord merge "
SHARES = {  # parts, parts of the dataset to evaluate on, batch size, message
    "parts": (5, None, 10, UNEVEN.format(5)),
    "one part": (1, None, 10, UNEVEN.format(1).replace("parts,", "part,")),
    "batch": (
        4,
        None,
        25,
        "batch_size 25 is not divisible by the world size 2: give a multiple of 2",
    ),
    "parts to evaluate": (
        2,
        1,
        10,
        "has 1 part, fewer than the world size 2: `python -m ofrecord merge ",
    ),
}


@pytest.mark.parametrize(
    "case", ["parts", *(pytest.param(case, marks=pytest.mark.slow) for case in list(SHARES)[1:])]
)
def test_what_cannot_be_shared_is_one_line(launcher, dealt, tmp_path, case):
    parts, eval_parts, batch_size, text = SHARES[case]
    options = ["--dataset_dir", dealt(parts), "--batch_size", batch_size]
    if eval_parts:
        options += ["--eval_dataset_dir", dealt(eval_parts)]
    result = launcher.run(*options, "--run_dir", tmp_path / "run")
    assert result.code != 0 and "[" not in result.out, result
    errors = [line for line in result.err.splitlines() if "error: " in line]
    assert len(errors) == 1 and text in errors[0] and "rank 1" not in errors[0], result
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ranks_with_different_options_are_refused(launcher, dealt):
    result = launcher.run("--dataset_dir", dealt(2), "--batch_size", 10, change=OWN_SEED)
    text = "all ranks must have the same seed, but it is 0 on rank 0 and 1 on rank 1"
    assert result.code != 0 and text in result.err, result


def test_a_run_that_would_take_other_steps_on_two_ranks_is_not_resumed(launcher, dealt, tmp_path):
    """Of four parts with 13, 13, 12 and 12 images one rank reads 26: its epochs are longer."""
    options = ["--dataset_dir", dealt(4), "--batch_size", 10, "--image_size", 12]
    options += ["--steps", "null", "--epochs", 2, "--run_dir", tmp_path / "run"]
    assert len(losses(call("lenet_train", "--device", "cpu", *options))) == 10
    before = snapshot(tmp_path / "run")
    result = launcher.run("--run_dir", tmp_path / "run", "--resume")
    assert result.code != 0 and "would take 11 steps, not 10" in result.err, result
    assert snapshot(tmp_path / "run") == before


def test_a_port_in_use_is_one_line(launcher, dealt):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        result = launcher.run("--dataset_dir", dealt(2), port=taken.getsockname()[1])
    text = "(Address already in use): launch with --master_port N, before the script"
    assert result.code != 0 and text in result.err, result
