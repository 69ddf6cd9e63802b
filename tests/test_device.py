"""The device: the probe's answers anywhere, and training on a GPU where one works.

`make gpu` runs the tests marked gpu, on a machine that has one.
"""

import re
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers import (
    PROJECT,
    call,
    convert,
    losses,
    run_python,
    run_script,
    start_script,
    train,
)

from runtime.versions import installed_build

ON_GPU = ["--device", "cuda"]
H100 = "NVIDIA H100 PCIe (compute capability 9.0)"


# -- the only inner names of this module ------------------------------------------------


def probe():
    """What the probe says of the GPU here: (does it work, its name, why it does not)."""
    from lenet.device import probe_gpu

    return tuple(probe_gpu())


def read(output, ended):
    """What is made of the output of an H100's probe process, and of how it ended."""
    from lenet.device import read_probe

    return tuple(read_probe(H100, output, ended))


# -- the probe --------------------------------------------------------------------------


def test_a_gpu_that_ran_the_step_works():
    assert read("loaded library: libibverbs.so.1\nworks\n", "exited with code 0") == (
        True,
        H100,
        None,
    )


@pytest.mark.parametrize("printed", ["", "F20260101 Check failed: cudaGetDevice\n"])
@pytest.mark.parametrize("ended", ["exited with code -6", "timed out after 120 s"])
def test_a_gpu_that_did_not_is_named_with_the_remedy(printed, ended):
    """What a GPU without kernels looks like: an abort."""
    works, name, reason = read(printed, ended)
    assert not works and name == H100
    build = installed_build()
    for text in (H100, ended, f"OneFlow {build.name} cannot", build.gpus, "docs/gpu.md"):
        assert text in reason


def test_auto_says_which_device_and_why(converted):
    works, name, reason = probe()
    result = call("lenet_train", "--dataset_dir", converted, "--steps", 1, "--batch_size", 10)
    assert len(losses(result)) == 1
    assert (f"device: cuda ({name})" if works else f"device: cpu ({reason})") in result.err


GPU_LIMITS = {  # of a GPU with 8 GB: image size, batch size, what is said
    "fits": (256, 96, None),
    "weights": (1024, 1, "needs about 35 GB, and the GPU has 8"),
    "activations": (256, 128, "batches of 128 needs about 9 GB, and the GPU has 8"),
    "cuDNN": (64, 20_000, "2**31 numbers or more, which cuDNN cannot do"),
}


@pytest.mark.parametrize("side, batch, text", GPU_LIMITS.values(), ids=list(GPU_LIMITS))
def test_what_a_gpu_has_no_memory_for_is_refused(converted, monkeypatch, side, batch, text):
    from lenet import datasets
    from lenet.config import TrainConfig
    from ofrecord.dataset import open_dataset
    from runtime.cli import InputError

    monkeypatch.setattr(datasets, "memory_of", lambda device: {"cuda:0": 8 * 10**9}[device])
    config = TrainConfig(image_size=side, batch_size=batch)
    with pytest.raises(InputError, match=text and re.escape(text)) if text else nullcontext():
        datasets.check_memory(config, open_dataset(str(converted)), "cuda:0")


def test_the_memory_of_this_machine():
    from lenet.device import memory_of

    meminfo = Path("/proc/meminfo").read_text()
    assert memory_of("cpu") == 1024 * int(re.search(r"MemTotal: +(\d+) kB", meminfo)[1])


@pytest.mark.gpu
def test_the_memory_of_a_gpu(gpu):
    from lenet.device import memory_of

    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    total = int(subprocess.run(command, capture_output=True, text=True).stdout.split()[0]) * 2**20
    assert 0.95 * total < memory_of("cuda:0") <= total


# -- on a GPU ---------------------------------------------------------------------------


@pytest.mark.gpu
def test_training_on_the_gpu(gpu, converted):
    result = run_script("lenet_train.py", "--dataset_dir", converted, *ON_GPU)
    values = losses(result)
    assert len(values) == 100 and 4 < values[0] < 10 and max(values[-10:]) < 0.5
    assert "device: cuda" in result.err and "50/50" in result.err, result


