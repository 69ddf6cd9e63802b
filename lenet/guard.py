"""A process that watches over the one that trains, and says in words how it ended.

OneFlow ends its process on the spot, with a core dump, where something is
wrong that nobody foresaw: an image that rotted on the disk, a GPU that fails,
no memory left. So the script forks before it imports OneFlow: the child goes
on and trains, and the parent waits. It is small, and no engine is in it.
"""

import os
import resource
import signal
import socket
import sys
import time

from ofrecord.cli import EXIT_BAD_INPUT, EXIT_INTERRUPTED, RANK_SECONDS, InputError, run, talk
from ofrecord.workers import end_with_parent

EXIT_KILLED = 128 + signal.SIGKILL  # as shells have it
CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


def guard(module):
    """In a script (``module`` is its ``__name__``) return in a child process; this one ends as that one does."""
    if module != "__main__":
        return
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1  # by OneFlow's launcher, which starts several ranks
    if launched:
        end_with_parent(os.getppid())  # however the launcher ends, no rank is left
        _check_port()
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # until somebody hears them
    child = os.fork()
    if child:
        _watch(child, launched)
    end_with_parent(parent)
    os.setpgid(0, 0)  # so that Ctrl-C on the terminal reaches it once, from its parent
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _check_port():
    """Leave with one line where rank 0 could not listen for the others: OneFlow would end without a word."""
    if os.environ.get("RANK") != "0":
        return
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            port.bind(("", int(os.environ["MASTER_PORT"])))
        except OSError as error:
            talk("port {} cannot be used ({}): give the launcher another, --master_port N, before the script".format(
                os.environ["MASTER_PORT"], error.strerror), "error")
            os._exit(EXIT_BAD_INPUT)


def _watch(child, launched):
    """Hand on signals to the child, wait for its end, and end likewise. Never returns."""
    asked = []

    def hand_on(number, frame):
        asked.append(number)
        # A rank may be waiting for another that is gone, and hear nothing; the others end with it.
        os.kill(child, signal.SIGKILL if launched else number)

    def pause(number, frame):  # Ctrl-Z
        os.kill(child, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
    signal.signal(signal.SIGINT, hand_on)
    signal.signal(signal.SIGTERM, hand_on)
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
        _rank_ended(number, asked)
    elif number in CRASHES:
        run(_find_cause(signal.Signals(number).name))
    elif number == signal.SIGKILL:
        talk("the training was killed, perhaps for lack of memory: try a smaller --batch_size or --image_size", "error")
        os._exit(EXIT_KILLED)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)  # SIGTERM and the like, before anybody heard it


def _rank_ended(number, asked):
    name = "rank {}".format(os.environ.get("RANK"))
    if asked:
        if signal.SIGINT in asked:
            if os.environ.get("RANK") != "0":
                time.sleep(RANK_SECONDS)  # where all were interrupted, rank 0 says it, and the launcher's end is ours
            talk("{} was interrupted; with a run_dir, --resume goes on from the last checkpoint there".format(name), "error")
        os._exit(EXIT_INTERRUPTED)
    talk("{} ended by {}, {}".format(
        name, signal.Signals(number).name, "perhaps for lack of memory" if number == signal.SIGKILL else
        "perhaps because another did (see above), or for a damaged image (`python -m ofrecord check DIR` finds those)"), "error")
    os._exit(EXIT_BAD_INPUT if number in CRASHES else EXIT_KILLED)


def _find_cause(name):
    """What to run after OneFlow ended the process: it looks for the cause where it most likely is, in the images."""
    def main():
        from lenet.config import parse_config
        from ofrecord.check import check_every_byte

        config, _ = parse_config()
        talk("OneFlow ended the process ({}); looking through the dataset for the cause".format(name))
        for folder in (config.dataset_dir, config.eval_dataset_dir):
            if folder:
                for report in check_every_byte(folder, config.image_feature, config.label_feature, os.cpu_count() or 1):
                    if report.problems:  # an image's rather than the whole part's
                        raise InputError(next((problem for problem in report.problems if ", record " in problem),
                                              report.problems[0]))
        talk("OneFlow ended the process ({}), and the dataset is not the cause; what it said last stands above".format(name),
             "error")
        sys.exit(1)
    return main
