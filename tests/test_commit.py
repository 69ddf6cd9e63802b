"""Whatever stops the converter, the folder holds the whole old dataset, the whole new one, or none that claims to be finished.

Run as a script, this module checks that on a mount point of its own: see ``check_mount_point``.
"""

import gc
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from helpers import (
    ENVIRONMENT,
    IMAGES,
    LABELS,
    PROJECT,
    assert_one_error,
    convert,
    read_manifest,
    run_python,
    snapshot,
    start_script,
)

MANIFEST = "dataset.json"
OLD = ["--part_num", 4]
NEW = ["--part_num", 2, "--shuffle"]


def state(folder, old, new):
    """``old``, ``new`` or ``none``: which whole dataset the folder holds, hidden files aside. Anything else fails."""
    files = snapshot(folder)
    if MANIFEST not in files:  # it does not claim to be finished
        return "none"
    files = {name: data for name, data in files.items() if not name.startswith(".")}
    assert files in (old, new)
    return "old" if files == old else "new"


# -- stopped at each change of the disk -----------------------------------------------

STEPS = ("mkdir", "replace", "remove", "unlink", "rmdir", "fsync")  # functions of os
KILLED, ENDED = 77, 99  # exit codes


def stop_at_each_step(prepare, action, stop=lambda: os._exit(KILLED)):
    """Call ``action`` in child processes, each stopped right before or after one more of its steps.

    Calls ``prepare`` before each, and yields each one's exit code, which else is what ``action`` returns.
    """
    for number in itertools.count():
        for after in (False, True):
            prepare()
            # The child must not collect what this process made with OneFlow: that would wait
            # for threads which a fork does not copy.
            gc.freeze()
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    stopped = hook_steps(number, after, stop)
                    code = action() or 0
                    code = code if stopped else ENDED
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            gc.unfreeze()
            if code == ENDED:
                assert number >= 3
                return
            yield code


def hook_steps(last, after, stop):
    """Have this process call ``stop`` at its step number ``last``, from 0. Returns a list, empty until then."""
    steps, stopped = itertools.count(), []

    def hook(function):
        def step(*arguments, **options):
            now = next(steps) == last
            if now:
                stopped.append(True)
            if now and not after:
                stop()
            try:
                return function(*arguments, **options)
            finally:
                if now and after:
                    stop()

        return step

    for name in STEPS:
        setattr(os, name, hook(getattr(os, name)))
    return stopped


