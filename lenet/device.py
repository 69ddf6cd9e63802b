"""The choice of the device to train on.

OneFlow 0.9.0 reports a GPU as available even when it cannot run a single
kernel on it, and a CUDA call that fails aborts the process. So the only
reliable test is a tiny training step in a separate process; ``python -m
lenet.device`` runs it by hand.

The rest of the project knows the device only as the string that choose_device
returns: tensors are made on that device or moved ``.to`` it.
"""

import ctypes
import os
import subprocess
import sys
from typing import NamedTuple

from runtime.cli import InputError, count, log
from runtime.versions import installed_build

from .engine import flow
from .ranks import LOCAL_RANK, WORLD_SIZE, gather

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROBE_SECONDS = 120  # the first CUDA call on a large machine can take half a minute

# Attributes of a device, and the text lengths, of the CUDA driver's API (cuda.h).
CAPABILITY_MAJOR, CAPABILITY_MINOR, NAME_LENGTH = 75, 76, 256


class Gpu(NamedTuple):
    """A GPU, as the CUDA driver describes it."""

    name: str  # with its compute capability
    memory: int  # bytes


class Probe(NamedTuple):
    """The result of a test step on a GPU."""

    works: bool
    name: str | None  # the GPU's, None without a GPU
    reason: str | None  # why it does not work


def choose_device(setting: str) -> str:
    """Return the device to train on, ``"cuda:0"`` or ``"cpu"``, for ``auto``, ``cuda`` or ``cpu``.

    Each rank on a machine uses a GPU of its own. Logs which one, and why.
    Raises InputError if ``setting`` is ``"cuda"`` and no GPU works, and if only
    some of the ranks have a GPU that works.
    """
    if setting == "cpu":
        log("device: cpu")
        return "cpu"
    probes = gather(probe_gpu(LOCAL_RANK))
    failed = [(rank, probe.reason) for rank, probe in enumerate(probes) if not probe.works]
    if not failed:
        names = "; ".join(probe.name for probe in probes)
        log(f"device: cuda ({names}); a test step succeeded")
        return f"cuda:{LOCAL_RANK}"
    if setting == "cuda" or len(failed) < WORLD_SIZE:
        rank, reason = failed[0]
        where = f"rank {rank}: " if WORLD_SIZE > 1 else ""
        raise InputError(f"device {setting}: {where}{reason}; train with --device cpu")
    probe = probes[0]
    if probe.name:  # there is a GPU, and users expect it to be used
        log(f"{probe.reason}; training on the CPU instead", "warning")
    log(f"device: cpu ({probe.reason})")
    return "cpu"


def probe_gpu(index: int = 0) -> Probe:
    """Run one training step on a GPU, in a separate process."""
    gpu = gpu_from_driver(index)
    name = gpu and gpu.name
    if not flow.cuda.is_available():
        if name is None:
            return Probe(False, None, "no NVIDIA GPU or driver found")
        build = installed_build()
        needed = f"CUDA {build.cuda} requires ({build.driver})"
        reason = f"OneFlow cannot use the {name}: its driver is older than {needed}"
        return Probe(False, name, reason)
    if index >= flow.cuda.device_count():
        gpus = count(flow.cuda.device_count(), "GPU")
        return Probe(False, None, f"this machine has {gpus}, fewer than its ranks")
    try:
        process = subprocess.run(
            [sys.executable, "-m", __name__, str(index)],
            cwd=PROJECT,  # a lenet/ in the user's folder is not ours
            capture_output=True,
            timeout=PROBE_SECONDS,
            env={**os.environ, "WORLD_SIZE": "1"},  # it is no rank
        )
        printed, ended = process.stdout, f"exited with code {process.returncode}"
    except subprocess.TimeoutExpired as error:
        printed, ended = error.stdout or b"", f"timed out after {PROBE_SECONDS} s"
    return read_probe(name or "GPU", printed.decode(errors="replace"), ended)


def read_probe(name: str, printed: str, ended: str) -> Probe:
    """Return the Probe for what the separate process printed and how it ended.

    The process prints the line ``works`` after a step. ``ended`` is for
    messages: ``"exited with code 1"``.
    """
    if "works" in printed.splitlines():
        return Probe(True, name, None)
    build = installed_build()
    reason = f"OneFlow {build.name} cannot run on the {name} (a test step {ended})"
    others = "docs/gpu.md has builds for others"
    return Probe(False, name, f"{reason}; it is for {build.gpus}; {others}")


def memory_of(device: str) -> int:
    """Return the bytes of memory that a device has: a GPU's, or this machine's."""
    gpu = None if device == "cpu" else gpu_from_driver(int(device.removeprefix("cuda:")))
    return gpu.memory if gpu else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpu_from_driver(index: int) -> Gpu | None:
    """Return what the CUDA driver says of a GPU, or None without it.

    OneFlow 0.8.0 has no functions for that, and 0.9.0's may abort.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory = ctypes.c_size_t()
    name = ctypes.create_string_buffer(NAME_LENGTH)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetName(name, NAME_LENGTH, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    )
    if failed:
        return None
    capability = f"compute capability {major.value}.{minor.value}"
    return Gpu(f"{name.value.decode()} ({capability})", memory.value)


def run_probe(index: int) -> None:
    """Run one step with the kinds of kernels that LeNet needs: cuDNN, cuBLAS, OneFlow's own."""
    device = f"cuda:{index}"
    weight = flow.ones(4, 1, 5, 5, device=device, requires_grad=True)
    images = flow.ones(2, 1, 8, 8, device=device)
    convolved = flow.nn.functional.conv2d(images, weight, padding=2)
    features = flow.nn.functional.relu(convolved).reshape(2, -1)
    loss = flow.matmul(features, flow.ones(features.shape[1], 3, device=device)).mean()
    loss.backward()
    if not (loss.numpy() > 0 and (weight.grad.numpy() > 0).all()):
        raise SystemExit("the GPU computes wrong results")
    print("works", flush=True)


if __name__ == "__main__":
    run_probe(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
