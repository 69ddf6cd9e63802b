"""Whatever stops the converter, the folder holds the old dataset, whole, or none that claims to be finished."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import IMAGES, LABELS, PROJECT, assert_one_error, run_script, snapshot
from ofrecord.cli import InputError
from ofrecord.manifest import MANIFEST_NAME, STAGING_NAME, check_dataset

IMAGE_COUNT = 3000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The tutorial's images 60 times over, by hard links, and two label files for them."""
    root = tmp_path_factory.mktemp("many")
    (root / "in").mkdir()
    sources = sorted(IMAGES.iterdir())
    lines = []
    for index in range(IMAGE_COUNT):
        source = sources[index % len(sources)]
        name = "{}-{}".format(index, source.name)
        shutil.copy(str(source), str(root / "in" / name))
        lines.append(json.dumps({name: index % 10}) + "\n")
    (root / "old.txt").write_text("".join(lines))
    (root / "new.txt").write_text("".join(reversed(lines)))
    return root


def command(many, save_dir, labels, *arguments):
    return [sys.executable, str(PROJECT / "img2ofrecord.py"), "--image_root", str(many / "in"), "--label_dir",
            str(many / labels), "--save_dir", str(save_dir)] + list(map(str, arguments))


def start(*arguments):
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def convert(*arguments):
    return run_script("img2ofrecord.py", *command(*arguments)[2:])


def state(folder, old, new):
    """``old``, ``new`` or ``none``: which whole dataset the folder holds. Anything else fails."""
    try:
        check_dataset(str(folder), hashes=True)
    except InputError as error:
        assert not (folder / MANIFEST_NAME).exists(), error  # it must not claim to be finished
        return "none"
    found = {name: data for name, data in snapshot(folder).items() if not name.startswith(STAGING_NAME)}
    assert found in (old, new)
    return "old" if found == old else "new"


def test_killed_at_any_moment(many, tmp_path):
    """SIGKILL at random moments, with and without an old dataset; then the next run succeeds."""
    folder = tmp_path / "d"
    wholes = {}
    for labels, parts in (("old.txt", 3), ("new.txt", 7)):
        assert convert(many, tmp_path / labels, labels, "--part_num", parts).code == 0
        wholes[labels] = snapshot(tmp_path / labels)
    began = time.time()
    assert convert(many, folder, "old.txt", "--part_num", 3).code == 0
    whole_run = time.time() - began

    seen, rng = {"old": 0, "new": 0, "none": 0}, random.Random(0)
    for attempt in range(24):
        process = start(many, folder, "new.txt", "--part_num", 7)
        time.sleep(rng.uniform(0.05, 1.1 * whole_run))
        os.killpg(process.pid, signal.SIGKILL) if attempt % 2 else process.kill()  # the workers too, or it alone
        process.communicate()
        found = state(folder, wholes["old.txt"], wholes["new.txt"])
        seen[found] += 1
        if found == "new" or attempt % 4 == 3:  # go back, over whatever was left
            deadline = time.time() + 5
            while True:
                result = convert(many, folder, "old.txt", "--part_num", 3)
                if "another converter" not in result.err or time.time() > deadline:
                    break
            assert result.code == 0, result
            assert snapshot(folder) == wholes["old.txt"]
    print("killed 24 times; the folder then held", seen)
    assert seen["old"] >= 3


@pytest.mark.parametrize("old", [True, False], ids=["over an old dataset", "into a new folder"])
def test_killed_at_every_step_of_the_commit(many, tmp_path, old):
    """SIGKILL before each rename, removal and flush of the commit, one after the other."""
    folder, script = tmp_path / "d", tmp_path / "killer.py"
    script.write_text("""if True:
        import os, sys
        sys.path.insert(0, {project!r})
        calls, last = [0], int(sys.argv.pop(1))
        def deadly(function):
            def call(*arguments, **options):
                if calls[0] == last:
                    os.kill(os.getpid(), 9)
                calls[0] += 1
                return function(*arguments, **options)
            return call
        import img2ofrecord
        for name in ("replace", "remove", "fsync", "rmdir", "unlink", "mkdir"):
            setattr(os, name, deadly(getattr(os, name)))
        img2ofrecord.main()
        """.format(project=str(PROJECT)))
    assert convert(many, tmp_path / "new", "new.txt", "--part_num", 4).code == 0
    new = snapshot(tmp_path / "new")
    states = []
    for last in range(100):
        shutil.rmtree(str(folder), ignore_errors=True)
        if old:
            assert convert(many, folder, "old.txt", "--part_num", 6, "--workers", 1).code == 0
            (folder / "mine.txt").write_text("mine")
        before = snapshot(folder) if old else None
        arguments = command(many, folder, "new.txt", "--part_num", 4, "--workers", 1)[2:]
        process = subprocess.run([sys.executable, str(script), str(last)] + arguments, stdout=subprocess.PIPE)
        if old:
            assert (folder / "mine.txt").read_text() == "mine"
            (folder / "mine.txt").unlink()
            del before["mine.txt"]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        states.append(state(folder, before, new) if folder.exists() else "none")
        result = convert(many, folder, "new.txt", "--part_num", 4, "--workers", 1)
        assert result.code == 0, result
        assert snapshot(folder) == new  # and nothing left over
    print("killed at", len(states), "steps:", states)
    assert len(states) > 15
    # First the old one, then for a moment none, then the new one: never back and forth.
    assert states == sorted(states, key=["old", "none", "new"].index)
    assert (not old or states[0] == "old") and states[-1] == "new"


