"""Conversions that continue after an interruption, and that several jobs share: the bytes are those of one run."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from damage import flip, ofrecord
from helpers import (
    ENVIRONMENT,
    IMAGES,
    PROJECT,
    assert_one_error,
    convert,
    read_manifest,
    snapshot,
    start_script,
)
from test_commit import KILLED, stop_at_each_step

HIDDEN = ".img2ofrecord"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """``options(count, *more)``: the converter's for so many images, the tutorial's under other names."""
    root = tmp_path_factory.mktemp("many")
    (root / "in").mkdir()
    names = sorted(path.name for path in IMAGES.iterdir())
    for turn in range(60):
        (root / "in" / str(turn)).symlink_to(IMAGES)

    def make(count, *more):
        path = root / f"{count}.csv"
        rows = (f"{n // 50}/{names[n % 50]},{n % 10}\n" for n in range(count))
        path.write_text("image,label\n" + "".join(rows))
        return ["--image_root", root / "in", "--label_dir", path, "--part_num", 10, *more]

    return make


@pytest.fixture
def own(tmp_path):
    """Thirty of the tutorial's images in a folder that a test may change; the converter's options for them."""
    (tmp_path / "in").mkdir()
    for path in sorted(IMAGES.iterdir())[:30]:
        shutil.copy2(path, tmp_path / "in")
    rows = (f"{path.name} {path.stem[-1]}\n" for path in sorted((tmp_path / "in").iterdir()))
    (tmp_path / "labels.txt").write_text("".join(rows))
    return [
        *["--image_root", tmp_path / "in", "--label_dir", tmp_path / "labels.txt"],
        *["--part_num", 6, "--progress", "none", "--save_dir", tmp_path / "d"],
    ]


def interrupt(*arguments):
    """Leave half of the parts, those with even numbers, as an interruption does."""
    assert convert(*arguments, "--job", "1/2").code == 0


def as_one_run(tmp_path, *arguments):
    """The files that a conversion without an interruption makes."""
    assert convert(*arguments, "--save_dir", tmp_path / "whole").code == 0
    return snapshot(tmp_path / "whole")


def check_continued(result, parts, of=6):
    assert result.code == 0, result
    assert f"continuing an interrupted conversion: {parts} of {of} parts" in result.err, result


# -- continued ------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--skip_bad"], ["--val_fraction", 0.2], ["--workers", 2]])
def test_continued(own, tmp_path, more):
    if "--skip_bad" in more:
        (tmp_path / "in" / sorted(os.listdir(tmp_path / "in"))[7]).write_bytes(b"\x89PNG")
    interrupt(*own, *more)
    result = convert(*own, *more)
    check_continued(result, 3)
    found = snapshot(tmp_path / "d")
    assert found == as_one_run(tmp_path, *own, *more)
    assert "finished" not in convert(*own, *more).err  # that one had nothing to continue
    if "--val_fraction" in more:
        assert snapshot(tmp_path / "d_val") == snapshot(tmp_path / "whole_val")


def test_the_old_dataset_stays_until_then(own, tmp_path):
    assert convert(*own, "--part_num", 2).code == 0
    old = snapshot(tmp_path / "d")
    interrupt(*own)
    found = snapshot(tmp_path / "d")
    assert {name: data for name, data in found.items() if not name.startswith(".")} == old
    check_continued(convert(*own), 3)


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda d: ["--quality", 80], "quality"),
        (lambda d: ["--size", "20x20"], "size, fit"),
        (lambda d: ["--part_num", 7], "part_num"),
        (lambda d: ["--part_name_suffix_length", 5], "part_name_suffix_length"),
        (lambda d: ["--shuffle"], "the images' names and labels"),
        (lambda d: ["--limit", 20], "the images' names and labels, the number of images"),
    ],
)
def test_other_options_start_again(own, tmp_path, change, why):
    own += ["--img_format", ".jpg"]
    interrupt(*own)
    more = change(tmp_path)
    result = convert(*own, *more)
    assert result.code == 0 and f"is not continued, as these differ: {why}\n" in result.err, result
    assert snapshot(tmp_path / "d") == as_one_run(tmp_path, *own, *more)


def test_what_does_not_matter_may_change(own, tmp_path):
    interrupt(*own)
    (tmp_path / "in").rename(tmp_path / "moved")
    more = ["--image_root", tmp_path / "moved", "--workers", 2, "--progress", "lines"]
    result = convert(*own, *more)
    check_continued(result, 3)
    assert result.out.count("feature saved") == 15


def test_a_merge_does_not_overwrite_an_interrupted_conversion(own, tmp_path):
    assert convert(*own, "--save_dir", tmp_path / "other").code == 0
    interrupt(*own)
    result = ofrecord("merge", tmp_path / "other", tmp_path / "d")
    assert_one_error(result, f"{tmp_path / 'd'} is of an interrupted conversion")
    check_continued(convert(*own), 3)


def test_fresh_starts_again(own, tmp_path):
    interrupt(*own)
    result = convert(*own, "--fresh", "--progress", "lines")
    assert result.code == 0 and "continuing" not in result.err, result
    assert result.out.count("feature saved") == 30
    assert snapshot(tmp_path / "d") == as_one_run(tmp_path, *own)


def test_the_part_of_a_changed_image_is_made_again(own, tmp_path):
    interrupt(*own)
    names = sorted(os.listdir(tmp_path / "in"))
    shutil.copy(tmp_path / "in" / names[20], tmp_path / "in" / names[11])
    result = convert(*own)
    check_continued(result, 2)
    assert "part-2 is made again, as its image files were changed\n" in result.err
    assert snapshot(tmp_path / "d") == as_one_run(tmp_path, *own)


def flip_middle(path):
    flip(path, path.stat().st_size // 2)


DAMAGE = {
    "a part flipped": lambda d: flip_middle(d / "part-2"),
    "a part cut off": lambda d: os.truncate(d / "part-2", 100),
    "a part removed": lambda d: (d / "part-2").unlink(),
    "what says that it is finished flipped": lambda d: flip_middle(d / "part-2.json"),
    "cut off": lambda d: os.truncate(d / "part-2.json", 100),
    "of another part": lambda d: shutil.copy(d / "part-0.json", d / "part-2.json"),
    "nested": lambda d: (d / "part-2.json").write_text("[" * 100_000),
    "no object": lambda d: (d / "part-2.json").write_text("7"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_part_is_made_again(own, tmp_path, damage):
    interrupt(*own)
    damage(tmp_path / "d" / HIDDEN)
    check_continued(convert(*own), 2)
    assert snapshot(tmp_path / "d") == as_one_run(tmp_path, *own)


def test_a_damaged_plan_starts_again(own, tmp_path):
    interrupt(*own)
    flip_middle(tmp_path / "d" / HIDDEN / "plan.json")
    result = convert(*own)
    assert result.code == 0 and "plan.json is damaged" in result.err, result
    assert snapshot(tmp_path / "d") == as_one_run(tmp_path, *own)


def test_invalid_images_lose_nothing_that_was_there(own, tmp_path):
    bad = tmp_path / "in" / sorted(os.listdir(tmp_path / "in"))[29]
    good = bad.read_bytes()
    bad.write_bytes(b"")
    assert_one_error(convert(*own), "the file is empty", started=True)
    assert not (tmp_path / "d").exists()
    interrupt(*own)
    result = convert(*own)
    assert_one_error(result, "the file is empty", started=True)
    assert f"5 finished parts kept in {tmp_path / 'd' / HIDDEN} (" in result.err
    bad.write_bytes(good)
    check_continued(convert(*own), 5)
    assert snapshot(tmp_path / "d") == as_one_run(tmp_path, *own)


def test_all_images_are_looked_at_once(own, tmp_path, monkeypatch):
    """With --skip_bad they are before the first is written, and again only where one was changed."""
    import ofrecord.survey

    looks, look = [], ofrecord.survey.look_at_all
    monkeypatch.setattr(ofrecord.survey, "look_at_all", lambda *a: looks.append(1) or look(*a))
    own += ["--skip_bad"]
    bad = tmp_path / "in" / sorted(os.listdir(tmp_path / "in"))[3]
    good = bad.read_bytes()
    bad.write_bytes(b"no image")
    interrupt(*own)
    result = convert(*own)
    check_continued(result, 3)
    assert len(looks) == 1 and "skipped 1 of 30 images" in result.err
    assert len(read_manifest(tmp_path / "d")["skipped"]) == 1
    interrupt(*own)
    bad.write_bytes(good)
    result = convert(*own)
    assert result.code == 0 and len(looks) == 3 and "skipped 1" not in result.err, result
    assert read_manifest(tmp_path / "d")["num_records"] == 30


# -- several jobs ---------------------------------------------------------------------


def test_jobs_make_the_bytes_of_one_run(own, tmp_path):
    for number in (2, 3, 1):
        result = convert(*own, "--job", f"{number}/3")
        assert result.code == 0 and f"python -m ofrecord finish {tmp_path / 'd'}" in result.out
        if number != 1:
            assert_one_error(ofrecord("finish", tmp_path / "d"), "of 6 parts are not finished")
    result = ofrecord("finish", tmp_path / "d")
    assert result.code == 0 and "30 gray PNG images 28x28" in result.out, result
    assert snapshot(tmp_path / "d") == as_one_run(tmp_path, *own)


def test_a_run_without_a_job_finishes_what_jobs_began(own, tmp_path):
    assert convert(*own, "--job", "1/3").code == 0
    check_continued(convert(*own), 2)
    assert snapshot(tmp_path / "d") == as_one_run(tmp_path, *own)


def test_jobs_with_color_in_one_share_and_invalid_images(own, tmp_path):
    """Whether the dataset is in colour follows from all parts; the list of skipped images is made once."""
    import cv2
    import numpy as np

    names = sorted(os.listdir(tmp_path / "in"))
    colors = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "in" / names[29]), colors)
    (tmp_path / "in" / names[2]).write_bytes(b"GIF8")
    own += ["--skip_bad", "--val_fraction", 0.2]
    for number in (1, 2):
        assert convert(*own, "--job", f"{number}/2").code == 0
        list_of_skipped = tmp_path / "d" / HIDDEN / "survey.json"
        if number == 1:
            made = list_of_skipped.stat().st_mtime_ns
    assert list_of_skipped.stat().st_mtime_ns == made
    for folder in ("d", "d_val"):
        assert ofrecord("finish", tmp_path / folder).code == 0
    assert as_one_run(tmp_path, *own) == snapshot(tmp_path / "d")
    assert snapshot(tmp_path / "whole_val") == snapshot(tmp_path / "d_val")
    assert read_manifest(tmp_path / "d")["channels"] == 3


@pytest.mark.parametrize(
    "more, text",
    [
        (["--job", "0/3"], "--job: it should be K/N"),
        (["--job", "4/3"], "--job: it should be K/N"),
        (["--job", "1/7"], "there are only 6 parts (--part_num)"),
        (["--job", "1/3", "--fresh"], "--job and --fresh"),
        (["--job", "1/3", "--dry_run"], "--job and --dry_run"),
    ],
)
def test_bad_jobs(own, tmp_path, more, text):
    assert_one_error(convert(*own, *more), text)
    assert not (tmp_path / "d").exists()


def test_jobs_of_two_plans_are_refused(own, tmp_path):
    assert convert(*own, "--job", "1/3").code == 0
    before = snapshot(tmp_path / "d")
    result = convert(*own, "--job", "2/3", "--size", "20x20")
    assert_one_error(
        result,
        f"{HIDDEN} is of another conversion, as these differ: size",
        "remove it",
        started=True,
    )
    flip_middle(tmp_path / "d" / HIDDEN / "plan.json")
    assert_one_error(convert(*own, "--job", "2/3"), "plan.json is damaged", started=True)
    flip_middle(tmp_path / "d" / HIDDEN / "plan.json")
    assert snapshot(tmp_path / "d") == before


def test_a_job_with_invalid_images_keeps_the_others_parts(own, tmp_path):
    bad = tmp_path / "in" / sorted(os.listdir(tmp_path / "in"))[0]
    good = bad.read_bytes()
    bad.write_bytes(b"")
    assert_one_error(convert(*own, "--job", "1/3"), "the file is empty", started=True)
    assert convert(*own, "--job", "2/3").code == 0
    assert convert(*own, "--job", "3/3").code == 0
    assert_one_error(ofrecord("finish", tmp_path / "d"), "1 of 6 parts are not finished (part-0)")
    bad.write_bytes(good)
    assert convert(*own, "--job", "1/3").code == 0
    assert ofrecord("finish", tmp_path / "d").code == 0
    assert snapshot(tmp_path / "d") == as_one_run(tmp_path, *own)


def test_nothing_to_finish(own, tmp_path):
    text = "there is nothing to finish"
    assert_one_error(ofrecord("finish", tmp_path / "d"), text)
    assert convert(*own).code == 0
    before = snapshot(tmp_path / "d")
    assert_one_error(ofrecord("finish", tmp_path / "d"), text)
    (tmp_path / "d" / HIDDEN).mkdir()
    assert_one_error(ofrecord("finish", tmp_path / "d"), "no whole plan.json")
    assert snapshot(tmp_path / "d") == before


def test_copies_that_finish_finds(own, tmp_path):
    """It has no names and labels: `check` names the images."""
    names = sorted(os.listdir(tmp_path / "in"))
    shutil.copy(tmp_path / "in" / names[0], tmp_path / "in" / names[1])
    assert convert(*own, "--job", "1/1").code == 0
    result = ofrecord("finish", tmp_path / "d")
    assert "1 image is a copy of another\n" in result.err
    assert f"python -m ofrecord check {tmp_path / 'd'}` names" in result.err


@pytest.mark.parametrize("action", ["check", "show", "export", "index"])
def test_other_commands_say_that_it_is_unfinished(own, tmp_path, action):
    interrupt(*own)
    more = [tmp_path / "out"] if action == "export" else []
    result = ofrecord(action, tmp_path / "d", *more)
    assert_one_error(result, "interrupted or is still running", "python -m ofrecord finish")


def resealed(path, change):
    """Change a JSON file as a stranger would who knows how its checksum is made."""
    from ofrecord.manifest import digest_of

    fields = json.loads(path.read_text())
    del fields["sha256"]
    change(fields)
    path.write_text(json.dumps({**fields, "sha256": digest_of(fields)}))


STRANGE = {
    "a damaged digest": lambda f: f["statistics"].update(digests=""),
    "no pixels": lambda f: f["statistics"].update(pixels=[[[], [], [], []]] * 3),
    "half a row": lambda f: f["statistics"]["pixels"][0].__setitem__(0, [1] * 100),
    "another size": lambda f: f["statistics"].update(sizes=[[0, 28]]),
}
STRANGE_PLANS = {
    "no labels": lambda f: f["manifest_fields"].update(label_counts={}),
    "no format": lambda f: f["manifest_fields"].pop("image_format"),
    "an unknown field": lambda f: f["manifest_fields"].update(x=1),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_files_of_a_stranger(own, tmp_path, change):
    for number in (1, 2):
        assert convert(*own, "--job", f"{number}/2").code == 0
    for path in (tmp_path / "d" / HIDDEN).glob("part-*.json"):
        resealed(path, change)
    before = snapshot(tmp_path / "d")
    assert_one_error(ofrecord("finish", tmp_path / "d"), "holds no dataset of img2ofrecord.py")
    assert_one_error(convert(*own), "holds no dataset of img2ofrecord.py", started=True)
    assert snapshot(tmp_path / "d") == before


@pytest.mark.parametrize("change", STRANGE_PLANS.values(), ids=STRANGE_PLANS)
def test_plan_of_a_stranger(own, tmp_path, change):
    assert convert(*own, "--job", "1/1").code == 0
    plan = tmp_path / "d" / HIDDEN / "plan.json"
    resealed(plan, change)
    for path in (tmp_path / "d" / HIDDEN).glob("part-*.json"):
        resealed(path, lambda fields: fields.update(plan=json.loads(plan.read_text())["sha256"]))
    assert_one_error(ofrecord("finish", tmp_path / "d"), "holds no dataset of img2ofrecord.py")


def test_a_part_name_of_a_stranger_leads_nowhere(own, tmp_path):
    assert convert(*own, "--job", "1/1").code == 0
    path = tmp_path / "d" / HIDDEN / "part-0.json"
    resealed(path, lambda fields: fields["part"].update(file="../../labels.txt"))
    assert_one_error(ofrecord("finish", tmp_path / "d"), "1 of 6 parts are not finished (part-0)")


def docs_block(text):
    """The block of docs/datasets.md that has this text."""
    page = (PROJECT / "docs" / "datasets.md").read_text(encoding="utf-8")
    (block,) = (each for each in re.findall("```text\n(.*?)```", page, re.S) if text in each)
    return block.replace("img2ofrecord.py", str(PROJECT / "img2ofrecord.py"))


def run_block(block, folder, **environment):
    """Run lines of the docs in a folder where the tutorial's images are."""
    if not (folder / "data").exists():
        (folder / "data").symlink_to(PROJECT / "data")
    path = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"
    environment = {**ENVIRONMENT, "PATH": path, **environment}
    subprocess.run(["bash", "-ec", block], cwd=folder, env=environment, check=True, timeout=300)


