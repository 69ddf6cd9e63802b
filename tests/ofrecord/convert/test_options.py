"""The converter's options about how images are stored, and what it shows meanwhile."""

import os

import cv2
import numpy as np
import pytest
from drawn import FILES
from helpers import (  # fmt: skip
    IMAGES,
    LABELS,
    assert_one_error,
    convert,
    part_files,
    read_manifest,
    records,
    run_on_terminal,
    run_script,
    snapshot,
)


def store(folder, image, *options):
    """Convert one image with these options; return its stored pixels and the manifest."""
    (folder / "in" / "a").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "in" / "a" / "a.png"), image)
    options = ["--image_root", folder / "in", "--class_folders", "--part_num", 1, *options]
    assert convert(*options, "--save_dir", folder / "d").code == 0
    stored = np.frombuffer(records(folder / "d")[0][0], np.uint8)
    return cv2.imdecode(stored, cv2.IMREAD_UNCHANGED), read_manifest(folder / "d")


STORED = {  # the colour of an image, options; the shape that is stored, its first row, `fit`
    "7 --color color": (7, (10, 40, 3), [7, 7, 7], None),
    "red --color gray": ([0, 0, 200], (10, 40), 59, None),
    "red --size 20x15": ([0, 0, 200], (15, 20, 3), [0, 0, 200], "crop"),
    "7 --size 20x15 --fit stretch": (7, (15, 20), 7, "stretch"),
    "7 --size 20x15 --fit pad --background #808080": (7, (15, 20), 128, "pad"),
}


@pytest.mark.parametrize("line, wanted", STORED.items(), ids=STORED)
def test_size_fit_background_and_color(tmp_path, line, wanted):
    color, shape, top, fit = wanted
    image = np.full((10, 40, 3)[: 2 + (color != 7)], color, np.uint8)
    stored, manifest = store(tmp_path, image, *line.split()[1:])
    assert stored.shape == shape and (stored[:5] == top).all() and manifest["fit"] == fit
    assert (stored[6:9] == (7 if top == 128 else top)).all()
    background = "#808080" if fit == "pad" else "white"
    found = [manifest[name] for name in ("height", "width", "channels", "background")]
    assert found == [*shape[:2], len(shape) * 2 - 3, background]


def test_quality_and_features(tmp_path):
    image, sizes = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), []
    for quality in 20, 90:
        store(tmp_path, image, "--img_format", ".jpg", "--quality", quality)
        sizes.append(part_files(tmp_path / "d")[0].stat().st_size)
    assert sizes[0] < sizes[1] / 2
    options = ["--image_feature", "encoded", "--label_feature", "class/label"]
    result = convert("--save_dir", tmp_path / "e", *options)
    assert result.code == 0 and read_manifest(tmp_path / "e")["image_feature"] == "encoded"
    data = part_files(tmp_path / "e")[0].read_bytes()
    assert b"encoded" in data and b"class/label" in data


BAD = {  # options that cannot be meant, of the tutorial's images and three folders
    "--size 28": "--size: it should be WxH, such as 28x28, of at most 9,999 pixels a side",
    "--quality 80": "--quality is for JPEG",
    "--val_fraction=": "--val_fraction is empty, such as a variable that is not set",
    "--background nocolor": "--background: ",
    "--background #ff000080": "it should be an opaque color",
    "--fit pad": "--fit says how images get the --size",
    "--image_feature x --label_feature x": "are the same name",
    "--part_num 0": "--part_num: it should be greater than or equal to 1, not '0'",
    "--part_num 51": "--part_num 51 is more than the 50 images",
    "--img_format png": "--img_format: it should be '.png'",
    "--label_dir nowhere.txt": "nowhere.txt: No such file or directory; specify it with --label_dir",
    "--image_root nowhere/": "--image_root nowhere/ does not exist",
    "--val_fraction 0.5 --test_fraction 0.5": "leave nothing to train on",
    "--seed 1": "--seed is for",
    "--val_fraction 0": "--val_fraction: it should be greater than 0",
    "--limit 0": "--limit: it should be greater than or equal to 1",
    "--class_folders --label_column x": "are not for --class_folders",
    "--job 4/3": "--job: it should be K/N",
    "--job 1/6": "--job 1/6: there are only 5 parts",
    "--class_folders --image_root data --save_dir data/d": "--save_dir must be outside",
    "--save_dir data": "data is not empty and contains no dataset",
    "--save_dir other": "other/dataset.json: ",
    "--save_dir README/": "README/ is not a folder",
    "--save_dir README/deeper": "cannot write to README/deeper",
    "--save_dir dangling": "dangling is a link to nothing",
    "--save_dir new --val_fraction 0.1": "new_val/ is not a folder",
    "--save elsewhere": "--save: unknown setting; did you mean",  # abbreviated
    "--part_num 2 extra": "extra",
    "--label_dir data": "the label file data: it is not a regular file",
}


