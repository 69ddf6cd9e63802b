"""Parts by their keys: what is continued, what is made again, what is said of others."""

import os
import shutil

import cv2
import numpy as np
import pytest
from damage import ofrecord
from helpers import assert_one_error, convert, read_manifest, snapshot, visible

HIDDEN = ".img2ofrecord"
JPEG = ["--img_format", ".jpg"]


def staged(folder):
    """The numbers of the parts in the hidden folder of one that is written to."""
    names = [path.name for path in (folder / HIDDEN).glob("part-*.*.json")]
    return sorted(int(name.split(".")[0][5:]) for name in names)


def jobs(*arguments, of=2, but=()):
    """Make the parts of all jobs but some; without the second of two it leaves what an interruption does."""
    for number in set(range(1, of + 1)).difference(but):
        assert convert(*arguments, "--job", f"{number}/{of}").code == 0


def check_continued(result, parts, of=6):
    assert result.code == 0, result
    assert (f"{parts} of {of} parts are there already\n" in result.err) == (parts > 0), result


def made(result):
    """How many images a conversion read."""
    return result.out.count("feature saved")


def image(folder, number):
    """The file of an image."""
    return folder / "in" / sorted(os.listdir(folder / "in"))[number]


# -- continued ------------------------------------------------------------------------


SPLIT = ["--val_fraction", 0.2]


@pytest.mark.parametrize(
    "more", [[], ["--skip_bad"], [*SPLIT, "--skip_bad"], ["--workers", 2], JPEG]
)
def test_continued(own, tmp_path, whole, more):
    """With colour in another part than those that are there, and in another dataset."""
    cv2.imwrite(str(image(tmp_path, 29)), np.full((28, 28, 3), (0, 0, 200), np.uint8))
    if "--skip_bad" in more:
        image(tmp_path, 7).write_bytes(b"\x89PNG")
    jobs(*own, *more, but=[2])
    assert len(staged(tmp_path / "d")) == 3
    result = convert(*own, *more)
    check_continued(result, *([6, 12] if SPLIT[0] in more else [3]))
    assert not (tmp_path / "d" / HIDDEN).exists()
    assert snapshot(tmp_path / "d") == whole(*own, *more)
    assert "already" not in convert(*own, *more).err  # that one had nothing to continue
    if SPLIT[0] in more:
        assert snapshot(tmp_path / "d_val") == snapshot(tmp_path / "whole_val")
        channels = [read_manifest(tmp_path / name)["channels"] for name in ("d", "d_val")]
        assert channels == [3, 3]


def test_what_does_not_matter_may_change(own, tmp_path):
    jobs(*own, but=[2])
    (tmp_path / "in").rename(tmp_path / "moved")
    more = ["--image_root", tmp_path / "moved", "--workers", 2, "--part_name_suffix_length", 5]
    result = convert(*own, *more, "--anonymous", "--skip_bad")
    check_continued(result, 3)
    assert made(result) == 15 and (tmp_path / "d" / "part-00005").exists()


def part_2(folder, end=""):
    (path,) = (folder / "d" / HIDDEN).glob(f"part-2.{'?' * 64}{end}")
    return path


STAMP = "1 of images whose files differ in their time stamps only (rsync -a keeps them), such as"
BESIDE = {
    "cut off": '{"recipe": ',
    "nested": "[" * 100_000,
    "no object": "7",
    "a field": '{"a": 1}',
}
CHANGES = {  # what changes; other options; how many of three parts are there still; what is said
    "another quality": (None, ["--quality", 80], 0, "3 that differ in --quality"),
    "two options": (None, ["--size", "9x9", "--color", "color"], 0, "differ in --size, --color"),
    "more parts": (None, ["--part_num", 8], 0, "that differ in images or number of parts"),
    "another order": (None, ["--shuffle"], 0, "3 that differ in images"),
    "fewer images": (None, ["--limit", 20], 0, "3 that differ in images"),
    "a time stamp": (lambda d: os.utime(image(d, 1)), [], 2, f"{STAMP} 00000001_0.png\n"),
    "a time stamp of 1938": (lambda d: os.utime(image(d, 1), (0, -(10**9))), [], 2, STAMP),
    "a time stamp of 2242": (lambda d: os.utime(image(d, 1), (0, 2**33)), [], 2, STAMP),
    "another image": (
        lambda d: shutil.copy(image(d, 20), image(d, 11)),
        *([], 2, "1 of images whose files were changed, such as 00000011_5.png\n"),
    ),
    "a part cut off": (lambda d: os.truncate(part_2(d), 100), [], 2, ": 1 damaged\n"),
    **{
        f"what is beside a part: {name}": (
            lambda d, text=text: part_2(d, ".json").write_text(text),
            *([], 2, ": 1 damaged\n"),
        )
        for name, text in BESIDE.items()
    },
}


