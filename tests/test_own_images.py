"""Datasets of one's own and of other converters: held-out shares, colour and sizes, what is refused, and a fuzz test."""

import io
import json
import random
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import IMAGES, PROJECT, assert_one_error, run_module, run_script
from ofrecord.cli import InputError
from ofrecord.manifest import check_dataset, load_manifest
from ofrecord.record import OFRecord, read_record, split_records
from ofrecord.scan import open_dataset

CONFIG = PROJECT / "configs" / "own_images.yaml"


def class_folders(root, counts, size=lambda rng: (24, 20), color=True, names=None):
    """Pictures that can be told apart, in a folder for each class: {class: count}."""
    rng = np.random.default_rng(0)
    for index, count in enumerate(counts):
        folder = root / (names[index] if names else "class {:03d}".format(index))
        folder.mkdir(parents=True)
        for number in range(count):
            height, width = size(rng)
            image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            image += (np.array([index % 5, index // 5 % 5, index // 25 % 5]) * 45).astype(np.uint8)
            if not color:
                image = np.full((height, width), 10 + 240 * index // len(counts), np.uint8) + image[:, :, 0] // 8
            cv2.imwrite(str(folder / "{}.png".format(number)), image)
    return root


def convert(root, save_dir, *more):
    return run_script("img2ofrecord.py", "--image_root", root, "--class_folders", "--shuffle", "--save_dir", save_dir, "--part_num", 3,
                      *more)


def train(*arguments, **options):
    return run_script("lenet_train.py", "--device", "cpu", *arguments, **options)


# -- held out -----------------------------------------------------------------------

def images_of(folder):
    """[(image's bytes, label)] of a dataset, in order."""
    return [read_record(serialized) for path in sorted(Path(folder).glob("part-*")) for serialized in split_records(path.read_bytes())]


def test_each_image_is_in_exactly_one_half(tmp_path):
    root = class_folders(tmp_path / "in", [10, 20, 31, 2, 1])
    result = convert(root, tmp_path / "d", "--val_share", 0.25, "--seed", 3)
    assert result.code == 0 and "a single image, which stays in training: class 004" in result.err, result
    train_images, val_images = images_of(tmp_path / "d"), images_of(tmp_path / "d_val")
    everything = {path.read_bytes() for path in root.rglob("*.png")}
    assert len(everything) == 64 and len(train_images) + len(val_images) == 64
    assert {data for data, _ in train_images} | {data for data, _ in val_images} == everything
    assert [sum(label == number for _, label in val_images) for number in range(5)] == [2, 5, 8, 1, 0]
    for folder in ("d", "d_val"):
        assert check_dataset(str(tmp_path / folder), hashes=True).class_names == ["class {:03d}".format(i) for i in range(5)]
    assert load_manifest(str(tmp_path / "d")).halves == load_manifest(str(tmp_path / "d_val")).halves


def test_the_split_obeys_the_seed(tmp_path):
    root = class_folders(tmp_path / "in", [30, 30])
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert convert(root, tmp_path / name, "--val_share", 0.2, "--seed", seed, "--val_dir", tmp_path / (name + "v")).code == 0
    held = {name: images_of(tmp_path / (name + "v")) for name in "abc"}
    assert held["a"] == held["b"] and {data for data, _ in held["a"]} != {data for data, _ in held["c"]}
    assert_one_error(train("--dataset_dir", tmp_path / "a", "--eval_dataset_dir", tmp_path / "cv"), "the same --val_share")


def test_one_colour_picture_makes_both_halves_colour(tmp_path):
    root = class_folders(tmp_path / "in", [20, 20], color=False)
    cv2.imwrite(str(root / "class 001" / "red.png"), np.full((24, 20, 3), (0, 0, 200), np.uint8))
    assert convert(root, tmp_path / "d", "--val_share", 0.1).code == 0
    assert load_manifest(str(tmp_path / "d")).channels == load_manifest(str(tmp_path / "d_val")).channels == 3


@pytest.mark.parametrize("options, said", [
    (["--val_share", "0"], "between 0 and 1"), (["--val_share", "1"], "between 0 and 1"), (["--val_share", "x"], "--val_share"),
    (["--val_dir", "elsewhere"], "--val_share holds out"), (["--val_share", "0.1", "--val_dir", "d"], "the folder of --save_dir"),
])
def test_shares_that_make_no_sense(tmp_path, options, said):
    root = class_folders(tmp_path / "in", [3, 3])
    assert_one_error(run_script(
        "img2ofrecord.py", "--image_root", root, "--class_folders", "--save_dir", "d", *options, cwd=tmp_path), said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_nothing_is_written_where_one_half_cannot_be(tmp_path):
    root = class_folders(tmp_path / "in", [8, 8])
    (tmp_path / "d_val").mkdir()
    (tmp_path / "d_val" / "thesis.txt").write_text("x")
    assert_one_error(convert(root, tmp_path / "d", "--val_share", 0.2), "d_val", "thesis.txt")
    assert not (tmp_path / "d").exists()
    result = convert(root, tmp_path / "e", "--val_share", 0.2, "--dry_run")
    assert "16 colour images in 2 classes" in result.out and "4 in each of 3 parts, and held out 1 or 2 in each of 3 parts" in result.out
    assert not (tmp_path / "e").exists() and not (tmp_path / "e_val").exists()


# -- the trainer follows the dataset ----------------------------------------------------

@pytest.mark.parametrize("counts, color, size, names, options, said", [
    ([30, 30], True, lambda rng: (24, 20), None, [], "colour images (20x24) in 3 parts, 2 classes"),
    ([12] * 4, False, lambda rng: (rng.integers(10, 40), rng.integers(10, 40)), None, [], "gray images (sizes vary)"),
    ([3] * 100, True, lambda rng: (12, 12), None, ["--image_size", 12], "100 classes"),
    ([15, 15, 15], True, lambda rng: (20, 20), ["猫", "狗 大", "鸟"], ["--image_size", "null"], "3 classes"),
], ids=["two classes", "gray, mixed sizes", "100 classes", "Chinese names"])
def test_own_images_yaml(tmp_path, counts, color, size, names, options, said):
    root = class_folders(tmp_path / "in", counts, size, color, names)
    assert convert(root, tmp_path / "dataset", "--val_share", 0.2).code == 0
    result = train("--config", CONFIG, "--epochs", 4, "--batch_size", 8, *options, cwd=tmp_path)
    assert result.code == 0 and said in result.err, result
    right, count = re.findall(r"(\d+) of (\d+) right", result.err)[-1]
    assert int(right) > int(count) / len(counts)  # better than a guess
    image = next((root / (names[0] if names else "class 000")).iterdir())
    result = run_module("lenet.predict", "--checkpoint", tmp_path / "runs" / "own_images" / "best", image)
    assert result.code == 0, result
    said = result.out.split(": ")[1].rsplit(" (")[0]
    assert said in (names or [folder.name for folder in root.iterdir()])


# -- decoders ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpegs")
    root = class_folders(folder / "in", [12, 12], lambda rng: (40, 48))
    assert convert(root, folder / "jpeg", "--img_format", ".jpg").code == 0
    return folder / "jpeg"


def test_the_fused_decoder_where_it_suits(jpegs, converted):
    fused, read = (train("--dataset_dir", jpegs, "--batch_size", 6, "--steps", 6, "--decoder", decoder) for decoder in ("auto", "bytes"))
    assert "fused decoder" in fused.err and "bytes decoder" in read.err, (fused, read)
    assert fused.out == read.out != ""  # the same pixels
    assert "bytes decoder" in train("--dataset_dir", converted, "--steps", 2).err
    assert_one_error(train("--dataset_dir", converted, "--decoder", "fused"), "decoder fused", "3-channel JPEG")


# -- other people's converters ------------------------------------------------------------

def foreign(folder, part_of=lambda index: index // 7, image_feature="images", label_feature="labels", kind="int32", digits=1,
            ext=".png", flag=cv2.IMREAD_COLOR, change=None):
    """The 50 digits as the tutorial's original converter wrote them: three-channel PNG, 50 // 7 in a part, so one part more."""
    folder.mkdir()
    for index, path in enumerate(sorted(IMAGES.iterdir())):
        record = OFRecord()
        data = cv2.imencode(ext, cv2.imread(str(path), flag))[1].tobytes()
        record.feature[image_feature].bytes_list.value.append(change(index, data) if change else data)
        getattr(record.feature[label_feature], kind + "_list").value.append(int(path.stem[-1]))
        serialized = record.SerializeToString()
        with (folder / "part-{:0{}d}".format(part_of(index), digits)).open("ab") as part:
            part.write(struct.pack("<q", len(serialized)) + serialized)
    return folder


@pytest.mark.parametrize("options, arguments, found", [
    ({}, [], "50 records in 8 parts; 50 PNG; 28x28, gray stored as colour; labels 0 to 9 (int32)"),
    (dict(image_feature="encoded", label_feature="class/label", kind="int64", digits=5, part_of=lambda index: index // 10),
     ["--image_feature", "encoded", "--label_feature", "class/label"], "5 parts; 50 PNG; 28x28, gray stored as colour; labels 0 to 9 (int64)"),
    (dict(ext=".jpg", flag=cv2.IMREAD_GRAYSCALE, part_of=lambda index: 0), [], "1 parts; 50 JPEG; 28x28, gray; labels"),
    (dict(change=lambda index, data: cv2.imencode(".jpg" if index % 2 else ".bmp", cv2.imdecode(np.frombuffer(data, np.uint8), 1))[1].tobytes()),
     [], "25 BMP, 25 JPEG"),
], ids=["the tutorial's", "other names, int64, padded", "gray JPEG", "mixed formats"])
def test_datasets_of_other_converters_train(tmp_path, options, arguments, found):
    folder = foreign(tmp_path / "d", **options)
    result = train("--dataset_dir", folder, "--steps", 60, *arguments)
    assert result.code == 0 and "made by another converter" in result.err and found in result.err, result
    assert "gets 50 of 50 training images right" in result.err or "gets 49 of 50" in result.err, result


def test_an_empty_last_part_is_left_out(tmp_path):
    folder = foreign(tmp_path / "d")
    (folder / "part-8").write_bytes(b"")
    result = train("--dataset_dir", folder, "--steps", 2)
    assert result.code == 0 and "part-8 is empty and is left out" in result.err and "in 8 parts" in result.err, result


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def png16(index, data):
    return cv2.imencode(".png", cv2.imdecode(np.frombuffer(data, np.uint8), 0).astype(np.uint16) * 257)[1].tobytes() if index == 3 else data


def cmyk(index, data):
    from PIL import Image

    if index != 3:
        return data
    file = io.BytesIO()
    Image.new("CMYK", (28, 28), (10, 20, 30, 40)).save(file, "JPEG")
    return file.getvalue()


FATAL = {  # what ends OneFlow's process, or makes it read wrong pixels in silence
    "a part missing": (dict(), lambda d: (d / "part-3").unlink(), ["part-3 is missing"]),
    "the first part missing": (dict(), lambda d: (d / "part-0").unlink(), ["part-0 is missing"]),
    "an empty part": (dict(), lambda d: cut(d / "part-2", 0), ["part-2"]),
    "no parts": (dict(), lambda d: [path.unlink() for path in d.iterdir()], ["not a finished dataset"]),
    "names of several lengths": (dict(), lambda d: (d / "part-7").rename(d / "part-07"), ["part-7 is missing", "part-07"]),
    "a record cut off": (dict(), lambda d: cut(d / "part-7", -5), ["part-7", "record 0"]),
    "a length cut off": (dict(), lambda d: (d / "part-7").write_bytes((d / "part-7").read_bytes() + b"\x01\0\0"), ["part-7", "record 1"]),
    "no OFRecord": (dict(), lambda d: (d / "part-7").write_bytes(struct.pack("<q", 4) + b"\xff" * 4), ["part-7", "record 0", "not an OFRecord"]),
    "another image feature": (dict(image_feature="picture"), None, ["no feature 'images'", "--image_feature"]),
    "another label feature": (dict(label_feature="class"), None, ["no feature 'labels'", "--label_feature"]),
    "labels of floats": (dict(kind="float"), None, ["record 0", "'labels'"]),
    "text for an image": (dict(change=lambda index, data: b"no image" if index == 40 else data), None, ["part-5, record 5", "its image is no good"]),
    "an empty image": (dict(change=lambda index, data: b"" if index == 40 else data), None, ["part-5", "record 5"]),
    "a PNG cut off": (dict(change=lambda index, data: data[:100] if index == 40 else data), None, ["part-5, record 5", "cut off"]),
    "a PNG damaged": (dict(change=lambda index, data: data[:100] + b"\0\0" + data[102:] if index == 40 else data), None, ["part-5, record 5", "damaged"]),
    "a JPEG cut off": (dict(ext=".jpg", change=lambda index, data: data[:300] if index == 40 else data), None, ["part-5, record 5", "cut off"]),
    "16-bit PNG": (dict(change=png16), None, ["part-0, record 3", "16-bit"]),
    "CMYK JPEG": (dict(change=cmyk), None, ["part-0, record 3", "CMYK"]),
}


@pytest.mark.parametrize("options, damage, said", FATAL.values(), ids=list(FATAL))
def test_what_would_end_oneflow_is_one_line(tmp_path, options, damage, said):
    folder = foreign(tmp_path / "d", **options)
    if damage:
        damage(folder)
    assert_one_error(train("--dataset_dir", folder), *said)


def test_labels_that_are_no_classes(tmp_path):
    folder = foreign(tmp_path / "d")
    content = (folder / "part-0").read_bytes()
    (length,) = struct.unpack("<q", content[:8])
    record = OFRecord.FromString(content[8:8 + length])
    record.feature["labels"].int32_list.value[0] = -1
    changed = record.SerializeToString()
    (folder / "part-0").write_bytes(struct.pack("<q", len(changed)) + changed + content[8 + length:])
    assert_one_error(train("--dataset_dir", folder), "label -1 is no class")


def test_sixty_thousand_records_are_scanned_in_a_second(tmp_path):
    """Framing, features, labels, every image's header and checksums: 0.8 s here. The limit is generous."""
    import time

    folder = foreign(tmp_path / "d", part_of=lambda index: 0)
    (folder / "part-0").write_bytes((folder / "part-0").read_bytes() * 1200)
    start = time.process_time()
    assert open_dataset(str(folder)).records == 60000
    seconds = time.process_time() - start
    print("60,000 records scanned in {:.2f} s".format(seconds))
    assert seconds < 10


# -- fuzz -----------------------------------------------------------------------------

def mutate(folder, rng):
    """Flip bits, cut, swap or repeat bytes of one file, or lose or exchange parts."""
    files = sorted(path for path in folder.iterdir())
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "flip", "cut", "swap", "repeat", "zero", "insert", "lose", "exchange"])
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 1, 2, 10])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[rng.randrange(len(content)):]
    elif kind == "swap":
        a, b = sorted(rng.sample(range(len(content)), 2))
        size = min(rng.randrange(1, 40), b - a)
        content[a:a + size], content[b:b + size] = content[b:b + size], content[a:a + size]
    elif kind == "repeat":
        a = rng.randrange(len(content))
        content[a:a] = content[a:a + rng.randrange(1, 40)]
    elif kind == "zero":
        a = rng.randrange(len(content))
        content[a:a + 16] = bytes(len(content[a:a + 16]))
    elif kind == "insert":
        content.insert(rng.randrange(len(content)), rng.randrange(256))
    elif kind == "lose":
        return path.unlink()
    elif kind == "exchange":
        other = rng.choice(files)
        content = bytearray(other.read_bytes())
    path.write_bytes(bytes(content))


def read_all_with_oneflow(folders):
    """{folder: labels} of datasets that passed the checks, read to the end by the training's own pipeline, in one process."""
    code = ("import sys, json\n"
            "from lenet_train import ImagePipeline, Spec\n"
            "from ofrecord.scan import open_dataset\n"
            "for folder in sys.argv[1:]:\n"
            "    dataset = open_dataset(folder)\n"
            "    pipeline = ImagePipeline(folder, dataset, Spec.of(dataset, 28), 1)\n"
            "    labels = []\n"
            "    for _ in range(dataset.records):\n"
            "        images, label = pipeline()\n"
            "        assert images.numpy().std() > 0\n"
            "        labels.append(int(label.numpy()[0]))\n"
            "    print(json.dumps([folder, labels]), flush=True)\n")
    process = subprocess.run([sys.executable, "-c", code] + [str(folder) for folder in folders], cwd=str(PROJECT),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert process.returncode == 0, process.stdout[-300:] + process.stderr[-2000:]
    return dict(json.loads(line) for line in process.stdout.splitlines())


@pytest.mark.parametrize("kind", ["ours", "another converter's", "gray JPEG"])
def test_fuzz(converted, tmp_path, kind):
    """120 damaged datasets each: a clean error, or a dataset that OneFlow reads to its end."""
    rng = random.Random(kind)
    origin = converted if kind == "ours" else foreign(
        tmp_path / "origin", **(dict(ext=".jpg", flag=cv2.IMREAD_GRAYSCALE) if kind == "gray JPEG" else {}))
    errors, passed = 0, []
    for number in range(120):
        folder = tmp_path / str(number)
        shutil.copytree(str(origin), str(folder))
        mutate(folder, rng)
        try:
            open_dataset(str(folder))
        except InputError as error:
            assert "\n" not in str(error) and str(folder) in str(error), error
            errors += 1
            shutil.rmtree(str(folder))
        else:
            passed.append(folder)
    print("{}: {} clean errors, {} read to the end".format(kind, errors, len(passed)))
    labels = read_all_with_oneflow(passed)
    assert set(labels) == {str(folder) for folder in passed} and errors > 50
    if kind == "ours":  # nothing but the whole dataset passes
        whole = read_all_with_oneflow([origin])[str(origin)]
        for folder in passed:
            assert labels[str(folder)] == whole
