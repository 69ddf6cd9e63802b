"""How every command of this project ends: results, one-line errors, exit codes."""

import argparse
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from .environment import launched_ranks, program_name

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

SHOWN = "\u00a0\u200c\u200d\u202f\u3000"  # spaces; joiners of Persian, Indic and emoji
SHOWN_PROBLEMS = 20
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# After this many seconds a rank reports its own error: one that all find is rank 0's, and
# OneFlow's launcher, which checks every second whether a rank has ended, ends the others.
RANK_SECONDS = 3


class InputError(Exception):
    """An error that the user can correct: printed as one line, exit code 2."""

    def lines(self) -> list[str]:
        return [str(self)]


class InputErrors(InputError):
    """Several problems found together: the first twenty are printed, then a count.

    ``problems`` are one-line strings; ``summary`` ends the list and says what they mean.
    """

    def __init__(self, problems: Iterable[str], summary: str) -> None:
        self.problems = list(problems)
        super().__init__(summary)

    def lines(self) -> list[str]:
        if len(self.problems) == 1:
            return self.problems
        more = len(self.problems) - SHOWN_PROBLEMS
        not_shown = [f"… and {more} more"] if more > 0 else []
        return [*self.problems[:SHOWN_PROBLEMS], *not_shown, str(self)]


@contextmanager
def os_errors(action: str, path: str, hint: str = "") -> Iterator[None]:
    """Make an OSError of the block an InputError: ``cannot ACTION PATH: reason; hint``."""
    try:
        yield
    except BrokenPipeError:  # of stdout
        raise
    except OSError as error:
        reason = f"{error.strerror or error}; {hint}" if hint else error.strerror or error
        raise InputError(f"cannot {action} {path}: {reason}") from error


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser without abbreviated options and with one-line errors."""

    def __init__(self, **kwargs) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists the options)")

    def _print_message(self, message: str, file: object = None) -> None:
        output(message.rstrip("\n"))  # --help; a full disk is an InputError


def one_line(text: object) -> str:
    """Return ``str(text)`` with line breaks and unprintable characters, but SHOWN, escaped."""
    return "".join(
        c if c.isprintable() or c in SHOWN else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )


def first_few(names: Iterable[str]) -> str:
    """Return the first three of the sorted names, for a message."""
    names = sorted(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 image``, ``1,000 images``, ``2 batches``."""
    if number == 1:
        return f"1 {noun}"
    plural = "es" if noun.endswith(("s", "x", "tch", "sh")) else "s"
    return f"{number:,} {noun}{plural}"


def output(*lines: object) -> None:
    """Print lines of results to stdout, unprintable characters escaped; on rank 0 alone.

    Raises InputError if they cannot be written (a full disk).
    """
    if lines and not launched_ranks()[0]:
        with os_errors("write", "to stdout"):
            print(*map(printed_lines, lines), sep="\n", flush=True)


def log(message: object, level: str | None = None) -> None:
    """Print to stderr; ``level`` is "error", "warning" or None. Ranks above 0 print errors only."""
    rank, _ = launched_ranks()
    if rank and level != "error":
        return
    if level:
        who = f"rank {rank}: " if rank else ""
        message = f"{program_name()}: {level}: {who}{one_line(message)}"
    with suppress(OSError):  # stderr is a file on a full disk: there is nowhere to report it
        print(printed_lines(message), file=sys.stderr, flush=True)


def printed_lines(text: object) -> str:
    """Return a text of several lines as it can be printed."""
    return "\n".join(map(one_line, str(text).split("\n")))


def typed_path(path: str) -> str:
    """Return a path as it can be typed: in quotes if need be, and a leading dash is no option."""
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def module_command(module: str, *arguments: str) -> str:
    """Return the command ``python -m MODULE ARGUMENTS`` as it can be typed in the working folder."""
    here = os.path.realpath(os.getcwd()) == os.path.realpath(PROJECT)
    prefix = "" if here else f"PYTHONPATH={shlex.quote(PROJECT)} "
    return f"{prefix}python -m {' '.join([module, *map(typed_path, arguments)])}"


def run_main(main: Callable[[], object]) -> NoReturn:
    """Call ``main()`` and exit the process with the matching exit code. Never returns.

    0: success. 2: invalid input, one line (or twenty and a count), or too little memory.
    130: Ctrl-C. 141: stdout was closed. 1: an unexpected error, with its traceback.

    With several ranks, the first that fails ends the others.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if it was closed
        stream.reconfigure(errors="backslashreplace")  # a name may hold bytes that are not text
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 0
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see check_environment
        main()
    except BaseException as error:
        code = _report(error)
        _flush_stdout()
        if launched_ranks()[1] > 1 and code:
            # Here and at once: outside of this block the error's frames are freed, a graph with
            # them, and its end waits for the other ranks; so does OneFlow's shutdown.
            os._exit(code)
    _flush_stdout()
    sys.exit(code)


def _report(error: BaseException) -> int:
    """Print what a command ended with, and return its exit code."""
    match error:
        case InputError():
            if launched_ranks()[0]:
                time.sleep(RANK_SECONDS)
            for line in error.lines():
                log(line, "error")
            return EXIT_BAD_INPUT
        case KeyboardInterrupt():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if not launched_ranks()[0]:
                log(": ".join(["interrupted", *map(str, error.args)]), "error")
            return EXIT_INTERRUPTED
        case BrokenPipeError():  # the reader of stdout ended, as `| head` does
            log("stdout was closed; stopping")
            return EXIT_BROKEN_PIPE
        case SystemExit():  # --help
            return error.code or 0
        case MemoryError():
            log("out of memory", "error")
            return EXIT_BAD_INPUT
    traceback.print_exception(error)  # a bug in this program
    return 1


def _flush_stdout() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to clean up
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:  # it has been reported, or stdout was closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
