"""Whatever stops the converter, the folder holds the whole old dataset, the whole new one, or none that claims to be finished.

Run as a script, this module is the process whose children are stopped: see ``stop_at_each_step``.
"""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import (
    IMAGES,
    PROJECT,
    assert_one_error,
    convert,
    read_manifest,
    run_python,
    snapshot,
    start_script,
)

MANIFEST = "dataset.json"
OLD = ["--part_num", 6]
NEW = ["--part_num", 4, "--shuffle"]


def state(folder, old, new):
    """``old``, ``new`` or ``none``: which whole dataset the folder holds, hidden files aside. Anything else fails."""
    files = snapshot(folder)
    if MANIFEST not in files:  # it does not claim to be finished
        return "none"
    files = {name: data for name, data in files.items() if not name.startswith(".")}
    assert files in (old, new)
    return "old" if files == old else "new"


# -- stopped before each step, on 50 images -------------------------------------------


def stop_at_each_step(folder, signal_number, before, *arguments):
    """Convert into copies of ``before``, stopped by a signal before the first change of the disk, the second, and so on.

    Without a folder ``before`` the converter makes its own. Returns a list of (folder, exit code).
    """
    folder.mkdir()
    done = run_python(__file__, folder, int(signal_number), before or "", *arguments)
    assert done.code == 0, done
    codes = json.loads(done.out)
    assert len(codes) > 15  # it has seen the steps of the commit
    return [(folder / str(number), code) for number, code in enumerate(codes)]


def stop_children(folder, signal_number, before, *arguments):
    """What ``stop_at_each_step`` does, in a process of its own. Prints the list of exit codes."""
    sys.path.insert(0, str(PROJECT))
    import img2ofrecord  # noqa: F401 - once, not in each child

    codes = []
    for number in itertools.count():
        target = Path(folder) / str(number)
        if before:
            shutil.copytree(before, target)
        child = os.fork()
        if child == 0:
            signalled = send_signal_before_step(number, int(signal_number))
            code = convert("--save_dir", target, *arguments).code
            os._exit(code if signalled else 99)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 99:  # there are no more steps
            return print(json.dumps(codes))
        codes.append(code)


def send_signal_before_step(last, signal_number):
    """Send this process a signal right before it changes the disk for the ``last``-th time, from 0.

    Returns a list that is empty until then.
    """
    steps, signalled = itertools.count(), []

    def step():
        if next(steps) == last:
            signalled.append(True)
            os.kill(os.getpid(), signal_number)

    def hook(event, arguments):  # audit events see also what pathlib and shutil do
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"):
            step()
        elif event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            step()

    # There is no audit event of it. What a killed process wrote stays without it, so save its time.
    os.fsync = os.fdatasync = lambda file: step()
    sys.addaudithook(hook)
    return signalled


@pytest.fixture
def old(tmp_path):
    """A dataset to be replaced, with a file of the user's beside it: its folder and its files."""
    folder = tmp_path / "old"
    assert convert("--save_dir", folder, *OLD).code == 0
    (folder / "mine.txt").write_text("mine")
    return folder, snapshot(folder)


@pytest.mark.parametrize(
    "over_old, arguments",
    [(True, NEW), (True, [*NEW, "--part_name_suffix_length", 5]), (False, NEW)],
    ids=["fewer parts", "other part names", "new folder"],
)
def test_killed_before_each_step(old, tmp_path, over_old, arguments):
    """SIGKILL; then the next run finishes or removes what was left, even if it fails itself."""
    old_folder, old_files = old
    assert convert("--save_dir", tmp_path / "new", *arguments).code == 0
    new_files = snapshot(tmp_path / "new")
    if over_old:
        new_files["mine.txt"] = b"mine"
    (tmp_path / "bad.txt").write_text('{"missing.png": 1}\n')
    bad = ["--label_dir", tmp_path / "bad.txt", "--part_num", 1]

    states = []
    before = old_folder if over_old else None
    for folder, code in stop_at_each_step(tmp_path / "killed", signal.SIGKILL, before, *arguments):
        assert code == -signal.SIGKILL
        found = state(folder, old_files, new_files)
        states.append(found)

        copy = folder.with_name(f"{folder.name}-failed")
        if folder.exists():
            shutil.copytree(folder, copy)
        result = convert("--save_dir", copy, *bad)
        assert result.code == 2 and "missing.png" in result.err, result
        then = state(copy, old_files, new_files)
        if found == "none":
            assert then in (["new"] if over_old else ["none", "new"])
        else:
            assert then == found
        assert snapshot(copy) == {"old": old_files, "new": new_files, "none": {}}[then]

        result = convert("--save_dir", folder, *arguments)
        assert result.code == 0, result
        assert snapshot(folder) == new_files  # and nothing left over

    # First the old one, then for a moment none, then the new one: never back and forth.
    assert states == sorted(states, key=["old", "none", "new"].index)
    assert set(states) == ({"old", "none", "new"} if over_old else {"none", "new"})


