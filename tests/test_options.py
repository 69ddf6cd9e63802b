"""The converter beyond the tutorial: label sources, options, bars and lines."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import IMAGES, LABELS, PROJECT, assert_one_error, decode_with_oneflow, run_script, snapshot
from ofrecord.manifest import MANIFEST_NAME
from ofrecord.record import read_record, split_records

NAMES = sorted(os.listdir(str(IMAGES)))


def image(value, shape=(8, 9)):
    return np.full(shape, value, np.uint8)


def write_images(root, **more):
    """Small images of one gray level each; {name: level}."""
    for name, level in more.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", image(level))[1].tobytes())


def convert(root, *arguments):
    return run_script("img2ofrecord.py", "--image_root", root / "in", "--save_dir", root / "d", "--part_num", 1,
                      *arguments)


def stored(folder):
    """[(gray level of the image, label)] of all records in order, and the manifest."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    found = []
    for part in manifest["parts"]:
        for record in split_records((folder / part["file"]).read_bytes()):
            data, label = read_record(record)
            found.append((int(cv2.imdecode(np.frombuffer(data, np.uint8), 0)[0, 0]), label))
    return found, manifest


# -- CSV --------------------------------------------------------------------------------

def test_csv_with_numbers(tmp_path):
    write_images(tmp_path / "in", **{"a.png": 1, "b c.png": 2, "x/y/数字.png": 3})
    (tmp_path / "labels.csv").write_bytes(
        "\ufefffile,width,label\r\na.png,9,10\r\n\r\n\"b c.png\",9, 2\r\nx/y/数字.png,9,0\r\n".encode("utf-8"))
    result = convert(tmp_path, "--label_dir", tmp_path / "labels.csv")
    assert result.code == 0, result
    found, manifest = stored(tmp_path / "d")
    assert found == [(1, 10), (2, 2), (3, 0)]
    assert manifest["classes"] == {"count": 11, "names": None}
    assert "x/y/数字.png feature saved" in result.out


def test_csv_with_class_names(tmp_path):
    write_images(tmp_path / "in", **{"a.png": 1, "b.png": 2, "c.png": 3})
    (tmp_path / "labels.CSV").write_text("Class,Image\n狗,a.png\ncat,b.png\n狗,c.png\n", encoding="utf-8")
    assert convert(tmp_path, "--label_dir", tmp_path / "labels.CSV").code == 0
    found, manifest = stored(tmp_path / "d")
    assert found == [(1, 1), (2, 0), (3, 1)]
    assert manifest["classes"] == {"count": 2, "names": ["cat", "狗"]}


@pytest.mark.parametrize("text, said", [
    ("", ["line 1", "header"]),
    ("a.png,1\nb.png,2\n", ["line 1", "header", "'a.png'"]),
    ("image,label\na.png\n", ["line 2", "1 columns"]),
    ("image,label\na.png,\n", ["line 2", "empty"]),
    ("image,label\na.png,3000000000\n", ["line 2", "int32"]),
    ("image,label\na.png,1\na.png,1\n", ["line 3", "twice", "line 2"]),
    ("image,label\n../a.png,1\n", ["line 2", "not inside"]),
    ("image,label\n", ["no images"]),
    ('image,label\n"a.png,1\n', ["not CSV"]),
    ("image,label\n\xff.png,1\n".encode("latin-1"), ["UTF-8"]),
])
def test_bad_csv(tmp_path, text, said):
    write_images(tmp_path / "in", **{"a.png": 1})
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_one_error(convert(tmp_path, "--label_dir", tmp_path / "labels.csv"), *said)
    assert not (tmp_path / "d").exists()


# -- class folders --------------------------------------------------------------------------

def test_class_folders(tmp_path):
    write_images(tmp_path / "in", **{"dog/2.png": 20, "dog/1.png": 10, "cat/deep/er/9 9.png": 90, "猫 x/图.png": 50})
    (tmp_path / "in/dog/Thumbs.db").write_text("")
    (tmp_path / "in/.hidden").mkdir()
    result = convert(tmp_path, "--class_folders")
    assert result.code == 0, result
    found, manifest = stored(tmp_path / "d")
    assert found == [(90, 0), (10, 1), (20, 1), (50, 2)]
    assert manifest["classes"] == {"count": 3, "names": ["cat", "dog", "猫 x"]}
    assert "1 files" in result.err and "dog/Thumbs.db" in result.err


