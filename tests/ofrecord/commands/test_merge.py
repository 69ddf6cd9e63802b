"""``python -m ofrecord merge``: the records as they were, or one line and nothing written."""

import shutil

import cv2
import numpy as np
import pytest
from damage import cut, flip, ofrecord, rewrite_manifest
from helpers import assert_one_error, convert, part_files, read_manifest, records, snapshot, visible
from making import make, numbered
from steps import KILLED, stop_at_each_step

from ofrecord.commands import merge
from ofrecord.dataset.images_csv import read_rows


def merged(*arguments):
    """Merge, and check what came of it; the last argument is the new dataset."""
    result = ofrecord("merge", *arguments)
    assert result.code == 0, result
    check = ofrecord("check", arguments[-1])
    assert check.code == 0, check
    return result


def named(folder):
    """{image bytes: class name} of a dataset."""
    names = read_manifest(folder)["class_names"]
    return {image: names[label] for image, label in records(folder)}


def test_resharding_gives_what_converting_gives(converted, tmp_path):
    two, five = tmp_path / "two", tmp_path / "five"
    merged("--part_num", 2, converted, two)
    assert [part["num_records"] for part in read_manifest(two)["parts"]] == [25, 25]
    assert records(two) == records(converted)
    merged("--part_num", 5, two, five)
    assert snapshot(five) == snapshot(converted)
    merged(*[converted] * 21, tmp_path / "many")  # more rows than are written at once


def test_classes_are_joined_by_name(tmp_path):
    one = make(tmp_path / "one", numbered(["cat", "dog"]))
    two = make(tmp_path / "two", numbered(["ant", "dog", "eel"], start=20))
    result = merged(one, two, tmp_path / "all")
    assert f"{two}: labels renumbered: ant 0 → 2, eel 2 → 3" in result.err, result
    manifest = read_manifest(tmp_path / "all")
    assert manifest["class_names"] == ["cat", "dog", "ant", "eel"]
    assert manifest["label_counts"] == {"0": 6, "1": 12, "2": 6, "3": 6}
    assert named(tmp_path / "all") == {**named(one), **named(two)}
    assert len(manifest["parts"]) == 10 and manifest["num_records"] == 30


def test_names_of_images_are_kept_and_told_apart(tmp_path):
    one = make(tmp_path / "one", {"cat": {"1.png": 1, "2.png": 2}, "dog": {"3.png": 3}}, part_num=1)
    two = make(tmp_path / "x/one", {"cat": {"1.png": 11}, "eel": {"2.png": 12}}, part_num=1)
    three = make(tmp_path / "three", {"cat": {"2.png": 22}}, part_num=1)
    merged("--part_num", 2, one, two, three, tmp_path / "all")
    assert [row[:4] for row in read_rows(tmp_path / "all")] == [
        *(("part-0", 0, "one_0/cat/1.png", 0), ("part-0", 1, "one_0/cat/2.png", 0)),
        *(("part-0", 2, "dog/3.png", 1), ("part-1", 0, "one_1/cat/1.png", 0)),
        *(("part-1", 1, "eel/2.png", 2), ("part-1", 2, "three/cat/2.png", 0)),
    ]
    hidden = make(tmp_path / "hidden", {"cat": {"7.png": 7}}, part_num=1, anonymous="true")
    merged("--part_num", 1, hidden, three, tmp_path / "more")
    assert [row.image for row in read_rows(tmp_path / "more")] == ["", "cat/2.png"]


