"""The builds of OneFlow that this project is written for, and what is known of each.

docs/gpu.md has this table with the commands that install them. This file must
run under Python 3.6, as environment.py imports it.
"""

from typing import NamedTuple


class Build(NamedTuple):
    """A build of OneFlow."""

    name: str  # its version, as pip names it
    cuda: str  # that it was built with
    driver: str  # the oldest NVIDIA driver for it, by NVIDIA's CUDA compatibility guide
    gpus: str  # those that it has machine code for
    numpy_limit: str = "2"  # the first NumPy that it cannot use
    tried: bool = False  # whether this project was run on it
    on_index: bool = False  # the package index has it; the others are on OneFlow's own


# 0.8.0's and 0.9.0's machine code was read from the wheels with cuobjdump; the
# others' is what their build files list.
BUILDS = (
    Build(
        "0.8.0",
        "10.2",
        "440.33",
        "compute capability 6.0 to 7.5, and newer GPUs whose driver compiles its PTX",
        "1.24",
        tried=True,
        on_index=True,
    ),
    Build(
        "0.9.0",
        "11.7",
        "450.80",
        "compute capability 6.0 to 8.9: GTX 10 to RTX 40 series, P100, V100, T4, A100, L4",
        tried=True,
        on_index=True,
    ),
    Build(
        "0.9.0+cu118",
        "11.8",
        "450.80",
        "compute capability 6.0 to 9.0: GTX 10 to RTX 40 series, V100, T4, A100, L4, H100, H200",
    ),
    Build("1.0.0", "11.8 or 12", "450.80 or 525.60", "compute capability 6.0 to 9.0"),
)


def installed_version(package: str) -> "str | None":
    """Return a package's version, or None if it was not installed from a wheel."""
    from importlib.metadata import PackageNotFoundError, version  # since Python 3.8

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_0_8() -> bool:
    """Whether OneFlow 0.8 is installed, which ends with SIGSEGV at times; see lenet/engine.py."""
    return (installed_version("oneflow") or "").startswith("0.8.")


def installed_build() -> Build:
    """Return the installed build of OneFlow; for one that is not in the table, what is certain."""
    name = installed_version("oneflow") or "of unknown version"
    other = Build(name, "of its build", "see there", "the GPUs of its build")
    return next((build for build in BUILDS if build.name == name), other)
