"""Datasets and whole runs that the tests of the trainer's runs compare with."""

import pytest
from helpers import IMAGES, LABELS, call, convert
from runs import OPTIONS, Trainer


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """The options that name a dataset of 50 images in 4 parts, and one of 15 of them. Read only.

    (Most of the time that a picture of predictions takes goes with the number of images.)
    """
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "labels.txt").write_text("".join(LABELS.read_text().splitlines(True)[:15]))
    evaluation = ["--image_root", IMAGES, "--label_dir", folder / "labels.txt", "--part_num", 2]
    assert convert("--part_num", 4, "--save_dir", folder / "train").code == 0
    assert convert(*evaluation, "--save_dir", folder / "evaluation").code == 0
    return ["--dataset_dir", folder / "train", "--eval_dataset_dir", folder / "evaluation"]


@pytest.fixture(scope="session")
def whole_of(datasets, tmp_path_factory):
    """A function that returns the folder and the Result of a run that was never stopped. Read only."""
    made = {}

    def run(ranks, *mode):
        if (ranks, mode) not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            options = [*datasets, *OPTIONS, *mode, "--run_dir", folder]
            if ranks == 1:  # in this process: faster
                result = call("lenet_train", *options)
            else:
                result = Trainer(folder).run(*options, ranks=ranks)
            assert result.code == 0, result
            made[ranks, mode] = folder, result
        return made[ranks, mode]

    return run


@pytest.fixture(scope="session")
def whole(whole_of):
    """The folder and the Result of a run op by op in one process. Read only."""
    return whole_of(1)
