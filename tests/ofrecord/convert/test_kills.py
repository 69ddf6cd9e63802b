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


def clear(folder):
    """Remove a folder, or all that is in it if it is a mount point."""
    if not os.path.ismount(folder):
        return shutil.rmtree(folder, ignore_errors=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def state(folder, old, new):
    """``old``, ``new`` or ``none``: which whole dataset the folder holds. Anything else fails."""
    files = visible(folder)
    if MANIFEST not in files:  # it does not claim to be finished
        return "none"
    assert files in (old, new)
    return "old" if files == old else "new"


def check_stops(scratch, how, over_old=True, more=(), every=1, target="d"):
    """Stop the converter at each step; then the same command, or one that fails, finds no half of a dataset.

    Of a split, all parts are there, so that its commit is stopped.
    """
    few = "".join(LABELS.read_text().splitlines(True)[:7])
    (scratch / "few.txt").write_text(few)
    (scratch / "bad.txt").write_text(few + '{"missing.png": 1}\n')
    is_split = "--val_fraction" in more
    folders = [scratch / f"{target}{end}" for end in (["", "_val", "_test"] if is_split else [""])]
    images = [] if is_split else ["--label_dir", scratch / "few.txt"]
    wanted = ["--save_dir", folders[0], *images, *NEW, *more]
    failing = ["--part_num", 99] if is_split else ["--label_dir", scratch / "bad.txt"]
    stop, codes = STOPS[how]

    def keep(name):
        for folder in folders:
            shutil.copytree(folder, scratch / f"{name}-{folder.name}", dirs_exist_ok=True)
            clear(folder)

    def prepare():
        for folder in folders:
            clear(folder)
            for before in ["old", "made"] if over_old else ["made"]:
                if (scratch / f"{before}-{folder.name}").exists():
                    source = scratch / f"{before}-{folder.name}"
                    shutil.copytree(source, folder, dirs_exist_ok=True)

    def found():
        return [state(*each) for each in zip(folders, old, new, strict=True)]

    assert convert(*wanted, "--part_num", 4, "--img_format", ".bmp").code == 0
    (folders[0] / "mine.txt").write_text("mine")
    old = [snapshot(folder) for folder in folders]
    keep("old")
    if is_split:
        for number in (1, 2):
            assert convert(*wanted, "--job", f"{number}/2").code == 0
        keep("made")
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
        if marked and number % 2:  # a job leaves that to a run without a job
            result = convert(*wanted, "--job", "1/2")
            assert_one_error(result, "the same command without --job finishes it", started=True)
            assert found() == states[-1]
        if number % 2:  # one that fails finishes a commit, and removes nothing
            for mistyped in (wanted, [*wanted[: -len(more)], *images] if is_split else wanted):
                assert convert(*mistyped, *failing).code == 2
                assert found() == (["new"] * len(folders) if marked else states[-1])
        assert convert(*wanted).code == 0
        assert [snapshot(folder) for folder in folders] == new
    # First the old one, then for a moment none, then the new one: never back and forth.
    in_turn = ["old", "none", "new"] if over_old else ["none", "new"]
    assert [name for name, _ in itertools.groupby(first for first, *_ in states)] == in_turn
    assert len(states) > 20 / every and len(set(map(tuple, states))) >= len(folders) + 1


SPLIT = ["--val_fraction", 0.2, "--test_fraction", 0.2]
CASES = [
    *(("a kill", True, [], 1), ("Ctrl-C", True, [], 1), ("a full disk", True, [], 2)),
    ("a kill", True, SPLIT, 2),
    pytest.param("a kill", True, ["--part_name_suffix_length", 5], 1, marks=slow),
    *(pytest.param(how, False, [], 1, marks=slow) for how in STOPS),
    *(pytest.param(how, True, SPLIT, 1, marks=slow) for how in STOPS),
    pytest.param("a kill", False, SPLIT, 1, marks=slow),
]


@pytest.mark.parametrize("how, over_old, more, every", CASES)
def test_stopped_at_each_step(tmp_path, how, over_old, more, every):
    check_stops(tmp_path, how, over_old, more, every)


MOUNTED = """
from test_kills import check_stops

for over_old in (True, False):
    check_stops(disk.parent, "a kill", over_old, every=3, target="disk")
print("checked")
"""


def test_killed_at_each_step_on_a_mount_point(on_own_disk):
    result = on_own_disk(MOUNTED, "9m")
    assert result.out == "checked\n", result


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

LONG, PAGE = 1_000, 4096  # images; bytes


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
        process = start(*many(LONG, *arguments), pipesize=PAGE)
        for line in process.stdout:
            if "feature saved" in line:
                return process
        raise AssertionError(process.communicate())

    return start_and_wait


def children(process):
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(word) for word in text.split()]


def send(*signals, to=lambda process: [process.pid]):
    """What sends these signals to each of some processes; of a group by a negative number."""
    return lambda process: [os.kill(each, number) for each in to(process) for number in signals]


def group(process):  # a terminal sends Ctrl-C to all processes of the command
    return [-process.pid]


def a_worker(process):
    return children(process)[:1]


STOPPED = "img2ofrecord.py: error: interrupted"
SIGNALS = {  # what is done, the number of workers, the exit code, the last line
    "Ctrl-C": (send(signal.SIGINT, to=group), 1, 130, STOPPED),
    "Ctrl-C and workers": (send(signal.SIGINT, to=group), 2, 130, STOPPED),
    "Ctrl-C twice": (send(signal.SIGINT, signal.SIGINT, to=group), 2, 130, STOPPED),
    "SIGTERM": (send(signal.SIGTERM), 2, -signal.SIGTERM, ""),
    "SIGHUP": (send(signal.SIGHUP), 2, -signal.SIGHUP, ""),
    "killed alone": (send(signal.SIGKILL), 2, -signal.SIGKILL, ""),
    "a killed worker": (send(signal.SIGKILL, to=a_worker), 2, 2, "--workers 1"),
    "workers leave Ctrl-C to their parent": (send(signal.SIGINT, to=children), 2, 0, ""),
}


