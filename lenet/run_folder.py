"""The folder of a run: whether it is free, and whether the run in it may be resumed as asked."""

import os
from typing import Any

from runtime.atomic import replace_file
from runtime.cli import InputError, count, first_few, log, os_errors
from runtime.settings import text_of, to_yaml

from .checkpoint import Checkpoint, open_checkpoint
from .config import CONFIG, DATASETS, LENGTH, MAY_CHANGE_ON_RESUME, TrainConfig
from .plan import Plan
from .ranks import WORLD_SIZE

LAST, BEST = "last.npz", "best.npz"


def create_folder(path: str) -> None:
    """Make the folder of a new run. Raises InputError if it holds a run, or anything else."""
    with os_errors("use run_dir", path, "name another folder"):
        os.makedirs(path, exist_ok=True)
        names = set(os.listdir(path)) - {f".{CONFIG}.new"}  # of a start that was killed
    if {CONFIG, LAST} & names:
        raise InputError(
            f"{path} contains a run already: --resume continues it, --run_dir DIR starts another"
        )
    if names:
        raise InputError(
            f"run_dir {path} is not empty and contains no run ({first_few(names)}): "
            "name another folder"
        )


def write_config(folder: str, config: TrainConfig, title: str) -> None:
    """Write the settings that a run is resumed with, datasets by absolute paths."""
    paths = {name: getattr(config, name) for name in DATASETS}
    absolute = {name: path and os.path.abspath(path) for name, path in paths.items()}
    text = to_yaml(config.model_copy(update=absolute), title, leave_out=("run_dir",))
    path = os.path.join(folder, CONFIG)
    with os_errors("write", path), replace_file(path, "w") as file:
        file.write(text)


def open_last(
    folder: str, config: TrainConfig, plan: Plan, digests: dict[str, str | None]
) -> Checkpoint | None:
    """Return the last checkpoint of a run, None if there is none yet.

    Raises InputError where it is damaged, or of another training than ``config`` and ``plan`` on
    datasets with these ``digests``.
    """
    path = os.path.join(folder, LAST)
    if not os.path.lexists(path):
        log(f"{folder} has no {LAST} yet: starting from the beginning")
        return None
    checkpoint = open_checkpoint(path)
    info = checkpoint.info
    problem = changed_settings(config, info.config)
    for name, digest in digests.items():
        if info.dataset_digests.get(name) != digest:
            problem = f"it was trained on a different {name}; --run_dir DIR starts another run"
    now = count(plan.num_steps, "step")
    if plan.num_steps < info.step:
        problem = f"it has taken {count(info.step, 'step')}, and would end after {now}"
    elif (
        WORLD_SIZE != info.world_size and config.length_matters and plan.num_steps != info.num_steps
    ):
        problem = f"on this number of ranks it would take {now}, not {info.num_steps:,}"
    if problem:
        raise InputError(f"cannot resume {folder}: {problem}")
    return checkpoint


def changed_settings(config: TrainConfig, before: dict[str, Any]) -> str:
    """Return which settings a run cannot be resumed with; "" where none is in the way."""
    may_change = MAY_CHANGE_ON_RESUME | (set() if config.length_matters else LENGTH)
    changed = {name for name, now in config if now != before.get(name)} - may_change
    if not changed:
        return ""
    text = "; ".join(
        f"{name} {text_of(before.get(name))}, not {text_of(getattr(config, name))}"
        for name in sorted(changed)
    )
    hint = "--run_dir DIR starts another run"
    if changed <= LENGTH:
        hint = (
            "its learning rate follows from that: only with schedule constant and warmup 0 can a "
            "run be trained for longer"
        )
    return f"it was started with {text}; {hint}"
