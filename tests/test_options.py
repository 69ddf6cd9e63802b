"""The converter beyond the tutorial: label sources, options, bars and lines."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import termios
import time

import cv2
import numpy as np
import pytest
from helpers import (
    IMAGES,
    assert_one_error,
    convert,
    losses,
    part_files,
    read_manifest,
    records,
    run_script,
    snapshot,
    start_script,
)
from kinds import KINDS

from ofrecord.options import ConvertOptions

NAMES = sorted(os.listdir(IMAGES))


def png(level, shape=(8, 9)):
    return cv2.imencode(".png", np.full(shape, level, np.uint8))[1].tobytes()


def write_images(root, levels):
    """Small images of one gray level each, from {name: level}."""
    for name, level in levels.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(level))


def convert_in(folder, *arguments):
    """Convert FOLDER/in to FOLDER/d, in one part."""
    return convert(
        *("--image_root", folder / "in", "--save_dir", folder / "d", "--part_num", 1), *arguments
    )


def levels_and_labels(folder):
    """[(gray level of the image, label)] of all records, in order."""
    return [(int(pixels(image)[0, 0]), label) for image, label in records(folder)]


def classes(folder):
    """(number of classes, their names) as the manifest says."""
    manifest = read_manifest(folder)
    return manifest["num_classes"], manifest["class_names"]


def pixels(image):
    return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED)


# -- CSV ------------------------------------------------------------------------------


def test_csv_with_numbers(tmp_path):
    write_images(tmp_path / "in", {"a.png": 1, "b c.png": 2, "x/y/数字.png": 3})
    text = '\ufefffile,width,label\r\na.png,9,10\r\n\r\n"b c.png",9, 2\r\nx/y/数字.png,9,0\r\n'
    (tmp_path / "labels.csv").write_bytes(text.encode())
    result = convert_in(tmp_path, "--label_dir", tmp_path / "labels.csv")
    assert result.code == 0, result
    assert levels_and_labels(tmp_path / "d") == [(1, 10), (2, 2), (3, 0)]
    assert classes(tmp_path / "d") == (11, None)
    assert "x/y/数字.png feature saved" in result.out


def test_csv_with_class_names(tmp_path):
    write_images(tmp_path / "in", {"a.png": 1, "b.png": 2, "c.png": 3})
    text = "Class,Image\n狗,a.png\ncat,b.png\n狗,c.png\n"
    (tmp_path / "labels.CSV").write_text(text, encoding="utf-8")
    assert convert_in(tmp_path, "--label_dir", tmp_path / "labels.CSV").code == 0
    assert levels_and_labels(tmp_path / "d") == [(1, 1), (2, 0), (3, 1)]
    assert classes(tmp_path / "d") == (2, ["cat", "狗"])


def test_csv_whose_header_has_line_breaks_in_quotes(tmp_path):
    write_images(tmp_path / "in", {"a.png": 1, "b.png": 2})
    text = '  \n"image","what it\nis, in\n\nshort",label\na.png,"x\ny",1\nb.png,z,0\n'
    (tmp_path / "labels.csv").write_text(text)
    result = convert_in(tmp_path, "--label_dir", tmp_path / "labels.csv")
    assert result.code == 0, result
    assert levels_and_labels(tmp_path / "d") == [(1, 1), (2, 0)]


def test_lines_whose_first_name_has_an_open_quote_are_no_table(tmp_path):
    write_images(tmp_path / "in", {'"a.png': 1, "b.png": 2})
    (tmp_path / "labels.txt").write_text('"a.png 1\nb.png 0\n')
    result = convert_in(tmp_path, "--label_dir", tmp_path / "labels.txt")
    assert result.code == 0, result
    assert levels_and_labels(tmp_path / "d") == [(1, 1), (2, 0)]


BAD_CSV = {
    "empty file": ("", ["line 1", "header"]),
    "no header": ("a.png,1\nb.png,2\n", ["line 1", "header", "'a.png'"]),
    "short line": ("image,label\na.png\n", ["line 2", "1 column"]),
    "empty label": ("image,label\na.png,\n", ["line 2", "empty"]),
    "too large": ("image,label\na.png,3000000000\n", ["line 2", "int32"]),
    "twice": ("image,label\na.png,1\na.png,1\n", ["line 3", "duplicate image", "line 2"]),
    "outside": ("image,label\n../a.png,1\n", ["line 2", "outside"]),
    "no images": ("image,label\n", ["no images"]),
    "open quote": ('image,label\n"a.png,1\n', ["invalid CSV"]),
    "Latin-1": ("image,label\n\xff.png,1\n".encode("latin-1"), ["UTF-8"]),
}


@pytest.mark.parametrize("text, texts", BAD_CSV.values(), ids=list(BAD_CSV))
def test_bad_csv(tmp_path, text, texts):
    write_images(tmp_path / "in", {"a.png": 1})
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "labels.csv").write_bytes(content)
    assert_one_error(convert_in(tmp_path, "--label_dir", tmp_path / "labels.csv"), *texts)
    assert not (tmp_path / "d").exists()


# -- class folders --------------------------------------------------------------------


def test_class_folders(tmp_path):
    write_images(
        tmp_path / "in",
        {"dog/2.png": 20, "dog/1.png": 10, "cat/deep/er/9 9.png": 90, "猫 x/图.png": 50},
    )
    (tmp_path / "in/dog/Thumbs.db").write_text("")
    (tmp_path / "in/.hidden").mkdir()
    result = convert_in(tmp_path, "--class_folders")
    assert result.code == 0, result
    assert levels_and_labels(tmp_path / "d") == [(90, 0), (10, 1), (20, 1), (50, 2)]
    assert classes(tmp_path / "d") == (3, ["cat", "dog", "猫 x"])
    assert re.search(r"warning: skipped 1 file.*dog/Thumbs\.db", result.err)


def test_bad_class_folders(tmp_path):
    (tmp_path / "in").mkdir()
    assert_one_error(convert_in(tmp_path, "--class_folders"), "no class folders")
    write_images(tmp_path / "in", {"cat/1.png": 1, "stray.png": 1})
    assert_one_error(convert_in(tmp_path, "--class_folders"), "stray.png is not in a class folder")
    (tmp_path / "in/stray.png").unlink()
    (tmp_path / "in/empty").mkdir()
    assert_one_error(convert_in(tmp_path, "--class_folders"), "empty", "has no images")
    result = convert_in(tmp_path, "--class_folders", "--label_dir", "x.csv")
    assert_one_error(result, "--class_folders", "--label_dir")


def test_names_that_are_not_text(tmp_path):
    write_images(tmp_path / "in", {"a/1.png": 1, "a/\udcff.png": 2, "b/1.png": 3})
    (tmp_path / "in/a/\udcfe.png").write_bytes(b"")
    result = convert_in(tmp_path, "--class_folders", "--skip_bad")
    assert result.code == 0, result
    assert levels_and_labels(tmp_path / "d") == [(1, 0), (2, 0), (3, 1)]
    assert [item["file"] for item in read_manifest(tmp_path / "d")["skipped"]] == ["a/\\xfe.png"]
    write_images(tmp_path / "in", {"\udcff/1.png": 1})
    assert convert_in(tmp_path, "--class_folders", "--skip_bad").code == 0
    assert read_manifest(tmp_path / "d")["class_names"] == ["\\xff", "a", "b"]


def test_links_to_folders_are_followed_once(tmp_path):
    write_images(tmp_path, {"in/cat/1.png": 1, "elsewhere/2.png": 2})
    (tmp_path / "in/cat/again").symlink_to(tmp_path / "in/cat")
    (tmp_path / "in/dog").symlink_to(tmp_path / "elsewhere")
    assert convert_in(tmp_path, "--class_folders").code == 0
    found = levels_and_labels(tmp_path / "d")
    assert set(found) == {(1, 0), (2, 1)} and len(found) == 2


def test_images_without_a_label_and_labels_without_an_image(tmp_path):
    write_images(tmp_path / "in", {"a.png": 1, "b.png": 2, "sub/c.JPG": 3})
    (tmp_path / "labels.txt").write_text('{"a.png": 0}\n{"gone.png": 1}\n')
    result = convert_in(tmp_path, "--label_dir", tmp_path / "labels.txt")
    assert_one_error(result, "gone.png: missing, but it has a label")
    assert re.search(
        r"warning: skipped 2 images without a label in .*b\.png, sub/c\.JPG", result.err
    )


# -- options --------------------------------------------------------------------------


def test_shuffle_is_seeded_and_keeps_labels_with_images(converted, tmp_path):
    for name, arguments in {"a": [], "b": ["--seed", 0], "c": ["--seed", 1]}.items():
        assert convert("--save_dir", tmp_path / name, "--shuffle", *arguments).code == 0
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    plain, a, c = (records(folder) for folder in (converted, tmp_path / "a", tmp_path / "c"))
    assert plain != a != c != plain and sorted(plain) == sorted(a) == sorted(c)


@pytest.mark.parametrize("size, shape", [("14x10", (10, 14)), ("56x60", (60, 56))])
def test_size(tmp_path, size, shape):
    result = convert("--size", size, "--fit", "stretch", "--save_dir", tmp_path / "d")
    assert result.code == 0, result
    stored = [pixels(image) for image, _ in records(tmp_path / "d")]
    assert {image.shape for image in stored} == {shape}
    manifest = read_manifest(tmp_path / "d")
    assert (manifest["height"], manifest["width"]) == shape
    assert manifest["mean"] == pytest.approx([np.mean(stored)], abs=1e-5)
    whole = cv2.imread(str(IMAGES / "00000030_3.png"), cv2.IMREAD_GRAYSCALE)
    interpolation = cv2.INTER_AREA if shape[0] < 28 else cv2.INTER_CUBIC
    resized = cv2.resize(whole, shape[::-1], interpolation=interpolation)
    np.testing.assert_array_equal(stored[0], resized)
    assert "50 resized" in result.err


def stripes(across):
    """100x300 or 300x100, of three 100x100 squares: red, green, blue, left to right or downwards."""
    squares = [np.full((100, 100, 3), BGR[name], np.uint8) for name in ("red", "green", "blue")]
    return np.concatenate(squares, axis=1 if across else 0)


BGR = {"red": (0, 0, 200), "green": (0, 200, 0), "blue": (200, 0, 0), "bar": (147, 20, 255)}


def fit(folder, image, *options):
    """Convert one image with these options; return its stored pixels and the manifest."""
    (folder / "in" / "a").mkdir(parents=True)
    cv2.imwrite(str(folder / "in" / "a" / "a.png"), image)
    result = convert_in(folder, "--class_folders", *options)
    assert result.code == 0, result
    return pixels(records(folder / "d")[0][0]), read_manifest(folder / "d")


@pytest.mark.parametrize("across", [True, False], ids=["wide", "tall"])
@pytest.mark.parametrize(
    "option, columns",
    [
        ([], ["green"] * 30),
        (["--fit", "crop"], ["green"] * 30),
        (["--fit", "stretch"], ["red"] * 10 + ["green"] * 10 + ["blue"] * 10),
    ],
    ids=["default", "crop", "stretch"],
)
def test_fit_of_a_picture_of_three_squares(tmp_path, across, option, columns):
    stored, manifest = fit(tmp_path, stripes(across), "--size", "30x30", *option)
    if not across:
        stored = stored.transpose(1, 0, 2)
    expected = np.array([[BGR[name] for name in columns]] * 30)
    np.testing.assert_array_equal(stored, expected)
    assert manifest["fit"] == (option or [0, "crop"])[1]


@pytest.mark.parametrize("across", [True, False], ids=["wide", "tall"])
def test_fit_pad_keeps_all_of_the_picture_between_bars(tmp_path, across):
    options = ["--size", "30x30", "--fit", "pad", "--background", "deeppink"]
    stored, manifest = fit(tmp_path, stripes(across), *options)
    stored = stored if across else stored.transpose(1, 0, 2)
    colors = ["red"] * 10 + ["green"] * 10 + ["blue"] * 10
    expected = np.full((30, 30, 3), BGR["bar"])
    expected[10:20] = [BGR[name] for name in colors]
    np.testing.assert_array_equal(stored, expected)
    assert manifest["fit"] == "pad"


def test_fit_pad_of_a_gray_image_stays_gray(tmp_path):
    image = np.full((10, 40), 7, np.uint8)
    stored, _ = fit(tmp_path, image, "--size", "20x15", "--fit", "pad", "--background", "#808080")
    assert stored.shape == (15, 20)
    assert (stored[5:10] == 7).all() and (stored[:5] == 128).all() and (stored[10:] == 128).all()


@pytest.mark.parametrize("shape", [(1, 900), (900, 1), (3, 4)], ids=str)
@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", ["1x1", "7x9", "64x48"])
def test_every_fit_of_every_shape_has_the_size(tmp_path, shape, how, size):
    stored, _ = fit(tmp_path, np.full(shape, 7, np.uint8), "--size", size, "--fit", how)
    assert stored.shape == tuple(map(int, size.split("x")))[::-1]


def test_an_image_of_the_same_aspect_ratio_is_the_same_in_every_fit(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for size, interpolation in (("20x15", cv2.INTER_AREA), ("60x45", cv2.INTER_CUBIC)):
        resized = cv2.resize(image, tuple(map(int, size.split("x"))), interpolation=interpolation)
        for how in ("crop", "pad", "stretch"):
            stored, _ = fit(tmp_path / size / how, image, "--size", size, "--fit", how)
            np.testing.assert_array_equal(stored, resized)


def test_fit_without_a_size(tmp_path, converted):
    assert_one_error(convert("--fit", "pad", "--save_dir", tmp_path / "d"), "--fit", "--size")
    assert read_manifest(converted)["fit"] is None


def test_the_size_that_images_have_already(converted, tmp_path):
    result = convert("--size", "28x28", "--save_dir", tmp_path / "d")
    assert "resized" not in result.err
    assert records(tmp_path / "d") == records(converted)
    assert read_manifest(tmp_path / "d")["parts"] == read_manifest(converted)["parts"]


def test_color(tmp_path):
    assert convert("--color", "color", "--save_dir", tmp_path / "d").code == 0
    assert read_manifest(tmp_path / "d")["channels"] == 3


def test_quality(tmp_path):
    arguments = {"low": ["--quality", 20], "usual": [], "95": ["--quality", 95]}
    for name, quality in arguments.items():
        save_dir = ["--save_dir", tmp_path / name]
        assert convert("--img_format", ".jpg", *save_dir, *quality).code == 0
    low, usual = (
        sum(len(image) for image, _ in records(tmp_path / name)) for name in ("low", "usual")
    )
    assert low < 0.8 * usual
    assert snapshot(tmp_path / "usual") == snapshot(tmp_path / "95")


def test_trains_on_padded_part_names(tmp_path):
    result = convert("--part_name_suffix_length", 5, "--part_num", 12, "--save_dir", tmp_path / "d")
    assert result.code == 0, result
    assert part_files(tmp_path / "d")[11].name == "part-00011"
    # In a process of its own: OneFlow aborts where it does not find a part.
    arguments = ["--dataset_dir", tmp_path / "d", "--device", "cpu", "--steps", 1]
    result = run_script("lenet_train.py", *arguments, "--batch_size", 1)
    assert len(losses(result)) == 1


@pytest.mark.parametrize(
    "save_dir, val_dir",
    [
        ("./dataset/", "dataset_val/"),
        ("x/y", "x/y_val/"),
        ("/x/y/", "/x/y_val/"),
        ("../x", "../x_val/"),
    ],
)
def test_the_validation_folder_is_beside_the_other(save_dir, val_dir):
    assert ConvertOptions(save_dir=save_dir, val_fraction=0.1).folders["val"] == val_dir


def test_the_validation_folder_beside_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ConvertOptions(save_dir=".", val_fraction=0.1, image_root=str(IMAGES))
    assert options.folders["val"] == f"../{tmp_path.name}_val/"


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--size", "28"], "--size: it should be WxH, such as 28x28"),
        (["--size", "0x28"], "not '0x28'"),
        (["--size", "28x28x3"], "--size"),
        (["--size", "28x65537"], "in all, not '28x65537'"),
        (["--label_dir", ""], "--label_dir: it should have at least 1 character, not ''"),
        (["--quality", "50"], "--img_format is .png"),
        (["--quality", "0", "--img_format", ".jpg"], "--quality: "),
        (["--quality", "101", "--img_format", ".jpg"], "--quality: "),
        (["--color", "sepia"], "sepia"),
        (["--seed", "3"], "--shuffle"),
        (["--workers", "0"], "--workers"),
        (["--part_name_suffix_length", "0"], "part_name_suffix_length"),
        (["--progress", "loud"], "loud"),
    ],
)
def test_bad_options(tmp_path, arguments, text):
    assert_one_error(convert("--save_dir", tmp_path / "d", *arguments), text)
    assert not (tmp_path / "d").exists()


def test_all_wrong_options_are_reported_together(tmp_path):
    arguments = ["--part_num", "0", "--size", "28", "--nonsense", "1", "--val_share", "0.1"]
    result = convert("--save_dir", tmp_path / "d", *arguments)
    assert result.code == 2 and not (tmp_path / "d").exists(), result
    lines = [line.removeprefix("img2ofrecord.py: error: ") for line in result.err.splitlines()]
    assert [line.split(" ")[0] for line in lines[:-1]] == [
        "--nonsense:",
        "--val_share:",
        "--part_num:",
        "--size:",
    ]
    assert lines[1].endswith("it is named val_fraction now") and lines[-1].startswith("4 wrong")
    arguments = ["--quality", 50, "--seed", 1, "--val_dir", "v", "--image_root", "nowhere"]
    result = convert("--save_dir", tmp_path / "d", *arguments)
    assert result.code == 2 and len(result.err.splitlines()) == 5, result
    for text in ("--quality", "--seed", "--val_dir", "nowhere does not exist", "4 wrong settings"):
        assert text in result.err, result


# -- bad images: skipped, or found without writing ----------------------------------------

BAD = {NAMES[3], NAMES[7], NAMES[11]}


@pytest.fixture
def spoiled(project):
    """The tutorial's project with three invalid images: one missing, one truncated, one empty."""
    folder = project / "data/images/train_set"
    (folder / NAMES[3]).unlink()
    (folder / NAMES[7]).write_bytes((folder / NAMES[7]).read_bytes()[:-20])
    (folder / NAMES[11]).write_bytes(b"")
    return project


