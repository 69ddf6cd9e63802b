"""Measure how fast LeNet trains: op by op, as a graph, on two ranks, and in PyTorch.

On a GPU if one works, then in mixed precision and in larger batches too. Each way
runs in a process of its own, in turn (A B C, A B C …). Prints Markdown tables.

    make bench-train                          (MNIST=DIR with MNIST)
    make bench-train BENCH="--only switches"  the effect of OneFlow's own switches
"""

import os
import sys
from argparse import Namespace
from pathlib import Path

from sides import (
    PROJECT,
    check,
    convert_command,
    last_line,
    make_small,
    parse_options,
    speed_rows,
    workspace,
)

CPU_BATCHES, GPU_BATCHES = (64,), (64, 512)  # images, of all ranks together
STEPS = PROJECT / "benchmarks" / "steps.py"
LAUNCH = [sys.executable, "-m", "oneflow.distributed.launch", "--nproc_per_node", "2"]

# What lenet/engine.py sets, apart from OPENBLAS_CORETYPE.
DEFAULTS = {
    "ONEFLOW_KERNEL_ENABLE_FUSED_CONV_BIAS": "1",
    "ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD": "0",
}

# OneFlow's switches, {name: environment}; each is compared with the default.
SWITCHES = {
    "without fused convolution and bias": {"ONEFLOW_KERNEL_ENABLE_FUSED_CONV_BIAS": "0"},
    "with oneDNN's operators": {"ONEFLOW_ENABLE_ONEDNN_OPTS": "1"},
    "computing on threads of its own": {"ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD": "1"},
    "with OpenBLAS's own choice of kernels": {**DEFAULTS, "STEPS_IMPORT_FIRST": "1"},
}
GPU_SWITCHES = {
    "without TF32": {"ONEFLOW_EP_CUDA_ENABLE_TF32_EXECUTION": "0"},
    "computing on the scheduler's thread": {"ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD": "0"},
    "copies on a stream of their own": {"ONEFLOW_STREAM_ENABLE_H2D_STREAM": "1"},
}


def main() -> None:
    args = parse_options("Compare training steps.", ["ways", "switches"], seconds=10.0)
    os.environ["STEPS_SECONDS"] = str(args.seconds)
    with workspace(args) as folder:
        images, labels = make_small(folder, args)
        dataset = folder / "ofrecord"
        check(convert_command(images, labels, dataset, "--part_num", "4"))
        probe = "import json; from lenet.device import probe_gpu; print(json.dumps(probe_gpu()))"
        name, problem = last_line([sys.executable, "-c", probe], PYTHONPATH=str(PROJECT))
        gpu = not problem
        batches = GPU_BATCHES if gpu else CPU_BATCHES
        print("| training | way | images/s | op by op / this |\n|---|---|---|---|")
        for batch in batches:
            what = f"LeNet, batches of {batch}, {name if gpu else 'CPU'}"
            if args.only in (None, "ways"):
                speed_rows(what, ways(dataset, batch, gpu, args), args.rounds)
            if args.only in (None, "switches"):
                step = [sys.executable, STEPS, "ours", dataset, batch]
                switches = GPU_SWITCHES if gpu else SWITCHES
                commands = {name: (step, environment) for name, environment in switches.items()}
                commands = {"as it is": (step, {}), **commands}
                speed_rows(f"{what}, switches", commands, args.rounds)
        print()
        for batch in batches if args.only in (None, "ways") else ():
            took = last_line([sys.executable, STEPS, "parts", dataset, batch])
            print(f"| part of a step of {batch} images | ms |\n|---|---|")
            print("".join(f"| {name} | {ms:.1f} |\n" for name, ms in took.items()))


def ways(
    dataset: Path, batch: int, gpu: bool, args: Namespace
) -> dict[str, tuple[list, dict[str, str]]]:
    """Return the ways to train, {name: (command, environment)}."""
    ours = [STEPS, "ours", dataset, batch]
    one_thread = {"OMP_NUM_THREADS": "1"}  # otherwise the launcher prints that it sets it
    ways = {
        "op by op": ([sys.executable, *ours], {}),
        "as a graph": ([sys.executable, *ours, "--graph"], {}),
    }
    if gpu:
        ways["as a graph, in mixed precision"] = ([sys.executable, *ours, "--graph", "--amp"], {})
    else:
        ways["two ranks, op by op"] = [*LAUNCH, *ours], one_thread
        ways["two ranks, as a graph"] = [*LAUNCH, *ours, "--graph"], one_thread
    if args.peers_python:
        command = [args.peers_python, STEPS, "pytorch", "-", batch]
        for threads in "1", "2":  # of the CPU
            name = f"PyTorch, OMP_NUM_THREADS={threads}, batch in memory"
            ways[name] = (command, {"OMP_NUM_THREADS": threads})
    return ways


if __name__ == "__main__":
    main()
