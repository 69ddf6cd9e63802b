"""The start of OneFlow: its switches, its import without noise, and its launcher's ranks.

Every module that needs the engine gets it from here::

    from lenet.engine import flow
"""

import glob
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.cli import EXIT_BAD_INPUT, log
from runtime.environment import ONEFLOW, installed_version, launched_ranks
from runtime.workers import end_with_parent

MAX_FILES = 2**16


def switches() -> dict[str, str]:
    """Return environment variables that OneFlow reads while it is imported.

    `make bench-train BENCH="--only switches"` measures what each gains.
    (ONEFLOW_ENABLE_ONEDNN_OPTS is not among them, as it gained nothing there.)
    """
    chosen = {
        # One kernel for convolution and bias: on the CPU a LeNet step takes half
        # the time. The result is the same.
        "ONEFLOW_KERNEL_ENABLE_FUSED_CONV_BIAS": "1",
        # Fatal messages only.
        "GLOG_minloglevel": "3",
    }
    has_gpu = glob.glob("/dev/nvidia*") or os.path.exists("/dev/dxg")
    if not has_gpu:  # with one, kernels must be queued ahead
        # Each operator runs on the thread that schedules it instead of a worker thread:
        # batches of small images are read 1.4 times as fast, and steps are as fast.
        chosen["ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD"] = "0"
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read().split()
    except OSError:
        flags = []
    if {"avx2", "fma"} <= set(flags):
        # OneFlow's own OpenBLAS is older than most CPUs: on Intel's since Ice Lake and AMD's
        # since Zen 2 it takes matrix kernels without AVX (Prescott's, Barcelona's). Haswell's
        # run wherever there are AVX2 and FMA, and a LeNet step takes three quarters of the time.
        chosen["OPENBLAS_CORETYPE"] = "Haswell"
    return chosen


def set_limits() -> None:
    """Allow as many open files as possible, as OneFlow keeps all parts open, and no core dumps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def join_ranks() -> None:
    """Make this process one of the launcher's ranks; without the launcher, do nothing.

    It ends with the launcher. Rank 0 makes sure that it can listen; the others wait until it
    does, for a minute at most: OneFlow would try once and then sleep for ten seconds.
    """
    rank, world_size = launched_ranks()
    if world_size == 1:
        return
    end_with_parent(os.getppid())
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0:
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                return listening.bind(("", port))
            except OSError as error:
                reason = f"port {port} cannot be used ({error.strerror})"
                log(f"{reason}: launch with --master_port N, before the script", "error")
                os._exit(EXIT_BAD_INPUT)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return socket.create_connection((address, port), timeout=10).close()
        except OSError:
            time.sleep(0.1)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Keep OneFlow's "libibverbs not available" away from stderr, and its SIGINT handler away.

    The handler would exit without running any ``finally``. All else that is printed, such as why
    the import aborts, still comes out.
    """
    words = ["grep", "-v", "--line-buffered", "libibverbs not available"]
    filtered = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=2)
    handler, stderr = signal.getsignal(signal.SIGINT), os.dup(2)
    os.dup2(filtered.stdin.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        filtered.communicate()
        signal.signal(signal.SIGINT, handler)


def import_oneflow():
    """Import ``oneflow`` and return it."""
    set_limits()
    join_ranks()
    for name, value in switches().items():
        os.environ.setdefault(name, value)  # what the user set is kept
    sys.stderr.flush()
    # Blocked until the handler is set again, as libraries do not stand an interrupted import.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with quiet_import():
            import oneflow
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    version = installed_version("oneflow")
    if version and version != ONEFLOW:
        log(
            f"OneFlow {version} is not the build that this project is tried on: see docs/gpu.md",
            "warning",
        )
    return oneflow


flow = import_oneflow()
