"""The trainer's configuration: typed, from YAML files and the command line."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser
from jsonargparse.typing import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
    restricted_string_type,
)

from runtime.cli import InputError, first_few, one_line

DEFAULT_FILE = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs", "lenet.yaml"
)


def one_of(*choices: str) -> type:
    """Return the type of a string that is one of ``choices``.

    (For typing.Literal, jsonargparse 4.40's error message does not name the choices.)
    """
    name = " | ".join(choices)
    pattern = "|".join(choices)
    return restricted_string_type(name, f"^({pattern})$", docstring=name)


Device = one_of("auto", "cuda", "cpu")
Decoder = one_of("auto", "bytes", "fused")
Schedule = one_of("constant", "cosine")
Weights = one_of("tutorial", "he")
# OneFlow's range of seeds.
Seed = restricted_number_type(
    "Seed", int, [(">=", 0), ("<", 2**63)], docstring="from 0 to 2**63 - 1"
)
Fraction = restricted_number_type(
    "Fraction", float, [(">=", 0), ("<", 1)], docstring="from 0 to below 1"
)
Angle = restricted_number_type("Angle", float, [(">=", 0), ("<=", 180)], docstring="from 0 to 180")


@dataclass
class TrainConfig:
    """How to train; configs/lenet.yaml has the default values.

    Args:
        dataset_dir: folder of the OFRecord dataset to train on
        eval_dataset_dir: folder of the dataset to evaluate on after each epoch; null: the
            training images, after training
        image_feature: name of the records' image feature, in datasets of other converters
        label_feature: name of the records' label feature, in datasets of other converters
        check_hashes: verify every part's SHA-256; otherwise only of parts that are newer
            than the manifest
        decoder: fused for 3-channel JPEG only, bytes for all formats; auto: fused if every
            image is such a JPEG
        run_dir: folder for configuration, metrics, checkpoints and pictures; null: nothing is saved
        batch_size: images per step, of all ranks together
        steps: maximum number of optimizer updates; null: no limit
        epochs: maximum number of passes over the dataset; null: no limit
        learning_rate: highest learning rate of Adam
        schedule: learning rate schedule; cosine decays to 0 along half a wave
        warmup: fraction of all steps during which the learning rate rises linearly
        weights: weight initialization; tutorial: truncated normal, sigma 0.1; he: truncated
            normal, sigma sqrt(2 / fan-in)
        dropout: fraction of the 512 dense features dropped in training
        augment: augment each training image at random with crop, rotation, zoom and shift
        crop: maximum fraction of the area to crop
        rotation: maximum rotation in degrees, in either direction
        zoom: maximum fraction by which width and height grow or shrink independently
        shift: maximum shift as a fraction of width and height
        shuffle_buffer: number of records from which the reader draws the next one at
            random; 0: read in order
        image_size: width and height in pixels that images are resized to; null: the dataset's own
        graph: compile the training step as a graph; otherwise execute it op by op
        amp: automatic mixed precision with float16; requires graph and a GPU
        seed: random seed of weights, dropout, augmentation and the reader's order
        device: device to train on; auto: a GPU if one works, otherwise the CPU
        fetch_every: number of steps between two fetches of the losses from the device
        print_every: number of steps between two printed losses
        checkpoint_every: number of steps between two checkpoints
        picture: PNG file to draw sample images and the losses to; null: none
    """

    dataset_dir: str
    eval_dataset_dir: str | None
    image_feature: str
    label_feature: str
    check_hashes: bool
    decoder: Decoder
    run_dir: str | None
    batch_size: PositiveInt
    steps: PositiveInt | None
    epochs: PositiveInt | None
    learning_rate: PositiveFloat
    schedule: Schedule
    warmup: Fraction
    weights: Weights
    dropout: Fraction
    augment: bool
    crop: Fraction
    rotation: Angle
    zoom: Fraction
    shift: Fraction
    shuffle_buffer: NonNegativeInt
    image_size: PositiveInt | None
    graph: bool
    amp: bool
    seed: Seed
    device: Device
    fetch_every: PositiveInt
    print_every: PositiveInt
    checkpoint_every: PositiveInt
    picture: str | None


def parse_config(arguments: Sequence[str] | None = None) -> tuple[TrainConfig, bool]:
    """Return the configuration, and whether ``--resume`` was given.

    Values come from configs/lenet.yaml, then ``--config FILE``, then ``--name
    value``. ``arguments`` defaults to the command line's. Raises InputError for
    an unknown setting, an invalid value or a file that cannot be read.
    """
    parser = _Parser(
        default_config_files=[DEFAULT_FILE],
        allow_abbrev=False,
        description="Train LeNet on an OFRecord dataset with OneFlow.",
    )
    parser.add_argument(
        "--config", action=_ConfigFile, help="YAML file whose values override the defaults"
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume the run in run_dir from its last checkpoint"
    )
    parser.add_class_arguments(TrainConfig, as_group=False)
    try:
        values = parser.parse_args(_spell_out(sys.argv[1:] if arguments is None else arguments))
    except (UnicodeDecodeError, AttributeError, RecursionError) as error:
        raise InputError(f"cannot parse the configuration file: {error}") from error
    names = [field.name for field in fields(TrainConfig)]
    config = TrainConfig(**{name: None if values[name] == "" else values[name] for name in names})
    if config.dataset_dir is None:
        raise InputError("dataset_dir is empty: give the folder of the dataset")
    if config.amp and not config.graph:
        raise InputError("amp: OneFlow has mixed precision in graphs only: give --graph too")
    if config.amp and config.device == "cpu":
        raise InputError("amp: mixed precision requires a GPU, and device is cpu")
    if not (config.steps or config.epochs):
        raise InputError("steps and epochs are both null: give at least one of them")
    return config, values.resume


def _spell_out(arguments):
    """``--graph`` as ``--graph=true``, and likewise every setting that is true or false."""
    switches = {"--" + field.name for field in fields(TrainConfig) if field.type is bool}
    following = [*arguments[1:], "--"]
    return [
        argument + "=true" if argument in switches and after.startswith("--") else argument
        for argument, after in zip(arguments, following, strict=False)  # none for no arguments
    ]


class _ConfigFile(ActionConfigFile):
    """``--config FILE``, read here first, as jsonargparse's error messages do not name the file."""

    def __call__(self, parser, namespace, path, option_string=None):
        try:
            with open(path, encoding="utf-8") as file:
                settings = yaml.safe_load(file)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path} is not valid YAML: {_in_one_line(error)}") from error
        if not isinstance(settings, dict) or all(value is None for value in settings.values()):
            raise InputError(f"{path} contains no settings; expected lines such as `steps: 200`")
        known = {field.name for field in fields(TrainConfig)}
        known.add("resume")  # --print_config prints it
        unknown = [str(name) for name in settings if name not in known]
        if unknown:
            noun = "setting" if len(unknown) == 1 else "settings"
            names = first_few(repr(name) for name in unknown)
            raise InputError(f"{path}: unknown {noun} {names}; configs/lenet.yaml lists them all")
        super().__call__(parser, namespace, path, option_string)


class _Parser(ArgumentParser):
    def error(self, message, exception=None):
        raise InputError(f"{_in_one_line(message)} (--help lists the options)")


def _in_one_line(message):
    return one_line(" ".join(str(message).split()))
