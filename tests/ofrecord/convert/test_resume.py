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


def jobs(*arguments, of=2, but=()):
    """Make the parts of all jobs but some; without the second of two it leaves what an interruption does."""
    for number in set(range(1, of + 1)).difference(but):
        assert convert(*arguments, "--job", f"{number}/{of}").code == 0


def check_continued(result, parts, of=6):
    assert result.code == 0, result
    assert (f"{parts} of {of} parts are there already\n" in result.err) == (parts > 0), result


def image(folder, number):
    """The file of an image."""
    return folder / "in" / sorted(os.listdir(folder / "in"))[number]


# -- continued ------------------------------------------------------------------------


SPLIT = ["--val_fraction", 0.2, "--skip_bad"]


@pytest.mark.parametrize("more, parts", [(["--workers", 2, *JPEG], 3), (SPLIT, 6)])
def test_continued(own, tmp_path, whole, more, parts):
    """With colour in another part than those that are there, and in another dataset; one image is skipped."""
    cv2.imwrite(str(image(tmp_path, 29)), np.full((28, 28, 3), (0, 0, 200), np.uint8))
    if more == SPLIT:
        image(tmp_path, 7).write_bytes(b"\x89PNG")
    jobs(*own, *more, but=[2])
    assert_one_error(ofrecord("check", tmp_path / "d"), "interrupted or is still running")
    check_continued(convert(*own, *more), parts, of=2 * parts)
    assert not (tmp_path / "d" / HIDDEN).exists()
    assert snapshot(tmp_path / "d") == whole(*own, *more)
    assert "already" not in convert(*own, *more).err  # that one had nothing to continue
    if more == SPLIT:
        assert snapshot(tmp_path / "d_val") == snapshot(tmp_path / "whole_val")
        channels = [read_manifest(tmp_path / name)["channels"] for name in ("d", "d_val")]
        assert channels == [3, 3]


def test_what_does_not_matter_may_change(own, tmp_path):
    jobs(*own, but=[2])
    (tmp_path / "in").rename(tmp_path / "moved")
    more = ["--image_root", tmp_path / "moved", "--workers", 2, "--part_name_suffix_length", 5]
    result = convert(*own, *more, "--anonymous", "--skip_bad")
    check_continued(result, 3)
    assert result.out.count("feature saved") == 15 and (tmp_path / "d" / "part-00005").exists()


def part_2(folder, end=""):
    (path,) = (folder / "d" / HIDDEN).glob(f"part-2.{'?' * 64}{end}")
    return path


STAMP = "1 of images whose files differ in their time stamps only (rsync -a keeps them), such as"
CHANGES = {  # what changes; other options; how many of three parts are there still; what is said
    "another quality": (None, ["--quality", 80], 0, "3 that differ in --quality"),
    "two options": (None, ["--size", "9x9", "--color", "color"], 0, "differ in --size, --color"),
    "more parts": (None, ["--part_num", 8], 0, "that differ in images or number of parts"),
    "another order": (None, ["--shuffle"], 0, "3 that differ in images"),
    "a time stamp": (lambda d: os.utime(image(d, 1)), [], 2, f"{STAMP} 00000001_0.png\n"),
    "another image": (
        lambda d: shutil.copy(image(d, 20), image(d, 11)),
        *([], 2, "1 of images whose files were changed, such as 00000011_5.png\n"),
    ),
    "a part cut off": (lambda d: os.truncate(part_2(d), 100), [], 2, ": 1 damaged\n"),
    "its table cut off": (lambda d: os.truncate(part_2(d, ".json"), 9), [], 2, ": 1 damaged\n"),
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


def test_a_file_that_another_job_renames_meanwhile(own, tmp_path):
    """It is listed, and is not there any more when it is looked at: as this link."""
    jobs(*own, but=[2])
    (tmp_path / "d" / HIDDEN / f"new-{'0' * 16}").symlink_to("nothing")
    check_continued(convert(*own, "--job", "1/2"), 3, of=3)


# -- several jobs ---------------------------------------------------------------------


def test_jobs_make_the_bytes_of_one_run(own, tmp_path, whole):
    """Also where two of them make the same parts, and with mistyped last commands before the right one.

    Until then the old dataset stays, and nothing is removed.
    """
    assert convert(*own, "--part_num", 2).code == 0
    old = snapshot(tmp_path / "d")
    for number, parts in ((2, 2), (3, 4), (1, 6)):
        result = convert(*own, "--job", f"{number}/3")
        assert f"\n{parts} of 6 parts; then the same command without --job\n" in result.out, result
        check_continued(convert(*own, "--job", f"{number}/3"), 2, of=2)
    made_by_jobs = snapshot(tmp_path / "d")
    (tmp_path / "bad.txt").write_text((tmp_path / "labels.txt").read_text() + "gone.png 1\n")
    result = convert(*own, "--label_dir", tmp_path / "bad.txt")
    assert result.code == 2 and "6 finished parts will be removed when" in result.err, result
    assert convert(*own, "--label_dir", tmp_path / "bad.txt", "--job", "1/1").code == 2
    assert not list((tmp_path / "d" / HIDDEN).glob("new-*"))  # a job tidies up behind itself
    for more in ["--img_format", ".bmp"], ["--val_fraction", 0.2]:
        assert convert(*own, *more, "--part_num", 99).code == 2
        jobs(*own, *more, but=[2])
    assert made_by_jobs.items() <= snapshot(tmp_path / "d").items()
    assert visible(tmp_path / "d") == old
    result = convert(*own)
    check_continued(result, 6)
    assert "feature saved" not in result.out and snapshot(tmp_path / "d") == whole(*own)
