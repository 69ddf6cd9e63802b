"""Worker processes, with results in the order of the jobs."""

import ctypes
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context

from .cli import InputError, os_errors

# Jobs sent to each worker ahead of the one whose result is awaited: enough that
# none is idle, few enough that results do not pile up in memory.
JOBS_AHEAD = 3

PR_SET_PDEATHSIG = 1  # linux/prctl.h

FEWER = "try --workers 1; a command without it: taskset -c 0 python …"
KILLED = f"a worker process was killed, perhaps out of memory: {FEWER}"


def num_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def ordered_map(function: Callable, jobs: Iterable, workers: int) -> Generator:
    """Yield ``function(job)`` for each job, in order; with 1 worker in this process.

    Jobs should be small, as they wait in a pipe; ``function`` may be anything,
    a closure over large data too, as the workers are forked with it. Exceptions
    in ``function`` are raised here. Closing the generator kills the workers,
    whatever they are doing. Raises InputError if a worker is killed.

    (concurrent.futures leaves workers behind and hangs if a second Ctrl-C
    arrives while it shuts down.)
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    context = get_context("fork")
    processes, pipes, waiting = [], [], deque()
    try:
        for number, job in enumerate(jobs):
            if number < workers:  # no more workers than jobs
                with os_errors("start", "a worker process", FEWER):  # limits of files, processes
                    ours, theirs = context.Pipe()
                    arguments = function, theirs, os.getpid()
                    process = context.Process(target=_work, daemon=True, args=arguments)
                    with _uninterrupted():  # until the worker ignores Ctrl-C
                        process.start()
                        processes.append(process)
                        pipes.append(ours)
                theirs.close()
            pipe = pipes[number % workers]
            _send(pipe, job)
            waiting.append(pipe)
            if len(waiting) >= JOBS_AHEAD * workers:
                yield _receive(waiting.popleft())
        while waiting:
            yield _receive(waiting.popleft())
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay SIGINT (Ctrl-C) and SIGTERM until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(pipe, job):
    try:
        pipe.send(job)
    except ConnectionError:
        raise InputError(KILLED) from None


def _receive(pipe):
    try:
        result, error, where = pipe.recv()
    except (EOFError, ConnectionError):
        raise InputError(KILLED) from None
    if error is not None:
        raise error from RuntimeError("in a worker process:\n" + where)
    return result


def _work(function, pipe, parent):
    """Run jobs in a worker process.

    It leaves Ctrl-C to the parent, and ends with it however that ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    end_with_parent(parent)
    while True:
        job = pipe.recv()
        try:
            pipe.send((function(job), None, None))
        except Exception as error:
            trace = traceback.format_exc()
            try:
                pipe.send((None, error, trace))
            except Exception:  # an exception that cannot be pickled is reported as what it was
                pipe.send((None, RuntimeError(f"{type(error).__name__}: {error}"), trace))


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its ``parent``, a process id, ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        os._exit(1)
