"""A check that this Python and its packages can run OneFlow 0.9.0.

It comes before all other imports, so that a wrong setup is reported in one line
with its remedy and not by a traceback from inside a library. This file must
therefore run under Python 3.6: annotations newer than that are strings here.
"""

import os
import signal
import subprocess
import sys

# The newest that OneFlow 0.9.0 has a wheel for; constraints.txt is for this one alone.
PYTHON = (3, 10)

REMEDY = (
    "run `make train`, which sets up .venv, or: uv venv --python 3.10 --seed && "
    ".venv/bin/pip install -r requirements.txt -c constraints.txt"
)

# Shared libraries that OneFlow 0.9.0 links but does not declare as dependencies,
# by the package that holds them.
CUDA_LIBRARIES = {
    "nvidia-cudnn-cu11": "nvidia/cudnn/lib/libcudnn_cnn_infer.so.8",
    "nvidia-cublas-cu11": "nvidia/cublas/lib/libcublas.so.11",
}


def check_environment(module: str) -> None:
    """Exit with one line and exit code 2 if the scripts cannot run here.

    ``module`` is the caller's ``__name__``. In a script Ctrl-C is blocked from
    here until run_main() handles it, as libraries do not exit cleanly if their
    import is interrupted.
    """
    if module == "__main__" and hasattr(signal, "pthread_sigmask"):  # Windows has none
        # Before the first import that starts threads, as they would receive it instead.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    problem = find_problem()
    if problem:
        sys.stderr.write(f"{os.path.basename(sys.argv[0])}: error: {problem}\n")
        sys.exit(2)


def find_problem() -> "str | None":
    """Return what is wrong with this Python, in one line with its remedy, or None."""
    version = sys.version_info[:2]
    if version != PYTHON:
        return (
            f"this is Python {version[0]}.{version[1]} ({sys.executable}), "
            f"and OneFlow 0.9.0 needs Python 3.10: {REMEDY}"
        )
    for module, package in (
        ("oneflow", "oneflow"),
        ("cv2", "opencv-python-headless"),
        ("numpy", "numpy"),
        ("google.protobuf", "protobuf"),
        ("tqdm", "tqdm"),
        ("jsonargparse", "jsonargparse"),
        ("yaml", "PyYAML"),
        ("matplotlib", "matplotlib"),
    ):
        if not is_installed(module):
            return f"{package} is not installed for {sys.executable}: {REMEDY}"
    if not has_engine():
        return (
            "the oneflow installed here is a stub without an engine, "
            f"which pip gives to Pythons that OneFlow has no wheel for: {REMEDY}"
        )
    missing = " and ".join(missing_cuda_libraries())
    if missing:
        problem = import_problem()  # they may come from elsewhere, a CUDA image for example
        if problem:
            return f"OneFlow cannot start without {missing} ({problem}): {REMEDY}"
    return too_new_packages()


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except ImportError:  # the parent package is missing
        return False


def oneflow_folder() -> str:
    """Return the folder of the installed oneflow package, without importing it."""
    from importlib.util import find_spec

    return find_spec("oneflow").submodule_search_locations[0]


def has_engine() -> bool:
    """Whether the installed oneflow package holds its engine, a shared library."""
    return any(
        name.startswith("_oneflow_internal") and name.endswith(".so")
        for name in os.listdir(oneflow_folder())
    )


def missing_cuda_libraries() -> "list[str]":
    """Return the names of the packages in CUDA_LIBRARIES that are not installed beside OneFlow."""
    site_packages = os.path.dirname(oneflow_folder())
    return [
        package
        for package, path in sorted(CUDA_LIBRARIES.items())
        if not os.path.exists(os.path.join(site_packages, path))
    ]


def import_problem() -> "str | None":
    """Return why ``import oneflow`` fails, or None if it does not.

    It is tried in a process of its own, as no engine may run before guard() forks.
    """
    command = [sys.executable, "-c", "import oneflow"]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode == 0:
        return None
    lines = process.stderr.splitlines() or [f"exit code {process.returncode}"]
    return lines[-1].replace("ImportError: ", "", 1)


def too_new_packages() -> "str | None":
    """Return which package is too new for OneFlow 0.9.0, with the remedy, or None."""
    from importlib.metadata import PackageNotFoundError, version

    for package, limit in (("numpy", 2), ("protobuf", 4)):
        try:
            found = version(package)
        except PackageNotFoundError:  # it can be imported, but was not installed from a wheel
            continue
        if int(found.split(".")[0]) >= limit:
            return (
                f"{package} {found} is too new for OneFlow 0.9.0, "
                f"which needs {package} below {limit}: {REMEDY}"
            )
    return None