def check_jobs_of_the_docs(folder):
    assert ofrecord("finish", folder / "dataset_jobs").code == 0
    assert convert("--part_num", 16, "--save_dir", folder / "whole").code == 0
    assert snapshot(folder / "dataset_jobs") == snapshot(folder / "whole")


@pytest.mark.slow
def test_the_slurm_script_of_the_docs(tmp_path):
    block = docs_block("#SBATCH")
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", block).groups())
    for number in range(first, last + 1):
        run_block(block, tmp_path, SLURM_ARRAY_TASK_ID=str(number))
    check_jobs_of_the_docs(tmp_path)


@pytest.mark.skipif(not shutil.which("parallel"), reason="GNU parallel is not installed")
def test_the_gnu_parallel_line_of_the_docs(tmp_path):
    run_block(docs_block("parallel").replace("host1,host2", ":"), tmp_path)
    check_jobs_of_the_docs(tmp_path)


def test_finish_killed_at_each_step(own, tmp_path):
    jobs, folder = tmp_path / "jobs", tmp_path / "d"
    assert convert(*own, "--save_dir", jobs, "--job", "1/1").code == 0
    whole = as_one_run(tmp_path, *own)

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(jobs, folder)

    for code in stop_at_each_step(prepare, lambda: ofrecord("finish", folder).code):
        assert code == KILLED
        if (folder / "dataset.json").exists():
            assert {n: data for n, data in snapshot(folder).items() if n[0] != "."} == whole
        else:
            assert ofrecord("finish", folder).code == 0
            assert snapshot(folder) == whole


