"""Import OneFlow: with the switches it reads at start-up, quietly, and with Ctrl-C kept.

Every module that needs the engine takes it from here::

    from lenet.engine import flow
"""

import glob
import os
import signal
import socket
import sys
import tempfile
import time

# Read by OneFlow while it is imported; the environment's own values win. What
# each gives, `make bench-train BENCH="--only switches"` measures. Left out, as
# they gave nothing there: ONEFLOW_ENABLE_ONEDNN_OPTS.
SWITCHES = {
    # One kernel for convolution and bias: on the CPU a LeNet step takes half
    # the time. The result is the same.
    "ONEFLOW_KERNEL_ENABLE_FUSED_CONV_BIAS": "1",
    # Fatal messages only.
    "GLOG_minloglevel": "3",
}


def switches():
    """Those above, and what depends on the machine."""
    chosen = dict(SWITCHES)
    if not (glob.glob("/dev/nvidia*") or os.path.exists("/dev/dxg")):  # no GPU that must never wait for its next kernel
        # Each operator runs where it is scheduled, instead of on a thread that is handed one after the other: batches
        # of small images are read 1.4 times as fast, and training steps are as fast as before.
        chosen["ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD"] = "0"
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read().split()
    except OSError:
        flags = []
    if {"AuthenticAMD", "avx512_bf16"} <= set(flags):
        # On AMD CPUs with bfloat16 (Zen 4 and later) OneFlow's OpenBLAS multiplies matrices with the kernels named
        # Cooperlake, which are slow there: with those for other AVX-512 CPUs a LeNet step takes two thirds of the
        # time. (Not tried on Intel's.)
        chosen["OPENBLAS_CORETYPE"] = "SkylakeX"
    return chosen


def wait_for_rank_0():
    """On another rank, wait until rank 0 listens, for a minute at most.

    OneFlow would knock once and then sleep for ten seconds.
    """
    address = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and all(address) and os.environ.get("RANK") != "0":
        for _ in range(600):
            try:
                return socket.create_connection(address, timeout=10).close()
            except OSError:
                time.sleep(0.1)


def import_oneflow():
    """Import and return ``oneflow``.

    What it writes straight to file descriptor 2 meanwhile ("libibverbs not
    available") is dropped, unless the import fails. Its SIGINT handler, which
    exits without running any ``finally``, is replaced by the one that was there.
    """
    wait_for_rank_0()
    for name, value in switches().items():
        os.environ.setdefault(name, value)
    handler = signal.getsignal(signal.SIGINT)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the handler is ours again
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            import oneflow
        except BaseException:
            noise.seek(0)
            os.write(stderr, noise.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            signal.signal(signal.SIGINT, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return oneflow


flow = import_oneflow()
