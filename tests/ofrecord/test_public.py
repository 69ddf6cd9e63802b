"""What may be imported from ofrecord itself, with and without OneFlow."""

import shutil
import subprocess

import pytest
from helpers import PROJECT, run_python

NAMES = "open_dataset, read_part, read_records, read_rows"


def test_public_names(converted):
    """They are there, and nothing is imported before one of them is asked for."""
    code = f"""
import sys, ofrecord
assert not {{"numpy", "cv2", "pydantic"}} & set(sys.modules)
from ofrecord import {NAMES}
dataset = open_dataset(sys.argv[1])
assert [record.row for record in read_records(dataset)] == list(read_rows(sys.argv[1]))
assert [label for _, _, label in read_part(sys.argv[1] + "/part-0")][:2] == [3, 0]
assert not hasattr(ofrecord, "nothing")
"""
    result = run_python("-c", code, converted)
    assert result.code == 0, result


def test_without_our_packages(tmp_path):
    python = shutil.which("python3.11", path="/usr/local/bin:/usr/bin:/bin")
    if not python:
        pytest.skip("no other Python here")
    code = "import ofrecord.portable, ofrecord; ofrecord.open_dataset"
    words = [python, "-S", "-c", code]
    result = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ofrecord.open_dataset needs ") and "portable" in last
