"""Whatever stops the converter, the folders hold the whole old datasets, or the next run finishes the new ones.

Run as a script, this module checks that on a mount point of its own: see ``check_mount_point``.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from helpers import (  # noqa: E402
    ENVIRONMENT,
    LABELS,
    assert_one_error,
    convert,
    read_manifest,
    run_python,
    snapshot,
    start_script,
)
from steps import KILLED, stop_at_each_step  # noqa: E402

MANIFEST, HIDDEN = "dataset.json", ".img2ofrecord"
SPLIT = ["--val_fraction", 0.2]


def visible(folder):
    """The files of a folder without the hidden ones; none where it does not exist."""
    return {name: data for name, data in snapshot(folder).items() if not name.startswith(".")}


def state(folder, old, new):
    """``old``, ``new`` or ``none``: which whole dataset the folder holds. Anything else fails."""
    files = visible(folder)
    if MANIFEST not in files:  # it does not claim to be finished
        return "none"
    assert files in (old, new)
    return "old" if files == old else "new"


def is_marked(folder):
    return (folder / HIDDEN / MANIFEST).exists()


# -- stopped at each change of the disk -----------------------------------------------


def few_images(folder):
    """The converter's options for seven of the tutorial's images, and for the same with one that is missing."""
    lines = LABELS.read_text().splitlines(keepends=True)[:7]
    (folder / "few.txt").write_text("".join(lines))
    (folder / "bad.txt").write_text("".join([*lines, '{"missing.png": 1}\n']))
    return ["--label_dir", folder / "few.txt"], ["--label_dir", folder / "bad.txt"]


def clear(folder):
    """Remove a folder, or all that is in it if it is a mount point."""
    if not os.path.ismount(folder):
        return shutil.rmtree(folder, ignore_errors=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_kills(target, scratch, over_old, arguments, every=1):
    """Kill the converter at each step; then the same command, or one that fails, finds no half of a dataset."""
    few, bad = few_images(scratch)
    old_folder = scratch / "old"
    assert convert("--save_dir", old_folder, *few, "--part_num", 4).code == 0
    (old_folder / "mine.txt").write_text("mine")
    old_files = snapshot(old_folder)

    def prepare():
        clear(target)
        if over_old:
            shutil.copytree(old_folder, target, dirs_exist_ok=True)

    def action():
        return convert("--save_dir", target, *few, *arguments).code

    prepare()
    assert action() == 0
    new_files, states = snapshot(target), []
    assert new_files != old_files and ("mine.txt" in new_files) == over_old
    for number, code in enumerate(stop_at_each_step(prepare, action, every=every)):
        assert code == KILLED
        states.append(state(target, old_files, new_files))
        marked = is_marked(target)
        if number % 2:  # one that fails finishes a commit, and removes nothing
            result = convert("--save_dir", target, *bad)
            assert result.code == 2 and "missing.png: missing" in result.err, result
            then = state(target, old_files, new_files)
            assert then == ("new" if marked else states[-1])
        assert action() == 0
        assert snapshot(target) == new_files
    # First the old one, then for a moment none, then the new one: never back and forth.
    in_turn = ["old", "none", "new"] if over_old else ["none", "new"]
    assert [state for state, _ in itertools.groupby(states)] == in_turn
    assert len(states) > 20 / every


NEW = ["--part_num", 2, "--shuffle"]


@pytest.mark.parametrize(
    "over_old, arguments",
    [
        (True, NEW),
        pytest.param(True, [*NEW, "--part_name_suffix_length", 5], marks=pytest.mark.slow),
        pytest.param(False, NEW, marks=pytest.mark.slow),
    ],
    ids=["fewer parts", "other part names", "new folder"],
)
def test_killed_at_each_step(tmp_path, over_old, arguments):
    check_kills(tmp_path / "d", tmp_path, over_old, arguments)


def test_killed_at_each_step_on_a_mount_point(own_mounts, tmp_path):
    (tmp_path / "disk").mkdir()
    command = [*own_mounts, sys.executable, __file__, tmp_path / "disk", tmp_path]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, encoding="utf-8")
    assert process.stdout == "checked\n", process.stderr[-2000:]


def check_mount_point(disk, scratch):
    """In a process with mounts of its own, mount a small file system and kill converters that write to it."""
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
    assert os.path.ismount(disk)
    for over_old in (True, False):
        check_kills(Path(disk), Path(scratch), over_old, NEW, every=3)
        clear(Path(scratch) / "old")
    print("checked")


ENDS = {"train": "", "val": "_val", "test": "_test"}


@pytest.mark.parametrize(
    "over_old, every",
    [(True, 2), *(pytest.param(over_old, 1, marks=pytest.mark.slow) for over_old in (True, False))],
)
def test_the_commit_of_a_split_killed_at_each_step(own, tmp_path, over_old, every):
    """All three datasets are those of one split after the next run, which makes parts again only if it must."""
    folders = [tmp_path / f"d{end}" for end in ENDS.values()]
    more = ["--val_fraction", 0.2, "--test_fraction", 0.2, "--part_num", 2]
    assert convert(*own, *more, "--seed", 1).code == 0
    old = [snapshot(folder) for folder in folders]
    for folder in folders:
        folder.rename(tmp_path / f"old-{folder.name}")
    for number in (1, 2):  # all parts are there: what is killed is the commit
        assert convert(*own, *more, "--job", f"{number}/2").code == 0
    for folder in folders:
        folder.rename(tmp_path / f"made-{folder.name}")

    def prepare():
        for folder in folders:
            clear(folder)
            if over_old:
                shutil.copytree(tmp_path / f"old-{folder.name}", folder)
            shutil.copytree(tmp_path / f"made-{folder.name}", folder, dirs_exist_ok=True)

    def action():
        return convert(*own, *more).code

    prepare()
    assert action() == 0
    new, states = [snapshot(folder) for folder in folders], []
    for code in stop_at_each_step(prepare, action, every=every):
        assert code == KILLED
        found = [state(folder, *files) for folder, *files in zip(folders, old, new, strict=True)]
        marks = [is_marked(folder) for folder in folders]
        states.append(tuple(found))
        committed = marks[0] or found[0] == "new"
        if not committed:  # no folder was touched
            assert found == (["old"] * 3 if over_old else ["none"] * 3)
        for mistyped in ([], more):  # without the split, and with it
            assert convert(*own, *mistyped, "--part_num", 99).code == 2
            found = [state(each, *files) for each, *files in zip(folders, old, new, strict=True)]
            assert found == (["new"] * 3 if committed else ["old" if over_old else "none"] * 3)
        result = convert(*own, *more)
        assert result.code == 0 and [snapshot(folder) for folder in folders] == new, result
    assert len(set(states)) >= 4


@pytest.mark.parametrize("over_old", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_ctrl_c_at_each_step(tmp_path, over_old):
    few, _ = few_images(tmp_path)
    old_folder, target = tmp_path / "old", tmp_path / "d"
    assert convert("--save_dir", old_folder, *few, "--part_num", 4).code == 0
    old_files = snapshot(old_folder)
    assert convert("--save_dir", target, *few, *NEW).code == 0
    new_files, states = snapshot(target), []

    def prepare():
        clear(target)
        if over_old:
            shutil.copytree(old_folder, target)

    def action():
        return convert("--save_dir", target, *few, *NEW).code

    def press():
        os.kill(os.getpid(), signal.SIGINT)

    for code in stop_at_each_step(prepare, action, stop=press):
        assert code == 130
        states.append(state(target, old_files, new_files))
        hidden = list((target / HIDDEN).glob("*")) if target.exists() else []
        assert not [path for path in hidden if path.name.startswith("new-")]
        assert over_old or target.exists() == bool(hidden or states[-1] == "new")
        assert action() == 0 and snapshot(target) == new_files
    in_turn = ["old", "none", "new"] if over_old else ["none", "new"]
    assert [state for state, _ in itertools.groupby(states)] == in_turn


def test_what_is_renamed_is_on_the_disk_first(tmp_path, monkeypatch):
    """A kill loses nothing that was written; a power cut, what was not flushed."""
    few, _ = few_images(tmp_path)
    folder = tmp_path / "d"
    assert convert("--save_dir", folder, *few, "--part_num", 4).code == 0
    events = []  # (step, inode of the file or the name removed, inode of the target's folder, target)

    def record(name, what):
        function = getattr(os, name)

        def step(path, *more):
            folder = [os.stat(os.path.dirname(target)).st_ino for target in more]
            events.append((name, what(path), *folder, *map(str, more)))
            return function(path, *more)

        monkeypatch.setattr(os, name, step)

    record("fsync", lambda file: os.fstat(file).st_ino)
    record("replace", lambda path: os.stat(path).st_ino)
    record("remove", os.path.basename)
    assert convert("--save_dir", folder, *few, *NEW).code == 0
    monkeypatch.undo()
    renames = [index for index, (name, *_) in enumerate(events) if name == "replace"]
    for index in renames:
        assert ("fsync", events[index][1]) in events[:index]
    flush, moved = ("fsync", folder.stat().st_ino), events.index(("remove", MANIFEST))
    assert events[moved + 1] == flush  # the old mark goes before anything is moved
    (mark,) = (i for i in renames if events[i][3].endswith(f"{HIDDEN}/{MANIFEST}"))
    assert mark < moved and all(f"{HIDDEN}/" in events[i][3] for i in renames if i < moved)
    flush_staging = ("fsync", events[mark][2])  # the parts' names before the mark, and the mark
    assert events[mark - 1] == events[mark + 1] == flush_staging
    last = renames[-1]
    assert events[last][1] == (folder / MANIFEST).stat().st_ino
    assert events[last - 1] == events[last + 1] == flush


# -- stopped at some moment, on many images -------------------------------------------

# Images to convert. Their lines do not fit in a pipe: as long as nobody reads them, the converter
# cannot come to its end, nor its workers to theirs.
LONG = 1_000


@pytest.fixture
def old(tmp_path):
    """A dataset to be replaced: its folder and its files."""
    folder = tmp_path / "old"
    assert convert("--save_dir", folder, "--part_num", 4).code == 0
    return folder, snapshot(folder)


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
        process = start(*arguments)
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
    before = snapshot(old[0])
    process = start_converting(*many(LONG, "--save_dir", old[0], "--workers", workers))
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes of the command
    _, err = process.communicate(timeout=60)  # it ends, its workers too: they hold stderr open
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "img2ofrecord.py: error: interrupted"
    assert visible(old[0]) == before and err.count("kept in") <= 1
    assert not list((old[0] / HIDDEN).glob("new-*"))


def test_a_killed_worker_is_an_error(many, old, start_converting):
    before = snapshot(old[0])
    process = start_converting(*many(LONG, "--save_dir", old[0], "--workers", 2))
    os.kill(children(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "--workers 1" in err.splitlines()[-1] and "Traceback" not in err
    assert visible(old[0]) == before


def test_workers_leave_ctrl_c_to_their_parent(many, start_converting, tmp_path):
    process = start_converting(*many(LONG, "--save_dir", tmp_path / "d", "--workers", 2))
    for child in children(process):
        os.kill(child, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err


@pytest.mark.parametrize("more", [[], ["--job", "1/2"]], ids=["alone", "a job"])
def test_a_second_converter_on_the_same_folder_is_refused(many, old, start_converting, more):
    """Unless both are jobs; and a run that would commit waits for the last job."""
    folder, old_files = old
    arguments = many(LONG, "--save_dir", folder)
    first = start_converting(*arguments, *more)
    assert_one_error(convert("--save_dir", folder), "another converter", str(folder))
    if more:
        assert convert(*arguments, "--job", "2/2").code == 0
    assert visible(folder) == old_files
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    if more:
        result = convert(*arguments)
        assert result.code == 0 and "10 of 10 parts are there" in result.err, result
    assert read_manifest(folder)["num_records"] == LONG


def test_killed_alone_it_takes_its_workers_along(many, old, start_converting):
    folder, old_files = old
    process = start_converting(*many(LONG, "--save_dir", folder, "--workers", 2))
    process.kill()
    _, err = process.communicate(timeout=60)  # they hold stderr open
    assert "Traceback" not in err and visible(folder) == old_files
    assert convert("--save_dir", folder, *NEW).code == 0
    assert convert("--save_dir", folder.with_name("new"), *NEW).code == 0
    assert snapshot(folder) == snapshot(folder.with_name("new"))


@pytest.mark.slow
def test_two_converters_started_at_once(old, start):
    """One of them may be refused; the folder then holds the other's dataset, and both may have run one after the other."""
    folder = old[0]
    assert convert("--save_dir", folder.with_name("new"), *NEW).code == 0
    new_files = snapshot(folder.with_name("new"))
    for _ in range(5):
        both = [start("--save_dir", folder, *NEW) for _ in range(2)]
        ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
        assert 0 in (code for _, code in ends), ends
        for err, code in ends:
            assert code == 0 or (code == 2 and "another converter" in err), ends
        assert snapshot(folder) == new_files


