"""Which image is in which dataset; copies, contradictions and leaks; images that are skipped."""

import csv
import errno
import os
import shutil
from hashlib import sha256

import cv2
import numpy as np
import pytest
from helpers import assert_one_error, convert, part_files, read_manifest, records, snapshot

from ofrecord.dataset.open_dataset import open_dataset

SUFFIXES = {"train": "", "val": "_val", "test": "_test"}


def write_images(root, names, first=0):
    """An image for each name; no two are equal."""
    for number, name in enumerate(names, first):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6, 7), number // 200 * 50, np.uint8)
        pixels[0, 0] = number % 200
        (root / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return root


def convert_in(folder, *options):
    options = ["--image_root", folder / "in", "--save_dir", folder / "d", "--part_num", 1, *options]
    return convert(*options, *([] if "--label_dir" in options else ["--class_folders"]))


def table(folder):
    """The rows of a dataset's images.csv."""
    with (folder / "images.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names_in(folder):
    """The names of the images in each dataset that is there, sorted, by split."""
    return {
        split: sorted(row["image"] for row in table(folder / f"d{end}"))
        for split, end in SUFFIXES.items()
        if (folder / f"d{end}").exists()
    }


def warnings(result):
    return [
        line.split(": warning: ")[1] for line in result.err.splitlines() if ": warning: " in line
    ]


# -- images.csv ---------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_record(own, tmp_path):
    os.rename(tmp_path / "in/00000005_2.png", tmp_path / 'in/a, "b"\n5_2.png')
    rows = [[path.name, path.stem[-1]] for path in sorted((tmp_path / "in").iterdir())]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label"], *rows])
    options = ["--label_dir", tmp_path / "labels.csv", "--part_name_suffix_length", 3]
    result = convert(*own, *options, "--size", "20x20")
    assert result.code == 0, result
    found = table(tmp_path / "d")
    assert [(row["image"], row["label"]) for row in found] == list(map(tuple, rows))
    digests = [sha256(image).hexdigest()[:16] for image, _ in records(tmp_path / "d")]
    assert [row["sha256"] for row in found] == digests
    places = [(f"part-{part:03}", str(record)) for part in range(6) for record in range(5)]
    assert [(row["part"], row["record"]) for row in found] == places
    data = (tmp_path / "d/images.csv").read_bytes()
    assert sha256(data).hexdigest() == read_manifest(tmp_path / "d")["images_csv"]
    assert data.startswith(b"part,record,image,label,sha256\npart-000,0,") and b"\r" not in data


def test_names_that_are_not_text_and_names_that_are_left_out(tmp_path):
    write_images(tmp_path / "in", ["a/1.png", "a/\udcff.png", "b/1.png"])
    (tmp_path / "in/a/\udcfe.png").write_bytes(b"")
    assert convert_in(tmp_path, "--skip_bad").code == 0
    assert names_in(tmp_path)["train"] == ["a/1.png", "a/\\xff.png", "b/1.png"]
    assert [each["file"] for each in read_manifest(tmp_path / "d")["skipped"]] == ["a/\\xfe.png"]
    parts = [path.read_bytes() for path in part_files(tmp_path / "d")]
    assert convert_in(tmp_path, "--skip_bad", "--anonymous").code == 0
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
    result = convert_in(classes, "--val_fraction", 0.2, "--test_fraction", 0.1, "--seed", 4)
    assert result.code == 0 and warnings(result) == [], result
    sets = names_in(classes)
    assert {split: len(names) for split, names in sets.items()} == dict(train=84, val=24, test=12)
    assert len(set().union(*sets.values())) == 120
    assert all(sum(name[0] == "a" for name in names) * 2 == len(names) for names in sets.values())
    ids = {read_manifest(classes / f"d{end}")["split_id"] for end in SUFFIXES.values()}
    assert len(ids) == 1 and None not in ids
    write_images(classes / "in", ["a/00.png"], first=999)  # other images of the same names
    assert convert_in(classes, "--val_fraction", 0.2, "--test_fraction", 0.1, "--seed", 4).code == 0
    assert names_in(classes) == sets and read_manifest(classes / "d")["split_id"] not in ids


def test_the_split_follows_from_the_names_and_the_seed(classes):
    def val_set(*options):
        assert convert_in(classes, "--val_fraction", 0.2, *options).code == 0
        return names_in(classes)["val"]

    first = val_set()
    assert val_set("--seed", 0) == first == val_set("--shuffle") != val_set("--seed", 1)
    assert val_set("--quality", 90, "--img_format", ".jpg") == first
    assert convert_in(classes).code == 0
    assert read_manifest(classes / "d")["split_id"] is None


def test_small_classes_keep_an_image_for_training(tmp_path):
    write_images(
        tmp_path / "in", [f"{c}/{n}.png" for m, c in enumerate("abc", 1) for n in range(m)]
    )
    result = convert_in(tmp_path, "--val_fraction", 0.9, "--test_fraction", 0.05)
    assert result.code == 0, result
    counts = {
        split: "".join(sorted(n[0] for n in names)) for split, names in names_in(tmp_path).items()
    }
    assert counts["train"] == "abc" and counts["val"][0] == "b" and set(counts["val"]) == {"b", "c"}
    assert "classes without images in the validation set: a" in result.err, result
    shutil.rmtree(tmp_path / "in/b"), shutil.rmtree(tmp_path / "in/c")
    result = convert_in(tmp_path, "--val_fraction", 0.9)
    assert_one_error(result, "no image is left for the validation set", started=True)


def test_a_column_names_the_datasets(tmp_path):
    names = [f"{n}.png" for n in range(12)]
    write_images(tmp_path / "in", names)
    splits = ["train", "val", "train", "test", "train", "validation"] * 2
    rows = [f"{name},{n % 3},{splits[n]}\n" for n, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("image,label,split\n" + "".join(rows))
    result = convert_in(tmp_path, "--label_dir", tmp_path / "labels.csv", "--part_num", 3)
    assert result.code == 0, result
    found = {
        split: [int(name[:-4]) for name in names] for split, names in names_in(tmp_path).items()
    }
    assert {split: sorted(numbers) for split, numbers in found.items()} == {
        "train": [0, 2, 4, 6, 8, 10],
        "val": [1, 5, 7, 11],
        "test": [3, 9],
    }
    assert [len(part_files(tmp_path / f"d{end}")) for end in SUFFIXES.values()] == [3, 3, 2]
    rows = [row.replace("train", "test") for row in rows]
    (tmp_path / "labels.csv").write_text("image,label,split\n" + "".join(rows))
    result = convert_in(tmp_path, "--label_dir", tmp_path / "labels.csv")
    assert_one_error(result, "no image is left for the training set", started=True)


def test_one_colour_image_makes_all_datasets_colour(classes):
    red = np.full((6, 7, 3), (0, 0, 200), np.uint8)
    cv2.imwrite(str(classes / "in/a/00.png"), red)
    assert convert_in(classes, "--val_fraction", 0.2).code == 0
    manifests = [read_manifest(classes / f"d{end}") for end in ("", "_val")]
    assert [each["channels"] for each in manifests] == [3, 3]
    assert sum(each["num_records"] - each["num_gray"] for each in manifests) == 1


@pytest.mark.parametrize(
    "options, text",
    [
        (["--val_fraction", 0.5, "--test_fraction", 0.5], "leave nothing to train on"),
        (["--val_fraction", 1.5], "--val_fraction: "),
        (["--seed", 1], "--seed is for"),
        (["--part_num", 121], "--part_num 121 is more than the 120 images"),
        (["--part_num", 97, "--val_fraction", 0.2], "--part_num 97 is more than the 96 images"),
        (["--save_dir", "in/d"], "--save_dir must be outside of --image_root"),
        (["--save_dir", "."], "contains no dataset"),
    ],
)
def test_what_makes_no_datasets(classes, options, text):
    options = [
        "--image_root",
        "in",
        "--class_folders",
        "--part_num",
        2,
        "--save_dir",
        "d",
        *options,
    ]
    assert_one_error(convert(*options, cwd=classes), text, started=True)
    assert [path.name for path in classes.iterdir()] == ["in"]


# -- copies -------------------------------------------------------------------------------


def test_copies_contradictions_and_leaks_are_named(tmp_path):
    root = write_images(tmp_path / "in", [f"{n:02}.png" for n in range(10)])
    for new, old in {"10": "00", "11": "00", "12": "01", "13": "02", "14": "03"}.items():
        shutil.copy(root / f"{old}.png", root / f"{new}.png")
    splits = dict.fromkeys((9, 13), "val") | {14: "test", 8: "test"}
    labels = {12: 1}
    rows = [f"{n:02}.png,{labels.get(n, 0)},{splits.get(n, 'train')}\n" for n in range(15)]
    (tmp_path / "labels.csv").write_text("image,label,split\n" + "".join(rows))
    result = convert_in(tmp_path, "--label_dir", tmp_path / "labels.csv")
    assert result.code == 0, result
    where = {  # of each image, in one part a dataset
        n: f"{tmp_path}/d{end}/part-0, record {record} ({n:02}.png), label {labels.get(n, 0)}"
        for end, numbers in (("", [*range(8), 10, 11, 12]), ("_val", [9, 13]), ("_test", [8, 14]))
        for record, n in enumerate(numbers)
    }
    for one, two in (0, 10), (0, 11), (1, 12):
        assert f"\nthe same image: {where[one]} and {where[two]}\n" in result.err, result
    assert f"\n{tmp_path}/d: 3 images are copies of others\n" in result.err, result
    assert [line for line in warnings(result) if "classes without" not in line] == [
        f"the same image: {where[2]} and {where[13]}",
        f"the same image: {where[3]} and {where[14]}",
        f"the same image with different labels: {where[1]} and {where[12]}",
    ]
    for end in "_val", "_test":
        leak = f"{tmp_path}/d{end}/: 1 image is a copy of another in {tmp_path}/d: results on them"
        assert leak in result.err and "remove them from one of the two" in result.err, result


def test_ten_copies_are_named_and_all_are_counted(tmp_path):
    root = write_images(tmp_path / "in", ["a/0.png", "b/0.png"])
    for number in range(1, 31):
        shutil.copy(root / "a/0.png", root / f"a/{number}.png")
    result = convert_in(tmp_path)
    assert result.code == 0 and result.err.count("\nthe same image: ") == 10, result
    assert f"\n{tmp_path}/d: 30 images are copies of others\n" in result.err, result
    shutil.rmtree(root / "b")
    result = convert_in(tmp_path)
    assert f"{tmp_path / 'd'}: all images are the same" in warnings(result), result


# -- images that cannot be stored ---------------------------------------------------------


def test_skipped_images(own, tmp_path):
    """Of 30 images in 6 parts: all of the second part, and one of the third."""
    names = sorted(os.listdir(tmp_path / "in"))
    for name in names[5:9]:
        (tmp_path / "in" / name).write_bytes(b"GIF8")
    (tmp_path / "in" / names[9]).unlink()
    (tmp_path / "in" / names[12]).unlink()
    (tmp_path / "in" / names[12]).symlink_to(names[12])
    bad = [*names[5:10], names[12]]
    result = convert(*own)
    assert result.code == 2 and result.err.count(": error: ") == 7, result
    assert "6 invalid images; nothing was changed in" in result.err and "--skip_bad" in result.err
    result = convert(*own, "--skip_bad")
    assert result.code == 0, result
    manifest = read_manifest(tmp_path / "d")
    assert [each["file"] for each in manifest["skipped"]] == bad
    assert [(each["file"], each["num_records"]) for each in manifest["parts"]] == [
        *(("part-0", 5), ("part-1", 4), ("part-2", 5), ("part-3", 5), ("part-4", 5))
    ]
    assert [row["image"] for row in table(tmp_path / "d")] == [n for n in names if n not in bad]
    for name in bad:
        assert any(
            line.startswith(f"skipped: {tmp_path / 'in' / name}: ") for line in warnings(result)
        )
    assert "skipped 6 of 30 images" in warnings(result)
    assert not any(f"{name} feature saved" in result.out for name in bad)


def test_parts_with_skipped_images_count_only_for_a_run_that_skips(own, tmp_path, whole):
    bad = tmp_path / "in" / sorted(os.listdir(tmp_path / "in"))[2]
    bad.write_bytes(b"")
    assert convert(*own, "--skip_bad", "--job", "1/2").code == 0
    result = convert(*own)
    assert result.code == 2 and "2 of 6 parts are there already" in result.err, result
    assert f"1 without images that --skip_bad skipped, such as {bad.name}" in result.err, result
    assert f"{bad}: invalid image: the file is empty" in result.err, result
    result = convert(*own, "--skip_bad")
    assert result.code == 0 and "6 of 6 parts are there already" in result.err, result
    found = snapshot(tmp_path / "d")
    assert found == whole(*own, "--skip_bad") and read_manifest(tmp_path / "d")["num_records"] == 29


def test_classes_that_are_left_empty_and_datasets_without_an_image(classes):
    for path in (classes / "in/b").iterdir():
        path.write_bytes(b"no image")
    result = convert_in(classes, "--skip_bad")
    assert result.code == 0 and "--skip_bad left no image of class b" in warnings(result), result
    assert len(warnings(result)) == 22  # twenty images, how many, the class
    for path in (classes / "in/a").iterdir():
        path.write_bytes(b"no image")
    before = snapshot(classes / "d")
    result = convert_in(classes, "--skip_bad")
    assert_one_error(result, "no valid image among the 120 for", started=True)
    assert before.items() <= snapshot(classes / "d").items()


def as_folder(path):
    path.unlink()
    path.mkdir()


ERRORS = {
    "a folder": (as_folder, "cannot be read: it is not a regular file"),
    "a pipe": (lambda path: path.unlink() or os.mkfifo(path), "it is not a regular file"),
    "too large": (
        lambda path: os.truncate(path, 2**30 + 1),
        "it is larger than 1,073,741,824 bytes",
    ),
}


@pytest.mark.parametrize("damage, text", ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_read_is_never_skipped(own, tmp_path, damage, text):
    path = tmp_path / "in" / sorted(os.listdir(tmp_path / "in"))[2]
    damage(path)
    for more in [], ["--skip_bad"]:
        assert_one_error(convert(*own, *more), f"{path}: ", text, started=True)


@pytest.mark.parametrize(
    "number, skipped", [("EIO", 0), ("EACCES", 0), ("ESTALE", 0), ("ENOENT", 1)]
)
def test_errors_of_the_file_system(own, tmp_path, monkeypatch, number, skipped):
    path, open_file = tmp_path / "in" / sorted(os.listdir(tmp_path / "in"))[2], os.open
    code = getattr(errno, number)

    def fail(name, *more, **options):
        if str(name) == str(path):
            raise OSError(code, os.strerror(code), name)
        return open_file(name, *more, **options)

    monkeypatch.setattr(os, "open", fail)
    result = convert(*own, "--skip_bad")
    if skipped:
        assert result.code == 0 and len(read_manifest(tmp_path / "d")["skipped"]) == 1, result
    else:
        assert_one_error(result, f"{path}: cannot be read: {os.strerror(code)}", started=True)


def test_lack_of_memory_is_never_skipped(own, tmp_path, monkeypatch):
    from ofrecord import images

    decode, calls = images.decode, []

    def fail(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return decode(*arguments)

    monkeypatch.setattr(images, "decode", fail)
    assert_one_error(convert(*own, "--skip_bad"), "not enough memory", "--workers", started=True)


def test_files_that_are_missing_and_what_was_meant(own, tmp_path):
    names = sorted(os.listdir(tmp_path / "in"))
    (tmp_path / "in" / names[0]).rename(tmp_path / "in" / names[0].upper())
    result = convert(*own)
    meant = f"missing, but it has a label; did you mean {names[0].upper()}?"
    assert_one_error(result, meant, started=True)


# -- what looks wrong ---------------------------------------------------------------------


def test_doubts_about_the_images(tmp_path):
    (tmp_path / "in/a").mkdir(parents=True)
    dark = np.arange(42, dtype=np.uint16).reshape(6, 7) * 90
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"in/a/{number}.png"), dark + number)
    result = convert_in(tmp_path)
    assert "3 16-bit images reach only 14 of 255" in result.err, result
    assert "all images are of a single class" in result.err, result
    write_images(tmp_path / "in", [f"a/{number}.png" for number in range(3)])
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"in/a/{number}.png"), np.full((6, 7), 9, np.uint8))
    result = convert_in(tmp_path)
    assert "all images are the same" in result.err, result


def test_mean_and_std_of_a_sample_of_jpeg_files(tmp_path, monkeypatch):
    """Every n-th image, the same on any number of workers; all are looked at."""
    monkeypatch.setattr("ofrecord.convert.parts.SAMPLE", 10)
    rng, root = np.random.default_rng(0), tmp_path / "in/a"
    root.mkdir(parents=True)
    photos = [rng.integers(0, 40 + 5 * i, (40, 60, 3), dtype=np.uint8) for i in range(43)]
    for index, photo in enumerate(photos):
        cv2.imwrite(str(root / f"{index:02}.jpg"), photo)
    for workers in 1, 2:
        result = convert_in(tmp_path, "--img_format", ".jpg", "--workers", workers)
        assert "mean and standard deviation are those of 11 images" in result.err, result
        manifest = read_manifest(tmp_path / "d")
        pixels = np.stack([cv2.imread(str(root / f"{i:02}.jpg")) for i in range(0, 43, 4)])
        counts = [np.bincount(v, minlength=256) for v in pixels.reshape(-1, 3).T[::-1]]
        np.testing.assert_array_equal(manifest["histogram"], counts)
        assert manifest["mean"] == pytest.approx(pixels.mean((0, 1, 2))[::-1], abs=1e-5)
        assert (manifest["num_measured"], manifest["plain_jpeg"]) == (11, True)
        assert (manifest["width"], manifest["height"]) == (60, 40)
    cv2.imwrite(str(root / "41.png"), photos[41])  # not in the sample, and encoded again
    (root / "41.png").replace(root / "41.jpg")
    result = convert_in(tmp_path, "--img_format", ".jpg")
    assert "42 images stored unchanged; re-encoded: 1 PNG to JPEG" in result.err, result
    assert read_manifest(tmp_path / "d")["histogram"] == manifest["histogram"]
    data = (root / "02.jpg").read_bytes()  # not in the sample
    (root / "02.jpg").write_bytes(data[:400] + bytes(100) + data[500:])
    result = convert_in(tmp_path, "--img_format", ".jpg")
    assert_one_error(result, "02.jpg: invalid image: ", started=True)
    for index in range(0, 43, 4):
        (root / f"{index:02}.jpg").write_bytes(b"no image")
    result = convert_in(tmp_path, "--img_format", ".jpg", "--skip_bad")
    text = "no valid image among those of the 43 for"
    assert_one_error(result, text, "whose pixels would be counted", started=True)


def test_names_of_classes_are_data(tmp_path):
    """In a manifest whose lists of numbers are on one line each."""
    names = ["[1,  2]", "a\n[3,\n 4]", "b  c", '"quoted"']
    write_images(tmp_path / "in", [f"{name}/{number}.png" for name in names for number in range(9)])
    (tmp_path / "in" / names[0] / "5,  6].png").write_bytes(b"")
    assert convert_in(tmp_path, "--skip_bad", "--val_fraction", 0.2).code == 0
    assert sorted(read_manifest(tmp_path / "d")["class_names"]) == sorted(names)
    assert len((tmp_path / "d/dataset.json").read_text().splitlines()) < 90
    for folder in "d", "d_val":
        open_dataset(str(tmp_path / folder))
