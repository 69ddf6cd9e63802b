"""Checkpoints: a folder each, replaced atomically, and verified before anything in it is loaded.

    model/           flow.save of the model's state_dict
    training/        flow.save of what resuming needs besides (not in every checkpoint)
    checkpoint.json  the model's Spec, the state of the run, SHA-256 of every file; written last

``flow.load`` unpickles, as ``torch.load`` does: load only checkpoints from
people you trust. The checksums detect damage, not malice.
"""

import hashlib
import json
import os
import shutil
from typing import Any

from ofrecord.manifest import digest_of
from runtime.atomic import flush_folder, flush_to_disk
from runtime.cli import InputError

from .engine import flow
from .model import LeNet, Spec

NAME = "checkpoint.json"
LAYOUT = 1


def save_checkpoint(path: str, spec: Spec, about: dict, model: dict, training: Any = None) -> None:
    """Write a checkpoint folder, replacing the one at ``path``.

    ``spec`` is the model's Spec, ``about`` a dictionary that JSON can hold,
    ``model`` a state_dict and ``training`` anything that flow.save accepts.
    Killed at any moment, it leaves the old checkpoint or the new one, at
    ``path`` or where find_checkpoint looks. Raises OSError.
    """
    recover_checkpoint(path)
    new, old = path + ".new", path + ".old"
    os.mkdir(new)
    flow.save(model, os.path.join(new, "model"))
    if training is not None:
        flow.save(training, os.path.join(new, "training"))
    fields = {
        "layout": LAYOUT,
        "spec": spec.to_json(),
        "about": about,
        "files": _hash_files(new, flush=True),
    }
    fields["sha256"] = digest_of(fields)
    with open(os.path.join(new, NAME), "w", encoding="utf-8") as file:
        json.dump(fields, file, indent=1, ensure_ascii=False)
        flush_to_disk(file)
    flush_folder(new)
    if os.path.exists(path):
        os.rename(path, old)
    os.rename(new, path)
    flush_folder(os.path.dirname(path) or ".")
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(path: str) -> str | None:
    """Return where a checkpoint is: ``path``, or beside it if its writer was killed, or None."""
    for place in (path, path + ".new", path + ".old"):
        # ``.new`` is used only where ``path`` was already moved away: then it is complete.
        if os.path.isdir(place) and (
            place != path + ".new" or os.path.exists(os.path.join(place, NAME))
        ):
            return place
    return None


def recover_checkpoint(path: str) -> None:
    """Complete or remove what a killed save_checkpoint left beside ``path``."""
    found = find_checkpoint(path)
    if found and found != path:
        os.rename(found, path)
    for leftover in (path + ".new", path + ".old"):
        if os.path.isdir(leftover):
            shutil.rmtree(leftover)


class Checkpoint:
    """A verified checkpoint on disk."""

    def __init__(self, path: str, spec: Spec, about: dict) -> None:
        self.path = path
        self.spec = spec
        self.about = about  # as given to save_checkpoint

    def load(self, name: str, device: str = "cpu") -> Any:
        """Return what was saved as ``"model"`` or ``"training"``."""
        return flow.load(os.path.join(self.path, name), map_location=device)

    def load_model(self) -> LeNet:
        """Return the trained LeNet, on the CPU, in evaluation mode."""
        model = LeNet(self.spec)
        model.load_state_dict(self.load("model"))
        return model.eval()


def open_checkpoint(path: str) -> Checkpoint:
    """Return the Checkpoint at ``path``. Raises InputError if it is missing or damaged."""
    path = path.rstrip("/") or path
    found = find_checkpoint(path)
    if found is None:
        what = "is not a checkpoint folder" if os.path.lexists(path) else "does not exist"
        raise InputError(f"no checkpoint: {path} {what}")
    try:
        with open(os.path.join(found, NAME), encoding="utf-8") as file:
            fields = json.load(file)
        digest, layout = fields.pop("sha256"), fields["layout"]
    except FileNotFoundError:
        raise InputError(
            f"{path} is not a checkpoint: it contains no {NAME} "
            "(the checkpoints of a run are its folders last/ and best/)"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {os.path.join(found, NAME)}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"the checkpoint {path} is damaged: its {NAME} cannot be read") from error
    if layout != LAYOUT:
        raise InputError(
            f"the checkpoint {path} has layout {layout!r}; this version reads layout {LAYOUT}"
        )
    if digest != digest_of(fields):
        raise InputError(f"the checkpoint {path} is damaged: its {NAME} was changed")
    try:
        files = _hash_files(found)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    for name in sorted(set(files) | set(fields["files"])):
        if files.get(name) != fields["files"].get(name):
            what = "is missing" if name not in files else "was changed"
            raise InputError(f"the checkpoint {path} is damaged: {name} {what}")
    return Checkpoint(found, Spec.from_json(fields["spec"]), fields["about"])


def _hash_files(folder, flush=False):
    """Return {path in the folder: SHA-256} of all files but checkpoint.json.

    ``flush`` also flushes the files and folders to the disk.
    """
    hashes = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            if os.path.relpath(path, folder) == NAME:
                continue
            with open(path, "rb") as file:
                hashes[os.path.relpath(path, folder)] = hashlib.sha256(file.read()).hexdigest()
                if flush:
                    os.fsync(file.fileno())
        if flush:
            flush_folder(root)
    return hashes
