"""A run: one training from its first step to its last, resumed any number of times, and its folder.

config.yaml      the resolved configuration
metrics.csv      a row for each step and for each evaluation
last/, best/     checkpoints: the newest to resume from, and the most accurate model
loss.png, predictions.png
"""

import csv
import math
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import yaml

from runtime.atomic import flush_to_disk, lock_folder
from runtime.cli import InputError, count, first_few, log, uninterrupted

from .checkpoint import find_checkpoint, open_checkpoint, recover_checkpoint, save_checkpoint
from .config import TrainConfig
from .engine import flow
from .model import LeNet
from .ranks import LAUNCHER, RANK, WORLD_SIZE, wait_for_all

CONFIG, METRICS, LAST, BEST, LOSS_PICTURE, PREDICTIONS_PICTURE = NAMES = (
    "config.yaml",
    "metrics.csv",
    "last",
    "best",
    "loss.png",
    "predictions.png",
)
COLUMNS = ("step", "epoch", "learning_rate", "loss", "eval_loss", "eval_accuracy")

# Settings that may differ when a run is resumed: they do not change the weights, or
# (device, graph, amp) only by rounding. The datasets are compared themselves, not by
# their folders.
MAY_CHANGE_ON_RESUME = {
    "dataset_dir",
    "eval_dataset_dir",
    "check_hashes",
    "run_dir",
    "device",
    "graph",
    "amp",
    "fetch_every",
    "print_every",
    "checkpoint_every",
    "picture",
}


@contextmanager
def open_run(
    config: TrainConfig, plan: "Plan", digests: dict[str, str | None], resume: bool
) -> "Iterator[Run]":
    """Context manager that returns the Run to train: new, or resumed from its last checkpoint.

    ``digests`` are those of the datasets, {name: digest or None}. Without
    ``config.run_dir`` nothing is saved. Raises InputError if the folder contains
    another run or is in use, if the run cannot be resumed with this
    configuration, and, at any time, if the folder cannot be written to.

    Of several ranks only rank 0 writes to the folder; the others, on whatever
    machine, read the checkpoint in it.
    """
    folder = config.run_dir and (config.run_dir.rstrip("/") or config.run_dir)
    if folder is None:
        if resume:
            raise InputError("--resume requires the run's folder: --run_dir DIR")
        yield Run(config, plan, digests, None)
        return
    if RANK != 0:
        yield _follow(Run(config, plan, digests, folder), resume)
        return
    try:
        made = _prepare_folder(folder, resume)
        lock = lock_folder(folder, "another training is using")
    except OSError as error:
        raise _writing_error(folder, error) from error
    run = Run(config, plan, digests, folder)
    try:
        if resume:
            run.load()
        wait_for_all()  # now the others load
        wait_for_all()
        run.start_files()
        yield run
    except KeyboardInterrupt:
        if run.saved_step:
            raise KeyboardInterrupt(
                f"saved {folder} after step {run.saved_step:,} of {run.plan.steps:,}; "
                f"resume with: {run.command}"
            ) from None
        raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _writing_error(folder, error) from error
    finally:
        run.close()
        if made and find_checkpoint(run.path(LAST)) is None:
            _remove_files(folder)  # there is nothing to resume from
        os.close(lock)


def _follow(run, resume):
    """Return the Run of a rank other than 0, which reads the same checkpoint and writes nothing."""
    wait_for_all()
    if resume:
        run.load()
    wait_for_all()
    return run


def _prepare_folder(folder, resume):
    """Make the folder for a new run or check the one to resume; return whether it is new."""
    is_run = os.path.isfile(os.path.join(folder, CONFIG))
    if resume:
        if not is_run:
            raise InputError(f"no run to resume in {folder}: start it without --resume")
        return False
    if is_run:
        raise InputError(
            f"{folder} contains a run already: --resume continues it, --run_dir DIR starts another"
        )
    if os.path.lexists(folder):
        if not os.path.isdir(folder):
            raise InputError(f"run_dir {folder} is a file; name a folder")
        names = os.listdir(folder)
        if names:
            raise InputError(
                f"run_dir {folder} is not empty and contains no run ({first_few(names)}): "
                "name another folder"
            )
    os.makedirs(folder, exist_ok=True)
    return True


def _remove_files(folder):
    """Remove what a Run wrote, and the folder if it is empty then."""
    for name in NAMES:
        for path in (os.path.join(folder, name + ending) for ending in ("", ".new", ".old")):
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            elif os.path.exists(path):
                os.remove(path)
    try:
        os.rmdir(folder)
    except OSError:  # other files were put into it
        pass


