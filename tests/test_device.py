"""The device: the probe's answers anywhere, and training on a GPU where one works.

`make gpu` runs the tests marked gpu, on a machine that has one.
"""

import json
import signal
import subprocess
import sys

import pytest

from conftest import PROJECT, run_script
from lenet.device import SUPPORTED, probe_gpu, read_probe
from lenet.engine import flow

PROBE = probe_gpu()
needs_gpu = pytest.mark.skipif(not PROBE.works, reason="no GPU here that OneFlow runs on: {}".format(PROBE.reason))

H100 = json.dumps({"name": "NVIDIA H100 PCIe", "capability": [9, 0]}) + "\n"


def test_a_gpu_that_ran_the_step_works():
    probe = read_probe(H100 + "works\n", "with code 0")
    assert probe == (True, "NVIDIA H100 PCIe (compute capability 9.0)", None)


@pytest.mark.parametrize("ended", ["with code -6", "not within 120 s"])
def test_a_gpu_that_did_not_is_named_with_the_remedy(ended):
    """What a GPU without kernels looks like: its name, then an abort."""
    probe = read_probe(H100, ended)
    assert not probe.works
    assert "H100" in probe.reason and ended in probe.reason and SUPPORTED in probe.reason


@pytest.mark.parametrize("output", ["", "F20260101 Check failed: cudaGetDevice\n"])
def test_cuda_that_does_not_start(output):
    probe = read_probe(output, "with code -6")
    assert not probe.works and "CUDA does not start" in probe.reason and "-6" in probe.reason


def test_auto_says_which_device_and_why(converted):
    result = run_script("lenet_train.py", "--dataset_dir", converted, "--steps", 1)
    assert result.code == 0, result
    expected = "device: cuda ({})".format(PROBE.name) if PROBE.works else "device: cpu ({})".format(PROBE.reason)
    assert expected in result.err


@pytest.mark.gpu
@needs_gpu
def test_training_on_the_gpu(converted):
    result = run_script("lenet_train.py", "--dataset_dir", converted, "--device", "cuda")
    assert result.code == 0, result
    losses = [float(line.strip("[]")) for line in result.out.splitlines()]
    assert len(losses) == 100 and 4 < losses[0] < 10 and max(losses[-10:]) < 0.5
    assert "device: cuda" in result.err and "gets 50 of 50 training images right" in result.err


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_computes_what_the_cpu_does(converted):
    """Without dropout and crops both take the same steps; float32 sums differ in their order only."""
    options = ["--dataset_dir", converted, "--steps", 5, "--dropout", 0, "--augment", "false"]
    gpu, cpu = ([float(line.strip("[]")) for line in run_script("lenet_train.py", *options, "--device", device).out.split()]
                for device in ("cuda", "cpu"))
    assert gpu == pytest.approx(cpu, rel=2e-2)
    assert gpu[0] == pytest.approx(cpu[0], rel=1e-3)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("mode", [["--graph"], ["--graph", "--amp"]], ids=["graph", "amp"])
def test_graphs_on_the_gpu(converted, tmp_path, mode):
    """They learn the digits; and go on from a checkpoint, with the gradient scaler's state, as if never stopped."""
    def options(folder):
        return ["--dataset_dir", str(converted), "--device", "cuda", "--checkpoint_every", "20", "--fetch_every", "1", *mode,
                "--run_dir", str(tmp_path / folder)]
    result = run_script("lenet_train.py", *options("whole"))
    assert result.code == 0 and "gets 50 of 50 training images right" in result.err, result
    process = subprocess.Popen([sys.executable, str(PROJECT / "lenet_train.py"), *options("killed")], stdout=subprocess.PIPE)
    for _ in range(45):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    resumed = run_script("lenet_train.py", *options("killed"), "--resume")
    assert resumed.code == 0 and "resumed: 40 steps" in resumed.err, resumed
    losses, expected = ([float(line.strip("[]")) for line in each.out.split()] for each in (resumed, result))
    assert losses == pytest.approx(expected[-len(losses):], rel=0.2, abs=0.05)  # cuDNN adds in no fixed order


@pytest.mark.gpu
@needs_gpu
def test_two_gpus(tmp_path):
    """Each rank takes one; with one GPU alone, the second rank is told so."""
    assert run_script("img2ofrecord.py", "--part_num", 2, "--save_dir", tmp_path / "dataset").code == 0
    process = subprocess.run([sys.executable, "-m", "oneflow.distributed.launch", "--nproc_per_node", "2",
                              str(PROJECT / "lenet_train.py"), "--dataset_dir", str(tmp_path / "dataset"), "--batch_size", "10",
                              "--device", "cuda"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", timeout=300)
    if flow.cuda.device_count() < 2:
        assert process.returncode != 0 and "too few for its ranks" in process.stderr, process.stderr
    else:
        assert process.returncode == 0 and "ranks: 2" in process.stderr, process.stderr
