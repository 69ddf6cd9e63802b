"""How every command of this project ends: results, one-line errors, exit codes."""

import argparse
import os
import signal
import sys
import time
import traceback
import types
from contextlib import contextmanager

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

SHOWN_PROBLEMS = 20
RANK_SECONDS = 3  # after which a rank's error is its own; OneFlow's launcher looks every second whether one has ended

_ranks = types.SimpleNamespace(rank=0, world_size=1)  # see become_rank


class InputError(Exception):
    """Something the user can put right: printed as one line, exit code 2."""


class InputErrors(InputError):
    """Several problems found together: the first twenty are printed, then a count.

    ``problems`` are one-line strings; ``summary`` ends the list and says what
    it means for the command.
    """

    def __init__(self, problems, summary):
        self.problems = list(problems)
        self.summary = summary
        super().__init__(summary)


class ArgumentParser(argparse.ArgumentParser):
    """argparse without its guesses: no abbreviated options, one-line errors."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        raise InputError("{} (--help lists the options)".format(message))


def one_line(text):
    """``text`` with line breaks and unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
                   for c in str(text))


def some(names):
    """The first three of some names, for a message."""
    names = sorted(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def become_rank(rank, world_size):
    """This process is one of several that do the same: only that of rank 0 prints results and talks, each its errors."""
    _ranks.rank, _ranks.world_size = rank, world_size


def say(*lines, flush=False):
    """Print lines of results to stdout. Raises InputError where they cannot be written (a full disk)."""
    if _ranks.rank:
        return
    try:
        for line in lines:
            print(line)
        if flush and sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError("cannot write to stdout: {}".format(error.strerror))


def talk(message, level=None):
    """Say something to the person at the terminal: stderr, never stdout.

    ``level`` is ``"error"``, ``"warning"`` or None for plain talk.
    """
    if _ranks.rank:
        if level != "error":
            return
        message = "rank {}: {}".format(_ranks.rank, message)
    if level:
        folder, program = os.path.split(sys.argv[0])
        if program == "__main__.py":  # python -m of a package
            program = os.path.basename(folder)
        message = "{}: {}: {}".format(program or "python", level, one_line(message))
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:  # a full disk behind 2>: nowhere to say it
        pass


@contextmanager
def uninterrupted():
    """Ctrl-C waits until the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_requests(enabled=True):
    """Ctrl-C, or SIGTERM, asks to stop where it is convenient: it sets ``asked`` of what this yields.

    A second one is a KeyboardInterrupt, at once; so is the first where this
    is not ``enabled``.
    """
    stop = types.SimpleNamespace(asked=False)

    def ask(signum, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        os.write(2, b"stopping as soon as the run can be saved; Ctrl-C again stops at once\n")  # print is not reentrant
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)} if enabled else {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(main):
    """Call ``main()`` and leave the process with the exit code it deserves.

    0: done. 2: bad input, one line (or twenty and a count). 130: Ctrl-C.
    1: a fault of this program, with its traceback. Never returns.

    Of several ranks, the first that fails ends the others with it. What all
    of them find wrong is rank 0's to say, so the others wait before they do.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream:  # None where it was closed
            stream.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no text
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see check_environment
        main()
        say(flush=True)
        code = 0
    except InputErrors as error:
        _let_rank_0_speak()
        for problem in error.problems[:SHOWN_PROBLEMS]:
            talk(problem, "error")
        more = len(error.problems) - SHOWN_PROBLEMS
        if more > 0:
            talk("… and {} more".format(more), "error")
        if len(error.problems) != 1:
            talk(error.summary, "error")
        code = EXIT_BAD_INPUT
    except InputError as error:
        _let_rank_0_speak()
        talk(error, "error")
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        talk(": ".join(["interrupted"] + [str(text) for text in interrupt.args]), "error")
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our stdout left, as `| head` does
        talk("stopped, as nobody reads stdout any more")
        code = EXIT_BROKEN_PIPE
    except SystemExit as stop:  # --help
        code = stop.code
    except Exception:  # a fault of ours
        traceback.print_exc()
        code = 1
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to tidy up
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:  # what could not be written has been reported, or nobody wants it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if _ranks.world_size > 1 and code:  # without what OneFlow does at the end, which is to wait for the other ranks
        os._exit(code)
    sys.exit(code)


def _let_rank_0_speak():
    if _ranks.rank:
        time.sleep(RANK_SECONDS)