def test_ctrl_c_before_each_step(old, tmp_path):
    """Until the commit begins nothing has changed; from then on it or the next run finishes it."""
    old_folder, old_files = old
    assert convert("--save_dir", tmp_path / "new", *NEW).code == 0
    new_files = {**snapshot(tmp_path / "new"), "mine.txt": b"mine"}
    states, untouched = [], []
    for folder, code in stop_at_each_step(tmp_path / "stopped", signal.SIGINT, old_folder, *NEW):
        assert code in (0, 130)
        states.append(state(folder, old_files, new_files))
        untouched.append(snapshot(folder) == old_files)
        assert convert("--save_dir", folder, *NEW).code == 0
        assert snapshot(folder) == new_files
    begun = states.count("old")
    assert "old" not in states[begun:] and states[-1] == "new"
    # In the commit Ctrl-C should wait, so that all are untouched and "none" is not among the
    # states, but a thread that does not block the signal may get it.
    assert begun > 10 and all(untouched[: begun - 1])


# -- stopped at some moment, on many images -------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """``many(count)``: the converter's options for so many images, the tutorial's by a lot of names."""
    root = tmp_path_factory.mktemp("many")
    (root / "in").mkdir()
    names = sorted(path.name for path in IMAGES.iterdir())

    def options(count):
        labels = root / f"{count}.txt"
        if not labels.exists():
            lines = []
            for index in range(count):
                turn, place = divmod(index, len(names))
                if not (root / "in" / str(turn)).exists():
                    (root / "in" / str(turn)).symlink_to(IMAGES)
                lines.append(f'{{"{turn}/{names[place]}": {index % 10}}}\n')
            labels.write_text("".join(lines))
        return ["--image_root", root / "in", "--label_dir", labels]

    return options


# Images to convert. Their lines do not fit in a pipe: as long as nobody reads them, the converter
# cannot come to its end, nor its workers to theirs.
LONG, ENDLESS = 5_000, 10_000


@pytest.fixture
def start():
    """Start the converter, as leader of a process group, and end what is left of it at the end of the test."""
    processes = []

    def start_converter(*arguments):
        process = start_script("img2ofrecord.py", *arguments, start_new_session=True)
        processes.append(process)
        return process

    yield start_converter
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def start_converting(start):
    """Start the converter and wait until it has saved some images."""

    def start_and_wait(*arguments):
        process = start(*arguments, "--progress", "lines")
        for line in process.stdout:
            if "feature saved" in line:
                return process
        raise AssertionError(process.communicate())

    return start_and_wait


def children(process):
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c(many, old, start_converting, tmp_path, workers):
    before = snapshot(tmp_path)
    process = start_converting(*many(ENDLESS), "--save_dir", old[0], "--workers", workers)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes of the command
    _, err = process.communicate(timeout=60)  # it ends, its workers too: they hold stderr open
    assert process.returncode == 130, err
    assert err.splitlines() == ["img2ofrecord.py: error: interrupted"]
    assert snapshot(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 4])
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_at_several_moments(many, old, start_converting, workers, presses):
    """Pressed again and again it may end with a signal, but it ends and nothing is lost."""
    folder, old_files = old
    for pause in (0, 0.02, 0.05):
        process = start_converting(*many(ENDLESS), "--save_dir", folder, "--workers", workers)
        time.sleep(pause)
        for _ in range(presses):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.003)
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0, err
        if presses == 1:
            assert process.returncode == 130, err
            assert err.splitlines() == ["img2ofrecord.py: error: interrupted"]
            assert snapshot(folder) == old_files
        assert state(folder, old_files, None) == "old"


