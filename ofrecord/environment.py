"""Is this a Python that OneFlow 0.9.0 runs on, with what it needs beside it?

Looked at before anything else is imported, so that a wrong set-up is one line
with its remedy and not a traceback from deep inside a library. This file must
therefore stay readable for old Pythons (2.7 too) and import only what they have.
"""

import os
import signal
import sys

# The wheels of OneFlow 0.9.0 that this project is tested with. (There is one
# for 3.7 too, but not of the OpenCV and jsonargparse pinned in requirements.txt.)
OLDEST_PYTHON = (3, 8)
NEWEST_PYTHON = (3, 10)

REMEDY = ("run `make train`, which sets up .venv, or: "
          "python3.10 -m venv .venv && .venv/bin/pip install -r requirements.txt")

# Shared libraries that OneFlow 0.9.0 links and its metadata forgets, by the
# package that holds them.
CUDA_LIBRARIES = {
    "nvidia-cudnn-cu11": "nvidia/cudnn/lib/libcudnn_cnn_infer.so.8",
    "nvidia-cublas-cu11": "nvidia/cublas/lib/libcublas.so.11",
}


def check_environment(module):
    """Leave with exit code 2 and one line where the scripts cannot run here.

    In a script (``module`` is its ``__name__``) Ctrl-C waits from here until
    run() answers it: libraries that are being imported answer it badly.
    """
    if module == "__main__" and hasattr(signal, "pthread_sigmask"):
        # Before the first import that starts threads, as they would hear it instead.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    problem = find_problem()
    if problem:
        sys.stderr.write("{}: error: {}\n".format(os.path.basename(sys.argv[0]), problem))
        sys.exit(2)


def find_problem():
    """What is wrong with this Python, in one line with the remedy, or None."""
    version = sys.version_info[:2]
    if not OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        return ("this is Python {}.{} ({}), and OneFlow 0.9.0 runs on Python 3.8 to 3.10 only: {}"
                .format(version[0], version[1], sys.executable, REMEDY))
    for module, package in (("oneflow", "oneflow"), ("cv2", "opencv-python-headless"),
                            ("numpy", "numpy"), ("google.protobuf", "protobuf"),
                            ("tqdm", "tqdm"), ("jsonargparse", "jsonargparse"), ("yaml", "PyYAML"),
                            ("matplotlib", "matplotlib")):
        if not is_installed(module):
            return ("{} is not installed for {}: {}".format(package, sys.executable, REMEDY))
    if not has_engine():
        return ("the oneflow installed here is a stub without an engine, "
                "which pip gives to Pythons that OneFlow has no wheel for: {}".format(REMEDY))
    missing = missing_cuda_libraries()
    if missing:
        problem = import_problem()  # they may come from elsewhere, a CUDA image for example
        if problem:
            return ("OneFlow cannot start without {} ({}): .venv/bin/pip install -r requirements.txt, "
                    "or run `make train`".format(" and ".join(missing), problem))
    return too_new_packages()


def is_installed(module):
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except ImportError:  # the parent package is missing
        return False


def oneflow_folder():
    """The folder of the installed oneflow package; it is not imported."""
    from importlib.util import find_spec

    return find_spec("oneflow").submodule_search_locations[0]


def has_engine():
    return any(name.startswith("_oneflow_internal") and name.endswith(".so")
               for name in os.listdir(oneflow_folder()))


def missing_cuda_libraries():
    site_packages = os.path.dirname(oneflow_folder())
    return [package for package, path in sorted(CUDA_LIBRARIES.items())
            if not os.path.exists(os.path.join(site_packages, path))]


def import_problem():
    """Why ``import oneflow`` fails, or None where it does not."""
    try:
        import oneflow  # noqa: F401
    except ImportError as error:
        return str(error).splitlines()[0]
    return None


def too_new_packages():
    import google.protobuf
    import numpy

    for package, found, limit in (("numpy", numpy.__version__, 2), ("protobuf", google.protobuf.__version__, 4)):
        if int(found.split(".")[0]) >= limit:
            return ("{} {} is too new for OneFlow 0.9.0, which needs {} below {}: {}"
                    .format(package, found, package, limit, REMEDY))
    return None