@pytest.mark.parametrize("act, workers, code, text", SIGNALS.values(), ids=SIGNALS)
def test_signals(many, old, held, act, workers, code, text):
    """A mistyped command, after all jobs: it ends, its workers too, which hold stderr open, and nothing is lost."""
    folder, old_files = old
    right = many(LONG, "--save_dir", folder)
    assert convert(*right, "--job", "1/1").code == 0
    process = held("--save_dir", folder, "--img_format", ".bmp", "--workers", workers)
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "Threads:\t2\n" in status  # tqdm has one; none for each CPU
    act(process)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err, err
    assert text in (err.splitlines() or [""])[-1] and err.count("kept in") <= 1, err
    if code:
        assert visible(folder) == old_files
        assert code < 0 or not list((folder / HIDDEN).glob("new-*"))
        result = convert(*right)
        assert result.code == 0 and "10 of 10 parts are there already" in result.err, result
        assert "feature saved" not in result.out


@pytest.mark.parametrize("more", [[], ["--job", "1/2"]], ids=["alone", "a job"])
def test_a_second_converter_on_the_same_folder_is_refused(many, old, held, more):
    """However its name is spelled, unless both are jobs; and a run that would commit waits for the last job."""
    folder, old_files = old
    first = held("--save_dir", folder, *more)
    (folder.parent / "link").symlink_to(folder)
    for name in (f"{folder}/", f"{folder}/../old", "old", "link"):
        result = convert(*many(LONG), "--save_dir", name, cwd=folder.parent)
        assert_one_error(result, f"another converter, or a training, is using {name}")
    if more:
        assert convert(*many(LONG), "--save_dir", folder, "--job", "2/2").code == 0
    assert visible(folder) == old_files
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    if more:
        result = convert(*many(LONG), "--save_dir", folder)
        assert result.code == 0 and "10 of 10 parts are there" in result.err, result
    assert read_manifest(folder)["num_records"] == LONG


@slow
def test_two_converters_started_at_once(old, start):
    """One of them may be refused; the folder then holds the other's dataset, and both may have run one after the other."""
    folder = old[0]
    assert convert("--save_dir", folder.with_name("new"), *NEW).code == 0
    for _ in range(5):
        both = [start("--save_dir", folder, *NEW) for _ in range(2)]
        ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
        assert 0 in (code for _, code in ends), ends
        for err, code in ends:
            assert code == 0 or (code == 2 and "another converter" in err), ends
        assert snapshot(folder) == snapshot(folder.with_name("new"))


# -- killed at random moments -----------------------------------------------------------


@pytest.fixture
def random_kills(many, start, tmp_path):
    """The options of a conversion; ``kill(rng, *more)``, at a moment of it; whether both datasets are whole."""
    arguments = many(2000, "--img_format", ".jpg", "--val_fraction", 0.2)
    begin = time.perf_counter()
    process = start(*arguments, "--save_dir", tmp_path / "whole")
    assert process.communicate() and process.returncode == 0
    seconds = time.perf_counter() - begin

    def kill(rng, *more):
        """Return whether that was before its end."""
        process = start(*arguments, "--save_dir", tmp_path / "d", *more)
        time.sleep(rng.uniform(0.3, 1) * seconds)
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return alive

    def is_whole():
        pairs = (("whole", "d"), ("whole_val", "d_val"))
        return all(snapshot(tmp_path / one) == snapshot(tmp_path / two) for one, two in pairs)

    return [*arguments, "--save_dir", tmp_path / "d"], kill, is_whole


@pytest.mark.parametrize("moments", [4, pytest.param(50, marks=slow)])
def test_killed_at_random_moments(random_kills, moments):
    """Again and again, often without an end in between: the bytes of both datasets are those of one run."""
    (arguments, kill, is_whole), rng, killed = random_kills, random.Random(moments), 0
    for number in range(moments):
        killed += kill(rng)
        if number == moments - 1 or rng.random() < 0.5:
            assert convert(*arguments).code == 0 and is_whole()
    assert killed > moments // 4


@pytest.mark.parametrize("rounds", [1, pytest.param(50, marks=slow)])
def test_jobs_killed_at_random_moments(random_kills, tmp_path, start, rounds):
    """Three jobs at once, one of which is killed and started again; then a run that commits."""
    (arguments, kill, is_whole), rng = random_kills, random.Random(rounds)
    jobs = {number: ["--job", f"{number}/3", "--workers", 1] for number in (1, 2, 3)}
    for _ in range(rounds):
        for folder in ("d", "d_val"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        processes = [start(*arguments, *jobs[number]) for number in (1, 3)]
        kill(rng, *jobs[2])
        processes.append(start(*arguments, *jobs[2]))
        for process in processes:
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
        result = convert(*arguments)
        assert result.code == 0 and "20 of 20 parts are there already" in result.err, result
        assert is_whole()


@slow
def test_memory_does_not_grow_with_the_number_of_images(many, tmp_path):
    """The largest of the converter's processes stays small at 120,000 images."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    script = PROJECT / "img2ofrecord.py"
    arguments = [*many(120_000), "--save_dir", tmp_path / "d"]
    result = run_python("-c", code, sys.executable, script, *arguments)
    assert result.code == 0, result
    assert read_manifest(tmp_path / "d")["num_records"] == 120_000
    assert int(result.out) / 1024 < 150  # MB
