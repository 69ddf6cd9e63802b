"""Merging, resharding and exporting: the records as they were, or one line and nothing written."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from damage import cut, flip, ofrecord, rewrite_manifest
from helpers import (
    IMAGES,
    PROJECT,
    assert_one_error,
    call,
    convert,
    part_files,
    read_manifest,
    records,
    snapshot,
    train,
)

from ofrecord.manifest import load_manifest


def make(folder, classes, number=6, size=(8, 8), color=True, **options):
    """A dataset of ``number`` pictures of each class, by name; every picture is different."""
    seed = sum(map(ord, "".join(classes) + folder.name))
    rng = np.random.default_rng(seed)
    images = folder.parent / f"{folder.name}-images"
    for name in classes:
        (images / name).mkdir(parents=True)
        for index in range(number):
            picture = rng.integers(0, 256, (*size, 3) if color else size, dtype=np.uint8)
            cv2.imwrite(str(images / name / f"{index}.png"), picture)
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    result = convert("--image_root", images, "--class_folders", "--save_dir", folder, *arguments)
    assert result.code == 0, result
    return folder


def merged(*folders):
    result = ofrecord("merge", *folders)
    assert result.code == 0, result
    assert ofrecord("check", folders[-1] if str(folders[-1])[0] != "-" else folders[-3]).code == 0
    return result


def named(folder):
    """{image bytes: class name} of a dataset."""
    names = read_manifest(folder)["class_names"]
    return {image: names[label] for image, label in records(folder)}


def test_resharding_gives_what_converting_gives(converted, tmp_path):
    two, five = tmp_path / "two", tmp_path / "five"
    assert ofrecord("merge", converted, two, "--part_num", 2).code == 0
    assert [part["num_records"] for part in read_manifest(two)["parts"]] == [25, 25]
    assert records(two) == records(converted)
    assert ofrecord("merge", two, five, "--part_num", 5).code == 0
    assert snapshot(five) == snapshot(converted)


def test_classes_are_joined_by_name(tmp_path):
    one = make(tmp_path / "one", ["cat", "dog"])
    two = make(tmp_path / "two", ["ant", "dog", "eel"])
    result = merged(one, two, tmp_path / "all")
    assert f"{two}: labels renumbered: ant 0 → 2, eel 2 → 3" in result.err, result
    manifest = read_manifest(tmp_path / "all")
    assert manifest["class_names"] == ["cat", "dog", "ant", "eel"]
    assert manifest["label_counts"] == {"0": 6, "1": 12, "2": 6, "3": 6}
    assert named(tmp_path / "all") == {**named(one), **named(two)}
    assert len(manifest["parts"]) == 10 and manifest["num_records"] == 30


def test_statistics_are_those_of_all_images(tmp_path):
    folders = [make(tmp_path / name, [name]) for name in ("a", "b", "c")]
    merged(*folders, tmp_path / "all")
    manifest = read_manifest(tmp_path / "all")
    pixels = np.stack(
        [cv2.imdecode(np.frombuffer(each, np.uint8), 1) for each, _ in records(tmp_path / "all")]
    )
    np.testing.assert_allclose(manifest["mean"], pixels.mean((0, 1, 2))[::-1], atol=1e-5)
    np.testing.assert_allclose(manifest["std"], pixels.std((0, 1, 2))[::-1], atol=1e-5)
    # Where one of them was measured by a sample, by the number of its images.
    for name, number in (("a", 3), ("b", 6), ("c", 6)):
        counts = np.array(read_manifest(tmp_path / name)["histogram"]) // (6 // number)
        rewrite_manifest(tmp_path / name, histogram=counts.tolist(), num_measured=number)
    merged(*folders, tmp_path / "sampled")
    sampled = read_manifest(tmp_path / "sampled")
    assert sampled["num_measured"] == 15
    np.testing.assert_allclose(sampled["mean"], manifest["mean"], atol=0.5)
    np.testing.assert_allclose(sampled["std"], manifest["std"], atol=0.5)


def test_shuffled_by_seed(converted, tmp_path):
    orders = []
    for name, options in (("a", []), ("b", ["--seed", 0]), ("c", ["--seed", 1])):
        assert ofrecord("merge", converted, tmp_path / name, "--shuffle", *options).code == 0
        assert sorted(records(tmp_path / name)) == sorted(records(converted))
        orders.append(records(tmp_path / name))
    assert orders[0] == orders[1] != orders[2] and records(converted) not in orders


@pytest.mark.parametrize(
    "options, text",
    [
        ({"color": False}, "their images are colour and gray"),
        ({"size": (9, 8)}, "their heights are 8 and 9"),
        ({"img_format": ".bmp"}, "their images are .png and .bmp"),
        ({"background": "black"}, "their backgrounds of transparent images are white and black"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, text):
    one, two = make(tmp_path / "one", ["cat"]), make(tmp_path / "two", ["cat"], **options)
    before = snapshot(tmp_path)
    assert_one_error(ofrecord("merge", one, two, tmp_path / "all"), f"{one} and {two}", text)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("action", ["merge", "export"])
def test_bad_folders(dataset, tmp_path, action):
    before = snapshot(dataset)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    assert_one_error(ofrecord(action, dataset, full), f"{full} ", "empty")
    assert_one_error(ofrecord(action, tmp_path / "none", tmp_path / "x"), "no dataset")
    assert_one_error(
        ofrecord(action, dataset, dataset), str(dataset) if action == "export" else "named twice"
    )
    assert_one_error(ofrecord(action, dataset, full / "mine" / "x"), "mine")
    flip(part_files(dataset)[3], 100)
    assert_one_error(ofrecord(action, dataset, tmp_path / "x"), f"{part_files(dataset)[3]} was ")
    flip(part_files(dataset)[3], 100)
    assert snapshot(dataset) == before and [path.name for path in full.iterdir()] == ["mine"]
    assert not (tmp_path / "x").exists()


def test_bad_options(converted, tmp_path):
    for options, text in (
        (["--part_num", 51], "there are only 50 records"),
        (["--part_num", 0], "--part_num 0"),
        (["--seed", 1], "--seed is for --shuffle"),
    ):
        assert_one_error(ofrecord("merge", converted, tmp_path / "x", *options), text)
    copy = shutil.copytree(converted, tmp_path / "copy")
    assert_one_error(ofrecord("merge", converted, copy, tmp_path / "x"), "are the same dataset")
    assert_one_error(ofrecord("merge", converted, copy), f"{copy} is a dataset already")
    assert not (tmp_path / "x").exists()


def test_a_merged_dataset_remembers_its_splits(tmp_path):
    """Neither side of a split may be evaluated on by what was trained on both."""
    for name, number in (("a", 4), ("b", 6)):
        make(tmp_path / name, ["cat", "dog"], number, val_fraction=0.5, part_num=2)
    merged(tmp_path / "a", tmp_path / "b", tmp_path / "both")
    ids = [read_manifest(tmp_path / name)["split_id"] for name in "ab"]
    assert read_manifest(tmp_path / "both")["split_ids"] == sorted(ids)
    options = ["--steps", 1, "--batch_size", 2, "--eval_dataset_dir", tmp_path / "a_val"]
    assert train(tmp_path / "both", *options).code == 0
    result = ofrecord("merge", tmp_path / "a", tmp_path / "a_val", tmp_path / "whole")
    assert "both sides of a split are merged" in result.err, result
    refused = train(tmp_path / "whole", *options)
    assert_one_error(refused, "come from different splits")


# -- export ------------------------------------------------------------------------------


def test_exported_images_make_the_same_dataset(tmp_path):
    dataset = make(tmp_path / "one", ["cat", "dog", "eel"])
    result = ofrecord("export", dataset, tmp_path / "flat", "--flat")
    assert result.out == f"{tmp_path / 'flat'}: 18 images\n", result
    labels = tmp_path / "flat" / "labels.csv"
    options = ["--image_root", tmp_path / "flat", "--label_dir", labels]
    assert convert(*options, "--save_dir", tmp_path / "again").code == 0
    assert snapshot(tmp_path / "again") == snapshot(dataset)
    assert (tmp_path / "flat" / "classes.txt").read_text() == "cat\ndog\neel\n"

    assert ofrecord("export", dataset, tmp_path / "folders").code == 0
    options = ["--image_root", tmp_path / "folders", "--class_folders"]
    assert convert(*options, "--save_dir", tmp_path / "third").code == 0
    assert sorted(records(tmp_path / "third")) == sorted(records(dataset))


def test_exported_bytes_are_those_of_the_files(converted, tmp_path):
    assert ofrecord("export", converted, tmp_path / "x").code == 0
    found = {path.read_bytes(): path.parent.name for path in tmp_path.glob("x/*/*")}
    assert found == {path.read_bytes(): path.stem[-1] for path in IMAGES.iterdir()}


def test_class_names_that_are_no_folder_names(dataset, tmp_path):
    names = ["../up", "..", ".", "a/b", "a_b", "same", "x" * 300, "中文", " ", "nul\x01"]
    rewrite_manifest(dataset, class_names=names)
    assert ofrecord("export", dataset, tmp_path / "out" / "x").code == 0
    assert [path.name for path in tmp_path.joinpath("out").iterdir()] == ["x"]
    folders = [path for path in (tmp_path / "out" / "x").iterdir() if path.is_dir()]
    assert len(folders) == 10 and len(list(tmp_path.glob("out/x/*/*.png"))) == 50


@pytest.mark.slow
@pytest.mark.parametrize("action", ["merge", "export"])
def test_killed_at_any_moment(converted, tmp_path, action):
    """There is nothing then, or no finished dataset; the same command does it the next time."""
    big, seconds = converted, []
    for number in range(3):  # 6,250 records
        copies = []
        for index in range(5):
            copies.append(shutil.copytree(big, tmp_path / f"{number}-{index}"))
            rewrite_manifest(copies[-1], background=f"#{number}{index}0000")
        for copy in copies:
            rewrite_manifest(copy, background="white", skipped=[{"file": copy.name, "reason": "x"}])
        big = tmp_path / f"big{number}"
        merged(*copies, big)
    rng, target = np.random.default_rng(0), tmp_path / "target"
    for _ in range(20):
        start = time.monotonic()
        command = [sys.executable, "-m", "ofrecord", action, big, target]
        process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL)
        if seconds:
            time.sleep(rng.uniform(0.1, max(seconds)))
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        assert seconds or code == 0
        seconds.append(time.monotonic() - start)
        done = target / "dataset.json" if action == "merge" else target
        if done.exists():
            if action == "merge":
                assert ofrecord("check", target).code == 0
            assert action == "merge" or len(list(target.glob("*/*.png"))) == 6250
            shutil.rmtree(target)
    assert ofrecord(action, big, target).code == 0
    assert json.dumps(sorted(path.name for path in tmp_path.glob(".*"))) == "[]"


@pytest.mark.parametrize("action", ["merge", "export", "check", "finish", "show", "index"])
def test_an_empty_name_is_no_folder(converted, tmp_path, action):
    """As of a shell's variable that is not set: not the working folder."""
    (tmp_path / "part-0").write_text("mine")
    more = [converted] if action in ("merge", "export") else []
    result = call("ofrecord.__main__", action, *more, "", cwd=tmp_path)
    assert_one_error(result, "an argument is empty")
    assert_one_error(call("img2ofrecord", "--save_dir", "", cwd=tmp_path), "save_dir")
    assert snapshot(tmp_path) == {"part-0": b"mine"}


