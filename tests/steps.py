"""Stopping a command right before or after each change that it makes to the disk."""

import gc
import itertools
import os
import traceback

STEPS = ("mkdir", "replace", "remove", "unlink", "rmdir", "fsync")  # functions of os
KILLED, ENDED = 77, 99  # exit codes


def stop_at_each_step(prepare, action, stop=lambda: os._exit(KILLED), every=1):
    """Call ``action`` in child processes, each stopped right before or after one more of its steps.

    Calls ``prepare`` before each, and yields each one's exit code, which else is what ``action``
    returns. ``every``: of the steps every n-th only.
    """
    for number in itertools.count(0, every):
        for after in (False, True):
            prepare()
            # The child must not collect what this process made with OneFlow: that would wait
            # for threads which a fork does not copy.
            gc.freeze()
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    stopped = hook_steps(number, after, stop)
                    code = action() or 0
                    code = code if stopped else ENDED
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            gc.unfreeze()
            if code == ENDED:
                assert number >= 3
                return
            yield code


def hook_steps(last, after, stop):
    """Have this process call ``stop`` at its step number ``last``, from 0. Returns a list, empty until then."""
    steps, stopped = itertools.count(), []

    def hook(function):
        def step(*arguments, **options):
            now = next(steps) == last
            if now:
                stopped.append(True)
            if now and not after:
                stop()
            try:
                return function(*arguments, **options)
            finally:
                if now and after:
                    stop()

        return step

    for name in STEPS:
        setattr(os, name, hook(getattr(os, name)))
    return stopped
