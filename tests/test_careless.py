"""What careless users and odd machines do to every command: one line, no traceback, no hang."""

import sys

import cv2
import numpy as np
import pytest
from helpers import PROJECT, assert_one_error, call, run_python

FULL = "cannot write to stdout: No space left on device"
FEW_FILES = "cannot start a worker process: Too many open files; try --workers 1"
VENV = "is not installed for $P: . .venv/bin/activate" if (PROJECT / ".venv").exists() else ""
CALM = "HOME=/nowhere TMPDIR=/nowhere LC_ALL=C PYTHONDONTWRITEBYTECODE=1 $P -W error -bb"

LINES = {  # of a shell: $P is this Python, $C the converter; the exit code; texts of the last line
    "$P $C 2>&-": (0,),
    "$P $C <&- >&- 2>&-": (0,),
    "$P $C 2> /dev/full": (0,),
    "$P $C > /dev/full": (2, "img2ofrecord.py: ", FULL),
    "set -o pipefail; $P $C | true": (141, "stdout was closed"),
    "$P $C --help > /dev/full": (2, "img2ofrecord.py: ", FULL),
    "$P -m ofrecord check --help > /dev/full": (2, "ofrecord: ", FULL),
    "mkdir a; cd a; rmdir ../a; $P $C": (2, "error: the working folder was removed"),
    "ulimit -n 20; $P $C --workers 16": (2, FEW_FILES),
    "ulimit -f 1; $P $C": (2, "dataset/: File too large; nothing was changed in ./dataset/"),
    f"{CALM} $C && {CALM} -m ofrecord check dataset": (0,),
    "PYTHONOPTIMIZE=2 $P $C": (2, "start python without -O"),
    "$P -S $C": (2, VENV),
}


@pytest.mark.parametrize("line, wanted", LINES.items(), ids=LINES)
def test_lines_of_a_shell(project, line, wanted):
    code, *texts = wanted
    env = {"P": sys.executable, "C": f"{PROJECT}/img2ofrecord.py", "PYTHONPATH": str(PROJECT)}
    result = run_python("-c", line, cwd=project, python="/bin/bash", env=env, timeout=60)
    assert result.code == code and "Traceback" not in result.err, result
    assert all(text.replace("$P", sys.executable) in result.err for text in texts), result
    assert result.err.count("error: ") == (code == 2), result
    assert "images/s" not in result.out, result  # messages do not take the way of results
    if code == 0:
        assert (project / "dataset/dataset.json").exists()


def test_little_memory(tmp_path):
    """One line, or it works: a lack of memory is no fault of an image, nor of a dataset."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in/a/a.png"), np.zeros((3500, 4000, 3), np.uint8))
    options = ["--image_root", tmp_path / "in", "--class_folders", "--part_num", 1]
    assert call("img2ofrecord", *options, "--save_dir", tmp_path / "whole").code == 0
    check = ["-m", "ofrecord", "check", tmp_path / "whole"]
    convert = [PROJECT / "img2ofrecord.py", *options, "--save_dir", tmp_path / "d"]
    convert += ["--skip_bad", "--workers", 1]
    for megabytes in 30, 60, 280, 2000:  # too few for Python, a library, the image; enough
        for command in check, convert:
            words = ["-c", 'ulimit -v $0; exec "$@"', megabytes * 1024, sys.executable, *command]
            result = run_python(*words, python="/bin/bash", timeout=60)
            assert result.code in ((0,) if megabytes == 2000 else (0, 2)), result
            if result.code:
                assert_one_error(result, "memory", started=True)
        assert result.code == 0 or not (tmp_path / "d").exists()