def test_the_sheet_of_the_working_folder_lies_beside_it(dataset):
    result = call("ofrecord.__main__", "show", ".", cwd=dataset)
    assert result.code == 0 and result.out.endswith("contact sheet: ../dataset_sheet.png\n")
    assert (dataset.parent / "dataset_sheet.png").exists()


def test_a_source_that_was_replaced_is_read_again(tmp_path):
    """Files of an earlier merge in the same process are not kept open."""
    for number in range(2):
        options = ["--shuffle", "--seed", number, "--save_dir", tmp_path / "d"]
        assert convert(*options).code == 0
        assert ofrecord("merge", tmp_path / "d", tmp_path / f"merged{number}").code == 0
        assert records(tmp_path / f"merged{number}") == records(tmp_path / "d")


def test_a_part_that_becomes_shorter_is_an_error(dataset):
    """Not a loop without an end."""
    from ofrecord.copying import Run, blocks, find_records, opened
    from ofrecord.dataset import open_dataset
    from runtime.cli import InputError

    source = find_records([open_dataset(str(dataset))])[0]
    cut(dataset / "part-0", 1000)
    try:
        with pytest.raises(InputError, match="part-0 became shorter while it was read"):
            list(blocks(Run(source, 0, 10)))
    finally:
        opened.cache_clear()


