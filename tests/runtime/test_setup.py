"""Setting up: what the scripts say where they cannot run, tools/venv.sh, and what is pinned."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from helpers import PROJECT, assert_one_error, losses, run_python, run_script
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runtime.environment import oneflow_folder

slow = pytest.mark.slow
UV = Path(sys.executable).parent / "uv"


def find_python(version):
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(pyenv.glob(f"{version}.*/bin/python"))
    if not found:
        pytest.skip(f"pyenv has no Python {version} here")
    return str(found[0])


# -- where the scripts cannot run -----------------------------------------------------


def pretend(folder, name, version):
    """An environment in which a package says that it is of this version."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return {"PYTHONPATH": str(folder)}


def broken(folder, module, text=""):
    """An environment in which a module is a package with this text."""
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


def bare(folder):
    """A Python without any package."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return str(folder / "bin/python")


NO_LIBRARY = "raise ImportError('libGL.so.1: cannot open shared object file')"
SETUPS = {  # Pythons and environments, and what is said of them
    "a stub of OneFlow": (lambda d: broken(d, "oneflow"), "stub without an engine"),
    "a library is missing": (lambda d: broken(d, "numpy", NO_LIBRARY), "loaded (libGL.so.1: ca"),
    "NumPy 2": (lambda d: pretend(d, "numpy", "2.1.0"), "numpy 2.1.0 is too new for OneFlow 0.9.0"),
    "protobuf 4": (lambda d: pretend(d, "protobuf", "4.25.1"), "0, which needs protobuf below 4: "),
    "no packages": (bare, "oneflow is not installed"),
    "3.6": (lambda d: find_python("3.6"), "this is Python 3.6 "),
    "3.13": (lambda d: find_python("3.13"), "this is Python 3.13 "),
}


@pytest.mark.parametrize("script", ["img2ofrecord.py", "lenet_train.py"])
@pytest.mark.parametrize("setup, text", SETUPS.values(), ids=SETUPS)
def test_where_the_scripts_cannot_run(script, tmp_path, setup, text):
    made = setup(tmp_path)
    result = run_script(script, **({"env": made} if isinstance(made, dict) else {"python": made}))
    assert_one_error(result, f"{script}: error: ", text, "make train", "-c constraints.txt")


def test_without_the_nvidia_wheels(tmp_path):
    """The same OneFlow, hard-linked to where its libraries are not beside it: only training needs them."""
    try:
        for name in ("oneflow", "oneflow.libs"):
            source = os.path.join(os.path.dirname(oneflow_folder()), name)
            shutil.copytree(source, tmp_path / name, copy_function=os.link)
    except (OSError, shutil.Error):
        pytest.skip("the test's folder is on another disk than .venv: no hard links")
    without = {"PYTHONPATH": str(tmp_path)}
    converted = run_script("img2ofrecord.py", "--save_dir", tmp_path / "d", env=without)
    assert converted.code == 0, converted
    result = run_script("lenet_train.py", "--dataset_dir", tmp_path / "d", env=without)
    assert_one_error(result, "a library cannot be loaded (libcudnn", "-r requirements.txt")


def test_a_build_that_was_not_tried_is_a_warning(converted, tmp_path):
    options = ["--device", "cpu", "--dataset_dir", converted, "--image_size", 12, "--steps", 1]
    env = pretend(tmp_path, "oneflow", "0.9.0+cu118")
    result = run_script("lenet_train.py", *options, env=env)
    warning = "lenet_train.py: warning: OneFlow 0.9.0+cu118 is not the build that this project is tried on: "
    assert len(losses(result)) == 1 and result.err.count("warning") == 1, result
    assert warning + "see docs/gpu.md\n" in result.err, result


# -- tools/venv.sh, with two small packages in place of OneFlow's gigabytes -----------


def pins(file):
    """{name: version} of a requirements or constraints file in the project, each line of which is a pin."""
    lines = (PROJECT / file).read_text().splitlines()
    found = [re.match(r"([\w.-]+)==([\w.]+)( +#|$)", line) for line in lines if line[:1] not in "#"]
    assert found and all(found), lines
    return {canonicalize_name(match[1]): match[2] for match in found}


@pytest.fixture
def tree(tmp_path):
    """A project whose requirement, python-dateutil, brings six along."""
    (tmp_path / "tools").mkdir()
    shutil.copy(PROJECT / "tools" / "venv.sh", tmp_path / "tools")
    (tmp_path / "wants.txt").write_text("python-dateutil==2.9.0.post0  # a comment\n")
    (tmp_path / "constraints.txt").write_text(f"six==1.16.0\nuv=={pins('constraints.txt')['uv']}\n")
    return tmp_path


def set_up(tree, **env):
    return run_python("tools/venv.sh", "wants.txt", python="sh", cwd=tree, env=env)


def assert_six(tree, version):
    """What the tree's .venv holds, by its own Python, which is 3.10."""
    code = "import sys, dateutil, six; print(*sys.version_info[:2], six.__version__)"
    output = subprocess.check_output([tree / ".venv/bin/python", "-c", code], encoding="utf-8")
    assert output == f"3 10 {version}\n"


