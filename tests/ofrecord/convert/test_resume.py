"""Parts by their keys: what is continued, what is made again, what is said of others."""

import errno
import os
import shutil

import cv2
import numpy as np
import pytest
from damage import ofrecord
from helpers import assert_one_error, convert, read_manifest, snapshot

HIDDEN = ".img2ofrecord"


def staged(folder):
    """The numbers of the parts in the hidden folder of one that is written to."""
    names = [path.name for path in (folder / HIDDEN).glob("part-*.*.json")]
    return sorted(int(name.split(".")[0][5:]) for name in names)


def visible(folder):
    """The files of a folder without the hidden ones."""
    return {name: data for name, data in snapshot(folder).items() if not name.startswith(".")}


def interrupt(*arguments):
    """Leave half of the parts, those with even numbers, as an interruption does."""
    assert convert(*arguments, "--job", "1/2").code == 0


def check_continued(result, parts, of=6):
    assert result.code == 0, result
    assert f"{parts} of {of} parts are there already\n" in result.err, result


def made(result):
    """How many images a conversion read."""
    return result.out.count("feature saved")


# -- continued ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [[], ["--skip_bad"], ["--val_fraction", 0.2], ["--workers", 2], ["--img_format", ".jpg"]],
)
def test_continued(own, tmp_path, whole, more):
    if "--skip_bad" in more:
        (tmp_path / "in" / sorted(os.listdir(tmp_path / "in"))[7]).write_bytes(b"\x89PNG")
    interrupt(*own, *more)
    assert len(staged(tmp_path / "d")) == 3
    result = convert(*own, *more)
    check_continued(result, *([6, 12] if "--val_fraction" in more else [3]))
    assert not (tmp_path / "d" / HIDDEN).exists()
    assert snapshot(tmp_path / "d") == whole(*own, *more)
    assert "already" not in convert(*own, *more).err  # that one had nothing to continue
    if "--val_fraction" in more:
        assert snapshot(tmp_path / "d_val") == snapshot(tmp_path / "whole_val")


def test_the_old_dataset_stays_until_then(own, tmp_path):
    assert convert(*own, "--part_num", 2).code == 0
    old = snapshot(tmp_path / "d")
    interrupt(*own)
    assert visible(tmp_path / "d") == old
    check_continued(convert(*own), 3)


def test_what_does_not_matter_may_change(own, tmp_path):
    interrupt(*own)
    (tmp_path / "in").rename(tmp_path / "moved")
    more = ["--image_root", tmp_path / "moved", "--workers", 2, "--part_name_suffix_length", 5]
    result = convert(*own, *more, "--anonymous", "--skip_bad")
    check_continued(result, 3)
    assert made(result) == 15 and (tmp_path / "d" / "part-00005").exists()


OTHER_PARTS = {
    "another quality": (["--quality", 80], "that differ in --quality"),
    "two options": (["--size", "20x20", "--color", "color"], "that differ in --size, --color"),
    "another number of parts": (["--part_num", 8], "that differ in images or number of parts"),
    "another order": (["--shuffle"], "that differ in images"),
    "fewer images": (["--limit", 20], "that differ in images"),
}


@pytest.mark.parametrize("more, why", OTHER_PARTS.values(), ids=OTHER_PARTS)
def test_parts_that_do_not_fit_are_named_and_removed_at_the_end(own, tmp_path, whole, more, why):
    own += ["--img_format", ".jpg"]
    interrupt(*own)
    result = convert(*own, *more)
    assert result.code == 0 and "already" not in result.err, result
    (line,) = (line for line in result.err.splitlines() if "removed when" in line)
    assert "3 finished parts will be removed" in line and why in line, result
    assert snapshot(tmp_path / "d") == whole(*own, *more)


def test_parts_that_differ_by_time_stamps_only(own, tmp_path, whole):
    interrupt(*own)
    names = sorted(os.listdir(tmp_path / "in"))
    os.utime(tmp_path / "in" / names[1])
    result = convert(*own)
    check_continued(result, 2)
    assert "1 of images whose files differ in their time stamps only" in result.err, result
    assert f"such as {names[1]}\n" in result.err and "rsync -a" in result.err, result
    assert snapshot(tmp_path / "d") == whole(*own)


