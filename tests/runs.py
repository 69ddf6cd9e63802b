"""What tests of runs share: short trainings, started and stopped, and what is in their folders."""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from helpers import ENVIRONMENT, PROJECT, Result, call, default_signals

# Everything random is on, and epochs end within batches. At 12 x 12 pixels a step takes a fifth
# of the time, and some digits are still mistaken at the end.
OPTIONS = ["--device", "cpu", "--batch_size", 8, "--steps", 40, "--image_size", 12]
OPTIONS += ["--learning_rate", 0.002, "--schedule", "cosine", "--warmup", 0.1, "--rotation", 10]
OPTIONS += ["--zoom", 0.1, "--shift", 0.05, "--checkpoint_every", 10, "--fetch_every", 4]
STEPS, EPOCH_ENDS = 40, [7, 13, 19, 25, 32, 38]
FILES = "best.npz config.yaml last.npz loss.png metrics.csv mistakes.csv predictions.png".split()
EACH_LOSS = ["--fetch_every", 1]


# -- in this process ----------------------------------------------------------------------


def train(datasets, folder, *more):
    """A training that is kept; of equal options the last counts."""
    return call("lenet_train", *datasets, *OPTIONS, "--run_dir", folder, *more)


def resume(folder, *more, cwd="/"):
    return call("lenet_train", "--run_dir", folder, "--resume", *more, cwd=cwd)


# -- what is in a folder ------------------------------------------------------------------


def files_of(folder):
    """The sorted names of a run's files, without those for TensorBoard, where it is installed."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("events."))


def rows(folder):
    """The rows of a run's metrics.csv: those of steps, and those of evaluations."""
    with (folder / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [row for row in found if row["loss"]], [row for row in found if row["eval_loss"]]


def entries(path):
    """The arrays of a checkpoint, by name."""
    with np.load(path) as file:
        return dict(file)


def about(path):
    """What a checkpoint says of itself."""
    return json.loads(entries(path)["checkpoint"].tobytes())


def arrays(path):
    """{name: what is in it} of all arrays of a checkpoint but what it says of itself."""
    return {
        name: (array.dtype, array.shape, array.tobytes())
        for name, array in entries(path).items()
        if name != "checkpoint"
    }


def assert_same_run(folder, whole):
    """It ended bit for bit as one that was never stopped, and nothing is left of being stopped."""
    for name in ("metrics.csv", "mistakes.csv"):
        assert (folder / name).read_text() == (whole / name).read_text(), name
    for name, number in ("last.npz", 26), ("best.npz", 9):
        found, expected = arrays(folder / name), arrays(whole / name)
        assert found.keys() == expected.keys() and len(found) == number, found.keys()
        for entry in expected:
            assert found[entry] == expected[entry], (name, entry)
    assert files_of(folder) == FILES


# -- start and stop -----------------------------------------------------------------------


class Trainer:
    """Starts the trainer, on two ranks too, and finds its processes by a variable that they have."""

    def __init__(self, folder):
        self.folder = str(folder)

    def start(self, *arguments, ranks=1, port=None, script="lenet_train.py", env=()):
        """Start it; return its Popen. On several ranks it leads a process group."""
        launch = []
        if ranks == 2:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = port or free.getsockname()[1]
            launch = ["-m", "oneflow.distributed.launch", "--nproc_per_node", 2]
            launch += ["--master_port", port]
        env = {**ENVIRONMENT, **dict(env), "PYTHONPATH": str(PROJECT), "TESTED": self.folder}
        env["OMP_NUM_THREADS"] = "1"  # else the launcher says on stdout that it sets it
        return subprocess.Popen(
            [sys.executable, *map(str, (*launch, PROJECT / script, *arguments))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=env,
            cwd=PROJECT,
            start_new_session=True,
            preexec_fn=default_signals,
        )

    def run(self, *arguments, **options):
        """As start, until it ends; return its Result."""
        process = self.start(*arguments, **options)
        try:
            return end(process)
        finally:
            self.kill_all()

    def processes(self):
        """{process id: its rank, None for the launcher} of what was started and has not ended."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environment = (path / "environ").read_bytes().decode(errors="replace").split("\0")
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it has just ended, or is not ours
                continue
            if f"TESTED={self.folder}" in environment and state not in "ZX":
                rank = [entry[5:] for entry in environment if entry.startswith("RANK=")]
                found[int(path.name)] = int(rank[0]) if rank else None
        return found

    def process_of(self, rank):
        """The process id of a rank."""
        (pid,) = (pid for pid, its_rank in self.processes().items() if its_rank == rank)
        return pid

    def kill_all(self):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def assert_all_end(self, process, *texts, seconds=30):
        """Soon no process is left, and ``texts`` are on stderr; return its Result."""
        deadline = time.monotonic() + seconds
        try:
            out, err = process.communicate(timeout=seconds)
            while self.processes():
                assert time.monotonic() < deadline, err
                time.sleep(0.02)
        finally:
            self.kill_all()
        assert process.returncode != 0 and all(text in err for text in texts), err
        return Result(process.returncode, out, err)


def end(process):
    """The Result of a process that ends by itself."""
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err)


def wait_for_losses(process, number):
    """Read stdout until so many losses were printed, or the training ended."""
    for _ in range(number):
        line = process.stdout.readline()
        assert line.startswith("[") or not line, line