def write_files(folder, files):
    """Write {name: text} into a folder that holds nothing else then."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_commit_folder_killed_at_each_step(tmp_path):
    from runtime.atomic import commit_folder

    folder, names = tmp_path / "d", ["a0", "a1"]
    old = {"mark": "old", **{f"a{index}": "old" for index in range(4)}, "other": "mine"}
    new = {"mark": "new", "a0": "new", "a1": "new", "other": "mine"}
    staged = {f".new/{name}": "new" for name in [*names, "mark"]}

    def action():
        commit_folder(folder, folder / ".new", "mark", names, lambda name: name.startswith("a"))

    states = []
    for code in stop_at_each_step(lambda: write_files(folder, {**old, **staged}), action):
        assert code == KILLED
        found = {name: data.decode() for name, data in snapshot(folder).items()}
        shown = {name: text for name, text in found.items() if not name.startswith(".")}
        assert shown in (old, new) or "mark" not in shown
        states.append(shown.get("mark", "none"))
        action()
        assert {name: data.decode() for name, data in snapshot(folder).items()} == new
        assert not (folder / ".new").exists()
    assert [state for state, _ in itertools.groupby(states)] == ["old", "none", "new"]


def test_commit_folder_without_the_mark_moves_nothing(tmp_path):
    from runtime.atomic import commit_folder

    write_files(tmp_path / "d", {"mark": "old", "a0": "old", ".new/a0": "new"})
    before = snapshot(tmp_path)
    with pytest.raises(OSError):  # the folder is not empty
        commit_folder(tmp_path / "d", tmp_path / "d/.new", "mark", ["a0"], lambda name: True)
    assert snapshot(tmp_path) == before


def test_replace_file_killed_at_each_step(tmp_path):
    from runtime.atomic import replace_file

    path, states = tmp_path / "d" / "x", []

    def action():
        with replace_file(path, "w") as file:
            file.write("new")

    for code in stop_at_each_step(lambda: write_files(tmp_path / "d", {"x": "old"}), action):
        assert code == KILLED
        states.append(path.read_text())
        action()
        assert snapshot(tmp_path / "d") == {"x": b"new"}
    assert [state for state, _ in itertools.groupby(states)] == ["old", "new"]


def test_replace_file_leaves_the_old_one_where_its_block_raises(tmp_path):
    from runtime.atomic import replace_file

    write_files(tmp_path / "d", {"x": "old"})
    with pytest.raises(KeyboardInterrupt), replace_file(tmp_path / "d" / "x") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert snapshot(tmp_path / "d") == {"x": b"old"}


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


def check_kills(target, scratch, over_old, arguments):
    """Kill the converter at each step; then a run that fails itself and one that does not finish or remove what was left."""
    few, bad = few_images(scratch)
    old_folder = scratch / "old"
    assert convert("--save_dir", old_folder, *few, *OLD).code == 0
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
    new_files = snapshot(target)
    assert new_files != old_files and ("mine.txt" in new_files) == over_old

    states = []
    for number, code in enumerate(stop_at_each_step(prepare, action)):
        assert code == KILLED
        states.append(state(target, old_files, new_files))
        if number % 2:  # the same command continues
            assert action() == 0
            assert snapshot(target) == new_files
            continue
        result = convert("--save_dir", target, *bad)
        assert result.code == 2 and "missing.png: missing" in result.err, result
        then = state(target, old_files, new_files)
        if states[-1] == "none":
            assert then in (["new"] if over_old else ["none", "new"])
        else:
            assert then == states[-1]
        assert snapshot(target) == {"old": old_files, "new": new_files, "none": {}}[then]
        assert action() == 0
        assert snapshot(target) == new_files
    # First the old one, then for a moment none, then the new one: never back and forth.
    in_turn = ["old", "none", "new"] if over_old else ["none", "new"]
    assert [state for state, _ in itertools.groupby(states)] == in_turn
    assert len(states) > 20


@pytest.mark.parametrize(
    "over_old, arguments",
    [
        (True, NEW),
        pytest.param(True, [*NEW, "--part_name_suffix_length", 5], marks=pytest.mark.slow),
        pytest.param(False, NEW, marks=pytest.mark.slow),
    ],
    ids=["fewer parts", "other part names", "new folder"],
)
def test_converter_killed_at_each_step(tmp_path, over_old, arguments):
    check_kills(tmp_path / "d", tmp_path, over_old, arguments)


def test_converter_killed_at_each_step_on_a_mount_point(own_mounts, tmp_path):
    (tmp_path / "disk").mkdir()
    command = [*own_mounts, sys.executable, __file__, tmp_path / "disk", tmp_path]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, encoding="utf-8")
    assert process.stdout == "checked\n", process.stderr[-2000:]


def check_mount_point(disk, scratch):
    """In a process with mounts of its own, mount a small file system and kill converters that write to it."""
    sys.path.insert(0, str(PROJECT))
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
    assert os.path.ismount(disk)
    for over_old in (True, False):
        check_kills(Path(disk), Path(scratch), over_old, NEW)
        clear(Path(scratch) / "old")
    print("checked")


@pytest.mark.parametrize("over_old", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_ctrl_c_at_each_step(tmp_path, over_old):
    """Until the commit begins it changes nothing that can be seen; the commit ends first."""
    few, _ = few_images(tmp_path)
    old_folder, target = tmp_path / "old", tmp_path / "d"
    assert convert("--save_dir", old_folder, *few, *OLD).code == 0
    old_files = snapshot(old_folder)
    assert convert("--save_dir", target, *few, *NEW).code == 0
    new_files, states = snapshot(target), []

    def prepare():
        clear(target)
        if over_old:
            shutil.copytree(old_folder, target)

    def action():
        return convert("--save_dir", target, *few, *NEW).code

    for code in stop_at_each_step(
        prepare, action, stop=lambda: os.kill(os.getpid(), signal.SIGINT)
    ):
        assert code == 130
        found = snapshot(target)
        visible = {name: data for name, data in found.items() if not name.startswith(".")}
        states.append("old" if visible == (old_files if over_old else {}) else "new")
        assert states[-1] == "old" or found == new_files
        kept = any(name.endswith("part-0.json") for name in found)
        assert over_old or target.exists() == (states[-1] == "new" or kept)
        assert action() == 0
        assert snapshot(target) == new_files
    assert [state for state, _ in itertools.groupby(states)] == ["old", "new"]


def test_what_is_renamed_is_on_the_disk_first(tmp_path, monkeypatch):
    """A kill loses nothing that was written; a power cut, what was not flushed."""
    few, _ = few_images(tmp_path)
    folder = tmp_path / "d"
    assert convert("--save_dir", folder, *few, *OLD).code == 0
    events = []  # (step, inode or path)

    def record(name, what):
        function = getattr(os, name)

        def step(argument, *more):
            events.append((name, what(argument)))
            return function(argument, *more)

        monkeypatch.setattr(os, name, step)

    record("fsync", lambda file: os.fstat(file).st_ino)
    record("replace", lambda path: os.stat(path).st_ino)
    record("remove", os.path.basename)
    assert convert("--save_dir", folder, *few, *NEW).code == 0
    monkeypatch.undo()
    flush = "fsync", folder.stat().st_ino
    renames = [index for index, (name, _) in enumerate(events) if name == "replace"]
    assert len(renames) == 3
    for index in renames:
        assert ("fsync", events[index][1]) in events[:index]
    removed = events.index(("remove", MANIFEST))
    assert removed < renames[0] and events[removed + 1] == flush
    assert events[renames[-1]][1] == (folder / MANIFEST).stat().st_ino
    assert events[renames[-1] - 1] == events[renames[-1] + 1] == flush


# -- what is not the converter's --------------------------------------------------------


@pytest.mark.parametrize("name", [".img2ofrecord/thesis.txt", ".img2ofrecord", "part-9"])
def test_what_is_not_of_the_dataset_is_refused(dataset, name):
    path = dataset / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = snapshot(dataset)
    assert_one_error(convert("--save_dir", dataset), Path(name).name)
    assert snapshot(dataset) == before


# -- stopped at some moment, on many images -------------------------------------------


@pytest.fixture
def old(tmp_path):
    """A dataset to be replaced: its folder and its files."""
    folder = tmp_path / "old"
    assert convert("--save_dir", folder, *OLD).code == 0
    return folder, snapshot(folder)


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
    assert_one_error(convert("--save_dir", folder), "another converter", str(folder))
    visible = {name: data for name, data in snapshot(folder).items() if not name.startswith(".")}
    assert visible == old_files
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    manifest = read_manifest(folder)
    assert manifest["num_records"] == LONG


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


def test_killed_alone_it_takes_its_workers_along(many, old, start_converting, tmp_path):
    folder, old_files = old
    process = start_converting(*many(ENDLESS), "--save_dir", folder, "--workers", 2)
    process.kill()
    _, err = process.communicate(timeout=60)  # they hold stderr open
    assert err == ""
    assert state(folder, old_files, None) == "old"
    assert convert("--save_dir", folder, *NEW).code == 0
    assert convert("--save_dir", tmp_path / "new", *NEW).code == 0
    assert snapshot(folder) == snapshot(tmp_path / "new")


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
    assert manifest["num_records"] == 120_000
    assert int(result.out) / 1024 < 200  # MB


if __name__ == "__main__":
    check_mount_point(*sys.argv[1:])
