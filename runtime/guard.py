"""A parent process that waits for the one that trains, and reports in one line how it ended.

OneFlow aborts its process, with a core dump, at errors that the checks before
could not foresee: an image damaged on the disk since, a failing GPU, no memory
left. So the script forks before it imports OneFlow: the child trains and the
parent, which is small and has no engine in it, waits.
"""

import os
import resource
import signal
import socket
import time
from typing import NoReturn

from .cli import EXIT_BAD_INPUT, EXIT_INTERRUPTED, RANK_SECONDS, log
from .workers import end_with_parent

EXIT_KILLED = 128 + signal.SIGKILL  # as shells have it
CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


def guard(module: str, hint: str) -> None:
    """Continue a script in a child process; the parent waits, and ends as the child does.

    ``module`` is the script's ``__name__``; if it is not ``"__main__"``, nothing
    is done. Returns in the child only. If the child crashes, one line is printed
    that ends with ``hint``: what the user can do then.
    """
    if module != "__main__":
        return
    # OneFlow's launcher, which starts several ranks, sets it.
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if launched:
        end_with_parent(os.getppid())  # however the launcher ends, no rank is left behind
        _check_port()
    parent = os.getpid()
    # Blocked until a handler is set.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    child = os.fork()
    if child:
        _watch(child, launched, hint)
    end_with_parent(parent)
    os.setpgid(0, 0)  # so that Ctrl-C on the terminal reaches it once, from its parent
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _check_port():
    """Exit with one line if rank 0 cannot listen on its port.

    OneFlow would end without a message.
    """
    if os.environ.get("RANK") != "0":
        return
    port = os.environ["MASTER_PORT"]
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", int(port)))
        except OSError as error:
            log(
                f"port {port} cannot be used ({error.strerror}): "
                "give the launcher another, --master_port N, before the script",
                "error",
            )
            os._exit(EXIT_BAD_INPUT)


def _watch(child, launched, hint) -> NoReturn:
    """Pass signals on to the child, wait for its end, and end likewise. Never returns."""
    received = []

    def pass_on(number, frame):
        received.append(number)
        # A rank may be waiting for another that has ended, where no signal but SIGKILL ends it.
        os.kill(child, signal.SIGKILL if launched else number)

    def pause(number, frame):  # Ctrl-Z
        os.kill(child, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)

    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGTSTP, pause)
    signal.signal(signal.SIGCONT, lambda number, frame: os.kill(child, signal.SIGCONT))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    _, status = os.waitpid(child, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    if launched:
        _report_rank(number, received, hint)
    elif number in CRASHES:
        log(f"OneFlow ended the process ({signal.Signals(number).name}); {hint}", "error")
        os._exit(1)
    elif number == signal.SIGKILL:
        log(
            "the training was killed, perhaps out of memory: "
            "try a smaller --batch_size or --image_size",
            "error",
        )
        os._exit(EXIT_KILLED)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)  # SIGTERM and the like, before the child had a handler


def _report_rank(number, received, hint) -> NoReturn:
    rank = os.environ.get("RANK")
    if received:
        if signal.SIGINT in received:
            if rank != "0":
                # If all were interrupted, rank 0 reports it, and the launcher ends this one.
                time.sleep(RANK_SECONDS)
            log(
                f"rank {rank} was interrupted; "
                "with a run_dir, --resume continues from its last checkpoint",
                "error",
            )
        os._exit(EXIT_INTERRUPTED)
    name = signal.Signals(number).name
    reason = (
        "perhaps out of memory"
        if number == signal.SIGKILL
        else f"perhaps because another rank ended (see above); {hint}"
    )
    log(f"rank {rank} was ended by {name}, {reason}", "error")
    os._exit(EXIT_BAD_INPUT if number in CRASHES else EXIT_KILLED)
