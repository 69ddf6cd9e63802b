"""The guard: however the training's process ends, a line says it, and the exit code."""

import os
import signal
import threading
import time

import pytest
from damage import MANIFEST
from helpers import assert_one_error, call, part_files, run_script, start_script, train

MINUTE = 60


@pytest.fixture
def training(converted):
    """A training that has printed its first loss: its process, and the id of the child in which OneFlow runs."""
    options = ["--device", "cpu", "--dataset_dir", converted, "--batch_size", 10]
    process = start_script("lenet_train.py", *options, "--steps", 50000, "--fetch_every", 1)
    deadline = threading.Timer(2 * MINUTE, process.kill)
    deadline.start()
    line = process.stdout.readline()
    deadline.cancel()
    assert line.startswith("["), line + process.stderr.read()
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
        (child,) = map(int, children.read().split())
    yield process, child
    for pid in (process.pid, child):
        if state_of(pid) not in "ZX":
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def state_of(pid):
    """One letter, as in /proc: R, S, T (stopped), Z (ended, and nobody has looked) …; X where it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def reaches(pid, states, seconds=30):
    """Whether a process is in one of the states before the time is up."""
    deadline = time.monotonic() + seconds
    while state_of(pid) not in states:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def wait_for_end(process):
    """The last line of stderr of a process that ends."""
    _, err = process.communicate(timeout=MINUTE)
    assert "Traceback" not in err, err
    return (err.splitlines() or [""])[-1]


def test_an_image_damaged_unseen(dataset):
    """Its part has the size and the time that it had, so nobody looked: OneFlow aborts, and the guard says how to look."""
    part = part_files(dataset)[3]
    content, times = bytearray(part.read_bytes()), part.stat()
    start = content.find(b"\x89PNG", len(content) // 2)
    content[start : start + 4] = b"rott"
    part.write_bytes(content)
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns - 10**9))
    result = run_script("lenet_train.py", "--device", "cpu", "--dataset_dir", dataset)
    assert result.code == 1 and "Traceback" not in result.err, result
    last = result.err.splitlines()[-1]
    for text in (": error: the training was ended by SIGABRT; ", "`python -m ofrecord check DIR`"):
        assert text in last, result
    assert "part-3, record " in call("ofrecord.__main__", "check", dataset).err
    # Where every byte is looked at before the start, OneFlow never sees it.
    assert_one_error(train(dataset, "--check_hashes", "true"), "part-3", "SHA-256")
    assert (dataset / MANIFEST).exists()


def test_a_crash_for_another_reason(training):
    """It leaves no core dump, which could be gigabytes."""
    process, child = training
    with open(f"/proc/{child}/limits") as limits:
        (line,) = (line for line in limits if line.startswith("Max core file size"))
    assert line.split()[4] == "0"
    os.kill(child, signal.SIGSEGV)
    text = ": error: the training was ended by SIGSEGV; `python -m ofrecord check DIR` "
    assert text in wait_for_end(process) and process.returncode == 1


def test_killed_for_lack_of_memory(training):
    process, child = training
    os.kill(child, signal.SIGKILL)
    assert "the training was killed, perhaps out of memory" in wait_for_end(process)
    assert process.returncode == 137


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGHUP, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_the_training_ends_with_its_guard(training, number):
    process, child = training
    process.send_signal(number)
    wait_for_end(process)
    assert process.returncode == -number and reaches(child, "ZX")


def test_ctrl_z_pauses_and_fg_goes_on(training):
    process, child = training
    process.send_signal(signal.SIGTSTP)
    assert reaches(child, "T") and reaches(process.pid, "T")
    process.send_signal(signal.SIGCONT)
    assert reaches(child, "RS") and reaches(process.pid, "RS")
    process.send_signal(signal.SIGINT)
    assert wait_for_end(process).endswith("error: interrupted")
    assert process.returncode == 130 and reaches(child, "ZX")


def test_what_ends_the_import_of_oneflow_is_shown(tmp_path):
    """OneFlow's noise while it is imported is not shown, its last words are."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Abort:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'oneflow.framework.session_context':\n"
        "            os.write(2, b'F1126 Check failed: this machine\\n')\n"
        "            os.abort()\n"
        "sys.meta_path.insert(0, Abort())\n"
    )
    result = run_script("lenet_train.py", env={"PYTHONPATH": str(tmp_path)})
    assert result.code == 1 and "F1126 Check failed: this machine\n" in result.err, result
    assert "the training was ended by SIGABRT" in result.err, result


def test_oneflow_is_in_the_child_alone(training):
    """Forked after its import, it would crash in the end where cuDNN is the system's."""
    process, child = training
    maps = [open(f"/proc/{pid}/maps").read() for pid in (process.pid, child)]
    assert ["liboneflow" in text for text in maps] == [False, True]


def test_all_the_files_that_the_system_allows_may_be_open(training):
    """OneFlow keeps each part file open, twice where it evaluates."""
    _, child = training
    with open(f"/proc/{child}/limits") as limits:
        (line,) = (line for line in limits if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert int(soft) >= min(int(hard), 2**16)
