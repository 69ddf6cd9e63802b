"""How a run begins: in a new folder, or after its last checkpoint."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ofrecord.dataset.open_dataset import Dataset
from runtime.atomic import folder_lock
from runtime.cli import InputError, count, first_few, log, os_errors, typed_path
from runtime.settings import text_of

from .checkpoint import Checkpoint, CheckpointInfo, open_checkpoint
from .config import CONFIG, DATASETS, LENGTH, MAY_CHANGE_ON_RESUME, TrainConfig
from .plan import Plan
from .ranks import WORLD_SIZE, check_all_ranks_agree
from .run import BEST, LAST, Run


@contextmanager
def open_run(
    config: TrainConfig, train_set: Dataset, eval_set: Dataset | None, resume: bool
) -> Iterator[Run]:
    """Create a run or take it up again, hold its folder, and close it in the end.

    Raises InputError where the folder is in use or holds something else, where a
    run cannot be resumed as asked, and unless all ranks train the same.
    """
    run = Run(config, train_set, eval_set)
    check_all_ranks_agree({**config.model_dump(exclude=set(DATASETS)), **run.digests})
    if run.writes and not resume:
        create_folder(run.path)
    with folder_lock(run.path if run.writes else None, "another training is using"):
        if resume and (last := open_last(run.path, config, run.plan, run.digests)):
            run.checkpoint, run.saved = last, last.info.step
            try:
                run.history.load_arrays(last.history, run.saved)
            except ValueError as error:
                raise InputError(f"the checkpoint {last.path} is damaged: {error}") from None
        check_all_ranks_agree({"checkpoint in run_dir": f"of step {run.saved}"})
        try:
            yield run
        except KeyboardInterrupt:
            if not (run.path and run.progress):  # nothing is kept, or it has not started
                raise
            what = f"step {run.saved:,} of {run.plan.num_steps:,}" if run.saved else "nothing yet"
            raise KeyboardInterrupt(f"saved: {what}; resume with: {run.command}") from None
        finally:
            run.close()


def create_folder(path: str) -> None:
    """Make the folder of a new run. Raises InputError if it holds a run, or anything else."""
    with os_errors("use run_dir", path, "name another folder"):
        os.makedirs(path, exist_ok=True)
        names = set(os.listdir(path)) - {f".{CONFIG}.new"}  # of a start that was killed
    if {CONFIG, LAST} & names:
        raise InputError(
            f"{path} contains a run already: `--run_dir {typed_path(path)} --resume`, without other "
            "settings, continues it; --run_dir with another name starts one"
        )
    if names:
        raise InputError(
            f"run_dir {path} is not empty and contains no run ({first_few(names)}): "
            "name another folder"
        )


def open_last(
    folder: str, config: TrainConfig, plan: Plan, digests: dict[str, str | None]
) -> Checkpoint | None:
    """Return the last checkpoint of a run, None if there is none yet.

    Raises InputError where it is damaged, or of another training than ``config`` and ``plan`` on
    datasets with these ``digests``.
    """
    path = os.path.join(folder, LAST)
    if not os.path.lexists(path):
        best = os.path.join(folder, BEST)
        if os.path.lexists(best):  # never written before LAST
            reason = f"{path} is missing, and {best} would be overwritten: put it back"
            raise InputError(f"{reason}, or give --run_dir DIR to start another run")
        log(f"{folder} has no {LAST} yet: starting from the beginning")
        return None
    checkpoint = open_checkpoint(path)
    if problem := misfit(checkpoint.info, config, plan, digests):
        raise InputError(f"cannot resume {folder}: {problem}")
    return checkpoint


def misfit(
    info: CheckpointInfo, config: TrainConfig, plan: Plan, digests: dict[str, str | None]
) -> str:
    """Return why a checkpoint is of another training; "" where it is of this one."""
    for name, digest in digests.items():
        if info.dataset_digests.get(name) != digest:
            return f"it was trained on a different {name}; --run_dir DIR starts another run"
    now = count(plan.num_steps, "step")
    if plan.num_steps < info.step:
        return f"it has taken {count(info.step, 'step')}, and would end after {now}"
    other_length = config.length_matters and plan.num_steps != info.num_steps
    if other_length and WORLD_SIZE != info.world_size:
        return f"on this number of ranks it would take {now}, not {info.num_steps:,}"
    return changed_settings(config, info.config)


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