@pytest.mark.parametrize("change, more, parts, text", CHANGES.values(), ids=CHANGES)
def test_parts_that_do_not_fit_are_named_and_replaced(
    own, tmp_path, whole, change, more, parts, text
):
    own += JPEG
    jobs(*own, but=[2])
    if change:
        change(tmp_path)
    result = convert(*own, *more)
    check_continued(result, parts)
    (line,) = (line for line in result.err.splitlines(True) if "finished part" in line)
    assert "will be removed when the dataset is committed: " in line and text in line, result
    assert line.startswith(f"img2ofrecord.py: warning: {3 - parts} finished part"), result
    assert snapshot(tmp_path / "d") == whole(*own, *more)


def test_files_are_looked_at_only_where_there_is_a_part_for_them(own, monkeypatch):
    from ofrecord.convert import resume

    looked, stamps_of = [], resume.stamps_of
    spy = lambda part: looked.append(part.number) or stamps_of(part)  # noqa: E731
    monkeypatch.setattr(resume, "stamps_of", spy)
    jobs(*own, of=6, but=range(2, 7))  # makes part-0
    assert looked == [] and convert(*own).code == 0 and looked == [0]


HALF = "new-0123456789abcdef part-1 images.csv dataset.json.new".split()
EARLIER = "plan.json survey.json part-0 part-0.json part-1".split()  # of an earlier version


@pytest.mark.parametrize("names, left", [(HALF, []), (EARLIER, EARLIER)], ids=["half", "earlier"])
def test_what_no_run_can_continue_with(own, tmp_path, whole, names, left):
    """It is removed by the next run; of an earlier version, once there is a dataset. Links are not followed."""
    (tmp_path / "victim").write_text("precious")
    jobs(*own, but=[2])
    staging = tmp_path / "d" / HIDDEN
    kept = os.listdir(staging)
    for name in names:
        (staging / name).write_text("half")
    (staging / "part-1").unlink()
    (staging / "part-1").symlink_to(tmp_path / "victim")
    result = convert(*own, "--part_num", 99)
    assert_one_error(result, "--part_num 99", started=True)
    assert sorted(os.listdir(staging)) == sorted([*kept, *left]), result
    check_continued(convert(*own), 3)
    assert (tmp_path / "victim").read_text() == "precious"
    assert snapshot(tmp_path / "d") == whole(*own) and not (tmp_path / "d/part-1").is_symlink()


@pytest.mark.parametrize("action", ["check", "show"])
def test_other_commands_say_that_it_is_unfinished(own, tmp_path, action):
    jobs(*own, but=[2])
    assert_one_error(ofrecord(action, tmp_path / "d"), "interrupted or is still running")


# -- several jobs ---------------------------------------------------------------------


def test_jobs_make_the_bytes_of_one_run(own, tmp_path, whole):
    """Also where two of them make the same parts; until they are committed the old dataset stays."""
    assert convert(*own, "--part_num", 2).code == 0
    old = snapshot(tmp_path / "d")
    for number, parts in ((2, 2), (3, 4), (1, 6)):
        result = convert(*own, "--job", f"{number}/3")
        assert f"\n{parts} of 6 parts; then the same command without --job\n" in result.out, result
        check_continued(convert(*own, "--job", f"{number}/3"), 2, of=2)
        assert visible(tmp_path / "d") == old
    result = convert(*own)
    check_continued(result, 6)
    assert made(result) == 0 and snapshot(tmp_path / "d") == whole(*own)


MISTYPED = [["--img_format", ".bmp"], ["--size", "9x9"], ["--part_num", 7], ["--limit", 20]]


@pytest.mark.parametrize("more", [*MISTYPED, ["--val_fraction", 0.2]])
def test_a_mistyped_last_command_removes_nothing(own, tmp_path, whole, more):
    """Not one that ends in an error, nor another job; the right one makes nothing again."""
    jobs(*own)
    made_by_jobs = snapshot(tmp_path / "d")
    (tmp_path / "bad.txt").write_text((tmp_path / "labels.txt").read_text() + "gone.png 1\n")
    result = convert(*own, "--label_dir", tmp_path / "bad.txt", *more[:-2])
    assert result.code == 2 and "6 finished parts will be removed when" in result.err, result
    assert convert(*own, *more, "--part_num", 99).code == 2
    jobs(*own, *more, but=[2])
    assert made_by_jobs.items() <= snapshot(tmp_path / "d").items()
    result = convert(*own)
    check_continued(result, 6)
    assert made(result) == 0 and snapshot(tmp_path / "d") == whole(*own)


@pytest.mark.parametrize("job, kept", [([], [0, 1, 2, 3, 4]), (["--job", "3/3"], [2])])
def test_invalid_images_lose_nothing_that_was_made(own, tmp_path, whole, job, kept):
    bad = image(tmp_path, 29)
    good = bad.read_bytes()
    bad.write_bytes(b"")
    result = convert(*own, *job)
    assert_one_error(result, "the file is empty", started=True)
    noun = f"{len(kept)} finished part{'s'[: len(kept) - 1]}"
    assert f"{noun} kept in {tmp_path / 'd' / HIDDEN} (" in result.err, result
    assert visible(tmp_path / "d") == {} and staged(tmp_path / "d") == kept
    bad.write_bytes(good)
    result = convert(*own)
    check_continued(result, len(kept))
    assert made(result) == 30 - 5 * len(kept) and snapshot(tmp_path / "d") == whole(*own)
