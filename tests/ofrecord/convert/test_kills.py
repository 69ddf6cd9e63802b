"""Whatever stops the converter, the folders hold the whole old datasets, or the next run finishes the new ones."""

import errno
import itertools
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import (
    LABELS,
    PROJECT,
    assert_one_error,
    convert,
    read_manifest,
    run_python,
    snapshot,
    start_script,
    visible,
)
from steps import KILLED, stop_at_each_step

MANIFEST, HIDDEN = "dataset.json", ".img2ofrecord"
NEW = ["--part_num", 2, "--shuffle"]
slow = pytest.mark.slow


# -- stopped at each change of the disk -----------------------------------------------


def fill_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


STOPS = {  # and the exit codes that may follow; an error while tidying up changes nothing
    "a kill": (lambda: os._exit(KILLED), {KILLED}),
    "Ctrl-C": (lambda: os.kill(os.getpid(), signal.SIGINT), {130}),
    "a full disk": (fill_disk, {0, 2}),
}


def state(folder, old, new):
    """``old``, ``new`` or ``none``: which whole dataset the folder holds. Anything else fails."""
    files = visible(folder)
    if MANIFEST not in files:  # it does not claim to be finished
        return "none"
    assert files in (old, new)
    return "old" if files == old else "new"


CASES = [  # how, over an old dataset, with a split, every n-th step
    *(("a kill", True, False, 1), ("Ctrl-C", True, False, 3), ("a full disk", True, False, 3)),
    ("a kill", True, True, 7),
    pytest.param("Ctrl-C", False, False, 1, marks=slow),
    pytest.param("a kill", True, True, 1, marks=slow),
    pytest.param("a kill", False, True, 3, marks=slow),
    pytest.param("a full disk", True, True, 3, marks=slow),
]


@pytest.mark.parametrize("how, over_old, split, every", CASES)
def test_stopped_at_each_step(tmp_path, how, over_old, split, every):
    """Afterwards the same command, or one that fails, finds no half of a dataset."""
    (tmp_path / "bad.txt").write_text(LABELS.read_text() + '{"missing.png": 1}\n')
    folders = [tmp_path / name for name in (["d", "d_val", "d_test"] if split else ["d"])]
    failing = ["--save_dir", folders[0], *NEW, "--label_dir", tmp_path / "bad.txt"]
    wanted = [*failing[:-2], *(["--val_fraction", 0.2, "--test_fraction", 0.2] if split else [])]
    stop, codes = STOPS[how]

    def prepare():
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            if over_old:
                shutil.copytree(tmp_path / f"old-{folder.name}", folder)

    def found():
        return [state(*each) for each in zip(folders, old, new, strict=True)]

    assert convert(*wanted, "--part_num", 4, "--img_format", ".bmp").code == 0
    (folders[0] / "mine.txt").write_text("mine")
    old = [snapshot(folder) for folder in folders]
    for folder in folders:
        folder.rename(tmp_path / f"old-{folder.name}")
    prepare()
    assert convert(*wanted).code == 0
    new, states = [snapshot(folder) for folder in folders], []
    assert ("mine.txt" in new[0]) == over_old
    for number, code in enumerate(
        stop_at_each_step(prepare, lambda: convert(*wanted).code, stop, every)
    ):
        assert code in codes
        states.append(found())
        if code == 0:
            assert set(states.pop()) == {"new"}
            continue
        hidden = [path.name for folder in folders for path in (folder / HIDDEN).glob("*")]
        if how == "Ctrl-C":  # nothing half written is left, nor an empty folder
            assert not [name for name in hidden if name.startswith("new-")]
            assert over_old or folders[0].exists() == bool(hidden or states[-1] == ["new"])
        marked = (folders[0] / HIDDEN / MANIFEST).exists()
        if not marked and states[-1][0] != "new":  # no folder was touched
            assert set(states[-1]) == {"old" if over_old else "none"}
        if number % 2:
            if marked:  # a job leaves that to a run without a job
                result = convert(*wanted, "--job", "1/2")
                assert_one_error(result, "same command without --job finishes it", started=True)
                assert found() == states[-1]
            # One that fails, without the options of the split, finishes a commit, and removes nothing.
            assert convert(*failing).code == 2
            assert found() == (["new"] * len(folders) if marked else states[-1])
        assert convert(*wanted).code == 0
        assert [snapshot(folder) for folder in folders] == new
    # First the old one, then for a moment none, then the new one: never back and forth.
    in_turn = ["old", "none", "new"] if over_old else ["none", "new"]
    assert [name for name, _ in itertools.groupby(first for first, *_ in states)] == in_turn
    assert len(states) > 20 / every and len(set(map(tuple, states))) >= len(folders) + 1


def test_what_is_renamed_is_on_the_disk_first(tmp_path, monkeypatch):
    """A kill loses nothing that was written; a power cut, what was not flushed."""
    folder, events = tmp_path / "d", []
    assert convert("--save_dir", folder, "--part_num", 4).code == 0

    def record(name, what):
        """Append (step, inode of the file or the name removed, inode of the target's folder, target)."""
        function = getattr(os, name)

        def step(path, *more):
            inodes = [os.stat(os.path.dirname(target)).st_ino for target in more]
            events.append((name, what(path), *inodes, *map(str, more)))
            return function(path, *more)

        monkeypatch.setattr(os, name, step)

    record("fsync", lambda file: os.fstat(file).st_ino)
    record("replace", lambda path: os.stat(path).st_ino)
    record("remove", os.path.basename)
    assert convert("--save_dir", folder, *NEW).code == 0
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