def test_a_commit_that_was_killed_is_finished_by_the_next_run_even_if_that_fails(many, tmp_path):
    """Killed after the old manifest went and one new part came: nothing is lost by it."""
    folder = tmp_path / "d"
    assert convert(many, tmp_path / "new", "new.txt", "--part_num", 4).code == 0
    assert convert(many, folder, "old.txt", "--part_num", 6).code == 0
    new = snapshot(tmp_path / "new")
    staging = folder / STAGING_NAME
    staging.mkdir()
    (folder / MANIFEST_NAME).rename(staging / "replaced.json")
    for name, data in new.items():
        ((folder if name == "part-0" else staging) / name).write_bytes(data)
    (folder / "mine.txt").write_text("mine")
    (tmp_path / "bad.txt").write_text('{"missing.png": 1}\n')
    result = run_script("img2ofrecord.py", "--image_root", many / "in", "--label_dir", tmp_path / "bad.txt",
                        "--save_dir", folder, "--part_num", 1)
    assert result.code == 2 and "missing.png" in result.err, result
    assert snapshot(folder) == dict(new, **{"mine.txt": b"mine"})


@pytest.mark.parametrize("presses", [1, 4])
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c(many, tmp_path, workers, presses):
    """At once and some time later; pressed again and again it may end with a signal, but it ends."""
    folder = tmp_path / "d"
    assert convert(many, folder, "old.txt").code == 0
    before = snapshot(tmp_path)
    for pause in (0, 0.02, 0.05):
        process = start(many, folder, "new.txt", "--progress", "lines", "--workers", workers)
        while b"feature saved" not in process.stdout.readline():
            pass
        time.sleep(pause)
        for _ in range(presses):
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes of the command
            time.sleep(0.003)
        _, err = process.communicate(timeout=30)  # it ends, its workers too: they hold stderr open
        if process.returncode == 0:  # it was at its end already
            assert convert(many, folder, "old.txt").code == 0
        elif presses == 1:
            assert process.returncode == 130, err
            assert err.decode().splitlines() == ["img2ofrecord.py: error: interrupted"]
            assert snapshot(tmp_path) == before
        else:
            check_dataset(str(folder), hashes=True)


def test_a_killed_worker_is_an_error(many, tmp_path):
    process = start(many, tmp_path / "d", "new.txt", "--progress", "lines", "--workers", 2)
    while b"feature saved" not in process.stdout.readline():
        pass
    children = Path("/proc/{0}/task/{0}/children".format(process.pid)).read_text().split()
    if children:
        os.kill(int(children[0]), signal.SIGKILL)
        _, err = process.communicate(timeout=30)
        if process.returncode != 0:
            assert process.returncode == 2 and b"--workers 1" in err, err
            assert not (tmp_path / "d").exists()
    process.communicate()


def test_a_second_converter_on_the_same_folder_is_refused(many, tmp_path):
    import fcntl

    folder = tmp_path / "d"
    assert convert(many, folder, "old.txt").code == 0
    before = snapshot(folder)
    descriptor = os.open(str(folder), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert_one_error(convert(many, folder, "new.txt"), "another converter")
        assert snapshot(folder) == before
    finally:
        os.close(descriptor)

    first, second = start(many, folder, "new.txt"), start(many, folder, "new.txt")
    ended = sorted((process.communicate()[1].decode().strip(), process.returncode) for process in (first, second))
    assert 0 in (first.returncode, second.returncode), ended
    assert all(code == 0 or (code == 2 and "another converter" in err) for err, code in ended), ended
    check_dataset(str(folder), hashes=True)


def test_memory_does_not_grow_with_the_number_of_images(many, tmp_path):
    """Forty times the images by naming each one in forty ways; the largest process stays small."""
    import resource

    with (tmp_path / "labels.txt").open("w") as labels:
        for turn in range(40):
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / str(turn)).symlink_to(many / "in")
            for line in (many / "old.txt").read_text().splitlines():
                labels.write('{"%d/%s\n' % (turn, line[2:]))
    code = "import resource, subprocess, sys; subprocess.check_call(sys.argv[1:]); " \
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    peaks = []
    for root, labels in ((many / "in", many / "old.txt"), (tmp_path / "in", tmp_path / "labels.txt")):
        output = subprocess.check_output([sys.executable, "-c", code, sys.executable, str(PROJECT / "img2ofrecord.py"),
                                          "--image_root", str(root), "--label_dir", str(labels), "--save_dir",
                                          str(tmp_path / "d")])
        peaks.append(int(output.split()[-1]) / 1024)
    print("peak memory, MB: {:.0f} for {:,} images, {:.0f} for {:,}".format(peaks[0], IMAGE_COUNT, peaks[1], 40 * IMAGE_COUNT))
    assert peaks[1] < 200
