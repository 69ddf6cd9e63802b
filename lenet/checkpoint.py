"""Checkpoints: one ``.npz`` file each, which NumPy reads without OneFlow and which holds no code.

Entries: the model's weights under the names of its state_dict, the learner's
state under ``training/``, and ``checkpoint``, a JSON text with what the model
was made for and where the run stood. zipfile keeps a checksum of each. A file
may come from a stranger: what is read is never larger than the file, and
names, shapes and types are compared with the model's before it is made.
"""

import os
import zipfile
from typing import Literal, NamedTuple

import numpy as np

from ofrecord.settings import Count, Name, StrictModel, load_json, validate
from runtime.atomic import replace_file
from runtime.cli import ArgumentParser, InputError, os_errors

from .engine import flow
from .model import LeNet, ModelSpec, parameter_shapes

INFO = "checkpoint"  # the JSON entry
TRAINING = "training/"  # prefix of the learner's state

Arrays = dict[str, np.ndarray]  # by name
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]  # {name: (shape, dtype)}


class CheckpointInfo(StrictModel):
    """What is known of a checkpoint besides its arrays."""

    layout: Literal[1] = 1
    spec: ModelSpec
    step: Count  # steps taken
    num_steps: Count  # of the whole run
    eval_loss: float | None
    eval_accuracy: float | None
    execution_mode: Name
    dataset_digests: dict[str, str | None]
    config: dict[str, bool | int | float | str | None]


class Checkpoint(NamedTuple):
    """A checkpoint whose weights are those of its model."""

    path: str
    info: CheckpointInfo
    weights: Arrays
    training_state: Arrays  # the learner's; see check_layout

    def load_model(self) -> LeNet:
        """Return the trained LeNet, on the CPU, in evaluation mode."""
        model = LeNet(self.info.spec)
        model.load_state_dict({name: flow.tensor(w) for name, w in self.weights.items()})
        return model.eval()


def save_checkpoint(
    path: str, info: CheckpointInfo, weights: Arrays, training_state: Arrays
) -> None:
    """Write a checkpoint in place of the one there, whole or not at all. Raises InputError."""
    text = np.frombuffer(info.model_dump_json().encode(), np.uint8)
    state = {TRAINING + name: array for name, array in training_state.items()}
    # As np.savez, which leaves its ZipFile to the garbage collector where the disk is full.
    with (
        os_errors("write", path),
        replace_file(path) as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        for name, array in {INFO: text, **weights, **state}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def add_checkpoint_option(parser: ArgumentParser) -> None:
    """Give a command the option ``--checkpoint``."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE.npz",
        help="checkpoint of the model: last.npz or best.npz of a run",
    )


def open_checkpoint(path: str) -> Checkpoint:
    """Return the checkpoint in a file. Raises InputError where there is none or it is damaged."""
    if os.path.isdir(path):
        raise InputError(
            f"{path} is a folder, and a checkpoint is a file, such as last.npz or best.npz "
            "in a run's folder (folders of earlier versions cannot be read: train again)"
        )
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is not a regular file")
    try:
        arrays = _read_arrays(path)
        info = validate(CheckpointInfo, load_json(arrays.pop(INFO).tobytes()))
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint: {path}: {error.strerror}") from None
    except Exception as error:  # NumPy and zipfile raise all kinds of them for a damaged file
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the checkpoint {path} is damaged: {reason}") from error
    saved = [name for name in arrays if name.startswith(TRAINING)]
    state = {name.removeprefix(TRAINING): arrays.pop(name) for name in saved}
    shapes = parameter_shapes(info.spec)
    check_layout(path, arrays, {name: (shape, np.dtype("f4")) for name, shape in shapes.items()})
    return Checkpoint(path, info, arrays, state)


def _read_arrays(path: str) -> Arrays:
    """Return a file's arrays, by name, which together are not larger than the file."""
    arrays = {}
    with zipfile.ZipFile(path) as file:
        left = os.path.getsize(path)
        for entry in file.infolist():
            name = entry.filename.removesuffix(".npy")
            left -= entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or left < 0 or name in arrays:
                raise ValueError(f"its entry {name} is not as np.savez writes it")
            with file.open(entry) as opened:
                arrays[name] = np.lib.format.read_array(opened, allow_pickle=False)
    if INFO not in arrays:
        raise ValueError(f"it has no entry {INFO}")
    return arrays


def check_layout(path: str, arrays: Arrays, expected: Layout) -> None:
    """Raise InputError where a checkpoint's arrays are not those that are expected.

    (OneFlow's load_state_dict accepts missing and unknown ones in silence.)
    """
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            problem = "does not match the model" if name in found else "is missing"
            raise InputError(f"the checkpoint {path} cannot be used: {name} {problem}")
