"""A check that this Python and its packages can run OneFlow 0.9.0.

It comes before all other imports, so that a wrong setup is reported in one line
with its remedy and not by a traceback from inside a library. This file must
therefore run under Python 3.6: annotations newer than that are strings here.
"""

import glob
import os
import signal
import sys
from importlib.util import find_spec

# The newest that OneFlow 0.9.0 has a wheel for; constraints.txt is for this one alone.
PYTHON = (3, 10)

VENV = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ".venv")
REMEDY = ". .venv/bin/activate in the project's folder, or " if os.path.exists(VENV) else ""
REMEDY += (
    "run `make train`, which sets up .venv, or: uv venv --python 3.10 --seed && "
    ".venv/bin/pip install -r requirements.txt -c constraints.txt"
)

# What the project imports, by the package that holds it.
PACKAGES = {
    "oneflow": "oneflow",
    "cv2": "opencv-python-headless",
    "numpy": "numpy",
    "google.protobuf": "protobuf",
    "PIL": "Pillow",
    "pydantic": "pydantic",
    "yaml": "PyYAML",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
}
LIMITS = {"numpy": 2, "protobuf": 4}  # the first major versions that OneFlow cannot use
LAUNCHER = "WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"
TOO_LITTLE_MEMORY = "this process may use too little memory (ulimit -v)"
ONEFLOW = "0.9.0"  # the one build that this project is tried on


def check_environment(module: str, ranks: bool = False) -> None:
    """Exit with one line and exit code 2 if the scripts cannot run here.

    ``module`` is the caller's ``__name__``: once is enough for a script and what it imports.
    Ctrl-C is blocked from here until run_main() handles it, as libraries do not exit cleanly
    if their import is interrupted; and unless the script is for several ``ranks``, it is one
    process whatever a launcher says.
    """
    if module != "__main__":
        return
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: open it, or the next file would get its number
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "w" if number else "r"))
    if hasattr(signal, "pthread_sigmask"):  # Windows has none
        # Before the first import that starts threads, as they would receive it instead.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    if not (ranks and os.environ.get("WORLD_SIZE", "1") not in ("", "1")):
        for name in LAUNCHER:  # OneFlow does not start where some are missing or empty
            os.environ.pop(name, None)
    problem = find_problem()
    if problem:
        sys.stderr.write(f"{program_name()}: error: {problem}\n")
        sys.exit(2)
    # NumPy's threads, one for each CPU, would be idle, and a cluster may not allow so many.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.excepthook = _report_import  # until run_main() reports all errors


def program_name() -> str:
    """Return what the running command is called in its messages."""
    folder, name = os.path.split(sys.argv[0])
    return (os.path.basename(folder) if name == "__main__.py" else name) or "python"


def _report_import(kind, error, trace):
    """Report a library that cannot be loaded in one line; any other error as Python does."""
    if not issubclass(kind, (ImportError, OSError, MemoryError)):
        sys.__excepthook__(kind, error, trace)
        return
    while error.__cause__ or error.__context__:  # NumPy puts a page of advice around it
        error = error.__cause__ or error.__context__
    reason = " ".join(str(error).split()) or "out of memory"
    no_memory = isinstance(error, MemoryError) or "memory" in reason or "map segment" in reason
    hint = TOO_LITTLE_MEMORY if no_memory else REMEDY
    sys.stderr.write(f"{program_name()}: error: a library cannot be loaded ({reason}): {hint}\n")
    os._exit(2)  # threads of a library that is loaded by half may wait for ever


def launched_ranks() -> "tuple[int, int]":
    """Return this process's rank and the world size, (0, 1) without OneFlow's launcher.

    Raises ValueError or KeyError where the launcher's variables are not all valid, as on a cluster
    that sets some of them by itself; check_environment() refuses that.
    """
    world_size = int(os.environ.get("WORLD_SIZE") or 1)
    if world_size == 1:
        return 0, 1
    rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
    if not (0 <= rank < world_size and 0 < port < 2**16 and os.environ["MASTER_ADDR"]):
        raise ValueError
    return rank, world_size


def find_problem() -> "str | None":
    """Return what is wrong with this Python, in one line with its remedy, or None."""
    version = sys.version_info[:2]
    if version != PYTHON:
        return (
            f"this is Python {version[0]}.{version[1]} ({sys.executable}), "
            f"and OneFlow 0.9.0 needs Python 3.10: {REMEDY}"
        )
    if sys.flags.optimize:
        return "OneFlow needs Python's assert statements: start python without -O (PYTHONOPTIMIZE)"
    try:
        os.getcwd()
    except OSError:
        return "the working folder was removed: change to another folder"
    try:
        launched_ranks()
    except (KeyError, ValueError):
        return (
            "WORLD_SIZE is set, but RANK, MASTER_ADDR and MASTER_PORT are not all valid: start "
            "several ranks with `python -m oneflow.distributed.launch`, or unset WORLD_SIZE"
        )
    for module, package in PACKAGES.items():
        if not is_installed(module):
            return f"{package} is not installed for {sys.executable}: {REMEDY}"
    if not glob.glob(os.path.join(glob.escape(oneflow_folder()), "_oneflow_internal*.so")):
        return (
            "the oneflow installed here is a stub without an engine, "
            f"which pip gives to Pythons that OneFlow has no wheel for: {REMEDY}"
        )
    for package, limit in LIMITS.items():
        found = installed_version(package)
        if found and int(found.split(".")[0]) >= limit:
            return (
                f"{package} {found} is too new for OneFlow {ONEFLOW}, "
                f"which needs {package} below {limit}: {REMEDY}"
            )
    return None


def installed_version(package: str) -> "str | None":
    """Return a package's version, or None if it was not installed from a wheel."""
    from importlib.metadata import PackageNotFoundError, version  # since Python 3.8

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except ImportError:  # the parent package is missing
        return False


def oneflow_folder() -> str:
    """Return the folder of the installed oneflow package, without importing it.

    Raises ImportError where it is not installed.
    """
    spec = find_spec("oneflow")
    if spec is None:
        raise ImportError(f"oneflow is not installed: {REMEDY}")
    return spec.submodule_search_locations[0]
