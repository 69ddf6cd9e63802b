"""A check that this Python and its packages can run OneFlow 0.9.0.

It comes before all other imports, so that a wrong setup is reported in one line
with its remedy and not by a traceback from inside a library. This file must
therefore run under Python 3.6: annotations newer than that are strings here.
"""

import glob
import os
import re
import signal
import sys
from importlib.util import find_spec

from .versions import installed_build, installed_version

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
    "pydantic": "pydantic",
    "yaml": "PyYAML",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
}
PROTOBUF_LIMIT = "4"  # OneFlow's generated record_pb2 is refused by it


def check_environment(module: str) -> None:
    """Exit with one line and exit code 2 if the scripts cannot run here.

    ``module`` is the caller's ``__name__``. In a script Ctrl-C is blocked from
    here until run_main() handles it, as libraries do not exit cleanly if their
    import is interrupted.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: open it, or the next file would get its number
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "w" if number else "r"))
    if module == "__main__" and hasattr(signal, "pthread_sigmask"):  # Windows has none
        # Before the first import that starts threads, as they would receive it instead.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    problem = find_problem()
    if problem:
        sys.stderr.write(f"{os.path.basename(sys.argv[0])}: error: {problem}\n")
        sys.exit(2)


def ignore_launcher() -> None:
    """Make this process the only rank; to be called before OneFlow is imported."""
    os.environ.pop("WORLD_SIZE", None)


def find_problem() -> "str | None":
    """Return what is wrong with this Python, in one line with its remedy, or None."""
    version = sys.version_info[:2]
    if version != PYTHON:
        return (
            f"this is Python {version[0]}.{version[1]} ({sys.executable}), "
            f"and OneFlow 0.9.0 needs Python 3.10: {REMEDY}"
        )
    try:
        os.getcwd()
    except OSError:
        return "the working folder was removed: change to another folder"
    for module, package in PACKAGES.items():
        if not is_installed(module):
            return f"{package} is not installed for {sys.executable}: {REMEDY}"
    if not glob.glob(os.path.join(glob.escape(oneflow_folder()), "_oneflow_internal*.so")):
        return (
            "the oneflow installed here is a stub without an engine, "
            f"which pip gives to Pythons that OneFlow has no wheel for: {REMEDY}"
        )
    build = installed_build()
    for package, limit in (("numpy", build.numpy_limit), ("protobuf", PROTOBUF_LIMIT)):
        found = installed_version(package)
        if found and numbers(found) >= numbers(limit):
            return (
                f"{package} {found} is too new for OneFlow {build.name}, "
                f"which needs {package} below {limit}: {REMEDY}"
            )
    if not build.tried:
        sys.stderr.write(
            f"{os.path.basename(sys.argv[0])}: warning: OneFlow {build.name} was never tried with "
            "this project: see docs/gpu.md\n"
        )
    return None


def numbers(version: str) -> "list[int]":
    """Return a version's numbers, ``[1, 24]`` for ``"1.24rc1"``, to compare it with another's."""
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except ImportError:  # the parent package is missing
        return False


def oneflow_folder() -> str:
    """Return the folder of the installed oneflow package, without importing it."""
    return find_spec("oneflow").submodule_search_locations[0]
