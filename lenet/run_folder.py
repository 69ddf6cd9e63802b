"""The folder of a run: one training from its first step to its last, in however many sittings.

    config.yaml            the settings it was started with
    metrics.csv            a row for each step and for each evaluation
    last.npz, best.npz     checkpoints: where to resume, and the most accurate model
    loss.png, predictions.png

Nothing in the folder is ever removed.
"""

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np

from ofrecord.dataset import Dataset
from ofrecord.settings import text_of
from runtime.atomic import folder_lock, replace_file
from runtime.cli import InputError, count, first_few, log, uninterrupted

from .checkpoint import Checkpoint, CheckpointInfo, open_checkpoint, save_checkpoint
from .config import MAY_CHANGE_ON_RESUME, TrainConfig
from .config_file import to_yaml
from .evaluation import Evaluation
from .metrics import Metrics
from .model import LeNet, ModelSpec
from .plan import Plan
from .ranks import LAUNCHER, RANK

CONFIG, METRICS, LAST, BEST = "config.yaml", "metrics.csv", "last.npz", "best.npz"
LOSS_PICTURE, PREDICTIONS_PICTURE = "loss.png", "predictions.png"
PICTURE_SECONDS = 30  # between two drawings of a picture, which takes a second


class RunFolder:
    """The files of a run: rank 0 writes them; the other ranks only read the checkpoint.

    Without ``config.run_dir`` nothing is kept.
    """

    def __init__(self, config: TrainConfig, train_set: Dataset, eval_set: Dataset | None):
        self.path = config.run_dir and (config.run_dir.rstrip("/") or config.run_dir)
        self.writes = self.path is not None and RANK == 0
        self.plan = Plan(config, train_set)
        self.metrics = Metrics(self.plan)
        self.digests = {
            "dataset": train_set.manifest.digest,
            "eval_dataset": eval_set.manifest.digest if eval_set else None,
        }
        self._config = config
        self._drawn: dict[str, float] = {}  # when each picture was

    @property
    def command(self) -> str:
        """What to type to resume the run."""
        return (
            f"python {LAUNCHER}lenet_train.py --config {shlex.quote(self._join(CONFIG))} --resume"
        )

    def _join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def lock(self) -> AbstractContextManager[None]:
        """Return a context in which no other training uses the folder."""
        return folder_lock(self.path if self.writes else None, "another training is using")

    # -- create or resume --

    def create(self) -> None:
        """Make the folder of a new run. Raises InputError if it holds a run, or anything else."""
        if not self.writes:
            return
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise InputError(f"run_dir {self.path} is a file; name a folder")
        with self.writing():
            os.makedirs(self.path, exist_ok=True)
            names = [name for name in os.listdir(self.path) if name != CONFIG]
        if METRICS in names:
            raise InputError(
                f"{self.path} contains a run already: --resume continues it, "
                "--run_dir DIR starts another"
            )
        if names:
            raise InputError(
                f"run_dir {self.path} is not empty and contains no run ({first_few(names)}): "
                "name another folder"
            )

    def check_run(self) -> None:
        """Raise InputError unless there is a run to resume."""
        if not self.path:
            raise InputError("--resume requires the run's folder: --run_dir DIR")
        if self.writes and not os.path.isfile(self._join(METRICS)):
            raise InputError(f"no run to resume in {self.path}: start it without --resume")

    def load(self) -> Checkpoint | None:
        """Return the last checkpoint, and read the metrics up to it; None if there is none yet.

        Raises InputError for a run of other settings or datasets, and for damaged files.
        """
        last = self._join(LAST)
        if os.path.isdir(old := self._join("last")) and not os.path.exists(last):
            open_checkpoint(old)  # of an earlier version: refused
        if not os.path.exists(last):
            log(f"{self.path} was stopped before its first checkpoint; starting from the beginning")
            return None
        checkpoint = open_checkpoint(last)
        info = checkpoint.info
        different = "; ".join(
            f"{name} {text_of(info.config.get(name))}, not {text_of(value)}"
            for name, value in self._config
            if name not in MAY_CHANGE_ON_RESUME and info.config.get(name) != value
        )
        problems = [f"it was started with {different}; `{self.command}`"] if different else []
        problems += [
            f"it was trained on a different {name}; --run_dir DIR starts another run"
            for name, digest in self.digests.items()
            if info.dataset_digests.get(name) != digest
        ]
        if info.num_steps != self.plan.num_steps:
            problems.append(
                f"on this number of ranks it would take {count(self.plan.num_steps, 'step')}, "
                f"not {info.num_steps:,}"
            )
        if problems:
            raise InputError(f"cannot resume {self.path}: {problems[0]}")
        try:
            self.metrics.read(self._join(METRICS), info.step)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            path = self._join(METRICS)
            raise InputError(f"cannot resume: {path} was changed or damaged: {reason}") from None
        return checkpoint

    # -- write --

    def open_files(self, new: bool) -> None:
        """Write the configuration of a ``new`` run, and open the metrics file."""
        if not self.writes:
            return
        with self.writing():
            if new:
                with replace_file(self._join(CONFIG), "w") as file:
                    file.write(to_yaml(self._config, f"To resume: {self.command}"))
            self.metrics.open(self._join(METRICS))

    def save(
        self, name: str, model: LeNet, execution_mode: str, training: dict[str, np.ndarray]
    ) -> None:
        """Save a checkpoint of the last step; ``training`` is the learner's state."""
        if not self.writes:
            return
        loss, accuracy = self.metrics.evaluations.get(self.metrics.step, (None, None))
        info = CheckpointInfo(
            spec=model.spec,
            step=self.metrics.step,
            num_steps=self.plan.num_steps,
            eval_loss=loss,
            eval_accuracy=accuracy,
            execution_mode=execution_mode,
            dataset_digests=self.digests,
            config=self._config.model_dump(),
        )
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        with uninterrupted():
            self.metrics.flush()
            save_checkpoint(self._join(name), info, weights, training)

    def draw_losses(self, now: bool) -> None:
        """Draw the losses if that was long ago, or ``now``."""
        if self._is_due(LOSS_PICTURE, now):
            from .plots import draw_losses  # matplotlib takes a second to import

            title = os.path.basename(os.path.abspath(self.path))
            draw_losses(self._join(LOSS_PICTURE), title, self.plan, self.metrics)

    def draw_predictions(self, now: bool, spec: ModelSpec, evaluation: Evaluation) -> None:
        """Draw predictions if that was long ago, or ``now``."""
        if self._is_due(PREDICTIONS_PICTURE, now):
            from .plots import draw_predictions

            draw_predictions(self._join(PREDICTIONS_PICTURE), spec, evaluation)

    def _is_due(self, name: str, now: bool) -> bool:
        clock = time.perf_counter()
        due = now or clock - self._drawn.setdefault(name, clock) >= PICTURE_SECONDS
        if due:
            self._drawn[name] = clock
        return due and self.writes

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make an OSError of writing to the folder one line."""
        try:
            yield
        except BrokenPipeError:  # of stdout
            raise
        except OSError as error:
            where = error.filename or self.path
            raise InputError(f"cannot write to {where}: {error.strerror or error}") from error
