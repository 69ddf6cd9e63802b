"""A run: one training from its first step to its last, in however many sittings, and its folder.

    config.yaml            the settings it was started with
    metrics.csv            a row for each step and for each evaluation
    last.npz, best.npz     checkpoints: where to resume, and the most accurate model
    loss.png, predictions.png

Nothing in the folder is ever removed.
"""

import math
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ofrecord.dataset import Dataset
from ofrecord.settings import to_yaml
from runtime.atomic import folder_lock, replace_file
from runtime.cli import InputError, count, first_few, log, stop_requests, uninterrupted
from runtime.progress import Progress

from .checkpoint import Checkpoint, CheckpointInfo, open_checkpoint, save_checkpoint
from .config import MAY_CHANGE_ON_RESUME, TrainConfig
from .evaluation import Evaluation
from .metrics import Metrics
from .model import LeNet, ModelSpec
from .plan import Plan
from .ranks import (
    LAUNCHER,
    RANK,
    WORLD_SIZE,
    check_all_ranks_agree,
    mean_over_ranks,
    wait_for_all,
)

CONFIG, METRICS, LAST, BEST = "config.yaml", "metrics.csv", "last.npz", "best.npz"
LOSS_PICTURE, PREDICTIONS_PICTURE = "loss.png", "predictions.png"
PICTURE_SECONDS = 30  # between two drawings of a picture, which takes a second
RECENT_STEPS = 50  # whose mean loss is shown


@contextmanager
def open_run(
    config: TrainConfig, train_set: Dataset, eval_set: Dataset | None, resume: bool
) -> Iterator["Run"]:
    """Create a run or resume one, hold its folder, and close it in the end.

    Without ``config.run_dir`` nothing is kept. Of several ranks only rank 0
    writes to the folder; the others, on whatever machine, read the checkpoint in it.
    Raises InputError where the folder is in use, or holds something else, and
    where a run cannot be resumed as asked.
    """
    folder = config.run_dir and (config.run_dir.rstrip("/") or config.run_dir)
    if resume and not folder:
        raise InputError("--resume needs the run's folder: --run_dir DIR")
    run = Run(config, train_set, eval_set, folder)
    run.check_ranks()
    if run.writes:
        _check_folder(folder, resume)
    with folder_lock(folder if run.writes else None, "another training is using"):
        wait_for_all()  # now the others may read the folder
        if resume:
            run.load()
        try:
            with stop_requests(enabled=folder is not None) as run.stop:
                yield run
        except KeyboardInterrupt:
            if run.saved:
                where = f"saved {folder} after step {run.saved:,} of {run.plan.num_steps:,}"
                raise KeyboardInterrupt(f"{where}; resume with: {run.command}") from None
            raise
        finally:
            run.close()


def _check_folder(folder: str, resume: bool) -> None:
    """See that there is a run to resume, or make the folder of a new one. Raises InputError."""
    has_run = os.path.isfile(os.path.join(folder, METRICS))
    if resume and not has_run:
        raise InputError(f"no run to resume in {folder}: start it without --resume")
    if has_run and not resume:
        raise InputError(
            f"{folder} holds a run already: --resume continues it, --run_dir DIR starts another"
        )
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"run_dir {folder} is a file; name a folder")
    with _writing(folder):
        os.makedirs(folder, exist_ok=True)
        names = [name for name in os.listdir(folder) if name != CONFIG]
    if names and not resume:
        raise InputError(
            f"run_dir {folder} is not empty and holds no run ({first_few(names)}): "
            "name another folder"
        )


