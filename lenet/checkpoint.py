"""Checkpoints: one ``.npz`` file each, which NumPy reads without OneFlow and which holds no code.

Entries: the model's weights under the names of its state_dict, the learner's state under
``training/``, the run's figures under ``history/``, and ``checkpoint``, a JSON text with what the
model was made for and where the run stood. zipfile keeps a checksum of each. A file may come from
a stranger: what is read is never larger than the file, and names and shapes are compared with
the model's.
"""

import os
import zipfile
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from runtime.atomic import open_regular_file, replace_file
from runtime.cli import InputError, os_errors
from runtime.settings import Count, Name, StrictModel, load_json, validate

from .spec import ModelSpec

INFO = "checkpoint"  # the JSON entry
LAYOUT = 2
TRAINING, HISTORY = "training/", "history/"  # prefixes of entries

Arrays = dict[str, np.ndarray]  # by name
Layout = dict[str, tuple[tuple[int, ...], str]]  # {name: (shape, type)}


class CheckpointInfo(StrictModel):
    """What is known of a checkpoint besides its arrays."""

    layout: Literal[2] = LAYOUT
    spec: ModelSpec
    step: Count  # steps taken
    num_steps: Count  # of the whole run
    execution_mode: Name
    world_size: Count
    dataset_digests: dict[str, str | None]
    config: dict[str, bool | int | float | str | None]


class Checkpoint(NamedTuple):
    """What a checkpoint file holds."""

    path: str
    info: CheckpointInfo
    weights: Arrays
    training: Arrays  # the learner's state
    history: Arrays  # the figures of the run


def layout_of(arrays: Arrays) -> Layout:
    """Return the shape and the type of each array, by name."""
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in arrays.items()}


def check_layout(path: str, arrays: Arrays, expected: Layout) -> None:
    """Raise InputError where a checkpoint's arrays are not those that are expected.

    (OneFlow's load_state_dict accepts missing and unknown ones in silence.)
    """
    found = layout_of(arrays)
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            problem = "does not match the model" if name in found else "is missing"
            raise InputError(f"the checkpoint {path} cannot be used: {name} {problem}")


def save_checkpoint(checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the one there, whole or not at all. Raises InputError."""
    path, info, weights, training, history = checkpoint
    entries = {INFO: np.frombuffer(info.model_dump_json().encode(), np.uint8), **weights}
    entries |= {TRAINING + name: array for name, array in training.items()}
    entries |= {HISTORY + name: array for name, array in history.items()}
    # As np.savez, which leaves its ZipFile to the garbage collector where the disk is full.
    with (
        os_errors("write", path),
        replace_file(path) as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        for name, array in entries.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def open_checkpoint(path: str) -> Checkpoint:
    """Return what a file holds. Raises InputError where there is none or it is damaged."""
    with os_errors("open the checkpoint", path), open_regular_file(path) as file:
        try:
            arrays = _read_arrays(file)
            fields = load_json(arrays.pop(INFO).tobytes())
            if fields.get("layout") != LAYOUT:
                raise InputError(f"another version of this project wrote {path}: train again")
            info = validate(CheckpointInfo, fields)
        except (OSError, InputError):
            raise
        except Exception as error:  # NumPy and zipfile raise all kinds of them for a damaged file
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"the checkpoint {path} is damaged: {reason}") from error
    groups = {TRAINING: {}, HISTORY: {}, "": {}}
    for name, array in arrays.items():
        prefix = next(prefix for prefix in groups if name.startswith(prefix))
        groups[prefix][name.removeprefix(prefix)] = array
    # A LeNet has thousands of weights for each pixel and class: one that a few bytes only
    # claim to hold is not made.
    num_weights = sum(weights.size for weights in groups[""].values())
    if max(info.spec.width * info.spec.height, info.spec.num_classes) > num_weights:
        raise InputError(f"the checkpoint {path} is damaged: its weights are missing")
    if not all(np.isfinite(each).all() for each in groups[""].values() if each.dtype.kind == "f"):
        raise InputError(
            f"the checkpoint {path} has weights that are no numbers: train again, with a smaller "
            "--learning_rate"
        )
    return Checkpoint(path, info, groups[""], groups[TRAINING], groups[HISTORY])


def _read_arrays(file: BinaryIO) -> Arrays:
    """Return a file's arrays, by name, which together are not larger than the file."""
    arrays, left = {}, os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            left -= entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or left < 0 or name in arrays:
                raise ValueError(f"its entry {name} is not as np.savez writes it")
            with archive.open(entry) as opened:
                arrays[name] = np.lib.format.read_array(opened, allow_pickle=False)
    return arrays
