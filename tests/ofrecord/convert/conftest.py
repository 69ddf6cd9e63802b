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
    root = tmp_path_factory.mktemp("many")
    (root / "in").mkdir()
    names = sorted(path.name for path in IMAGES.iterdir())

    def options(count, *more):
        labels = root / f"{count}.txt"
        if not labels.exists():
            lines = []
            for index in range(count):
                turn, place = divmod(index, len(names))
                if not (root / "in" / str(turn)).exists():
                    (root / "in" / str(turn)).symlink_to(IMAGES)
                lines.append(f'{{"{turn}/{names[place]}": {index % 10}}}\n')
            labels.write_text("".join(lines))
        return ["--image_root", root / "in", "--label_dir", labels, "--part_num", 10, *more]

    return options


@pytest.fixture
def whole(tmp_path):
    """``whole(*options)``: the files that a conversion without an interruption makes."""

    def make(*options):
        assert convert(*options, "--save_dir", tmp_path / "whole").code == 0
        return snapshot(tmp_path / "whole")

    return make