# -- killed at any moment -------------------------------------------------------------


def start(*arguments):
    return start_script("img2ofrecord.py", *arguments, "--progress", "none", start_new_session=True)


def kill_at(seconds, *arguments):
    """Start the converter and kill it, and its workers, after a time; return whether that was before its end."""
    process = start(*arguments)
    time.sleep(seconds)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def check_kills(options, tmp_path, moments):
    """Kill a conversion at random moments, again and again without an end in between, and compare the bytes."""
    arguments = [*options(2000, "--img_format", ".jpg"), "--save_dir", tmp_path / "d"]
    begin = time.perf_counter()
    whole = as_one_run(tmp_path, *arguments, "--workers", 2)
    seconds, rng, killed = time.perf_counter() - begin, random.Random(0), 0
    for _ in range(moments):
        killed += kill_at(0.3 + rng.random() * seconds, *arguments)
        if rng.random() < 0.5:
            assert convert(*arguments).code == 0
            assert snapshot(tmp_path / "d") == whole
    assert convert(*arguments).code == 0
    assert snapshot(tmp_path / "d") == whole
    assert killed > moments // 4


def check_killed_jobs(options, tmp_path, rounds):
    """Three jobs at once, one of which is killed and started again; then they are finished."""
    arguments = [*options(2000, "--img_format", ".jpg"), "--save_dir", tmp_path / "d"]
    whole, rng = as_one_run(tmp_path, *arguments), random.Random(0)
    for _ in range(rounds):
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        others = [start(*arguments, "--job", f"{number}/3", "--workers", 1) for number in (1, 3)]
        kill_at(0.3 + rng.random(), *arguments, "--job", "2/3", "--workers", 1)
        again = start(*arguments, "--job", "2/3", "--workers", 1)
        for process in (*others, again):
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
        assert ofrecord("finish", tmp_path / "d").code == 0
        assert snapshot(tmp_path / "d") == whole