def bare_machine(tree, **commands):
    """The environment of a machine with a shell's tools and these commands, {name: text}; its home is empty."""
    tools = tree / "bin"
    tools.mkdir()
    for name in ("sh", "cat", "cksum", "uname", "dirname", "rm", "mkdir"):
        (tools / name).symlink_to(shutil.which(name))
    for name, text in commands.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    (tree / "home").mkdir()
    return {"PATH": str(tools), "HOME": str(tree / "home"), "PYENV_ROOT": str(tree), "PYTHON": ""}


def pip(tree, *words):
    subprocess.run([tree / ".venv/bin/python", "-m", "pip", *words], check=True)


BREAKS = [  # what breaks an environment; the version of six that is there afterwards; what is said
    (lambda tree: pip(tree, "install", "-q", "six==1.15.0"), "1.16.0", ""),  # by hand
    (lambda tree: pip(tree, "uninstall", "-q", "-y", "python-dateutil"), "1.16.0", ""),
    (lambda tree: (tree / "constraints.txt").write_text("six==1.17.0\n"), "1.17.0", ""),  # a pull
    (lambda tree: shutil.rmtree(tree / ".venv/bin"), "1.17.0", "making it again"),
]


@slow
def test_venv_is_made_once_and_mended_when_broken(tree):
    """First its installation fails, and the same command goes on."""
    failed = set_up(tree, PYTHON=sys.executable, PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1")
    assert failed.code == 2 and "run make again" in failed.err, failed
    made = set_up(tree, PYTHON=sys.executable)
    assert made.code == 0 and "half-made or has no working Python 3.10; making it" in made.err, made
    assert_six(tree, "1.16.0")
    before = (tree / ".venv/.installed").stat()
    assert set_up(tree, PYTHON="/nonexistent") == (0, "", "")  # nothing is needed, said or done
    assert (tree / ".venv/.installed").stat().st_mtime_ns == before.st_mtime_ns
    for change, version, text in BREAKS:
        change(tree)
        mended = set_up(tree, PYTHON=sys.executable)
        assert mended.code == 0 and text in mended.err, mended
        assert_six(tree, version)


@slow
def test_a_venv_that_uv_made_by_hand_is_used(tree):
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, tree / ".venv"], check=True)
    assert not (tree / ".venv/bin/pip").exists()
    (tree / ".venv/precious").touch()
    assert set_up(tree, PYTHON="/nonexistent").code == 0
    assert_six(tree, "1.16.0")
    assert (tree / ".venv/precious").exists()


REFUSED = {  # what there is, PYTHON, if there is any, and what is said
    "somebody else's .venv": (["bin/precious"], sys.executable, ["rm -rf .venv"]),
    "no such Python": ([], "/nonexistent", ["/nonexistent is not a Python 3.10"]),
    "no Python": ([], None, ["install uv", "apt install python3-venv", "make PYTHON="]),
}