LONG = 1_000  # images


@pytest.fixture
def old(tmp_path):
    """A dataset to be replaced: its folder and its files."""
    assert convert("--save_dir", tmp_path / "old", "--part_num", 4).code == 0
    return tmp_path / "old", snapshot(tmp_path / "old")


@pytest.fixture
def start():
    """Start the converter, as leader of a process group, and end what is left of it at the end of the test."""
    processes = []

    def start_converter(*arguments, **options):
        options["start_new_session"] = True
        processes.append(start_script("img2ofrecord.py", *arguments, **options))
        return processes[-1]

    yield start_converter
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def held(many, start):
    """Start the converter on LONG images, held where it has saved some of them until its output is read.

    Their lines, ten times what its pipe can hold, keep it there.
    """

    def start_and_wait(*arguments):
        process = start(*many(LONG, *arguments), pipesize=4096)
        for line in process.stdout:
            if "feature saved" in line:
                return process
        raise AssertionError(process.communicate())

    return start_and_wait


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


STOPPED = "img2ofrecord.py: error: interrupted"
SIGNALS = {  # the signals, to which processes, the number of workers, the exit code, the last line
    # A terminal sends Ctrl-C to all processes of the command.
    "Ctrl-C": ([signal.SIGINT], lambda pid: [-pid], 1, 130, STOPPED),
    "Ctrl-C twice": ([signal.SIGINT] * 2, lambda pid: [-pid], 2, 130, STOPPED),
    "SIGTERM": ([signal.SIGTERM], lambda pid: [pid], 2, -signal.SIGTERM, ""),
    "a killed worker": ([signal.SIGKILL], lambda pid: children(pid)[:1], 2, 2, "--workers 1"),
    "workers leave Ctrl-C to their parent": ([signal.SIGINT], children, 2, 0, ""),
}


@pytest.mark.parametrize("signals, to, workers, code, text", SIGNALS.values(), ids=SIGNALS)
def test_signals(many, old, held, signals, to, workers, code, text):
    """A mistyped command, after all jobs: it ends, its workers too, which hold stderr open, and nothing is lost."""
    folder, old_files = old
    right = many(LONG, "--save_dir", folder)
    assert convert(*right, "--job", "1/1").code == 0
    process = held("--save_dir", folder, "--img_format", ".bmp", "--workers", workers)
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "Threads:\t2\n" in status  # tqdm has one; none for each CPU
    for target in to(process.pid):
        for number in signals:
            os.kill(target, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err, err
    assert text in (err.splitlines() or [""])[-1] and err.count("kept in") <= 1, err
    if code:
        assert visible(folder) == old_files
        assert code < 0 or not list((folder / HIDDEN).glob("new-*"))
        result = convert(*right)
        assert result.code == 0 and "10 of 10 parts are there already" in result.err, result
        assert "feature saved" not in result.out


def test_a_second_converter_on_the_same_folder_is_refused(many, old, held):
    """However its name is spelled, unless both are jobs; and a run that would commit waits for the last job."""
    folder, old_files = old
    arguments = many(LONG, "--save_dir", folder)
    first = held("--save_dir", folder, "--job", "1/2")
    (folder.parent / "link").symlink_to(folder)
    for name in (f"{folder}/", f"{folder}/../old", "old", "link"):
        result = convert(*many(LONG), "--save_dir", name, cwd=folder.parent)
        assert_one_error(result, f"another converter, or a training, is using {name}")
    assert convert(*arguments, "--job", "2/2").code == 0
    assert visible(folder) == old_files
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    result = convert(*arguments)
    assert result.code == 0 and "10 of 10 parts are there" in result.err, result
    assert read_manifest(folder)["num_records"] == LONG


# -- killed at random moments -----------------------------------------------------------


@pytest.mark.parametrize("rounds", [4, pytest.param(25, marks=slow)])
def test_killed_at_random_moments(many, start, tmp_path, rounds):
    """Again and again, often without an end in between: the bytes of both datasets are those of one run."""
    arguments = many(2000, "--img_format", ".jpg", "--val_fraction", 0.2)
    begin = time.perf_counter()
    process = start(*arguments, "--save_dir", tmp_path / "whole")
    assert process.communicate() and process.returncode == 0
    seconds = time.perf_counter() - begin
    arguments += ["--save_dir", tmp_path / "d"]
    rng, killed = random.Random(rounds), 0
    for number in range(rounds):
        process = start(*arguments)
        time.sleep(rng.uniform(0.3, 1) * seconds)
        if process.poll() is None:
            killed += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if number == rounds - 1 or rng.random() < 0.5:
            assert convert(*arguments).code == 0
            for end in "", "_val":
                assert snapshot(tmp_path / f"d{end}") == snapshot(tmp_path / f"whole{end}")
    assert killed > rounds // 4


@slow
def test_memory_does_not_grow_with_the_number_of_images(many, tmp_path):
    """The largest of the converter's processes stays small at 120,000 images.

    It is started by a small process, as the memory of the one that forks counts as the child's.
    """
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    arguments = many(120_000, "--save_dir", tmp_path / "d")
    result = run_python("-c", code, sys.executable, PROJECT / "img2ofrecord.py", *arguments)
    assert result.code == 0, result
    assert read_manifest(tmp_path / "d")["num_records"] == 120_000
    assert int(result.out) / 1024 < 150  # MB
