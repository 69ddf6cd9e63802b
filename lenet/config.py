"""The training's settings: names, defaults, ranges and help; from files and options."""

import os
import re
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, model_validator

from ofrecord.settings import Layer, Name, StrictModel, given_options, parse_settings, text_of
from runtime.atomic import read_small_file
from runtime.cli import ArgumentParser, InputError, one_line, os_errors, output

TITLE = """How `python lenet_train.py` trains. Any of these can be given on the command
line (--steps 100) or in a file of your own (--config FILE) that names only
what differs. `python lenet_train.py --print_config` prints what is in force."""

CONFIG, METRICS = "config.yaml", "metrics.csv"  # in a run's folder

RENAMED = {
    "weights": "it is named init now",
    "decoder": "it was removed, as it follows from the dataset",
    "image_feature": "it is an option of `python -m ofrecord index` now",
    "label_feature": "it is an option of `python -m ofrecord index` now",
    "picture": "it was removed: run_dir has loss.png and predictions.png",
}


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A field of TrainConfig."""
    return Field(default, description=help, **limits)


class TrainConfig(StrictModel):
    """How to train."""

    dataset_dir: Name = setting("./dataset/", "folder that img2ofrecord.py wrote")
    eval_dataset_dir: Name | None = setting(
        None, "dataset to evaluate on after each epoch; null: the training images, at the end"
    )
    check_hashes: bool = setting(
        False, "true: compare every part's SHA-256 (a second a gigabyte); else of changed parts"
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
        0.0, "fraction of all steps in which the learning rate first rises", ge=0, lt=1
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
        None, "pixels, width and height to resize to; null: the dataset's own", ge=1, le=2**40
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
        if self.amp and not self.graph:
            raise ValueError("amp: OneFlow has mixed precision in graphs only: give --graph too")
        if self.amp and self.device == "cpu":
            raise ValueError("amp: mixed precision requires a GPU, and device is cpu")
        if not (self.steps or self.epochs):
            raise ValueError("steps, epochs: give one of them, so that the training ends")
        return self


# What may differ when a run is resumed, as it changes no weight, or (device) only as it
# rounds them. The datasets themselves are compared, not where they lie.
FOLDERS = {"dataset_dir", "eval_dataset_dir", "run_dir"}
MAY_CHANGE_ON_RESUME = FOLDERS | {
    "check_hashes",
    "device",
    "fetch_every",
    "print_every",
    "checkpoint_every",
}
LENGTH = {"steps", "epochs"}  # may change too, unless the learning rate follows from it


def parse_config(arguments: list[str] | None = None) -> tuple[TrainConfig, bool]:
    """Return the TrainConfig of ``--config FILE`` and the options, and whether to ``--resume``.

    Raises InputErrors with everything that is wrong in both.
    """
    parser = ArgumentParser(description="Train LeNet on an OFRecord dataset with OneFlow.")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file whose settings replace defaults"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in run_dir from its last checkpoint, with the settings in its "
        "config.yaml; with more --steps or --epochs it is trained for longer, if schedule is "
        "constant and warmup 0",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the settings in force as YAML, and exit"
    )
    given = given_options(parser, TrainConfig, arguments)
    file, resume, print_config = (
        given.settings.pop(name) for name in ("config", "resume", "print_config")
    )
    if resume and not file and given.settings.get("run_dir"):
        file = os.path.join(given.settings["run_dir"], CONFIG)
        file = file if os.path.exists(file) else None
    layers = [Layer(f"{file}: ", read_yaml(file)), given] if file else [given]
    if file and resume and os.path.exists(os.path.join(os.path.dirname(file), METRICS)):
        # The run of a config.yaml lies beside it, wherever it was copied or moved.
        layers.insert(1, Layer(f"{file}: ", {"run_dir": os.path.dirname(file) or "."}))
    config = parse_settings(TrainConfig, layers, RENAMED)
    if print_config:
        output(to_yaml(config, TITLE).rstrip(), flush=True)
        raise SystemExit(0)
    if resume:
        check_run(config)
    return config, resume


def check_run(config: TrainConfig) -> None:
    """Raise InputError unless there is a run to resume, with datasets where it says."""
    if not config.run_dir:
        raise InputError("--resume requires the run's folder: --run_dir DIR")
    if not os.path.isfile(os.path.join(config.run_dir, METRICS)):
        raise InputError(f"no run to resume in {config.run_dir}: start it without --resume")
    for name in sorted(FOLDERS):
        folder = getattr(config, name)
        if folder and not os.path.lexists(folder):
            raise InputError(f"{folder} does not exist; if it was moved, give --{name} DIR too")


# -- YAML -------------------------------------------------------------------------


def read_yaml(path: str) -> dict[str, str]:
    """Return a YAML file's settings, {name: text}. Raises InputError."""
    try:
        with os_errors("read", path):
            settings = yaml.load(read_small_file(path, 2**20), Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = one_line(" ".join(str(error).split()))
        raise InputError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(settings, dict) or not settings:
        raise InputError(f"{path} contains no settings; expected lines such as `steps: 200`")
    return settings


class _Loader(yaml.BaseLoader):
    """Leaves every value as the text that is written: parse_settings alone decides on types."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"the name {name!r} is there twice")
        return super().construct_mapping(node, deep)


def to_yaml(model: BaseModel, title: str) -> str:
    """Return a model's values as a YAML file, each with its help as a comment."""
    lines = {name: f"{name}: {_quoted(text_of(value))}" for name, value in model}
    width = max(map(len, lines.values()))
    fields = type(model).model_fields
    body = [f"{line:{width}}  # {fields[name].description}" for name, line in lines.items()]
    return "\n".join([f"# {one_line(line)}" for line in title.split("\n")] + body) + "\n"


def _quoted(text: str) -> str:
    """A text as it can stand in a YAML file."""
    if re.fullmatch(r"[\w./~+-]+", text):
        return text
    return yaml.dump(text, default_style='"', width=10**6).strip()
