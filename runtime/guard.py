"""A process that watches the one that trains, and reports in words how it ended.

OneFlow aborts its process where it meets what nobody foresaw: a damaged
image, a GPU that fails. So a script forks before it imports OneFlow: the child
goes on and trains, and the parent waits. It is small, and no engine is in it.
"""

import os
import resource
import signal
import socket
import sys

from .cli import EXIT_BAD_INPUT, log
from .workers import end_with_parent

EXIT_KILLED = 128 + signal.SIGKILL  # as shells have it
CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
LAUNCHER_NUMBERS = ("WORLD_SIZE", "RANK", "MASTER_PORT")
# A file in memory for what the child writes to stderr while it imports OneFlow: noise, unless
# that ends it.
during_import = open(os.memfd_create("during_import"), "w+b")
MAX_FILES = 2**16
RANK_SECONDS = 60  # that the ranks have to save after a request to stop


def guard(module: str, hint: str) -> None:
    """Fork in a script: return in the child only; this process ends as the child does.

    ``module`` is the script's ``__name__``; if it is not ``"__main__"``, nothing is done.
    ``hint`` ends the line about a crash: what to do to find its cause.
    """
    if module != "__main__":
        return
    launched = launched_ranks() > 1
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    if launched:
        end_with_parent(os.getppid(), signal.SIGTERM)
        _check_port()
    child = os.fork()
    if child:
        _watch(child, launched, hint)
    end_with_parent(parent)
    os.setpgid(0, 0)  # so that Ctrl-C on the terminal reaches it once, from its parent
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # OneFlow keeps all part files open
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def launched_ranks() -> int:
    """Return how many ranks OneFlow's launcher started, 1 without it.

    Exits with one line if its variables are invalid or incomplete, as on a
    cluster that sets some of them by itself.
    """
    if os.environ.get("WORLD_SIZE", "") in ("", "1"):
        os.environ.pop("WORLD_SIZE", None)  # OneFlow does not start where it is empty
        return 1
    try:
        world_size, rank, port = (int(os.environ[name]) for name in LAUNCHER_NUMBERS)
        if 0 <= rank < world_size and 0 < port < 2**16 and os.environ["MASTER_ADDR"]:
            return world_size
    except (KeyError, ValueError):
        pass
    log(
        "WORLD_SIZE is set, but RANK, MASTER_ADDR and MASTER_PORT are not all valid: start several "
        "ranks with `python -m oneflow.distributed.launch`, or unset WORLD_SIZE",
        "error",
    )
    os._exit(EXIT_BAD_INPUT)


def _check_port() -> None:
    """Exit with one line where rank 0 cannot listen for the others: OneFlow says nothing."""
    if os.environ.get("RANK") != "0":
        return
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            port.bind(("", int(os.environ["MASTER_PORT"])))
        except OSError as error:
            number, option = os.environ["MASTER_PORT"], "--master_port N, before the script"
            log(f"port {number} cannot be used ({error.strerror}): launch with {option}", "error")
            os._exit(EXIT_BAD_INPUT)


def _watch(child: int, launched: bool, hint: str) -> None:
    """Pass signals on to the child, wait for its end, and end likewise. Never returns."""
    interrupted = False

    def interrupt(number, frame):
        nonlocal interrupted
        # A rank that waits for another one does not hear a signal, so it has a limited time;
        # and the launcher's SIGTERM belongs to the Ctrl-C that it follows.
        if launched and (interrupted or number == signal.SIGTERM):
            if number == signal.SIGTERM and interrupted:
                return
            number = signal.SIGKILL
        elif launched:
            signal.alarm(RANK_SECONDS)
        interrupted = True
        os.kill(child, number)

    def pause(number, frame):  # Ctrl-Z
        os.kill(child, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)

    handlers = {
        signal.SIGINT: interrupt,
        signal.SIGTERM: interrupt,
        signal.SIGTSTP: pause,
        signal.SIGCONT: lambda number, frame: os.kill(child, signal.SIGCONT),
        signal.SIGALRM: lambda number, frame: os.kill(child, signal.SIGKILL),
    }
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    _, status = os.waitpid(child, 0)
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    who = f"rank {os.environ['RANK']}" if launched else "the training"
    if number in CRASHES and not (launched and interrupted):  # then a rank has lost the others
        during_import.seek(0)
        sys.stderr.write(during_import.read().decode(errors="replace"))
        log(f"{who} was ended by {signal.Signals(number).name}; {hint}", "error")
        os._exit(1)
    if number == signal.SIGKILL or number in CRASHES:
        if not interrupted:
            log(f"{who} was killed, perhaps out of memory: reduce --batch_size", "error")
        elif os.environ.get("RANK") == "0":  # another rank ended before this one could say so
            log("interrupted", "error")
        os._exit(EXIT_KILLED)
    os.kill(os.getpid(), number)  # SIGTERM and the like, before anybody handled it