def warned_of(result):
    """The names of the images, each in a warning of its own."""
    lines = [line for line in result.err.splitlines() if ": warning: " in line]
    return {name for name in NAMES for line in lines if f"./data/images/train_set/{name}: " in line}


def test_skip_bad(spoiled):
    result = convert("--skip_bad", cwd=spoiled)
    assert result.code == 0, result
    manifest = read_manifest(spoiled / "dataset")
    assert {item["file"] for item in manifest["skipped"]} == BAD
    assert all(item["reason"] for item in manifest["skipped"])
    assert manifest["num_records"] == 47
    assert [part["num_records"] for part in manifest["parts"]] == [10, 10, 9, 9, 9]
    assert warned_of(result) == BAD and "3 of 50 images" in result.err
    assert not any(f"{name} feature saved" in result.out for name in BAD)
    assert result.out.count("feature saved") == 47
    again = run_script("img2ofrecord.py", "--skip_bad", "--workers", 2, cwd=spoiled)
    assert again.code == 0 and again.out == result.out and warned_of(again) == BAD, again


def test_skip_bad_where_all_are_bad(project):
    for name in NAMES:
        (project / "data/images/train_set" / name).write_bytes(b"no image")
    result = convert("--skip_bad", cwd=project)
    assert_one_error(result, "no valid image among the 50 in ./data/images/train_set/")
    assert not (project / "dataset").exists()


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["truncated", "with an end marker"])
def test_a_skipped_colour_image_makes_no_colour_dataset(project, end):
    noise = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    (project / "data/images/train_set" / NAMES[5]).write_bytes(jpeg[: len(jpeg) // 2] + end)
    assert convert("--skip_bad", cwd=project).code == 0
    manifest = read_manifest(project / "dataset")
    assert manifest["num_records"] == 49 and manifest["channels"] == 1


def test_dry_run(spoiled):
    before = snapshot(spoiled)
    result = convert("--dry_run", cwd=spoiled)
    assert result.code == 2, result
    assert all(f"/{name}: " in result.err for name in BAD)
    skipping = convert("--dry_run", "--skip_bad", cwd=spoiled)
    assert skipping.code == 0, skipping
    assert "Dry run: ./dataset/ would hold 47 gray PNG images 28x28, 10 classes, " in skipping.out
    assert ", 9 or 10 in each part; nothing was written" in skipping.out
    assert warned_of(skipping) == BAD
    for out in (result.out, skipping.out):
        assert "feature saved" not in out and "successfully" not in out
    assert snapshot(spoiled) == before


def test_dry_run_finds_what_a_run_would_refuse(spoiled):
    assert_one_error(convert("--dry_run", "--part_num", 99, cwd=spoiled), "--part_num 99")
    (spoiled / "dataset").mkdir()
    (spoiled / "dataset/mine.txt").write_text("")
    assert_one_error(convert("--dry_run", "--skip_bad", cwd=spoiled), "mine.txt", started=True)


def test_dry_run_tells_the_bytes_that_a_run_writes(project, converted):
    result = convert("--dry_run", cwd=project)
    (num_bytes,) = re.findall(r"([\d,]+) bytes", result.out)
    assert not (project / "dataset").exists()
    sizes = [path.stat().st_size for path in part_files(converted)]
    assert int(num_bytes.replace(",", "")) == sum(sizes)


# -- lines or a bar -------------------------------------------------------------------


def read_terminal(descriptor, timeout=60):
    """What is written to the other side of a pseudo-terminal until nobody has it open any more."""
    seen, deadline = b"", time.monotonic() + timeout
    while select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            seen += os.read(descriptor, 2**16)
        except OSError:  # EIO: the end
            return seen.decode()
    raise AssertionError(f"still open after {timeout} s: {seen}")


def test_lines_for_small_datasets_and_a_bar_for_large_ones(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.png").write_bytes(png(0))
    for index in range(1, 1001):
        os.link(tmp_path / "in/0.png", tmp_path / f"in/{index}.png")
    lines = [f'{{"{index}.png": 0}}\n' for index in range(1001)]

    def num_lines(num_images, *arguments):
        (tmp_path / "labels.txt").write_text("".join(lines[:num_images]))
        result = convert_in(tmp_path, "--label_dir", tmp_path / "labels.txt", *arguments)
        assert result.code == 0, result
        assert "%|" not in result.err  # no bar where there is no terminal
        return result.out.count("feature saved")

    assert num_lines(1000) == 1000
    assert num_lines(1000, "--progress", "none") == 0
    assert num_lines(1001) == 0
    assert num_lines(1001, "--progress", "lines") == 1001

    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = start_script(
        *("img2ofrecord.py", "--image_root", tmp_path / "in", "--save_dir", tmp_path / "d"),
        *("--label_dir", tmp_path / "labels.txt"),
        stderr=terminal,
    )
    os.close(terminal)
    seen = read_terminal(ours)
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, seen
    assert "1001/1001" in seen and "image/s" in seen
    assert "feature saved" not in out and "successfully" in out


# -- same in, same out ----------------------------------------------------------------


def test_the_same_bytes_on_any_number_of_workers_and_in_any_folder(tmp_path):
    (tmp_path / "in").mkdir()
    files = [*KINDS.items(), *(("gray.png", png(level, (40, 30))) for level in range(230))]
    with (tmp_path / "labels.txt").open("w") as labels:
        for index, (name, data) in enumerate(files):
            (tmp_path / "in" / f"{index}-{name}").write_bytes(data)
            labels.write(json.dumps({f"{index}-{name}": index % 7}) + "\n")
    options = ["--image_root", tmp_path / "in", "--label_dir", tmp_path / "labels.txt"]
    options += ["--part_num", 7, "--shuffle", "--img_format", ".jpg"]
    assert convert(*options, "--save_dir", tmp_path / "a").code == 0
    for workers, folder in ((2, "b"), (5, "deep/er/c")):
        result = run_script(
            *("img2ofrecord.py", *options, "--save_dir", tmp_path / folder, "--workers", workers),
            env={"PYTHONHASHSEED": str(workers), "TZ": "Asia/Tokyo" if workers == 2 else "UTC"},
        )
        assert result.code == 0, result
        assert snapshot(tmp_path / folder) == snapshot(tmp_path / "a")
    assert len(part_files(tmp_path / "a")) == 7


def test_names_of_folders_and_empty_names(tmp_path):
    write_images(tmp_path / "in", {"7.png": 7, "7/x.png": 1})
    (tmp_path / "labels.csv").write_text("image,label\n7,3\n")
    assert convert_in(tmp_path, "--label_dir", tmp_path / "labels.csv").code == 0
    assert levels_and_labels(tmp_path / "d") == [(7, 3)]
    (tmp_path / "labels.csv").write_text("image,label\n,3\n7.png,1\n")
    result = convert_in(tmp_path, "--label_dir", tmp_path / "labels.csv")
    assert_one_error(result, "line 2: the image's name is empty")


def test_a_class_file_of_an_old_mac(tmp_path):
    write_images(tmp_path / "in", {"cat/1.png": 1, "dog/1.png": 2})
    (tmp_path / "classes.txt").write_bytes(b"dog\rcat\r")
    result = convert_in(tmp_path, "--class_folders", "--classes", tmp_path / "classes.txt")
    assert result.code == 0 and classes(tmp_path / "d") == (2, ["dog", "cat"]), result


@pytest.mark.parametrize(
    "options, text",
    [
        (["--val_fraction", "0.5", "--val_dir", "d/.img2ofrecord"], "is a file of another"),
        (["--val_fraction", "0.5", "--val_dir", "d/part-2"], "is a file of another"),
        (["--background", "#ff000080"], "opaque"),
    ],
)
def test_options_that_would_do_harm(project, options, text):
    assert convert("--save_dir", "d", cwd=project).code == 0
    before = snapshot(project / "d")
    assert_one_error(convert("--save_dir", "d", *options, cwd=project), text)
    assert snapshot(project / "d") == before


def test_a_regular_expression_that_python_warns_of(tmp_path):
    write_images(tmp_path / "in", {f"a/{n}.png": n for n in range(4)})
    options = ["--class_folders", "--val_fraction", 0.5, "--group", "[[0-9]+"]
    result = run_script(
        "img2ofrecord.py",
        *("--image_root", tmp_path / "in", "--save_dir", tmp_path / "d", "--part_num", 1),
        *options,
    )
    assert result.code == 0 and "Warning" not in result.err, result
