"""The training's settings: names, defaults, ranges and help; from files and options."""

import os
from typing import Literal

from pydantic import model_validator

from runtime.atomic import replace_file
from runtime.cli import ArgumentParser, InputError, os_errors, output
from runtime.settings import (
    NULLS,
    Name,
    StrictModel,
    given_options,
    parse_settings,
    read_yaml,
    setting,
    to_yaml,
)

TITLE = """How `python lenet_train.py` trains. Any of these can be given on the command
line (--steps 100) or in a file of your own (--config FILE) that names only
what differs. `python lenet_train.py --print_config` prints what is in force."""

CONFIG = "config.yaml"  # in a run's folder

# What may differ when a run is resumed, as it changes no weight, or (device) only as it
# rounds them. The datasets themselves are compared, not where they lie.
DATASETS = ("dataset_dir", "eval_dataset_dir")
MAY_CHANGE_ON_RESUME = {
    *DATASETS,
    "run_dir",
    "check_hashes",
    "device",
    "fetch_every",
    "print_every",
    "checkpoint_every",
}
LENGTH = {"steps", "epochs"}  # may change too, unless the learning rate follows from it


class TrainConfig(StrictModel):
    """How to train."""

    dataset_dir: Name = setting("./dataset/", "folder that img2ofrecord.py wrote")
    eval_dataset_dir: Name | None = setting(
        None, "dataset to evaluate on after each epoch; null: the training images, at the end"
    )
    check_hashes: bool = setting(
        True, "compare every part's SHA-256, a second a gigabyte; false: names and sizes only"
    )
    run_dir: Name | None = setting(
        None, "folder for metrics, checkpoints and pictures, and to resume from; null: none"
    )
    batch_size: int = setting(25, "images per step, of all ranks together", ge=1, le=2**20)
    steps: int | None = setting(
        100, "optimizer updates; 50 images in batches of 25 are 2 steps an epoch", ge=1, le=10**9
    )
    epochs: int | None = setting(
        None,
        "passes over the dataset; training ends with steps or epochs, the earlier",
        ge=1,
        le=10**6,
    )
    learning_rate: float = setting(0.001, "Adam's step size, its highest", gt=0, le=1e30)
    schedule: Literal["constant", "cosine"] = setting(
        "constant", "learning rate: constant, or cosine, which falls to 0 along half a wave"
    )
    warmup: float = setting(
        0.0,
        "fraction of all steps in which the learning rate first rises, to where schedule is then",
        ge=0,
        lt=1,
    )
    init: Literal["tutorial", "he"] = setting(
        "tutorial",
        "weight initialization: tutorial (truncated normal, sigma 0.1) or he (sqrt(2 / fan-in))",
    )
    dropout: float = setting(0.5, "fraction of the 512 dense features to drop", ge=0, lt=1)
    label_smoothing: float = setting(
        0.0, "fraction of each label to spread over all classes, in training only", ge=0, lt=1
    )
    augment: bool = setting(True, "vary each training image at random, as the next four say")
    crop: float = setting(0.05, "cut off up to this fraction of its area", ge=0, lt=1)
    rotation: float = setting(0.0, "rotate by up to this many degrees", ge=0, le=180)
    zoom: float = setting(0.0, "stretch width and height by up to this fraction", ge=0, lt=1)
    shift: float = setting(0.0, "move by up to this fraction of its width and height", ge=0, lt=1)
    shuffle_buffer: int = setting(
        1024, "records to draw the next from, at most half the dataset; 0: in order", ge=0, le=10**8
    )
    image_size: int | None = setting(
        None, "pixels, width and height to resize to; null: the dataset's own", ge=1, le=2**16
    )
    graph: bool = setting(False, "true: compile the step as a graph; else op by op")
    amp: bool = setting(False, "true: mixed precision; needs graph and a GPU")
    seed: int = setting(0, "of weights, dropout, augmentation and reader", ge=0, lt=2**63)
    device: Literal["auto", "cuda", "cpu"] = setting(
        "auto", "auto: a GPU where one works, else the CPU"
    )
    fetch_every: int = setting(
        10, "steps between fetches of the losses (a GPU waits at each)", ge=1, le=10**9
    )
    print_every: int = setting(1, "steps between printed losses", ge=1, le=10**9)
    checkpoint_every: int = setting(200, "steps between checkpoints", ge=1, le=10**9)

    @model_validator(mode="after")
    def _go_together(self):
        problems = []
        if self.amp and not self.graph:
            problems.append("amp: OneFlow has mixed precision in graphs only: give --graph too")
        if self.amp and self.device == "cpu":
            problems.append("amp: mixed precision requires a GPU, and device is cpu")
        if not (self.steps or self.epochs):
            problems.append("steps, epochs: give one of them, so that the training ends")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def length_matters(self) -> bool:
        """Whether the learning rate of a step follows from the number of all steps."""
        return self.schedule != "constant" or self.warmup > 0


def parse_config(arguments: list[str] | None = None) -> tuple[TrainConfig, bool]:
    """Return the TrainConfig of all ``--config FILE`` and options, and whether to ``--resume``.

    A run that is resumed has its own file. Raises InputErrors with all wrong values, or
    else with all that does not go together.
    """
    parser = ArgumentParser(description="Train LeNet on an OFRecord dataset with OneFlow.")
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="YAML file whose settings replace defaults; of several the later ones win",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --run_dir from its last checkpoint, with the settings in its "
        "config.yaml; with more --steps or --epochs it is trained for longer, if schedule is "
        "constant and warmup 0",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the settings in force as YAML, and exit"
    )
    given = given_options(parser, TrainConfig, arguments)
    options = given[1]
    files, resume, print_config = map(options.pop, ("config", "resume", "print_config"))
    if resume:
        files = [config_of_run(files, options.get("run_dir"))]
    layers = [(f"{file}: ", read_yaml(file)) for file in files or ()]
    config = parse_settings(TrainConfig, [*layers, given])
    if print_config:
        output(to_yaml(config, TITLE).rstrip())
        raise SystemExit(0)
    for name in DATASETS if resume else ():
        folder = getattr(config, name)
        if folder and not os.path.lexists(folder):
            raise InputError(f"{folder} does not exist; if it was moved, give --{name} DIR too")
    return config, resume


def config_of_run(files: list[str] | None, run_dir: str | None) -> str:
    """Return the path of the settings of the run to resume. Raises InputError without a run."""
    if files or run_dir in (None, *NULLS):
        raise InputError(
            "--resume takes the settings of a run: give --run_dir DIR, and no --config"
        )
    path = os.path.join(run_dir, CONFIG)
    with os_errors(f"resume the run in {run_dir}:", CONFIG):
        os.stat(path)
    return path


def write_config(folder: str, config: TrainConfig, title: str) -> None:
    """Write the settings that a run is resumed with, datasets by absolute paths."""
    paths = {name: getattr(config, name) for name in DATASETS}
    absolute = {name: path and os.path.abspath(path) for name, path in paths.items()}
    text = to_yaml(config.model_copy(update=absolute), title, leave_out=("run_dir",))
    path = os.path.join(folder, CONFIG)
    with os_errors("write", path), replace_file(path, "w") as file:
        file.write(text)
