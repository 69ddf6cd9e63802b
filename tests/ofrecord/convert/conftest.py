"""Images to convert that a test may change, and what is left of a conversion that was stopped."""

import shutil

import pytest
from helpers import IMAGES, convert, snapshot


@pytest.fixture
def own(tmp_path):
    """Thirty of the tutorial's images in a folder that a test may change; the converter's options for them."""
    (tmp_path / "in").mkdir()
    for path in sorted(IMAGES.iterdir())[:30]:
        shutil.copy2(path, tmp_path / "in")
    rows = (f"{path.name} {path.stem[-1]}\n" for path in sorted((tmp_path / "in").iterdir()))
    (tmp_path / "labels.txt").write_text("".join(rows))
    return [
        *["--image_root", tmp_path / "in", "--label_dir", tmp_path / "labels.txt"],
        *["--part_num", 6, "--save_dir", tmp_path / "d"],
    ]


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """``many(count, *more)``: the converter's options for so many images, the tutorial's by a lot of names."""
    root, names = tmp_path_factory.mktemp("many"), sorted(path.name for path in IMAGES.iterdir())

    def options(count, *more):
        folders = range(-(-count // len(names)))
        for folder in map(str, folders):
            (root / folder).is_symlink() or (root / folder).symlink_to(IMAGES)
        paths = [f"{folder}/{name}" for folder in folders for name in names][:count]
        lines = (f'{{"{path}": {index % 10}}}\n' for index, path in enumerate(paths))
        (root / f"{count}.txt").write_text("".join(lines))
        labels = root / f"{count}.txt"
        return ["--image_root", root, "--label_dir", labels, "--part_num", 10, *more]

    return options


@pytest.fixture
def whole(tmp_path):
    """``whole(*options)``: the files that a conversion without an interruption makes."""

    def make(*options):
        assert convert(*options, "--save_dir", tmp_path / "whole").code == 0
        return snapshot(tmp_path / "whole")

    return make
