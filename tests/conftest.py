"""Fixtures that several test modules use. Those of session scope are made once; read only."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import PROJECT, Result, convert, run_script
from runs import Trainer


@pytest.fixture
def project(tmp_path):
    """A folder to run the scripts in, with the tutorial's images and nothing else."""
    (tmp_path / "data").mkdir()
    shutil.copytree(PROJECT / "data" / "images", tmp_path / "data" / "images")
    return tmp_path


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The tutorial's dataset. Read only."""
    folder = tmp_path_factory.mktemp("tutorial") / "dataset"
    result = convert("--save_dir", folder)
    assert result.code == 0, result
    return folder


@pytest.fixture(scope="session")
def tutorial_run(converted, tmp_path_factory):
    """The tutorial's training as people start it, kept in a folder: (the folder, the Result). Read only.

    It takes ten seconds, so the workers of pytest-xdist make it once for all of them.
    """
    together = tmp_path_factory.getbasetemp()
    together = together.parent if "PYTEST_XDIST_WORKER" in os.environ else together
    folder, kept = together / "tutorial" / "run", together / "tutorial.json"
    with open(together / "tutorial.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            options = ["--device", "cpu", "--dataset_dir", converted, "--run_dir", folder]
            kept.write_text(json.dumps(run_script("lenet_train.py", *options)))
    result = Result(*json.loads(kept.read_text()))
    assert result.code == 0, result
    return folder, result


@pytest.fixture(scope="session")
def trained(tutorial_run):
    """The best checkpoint of a LeNet that knows the tutorial's 50 digits by heart. Read only."""
    assert "50/50" in tutorial_run[1].err, tutorial_run[1]
    return tutorial_run[0] / "best.npz"


@pytest.fixture
def dataset(converted, tmp_path):
    """A copy of the tutorial's dataset, to damage."""
    return Path(shutil.copytree(converted, tmp_path / "dataset"))


@pytest.fixture(scope="session")
def gpu():
    """The name of the GPU here; a test that takes it is skipped where none works."""
    from lenet.device import probe_gpu

    name, problem = probe_gpu()
    if problem:
        pytest.skip(f"no GPU here that OneFlow runs on: {problem}")
    return name


@pytest.fixture
def own_mounts(tmp_path):
    """Words before a command that let it mount what no other process sees, as root or not."""
    for words in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        command = [*words, "mount", "-t", "tmpfs", "none", tmp_path]
        if shutil.which("unshare") and subprocess.run(command, capture_output=True).returncode == 0:
            return words
    pytest.skip("mounting a small file system is not allowed here")


@pytest.fixture
def trainer(tmp_path):
    """A Trainer, all of whose processes end with the test."""
    trainer = Trainer(tmp_path)
    yield trainer
    trainer.kill_all()