@pytest.mark.gpu
def test_the_gpu_computes_what_the_cpu_does(gpu, converted):
    """Without dropout and crops both take the same steps; float32 sums differ in their order only."""
    options = ["--steps", 5, "--dropout", 0, "--augment", "false"]
    on_cpu = losses(train(converted, *options))
    on_gpu = losses(run_script("lenet_train.py", "--dataset_dir", converted, *options, *ON_GPU))
    assert on_gpu == pytest.approx(on_cpu, rel=2e-2)
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [["--graph"], ["--graph", "--amp"]], ids=["graph", "amp"])
def test_graphs_on_the_gpu(gpu, converted, tmp_path, mode):
    """They learn the digits, and go on from a checkpoint, with the gradient scaler's state, as if never stopped."""
    options = ["lenet_train.py", "--dataset_dir", converted, *ON_GPU, *mode]
    options += ["--checkpoint_every", 20, "--fetch_every", 1, "--run_dir"]
    whole = run_script(*options, tmp_path / "whole")
    expected = losses(whole)
    assert "50/50" in whole.err, whole
    process = start_script(*options, tmp_path / "killed")
    for _ in range(45):
        assert process.stdout.readline(), process.stderr.read()
    process.kill()
    process.communicate()
    resumed = run_script(*options, tmp_path / "killed", "--resume")
    values = losses(resumed)
    assert "resumed after step 40" in resumed.err, resumed
    assert len(values) == 60
    assert values == pytest.approx(
        expected[-60:], rel=0.2, abs=0.05
    )  # cuDNN adds in no fixed order


@pytest.mark.gpu
def test_two_gpus(gpu, tmp_path):
    """Each rank takes one; with one GPU alone, the second rank is told so."""
    assert convert("--part_num", 2, "--save_dir", tmp_path / "dataset").code == 0
    launch = ["-m", "oneflow.distributed.launch", "--nproc_per_node", 2, "lenet_train.py"]
    result = run_python(*launch, "--dataset_dir", tmp_path / "dataset", "--batch_size", 10, *ON_GPU)
    count = run_python("-c", "import oneflow; print(oneflow.cuda.device_count())")
    if int(count.out) < 2:
        assert result.code != 0 and "fewer than its ranks" in result.err, result
    else:
        assert result.code == 0 and "world size: 2" in result.err, result


def test_the_probe_is_ours_in_any_folder(tmp_path):
    """A lenet/ in the user's folder is not run, and ours is found. (No GPU is needed: CUDA fails to start.)"""
    (tmp_path / "lenet").mkdir()
    (tmp_path / "lenet" / "device.py").write_text("print('works')")
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from lenet import device; "
        "device.flow.cuda.is_available = lambda: True; device.flow.cuda.device_count = lambda: 1; "
        "print(device.probe_gpu())"
    )
    result = run_python("-c", code, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.code == 0 and "works=False" in result.out, result
    assert "cannot run on the GPU (a test step exited with code" in result.out, result


def test_the_report_says_at_once_that_there_is_no_gpu(tmp_path):
    """With one, `make gpu` writes the report, in minutes; see its first test above."""
    works, _, reason = probe()
    if works:
        pytest.skip("there is a GPU here")
    result = run_script("benchmarks/gpu.py", "--report", tmp_path / "report.md")
    assert result.code == 1 and f"| **failed** | {reason} |" in result.out, result
    assert (tmp_path / "report.md").read_text() == result.out and "1 failed" in result.out


@pytest.mark.slow
def test_the_report_on_a_cpu(tmp_path):
    """All that it does but for what needs a GPU, and MNIST, which is not in the folder that is named."""
    options = ["--device", "cpu", "--mnist", tmp_path, "--report", tmp_path / "report.md"]
    short = {"STEPS_SECONDS": "0.3"}
    result = run_script("benchmarks/gpu.py", *options, env=short, timeout=1800)
    failed = [line for line in result.out.splitlines() if "failed" in line]
    assert len(failed) == 2 and "--source: neither" in failed[0] and failed[1] == "1 failed", result
    assert result.code == 1 and (tmp_path / "report.md").read_text() == result.out, result
    timings = result.out.partition("Training, images/s:")[2]
    assert result.out.count(" | ok | ") == 7, result
    for row in ("op by op", "as a graph", "the loader alone"):
        cells = re.search(rf"^\| {row} \| (.*) \| (.*) \|$", timings, re.M).groups()
        assert all(re.fullmatch(r"[\d,.]+", cell) for cell in cells), result