# -- found by trying ----------------------------------------------------------------------


def test_both_sides_of_a_split_are_remembered(tmp_path):
    images = tmp_path / "images"
    rng = np.random.default_rng(0)
    for index in range(20):
        (images / str(index % 2)).mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (28, 28), dtype=np.uint8)
        cv2.imwrite(str(images / str(index % 2) / f"{index}.png"), picture)
    options = ["--val_fraction", 0.3, "--test_fraction", 0.3, "--part_num", 2]
    source = ["--image_root", images, "--class_folders", "--save_dir", tmp_path / "d"]
    assert convert(*source, *options).code == 0
    two, three = tmp_path / "two", tmp_path / "three"
    merged(tmp_path / "d", tmp_path / "d_val", two)
    merged(two, tmp_path / "d_test", three)
    for folder in (two, three):
        evaluation = ["--eval_dataset_dir", tmp_path / "d_val", "--batch_size", 4, "--steps", 1]
        assert_one_error(train(folder, *evaluation), "different splits")


@pytest.mark.parametrize("action", ["merge", "export"])
def test_no_copy_into_the_dataset_itself(dataset, action):
    before = snapshot(dataset)
    for name in ("part-9", ".img2ofrecord", "x/y"):
        assert_one_error(ofrecord(action, dataset, dataset / name), "is inside of")
    assert snapshot(dataset) == before


