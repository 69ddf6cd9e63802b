"""The folder of a run: one training from its first step to its last, in however many sittings.

    config.yaml            the settings it was started with
    metrics.csv            a row for each step and for each evaluation
    last.npz, best.npz     checkpoints: where to resume, and the most accurate model
    loss.png, predictions.png
    events.out.tfevents.…  for TensorBoard, where tensorboardX is installed

Nothing in the folder is ever removed.
"""

import os
import shlex
import sys

import numpy as np

from ofrecord.dataset import Dataset
from ofrecord.settings import text_of
from runtime.atomic import replace_file
from runtime.cli import InputError, count, first_few, log, os_errors, uninterrupted

from .checkpoint import Checkpoint, CheckpointInfo, open_checkpoint, save_checkpoint
from .config import CONFIG, FOLDERS, LENGTH, MAY_CHANGE_ON_RESUME, METRICS, TrainConfig, to_yaml
from .metrics import Metrics
from .model import LeNet
from .plan import Plan
from .ranks import LAUNCHER, RANK

LAST, BEST = "last.npz", "best.npz"


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
        self._config_is_saved = False

    @property
    def command(self) -> str:
        """What to type to resume the run."""
        script, config = shlex.quote(sys.argv[0]), shlex.quote(self.join(CONFIG))
        return f"python {LAUNCHER}{script} --config {config} --resume"

    def join(self, name: str) -> str:
        return os.path.join(self.path, name)

    # -- create or resume --

    def create(self) -> None:
        """Make the folder of a new run. Raises InputError if it holds a run, or anything else."""
        if not self.writes:
            return
        with os_errors("use run_dir", self.path, "name another folder"):
            os.makedirs(self.path, exist_ok=True)
            ours = {CONFIG, f".{CONFIG}.new", f".{METRICS}.new"}  # also of a start that was killed
            names = [name for name in os.listdir(self.path) if name not in ours]
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

    def load(self) -> Checkpoint | None:
        """Return the last checkpoint, and read the metrics up to it; None if there is none yet.

        Raises InputError for a run of other settings or datasets, and for damaged files.
        """
        # An earlier version had a folder named last, which is refused.
        found = [name for name in (LAST, "last") if os.path.lexists(self.join(name))]
        if not found:
            if os.path.lexists(self.join(BEST)):  # it takes the same steps again
                self._check_is_the_same(open_checkpoint(self.join(BEST)).info)
            log(f"{self.path} was stopped before its first checkpoint; starting from the beginning")
            return None
        checkpoint = open_checkpoint(self.join(found[0]))
        self._check_is_the_same(checkpoint.info)
        try:
            self.metrics.read(self.join(METRICS), checkpoint.info.step)
        except (OSError, ValueError) as error:
            path, reason = self.join(METRICS), getattr(error, "strerror", None) or error
            raise InputError(f"cannot resume: {path} was changed or damaged: {reason}") from None
        return checkpoint

    def _check_is_the_same(self, info: CheckpointInfo) -> None:
        if problem := self._difference(info):
            raise InputError(f"cannot resume {self.path}: {problem}")

    def _difference(self, info: CheckpointInfo) -> str:
        """Return how this training differs from that of a checkpoint, so that it cannot go on."""
        now, num_steps = self._config.model_dump(), self.plan.num_steps
        # What the checkpoint does not name did not exist then: it was as the default is.
        before = {**TrainConfig().model_dump(), **info.config}
        changed = [name for name in now if now[name] != before[name]]
        self._config_is_saved = not LENGTH.intersection(changed)
        any_length = self._config.schedule == "constant" and not self._config.warmup
        may_change = MAY_CHANGE_ON_RESUME | (LENGTH if any_length else set())
        if fixed := [name for name in changed if name not in may_change]:
            text = "; ".join(
                f"{name} {text_of(before[name])}, not {text_of(now[name])}" for name in fixed
            )
            if LENGTH.issuperset(fixed):
                return (
                    f"it was started with {text}, and its learning rate follows from that: only "
                    "with schedule constant and warmup 0 can a run be trained for longer"
                )
            return f"it was started with {text}; --run_dir DIR starts another run"
        for name, digest in self.digests.items():
            if info.dataset_digests.get(name) != digest:
                return f"it was trained on a different {name}; --run_dir DIR starts another run"
        if num_steps < info.step:
            return f"it has taken {count(info.step, 'step')}, and would end after {num_steps:,}"
        if self._config_is_saved and num_steps != info.num_steps:
            steps = count(num_steps, "step")
            return f"on this number of ranks it would take {steps}, not {info.num_steps:,}"
        return ""

    # -- write --

    def open_files(self) -> None:
        """Write the configuration, unless that is done, and open the metrics file."""
        if not self.writes:
            return
        if not self._config_is_saved:
            config = self._config.model_dump(include=FOLDERS, exclude_none=True)
            # So that they are found, whatever folder the run is resumed in.
            folders = {name: os.path.abspath(folder) for name, folder in config.items()}
            text = to_yaml(self._config.model_copy(update=folders), f"To resume: {self.command}")
            path = self.join(CONFIG)
            with os_errors("write", path), replace_file(path, "w") as file:
                file.write(text)
        self.metrics.open(self.join(METRICS))

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
            save_checkpoint(self.join(name), info, weights, training)
