"""Checkpoints: a folder each, written whole or not at all, and checked before it is believed.

    model/           flow.save of the model's state_dict
    training/        flow.save of what a run needs to go on (not in every checkpoint)
    checkpoint.json  what the model was made for, where the run stood, and the SHA-256 of every file; written last

``flow.load`` unpickles, as ``torch.load`` does: load only checkpoints from
people you trust. The sums are against damage, not against malice.
"""

import hashlib
import json
import os
import shutil

from ofrecord.cli import InputError
from ofrecord.manifest import digest_of
from ofrecord.staging import flush_folder, flush_to_disk

from .engine import flow
from .model import LeNet, Spec

NAME = "checkpoint.json"
LAYOUT = 1


def save_checkpoint(path, spec, about, model, training=None):
    """Write a checkpoint folder in the place of the one there. Raises OSError.

    ``spec`` is the model's Spec, ``about`` a JSON-able dictionary, ``model``
    a state_dict and ``training`` anything that flow.save takes. Killed at any
    moment, it leaves the old checkpoint or the new one, at ``path`` or where
    find_checkpoint looks.
    """
    settle_checkpoint(path)
    new, old = path + ".new", path + ".old"
    os.mkdir(new)
    flow.save(model, os.path.join(new, "model"))
    if training is not None:
        flow.save(training, os.path.join(new, "training"))
    fields = {"layout": LAYOUT, "spec": spec.to_json(), "about": about, "files": _hash_files(new, flush=True)}
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


def find_checkpoint(path):
    """Where a checkpoint is: at ``path``, or beside it where its writer was killed, or None."""
    for place in (path, path + ".new", path + ".old"):
        # ``.new`` counts only where ``path`` was already moved away: then it is complete.
        if os.path.isdir(place) and (place != path + ".new" or os.path.exists(os.path.join(place, NAME))):
            return place
    return None


def settle_checkpoint(path):
    """Clear up what a killed save_checkpoint left beside ``path``."""
    found = find_checkpoint(path)
    if found and found != path:
        os.rename(found, path)
    for leftover in (path + ".new", path + ".old"):
        if os.path.isdir(leftover):
            shutil.rmtree(leftover)


class Checkpoint:
    """A checkpoint on disk, found whole. ``spec`` is a Spec, ``about`` what was saved with it."""

    def __init__(self, path, spec, about):
        self.path, self.spec, self.about = path, spec, about

    def load(self, name, device="cpu"):
        """What was saved as ``"model"`` or ``"training"``."""
        return flow.load(os.path.join(self.path, name), map_location=device)

    def load_model(self):
        """The trained LeNet, on the CPU, in evaluation mode."""
        model = LeNet(self.spec)
        model.load_state_dict(self.load("model"))
        return model.eval()


def open_checkpoint(path):
    """The Checkpoint at ``path``. Raises InputError where there is none, or it is damaged."""
    path = path.rstrip("/") or path
    found = find_checkpoint(path)
    if found is None:
        raise InputError("no checkpoint: {} {}".format(
            path, "is not a checkpoint's folder" if os.path.lexists(path) else "does not exist"))
    try:
        with open(os.path.join(found, NAME), encoding="utf-8") as file:
            fields = json.load(file)
        digest, layout = fields.pop("sha256"), fields["layout"]
    except FileNotFoundError:
        raise InputError("{} is not a checkpoint: there is no {} in it (a run has them in its folders last/ and best/)"
                         .format(path, NAME))
    except OSError as error:
        raise InputError("cannot read {}: {}".format(os.path.join(found, NAME), error.strerror))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError("the checkpoint {} is damaged: its {} cannot be read".format(path, NAME))
    if layout != LAYOUT:
        raise InputError("the checkpoint {} has layout {!r} and this version reads layout {}".format(path, layout, LAYOUT))
    if digest != digest_of(fields):
        raise InputError("the checkpoint {} is damaged: its {} was changed".format(path, NAME))
    try:
        files = _hash_files(found)
    except OSError as error:
        raise InputError("cannot read {}: {}".format(error.filename, error.strerror))
    for name in sorted(set(files) | set(fields["files"])):
        if files.get(name) != fields["files"].get(name):
            what = "is missing" if name not in files else "was changed"
            raise InputError("the checkpoint {} is damaged: {} {}".format(path, name, what))
    return Checkpoint(found, Spec(**fields["spec"]), fields["about"])


def _hash_files(folder, flush=False):
    """{file's path in the folder: its SHA-256}, without checkpoint.json; ``flush`` sees that they are on the disk."""
    hashes = {}
    for root, folders, names in os.walk(folder):
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
