"""A run: where a training is, what it says of itself, and when it evaluates and saves."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ofrecord.dataset import Dataset
from runtime.atomic import folder_lock
from runtime.cli import EXIT_INTERRUPTED, InputError, count, log, stop_requests
from runtime.progress import Progress

from .checkpoint import Checkpoint, check_layout
from .config import TrainConfig
from .evaluation import Evaluation
from .model import LeNet
from .ranks import RANK, WORLD_SIZE, check_all_ranks_agree, mean_over_ranks, wait_for_all
from .run_folder import BEST, LAST, RunFolder

RECENT_STEPS = 50  # whose mean loss is shown
PICTURE_SECONDS = 30  # between two drawings of a picture, which takes a second


@contextmanager
def open_run(
    config: TrainConfig, train_set: Dataset, eval_set: Dataset | None, resume: bool
) -> Iterator["Run"]:
    """Create a run or resume one, hold its folder, and close it in the end.

    Raises InputError where the folder is in use or holds something else, where a
    run cannot be resumed as asked, and unless all ranks train the same.
    """
    run = Run(config, RunFolder(config, train_set, eval_set))
    local = {"dataset_dir", "eval_dataset_dir"}  # each machine may have its own copies
    check_all_ranks_agree({**config.model_dump(exclude=local), **run.folder.digests})
    if not resume:
        run.folder.create()
    with folder_lock(run.folder.path if run.folder.writes else None, "another training is using"):
        wait_for_all()  # now the others may read the folder
        if resume:
            run.load()
        try:
            with stop_requests(enabled=run.folder.path is not None) as run.stop:
                yield run
        except KeyboardInterrupt:
            if run.saved:
                where = f"{run.folder.path} after step {run.saved:,} of {run.plan.num_steps:,}"
                log(f"saved {where}; resume with: {run.folder.command}")
            if WORLD_SIZE > 1 and run.should_stop() and run.saved == run.metrics.step:
                log("interrupted", "error")
                run.close()
                wait_for_all()
                os._exit(EXIT_INTERRUPTED)  # at once, as OneFlow aborts a rank that loses another
            raise
        finally:
            run.close()


class Run:
    """Where a training is."""

    def __init__(self, config: TrainConfig, folder: RunFolder):
        self.config, self.folder = config, folder
        self.plan, self.metrics = folder.plan, folder.metrics
        self.saved = 0  # the step of the last checkpoint
        self.stop = None  # of stop_requests
        self.execution_mode = ""  # see restore
        self.progress: Progress | None = None
        self._checkpoint: Checkpoint | None = None  # to resume from
        self._reader = None  # of images; see restore
        self._drawn: dict[str, float] = {}  # when each picture was
        self._waiting = []  # losses that are still on the device, with their learning rates
        self._stopping = False  # all ranks know that one was asked to stop

    @property
    def finished(self) -> bool:
        return self.metrics.step == self.plan.num_steps and not self.evaluation_missing()

    def outcome(self) -> str:
        """Return the last and the best evaluation, in words."""
        step, best = self.metrics.step, self.metrics.best_step
        accuracy, highest = (self.metrics.evaluations[n][1] for n in (step, best))
        text = f"{count(step, 'step')}, accuracy {accuracy:.2%}"
        return text if highest == accuracy else f"{text} (best: {highest:.2%} after step {best:,})"

    # -- resuming --

    def load(self) -> None:
        """Take up the run in the folder. Raises InputError where it is another one, or damaged."""
        self._checkpoint = self.folder.load()
        self.saved = self._checkpoint.info.step if self._checkpoint else 0
        check_all_ranks_agree({"checkpoint in run_dir": f"of step {self.saved}"})

    def restore(self, learner, reader) -> None:
        """Give learner and reader the state that was saved, if any, and open the run's files.

        Raises InputError for the checkpoint of another model or execution mode.
        """
        self._reader, mode = reader, learner.execution_mode
        self.execution_mode = f"{mode} on {count(WORLD_SIZE, 'rank')}"
        if self._checkpoint:
            path, info, weights, state = self._checkpoint
            saved_mode = info.execution_mode.partition(" on ")[0]
            refused = f"cannot resume {self.folder.path}: "
            if saved_mode != mode:
                raise InputError(f"{refused}it was trained {saved_mode}, not {mode}")
            if info.spec != learner.model.spec:
                raise InputError(f"{refused}its checkpoint is of a different model")
            check_layout(path, state, learner.state_layout())
            if info.execution_mode != self.execution_mode:
                change = f"{info.execution_mode}, and now {self.execution_mode}"
                log(f"trained {change}: the same up to rounding and the order of images")
            learner.load_state_dict(weights, state)
            reader.skip(self.saved)
            log(f"resumed after step {self.saved:,}")
        self.folder.open_files()
        self.progress = Progress(
            self.plan.num_steps, self.saved, self.config.batch_size, enabled=RANK == 0
        )

    # -- the loop --

    def remaining_steps(self) -> range:
        """Return the numbers of the steps to take."""
        return range(self.metrics.step + 1, self.plan.num_steps + 1)

    def evaluation_missing(self) -> bool:
        """Whether the run was stopped between its last step and the evaluation after it."""
        step = self.metrics.step
        return self.plan.should_evaluate(step) and step not in self.metrics.evaluations

    def should_stop(self) -> bool:
        """Whether a stop was requested; with several ranks once all of them know."""
        return self._stopping or (WORLD_SIZE == 1 and self.stop.asked is not None)

    def should_save(self, step: int) -> bool:
        """Whether to save after a step: now and then, at the end, and where a stop is requested."""
        due = step - self.saved >= self.config.checkpoint_every or step == self.plan.num_steps
        # A request after log_loss takes effect at the next step, when no loss is unsaved.
        stopping = self.should_stop() and not self._waiting
        return self.folder.path is not None and (due or stopping)

    def log_loss(self, step: int, loss, learning_rate: float) -> None:
        """Add a step's loss, a 0-d tensor; now and then fetch and print those since the last time.

        All ranks fetch after the same steps, and learn then whether one was asked to stop.
        Raises InputError for a loss that is no number, and for labels that are no classes.
        """
        self._waiting.append((loss, learning_rate))
        fetch = step == 1 or step % self.config.fetch_every == 0 or self.should_stop()
        if not (fetch or self.plan.should_evaluate(step) or self.should_save(step)):
            return
        losses, rates = zip(*self._waiting, strict=True)
        self._waiting = []
        losses, self._stopping = mean_over_ranks(losses, self.stop.asked is not None)
        self.metrics.add_losses(losses, rates)
        for number, loss in enumerate(losses, step - len(losses) + 1):
            if number % self.config.print_every == 0:  # as the tutorial prints them: [7.9320416]
                self.progress.output(str(np.array([loss], np.float32)))
            _check_finite("loss", loss, number)
        self.progress.show(step, float(np.mean(self.metrics.losses[-RECENT_STEPS:])))
        self._reader.check_labels()

    def log_evaluation(self, evaluation: Evaluation | None, model: LeNet) -> None:
        """Take the evaluation after the last step; the most accurate model so far is saved."""
        step, metrics, say = self.metrics.step, self.metrics, self.progress.log
        if evaluation is None:  # stopped meanwhile
            if self.saved == step:
                raise KeyboardInterrupt
            return
        _check_finite("evaluation loss", evaluation.loss, step)
        metrics.add_evaluation(evaluation.loss, evaluation.accuracy)
        if metrics.best_step == step:
            self.folder.save(BEST, model, self.execution_mode, {})
        self._draw("predictions.png", model.spec, evaluation)
        images = f"{evaluation.num_correct:,}/{evaluation.num_images:,}"
        accuracy = f"{images} ({evaluation.accuracy:.2%})"
        if not self.plan.evaluates_each_epoch:
            say(f"training accuracy: {accuracy}")
            return
        epoch = f"epoch {self.plan.epoch_of(step)}/{self.plan.num_epochs}"
        losses = f"loss {evaluation.loss:.4f}, training loss {metrics.epoch_loss():.4f}"
        say(f"{epoch}: accuracy {accuracy}, {losses}")
        if step == self.plan.num_steps:
            say("\n".join(evaluation.report(model.spec)))

    def save(self, learner) -> None:
        """Save all that it takes to continue after the last step; on all ranks together.

        Raises KeyboardInterrupt where a stop was requested.
        """
        with self.progress.timer_paused():
            self.folder.save(LAST, learner.model, self.execution_mode, learner.state_dict())
            self.saved = self.metrics.step
            title = os.path.basename(os.path.abspath(self.folder.path))
            self._draw("loss.png", title, self.plan, self.metrics)
        if self.should_stop():
            raise KeyboardInterrupt

    def _draw(self, name: str, *arguments: Any) -> None:
        """Draw a picture, at the end and now and then. One that fails is a warning."""
        now = time.perf_counter()
        last = self.metrics.step == self.plan.num_steps or self.should_stop()
        due = now - self._drawn.setdefault(name, now) >= PICTURE_SECONDS
        if not self.folder.writes or not (last or due):
            return
        self._drawn[name], path = now, self.folder.join(name)
        try:
            from . import plots  # matplotlib takes a second to import

            draw = plots.draw_losses if name == "loss.png" else plots.draw_predictions
            draw(path, *arguments)
            if name == "predictions.png":
                self.metrics.events.add_picture(self.metrics.step, "predictions", path)
        except Exception as error:
            self.progress.log(f"cannot draw {path}: {error}", "warning")

    def close(self) -> None:
        """Close the files and the bar, and log how fast a finished training was."""
        self.metrics.close()
        if self.progress:
            self.progress.close()
            steps = self.metrics.step - self.progress.first
            if steps and self.finished:
                rate = self.progress.rate(self.metrics.step)
                seconds = steps * self.config.batch_size / rate
                log(
                    f"{count(steps, 'step')} in {seconds:.1f} s, {rate:.0f} images/s, "
                    f"final loss {self.metrics.losses[-1]:.4g}"
                )


def _check_finite(name: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise InputError(f"the {name} is {value} at step {step}: reduce --learning_rate")