class Run:
    """Where a training is, and what is kept of it."""

    def __init__(
        self, config: TrainConfig, train_set: Dataset, eval_set: Dataset | None, folder: str | None
    ):
        self.config, self.folder, self.plan = config, folder, Plan(config, train_set)
        self.metrics = Metrics(self.plan)
        self.digests = {
            "dataset": train_set.manifest.digest,
            "eval_dataset": eval_set.manifest.digest if eval_set else None,
        }
        self.writes = folder is not None and RANK == 0
        self.saved = 0  # the step of the last checkpoint
        self.stop = None  # of stop_requests
        self.execution_mode = ""  # see restore
        self._spec: ModelSpec | None = None
        self._checkpoint: Checkpoint | None = None  # to resume from
        self._progress: Progress | None = None
        self._waiting = []  # losses that are still on the device, with their learning rates
        self._stopping = False  # all ranks know that one was asked to stop
        self._drawn: dict[str, float] = {}  # when each picture was

    @property
    def finished(self) -> bool:
        return self.metrics.step == self.plan.num_steps and not self.evaluation_missing()

    @property
    def command(self) -> str:
        """What to type to resume it."""
        config = shlex.quote(self._path(CONFIG))
        return f"python {LAUNCHER}lenet_train.py --config {config} --resume"

    def outcome(self) -> str:
        """Return the last and the best evaluation, in words."""
        step, best = self.metrics.step, self.metrics.best_step
        accuracy, highest = (self.metrics.evaluations[n][1] for n in (step, best))
        text = f"{count(step, 'step')}, accuracy {accuracy:.2%}"
        return text if highest == accuracy else f"{text} (best {highest:.2%}, step {best:,})"

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    # -- resuming --

    def check_ranks(self) -> None:
        """Raise InputError unless all ranks train the same; each machine may have its own copies."""
        local = {"dataset_dir", "eval_dataset_dir"}
        check_all_ranks_agree({**self.config.model_dump(exclude=local), **self.digests})

    def load(self) -> None:
        """Take up the run in the folder. Raises InputError where it is another one, or damaged."""
        if not os.path.exists(self._path(LAST)):
            log(f"{self.folder} has no checkpoint yet: it starts from the beginning")
            return
        self._checkpoint = open_checkpoint(self._path(LAST))
        info = self._checkpoint.info
        problems = [
            f"it was started with {name} {info.config.get(name)}, not {value}; `{self.command}`"
            for name, value in self.config
            if name not in MAY_CHANGE_ON_RESUME and info.config.get(name) != value
        ]
        problems += [
            f"it was trained with another {name}; --run_dir DIR starts another run"
            for name, digest in self.digests.items()
            if info.dataset_digests.get(name) != digest
        ]
        if info.num_steps != self.plan.num_steps:
            problems.append(
                f"on this number of ranks it would take {count(self.plan.num_steps, 'step')}, "
                f"not {info.num_steps:,}"
            )
        if problems:
            raise InputError(f"cannot resume {self.folder}: {problems[0]}")
        try:
            self.metrics.read(self._path(METRICS), info.step)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            path = self._path(METRICS)
            raise InputError(f"cannot resume: {path} was changed or damaged: {reason}") from None
        self.saved = info.step

    def restore(self, learner, reader, execution_mode: str) -> None:
        """Give learner and reader the state that was saved, if any, and open the run's files.

        Raises InputError for the checkpoint of another model or execution mode.
        """
        self._spec = learner.model.spec
        self.execution_mode = f"{execution_mode} on {count(WORLD_SIZE, 'rank')}"
        if self._checkpoint:
            info = self._checkpoint.info
            saved_mode = info.execution_mode.partition(" on ")[0]
            if saved_mode != execution_mode:
                raise InputError(
                    f"cannot resume {self.folder}: it was trained {saved_mode}, not {execution_mode}"
                )
            if info.spec != self._spec:
                raise InputError(f"cannot resume {self.folder}: its checkpoint is of another model")
            if info.execution_mode != self.execution_mode:
                change = f"{info.execution_mode}, and now {self.execution_mode}"
                log(f"trained {change}: the same up to rounding and the order of images")
            state = self._checkpoint.training_state(learner.state_layout())
            learner.load_state_dict(self._checkpoint.weights(), state)
            reader.skip(self.saved)
            log(f"resumed after {count(self.saved, 'step')}")
        if self.writes:
            with _writing(self.folder):
                if not self._checkpoint:
                    with replace_file(self._path(CONFIG), "w") as file:
                        file.write(to_yaml(self.config, f"To resume: {self.command}"))
                self.metrics.open(self._path(METRICS))
        self._progress = Progress(
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
        return self._stopping or (WORLD_SIZE == 1 and self.stop.asked)

    def should_save(self, step: int) -> bool:
        """Whether to save after a step: now and then, at the end, and where a stop is requested."""
        due = step - self.saved >= self.config.checkpoint_every or step == self.plan.num_steps
        return self.folder is not None and (due or self.should_stop())

    def log_loss(self, step: int, loss, learning_rate: float) -> None:
        """Take a step's loss, a 0-d tensor, which is fetched from the device together with others.

        All ranks fetch after the same steps, and learn then whether one was asked to stop.
        """
        self._waiting.append((loss, learning_rate))
        full = len(self._waiting) == self.config.fetch_every
        if not (full or self.plan.should_evaluate(step) or self.should_save(step)):
            return
        losses, rates = zip(*self._waiting, strict=True)
        self._waiting = []
        losses, self._stopping = mean_over_ranks(list(losses), self.stop.asked)
        with _writing(self.folder):
            self.metrics.add_losses(losses, list(rates))
        for number in range(step - len(losses) + 1, step + 1):
            loss = self.metrics.losses[number - 1]
            if number % self.config.print_every == 0:  # as the tutorial prints them: [6.778578]
                self._progress.output(str(np.array([loss], np.float32)))
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at step {number}: reduce --learning_rate")
        self._progress.update(step, float(np.mean(self.metrics.losses[-RECENT_STEPS:])))

    def log_evaluation(self, evaluation: Evaluation | None, model: LeNet) -> None:
        """Take the evaluation after the last step; the most accurate model so far is saved."""
        if evaluation is None:  # stopped meanwhile
            return
        step, say = self.metrics.step, self._progress.log
        with self._progress.timer_paused(), _writing(self.folder):
            self.metrics.add_evaluation(evaluation.loss, evaluation.accuracy)
            if self.metrics.best_step == step:
                self._save(BEST, model, {})
            self._draw(PREDICTIONS_PICTURE, evaluation)
        images = f"{evaluation.num_correct:,}/{evaluation.num_images:,}"
        accuracy = f"{images} ({evaluation.accuracy:.2%})"
        if not self.plan.evaluates_each_epoch:
            say(f"training accuracy: {accuracy}")
            return
        epoch = f"epoch {self.plan.epoch_of(step)}/{self.plan.num_epochs}"
        losses = f"loss {evaluation.loss:.4f}, training loss {self.metrics.epoch_loss():.4f}"
        say(f"{epoch}: accuracy {accuracy}, {losses}")
        if step == self.plan.num_steps:
            say("\n".join(evaluation.confusion_table(self._spec)))

    def save(self, learner) -> None:
        """Save all that it takes to continue after the last step; on all ranks together.

        Raises KeyboardInterrupt where a stop was requested.
        """
        with self._progress.timer_paused(), _writing(self.folder):
            self._save(LAST, learner.model, learner.state_dict())
            self.saved = self.metrics.step
            self._draw(LOSS_PICTURE)
        if self.should_stop():
            raise KeyboardInterrupt

    def close(self) -> None:
        """Close the files and the bar, and log how fast a finished training was."""
        self.metrics.close()
        if self._progress:
            self._progress.close()
            steps = self.metrics.step - self._progress.first
            if steps and self.finished:
                rate = self._progress.rate(self.metrics.step)
                seconds = steps * self.config.batch_size / rate
                log(
                    f"{count(steps, 'step')} in {seconds:.1f} s, {rate:.0f} images/s, "
                    f"final loss {self.metrics.losses[-1]:.4g}"
                )

    # -- files --

    def timer_paused(self):
        """Return a context in which time is not counted in images/s."""
        return self._progress.timer_paused()

    def _save(self, name: str, model: LeNet, training: dict[str, np.ndarray]) -> None:
        if not self.writes:
            return
        loss, accuracy = self.metrics.evaluations.get(self.metrics.step, (None, None))
        info = CheckpointInfo(
            spec=self._spec,
            step=self.metrics.step,
            num_steps=self.plan.num_steps,
            eval_loss=loss,
            eval_accuracy=accuracy,
            execution_mode=self.execution_mode,
            dataset_digests=self.digests,
            config=self.config.model_dump(),
        )
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        with uninterrupted():
            self.metrics.flush()
            save_checkpoint(self._path(name), info, weights, training)

    def _draw(self, name: str, evaluation: Evaluation | None = None) -> None:
        """Draw a picture, now and then and at the end. One that fails is a warning."""
        now, last = time.perf_counter(), self.metrics.step == self.plan.num_steps
        due = now - self._drawn.setdefault(name, now) >= PICTURE_SECONDS
        if not self.writes or not (due or last or self.should_stop()):
            return
        self._drawn[name] = now
        try:
            from .plots import draw_losses, draw_predictions  # matplotlib takes a second to import

            if evaluation:
                draw_predictions(self._path(name), self._spec, evaluation)
            else:
                title = os.path.basename(os.path.abspath(self.folder))
                draw_losses(self._path(name), title, self.plan, self.metrics)
        except Exception as error:
            self._progress.log(f"cannot draw {self._path(name)}: {error}", "warning")


@contextmanager
def _writing(folder: str | None) -> Iterator[None]:
    """Make an OSError of writing to a run's folder one line."""
    try:
        yield
    except BrokenPipeError:  # of stdout
        raise
    except OSError as error:
        where = error.filename or folder
        raise InputError(f"cannot write to {where}: {error.strerror or error}") from error
