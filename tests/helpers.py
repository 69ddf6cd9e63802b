"""What the tests share: the commands, called in this process or as subprocesses.

Nothing is mocked. A check that is written in Python is called in the process of the tests, which
takes hundredths of a second; what may abort the process, and signals and streams, in one of its own.
"""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parent.parent
IMAGES = PROJECT / "data" / "images" / "train_set"
LABELS = PROJECT / "data" / "images" / "train_label" / "label.txt"
MNIST = PROJECT.parent / "shared" / "mnist"  # the four original files, where there is this folder
needs_mnist = pytest.mark.skipif(
    not MNIST.is_dir(), reason="no folder ../shared/mnist with MNIST's four files"
)

# The environment of subprocesses: that of the tests before OneFlow was imported into their
# process, since the import changes it (RANK, WORLD_SIZE, switches), and without an outer launcher's.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
}


def cases(quick, slow):
    """The values of a parametrized test: those of the quick tests, then what else the slow ones try."""
    marked = (case if isinstance(case, tuple) else (case,) for case in slow if case not in quick)
    return [*quick, *(pytest.param(*case, marks=pytest.mark.slow) for case in marked)]


class Result(NamedTuple):
    """How a command ended."""

    code: int  # the exit code, negative for a signal
    out: str
    err: str

    def __repr__(self):
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


# -- in this process ------------------------------------------------------------------


def call(module, *arguments, cwd=PROJECT):
    """Run the ``main`` of a command's module in this process, as the command itself would; return its Result."""
    main = importlib.import_module(module).main
    cli = importlib.import_module("runtime.cli")
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before = sys.argv, os.getcwd(), signal.getsignal(signal.SIGINT)
    sys.argv = [f"{module}.py", *map(str, arguments)]
    os.chdir(cwd)
    gc.freeze()  # worker processes must not collect what was made here with OneFlow
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.run_main(main)
            except SystemExit as end:
                code = end.code
    finally:
        gc.unfreeze()
        sys.argv = before[0]
        os.chdir(before[1])
        signal.signal(signal.SIGINT, before[2])
    texts = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in (out, err))
    return Result(code or 0, *texts)


def convert(*arguments, cwd=PROJECT):
    """``img2ofrecord.py`` in this process, with one worker unless told otherwise."""
    return call("img2ofrecord", "--workers", 1, *arguments, cwd=cwd)


def train(dataset, *arguments, cwd=PROJECT):
    """``lenet_train.py`` in this process, on the CPU unless told otherwise."""
    return call("lenet_train", "--device", "cpu", "--dataset_dir", dataset, *arguments, cwd=cwd)


# -- in a process of its own ----------------------------------------------------------


def run_python(*arguments, python=sys.executable, timeout=300, **options):
    """Run this Python, or another, with some arguments (``-c``, ``-m``, a file); return its Result."""
    command = [python, *map(str, arguments)]
    process = subprocess.run(
        command, capture_output=True, timeout=timeout, **process_options(**options)
    )
    return Result(process.returncode, process.stdout, process.stderr)


def run_script(script, *arguments, **options):
    """As run_python, for one of the project's scripts, by its path in the project."""
    return run_python(PROJECT / script, *arguments, **options)


def start_script(script, *arguments, **options):
    """Start one of the project's scripts; return its Popen, with text pipes for stdout and stderr."""
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, **process_options(**options))


def run_on_terminal(script, *arguments):
    """Run one of the project's scripts with a terminal for stderr; return its Result."""
    ours, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    process = start_script(script, *arguments, stderr=terminal)
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other side open any more
        while more := os.read(ours, 2**16):
            seen += more
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    return Result(process.returncode, out, seen.decode())


def process_options(env=None, **options):
    """What ``subprocess`` is told of all processes; ``env`` is added to their environment."""
    return {
        **{"cwd": PROJECT, "env": {**ENVIRONMENT, **(env or {})}, "stdin": subprocess.DEVNULL},
        **{"encoding": "utf-8", "errors": "surrogateescape", "preexec_fn": default_signals},
        **options,
    }


def default_signals():
    """Signals as a terminal's shell leaves them: under ``nohup`` and ``&`` some are ignored, and stay so in children."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def without_rights():
    """For ``preexec_fn``: takes away root's right to open everything."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


# -- what came of it ------------------------------------------------------------------


def assert_one_error(result, *texts, started=False):
    """Exit code 2 and one line on stderr, warnings aside, that has each of ``texts``; no traceback, no signal.

    ``started``: the command had begun, so what it said of itself may stand before that line.
    """
    assert result.code == 2, result
    lines = [line for line in result.err.strip().splitlines() if ": warning: " not in line]
    errors = [line for line in lines if ": error: " in line]
    assert errors == lines[-1:] and (started or len(lines) == 1), result
    assert "Traceback" not in result.err, result
    for text in texts:
        assert text in errors[0], result


LOSS = re.compile(r"\[(\d+\.?\d*(?:e-?\d+)?)\]\Z")


def losses(result):
    """The losses that a training printed, which must be all that it printed."""
    assert result.code == 0, result
    matches = [LOSS.match(line) for line in result.out.splitlines()]
    assert all(matches), result
    return [float(match.group(1)) for match in matches]


def snapshot(folder):
    """Every file of a folder with its bytes, to see that nothing changed."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def visible(folder):
    """As snapshot, without what the converter keeps in its hidden folder."""
    return {name: data for name, data in snapshot(folder).items() if not name.startswith(".")}


def part_files(folder):
    """The paths of a dataset's part files, by number."""
    return sorted(Path(folder).glob("part-*"), key=lambda path: int(path.name[5:]))


def read_manifest(folder):
    """The fields of a dataset's manifest."""
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def records(folder):
    """[(image bytes, label)] of all records of a dataset, in order."""
    from ofrecord.record import read_part

    return [(image, label) for path in part_files(folder) for _, image, label in read_part(path)]
