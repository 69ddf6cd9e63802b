"""Checkpoints: one ``.npz`` file each, which NumPy reads without OneFlow and which holds no code.

Entries: the model's weights under the names of its state_dict, the learner's
state under ``training/``, and ``checkpoint``, a JSON text with what the model
was made for and where the run stood. zipfile keeps a checksum of each. A file
may come from a stranger: names, shapes and types are compared with the
model's before anything is allocated.
"""

import math
import os
import stat
import zipfile
from typing import Any, Literal

import numpy as np

from ofrecord.settings import Count, Name, StrictModel, load_json, validate
from runtime.atomic import replace_file
from runtime.cli import ArgumentParser, InputError

from .engine import flow
from .model import LeNet, ModelSpec, parameter_shapes

INFO = "checkpoint"  # the JSON entry
TRAINING = "training/"  # prefix of the learner's state
MOST_INFO = 2**24  # bytes

Layout = dict[str, tuple[tuple[int, ...], np.dtype]]  # {entry: (shape, dtype)}


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


class Checkpoint:
    """A checkpoint file whose entries are what its model needs."""

    def __init__(self, path: str, info: CheckpointInfo, layout: Layout):
        self.path, self.info, self._layout = path, info, layout

    def weights(self) -> dict[str, np.ndarray]:
        """Return the model's weights. Raises InputError where the file is damaged."""
        return self._read(parameter_shapes(self.info.spec))

    def training_state(self, layout: Layout) -> dict[str, np.ndarray]:
        """Return the learner's state, which must have this layout. Raises InputError."""
        found = {
            name.removeprefix(TRAINING): entry
            for name, entry in self._layout.items()
            if name.startswith(TRAINING)
        }
        _compare(self.path, found, layout)
        return {
            name.removeprefix(TRAINING): array
            for name, array in self._read([TRAINING + name for name in layout]).items()
        }

    def load_model(self) -> LeNet:
        """Return the trained LeNet, on the CPU, in evaluation mode. Raises InputError."""
        model = LeNet(self.info.spec)
        model.load_state_dict({n: flow.tensor(array) for n, array in self.weights().items()})
        return model.eval()

    def _read(self, names) -> dict[str, np.ndarray]:
        with _damage(self.path), np.load(self.path, allow_pickle=False) as file:
            return {name: file[name] for name in names}


def save_checkpoint(
    path: str, info: CheckpointInfo, weights: dict[str, np.ndarray], training: dict[str, np.ndarray]
) -> None:
    """Write a checkpoint in place of the one there, whole or not at all. Raises OSError."""
    text = np.frombuffer(info.model_dump_json().encode(), np.uint8)
    state = {TRAINING + name: array for name, array in training.items()}
    # As np.savez, which leaves its ZipFile to the garbage collector where the disk is full.
    with replace_file(path) as file, zipfile.ZipFile(file, "w") as archive:
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
    """Return the Checkpoint at ``path``.

    Raises InputError where there is none, or it is damaged.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"no checkpoint: {path}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise InputError(
            f"{path} is a folder, and a checkpoint is a file, such as last.npz or best.npz "
            "in a run's folder (folders of earlier versions cannot be read: train again)"
        )
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a regular file")
    with _damage(path), zipfile.ZipFile(path) as file:
        layout = _read_layout(file, os.path.getsize(path))
        info = validate(CheckpointInfo, load_json(_read_info(file, layout)))
    found = {
        name: entry
        for name, entry in layout.items()
        if name != INFO and not name.startswith(TRAINING)
    }
    _compare(path, found, {n: (s, np.dtype("f4")) for n, s in parameter_shapes(info.spec).items()})
    return Checkpoint(path, info, layout)


def _read_layout(file: zipfile.ZipFile, size: int) -> Layout:
    """The shape and type of each entry, from their headers. Raises ValueError."""
    layout: Layout = {}
    for entry in file.infolist():
        name = entry.filename.removesuffix(".npy")
        with file.open(entry) as opened:
            version = np.lib.format.read_magic(opened)
            if version != (1, 0) or entry.compress_type != zipfile.ZIP_STORED or name in layout:
                raise ValueError(f"its entry {name} is not as np.savez writes it")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
        if (
            fortran
            or dtype.hasobject
            or math.prod(shape) * dtype.itemsize > min(size, entry.file_size)
        ):
            raise ValueError(f"its entry {name} is not as np.savez writes it")
        layout[name] = shape, dtype
    return layout


def _read_info(file: zipfile.ZipFile, layout: Layout) -> bytes:
    if INFO not in layout:
        raise ValueError(f"it has no entry {INFO}")
    shape, dtype = layout[INFO]
    if dtype != np.uint8 or math.prod(shape) > MOST_INFO:
        raise ValueError(f"its entry {INFO} is not JSON")
    with file.open(f"{INFO}.npy") as opened:
        return np.lib.format.read_array(opened, allow_pickle=False).tobytes()


def _compare(path: str, found: Layout, expected: Layout) -> None:
    """Raise InputError where the entries are not those that are expected."""
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            what = "is missing" if name not in found else "does not match the model"
            raise InputError(f"the checkpoint {path} cannot be used: {name} {what}")


class _damage:
    """Make what NumPy and zipfile raise about a damaged file an InputError."""

    def __init__(self, path: str):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error: Any, trace):
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from None
        if isinstance(error, Exception) and not isinstance(error, InputError):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"the checkpoint {self.path} is damaged: {reason}") from error