@pytest.mark.parametrize("there, python, texts", REFUSED.values(), ids=REFUSED)
def test_where_no_environment_can_be_made(tree, there, python, texts):
    for name in there:
        (tree / ".venv" / name).mkdir(parents=True)
    env = {"PYTHON": python} if python else bare_machine(tree)
    result = set_up(tree, **env)
    assert result.code == 2 and len(result.err.splitlines()) == 1, result
    assert all(text in result.err for text in texts), result
    assert [path.name for path in (tree / ".venv").glob("*")] == [name[:3] for name in there]


@pytest.fixture(scope="session")
def python_downloads(tmp_path_factory):
    """The environment in which uv downloads this Python, packed, for 3.10."""
    folder = tmp_path_factory.mktemp("downloads")
    unneeded = {"test", "site-packages", "__pycache__", "idlelib"}
    with tarfile.open(folder / "python.tar.gz", "w:gz", compresslevel=1) as tar:
        for name in ("bin", "include", "lib"):
            tar.add(
                Path(sys.base_prefix, name),
                f"python/{name}",
                filter=lambda info: None if unneeded & set(info.name.split("/")) else info,
            )
    entry = {
        **{"name": "cpython", "arch": {"family": "x86_64", "variant": None}, "os": "linux"},
        **{"libc": "gnu", "prerelease": "", "sha256": None, "variant": None, "build": "1"},
        **dict(zip(("major", "minor", "patch"), sys.version_info, strict=False)),
        "url": (folder / "python.tar.gz").as_uri(),
    }
    key = f"cpython-{'.'.join(map(str, sys.version_info[:3]))}-linux-x86_64-gnu"
    (folder / "downloads.json").write_text(json.dumps({key: entry}))
    return {"UV_PYTHON_DOWNLOADS_JSON_URL": str(folder / "downloads.json")}


@slow
@pytest.mark.parametrize("has", ["uv", "venv"])
def test_python_3_10_is_installed_where_there_is_none(tree, has, python_downloads):
    if has == "uv":
        commands = {"uv": f'exec {UV} "$@"'}
    else:  # as pyenv's python3, which obeys .python-version in the project's folder
        commands = {"python3": f'[ $PWD = / ] && exec {find_python("3.11")} "$@"'}
    env = bare_machine(tree, **commands)
    if has == "uv":
        failed = set_up(tree, **env, **python_downloads, UV_PYTHON_DOWNLOADS="never")
        assert failed.code == 2 and not (tree / ".venv").exists(), failed
        pattern = "installing Python 3.10 failed.* make PYTHON=.*\n\\Z"
        assert re.search(pattern, failed.err), failed
    result = set_up(tree, **env, **python_downloads)
    assert result.code == 0, result
    assert [line for line in result.err.splitlines() if "make: " in line] == result.err.splitlines()
    assert "no Python 3.10 here; installing one with " in result.err.splitlines()[0]
    assert_six(tree, "1.16.0")
    assert (tree / ".uv").exists() == (has == "venv")
    home = "home/.local/share/uv/python" if has == "uv" else ".uv/python"
    assert (tree / ".venv/bin/python").resolve().is_relative_to(tree / home)
    assert not (tree / "home/.local/bin").exists()  # no python3.10 for the user's other work
    assert set_up(tree, **env) == (0, "", "")


def test_constraints_pin_everything_that_the_requirements_bring_along():
    """And nothing else: `make constraints` was run after the last change."""
    assert "pytest" not in pins("requirements.txt") and pins("benchmarks/requirements.txt")
    wanted = {}
    queue = [*pins("requirements.txt"), *pins("tests/requirements.txt")]
    for name in queue:  # grows as it goes
        if name not in wanted:
            wanted[name] = distribution(name).version
            needs = map(Requirement, distribution(name).requires or [])
            for need in needs:
                if need.marker is None or need.marker.evaluate({"extra": ""}):
                    queue.append(canonicalize_name(need.name))
    assert pins("constraints.txt") == wanted