def kill_at(start, seconds, *arguments):
    """Start the converter and kill it, and its workers, after a time; return whether that was before its end."""
    process = start(*arguments)
    time.sleep(seconds)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def as_one_run(tmp_path, *arguments):
    """The files of both datasets of a split that was not interrupted, and the seconds that it took."""
    begin, folder = time.perf_counter(), tmp_path / "whole"
    process = start_script("img2ofrecord.py", *arguments, "--save_dir", folder)
    assert process.communicate() and process.returncode == 0
    seconds = time.perf_counter() - begin
    return [snapshot(folder), snapshot(tmp_path / "whole_val")], seconds


def both(tmp_path):
    return [snapshot(tmp_path / "d"), snapshot(tmp_path / "d_val")]


@pytest.mark.parametrize("moments", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(many, tmp_path, start, moments):
    """Again and again, often without an end in between: the bytes of both datasets are those of one run."""
    arguments = many(2000, "--img_format", ".jpg", *SPLIT)
    whole, seconds = as_one_run(tmp_path, *arguments)
    arguments += ["--save_dir", tmp_path / "d"]
    rng, killed = random.Random(moments), 0
    for _ in range(moments):
        killed += kill_at(start, rng.uniform(0.3, 1) * seconds, *arguments)
        if rng.random() < 0.5:
            assert convert(*arguments).code == 0
            assert both(tmp_path) == whole
    assert convert(*arguments).code == 0
    assert both(tmp_path) == whole
    assert killed > moments // 4


@pytest.mark.parametrize("rounds", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_jobs_killed_at_random_moments(many, tmp_path, start, rounds):
    """Three jobs at once, one of which is killed and started again; then a run that commits."""
    arguments = many(2000, "--img_format", ".jpg", *SPLIT)
    whole, seconds = as_one_run(tmp_path, *arguments)
    arguments += ["--save_dir", tmp_path / "d"]
    rng = random.Random(rounds)
    for _ in range(rounds):
        for folder in ("d", "d_val"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        others = [start(*arguments, "--job", f"{number}/3", "--workers", 1) for number in (1, 3)]
        job = [*arguments, "--job", "2/3", "--workers", 1]
        kill_at(start, rng.uniform(0.3, 1) * seconds, *job)
        again = start(*job)
        for process in (*others, again):
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
        result = convert(*arguments)
        assert result.code == 0 and "20 of 20 parts are there already" in result.err, result
        assert both(tmp_path) == whole


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(many, tmp_path):
    """The largest of the converter's processes stays small at 120,000 images."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    script = TESTS.parent / "img2ofrecord.py"
    arguments = [*many(120_000), "--save_dir", tmp_path / "d"]
    result = run_python("-c", code, sys.executable, script, *arguments)
    assert result.code == 0, result
    assert read_manifest(tmp_path / "d")["num_records"] == 120_000
    assert int(result.out) / 1024 < 150  # MB


if __name__ == "__main__":
    check_mount_point(*sys.argv[1:])