@pytest.mark.parametrize("spoil, said", [
    (lambda root: write_images(root, **{"stray.png": 1}), ["stray.png", "no class folder"]),
    (lambda root: (root / "empty").mkdir(), ["empty", "has no images"]),
])
def test_bad_class_folders(tmp_path, spoil, said):
    write_images(tmp_path / "in", **{"cat/1.png": 1, "dog/1.png": 2})
    spoil(tmp_path / "in")
    assert_one_error(convert(tmp_path, "--class_folders"), *said)


def test_no_class_folders_at_all(tmp_path):
    (tmp_path / "in").mkdir()
    assert_one_error(convert(tmp_path, "--class_folders"), "no class folders")
    write_images(tmp_path / "in", **{"cat/1.png": 1})
    assert_one_error(convert(tmp_path, "--class_folders", "--label_dir", "x.csv"), "--class_folders")


def test_a_folder_that_links_to_itself_ends(tmp_path):
    write_images(tmp_path / "in", **{"cat/1.png": 1})
    (tmp_path / "in/cat/again").symlink_to(tmp_path / "in/cat")
    write_images(tmp_path, **{"elsewhere/2.png": 2})
    (tmp_path / "in/dog").symlink_to(tmp_path / "elsewhere")
    assert convert(tmp_path, "--class_folders").code == 0
    assert len(stored(tmp_path / "d")[0]) in (2, 3)


# -- both ways joined ---------------------------------------------------------------------------

def test_images_without_a_label_and_labels_without_an_image(tmp_path):
    write_images(tmp_path / "in", **{"a.png": 1, "b.png": 2, "sub/c.JPG": 3})
    (tmp_path / "labels.txt").write_text('{"a.png": 0}\n{"gone.png": 1}\n')
    result = convert(tmp_path, "--label_dir", tmp_path / "labels.txt")
    assert result.code == 2
    assert "2 images in" in result.err and "have no label" in result.err and "b.png, sub/c.JPG" in result.err
    assert "gone.png has a label but does not exist" in result.err


# -- options ----------------------------------------------------------------------------------------

def tutorial(tmp_path, *arguments, folder="d"):
    return run_script("img2ofrecord.py", "--save_dir", tmp_path / folder, *arguments)


def order(folder):
    return [record[0] for record in stored_bytes(folder)]


def stored_bytes(folder):
    return [read_record(record) for part in json.loads((folder / MANIFEST_NAME).read_text())["parts"]
            for record in split_records((folder / part["file"]).read_bytes())]


def test_shuffle_is_seeded_and_keeps_labels_with_images(converted, tmp_path):
    assert tutorial(tmp_path, "--shuffle", folder="a").code == 0
    assert tutorial(tmp_path, "--shuffle", "--seed", 0, "--workers", 1, folder="b").code == 0
    assert tutorial(tmp_path, "--shuffle", "--seed", 1, folder="c").code == 0
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    plain, a, c = (stored_bytes(folder) for folder in (converted, tmp_path / "a", tmp_path / "c"))
    assert plain != a != c and sorted(plain) == sorted(a) == sorted(c)


@pytest.mark.parametrize("size, shape", [("14x10", (10, 14)), ("56x60", (60, 56)), ("28x28", (28, 28))])
def test_size(tmp_path, size, shape):
    result = tutorial(tmp_path, "--size", size)
    assert result.code == 0, result
    images, _ = decode_with_oneflow(tmp_path / "d", [shape] * 50, channels=1, part_num=5)
    manifest = json.loads((tmp_path / "d" / MANIFEST_NAME).read_text())
    assert (manifest["image"]["height"], manifest["image"]["width"]) == shape
    whole = cv2.imread(str(IMAGES / "00000030_3.png"), 0)
    wanted = cv2.resize(whole, shape[::-1], interpolation=cv2.INTER_AREA if shape[0] < 28 else cv2.INTER_CUBIC)
    np.testing.assert_array_equal(images[0][:, :, 0], wanted)
    assert ("50 resized" in result.err) == (size != "28x28")
    pixels = np.stack(images).astype(float)
    assert manifest["pixels"]["mean"] == pytest.approx([pixels.mean()], abs=1e-5)