def test_killed_at_some_moments(options, tmp_path):
    check_kills(options, tmp_path, 2)


@pytest.mark.slow
def test_killed_at_fifty_moments(options, tmp_path):
    check_kills(options, tmp_path, 50)


@pytest.mark.slow
def test_killed_jobs_at_fifty_moments(options, tmp_path):
    check_killed_jobs(options, tmp_path, 50)


def test_finish_while_a_job_is_running_is_refused(options, tmp_path):
    arguments = [*options(3000), "--save_dir", tmp_path / "d", "--job", "1/2"]
    process = start_script("img2ofrecord.py", *arguments, "--progress", "lines")
    try:
        for line in process.stdout:
            if "feature saved" in line:  # it cannot end before its lines are read
                break
        assert_one_error(ofrecord("finish", tmp_path / "d"), "another converter")
        assert_one_error(convert(*arguments[:-2]), "another converter", started=True)
    finally:
        process.communicate()
    assert process.returncode == 0


def test_finish_without_a_plan_keeps_the_parts(own, tmp_path):
    for number in (1, 2):
        assert convert(*own, "--job", f"{number}/2").code == 0
    staging = tmp_path / "d" / HIDDEN
    (staging / "plan.json").unlink()
    before = snapshot(staging)
    assert_one_error(ofrecord("finish", tmp_path / "d"), "no whole plan.json")
    assert snapshot(staging) == before


def test_a_part_that_is_a_link_is_not_followed(own, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    assert convert(*own, "--job", "1/2").code == 0
    (tmp_path / "d" / HIDDEN / "part-1").symlink_to(victim)
    assert convert(*own, "--job", "2/2").code == 0
    assert ofrecord("finish", tmp_path / "d").code == 0
    assert victim.read_text() == "precious" and not (tmp_path / "d" / "part-1").is_symlink()


def test_a_hidden_folder_that_is_a_link_is_refused(own, tmp_path):
    assert convert(*own).code == 0
    before = snapshot(tmp_path / "d")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / HIDDEN).symlink_to(tmp_path / "d")
    assert_one_error(ofrecord("finish", tmp_path / "e"), "is a link")
    assert snapshot(tmp_path / "d") == before
