"""The device: the probe's answers anywhere, and training on a GPU where one works.

`make gpu` runs the tests marked gpu, on a machine that has one.
"""

import re
import signal

import pytest
from helpers import (
    IMAGES,
    PROJECT,
    assert_one_error,
    call,
    convert,
    losses,
    run_python,
    run_script,
    start_script,
    train,
)

ON_GPU = ["--device", "cuda"]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


# -- the probe --------------------------------------------------------------------------


def test_what_is_said_of_the_device(converted):
    """Of auto which device and why, also by hand."""
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


# OneFlow's answers on a machine with one GPU. CUDA fails to start here, as an H100 without code for it.
ONE_GPU = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
from lenet import device
device.flow.cuda.is_available = lambda: True
device.flow.cuda.device_count = lambda: 1
import lenet_train
from runtime.cli import run_main
"""


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_does_not_work(converted, tmp_path, device):
    """As on a newer GPU than OneFlow's: a warning and the CPU, or, where it was asked for, an error.

    A lenet/ in the user's folder is not run; a second rank gets no GPU.
    """
    (tmp_path / "lenet").mkdir()
    (tmp_path / "lenet" / "device.py").write_text("print('works')")
    code = f"{ONE_GPU}print(device.probe_gpu(1)[1], file=sys.stderr)\nrun_main(lenet_train.main)"
    options = ["--dataset_dir", converted, "--image_size", 12, "--steps", 1, "--device", device]
    result = run_python("-c", code, *options, env=NO_GPU, cwd=tmp_path)
    rank_1, _, rest = result.err.partition("\n")
    assert rank_1 == "this machine has 1 GPU, fewer than its ranks", result
    problem = (
        r"OneFlow cannot run on the GPU \(a test step exited with code -?\d+\); OneFlow 0.9.0 "
    )
    assert re.search(f"(error: device cuda|warning): {problem}.*docs/gpu.md", rest), result
    if device == "cuda":
        assert_one_error(result._replace(err=rest), "train with --device cpu", started=True)
    else:
        assert len(losses(result)) == 1
        assert re.search("warning: OneFlow cannot .*; training on the CPU instead\n", rest)
        assert "\ndevice: cpu (OneFlow cannot run on the GPU (a test step" in rest


# -- on a GPU ---------------------------------------------------------------------------


# Adam's first updates are about as large for tiny gradients as for large ones, so that rounding grows: to 1e-2
# with the tutorial's learning rate, not beyond 1e-3 with a small one (docs/gpu.md).
@pytest.mark.gpu
@pytest.mark.parametrize("rate, close", [(1e-3, 1e-2), (3e-5, 1e-3)])
def test_the_gpu_computes_what_the_cpu_does(gpu, converted, rate, close):
    """Dropout and crops are drawn in NumPy, so both take the same steps; TF32 would round to 10 bits."""
    options = ["--dataset_dir", converted, "--steps", 10, "--learning_rate", rate]
    on_cpu = losses(train(converted, *options))
    exact = {"ONEFLOW_EP_CUDA_ENABLE_TF32_EXECUTION": "0"}
    on_gpu = losses(run_script("lenet_train.py", *options, *ON_GPU, env=exact))
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=1e-4)
    assert on_gpu == pytest.approx(on_cpu, rel=close)


STOPS = [([], signal.SIGINT), (["--graph"], signal.SIGKILL), (["--graph", "--amp"], signal.SIGKILL)]


@pytest.mark.gpu
@pytest.mark.parametrize("mode, number", STOPS, ids=["eager", "graph", "amp"])
def test_a_stopped_run_goes_on_on_the_gpu(gpu, converted, tmp_path, mode, number):
    """It learns the digits, and goes on from a checkpoint as if never stopped; its model predicts."""
    options = ["lenet_train.py", "--dataset_dir", converted, *ON_GPU, *mode]
    options += ["--checkpoint_every", 20, "--fetch_every", 1, "--run_dir", tmp_path / "run"]
    process = start_script(*options)
    stopped = [float(process.stdout.readline().strip("[]\n")) for _ in range(45)]
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130 and "saved: step 40" in err, err
    resumed = run_script(*options, "--resume")
    assert "resumed after step 40" in resumed.err and "50/50" in resumed.err, resumed
    values = losses(resumed)
    assert len(values) == 60 and max(values[-10:]) < 0.05
    assert values[0] == stopped[40]  # then cuDNN adds in no fixed order
    assert values[:5] == pytest.approx(stopped[40:], rel=0.2, abs=0.05)
    image = IMAGES / "00000030_3.png"
    result = run_python("-m", "lenet.predict", "--checkpoint", tmp_path / "run/best.npz", image)
    assert f"{image}: 3 (" in result.out, result


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
