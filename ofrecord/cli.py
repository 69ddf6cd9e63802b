"""How every command of this project ends: results, one-line errors, exit codes."""

import argparse
import os
import signal
import sys
import traceback
from contextlib import contextmanager

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

SHOWN_PROBLEMS = 20


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


def talk(message, level=None):
    """Say something to the person at the terminal: stderr, never stdout.

    ``level`` is ``"error"``, ``"warning"`` or None for plain talk.
    """
    if level:
        program = os.path.basename(sys.argv[0]) or "python"
        message = "{}: {}: {}".format(program, level, one_line(message))
    print(message, file=sys.stderr, flush=True)


@contextmanager
def uninterrupted():
    """Ctrl-C waits until the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(main):
    """Call ``main()`` and leave the process with the exit code it deserves.

    0: done. 2: bad input, one line (or twenty and a count). 130: Ctrl-C.
    1: a fault of this program, with its traceback. Never returns.
    """
    for stream in (sys.stdout, sys.stderr):  # a file name may hold bytes that are no text
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
        code = 0
    except InputErrors as error:
        for problem in error.problems[:SHOWN_PROBLEMS]:
            talk(problem, "error")
        more = len(error.problems) - SHOWN_PROBLEMS
        if more > 0:
            talk("… and {} more".format(more), "error")
        if len(error.problems) != 1:
            talk(error.summary, "error")
        code = EXIT_BAD_INPUT
    except InputError as error:
        talk(error, "error")
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        talk("interrupted", "error")
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our stdout left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_BROKEN_PIPE
    except SystemExit as stop:  # --help
        code = stop.code
    except Exception:  # a fault of ours
        traceback.print_exc()
        code = 1
    sys.exit(code)