def test_a_killed_worker_is_an_error(many, old, start_converting, tmp_path):
    before = snapshot(tmp_path)
    process = start_converting(*many(ENDLESS), "--save_dir", old[0], "--workers", 2)
    os.kill(children(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert len(err.splitlines()) == 1 and "--workers 1" in err
    assert snapshot(tmp_path) == before


def test_workers_leave_ctrl_c_to_their_parent(many, start_converting, tmp_path):
    process = start_converting(*many(LONG), "--save_dir", tmp_path / "d", "--workers", 2)
    for child in children(process):
        os.kill(child, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err


def test_a_second_converter_on_the_same_folder_is_refused(many, old, start_converting):
    folder, old_files = old
    first = start_converting(*many(LONG), "--save_dir", folder, *NEW)
    assert_one_error(convert("--save_dir", folder), "another conversion", str(folder))
    visible = {name: data for name, data in snapshot(folder).items() if not name.startswith(".")}
    assert visible == old_files
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    manifest = read_manifest(folder)
    assert manifest["records"] == LONG


@pytest.mark.slow
def test_two_converters_started_at_once(old, start):
    """One of them may be refused; the folder then holds the other's dataset, and both may have run one after the other."""
    folder = old[0]
    assert convert("--save_dir", folder.with_name("new"), *NEW).code == 0
    new_files = {**snapshot(folder.with_name("new")), "mine.txt": b"mine"}
    for _ in range(5):
        both = [start("--save_dir", folder, *NEW) for _ in range(2)]
        ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
        assert 0 in (code for _, code in ends), ends
        for err, code in ends:
            assert code == 0 or (code == 2 and "another conversion" in err), ends
        assert snapshot(folder) == new_files


@pytest.mark.slow
def test_killed_at_any_moment(many, start, tmp_path):
    """SIGKILL at random moments, of all its processes or of it alone; then the next run succeeds."""
    folder, options = tmp_path / "d", many(3000)
    old, new = [*options, *OLD], [*options, *NEW]
    wholes = []
    for arguments in (old, new):
        assert convert("--save_dir", tmp_path / "whole", *arguments).code == 0
        wholes.append(snapshot(tmp_path / "whole"))
    began = time.monotonic()
    run = start("--save_dir", folder, *old, "--progress", "none")
    assert run.wait(timeout=120) == 0
    duration = time.monotonic() - began

    rng = random.Random(0)
    states = []
    for attempt in range(10):
        process = start("--save_dir", folder, *new, "--progress", "none")
        time.sleep(rng.uniform(0.1, 1.1) * duration)
        if attempt % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate(timeout=60)
        states.append(state(folder, *wholes))
        if states[-1] == "new" or attempt % 4 == 3:  # go back, over whatever was left
            deadline = time.monotonic() + 10
            while True:
                result = convert("--save_dir", folder, *old)
                if "another conversion" not in result.err or time.monotonic() > deadline:
                    break
            assert result.code == 0, result
            assert snapshot(folder) == wholes[0]
    assert states.count("old") >= 2, states


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(many, tmp_path):
    """The largest of the converter's processes stays small at 120,000 images."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    result = run_python(
        *["-c", code, sys.executable, PROJECT / "img2ofrecord.py"],
        *[*many(120_000), "--save_dir", tmp_path / "d"],
    )
    assert result.code == 0, result
    manifest = read_manifest(tmp_path / "d")
    assert manifest["records"] == 120_000
    assert int(result.out) / 1024 < 200  # MB


if __name__ == "__main__":
    stop_children(*sys.argv[1:])