def test_color(tmp_path):
    assert "50 gray to colour" in tutorial(tmp_path, "--color", "color").err
    assert json.loads((tmp_path / "d" / MANIFEST_NAME).read_text())["image"]["channels"] == 3


def test_quality(tmp_path):
    assert tutorial(tmp_path, "--img_format", ".jpg", "--quality", 20, folder="low").code == 0
    assert tutorial(tmp_path, "--img_format", ".jpg", folder="usual").code == 0
    low, usual = (sum(len(data) for data, _ in stored_bytes(tmp_path / name)) for name in ("low", "usual"))
    assert low < 0.8 * usual


def test_padded_part_names(tmp_path):
    assert tutorial(tmp_path, "--part_name_suffix_length", 5, "--part_num", 12).code == 0
    assert sorted(os.listdir(str(tmp_path / "d")))[1:] == ["part-{:05d}".format(index) for index in range(12)]
    _, labels = decode_with_oneflow(tmp_path / "d", [(28, 28)] * 50, channels=1, part_num=12, suffix_length=5)
    assert labels[:6] == [3, 0, 4, 9, 5, 1]
    result = run_script("lenet_train.py", "--dataset_dir", tmp_path / "d", "--steps", 1, "--device", "cpu")
    assert result.code == 0, result
    # and over to plain names, in the same folder
    assert tutorial(tmp_path).code == 0
    assert sorted(os.listdir(str(tmp_path / "d")))[1:] == ["part-{}".format(index) for index in range(5)]


@pytest.mark.parametrize("arguments, said", [
    (["--size", "28"], "--size"), (["--size", "0x28"], "--size"), (["--size", "28x28x3"], "--size"),
    (["--quality", "50"], "--img_format is .png"), (["--quality", "0", "--img_format", ".jpg"], "from 1 to 100"),
    (["--color", "sepia"], "sepia"), (["--seed", "3"], "--shuffle"), (["--workers", "0"], "--workers"),
    (["--part_name_suffix_length", "0"], "part_name_suffix_length"), (["--progress", "loud"], "loud"),
])
def test_bad_options(tmp_path, arguments, said):
    assert_one_error(tutorial(tmp_path, *arguments), said)
    assert not (tmp_path / "d").exists()


# -- bad images: skipped and said, or found without writing ----------------------------------------------

@pytest.fixture
def spoiled(project):
    """The tutorial's project with three bad images: one gone, one cut off, one empty."""
    folder = project / "data/images/train_set"
    (folder / NAMES[3]).unlink()
    (folder / NAMES[7]).write_bytes((folder / NAMES[7]).read_bytes()[:-20])
    (folder / NAMES[11]).write_bytes(b"")
    return project


def test_skip_bad(spoiled):
    result = run_script("img2ofrecord.py", "--skip_bad", cwd=spoiled)
    assert result.code == 0, result
    _, manifest = stored(spoiled / "dataset")
    assert {item["file"] for item in manifest["left_out"]} == {NAMES[3], NAMES[7], NAMES[11]}
    assert all(item["reason"] for item in manifest["left_out"])
    assert manifest["records"] == 47
    assert [part["records"] for part in manifest["parts"]] == [10, 10, 9, 9, 9]
    assert "3 of 50 images are left out" in result.err
    for name in (NAMES[3], NAMES[7], NAMES[11]):
        assert "left out: ./data/images/train_set/" + name in result.err and name + " feature saved" not in result.out
    assert result.out.count("feature saved") == 47
    again = run_script("img2ofrecord.py", "--skip_bad", "--workers", 1, cwd=spoiled)
    assert again.out == result.out


def test_skip_bad_where_none_is_good(project):
    for name in NAMES:
        (project / "data/images/train_set" / name).write_bytes(b"no image")
    result = run_script("img2ofrecord.py", "--skip_bad", cwd=project)
    assert result.code == 2 and "no good image among the 50" in result.err and not (project / "dataset").exists()


