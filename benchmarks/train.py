"""How fast does LeNet train: op by op, as a graph, on two ranks, and in PyTorch?

On a GPU where there is one that works, in mixed precision too. Each way in a
process of its own, in turn (A B C, A B C …). Prints Markdown tables.

    make bench-train                         (MNIST=DIR with the real MNIST)
    make bench-train BENCH="--only switches"  what OneFlow's own switches give
"""

import sys

from convert import make_small
from sides import CONVERT, PROJECT, check, last_line, parse_options, speed_table, workspace

STEPS = str(PROJECT / "benchmarks" / "steps.py")
LAUNCH = [sys.executable, "-m", "oneflow.distributed.launch", "--nproc_per_node", "2"]

# (the step, what it switches): each against the step as it is.
SWITCHES = {
    "without fused convolution and bias": {"ONEFLOW_KERNEL_ENABLE_FUSED_CONV_BIAS": "0"},
    "with oneDNN's operators": {"ONEFLOW_ENABLE_ONEDNN_OPTS": "1"},
    "computing on threads of its own": {"ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD": "1"},
    "with OpenBLAS's own choice of kernels": {"OPENBLAS_CORETYPE": ""},
}
GPU_SWITCHES = {
    "without TF32": {"ONEFLOW_EP_CUDA_ENABLE_TF32_EXECUTION": "0"},
    "computing on the scheduler's thread": {"ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD": "0"},
    "copies on a stream of their own": {"ONEFLOW_STREAM_ENABLE_H2D_STREAM": "1"},
}


def main():
    args = parse_options("Time training steps, side by side.", ["ways", "switches"])
    with workspace(args) as folder:
        images, labels = make_small(folder, args)
        dataset = str(folder / "ofrecord")
        check(CONVERT + ["--image_root", images, "--label_dir", labels, "--part_num", "4", "--save_dir", dataset])
        probe = last_line([sys.executable, "-c", "import json; from lenet.device import probe_gpu; print(json.dumps(probe_gpu()))"],
                          PYTHONPATH=str(PROJECT))
        gpu = probe[0]
        print("{}; batches of 64, dropout and random crops on, MNIST's network; images/s\n".format(
            probe[1] if gpu else "On the CPU"))
        if args.only in (None, "ways"):
            speed_table(ways(dataset, gpu, args), args.rounds)
            if not gpu:
                took = last_line([sys.executable, STEPS, "loader", dataset])
                print("Of a step of {whole:.0f} ms the loader takes {loader:.1f} ms; with a batch that is there already it "
                      "takes {without:.0f} ms.\n".format(**took))
        if args.only in (None, "switches"):
            print("OneFlow's switches:\n")
            step = [sys.executable, STEPS, "ours", dataset]
            speed_table({"as it is": (step, {}), **{name: (step, environment) for name, environment in
                                                   (GPU_SWITCHES if gpu else SWITCHES).items()}}, args.rounds)


def ways(dataset, gpu, args):
    ours, one_thread = [STEPS, "ours", dataset], {"OMP_NUM_THREADS": "1"}  # else the launcher prints that it sets it
    ways = {"op by op": ([sys.executable, *ours], {}),
            "as a graph": ([sys.executable, *ours, "--graph"], {}),
            "two ranks, op by op": ([*LAUNCH, *ours], one_thread),
            "two ranks, as a graph": ([*LAUNCH, *ours, "--graph"], one_thread)}
    if gpu:
        ways["as a graph, in mixed precision"] = ([sys.executable, *ours, "--graph", "--amp"], {})
    if args.peers_python:
        ways["PyTorch"] = ([args.peers_python, STEPS, "pytorch", "-"], {})
    else:
        print("(no --peers_python: PyTorch is left out)\n")
    return ways


if __name__ == "__main__":
    main()
