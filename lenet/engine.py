"""The import of OneFlow: with the switches that it reads at start-up, without noise on stderr.

Every module that needs the engine gets it from here::

    from lenet.engine import flow
"""

import glob
import os
import signal
import socket
import sys
import time

from runtime.cli import EXIT_BAD_INPUT, log, shutdown
from runtime.environment import REMEDY
from runtime.guard import during_import, launched_ranks
from runtime.versions import is_0_8


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


def wait_for_rank_0() -> None:
    """On other ranks than 0, wait until rank 0 listens, for a minute at most.

    OneFlow would try once and then sleep for ten seconds.
    """
    if launched_ranks() > 1 and os.environ["RANK"] != "0":
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        for _ in range(600):
            try:
                return socket.create_connection(address, timeout=10).close()
            except OSError:
                time.sleep(0.1)


def import_oneflow():
    """Import ``oneflow`` and return it, or exit with one line, as where a library is missing.

    What it writes to file descriptor 2 during the import ("libibverbs not
    available") is discarded, unless it ends the process there. Its SIGINT
    handler, which exits without running any ``finally``, is replaced by the
    previous one.
    """
    wait_for_rank_0()
    for name, value in switches().items():
        os.environ.setdefault(name, value)  # what the user set is kept
    handler = signal.getsignal(signal.SIGINT)
    # Blocked until the previous handler is set again.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(during_import.fileno(), 2)
    try:
        import oneflow
    except ImportError as error:
        oneflow, problem = None, str(error).splitlines()[0]
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        during_import.truncate(0)  # the process that watches this one has the file too
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if oneflow is None:
        log(f"OneFlow cannot start ({problem}): {REMEDY}", "error")
        raise SystemExit(EXIT_BAD_INPUT)
    return oneflow


# -- what differs between OneFlow's versions ----------------------------------------


def alone(forward):
    """Return a module's ``forward`` that runs while nothing else does.

    0.8.0 ends with SIGSEGV where records are read while a step is computed, or
    dropped before they are decoded.
    """

    def forward_alone(*arguments):
        wait()
        result = forward(*arguments)
        wait()
        return result

    return forward_alone


def wait() -> None:
    """Wait until all operators before are done."""
    if launched_ranks() == 1:
        flow._oneflow_internal.eager.Sync()
    else:  # Sync waits for the other ranks, too; on the CPU operators run in order
        flow.zeros(1).numpy()


if is_0_8() and launched_ranks() == 1:  # where some of these are set, it wants all
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
flow = import_oneflow()
if is_0_8():  # go around what ends the process there
    shutdown.skipped = True
    nn = flow.nn
    decoders = nn.OFRecordBytesDecoder, nn.OFRecordImageDecoder, nn.image.decode, nn.image.Resize
    for module in (nn.OFRecordReader, *decoders):
        module.forward = alone(module.forward)
