"""What careless users and odd machines do to every command: one line, no traceback, no hang."""

import os
import sys

import cv2
import numpy as np
import pytest
from helpers import PROJECT, assert_one_error, call, run_python

FULL = "cannot write to stdout: No space left on device"
REMOVED = "error: the working folder was removed"
FEW_FILES = "cannot start a worker process: Too many open files; try --workers 1"
VENV = "is not installed for $P: . .venv/bin/activate" if (PROJECT / ".venv").exists() else ""
CALM = "HOME=/nowhere TMPDIR=/nowhere LC_ALL=C PYTHONDONTWRITEBYTECODE=1 $P -W error -bb"

LINES = {  # of a shell: $P is this Python, $C the converter; the exit code; texts of the last line
    "$P $C <&-": (0,),
    "$P $C >&-": (0,),
    "$P $C 2>&-": (0,),
    "$P $C <&- >&- 2>&-": (0,),
    "$P $C 2> /dev/full": (0,),
    "$P $C > /dev/full": (2, "img2ofrecord.py: ", FULL),
    "set -o pipefail; $P $C | true": (141, "stdout was closed"),
    "$P $C --help > /dev/full": (2, "img2ofrecord.py: ", FULL),
    "$P $D/data/get_mnist.py --help > /dev/full": (2, "get_mnist.py: ", FULL),
    "$P -m lenet.predict --help > /dev/full": (2, FULL),
    "$P -m ofrecord --help > /dev/full": (2, "ofrecord: ", FULL),
    "$P -m ofrecord check --help > /dev/full": (2, "ofrecord: ", FULL),
    "mkdir a; cd a; rmdir ../a; $P $C": (2, "img2ofrecord.py: ", REMOVED),
    "mkdir a; cd a; rmdir ../a; $P -m ofrecord check": (2, "ofrecord: ", REMOVED),
    "ulimit -n 20; $P $C --workers 16": (2, FEW_FILES),
    "ulimit -f 1; $P $C": (2, "dataset/: File too large; nothing was changed in ./dataset/"),
    f"{CALM} $C && {CALM} -m ofrecord check dataset": (0,),
    "$P -O $C": (2, "start python without -O"),
    "PYTHONOPTIMIZE=2 $P $C": (2, "start python without -O"),
    "$P -S $C": (2, VENV),
}


@pytest.mark.parametrize("line, wanted", LINES.items(), ids=LINES)
def test_lines_of_a_shell(project, line, wanted):
    (code, *texts), names = wanted, {"P": sys.executable, "C": f"{PROJECT}/img2ofrecord.py"}
    env = {**names, "D": str(PROJECT), "PYTHONPATH": str(PROJECT)}
    result = run_python("-c", line, cwd=project, python="/bin/bash", env=env, timeout=60)
    assert result.code == code and "Traceback" not in result.err, result
    assert all(text.replace("$P", sys.executable) in result.err for text in texts), result
    assert result.err.count("error: ") == (code == 2), result
    assert "images/s" not in result.out, result  # messages do not take the way of results
    if code == 0:
        assert (project / "dataset/dataset.json").exists()


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """A dataset of a single image, of 40 MB when it is decoded, and the options that make it."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "in" / "a").mkdir(parents=True)
    cv2.imwrite(str(folder / "in/a/a.png"), np.zeros((3500, 4000, 3), np.uint8))
    options = ["--image_root", folder / "in", "--class_folders", "--part_num", 1]
    assert call("img2ofrecord", *options, "--save_dir", folder / "d").code == 0
    return folder / "d", options


@pytest.mark.parametrize("megabytes", [30, 60, 100, 150, 250, *range(280, 400, 15), 2000])
def test_little_memory(large, tmp_path, megabytes):
    """One line, or it works: a lack of memory is no fault of an image, nor of a dataset."""
    convert = [PROJECT / "img2ofrecord.py", *large[1], "--save_dir", tmp_path / "d"]
    for command in ["-m", "ofrecord", "check", large[0]], [*convert, "--skip_bad", "--workers", 1]:
        words = ["-c", 'ulimit -v $0; exec "$@"', megabytes * 1024, sys.executable, *command]
        result = run_python(*words, python="/bin/bash", timeout=60)
        assert result.code in ((0,) if megabytes == 2000 else (0, 2)), result
        if result.code:
            assert_one_error(result, "memory", started=True)
    assert result.code == 0 or not (tmp_path / "d").exists()


def test_a_sheet_replaces_no_part(dataset):
    result = call("ofrecord.__main__", "show", dataset, "--sheet", dataset / "part-0")
    assert_one_error(result, "--sheet", ".png")


def test_dollars_in_class_names_are_no_formulas(tmp_path, project):
    for name in ("from_$5_to_$10", "$x^2$", "50 % {off}"):
        os.makedirs(tmp_path / "in" / name)
        for path in list((project / "data/images/train_set").iterdir())[:3]:
            (tmp_path / "in" / name / path.name).write_bytes(path.read_bytes())
    options = ["--image_root", tmp_path / "in", "--class_folders", "--save_dir", tmp_path / "d"]
    assert call("img2ofrecord", *options, "--part_num", 1).code == 0
    assert call("ofrecord.__main__", "show", tmp_path / "d").code == 0
