"""The guard: however the training's process ends, a line says it, and the exit code."""

import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import PROJECT, assert_one_error, run_script


def start(dataset, *more):
    """A training, and the process id of the child in which OneFlow runs."""
    process = subprocess.Popen([sys.executable, str(PROJECT / "lenet_train.py"), "--device", "cpu", "--dataset_dir", str(dataset),
                                "--steps", "5000", "--fetch_every", "1", *more],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert process.stdout.readline()
    with open("/proc/{0}/task/{0}/children".format(process.pid)) as children:
        return process, int(children.read().split()[0])


def gone(child):
    for _ in range(100):
        if not os.path.exists("/proc/{}".format(child)):
            return True
        time.sleep(0.05)


def test_an_image_that_rotted_unseen(dataset):
    """Its part has the size and the time that it had, so nobody looked: OneFlow ends the process, and the guard finds it."""
    part = dataset / "part-3"
    content, times = bytearray(part.read_bytes()), os.stat(str(part))
    start = content.find(b"\x89PNG", len(content) // 2)
    content[start:start + 4] = b"rott"
    part.write_bytes(content)
    os.utime(str(part), ns=(times.st_atime_ns, times.st_mtime_ns))
    result = run_script("lenet_train.py", "--device", "cpu", "--dataset_dir", dataset)
    assert result.code == 2, result
    last = result.err.splitlines()[-1]
    assert "error: " in last and "part-3, record " in last and "its image is no good" in last and "Traceback" not in result.err, result
    assert "OneFlow ended the process (SIGABRT)" in result.err
    assert_one_error(run_script("lenet_train.py", "--dataset_dir", dataset, "--check_hashes", "true"), "part-3", "SHA-256")


def test_a_crash_for_another_reason(converted):
    process, child = start(converted)
    os.kill(child, signal.SIGSEGV)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "OneFlow ended the process (SIGSEGV), and the dataset is not the cause" in err.splitlines()[-1]


def test_killed_for_lack_of_memory(converted):
    process, child = start(converted)
    os.kill(child, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137 and "the training was killed, perhaps for lack of memory" in err.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_training_ends_with_its_guard(converted, number):
    process, child = start(converted)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number and gone(child)


def test_ctrl_z_pauses_and_fg_goes_on(converted):
    process, child = start(converted)

    def state():
        time.sleep(0.5)
        with open("/proc/{}/stat".format(child)) as stat:
            return stat.read().rpartition(")")[2].split()[0]
    process.send_signal(signal.SIGTSTP)
    assert state() == "T"
    process.send_signal(signal.SIGCONT)
    assert state() != "T"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith("error: interrupted\n") and gone(child), err


def test_no_core_dump(converted, tmp_path):
    process, child = start(converted)
    with open("/proc/{}/limits".format(child)) as limits:
        assert next(line for line in limits if line.startswith("Max core file size")).split()[4] == "0"
    process.kill()
    process.communicate()