def test_a_colour_image_that_is_left_out_makes_no_colour_dataset(project):
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8))[1].tobytes()
    (project / "data/images/train_set" / NAMES[5]).write_bytes(jpeg[:len(jpeg) // 2])
    assert run_script("img2ofrecord.py", "--skip_bad", cwd=project).code == 0
    assert stored(project / "dataset")[1]["image"]["channels"] == 1


def test_dry_run(project, spoiled):
    before = snapshot(project)
    result = run_script("img2ofrecord.py", "--dry_run", cwd=project)
    assert result.code == 2, result
    for name in (NAMES[3], NAMES[7], NAMES[11]):
        assert name in result.err
    skipping = run_script("img2ofrecord.py", "--dry_run", "--skip_bad", cwd=project)
    assert skipping.code == 0, skipping
    assert "Dry run: 47 gray images in 10 classes" in skipping.out and "9 or 10 in each of 5 parts" in skipping.out
    assert "would be left out" in skipping.err
    assert "feature saved" not in result.out + skipping.out and "successfully" not in result.out + skipping.out
    assert snapshot(project) == before
    (project / "dataset").mkdir()
    (project / "dataset/mine.txt").write_text("")
    result = run_script("img2ofrecord.py", "--dry_run", "--part_num", 99, cwd=project)
    assert "part_num 99" in result.err
    assert "mine.txt" in run_script("img2ofrecord.py", "--dry_run", "--skip_bad", cwd=project).err


def test_dry_run_tells_the_bytes_that_a_run_writes(project):
    dry = run_script("img2ofrecord.py", "--dry_run", cwd=project)
    (said,) = re.findall(r"([\d,]+) bytes", dry.out)
    assert not (project / "dataset").exists()
    assert run_script("img2ofrecord.py", cwd=project).code == 0
    assert int(said.replace(",", "")) == sum(path.stat().st_size for path in (project / "dataset").glob("part-*"))


# -- lines or a bar -------------------------------------------------------------------------------------------

def test_lines_for_small_sets_and_a_bar_for_large_ones(tmp_path):
    (tmp_path / "in").mkdir()
    data = (IMAGES / NAMES[0]).read_bytes()
    for index in range(1001):
        (tmp_path / "in" / "{}.png".format(index)).write_bytes(data)
    lines = ['{"%d.png": 0}\n' % index for index in range(1001)]
    for count, expected in ((1000, 1000), (1001, 0)):
        (tmp_path / "labels.txt").write_text("".join(lines[:count]))
        result = convert(tmp_path, "--label_dir", tmp_path / "labels.txt")
        assert result.out.count("feature saved") == expected
        assert "%|" not in result.err  # no bar where there is no terminal
    asked = convert(tmp_path, "--label_dir", tmp_path / "labels.txt", "--progress", "lines")
    assert asked.out.count("feature saved") == 1001
    assert "feature saved" not in tutorial(tmp_path, "--progress", "none", folder="e").out

    command = "{} {} --image_root {} --label_dir {} --save_dir {}".format(
        sys.executable, PROJECT / "img2ofrecord.py", tmp_path / "in", tmp_path / "labels.txt", tmp_path / "d")
    seen = subprocess.run(["script", "-qec", command, "/dev/null"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert b"1001/1001" in seen.stdout and b"image/s" in seen.stdout  # on a terminal


# -- same in, same out -----------------------------------------------------------------------------------------

def test_the_same_bytes_on_any_number_of_workers_and_in_any_folder(tmp_path, project):
    import kinds

    root = tmp_path / "in"
    root.mkdir()
    with (tmp_path / "labels.txt").open("w") as labels:
        for index in range(300):
            name, data = list(kinds.make().items())[index % len(kinds.make())] if index < 80 else (
                "gray.png", cv2.imencode(".png", np.full((40, 30), index % 256, np.uint8))[1].tobytes())
            (root / "{}-{}".format(index, name)).write_bytes(data)
            labels.write(json.dumps({"{}-{}".format(index, name): index % 7}) + "\n")
    results = []
    for workers, folder in ((1, "a"), (2, "b"), (5, "deep/er/c")):
        result = run_script("img2ofrecord.py", "--image_root", root, "--label_dir", tmp_path / "labels.txt", "--save_dir",
                            tmp_path / folder, "--workers", workers, "--part_num", 4, "--shuffle", "--img_format", ".jpg",
                            env={"PYTHONHASHSEED": str(workers), "TZ": "Asia/Tokyo" if workers == 2 else "UTC"})
        assert result.code == 0, result
        results.append(snapshot(tmp_path / folder))
    assert results[0] == results[1] == results[2] and len(results[0]) == 5
