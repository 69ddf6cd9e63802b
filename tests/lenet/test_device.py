"""The device: the probe's answers anywhere, and training on a GPU where one works.

`make gpu` runs the tests marked gpu, on a machine that has one.
"""

import re

import pytest
from helpers import (
    PROJECT,
    assert_one_error,
    call,
    cases,
    convert,
    losses,
    run_python,
    run_script,
    start_script,
    train,
)
from runs import wait_for_losses

ON_GPU = ["--device", "cuda"]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


# -- the probe --------------------------------------------------------------------------


def test_what_is_said_of_the_device(converted, monkeypatch):
    """Of auto which device and why, also by hand; of cuda where there is none, the remedy."""
    from lenet.device import probe_gpu

    name, problem = probe_gpu(0)
    by_hand = run_python("-m", "lenet.device")
    if problem:
        assert_one_error(by_hand, problem)
    else:
        assert by_hand.out == f"{name} works\n", by_hand
    options = ["--dataset_dir", converted, "--steps", 1, "--batch_size", 10, "--image_size", 12]
    result = call("lenet_train", *options)
    assert len(losses(result)) == 1
    device = f"cpu ({problem})" if problem else f"cuda ({name}); a test step succeeded"
    assert f"\ndevice: {device}\n" in result.err, result
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = train(converted, "--device", "cuda")
    text = "device cuda: OneFlow finds no NVIDIA GPU"
    assert_one_error(result, text, "--device cpu", started=True)


# OneFlow's answers on a machine with one GPU. CUDA fails to start here, as an H100 without code for it.
ONE_GPU = """
import sys
sys.path.insert(0, {project!r})
from lenet import device
device.flow.cuda.is_available = lambda: True
device.flow.cuda.device_count = lambda: 1
{code}
"""


def test_the_probe_is_ours_in_any_folder(tmp_path):
    """A lenet/ in the user's folder is not run, and ours is found; a second rank gets no GPU."""
    (tmp_path / "lenet").mkdir()
    (tmp_path / "lenet" / "device.py").write_text("print('works')")
    code = "for index in (0, 1):\n    print(*device.probe_gpu(index), sep='|')"
    code = ONE_GPU.format(project=str(PROJECT), code=code)
    result = run_python("-c", code, cwd=tmp_path, env=NO_GPU)
    first, second = result.out.splitlines()
    text = (
        r"GPU\|OneFlow cannot run on the GPU \(a test step exited with code -?\d+\); OneFlow 0.9.0"
    )
    assert re.match(text, first) and "docs/gpu.md" in first, result
    assert second == "|this machine has 1 GPU, fewer than its ranks", result


@pytest.mark.parametrize("device", cases(["auto"], ["cuda"]))
def test_a_gpu_that_does_not_work(converted, device):
    """As on a newer GPU than OneFlow's: a warning and the CPU, or, where it was asked for, an error."""
    code = ONE_GPU.format(
        project=str(PROJECT),
        code="import lenet_train\nfrom runtime.cli import run_main\nrun_main(lenet_train.main)",
    )
    options = ["--dataset_dir", converted, "--image_size", 12, "--steps", 1, "--device", device]
    result = run_python("-c", code, *options, env=NO_GPU)
    if device == "cuda":
        assert_one_error(result, "OneFlow cannot run on the GPU", "--device cpu", started=True)
    else:
        assert len(losses(result)) == 1
        assert re.search("warning: OneFlow cannot .*; training on the CPU instead\n", result.err)
        assert "\ndevice: cpu (OneFlow cannot run on the GPU (a test step" in result.err


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
    wait_for_losses(process, 45)
    process.kill()
    process.communicate()
    resumed = run_script(*options, tmp_path / "killed", "--resume")
    values = losses(resumed)
    assert "resumed after step 40" in resumed.err, resumed
    assert len(values) == 60
    # cuDNN adds in no fixed order.
    assert values == pytest.approx(expected[-60:], rel=0.2, abs=0.05)


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
        assert result.code == 0 and " on 2 ranks" in result.err, result


def test_the_report_says_at_once_that_there_is_no_gpu(tmp_path):
    """With one, `make gpu` writes the report, in minutes; see its first test above."""
    from lenet.device import probe_gpu

    _, reason = probe_gpu(0)
    if not reason:
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