def test_statistics_are_those_of_all_images(tmp_path):
    """Exact, also across the blocks in which the pixels of a large image are counted."""
    size, folders = (1100, 960), [tmp_path / name for name in "abc"]
    for start, folder in enumerate(folders):
        make(folder, numbered([folder.name], 2, 10 * start), size, part_num=1)
    merged(*folders, tmp_path / "all")
    images, manifest = records(tmp_path / "all"), read_manifest(tmp_path / "all")
    pixels = np.stack([cv2.imdecode(np.frombuffer(image, np.uint8), 1) for image, _ in images])
    pixels = pixels[..., ::-1]  # R, G, B
    counts = [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)]
    np.testing.assert_array_equal(manifest["histogram"], counts)
    np.testing.assert_allclose(manifest["mean"], np.mean(pixels, (0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(manifest["std"], np.std(pixels, (0, 1, 2)), atol=1e-5)
    # Where one of them was measured by a sample, by the number of its images.
    dark = [[size[0] * size[1] * (level == 10) for level in range(256)]] * 3
    rewrite_manifest(folders[0], histogram=dark, num_measured=1)
    merged(*folders, tmp_path / "sampled")
    sampled, others = read_manifest(tmp_path / "sampled"), np.mean(pixels[2:], (0, 1, 2))
    np.testing.assert_allclose(sampled["mean"], (10 + 2 * others) / 3, atol=1e-5)
    assert sampled["num_measured"] == 5


def test_shuffled_by_seed(converted, tmp_path):
    orders, names = [], {row.sha256: row.image for row in read_rows(converted)}
    for name, options in (("a", []), ("b", ["--seed", 0]), ("c", ["--seed", 1])):
        merged("--shuffle", *options, "--part_num", 3, converted, tmp_path / name)
        assert sorted(records(tmp_path / name)) == sorted(records(converted))
        assert all(names[row.sha256] == row.image for row in read_rows(tmp_path / name))
        orders.append(records(tmp_path / name))
    assert orders[0] == orders[1] != orders[2] and records(converted) not in orders


def test_splits_that_are_merged(tmp_path):
    for name, start in (("a", 0), ("b", 20)):
        files = numbered(["cat", "dog"], 4 + start, start)
        make(tmp_path / name, files, val_fraction=0.5, part_num=2)
    make(tmp_path / "c", numbered(["cat", "dog"], start=700))
    ids = {name: read_manifest(tmp_path / name)["split_id"] for name in ("a", "a_val", "b", "c")}
    assert ids["a"] == ids["a_val"] != ids["b"] and ids["c"] is None
    for names, wanted in (("a c", ids["a"]), ("a b", None), ("a a_val", ids["a"])):
        target = tmp_path / names.replace(" ", "-")
        merged(*(tmp_path / name for name in names.split()), target)
        assert read_manifest(target)["split_id"] == wanted


# -- what is refused --------------------------------------------------------------------------

UNLIKE = {
    "channels 3 and 1": {"color": False},
    "image format PNG and BMP": {"img_format": ".bmp"},
    "label feature labels and class": {"label_feature": "class"},
}


@pytest.mark.parametrize("text", UNLIKE)
def test_what_does_not_fit(tmp_path, text):
    one = make(tmp_path / "one", numbered(["cat"]))
    two = make(tmp_path / "two", numbered(["cat"], start=50), **UNLIKE[text])
    before = snapshot(tmp_path)
    result = ofrecord("merge", one, two, tmp_path / "all")
    assert_one_error(result, f"{one} and {two} do not fit together: {text}")
    assert snapshot(tmp_path) == before


def test_bad_options(converted, dataset, tmp_path):
    new, copy = tmp_path / "x", shutil.copytree(converted, tmp_path / "copy")
    rewrite_manifest(dataset, class_names=list("abcdefghij"))
    for arguments, text in (
        ([converted, new, "--part_num", 51], "--part_num 51: it should be from 1 to 50"),
        ([converted, new, "--seed", 1], "--seed is for --shuffle"),
        ([converted, copy], f"{copy} is a dataset already"),
        ([converted, dataset, new], "classes without names and with names (--classes)"),
    ):
        assert_one_error(ofrecord("merge", *arguments), text)
    assert not new.exists()


FULL = {"merge": "is not empty and contains no", "export": "exists: name a new folder"}


@pytest.mark.parametrize("action", FULL)
def test_bad_folders(dataset, tmp_path, action):
    before = snapshot(dataset)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for target, text in (("full", FULL[action]), ("full/mine/x", "mine"), ("dataset", "dataset")):
        assert_one_error(ofrecord(action, dataset, tmp_path / target), text)
    flip(part_files(dataset)[3], 100)
    assert_one_error(ofrecord(action, dataset, tmp_path / "x"), f"{part_files(dataset)[3]} was ")
    flip(part_files(dataset)[3], 100)
    assert snapshot(dataset) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "full"]


def test_parts_of_a_conversion_are_kept(converted, tmp_path):
    assert convert("--save_dir", tmp_path / "d", "--job", "1/2").code == 0
    before = snapshot(tmp_path)
    text = "has 3 finished parts of a conversion that was stopped: finish it"
    assert_one_error(ofrecord("merge", converted, tmp_path / "d"), text)
    assert snapshot(tmp_path) == before


def test_records_are_counted(dataset, tmp_path):
    parts = [{**part, "num_records": 8} for part in read_manifest(dataset)["parts"]]
    counts = {str(label): 4 for label in range(10)}
    rewrite_manifest(dataset, parts=parts, num_records=40, label_counts=counts)
    text = "part-0, record 9: it is the last one, and dataset.json says that there are 8"
    assert_one_error(ofrecord("merge", dataset, tmp_path / "d"), text)
    assert not (tmp_path / "d").exists()


def test_a_part_that_becomes_shorter_is_an_error(dataset, tmp_path, monkeypatch):
    """Not a loop without an end."""
    find_records = merge.find_records

    def find_then_cut(*arguments):
        found = find_records(*arguments)
        cut(dataset / "part-0", 1000)
        return found

    monkeypatch.setattr(merge, "find_records", find_then_cut)
    result = ofrecord("merge", dataset, tmp_path / "new")
    assert_one_error(result, "part-0 became shorter while it was read")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("action", FULL)
def test_killed_at_each_step(tmp_path, action):
    """There is nothing then, or all of it; the same command does it the next time."""
    source, target = make(tmp_path / "d", numbered("a", 2), part_num=1), tmp_path / "target"
    done = target / "dataset.json" if action == "merge" else target
    states = []

    def act():
        return ofrecord(action, source, target).code

    assert act() == 0
    whole = snapshot(target)
    for code in stop_at_each_step(lambda: shutil.rmtree(target, ignore_errors=True), act):
        assert code == KILLED
        states.append(done.exists())
        assert states[-1] or act() == 0
        assert visible(target) == whole
    assert states == sorted(states) and set(states) == {False, True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "d-images", "target"]
