"""The trainer's configuration: typed, from YAML files and the command line."""

import os
from dataclasses import dataclass
from typing import Optional

from jsonargparse import ActionConfigFile, ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt, restricted_number_type, restricted_string_type

from ofrecord.cli import InputError, one_line

DEFAULT_FILE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs", "lenet.yaml")


def one_of(*choices):
    """The type of a string that is one of these. (typing.Literal's error message in jsonargparse 4.40 names none.)"""
    name = " | ".join(choices)
    return restricted_string_type(name, "^({})$".format("|".join(choices)), docstring=name)


Device = one_of("auto", "cuda", "cpu")
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)], docstring="what OneFlow takes, 0 to below 2**63")
Probability = restricted_number_type("Probability", float, [(">=", 0), ("<", 1)], docstring="from 0 up to, not including, 1")


@dataclass
class TrainConfig:
    """How to train. The values stand in configs/lenet.yaml.

    Args:
        dataset_dir: folder of the OFRecord dataset to train on
        batch_size: images per step
        steps: optimizer updates
        learning_rate: Adam's step size
        dropout: share of the 512 dense features dropped in training
        augment: crop each training image a little, at random
        shuffle_buffer: records from which the reader draws the next one at random; 0 reads in order
        image_size: pixels, width and height images are resized to; null keeps the dataset's own
        seed: of weights, dropout, crops and the reader's order
        device: auto takes a GPU where one works, else the CPU
        fetch_every: steps between two fetches of the losses from the device
        picture: PNG file to draw sample images and the losses into; null draws none
    """

    dataset_dir: str
    batch_size: PositiveInt
    steps: PositiveInt
    learning_rate: PositiveFloat
    dropout: Probability
    augment: bool
    shuffle_buffer: NonNegativeInt
    image_size: Optional[PositiveInt]
    seed: Seed
    device: Device
    fetch_every: PositiveInt
    picture: Optional[str]


def parse_config(arguments=None):
    """TrainConfig from configs/lenet.yaml, then ``--config FILE``, then ``--name value``.

    Raises InputError, in one line, for an unknown name, a wrong type or a
    file that cannot be read.
    """
    parser = _Parser(default_config_files=[DEFAULT_FILE], allow_abbrev=False,
                     description="Train LeNet on an OFRecord dataset with OneFlow.")
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file whose values replace the defaults")
    parser.add_class_arguments(TrainConfig, as_group=False)
    try:
        values = parser.parse_args(arguments)
    except (UnicodeDecodeError, AttributeError, RecursionError) as error:
        raise InputError("cannot understand the configuration file: {}".format(error))
    return parser.instantiate_classes(values)


class _Parser(ArgumentParser):
    def error(self, message, exception=None):
        raise InputError("{} (--help lists the options)".format(one_line(" ".join(str(message).split()))))