@pytest.mark.parametrize("number", [8, 12])
def test_a_merge_counts_the_records(dataset, tmp_path, number):
    parts = [{**part, "num_records": number} for part in read_manifest(dataset)["parts"]]
    fields = {"num_records": 5 * number, "label_counts": {"0": 5 * number}}
    rewrite_manifest(dataset, parts=parts, **fields)
    result = ofrecord("merge", dataset, tmp_path / "d")
    assert_one_error(result, f"part-0 has 10, and dataset.json says {number} records")
    assert not (tmp_path / "d").exists()


def test_two_exports_to_one_folder(converted, tmp_path):
    staging = tmp_path / ".out.export"
    staging.mkdir()
    descriptor = os.open(staging, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as an export that is running does
    result = ofrecord("export", converted, tmp_path / "out")
    assert_one_error(result, "another export is writing to")
    os.close(descriptor)
    (staging / "left by a killed one").mkdir()
    assert ofrecord("export", converted, tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 50 and not staging.exists()
    assert not list((tmp_path / "out").glob("left*"))


def test_folders_of_classes_whose_names_collide(tmp_path):
    from ofrecord.export import folder_names

    names = ["a_b_2", "a_b", "a/b", "classes.txt", ".x", "_x"]
    make(tmp_path / "d", ["0", "1"])
    manifest = load_manifest(tmp_path / "d").model_copy(
        update={"class_names": names, "label_counts": {str(n): 1 for n in range(6)}}
    )
    found = list(folder_names(manifest).values())
    assert found == ["a_b_2", "a_b", "a_b_2_2", "classes.txt_3", "_x", "_x_5"]


def test_an_export_does_not_replace_the_working_folder(converted, tmp_path):
    result = call("ofrecord.__main__", "export", converted, ".", cwd=tmp_path)
    assert_one_error(result, "cannot be replaced")


def test_an_export_to_a_link_to_an_empty_folder(converted, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert ofrecord("export", converted, tmp_path / "link", "--flat").code == 0
    assert (tmp_path / "empty" / "labels.csv").exists() and (tmp_path / "link").is_symlink()
