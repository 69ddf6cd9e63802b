"""Work on many processes, results in the order of the jobs."""

import ctypes
import os
import signal
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from .cli import InputError

# Jobs handed out ahead of the one whose result is awaited, per worker: enough
# that none idles, few enough that results do not pile up in memory.
JOBS_AHEAD = 3

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def ordered_map(function, jobs, workers, close_in_workers=()):
    """Yield ``function(job)`` for each job, in order; with 1 worker in this process.

    ``close_in_workers`` are file descriptors that the worker processes must
    not keep open (a lock, say). Raises InputError where a worker is killed.
    """
    if workers == 1:
        for job in jobs:
            yield function(job)
        return
    waiting = deque()
    with ProcessPoolExecutor(workers, initializer=_start_worker,
                             initargs=(os.getpid(), tuple(close_in_workers))) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) >= JOBS_AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise InputError("a worker process was killed, perhaps for lack of memory: try --workers 1")
        finally:
            for future in waiting:
                future.cancel()


def _start_worker(parent, descriptors):
    """Let the parent alone answer Ctrl-C, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
    for descriptor in descriptors:
        os.close(descriptor)
