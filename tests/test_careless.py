"""What careless users and odd machines do to every command: one line, no traceback, no hang."""

import os

import cv2
import numpy as np
import pytest
from helpers import PROJECT, assert_one_error, call, run_python

CONVERT = PROJECT / "img2ofrecord.py"


def shell(line, cwd, **env):
    """Run a line of shell, in which $P is this Python; return its Result."""
    return run_python("-c", line, cwd=cwd, python="/bin/bash", env=env, timeout=60)


@pytest.fixture
def folder(project, converted):
    """A folder with the tutorial's images and its dataset."""
    (project / "dataset").symlink_to(converted)
    return project


def python(*arguments):
    import sys

    return " ".join(map(str, (sys.executable, *arguments)))


@pytest.mark.parametrize(
    "closing",
    [
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("<&-", ">&-", "2>&-")),
        "<&- >&- 2>&-",
    ],
)
def test_closed_streams(folder, closing):
    result = shell(f"{python(CONVERT, '--save_dir d')} {closing}", folder)
    assert result.code == 0 and "Traceback" not in result.err + result.out, result
    if "2>" in closing:  # messages do not take the way of results
        assert "images/s" not in result.out, result


@pytest.mark.parametrize(
    "command",
    [
        [CONVERT, "--help"],
        [PROJECT / "data/get_mnist.py", "--help"],
        ["-m", "lenet.predict", "--help"],
        ["-m", "ofrecord", "--help"],
        ["-m", "ofrecord", "check", "--help"],
    ],
)
def test_help_on_a_full_disk(command):
    result = shell(f"{python(*command)} > /dev/full", PROJECT)
    assert_one_error(result, "cannot write to stdout: No space left on device")


@pytest.mark.parametrize("command", [[CONVERT], ["-m", "ofrecord", "check"]])
def test_a_working_folder_that_was_removed(tmp_path, command):
    line = f"mkdir gone; cd gone; rmdir ../gone; {python(*command)}"
    result = shell(line, tmp_path, PYTHONPATH=str(PROJECT))
    name = "ofrecord" if "-m" in command else "img2ofrecord.py"
    assert_one_error(result, f"{name}: error: the working folder was removed")


# -- too little of what a system has --------------------------------------------------------


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
    commands = {"check": ["-m", "ofrecord", "check", large[0]]}
    commands["convert"] = [CONVERT, *large[1], "--skip_bad", "--workers", 1]
    for name, command in commands.items():
        command = python(*command, *(["--save_dir", tmp_path / "d"] if name == "convert" else []))
        result = shell(f"ulimit -v {megabytes * 1024}; {command}", PROJECT)
        assert result.code in ((0,) if megabytes == 2000 else (0, 2)), result
        if result.code:
            assert_one_error(result, "memory", started=True)
            assert not (tmp_path / "d").exists() or name == "check"


def test_few_open_files(project):
    result = shell(f"ulimit -n 20; {python(CONVERT, '--workers', 16)}", project)
    assert_one_error(result, "cannot start a worker process: Too many open files", "--workers 1")


# -- files that never end -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "zero"])
def test_files_that_never_end(folder, kind):
    path = folder / kind
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    result = call("img2ofrecord", "--label_dir", path, cwd=folder)
    assert_one_error(result, "the label file", started=True)


# -- options that cannot be meant -----------------------------------------------------------


@pytest.mark.parametrize(
    "options, text",
    [
        (["--size", "70000x70000"], "--size"),
        (["--size", "60000x60000"], "pixels"),
        (["--class_folders", "--image_root", "data", "--save_dir", "data/d"], "outside"),
        (["--save_dir", "data", "--val_fraction", "0.1"], "data"),
    ],
)
def test_options_that_cannot_be_meant(folder, options, text):
    assert_one_error(call("img2ofrecord", *options, cwd=folder), text)


def test_the_validation_set_of_the_working_folder_lies_beside_it(project):
    (project / "out").mkdir()
    images = ["--image_root", project / "data/images/train_set"]
    images += ["--label_dir", project / "data/images/train_label/label.txt"]
    options = ["--save_dir", ".", "--val_fraction", 0.2]
    result = call("img2ofrecord", *images, *options, cwd=project / "out")
    assert result.code == 0 and (project / "out_val" / "dataset.json").exists(), result


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


def test_a_link_to_nothing_is_no_folder(folder):
    (folder / "dangling").symlink_to("nowhere")
    result = call("img2ofrecord", "--save_dir", "dangling", cwd=folder)
    assert_one_error(result, "dangling is a link to nothing", started=True)


def test_where_there_is_a_venv_its_activation_is_named(folder):
    """Where the packages are missing in this Python, but not in the project's environment."""
    if not (PROJECT / ".venv").exists():
        pytest.skip("the project has no .venv")
    result = shell(f"{python('-S', CONVERT)}", folder)
    assert_one_error(result, "is not installed", ". .venv/bin/activate")
