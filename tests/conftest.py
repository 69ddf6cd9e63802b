"""What the tests share: the scripts as subprocesses, and OneFlow's own reading of a dataset.

Nothing is mocked. What may abort the process (OneFlow on data it does not
like) runs in a process of its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parent.parent
IMAGES = PROJECT / "data" / "images" / "train_set"
LABELS = PROJECT / "data" / "images" / "train_label" / "label.txt"
sys.path.insert(0, str(PROJECT))


class Result:
    """How a command ended: ``code``, ``out`` and ``err``."""

    def __init__(self, process):
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr

    def __repr__(self):
        return "exit code {}\n--- stdout\n{}\n--- stderr\n{}".format(self.code, self.out, self.err)


MNIST = PROJECT.parent / "shared" / "mnist"  # the four original files, where there is this folder
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason="no folder ../shared/mnist with MNIST's four files")


def run_module(module, *arguments, **options):
    """As run_script, for ``python -m module``."""
    return run_script("-m", module, *arguments, **options)


def run_script(script, *arguments, cwd=PROJECT, python=sys.executable, env=None, timeout=300):
    """Run one of the project's scripts; return its Result."""
    return Result(subprocess.run(
        [python, script if script == "-m" else str(PROJECT / script)] + [str(argument) for argument in arguments], cwd=str(cwd),
        env=dict(os.environ, **(env or {})), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", errors="surrogateescape", timeout=timeout))


def assert_one_error(result, *said):
    """Exit code 2 and one line on stderr, warnings aside, that has each of ``said``; no traceback, no signal."""
    assert result.code == 2, result
    lines = [line for line in result.err.strip().splitlines() if ": warning: " not in line]
    assert len(lines) == 1 and ": error: " in lines[0], result
    for text in said:
        assert text in lines[0], result


def snapshot(folder):
    """Every file of a folder with its bytes, to see that nothing changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def decode_with_oneflow(folder, shapes, channels, part_num, suffix_length=-1):
    """A dataset's images and labels through OneFlow's reader and decoders, in a process of its own.

    ``shapes`` is the (height, width) of each record in order. Returns the
    uint8 images, RGB or gray, as a list of (height, width, channels), and the
    labels.
    """
    process = subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "decode.py"), str(folder), str(channels), str(part_num),
         str(suffix_length)], input=repr([tuple(map(int, shape)) for shape in shapes]).encode(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)
    assert process.returncode == 0, process.stderr.decode()[-3000:]
    import io

    with np.load(io.BytesIO(process.stdout)) as file:
        labels = file["labels"].tolist()
        return [file["image%d" % index] for index in range(len(labels))], labels


@pytest.fixture
def project(tmp_path):
    """A folder to run the scripts in, with the tutorial's images and nothing else."""
    (tmp_path / "data").mkdir()
    shutil.copytree(str(PROJECT / "data" / "images"), str(tmp_path / "data" / "images"))
    return tmp_path


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The tutorial's dataset, made once. Read only."""
    folder = tmp_path_factory.mktemp("tutorial") / "dataset"
    result = run_script("img2ofrecord.py", "--save_dir", folder)
    assert result.code == 0, result
    return folder


@pytest.fixture(scope="session")
def trained(converted, tmp_path_factory):
    """The best checkpoint of a LeNet that knows the tutorial's 50 digits by heart. Read only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = run_script("lenet_train.py", "--device", "cpu", "--dataset_dir", converted, "--run_dir", folder)
    assert "gets 50 of 50 training images right" in result.err, result
    return folder / "best"


@pytest.fixture
def dataset(converted, tmp_path):
    """A copy of the tutorial's dataset, to damage."""
    return Path(shutil.copytree(str(converted), str(tmp_path / "dataset")))