class Plan:
    """The steps of a run, and after which of them it is evaluated or may be saved.

    ``steps`` is the number of steps to take, the smaller of ``config.steps``
    and what makes ``config.epochs`` passes over ``num_records`` images. A batch
    is what all ranks take in one step together; with several, ``num_records``
    is the largest number that a rank reads, times the world size, so that an
    epoch ends when every image was read.
    """

    def __init__(self, config: TrainConfig, num_records: int) -> None:
        self.num_records, self.batch_size = num_records, config.batch_size
        self.each_epoch = config.eval_dataset_dir is not None  # evaluated, not at the end only
        limits = [
            config.steps or math.inf,
            self.end_of_epoch(config.epochs) if config.epochs else math.inf,
        ]
        self.steps = min(limits)
        self.epochs = self.epoch_of(self.steps)

    def end_of_epoch(self, epoch: int) -> int:
        """Return the step after which the reader has delivered every image ``epoch`` times."""
        return -(-epoch * self.num_records // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Return the epoch in which a step begins; both count from 1."""
        return (step - 1) * self.batch_size // self.num_records + 1

    def ends_epoch(self, step: int) -> bool:
        return step == self.end_of_epoch(self.epoch_of(step))

    def evaluates(self, step: int) -> bool:
        """Whether the model is evaluated after this step.

        It is after the last one and, with an evaluation dataset, after each epoch.
        """
        return step == self.steps or (self.each_epoch and step > 0 and self.ends_epoch(step))

    def may_pause(self, step: int) -> bool:
        """Whether a run saved after this step can be resumed as if it had not been interrupted.

        After these steps the random generators are seeded again, see seed_of.
        """
        return step % SEED_EVERY == 0 or step == self.steps or self.ends_epoch(step)


SEED_EVERY = 10  # steps; seeding makes a GPU wait


def seed_of(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of a rank's OneFlow generators for the steps after ``step``.

    OneFlow's generators cannot be saved and restored: the state that
    get_rng_state returns lacks the position in the generator's block of 624
    numbers, and a GPU's generator has none.
    """
    entropy = [seed, step] + [rank] * (rank > 0)
    bits = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return int(bits >> np.uint64(1))


class Run:
    """The state of a training: steps taken, metrics, checkpoints.

    ``losses`` and ``learning_rates`` have a float for each step taken,
    ``evaluations`` is {step: (loss, accuracy)}.
    """

    def __init__(
        self, config: TrainConfig, plan: Plan, digests: dict[str, str | None], folder: str | None
    ) -> None:
        self.config, self.plan, self.digests, self.folder = config, plan, digests, folder
        self.writes = folder is not None and RANK == 0
        self.losses, self.learning_rates, self.evaluations = [], [], {}
        self.checkpoint = None  # the one to resume from
        self.saved_step = 0  # the step of the newest checkpoint
        self._file = None

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return len(self.losses)

    @property
    def best_step(self) -> int | None:
        """The first step of the highest accuracy; None before the first evaluation."""
        return max(
            self.evaluations, key=lambda step: (self.evaluations[step][1], -step), default=None
        )

    @property
    def command(self) -> str:
        """The command that resumes the run."""
        return f"python {LAUNCHER}lenet_train.py --config {shlex.quote(self.path(CONFIG))} --resume"

    @property
    def execution_mode(self) -> str:
        """What, besides the configuration, two runs with bitwise equal results have in common."""
        mode = "with amp" if self.config.amp else "as a graph" if self.config.graph else "op by op"
        return f"{mode} on {count(WORLD_SIZE, 'rank')}"

    @property
    def finished(self) -> bool:
        return self.step == self.plan.steps and self.step in self.evaluations

    @property
    def outcome(self) -> str:
        """The accuracy of the last and the best evaluation, as text."""
        _, accuracy = self.evaluations[self.step]
        text = f"{count(self.step, 'step')}, accuracy {accuracy:.2%}"
        _, best = self.evaluations[self.best_step]
        return (
            text if best == accuracy else f"{text} (best: {best:.2%} after step {self.best_step:,})"
        )

    def epoch_loss(self) -> float:
        """Return the mean loss of the steps in the last step's epoch."""
        first = self.plan.end_of_epoch(self.plan.epoch_of(self.step) - 1)
        return float(np.mean(self.losses[first:]))

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    # -- resuming --

    def load(self) -> None:
        """Read the run in the folder. Raises InputError if it is a different run, or damaged."""
        self._compare_config()
        if self.writes:
            for name in (LAST, BEST):
                recover_checkpoint(self.path(name))
        if find_checkpoint(self.path(LAST)) is None:
            log(
                f"{self.folder} was stopped before its first checkpoint; "
                "starting from the beginning"
            )
            return
        self.checkpoint = open_checkpoint(self.path(LAST))
        for name, digest in self.digests.items():
            if self.checkpoint.about["datasets"].get(name) != digest:
                raise InputError(
                    f"cannot resume {self.folder}: it was trained on a different {name}; "
                    "--run_dir DIR starts another run"
                )
        about = self.checkpoint.about
        previous_mode = about.get("how", self.execution_mode)
        if previous_mode != self.execution_mode:
            log(
                f"the run was trained {previous_mode} and is resumed {self.execution_mode}: "
                "the results will differ from an uninterrupted run's by rounding and order"
            )
        self.saved_step = about["step"]
        self._read_metrics(self.saved_step)

    def _compare_config(self):
        path, wanted = self.path(CONFIG), plain(self.config)
        try:
            with open(path, encoding="utf-8") as file:
                saved = yaml.safe_load(file)
            different = [
                f"{name} {saved[name]}, not {wanted[name]}"
                for name in wanted
                if name not in MAY_CHANGE_ON_RESUME and saved[name] != wanted[name]
            ]
        except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise InputError(
                f"cannot resume: {path} cannot be read ({type(error).__name__})"
            ) from error
        if different:
            settings = "; ".join(different)
            raise InputError(
                f"cannot resume {self.folder}: it was started with {settings}; "
                f"`--config {path} --resume` continues it"
            )

    def _read_metrics(self, last):
        """Read losses and evaluations up to step ``last``."""
        path = self.path(METRICS)
        try:
            with open(path, encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if None in row.values() or int(row["step"]) > last:
                        break  # after the checkpoint, and perhaps cut off
                    if row["eval_loss"]:
                        self.evaluations[int(row["step"])] = (
                            float(row["eval_loss"]),
                            float(row["eval_accuracy"]),
                        )
                        continue
                    if int(row["step"]) != self.step + 1:
                        raise ValueError(f"step {row['step']} follows step {self.step}")
                    self.learning_rates.append(float(row["learning_rate"]))
                    self.losses.append(float(np.float32(row["loss"])))
            if self.step != last:
                raise ValueError(
                    f"it ends with step {self.step}, but the checkpoint is of step {last}"
                )
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot resume: {path} was changed or damaged: {reason}") from error

    # -- saving --

    def start_files(self) -> None:
        """Write the configuration, and the metrics of the steps taken so far."""
        with open(self.path(CONFIG), "w", encoding="utf-8") as file:
            file.write(f"# The configuration of this run. Resume it with:\n#   {self.command}\n")
            yaml.safe_dump(plain(self.config), file, sort_keys=False, allow_unicode=True)
        new = self.path(METRICS) + ".new"
        self._file = open(new, "w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(COLUMNS)
        for step in range(1, self.step + 1):
            self._write_loss(step)
            if step in self.evaluations:
                self._write_evaluation(step)
        flush_to_disk(self._file)
        os.replace(new, self.path(METRICS))

    def add_losses(self, learning_rates: Iterable[float], losses: Iterable[float]) -> None:
        """Add the next steps' learning rates and losses."""
        for learning_rate, loss in zip(learning_rates, losses, strict=True):
            self.learning_rates.append(learning_rate)
            self.losses.append(float(loss))
            self._write_loss(self.step)
        if self._file:
            self._file.flush()

    def add_evaluation(self, loss: float, accuracy: float, model: LeNet) -> None:
        """Add the evaluation after the last step, and save the most accurate model so far."""
        self.evaluations[self.step] = loss, accuracy
        if self.best_step == self.step:
            self._save(BEST, model)
        self._write_evaluation(self.step)
        if self._file:
            self._file.flush()

    def _write_loss(self, step):
        # The shortest text that reads back as the same float32.
        loss = str(np.float32(self.losses[step - 1]))
        self._write_row(step, repr(self.learning_rates[step - 1]), loss, "", "")

    def _write_evaluation(self, step):
        self._write_row(step, "", "", *map(repr, self.evaluations[step]))

    def _write_row(self, step, *values):
        if self._file:
            self._writer.writerow((step, self.plan.epoch_of(step)) + values)

    def saves(self, step: int, asked: bool) -> bool:
        """Whether the run is saved after this step.

        It is if ``asked`` to, after every ``checkpoint_every`` steps and at its end.
        """
        return (
            self.folder is not None
            and self.plan.may_pause(step)
            and (
                asked
                or step == self.plan.steps
                or step - self.saved_step >= self.config.checkpoint_every
            )
        )

    def save(
        self, model: LeNet, optimizer: flow.optim.Optimizer, schedule: Any, scaler: dict
    ) -> None:
        """Save a checkpoint to resume from after the last step."""
        training = {
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "scaler": scaler,
        }
        self._save(LAST, model, training)
        self.saved_step = self.step

    def _save(self, name, model, training=None):
        if not self.writes:
            return
        flush_to_disk(self._file)
        loss, accuracy = self.evaluations.get(self.step, (None, None))
        about = {
            "step": self.step,
            "steps": self.plan.steps,
            "epoch": self.plan.epoch_of(self.step),
            "eval_loss": loss,
            "eval_accuracy": accuracy,
            "how": self.execution_mode,
            "datasets": self.digests,
            "config": plain(self.config),
        }
        with uninterrupted():
            save_checkpoint(self.path(name), model.spec, about, model.state_dict(), training)

    def close(self) -> None:
        if self._file:
            self._file.close()


def plain(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as a dictionary of plain values, which YAML and JSON can write."""
    values = {}
    for name, value in vars(config).items():
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                value = kind(value)  # jsonargparse makes subclasses of them
                break
        values[name] = value
    return values


def _writing_error(folder, error):
    return InputError(f"cannot write to {error.filename or folder}: {error.strerror or error}")
