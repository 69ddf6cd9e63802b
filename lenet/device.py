"""Which device to train on. All that touches the GPU goes through here.

OneFlow 0.9.0 says that a GPU is available when it cannot run one kernel on
it, and a CUDA call that fails aborts the process. So the only test that means
something is a tiny training step in a process of its own: run this file as
``python -m lenet.device`` to see what it says.

Nothing else in this project knows a GPU from a CPU, but for the string that
choose_device returns: tensors are made on that device or moved ``.to`` it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

from ofrecord.cli import InputError, talk

from .engine import flow
from .ranks import LOCAL_RANK, WORLD_SIZE, gather

PROBE_SECONDS = 120  # the first CUDA call on a large machine can take half a minute

# What the wheel's CUDA kernels are compiled for; there is no PTX in it, so no
# newer GPU can run them. Read from the wheel's binaries with cuobjdump.
SUPPORTED = "compute capability 6.0 to 8.9: GTX 10 to RTX 40 series, P100, V100, T4, A100, L4"

NEWER = "newer GPUs take OneFlow 1.0, which is not on the package index: see the README"

Probe = namedtuple("Probe", "works name reason")
Probe.__doc__ = """What the probe found: works (bool), the GPU's name or None, and why it does not work or None."""


def choose_device(wish):
    """The device to train on, ``"cuda:0"`` or ``"cpu"``, for the config's ``auto``, ``cuda`` or ``cpu``.

    Each rank on a machine takes a GPU of its own. Says on stderr which one
    and why. Raises InputError where ``cuda`` is asked for and no GPU works,
    and where not all ranks have one.
    """
    if wish == "cpu":
        talk("device: cpu, as asked for")
        return "cpu"
    probes = gather(probe_gpu(LOCAL_RANK))
    failed = [(rank, probe.reason) for rank, probe in enumerate(probes) if not probe.works]
    if not failed:
        talk("device: cuda ({}), where a test step ran".format(
            "; ".join(probe.name for probe in probes)))
        return "cuda:{}".format(LOCAL_RANK)
    if wish == "cuda" or len(failed) < WORLD_SIZE:
        rank, reason = failed[0]
        raise InputError("device {}: {}{}; train with --device cpu".format(
            wish, "rank {}: ".format(rank) if WORLD_SIZE > 1 else "", reason))
    probe = probes[0]
    if probe.name:  # there is a GPU, and people expect it to be used
        talk("{}; training on the CPU instead".format(probe.reason), "warning")
    talk("device: cpu ({})".format(probe.reason))
    return "cpu"


def probe_gpu(index=0):
    """Try one training step on a GPU, in a process of its own. Returns a Probe."""
    if not flow.cuda.is_available():
        name = name_from_driver()
        if name is None:
            return Probe(False, None, "there is no NVIDIA GPU, or no driver for it")
        return Probe(False, name, "OneFlow cannot use the {}: its driver is older than CUDA 11.7 needs (515), "
                                  "or CUDA_VISIBLE_DEVICES hides it".format(name))
    if index >= flow.cuda.device_count():
        return Probe(False, None, "this machine has {} GPU{}, too few for its ranks".format(
            flow.cuda.device_count(), "s" if flow.cuda.device_count() > 1 else ""))
    alone = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
    try:
        process = subprocess.run([sys.executable, "-m", __name__, str(index)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 universal_newlines=True, timeout=PROBE_SECONDS, env=alone)
        output, ended = process.stdout, "with code {}".format(process.returncode)
    except subprocess.TimeoutExpired as error:
        output, ended = error.stdout or "", "not within {} s".format(PROBE_SECONDS)
        if isinstance(output, bytes):
            output = output.decode()
    return read_probe(output, ended)


# What OneFlow's launcher sets: the probe's process must not take itself for a rank.
OF_RANKS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def read_probe(output, ended):
    """Make a Probe of what the probe process printed and how it ended.

    It prints a JSON line about the GPU before it first uses it and the line
    ``works`` after a step, so what is missing tells how far it came.
    """
    lines = output.splitlines()
    try:
        gpu = json.loads(lines[0])
    except (IndexError, ValueError):
        return Probe(False, name_from_driver(), "CUDA does not start in OneFlow (the test process ended {})".format(ended))
    title = "{} (compute capability {})".format(gpu["name"], ".".join(map(str, gpu["capability"])))
    if "works" in lines[1:]:
        return Probe(True, title, None)
    return Probe(False, title, "OneFlow 0.9.0 cannot run on the {} (a test step ended {}); it has kernels for {}; {}"
                 .format(title, ended, SUPPORTED, NEWER))


def name_from_driver():
    """The first GPU's name as the NVIDIA driver has it, or None."""
    if not shutil.which("nvidia-smi"):
        return None
    try:
        output = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, universal_newlines=True, timeout=PROBE_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.splitlines()[0].strip() if output.strip() else None


def run_probe(index):
    """One step with the kinds of kernels LeNet needs: cuDNN, cuBLAS, OneFlow's own."""
    device = "cuda:{}".format(index)
    print(json.dumps({"name": flow.cuda.get_device_name(index),
                      "capability": list(flow.cuda.get_device_capability(index))}), flush=True)
    weight = flow.ones(4, 1, 5, 5, device=device, requires_grad=True)
    images = flow.ones(2, 1, 8, 8, device=device)
    features = flow.nn.functional.relu(flow.nn.functional.conv2d(images, weight, padding=2)).reshape(2, -1)
    loss = flow.matmul(features, flow.ones(features.shape[1], 3, device=device)).mean()
    loss.backward()
    if not (loss.numpy() > 0 and (weight.grad.numpy() > 0).all()):
        raise SystemExit("the GPU computes, but wrongly")
    print("works", flush=True)


if __name__ == "__main__":
    run_probe(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
