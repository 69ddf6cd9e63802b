"""Which image is in which dataset; copies, contradictions and leaks; images that are skipped."""

import csv
import os
import shutil
from hashlib import sha256

import cv2
import numpy as np
import pytest
from helpers import (
    assert_one_error,
    convert,
    part_files,
    read_manifest,
    records,
    run_script,
    snapshot,
    without_rights,
)

SETS = {"train": "d", "val": "d_val", "test": "d_test"}


def write_images(root, names, first=0):
    """An image for each name; no two are equal."""
    for number, name in enumerate(names, first):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6, 7), number // 200 * 50, np.uint8)
        pixels[0, 0] = number % 200
        (root / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return root


def convert_in(folder, *options, rows=(), code=0):
    """Convert folder/in by its folders, or by a table with these rows, of image, label and split."""
    if rows:
        with (folder / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["image", "label", "split"], *rows])
    labels = ["--label_dir", folder / "labels.csv"] if rows else ["--class_folders"]
    options = [*labels, "--save_dir", folder / "d", "--part_num", 1, *options]
    result = convert("--image_root", folder / "in", *options)
    assert result.code == code, result
    return result


def table(folder):
    """The rows of a dataset's images.csv."""
    with (folder / "images.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names_in(folder):
    """The names of the images in each dataset that is there, sorted, by split."""
    found = {split: folder / name for split, name in SETS.items() if (folder / name).exists()}
    return {split: sorted(row["image"] for row in table(path)) for split, path in found.items()}


def warnings(result):
    lines = result.err.splitlines()
    return [line.split(": warning: ")[1] for line in lines if ": warning: " in line]


# -- images.csv ---------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_record(own, tmp_path):
    os.rename(tmp_path / "in/00000005_2.png", tmp_path / 'in/a, "b"\n5_2.png')
    rows = [(path.name, path.stem[-1]) for path in sorted((tmp_path / "in").iterdir())]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label"], *rows])
    options = ["--label_dir", tmp_path / "labels.csv", "--part_name_suffix_length", 3]
    assert convert(*own, *options, "--size", "20x20").code == 0
    digests = [sha256(image).hexdigest()[:16] for image, _ in records(tmp_path / "d")]
    places = [(f"part-{part:03}", str(record)) for part in range(6) for record in range(5)]
    found = [tuple(row.values()) for row in table(tmp_path / "d")]
    wanted = zip(places, rows, digests, strict=True)
    assert found == [(*place, *row, digest) for place, row, digest in wanted]
    data = (tmp_path / "d/images.csv").read_bytes()
    assert sha256(data).hexdigest() == read_manifest(tmp_path / "d")["images_csv"]
    assert data.startswith(b"part,record,image,label,sha256\npart-000,0,") and b"\r" not in data


def test_names_that_are_not_text_and_names_that_are_left_out(tmp_path):
    write_images(tmp_path / "in", ["a/1.png", "a/\udcff.png", "b/1.png"])
    (tmp_path / "in/a/\udcfe.png").write_bytes(b"")
    convert_in(tmp_path, "--skip_bad")
    assert names_in(tmp_path)["train"] == ["a/1.png", "a/\\xff.png", "b/1.png"]
    assert [each["file"] for each in read_manifest(tmp_path / "d")["skipped"]] == ["a/\\xfe.png"]
    parts = [path.read_bytes() for path in part_files(tmp_path / "d")]
    convert_in(tmp_path, "--skip_bad", "--anonymous")
    assert [path.read_bytes() for path in part_files(tmp_path / "d")] == parts
    assert names_in(tmp_path)["train"] == ["", "", ""]
    for data in snapshot(tmp_path / "d").values():
        assert b".png" not in data.replace(b'"image_format": ".png"', b"")


# -- splits -------------------------------------------------------------------------------


@pytest.fixture
def classes(tmp_path):
    """Sixty images each of two classes."""
    write_images(tmp_path / "in", [f"{c}/{n:02}.png" for c in "ab" for n in range(60)])
    return tmp_path


def test_two_fractions(classes):
    """The split follows from the names and the seed alone; its id from the images, too."""
    options = ["--val_fraction", 0.2, "--test_fraction", 0.1, "--shuffle"]
    assert warnings(convert_in(classes, *options)) == []
    sets = names_in(classes)
    assert {split: len(names) for split, names in sets.items()} == dict(train=84, val=24, test=12)
    assert len(set().union(*sets.values())) == 120
    assert all(sum(name[0] == "a" for name in names) * 2 == len(names) for names in sets.values())
    ids = {read_manifest(classes / name)["split_id"] for name in SETS.values()}
    assert len(ids) == 1 and None not in ids
    write_images(classes / "in", ["a/00.png"], first=999)  # other images of the same names
    convert_in(classes, *options, "--seed", 0, "--img_format", ".jpg")
    assert names_in(classes) == sets and read_manifest(classes / "d")["split_id"] not in ids
    convert_in(classes, *options, "--seed", 1)
    assert names_in(classes) != sets
    said = warnings(convert_in(classes, "--shuffle"))
    for name in ("d_val", "d_test"):
        assert any(line.startswith(f"{classes}/{name}/ is of the split that is") for line in said)
    assert warnings(convert_in(classes, "--shuffle")) == []
    assert read_manifest(classes / "d")["split_id"] is None


def test_small_classes_keep_an_image_for_training(tmp_path):
    names = [f"{c}/{n}.png" for m, c in enumerate("abc", 1) for n in range(m)]
    write_images(tmp_path / "in", names)
    result = convert_in(tmp_path, "--val_fraction", 0.9, "--test_fraction", 0.05)
    sets = {split: [name[0] for name in names] for split, names in names_in(tmp_path).items()}
    assert sets["train"] == ["a", "b", "c"] and set(sets["val"]) == {"b", "c"}
    assert "classes without images in the validation set: a" in result.err, result
    shutil.rmtree(tmp_path / "in/b"), shutil.rmtree(tmp_path / "in/c")
    result = convert_in(tmp_path, "--val_fraction", 0.9, code=2)
    assert_one_error(result, "no image is left for the validation set", started=True)


def test_a_column_names_the_datasets(tmp_path):
    splits = ["train", "val", "train", "test", "train", "validation"] * 2
    rows = [(f"{n:02}.png", n % 3, split) for n, split in enumerate(splits)]
    write_images(tmp_path / "in", [name for name, _, _ in rows])
    convert_in(tmp_path, "--part_num", 3, rows=rows)
    numbers = {"train": [0, 2, 4, 6, 8, 10], "val": [1, 5, 7, 11], "test": [3, 9]}
    assert names_in(tmp_path) == {k: [f"{n:02}.png" for n in v] for k, v in numbers.items()}
    assert [len(part_files(tmp_path / name)) for name in SETS.values()] == [3, 3, 2]


# -- copies -------------------------------------------------------------------------------


def test_copies_contradictions_and_leaks_are_named(tmp_path):
    root = write_images(tmp_path / "in", [f"{n}.png" for n in range(5)])
    for new, old in {"5": "0", "6": "1", "7": "2"}.items():
        shutil.copy(root / f"{old}.png", root / f"{new}.png")
    labels, sets = [0, 0, 0, 1, 1, 0, 1, 0], {"train": [0, 1, 2, 3, 5, 6], "val": [4, 7]}
    rows = [(f"{n}.png", labels[n], split) for split, numbers in sets.items() for n in numbers]
    result = convert_in(tmp_path, rows=rows)
    where = {  # of each image, in one part a dataset
        n: f"{tmp_path}/{SETS[split]}/part-0, record {record} ({n}.png), label {labels[n]}"
        for split, numbers in sets.items()
        for record, n in enumerate(numbers)
    }
    for one, two in (0, 5), (1, 6):
        assert f"\nthe same image: {where[one]} and {where[two]}\n" in result.err, result
    assert f"\n{tmp_path}/d: 2 images are copies of others\n" in result.err, result
    assert warnings(result) == [
        f"the same image: {where[2]} and {where[7]}",
        f"the same image with different labels: {where[1]} and {where[6]}",
    ]
    leak = f"{tmp_path}/d_val/: 1 image is a copy of another in {tmp_path}/d: results on them"
    assert leak in result.err and "remove them from one of the two" in result.err, result


def test_ten_copies_are_named_and_all_are_counted(tmp_path):
    root = write_images(tmp_path / "in", ["a/0.png", "b/0.png"])
    for number in range(1, 31):
        shutil.copy(root / "a/0.png", root / f"a/{number}.png")
    result = convert_in(tmp_path)
    assert result.err.count("\nthe same image: ") == 10, result
    assert f"\n{tmp_path}/d: 30 images are copies of others\n" in result.err, result


# -- images that cannot be stored ---------------------------------------------------------


def test_skipped_images(own, tmp_path):
    """Of 30 images in 6 parts: all of the second part, and one of the third."""
    names = sorted(os.listdir(tmp_path / "in"))
    bad = [*names[5:10], names[12]]
    for name in bad:
        (tmp_path / "in" / name).write_bytes(b"GIF8")
    (tmp_path / "in" / names[9]).unlink()
    (tmp_path / "in" / names[12]).unlink()
    (tmp_path / "in" / names[12]).symlink_to(names[12])
    result = convert(*own)
    assert result.code == 2 and result.err.count(": error: ") == 7, result
    assert (
        "6 invalid images; no dataset was written to" in result.err and "--skip_bad" in result.err
    )
    assert convert(*own, "--skip_bad", "--job", "1/2").code == 0  # parts 0, 2 and 4
    without = convert(*own)  # parts with skipped images do not count
    assert without.code == 2 and "4 of 6 parts are there already" in without.err, without
    assert f"1 without images that --skip_bad skipped, such as {names[12]}" in without.err, without
    result = convert(*own, "--skip_bad")
    manifest = read_manifest(tmp_path / "d")
    assert result.code == 0 and [each["file"] for each in manifest["skipped"]] == bad
    parts = [(each["file"], each["num_records"]) for each in manifest["parts"]]
    assert parts == [("part-0", 5), ("part-1", 4), ("part-2", 5), ("part-3", 5), ("part-4", 5)]
    assert [row["image"] for row in table(tmp_path / "d")] == [n for n in names if n not in bad]
    skipped = [line for line in warnings(result) if line.startswith("skipped")]
    assert len(skipped) == 7 and skipped[-1] == "skipped 6 of 30 images"
    for name, line in zip(bad, skipped, strict=False):
        assert line.startswith(f"skipped: {tmp_path / 'in' / name}: ") and name not in result.out


def test_classes_that_are_left_empty_and_datasets_without_an_image(classes):
    for path in (classes / "in/b").iterdir():
        path.write_bytes(b"no image")
    said = warnings(convert_in(classes, "--skip_bad", "--shuffle"))
    assert "--skip_bad left no image of class b" in said
    assert len(said) == 22  # twenty images, how many, the class
    for path in (classes / "in/a").iterdir():
        path.write_bytes(b"no image")
    before = snapshot(classes / "d")
    result = convert_in(classes, "--skip_bad", code=2)
    assert_one_error(result, "no valid image among the 120 for", started=True)
    assert before.items() <= snapshot(classes / "d").items()


UNREADABLE = {
    "it is not a regular file": lambda path: path.unlink() or os.mkfifo(path),
    "it is larger than 1,073,741,824 bytes": lambda path: os.truncate(path, 2**30 + 1),
    "Permission denied": lambda path: path.chmod(0),
}


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cannot_be_read_is_never_skipped(own, tmp_path, text):
    path = tmp_path / "in/00000002_4.png"
    UNREADABLE[text](path)
    result = run_script("img2ofrecord.py", *own, "--skip_bad", preexec_fn=without_rights)
    assert_one_error(result, f"{path}: cannot be read: {text}", started=True)


# -- what looks wrong ---------------------------------------------------------------------


def test_doubts_about_the_images(tmp_path):
    (tmp_path / "in/a").mkdir(parents=True)
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"in/a/{number}.png"), np.full((6, 7), 3690, np.uint16))
    result = convert_in(tmp_path)
    assert "3 16-bit images reach only 14 of 255" in result.err, result
    assert "all images are of a single class" in result.err, result
    assert f"{tmp_path / 'd'}: all images are the same" in warnings(result)


