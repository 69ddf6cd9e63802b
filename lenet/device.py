"""The choice of the device to train on.

OneFlow 0.9.0 reports a GPU as available even when it cannot run a single
kernel on it, and a CUDA call that fails aborts the process. So the only
reliable test is a tiny training step in a separate process; ``python -m
lenet.device`` says by hand whether it succeeds.

The rest of the project knows the device only as the string that choose_device
returns: tensors are made on that device or moved ``.to`` it.
"""

from runtime.environment import LAUNCHER, check_environment

check_environment(__name__)

import os
import subprocess
import sys

from runtime.cli import PROJECT, ArgumentParser, InputError, count, log, output, run_main

from .engine import flow
from .ranks import LOCAL_RANK, gather

PROBE_SECONDS = 120  # the first CUDA call on a large machine can take half a minute
GPUS = (  # by the machine code in the wheel, as cuobjdump lists it
    "OneFlow 0.9.0 is for compute capability 6.0 to 8.9 (GTX 10 to RTX 40 series, P100, V100, T4, "
    "A100, L4); docs/gpu.md has builds for others"
)


def choose_device(setting: str) -> str:
    """Return the device to train on, ``"cuda:0"`` or ``"cpu"``, for ``auto``, ``cuda`` or ``cpu``.

    Each rank on a machine uses a GPU of its own. Logs which one, and why. Raises InputError if
    ``setting`` is ``"cuda"`` and no GPU works, and if only some of the ranks have one that does.
    """
    if setting == "cpu":
        log("device: cpu")
        return "cpu"
    names, problems = zip(*gather(probe_gpu(LOCAL_RANK)), strict=True)
    if not any(problems):
        log(f"device: cuda ({'; '.join(names)}); a test step succeeded")
        return f"cuda:{LOCAL_RANK}"
    problem = next(filter(None, problems))
    if setting == "cuda" or not all(problems):
        raise InputError(f"device {setting}: {problem}; train with --device cpu")
    if any(names):  # there is a GPU, and users expect it to be used
        log(f"{problem}; training on the CPU instead", "warning")
    log(f"device: cpu ({problem})")
    return "cpu"


def probe_gpu(index: int = 0) -> tuple[str, str]:
    """Run one training step on a GPU in a separate process; return its name and the problem.

    The name is empty without a GPU, the problem where the step succeeded.
    """
    if not flow.cuda.is_available():
        return "", "OneFlow finds no NVIDIA GPU, or no driver for CUDA 11.7 (450.80 or newer)"
    if index >= flow.cuda.device_count():
        gpus = count(flow.cuda.device_count(), "GPU")
        return "", f"this machine has {gpus}, fewer than its ranks"
    try:
        process = subprocess.run(
            [sys.executable, "-c", f"from lenet.device import run_probe; run_probe({index})"],
            cwd=PROJECT,  # a lenet/ in the user's folder is not ours
            capture_output=True,
            timeout=PROBE_SECONDS,
            env={n: v for n, v in os.environ.items() if n not in LAUNCHER},  # it is no rank
        )
        printed, ended = process.stdout, f"exited with code {process.returncode}"
    except subprocess.TimeoutExpired as error:
        printed, ended = error.stdout or b"", f"timed out after {PROBE_SECONDS} s"
    name, *works = printed.decode(errors="replace").splitlines() or ["GPU"]
    if works == ["works"]:
        return name, ""
    return name, f"OneFlow cannot run on the {name} (a test step {ended}); {GPUS}"


def run_probe(index: int) -> None:
    """Print the GPU's name, run one step with the kinds of kernels that LeNet needs (cuDNN,
    cuBLAS, OneFlow's own), and print ``works``.
    """
    device = f"cuda:{index}"
    name, capability = flow.cuda.get_device_name(index), flow.cuda.get_device_capability(index)
    print(f"{name} (compute capability {'.'.join(map(str, capability))})", flush=True)
    weight = flow.ones(4, 1, 5, 5, device=device, requires_grad=True)
    images = flow.ones(2, 1, 8, 8, device=device)
    features = flow.nn.functional.conv2d(images, weight, padding=2).relu().reshape(2, -1)
    loss = flow.matmul(features, flow.ones(features.shape[1], 3, device=device)).mean()
    loss.backward()
    if not (loss.numpy() > 0 and (weight.grad.numpy() > 0).all()):
        raise SystemExit("the GPU computes wrong results")
    print("works", flush=True)


def main() -> None:
    description = "Run a training step on the GPU, as the trainer does before it uses one."
    ArgumentParser(prog="python -m lenet.device", description=description).parse_args()
    name, problem = probe_gpu()
    if problem:
        raise InputError(problem)
    output(f"{name} works")


if __name__ == "__main__":
    run_main(main)
