"""A run: one training from its first step to its last, in however many sittings.

Its folder holds

    config.yaml            the settings it was started with
    last.npz               where to resume: weights, optimizer, history
    best.npz               the most accurate model
    metrics.csv            a row for each step and for each evaluation
    mistakes.csv           the images that the last evaluation got wrong
    loss.png, predictions.png
    events.out.tfevents.…  for TensorBoard, where tensorboardX is installed

It is resumed from config.yaml and last.npz alone, wherever the folder lies.
"""

import math
import os
import shlex
import sys

import numpy as np

from ofrecord.dataset.open_dataset import Dataset
from runtime.cli import InputError, count, log, typed_path

from .checkpoint import Checkpoint, CheckpointInfo, save_checkpoint
from .config import TrainConfig, write_config
from .evaluation import Evaluation
from .history import History
from .learner import weights_of
from .mistakes import write_mistakes
from .plan import Plan
from .progress import Progress
from .ranks import RANK, WORLD_SIZE, launcher, mean_over_ranks

LAST, BEST = "last.npz", "best.npz"
RECENT_STEPS = 50  # whose mean loss is shown


class Run:
    """Where a training is, and what rank 0 keeps of it; nothing without ``config.run_dir``."""

    def __init__(self, config: TrainConfig, train_set: Dataset, eval_set: Dataset | None):
        self.config = config
        self.path = config.run_dir and (config.run_dir.rstrip("/") or "/")
        self.writes = self.path is not None and RANK == 0
        self.digests = {
            "dataset": train_set.manifest.digest,
            "eval_dataset": eval_set.manifest.digest if eval_set else None,
        }
        self.plan, self.eval_set = Plan(config, train_set), eval_set or train_set
        self.history = History(self.plan)
        self.checkpoint: Checkpoint | None = None  # to resume from
        self.saved = 0  # the step of the last checkpoint
        self.progress: Progress | None = None  # once it has started
        self._waiting = []  # losses that are still on the device, with their learning rates

    @property
    def command(self) -> str:
        """What to type to resume the run."""
        script, folder = shlex.quote(sys.argv[0]), typed_path(self.path)
        return f"python {launcher()}{script} --run_dir {folder} --resume"

    def start(self, learner) -> None:
        """Log what is trained, write config.yaml and open the files, before the next step."""
        parameters = sum(weights.numel() for weights in learner.model.parameters())
        log(f"model: LeNet, {parameters:,} parameters")
        steps, batch = count(self.plan.num_steps, "step"), count(self.config.batch_size, "image")
        epochs, ranks = count(self.plan.num_epochs, "epoch"), count(WORLD_SIZE, "rank")
        log(f"training: {steps} of {batch}, {epochs}, {learner.execution_mode} on {ranks}")
        if self.checkpoint:
            before = self.checkpoint.info.world_size
            also = "" if before == WORLD_SIZE else f", of a training on {count(before, 'rank')}"
            log(f"resumed after step {self.saved:,}{also}")
        if self.writes:
            write_config(self.path, self.config, f"To resume: {self.command}")
            self.history.open(self.path)
            log(f"to resume after a stop: {self.command}")
        self.progress = Progress(self.plan.num_steps, self.saved, self.config.batch_size, RANK == 0)

    @property
    def finished(self) -> bool:
        return self.history.step == self.plan.num_steps and not self.evaluation_missing()

    def report_finished(self) -> None:
        """Log the end of a finished run, and write the files again that follow from its history."""
        step = self.history.step
        accuracy = self.history.evaluations[step][1]
        log(f"{self.path} is finished: {count(step, 'step')}, accuracy {accuracy:.2%}")
        if self.writes:
            self.history.open(self.path)
            self.progress = Progress(step, step, self.config.batch_size, shown=False)
            self._draw_losses()

    def remaining_steps(self) -> range:
        """Return the numbers of the steps to take."""
        return range(self.history.step + 1, self.plan.num_steps + 1)

    def evaluation_missing(self) -> bool:
        """Whether the run was stopped before an evaluation that is due."""
        step = self.history.step
        return self.plan.should_evaluate(step) and step not in self.history.evaluations

    def should_save(self, step: int) -> bool:
        """Whether to save after a step: now and then, and before an evaluation, which may fail."""
        due = step - self.saved >= self.config.checkpoint_every
        return self.path is not None and (due or self.plan.should_evaluate(step))

    def log_loss(self, step: int, loss, learning_rate: float) -> None:
        """Add a step's loss, a 0-d tensor; now and then fetch and print those since the last time.

        All ranks fetch after the same steps. Raises InputError for a loss that is no number.
        """
        self._waiting.append((loss, learning_rate))
        fetch = step == 1 or step % self.config.fetch_every == 0
        if not (fetch or self.plan.should_evaluate(step) or self.should_save(step)):
            return
        losses, rates = zip(*self._waiting, strict=True)
        self._waiting = []
        losses = mean_over_ranks(losses)  # waits until the device has computed them
        self.history.add_losses(losses, rates)
        for number, loss in enumerate(losses, step - len(losses) + 1):
            if number % self.config.print_every == 0:
                self.progress.output_loss(loss)
            _check_finite("loss", loss, number)
        recent = [row.loss for row in self.history.rows[-RECENT_STEPS:] if row.loss is not None]
        self.progress.show(step, float(np.mean(recent)))

    def log_evaluation(self, evaluation: Evaluation, learner) -> None:
        """Add the evaluation after the last step; save all, and the most accurate model so far."""
        history, step, model = self.history, self.history.step, learner.model
        _check_finite("evaluation loss", evaluation.loss, step)
        history.add_evaluation(evaluation.loss, evaluation.accuracy)
        if history.best_step == step:
            self._write(BEST, learner, model, {})
        if self.writes:
            write_mistakes(f"{self.path}/mistakes.csv", evaluation, self.eval_set, model.spec)
        self.save(learner, model)  # after the others, as it says that the evaluation was made
        picture = f"{self.path}/predictions.png"
        if self.writes and self.progress.draw(picture, model.spec, evaluation):
            history.events.add_picture(step, picture)
        if self.plan.evaluates_each_epoch:
            epoch, num_epochs = self.plan.epoch_of(step), self.plan.num_epochs
            training = history.losses(epoch).mean(dtype=np.float64)
            losses = f"loss {evaluation.loss:.4f}, training loss {training:.4f}"
            self.progress.log(f"epoch {epoch}/{num_epochs}: accuracy {evaluation}, {losses}")
            if step == self.plan.num_steps:
                path, best = f"{self.path}/{BEST}", self.plan.epoch_of(history.best_step)
                state = "is" if os.path.exists(path) else "is missing; it was"
                kept = [f"{path} {state} the model of epoch {best}"] if self.path else []
                self.progress.log("\n".join(evaluation.report(model.spec) + kept))
        else:
            self.progress.log(f"training accuracy: {evaluation}")
        self.progress.skip_time()

    def save(self, learner, model=None) -> None:
        """Save all that it takes to continue after the last step; on all ranks together."""
        if self.path is None:
            return
        model = learner.model if model is None else model  # all ranks fetch it from a graph
        self._write(LAST, learner, model, learner.state_dict())
        self.saved = self.history.step
        if self.writes:
            self._draw_losses()
        self.progress.skip_time()

    def _write(self, name: str, learner, model, training: dict[str, np.ndarray]) -> None:
        if not self.writes:
            return
        info = CheckpointInfo(
            spec=model.spec,
            step=self.history.step,
            num_steps=self.plan.num_steps,
            execution_mode=learner.execution_mode,
            world_size=WORLD_SIZE,
            dataset_digests=self.digests,
            config=self.config.model_dump(),
        )
        path, history = f"{self.path}/{name}", self.history.to_arrays()
        save_checkpoint(Checkpoint(path, info, weights_of(model), training, history))

    def _draw_losses(self) -> None:
        title = os.path.basename(os.path.abspath(self.path))
        self.progress.draw(f"{self.path}/loss.png", title, self.plan, self.history)

    def close(self) -> None:
        """Close the files and the bar, and log how fast a finished training was."""
        self.history.close()
        if self.progress:
            self.progress.close()
        if self.progress and self.progress.steps and self.finished:
            log(
                f"{count(self.progress.steps, 'step')} in {self.progress.seconds:.1f} s, "
                f"{self.progress.rate:.0f} images/s, final loss {self.history.losses()[-1]:.4g}"
            )


def _check_finite(name: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise InputError(f"the {name} is {value} at step {step}: reduce --learning_rate")
