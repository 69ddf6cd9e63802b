"""The trainer's configuration: typed, from YAML files and the command line."""

import os
import sys
from dataclasses import dataclass, fields
from typing import Optional

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser
from jsonargparse.typing import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
    restricted_string_type,
)

from ofrecord.cli import InputError, one_line, some

DEFAULT_FILE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs", "lenet.yaml")


def one_of(*choices):
    """The type of a string that is one of these. (typing.Literal's error message in jsonargparse 4.40 names none.)"""
    name = " | ".join(choices)
    return restricted_string_type(name, "^({})$".format("|".join(choices)), docstring=name)


Device = one_of("auto", "cuda", "cpu")
Decoder = one_of("auto", "bytes", "fused")
Schedule = one_of("constant", "cosine")
Weights = one_of("tutorial", "he")
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)], docstring="what OneFlow takes, 0 to below 2**63")
Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)], docstring="from 0 up to, not including, 1")
Angle = restricted_number_type("Angle", float, [(">=", 0), ("<=", 180)], docstring="from 0 to 180")


@dataclass
class TrainConfig:
    """How to train. The values stand in configs/lenet.yaml.

    Args:
        dataset_dir: folder of the OFRecord dataset to train on
        eval_dataset_dir: folder of the dataset to evaluate on after each epoch; null takes the training images, at the end
        image_feature: name of the records' image feature, in datasets of other converters
        label_feature: name of the records' label feature, in datasets of other converters
        check_hashes: compare every part's SHA-256 with the manifest first; else of parts that changed since
        decoder: fused is for 3-channel JPEG only, bytes for all; auto takes fused where every image suits it
        run_dir: folder to keep configuration, metrics, checkpoints and pictures in; null keeps nothing
        batch_size: images per step
        steps: optimizer updates at most; null sets no limit
        epochs: passes over the dataset at most; null sets no limit
        learning_rate: Adam's step size, its highest
        schedule: constant, or cosine, which falls to 0 along half a wave
        warmup: share of all steps in which the learning rate rises to its height
        weights: how they start; tutorial is a truncated normal of sigma 0.1, he one of sigma sqrt(2 / inputs of a unit)
        dropout: share of the 512 dense features dropped in training
        augment: vary each training image at random, by the four that follow
        crop: share of its area that may be cut off
        rotation: degrees it may be turned, either way
        zoom: share by which its width and height may grow or shrink, each on its own
        shift: share of its width and height that it may be moved
        shuffle_buffer: records from which the reader draws the next one at random; 0 reads in order
        image_size: pixels, width and height images are resized to; null keeps the dataset's own
        graph: compile the training step as a graph; else op by op
        amp: mixed precision, float16 where it is safe; in a graph, on a GPU
        seed: of weights, dropout, augmentation and the reader's order
        device: auto takes a GPU where one works, else the CPU
        fetch_every: steps between two fetches of the losses from the device
        print_every: steps between two losses that are printed
        checkpoint_every: steps between two checkpoints
        picture: PNG file to draw sample images and the losses into; null draws none
    """

    dataset_dir: str
    eval_dataset_dir: Optional[str]
    image_feature: str
    label_feature: str
    check_hashes: bool
    decoder: Decoder
    run_dir: Optional[str]
    batch_size: PositiveInt
    steps: Optional[PositiveInt]
    epochs: Optional[PositiveInt]
    learning_rate: PositiveFloat
    schedule: Schedule
    warmup: Share
    weights: Weights
    dropout: Share
    augment: bool
    crop: Share
    rotation: Angle
    zoom: Share
    shift: Share
    shuffle_buffer: NonNegativeInt
    image_size: Optional[PositiveInt]
    graph: bool
    amp: bool
    seed: Seed
    device: Device
    fetch_every: PositiveInt
    print_every: PositiveInt
    checkpoint_every: PositiveInt
    picture: Optional[str]


def parse_config(arguments=None):
    """TrainConfig from configs/lenet.yaml, then ``--config FILE``, then ``--name value``; and whether to ``--resume``.

    Raises InputError, in one line, for an unknown name, a wrong type or a
    file that cannot be read.
    """
    parser = _Parser(default_config_files=[DEFAULT_FILE], allow_abbrev=False,
                     description="Train LeNet on an OFRecord dataset with OneFlow.")
    parser.add_argument("--config", action=_ConfigFile, help="YAML file whose values replace the defaults")
    parser.add_argument("--resume", action="store_true", help="go on with the run in run_dir where it was last saved")
    parser.add_class_arguments(TrainConfig, as_group=False)
    try:
        values = parser.parse_args(_spell_out(sys.argv[1:] if arguments is None else arguments))
    except (UnicodeDecodeError, AttributeError, RecursionError) as error:
        raise InputError("cannot understand the configuration file: {}".format(error))
    config = TrainConfig(**{field.name: None if values[field.name] == "" else values[field.name] for field in fields(TrainConfig)})
    if config.dataset_dir is None:
        raise InputError("dataset_dir is empty: name the folder of the dataset")
    if config.amp and not config.graph:
        raise InputError("amp: OneFlow has mixed precision in graphs only: give --graph too")
    if config.amp and config.device == "cpu":
        raise InputError("amp: mixed precision is for GPUs, and device is cpu")
    if not (config.steps or config.epochs):
        raise InputError("how long to train: give steps or epochs")
    return config, values.resume


def _spell_out(arguments):
    """``--graph`` as ``--graph=true``, and likewise every setting that is true or false."""
    switches = {"--" + field.name for field in fields(TrainConfig) if field.type is bool}
    following = arguments[1:] + ["--"]
    return [argument + "=true" if argument in switches and after.startswith("--") else argument
            for argument, after in zip(arguments, following)]


class _ConfigFile(ActionConfigFile):
    """``--config FILE``, looked at first, as jsonargparse's complaints name no file."""

    def __call__(self, parser, namespace, path, option_string=None):
        try:
            with open(path, encoding="utf-8") as file:
                settings = yaml.safe_load(file)
        except OSError as error:
            raise InputError("cannot read {}: {}".format(path, error.strerror))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise InputError("{} is not YAML: {}".format(path, one_line(" ".join(str(error).split()))))
        if not isinstance(settings, dict) or all(value is None for value in settings.values()):
            raise InputError("{} sets nothing: it needs lines such as `steps: 200`".format(path))
        known = {field.name for field in fields(TrainConfig)} | {"resume"}  # --print_config prints it
        unknown = [str(name) for name in settings if name not in known]
        if unknown:
            raise InputError("{}: there is no setting {}; configs/lenet.yaml has them all".format(path, some(unknown)))
        super().__call__(parser, namespace, path, option_string)


class _Parser(ArgumentParser):
    def error(self, message, exception=None):
        raise InputError("{} (--help lists the options)".format(one_line(" ".join(str(message).split()))))