@pytest.mark.parametrize("options, text", BAD.items(), ids=BAD)
def test_options_that_cannot_be_meant(project, options, text):
    (project / "other").mkdir()
    for name in "README", "new_val", "other/dataset.json":
        (project / name).write_text("{}")
    (project / "dangling").symlink_to("nowhere")
    before, names = snapshot(project), sorted(os.listdir(project))
    assert_one_error(convert(*options.split(), cwd=project), text, started=True)
    assert snapshot(project) == before and sorted(os.listdir(project)) == names


def test_all_wrong_options_are_reported_together(project):
    result = convert("--quality", 1, "--seed", 1, "--image_root", "nowhere", cwd=project)
    assert result.code == 2 and len(result.err.splitlines()) == 4, result
    for text in ("--quality", "--seed", "nowhere does not exist", "3 wrong settings"):
        assert text in result.err, result


@pytest.mark.parametrize("save_dir, val_dir", [("x/d/", "x/d_val"), (".", "../out_val")])
def test_the_folder_of_the_validation_set(project, save_dir, val_dir):
    (project / "out").mkdir()
    data = ["--image_root", IMAGES, "--label_dir", LABELS, "--val_fraction", 0.2]
    assert convert(*data, "--save_dir", save_dir, cwd=project / "out").code == 0
    assert (project / "out" / val_dir / "dataset.json").exists()


def test_lines_for_small_datasets_and_a_bar_for_large_ones(many, tmp_path):
    for number, lines in (1000, 1000), (1001, 0):
        result = convert(*many(number), "--save_dir", tmp_path / "d")
        assert result.code == 0 and "%|" not in result.err, result  # no bar: there is no terminal
        assert result.out.count("feature saved") == lines
    result = run_on_terminal("img2ofrecord.py", *many(1001, "--save_dir", tmp_path / "d"))
    assert result.code == 0 and "1001/1001" in result.err and "image/s" in result.err, result
    assert "feature saved" not in result.out and "successfully" in result.out, result


def test_the_same_bytes_on_any_number_of_workers_and_in_any_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/cut.png").write_bytes(b"\x89PNG")
    lines = ["cut.png 1"]
    for index, (name, file) in enumerate(FILES.items()):
        (tmp_path / "in" / name).write_bytes(file.data)
        lines.append(f"{name} {index % 7}")
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    options = ["--image_root", tmp_path / "in", "--label_dir", tmp_path / "labels.txt"]
    options += ["--part_num", 7, "--shuffle", "--img_format", ".jpg", "--skip_bad"]
    assert convert(*options, "--save_dir", tmp_path / "a").code == 0
    result = run_script(
        *("img2ofrecord.py", *options, "--save_dir", tmp_path / "deep/er/b", "--workers", 5),
        env={"PYTHONHASHSEED": "5", "TZ": "Asia/Tokyo"},
    )
    assert result.code == 0, result
    assert snapshot(tmp_path / "deep/er/b") == snapshot(tmp_path / "a")
    assert len(part_files(tmp_path / "a")) == 7
