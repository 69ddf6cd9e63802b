"""The benchmarks run, with few images, from a checkout in which nothing was run before."""

import os
import re
import shutil
import subprocess

import pytest
from helpers import ENVIRONMENT, PROJECT

pytestmark = pytest.mark.slow

TINY = {  # target: (options, what its table must compare)
    "bench": (
        "--photos 20 --large 5",
        ["the tutorial's", "WebDataset", "MosaicML", "one worker", "**img2ofrecord.py**"],
    ),
    "bench-growth": ("--most 1000 --picture growth.png", ["| 1,000 | 1 | 1 |", "| 1,000 | 2 |"]),
    "bench-load": (
        "--photos 600 --seconds 0.1",
        ["28x28", "256x256", "500x375", "PyTorch's DataLoader", "WebDataset", "MosaicML"],
    ),
    "bench-train": ("--seconds 0.5", ["op by op", "as a graph", "two ranks", "PyTorch", "oneDNN"]),
}
PEERS = ["WebDataset", "MosaicML", "PyTorch's DataLoader", "PyTorch"]


@pytest.fixture
def checkout(tmp_path):
    """The project's files as git has them, with its .venv (which tests/test_setup.py makes anew)."""
    folder = tmp_path / "checkout"
    names = subprocess.check_output(["git", "ls-files"], cwd=PROJECT, encoding="utf-8")
    for name in names.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, folder / name)
    (folder / ".venv").symlink_to(PROJECT / ".venv")
    return folder


@pytest.mark.parametrize("peers", [False, True])
@pytest.mark.parametrize("target", TINY)
def test_a_benchmark_runs(checkout, target, peers):
    if peers:
        if not (PROJECT / ".venv-peers/ready").exists() or target == "bench-growth":
            pytest.skip("no .venv-peers, which `make bench` installs (4 GB), or not needed")
        (checkout / ".venv-peers").symlink_to(PROJECT / ".venv-peers")
        os.utime(checkout / "benchmarks/requirements.txt", (0, 0))  # older than .venv-peers/ready
    options, texts = TINY[target]
    command = ["make", target, f"BENCH=--rounds 1 --images 1000 {options}"]
    command += [] if peers else ["PEERS=no"]
    process = subprocess.run(
        command, cwd=checkout, env=ENVIRONMENT, capture_output=True, encoding="utf-8"
    )
    assert process.returncode == 0, process.stderr
    for text in texts:
        assert (text in process.stdout) == (peers or text not in PEERS), (text, process.stdout)
    rows = [line for line in process.stdout.splitlines() if line.startswith("| ")]
    assert len({row.count("|") for row in rows if not re.search("part of a step|ms", row)}) <= 2
    if target == "bench-growth":
        assert (checkout / "growth.png").stat().st_size > 10_000