def test_mean_and_std_of_a_sample_of_jpeg_files(tmp_path, monkeypatch):
    """Of every n-th image; all are looked at."""
    monkeypatch.setattr("ofrecord.convert.parts.SAMPLE", 10)
    rng, root, jpeg = np.random.default_rng(0), tmp_path / "in/a", ["--img_format", ".jpg"]
    root.mkdir(parents=True)
    photos = [rng.integers(0, 40 + 5 * i, (40, 60, 3), dtype=np.uint8) for i in range(43)]
    for index, photo in enumerate(photos):
        cv2.imwrite(str(root / f"{index:02}.jpg"), photo)
    pixels = np.stack([cv2.imread(str(root / f"{i:02}.jpg")) for i in range(0, 43, 4)])
    cv2.imwrite(str(root / "41.png"), photos[41])  # not in the sample, and encoded again
    (root / "41.png").replace(root / "41.jpg")
    result = convert_in(tmp_path, *jpeg)
    assert "mean and standard deviation are those of 11 images" in result.err, result
    assert "42 images stored unchanged; re-encoded: 1 PNG to JPEG" in result.err, result
    manifest = read_manifest(tmp_path / "d")
    counts = [np.bincount(v, minlength=256) for v in pixels.reshape(-1, 3).T[::-1]]
    np.testing.assert_array_equal(manifest["histogram"], counts)
    assert manifest["mean"] == pytest.approx(pixels.mean((0, 1, 2))[::-1], abs=1e-5)
    found = [manifest[name] for name in ("num_measured", "plain_jpeg", "width", "height")]
    assert found == [11, True, 60, 40]
    data = (root / "02.jpg").read_bytes()  # not in the sample
    (root / "02.jpg").write_bytes(data[:400] + bytes(100) + data[500:])
    result = convert_in(tmp_path, *jpeg, code=2)
    assert_one_error(result, "02.jpg: invalid image: ", started=True)
