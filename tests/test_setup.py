"""Setting up: what the scripts say where they cannot run, and tools/venv.sh."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ENVIRONMENT, PROJECT, Result, assert_one_error, run_script

from ofrecord.environment import oneflow_folder

SCRIPTS = ["img2ofrecord.py", "lenet_train.py"]


def find_python(version):
    pyenv = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))) / "versions"
    found = sorted(pyenv.glob(version + ".*/bin/python")) or [shutil.which("python" + version)]
    if found[0] is None:
        pytest.skip("there is no Python {} here".format(version))
    return str(found[0])


SLOW_VERSIONS = (
    pytest.param(version, marks=pytest.mark.slow) for version in ("2.7", "3.6", "3.7", "3.13")
)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("version", ["3.11", *SLOW_VERSIONS])
def test_wrong_python(script, version):
    result = run_script(script, python=find_python(version))
    assert_one_error(result, "Python " + version, "3.8 to 3.10", "make train")


@pytest.mark.parametrize("script", SCRIPTS)
def test_stub_oneflow(script, tmp_path):
    (tmp_path / "oneflow").mkdir()
    (tmp_path / "oneflow" / "__init__.py").write_text("")
    assert_one_error(run_script(script, env={"PYTHONPATH": str(tmp_path)}), "stub", "make train")


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_the_nvidia_wheels(script, tmp_path):
    """The same OneFlow, hard-linked to where its libraries are not beside it."""
    try:
        shutil.copytree(oneflow_folder(), str(tmp_path / "oneflow"), copy_function=os.link)
    except (OSError, shutil.Error):
        pytest.skip("the test's folder is on another disk than .venv: no hard links")
    result = run_script(script, env={"PYTHONPATH": str(tmp_path)})
    noise = "libibverbs not available, ibv_fork_init skipped\n"
    result = result._replace(err=result.err.replace(noise, ""))
    assert_one_error(result, "nvidia-cudnn-cu11", "nvidia-cublas-cu11", "requirements.txt")


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_packages_at_all(script):
    result = run_script(script, python=find_python("3.10"), env={"PYTHONNOUSERSITE": "1"})
    if "is not installed" not in result.err:
        pytest.skip("the Python found here has the packages")
    assert_one_error(result, "oneflow is not installed", "make train")


# -- tools/venv.sh, with one small package in place of OneFlow's gigabytes -------------------


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(str(PROJECT / "tools" / "venv.sh"), str(tmp_path / "tools"))
    (tmp_path / "wants.txt").write_text("six==1.16.0  # one small package\n")
    return tmp_path


def base_python():
    return os.path.join(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))


def set_up(tree, **env):
    process = subprocess.run(
        ["sh", "tools/venv.sh", "wants.txt"],
        cwd=tree,
        capture_output=True,
        env={**ENVIRONMENT, **env},
        encoding="utf-8",
        timeout=300,
    )
    return Result(process.returncode, process.stdout, process.stderr)


def installed(tree):
    return (
        subprocess.run(
            [str(tree / ".venv/bin/python"), "-c", "import six; print(six.__version__)"],
            stdout=subprocess.PIPE,
        )
        .stdout.strip()
        .decode()
    )


@pytest.mark.slow
def test_venv_is_made_once_and_mended_when_broken(tree):
    python = base_python()
    assert set_up(tree, PYTHON=python).code == 0
    assert installed(tree) == "1.16.0"

    again = set_up(tree, PYTHON="/nonexistent", PIP_INDEX_URL="file:///nonexistent")
    assert (again.code, again.err) == (0, "")  # nothing was needed, nothing was said

    shutil.rmtree(str(next((tree / ".venv/lib").glob("*/site-packages/six-*"))))
    assert set_up(tree, PYTHON=python).code == 0 and installed(tree) == "1.16.0"

    (tree / "wants.txt").write_text("six==1.15.0\n")
    assert set_up(tree, PYTHON=python).code == 0 and installed(tree) == "1.15.0"

    for link in (tree / ".venv/bin").glob("python*"):  # as when pyenv removes the version
        link.unlink()
    mended = set_up(tree, PYTHON=python)
    assert mended.code == 0 and "making it again" in mended.err and installed(tree) == "1.15.0"

    (tree / ".venv/.installed").unlink()  # as when it was interrupted
    mended = set_up(tree, PYTHON=python)
    assert mended.code == 0 and "making it again" in mended.err and installed(tree) == "1.15.0"


def test_a_venv_of_somebody_else_is_left_alone(tree):
    (tree / ".venv/bin").mkdir(parents=True)
    (tree / ".venv/bin/precious").write_text("")
    result = set_up(tree, PYTHON=base_python())
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert "rm -rf .venv" in result.err and (tree / ".venv/bin/precious").exists()


def test_no_python_to_be_found(tree):
    tools = tree / "bin"  # a PATH with a shell's tools and no Python
    tools.mkdir()
    for name in ("sh", "cat", "cksum", "uname", "dirname", "rm", "mkdir"):
        (tools / name).symlink_to(shutil.which(name))
    result = set_up(tree, PATH=str(tools), HOME=str(tree), PYENV_ROOT=str(tree), PYTHON="")
    assert result.code == 2 and len(result.err.splitlines()) == 1, result
    for remedy in ("uv python install 3.10", "pyenv install 3.10", "PYTHON="):
        assert remedy in result.err
    assert not (tree / ".venv").exists()


@pytest.mark.slow
def test_an_installation_that_fails_says_so(tree):
    result = set_up(
        tree,
        PYTHON=base_python(),
        PIP_INDEX_URL="file:///nonexistent",
        PIP_EXTRA_INDEX_URL="",
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_INDEX="1",
    )
    assert result.code == 2 and "run make again" in result.err
    assert not (tree / ".venv/.installed").exists()


# -- what a user downloads ---------------------------------------------------------------------


def test_every_requirement_is_pinned_and_tests_stay_out():
    lines = [
        line
        for line in (PROJECT / "requirements.txt").read_text().splitlines()
        if line and line[0] != "#"
    ]
    assert all(re.match(r"[\w-]+==[\w.]+( +# .*)?\Z", line) for line in lines), lines
    assert not any("pytest" in line for line in lines)


# -- checks ------------------------------------------------------------------------------------


def test_the_workflow_runs_what_ci_runs():
    """.github/workflows/ci.yml has the commands of .ci/run, in its order, each whatever became of those before."""
    script = (PROJECT / ".ci" / "run").read_text()
    commands = re.findall(r"^(make [\w-]+) \|\| failed=1$", script, re.M)
    assert commands == ["make lint", "make test", "make test-slow"]
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    assert [step["run"] for step in steps] == commands
    assert all(step["if"] == "always()" for step in steps)
    triggers = workflow[True]  # YAML 1.1 reads `on` so
    assert "push" in triggers and triggers["schedule"][0]["cron"].split()[-1] == "1"  # each Monday
    targets = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.M)
    assert {command.split()[1] for command in commands} <= set(targets)