def test_the_part_of_a_changed_image_is_made_again(own, tmp_path, whole):
    interrupt(*own)
    names = sorted(os.listdir(tmp_path / "in"))
    shutil.copy(tmp_path / "in" / names[20], tmp_path / "in" / names[11])
    result = convert(*own)
    check_continued(result, 2)
    assert f"1 of images whose files were changed, such as {names[11]}" in result.err, result
    assert snapshot(tmp_path / "d") == whole(*own)


def test_files_are_looked_at_only_where_there_is_a_part_for_them(own, tmp_path, monkeypatch):
    from ofrecord.convert import resume

    looked, stamps_of = [], resume.stamps_of
    spy = lambda part: looked.append(part.number) or stamps_of(part)  # noqa: E731
    monkeypatch.setattr(resume, "stamps_of", spy)
    assert convert(*own, "--job", "1/6").code == 0  # part-0
    assert looked == []
    assert convert(*own, "--quality", 95).code == 2 and looked == []
    assert convert(*own).code == 0
    assert looked == [0]


def part_of(folder, number):
    """The file of a part in a hidden folder, named by its key."""
    (path,) = (path for path in folder.glob(f"part-{number}.*") if path.suffix != ".json")
    return path


DAMAGE = {
    "a part cut off": lambda d: os.truncate(part_of(d, 2), 100),
    "what is beside it cut off": lambda d: os.truncate(next(d.glob("part-2.*.json")), 100),
    "nested": lambda d: next(d.glob("part-2.*.json")).write_text("[" * 100_000),
    "no object": lambda d: next(d.glob("part-2.*.json")).write_text("7"),
    "other fields": lambda d: next(d.glob("part-2.*.json")).write_text('{"a": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_part_is_made_again(own, tmp_path, whole, damage):
    interrupt(*own)
    damage(tmp_path / "d" / HIDDEN)
    result = convert(*own)
    check_continued(result, 2)
    assert ": 1 damaged\n" in result.err, result
    assert snapshot(tmp_path / "d") == whole(*own)


def test_invalid_images_lose_nothing_that_was_made(own, tmp_path, whole):
    bad = tmp_path / "in" / sorted(os.listdir(tmp_path / "in"))[29]
    good = bad.read_bytes()
    bad.write_bytes(b"")
    result = convert(*own)
    assert_one_error(result, "the file is empty", started=True)
    assert f"5 finished parts kept in {tmp_path / 'd' / HIDDEN} (" in result.err, result
    assert visible(tmp_path / "d") == {} and staged(tmp_path / "d") == [0, 1, 2, 3, 4]
    bad.write_bytes(good)
    result = convert(*own)
    check_continued(result, 5)
    assert made(result) == 5 and snapshot(tmp_path / "d") == whole(*own)


def test_what_was_half_written_is_removed_by_the_next_run(own, tmp_path):
    interrupt(*own)
    staging = tmp_path / "d" / HIDDEN
    for name in ("new-0123456789abcdef", "part-1", "images.csv", "dataset.json.new"):
        (staging / name).write_text("half")
    assert_one_error(convert(*own, "--part_num", 99), "--part_num 99", started=True)
    assert len(os.listdir(staging)) == 6 and staged(tmp_path / "d") == [0, 2, 4]


def test_a_link_among_the_parts_is_not_followed(own, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    interrupt(*own)
    (tmp_path / "d" / HIDDEN / "part-1").symlink_to(victim)
    assert convert(*own).code == 0
    assert victim.read_text() == "precious" and not (tmp_path / "d" / "part-1").is_symlink()


@pytest.mark.parametrize("action", ["check", "show"])
def test_other_commands_say_that_it_is_unfinished(own, tmp_path, action):
    interrupt(*own)
    assert_one_error(ofrecord(action, tmp_path / "d"), "interrupted or is still running")


# -- several jobs ---------------------------------------------------------------------


def test_jobs_make_the_bytes_of_one_run(own, tmp_path, whole):
    for number, parts in ((2, 2), (3, 4), (1, 6)):
        result = convert(*own, "--job", f"{number}/3")
        assert f"\n{parts} of 6 parts; then the same command without --job\n" in result.out, result
        assert visible(tmp_path / "d") == {}
    result = convert(*own)
    check_continued(result, 6)
    assert made(result) == 0 and snapshot(tmp_path / "d") == whole(*own)


def test_a_mistyped_last_command_removes_nothing(own, tmp_path, whole):
    """Not one that ends in an error, and not one that is stopped; the right one makes nothing again."""
    for number in (1, 2):
        assert convert(*own, "--job", f"{number}/2", "--img_format", ".jpg").code == 0
    made_by_jobs = snapshot(tmp_path / "d")
    (tmp_path / "bad.txt").write_text((tmp_path / "labels.txt").read_text() + "gone.png 1\n")
    result = convert(*own, "--label_dir", tmp_path / "bad.txt", "--img_format", ".jpg")
    assert result.code == 2 and "6 finished parts will be removed when" in result.err, result
    result = convert(*own, "--img_format", ".bmp", "--limit", 20, "--part_num", 30)
    assert result.code == 2, result
    assert made_by_jobs.items() <= snapshot(tmp_path / "d").items()
    assert convert(*own, "--job", "1/2", "--quality", 50, "--img_format", ".jpg").code == 0
    result = convert(*own, "--img_format", ".jpg")
    check_continued(result, 6)
    assert made(result) == 0 and snapshot(tmp_path / "d") == whole(*own, "--img_format", ".jpg")


def test_two_jobs_that_make_the_same_parts(own, tmp_path, whole):
    for _ in range(2):
        assert convert(*own, "--job", "1/2").code == 0
    check_continued(convert(*own, "--job", "1/2"), 3, of=3)
    assert convert(*own).code == 0 and snapshot(tmp_path / "d") == whole(*own)


def test_jobs_with_colour_in_one_share_and_invalid_images(own, tmp_path, whole):
    names = sorted(os.listdir(tmp_path / "in"))
    colors = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "in" / names[29]), colors)
    (tmp_path / "in" / names[2]).write_bytes(b"GIF8")
    own += ["--skip_bad", "--val_fraction", 0.2]
    for number in (1, 2):
        assert convert(*own, "--job", f"{number}/2").code == 0
    assert convert(*own).code == 0
    assert whole(*own) == snapshot(tmp_path / "d")
    assert snapshot(tmp_path / "whole_val") == snapshot(tmp_path / "d_val")
    for folder in ("d", "d_val"):
        assert read_manifest(tmp_path / folder)["channels"] == 3


@pytest.mark.parametrize("share", ["0/3", "4/3", "1/7", "1", "a/b"])
def test_bad_jobs(own, tmp_path, share):
    text = "there are only 6 parts" if share == "1/7" else "--job: it should be K/N"
    assert_one_error(convert(*own, "--job", share), text)
    assert not (tmp_path / "d").exists()


def test_a_job_with_invalid_images_keeps_its_other_parts(own, tmp_path, whole):
    bad = tmp_path / "in" / sorted(os.listdir(tmp_path / "in"))[0]
    good = bad.read_bytes()
    bad.write_bytes(b"")
    assert_one_error(convert(*own, "--job", "1/3"), "the file is empty", started=True)
    assert staged(tmp_path / "d") == [3]
    bad.write_bytes(good)
    check_continued(convert(*own), 1)
    assert snapshot(tmp_path / "d") == whole(*own)


def test_parts_of_the_version_before(own, tmp_path, whole):
    """Its unfinished conversion and its dataset are replaced; what only looks like them is not."""
    staging = tmp_path / "d" / HIDDEN
    staging.mkdir(parents=True)
    for name in ("plan.json", "survey.json", "part-0", "part-0.json", "part-1"):
        (staging / name).write_text("{}")
    result = convert(*own, "--part_num", 99)
    assert_one_error(result, "--part_num 99", started=True)
    assert "kept in" not in result.err and len(os.listdir(staging)) == 5, result
    result = convert(*own)
    assert result.code == 0 and "finished part" not in result.err, result
    assert snapshot(tmp_path / "d") == whole(*own)


def test_a_job_leaves_a_commit_that_was_killed_to_a_run_without_a_job(own, tmp_path, whole):
    assert convert(*own).code == 0
    (tmp_path / "d" / HIDDEN).mkdir()
    (tmp_path / "d" / "dataset.json").rename(tmp_path / "d" / HIDDEN / "dataset.json")
    before = snapshot(tmp_path / "d")
    result = convert(*own, "--job", "1/2")
    assert_one_error(result, "the same command without --job finishes it", started=True)
    assert snapshot(tmp_path / "d") == before
    result = convert(*own)
    assert "very end is finished" in result.err and snapshot(tmp_path / "d") == whole(*own), result


def test_folders_that_cannot_be_flushed(own, tmp_path, whole, monkeypatch):
    """As on SMB, FUSE and WSL's drives."""
    whole, flush = whole(*own), os.fsync

    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    assert convert(*own).code == 0 and snapshot(tmp_path / "d") == whole
