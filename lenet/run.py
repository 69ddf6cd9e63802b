"""A run: one training from its first step to its last, in however many sittings, and the folder it is kept in.

    config.yaml      the resolved configuration
    metrics.csv      a row for each step and for each evaluation
    last/, best/     checkpoints: where to go on, and the most accurate model
    loss.png, predictions.png
"""

import csv
import math
import os
import shlex
import shutil
from contextlib import contextmanager

import numpy as np
import yaml

from ofrecord.cli import InputError, some, talk, uninterrupted
from ofrecord.staging import flush_to_disk, lock_folder

from .checkpoint import find_checkpoint, open_checkpoint, save_checkpoint, settle_checkpoint
from .ranks import LAUNCHER, RANK, WORLD_SIZE, wait_for_all

CONFIG, METRICS, LAST, BEST, LOSS_PICTURE, PREDICTIONS_PICTURE = NAMES = (
    "config.yaml", "metrics.csv", "last", "best", "loss.png", "predictions.png")
COLUMNS = ("step", "epoch", "learning_rate", "loss", "eval_loss", "eval_accuracy")

# What may differ when a run is resumed: it changes no weight, or (device,
# graph, amp) only as it rounds them. The datasets themselves are compared, not
# where they lie.
FREE = {"dataset_dir", "eval_dataset_dir", "check_hashes", "run_dir", "device", "graph", "amp", "fetch_every", "print_every",
        "checkpoint_every", "picture"}


@contextmanager
def open_run(config, plan, digests, resume):
    """The Run to train: new, or resumed where it was last saved.

    ``digests`` are those of the datasets, {name: digest or None}. Without
    ``config.run_dir`` nothing is kept. Raises InputError where the folder
    holds another run or is in use, and where a run cannot be resumed as it is
    asked to; a folder that cannot be written to is one too, at any time.

    Of several ranks only rank 0 touches the folder; the others, on whatever
    machine, read the checkpoint in it.
    """
    folder = config.run_dir and (config.run_dir.rstrip("/") or config.run_dir)
    if folder is None:
        if resume:
            raise InputError("--resume needs the run's folder: --run_dir DIR")
        yield Run(config, plan, digests, None)
        return
    if RANK != 0:
        yield _follow(Run(config, plan, digests, folder), resume)
        return
    try:
        made = _prepare_folder(folder, resume)
        lock = lock_folder(folder, "another training is using")
    except OSError as error:
        raise _writing_error(folder, error)
    run = Run(config, plan, digests, folder)
    try:
        if resume:
            run.load()
        wait_for_all()  # now the others load
        wait_for_all()
        run.start_files()
        yield run
    except KeyboardInterrupt:
        if run.saved:
            raise KeyboardInterrupt("{} is saved as it was after step {:,} of {:,}; to go on: {}".format(
                folder, run.saved, run.plan.steps, run.command))
        raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _writing_error(folder, error)
    finally:
        run.close()
        if made and find_checkpoint(run.path(LAST)) is None:
            _remove_files(folder)  # nothing to go on from
        os.close(lock)


def _follow(run, resume):
    """The Run of a rank other than 0: it goes on from the same checkpoint, and writes nothing."""
    wait_for_all()
    if resume:
        run.load()
    wait_for_all()
    return run


def _prepare_folder(folder, resume):
    """Make the folder for a new run, or see that there is one to resume. Did it make it?"""
    is_run = os.path.isfile(os.path.join(folder, CONFIG))
    if resume:
        if not is_run:
            raise InputError("no run to resume in {}: start it without --resume".format(folder))
        return False
    if is_run:
        raise InputError("{} holds a run already: --resume goes on with it, --run_dir DIR starts another".format(folder))
    if os.path.lexists(folder):
        if not os.path.isdir(folder):
            raise InputError("run_dir {} is a file; name a folder".format(folder))
        names = os.listdir(folder)
        if names:
            raise InputError("run_dir {} is not empty and holds no run ({}): name another folder"
                             .format(folder, some(names)))
    os.makedirs(folder, exist_ok=True)
    return True


def _remove_files(folder):
    """Remove what a Run wrote, and the folder if that was all."""
    for name in NAMES:
        for path in (os.path.join(folder, name + ending) for ending in ("", ".new", ".old")):
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            elif os.path.exists(path):
                os.remove(path)
    try:
        os.rmdir(folder)
    except OSError:  # somebody put something in
        pass


class Plan:
    """When what happens: all of it follows from the dataset's size and the configuration.

    ``steps`` is the number of steps to take, the smaller of ``config.steps``
    and what makes ``config.epochs`` passes over ``records`` images. A batch is
    what all ranks take in one step together; on several, ``records`` is what
    the rank with the most reads, times their number, so that an epoch ends
    when every image was read.
    """

    def __init__(self, config, records):
        self.records, self.batch_size = records, config.batch_size
        self.each_epoch = config.eval_dataset_dir is not None
        limits = [config.steps or math.inf, self.end_of_epoch(config.epochs) if config.epochs else math.inf]
        self.steps = min(limits)
        self.epochs = self.epoch_of(self.steps)

    def end_of_epoch(self, epoch):
        """The step with which the reader has delivered every image ``epoch`` times."""
        return -(-epoch * self.records // self.batch_size)

    def epoch_of(self, step):
        """The epoch, from 1, in which a step, from 1, begins."""
        return (step - 1) * self.batch_size // self.records + 1

    def ends_epoch(self, step):
        return step == self.end_of_epoch(self.epoch_of(step))

    def evaluates(self, step):
        """Is the model evaluated after this step? After the last, and where there is a dataset for it after each epoch."""
        return step == self.steps or (self.each_epoch and step > 0 and self.ends_epoch(step))

    def may_pause(self, step):
        """Can a run be saved after this step, and go on from there as if nothing had been?

        After these steps the random numbers are seeded anew, see seed_of.
        """
        return step % SEED_EVERY == 0 or step == self.steps or self.ends_epoch(step)


SEED_EVERY = 10  # steps; seeding makes a GPU wait


def seed_of(seed, step, rank=0):
    """The seed of a rank's OneFlow generators for the steps after ``step``.

    OneFlow's generators cannot be saved and restored: what get_rng_state
    returns lacks the position in the generator's block of 624 numbers, and
    there is none for a GPU.
    """
    return int(np.random.SeedSequence([seed, step] + [rank] * (rank > 0)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Run:
    """Where a training stands.

    ``losses`` and ``learning_rates`` hold a float for each step taken,
    ``evaluations`` {step: (loss, accuracy)}.
    """

    def __init__(self, config, plan, digests, folder):
        self.config, self.plan, self.digests, self.folder = config, plan, digests, folder
        self.writes = folder is not None and RANK == 0
        self.losses, self.learning_rates, self.evaluations = [], [], {}
        self.checkpoint = None  # the one to go on from
        self.saved = 0  # the step of the newest checkpoint
        self._file = None

    @property
    def step(self):
        """Steps taken."""
        return len(self.losses)

    @property
    def best_step(self):
        """The step of the highest accuracy, the first of equals; None before the first evaluation."""
        return max(self.evaluations, key=lambda step: (self.evaluations[step][1], -step), default=None)

    @property
    def command(self):
        """What to type to go on."""
        return "python {}lenet_train.py --config {} --resume".format(LAUNCHER, shlex.quote(self.path(CONFIG)))

    @property
    def how(self):
        """What else, beside the configuration, makes two runs the same bit for bit."""
        return "{} on {} rank{}".format("with amp" if self.config.amp else "as a graph" if self.config.graph else "op by op",
                                        WORLD_SIZE, "s" if WORLD_SIZE > 1 else "")

    @property
    def finished(self):
        return self.step == self.plan.steps and self.step in self.evaluations

    @property
    def outcome(self):
        """The last and the best evaluation, in words."""
        loss, accuracy = self.evaluations[self.step]
        text = "{:,} steps, {:.2%} right".format(self.step, accuracy)
        best = self.evaluations[self.best_step][1]
        return text if best == accuracy else text + " (best: {:.2%} after step {:,})".format(best, self.best_step)

    def epoch_loss(self):
        """Mean loss of the steps of the epoch that the last step was in."""
        first = self.plan.end_of_epoch(self.plan.epoch_of(self.step) - 1)
        return float(np.mean(self.losses[first:]))

    def path(self, name):
        return os.path.join(self.folder, name)

    # -- going on --

    def load(self):
        """Take up the run in the folder. Raises InputError where it is another one, or damaged."""
        self._compare_config()
        if self.writes:
            for name in (LAST, BEST):
                settle_checkpoint(self.path(name))
        if find_checkpoint(self.path(LAST)) is None:
            talk("{} was stopped before its first checkpoint: it starts from the beginning".format(self.folder))
            return
        self.checkpoint = open_checkpoint(self.path(LAST))
        for name, digest in self.digests.items():
            if self.checkpoint.about["datasets"].get(name) != digest:
                raise InputError("cannot resume {}: it was trained with another {}; --run_dir DIR starts another run"
                                 .format(self.folder, name))
        about = self.checkpoint.about
        if about.get("how", self.how) != self.how:
            talk("it was trained {} and goes on {}: not bit for bit as it would have, but for rounding and order"
                 .format(about["how"], self.how))
        self.saved = about["step"]
        self._read_metrics(self.saved)

    def _compare_config(self):
        path, wanted = self.path(CONFIG), plain(self.config)
        try:
            with open(path, encoding="utf-8") as file:
                saved = yaml.safe_load(file)
            differing = [name for name in wanted if name not in FREE and saved[name] != wanted[name]]
        except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise InputError("cannot resume: {} cannot be read ({})".format(path, type(error).__name__))
        if differing:
            raise InputError("cannot resume {}: it was started with {}; `--config {} --resume` goes on with it".format(
                self.folder, ", ".join("{} {} and not {}".format(name, saved[name], wanted[name]) for name in differing),
                path))

    def _read_metrics(self, last):
        """Losses and evaluations up to step ``last``."""
        path = self.path(METRICS)
        try:
            with open(path, encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if None in row.values() or int(row["step"]) > last:
                        break  # after the checkpoint, and perhaps cut off
                    if row["eval_loss"]:
                        self.evaluations[int(row["step"])] = float(row["eval_loss"]), float(row["eval_accuracy"])
                        continue
                    if int(row["step"]) != self.step + 1:
                        raise ValueError("step {} follows step {}".format(row["step"], self.step))
                    self.learning_rates.append(float(row["learning_rate"]))
                    self.losses.append(float(np.float32(row["loss"])))
            if self.step != last:
                raise ValueError("it ends with step {} and the checkpoint is of step {}".format(self.step, last))
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise InputError("cannot resume: {} was changed or damaged: {}"
                             .format(path, getattr(error, "strerror", None) or error))

    # -- keeping --

    def start_files(self):
        """Write the configuration, and of the metrics what counts."""
        with open(self.path(CONFIG), "w", encoding="utf-8") as file:
            file.write("# What this run was started with. To go on with it:\n#   {}\n".format(self.command))
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

    def add_losses(self, learning_rates, losses):
        """Of the next steps."""
        for learning_rate, loss in zip(learning_rates, losses):
            self.learning_rates.append(learning_rate)
            self.losses.append(float(loss))
            self._write_loss(self.step)
        if self._file:
            self._file.flush()

    def add_evaluation(self, loss, accuracy, model):
        """Of the model as it is after the last step; where it is the most accurate so far, it is saved."""
        self.evaluations[self.step] = loss, accuracy
        if self.best_step == self.step:
            self._save(BEST, model)
        self._write_evaluation(self.step)
        if self._file:
            self._file.flush()

    def _write_loss(self, step):
        loss = str(np.float32(self.losses[step - 1]))  # the fewest digits that give the same float32 again
        self._write_row(step, repr(self.learning_rates[step - 1]), loss, "", "")

    def _write_evaluation(self, step):
        self._write_row(step, "", "", *map(repr, self.evaluations[step]))

    def _write_row(self, step, *values):
        if self._file:
            self._writer.writerow((step, self.plan.epoch_of(step)) + values)

    def saves(self, step, asked):
        """Is a run saved after this step: when it is ``asked`` to, after every ``checkpoint_every`` steps, and at its end?"""
        return self.folder is not None and self.plan.may_pause(step) and (
            asked or step == self.plan.steps or step - self.saved >= self.config.checkpoint_every)

    def save(self, model, optimizer, schedule, scaler):
        """Save all that it takes to go on after the last step."""
        self._save(LAST, model, {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "scaler": scaler})
        self.saved = self.step

    def _save(self, name, model, training=None):
        if not self.writes:
            return
        flush_to_disk(self._file)
        loss, accuracy = self.evaluations.get(self.step, (None, None))
        about = {"step": self.step, "steps": self.plan.steps, "epoch": self.plan.epoch_of(self.step),
                 "eval_loss": loss, "eval_accuracy": accuracy, "how": self.how, "datasets": self.digests,
                 "config": plain(self.config)}
        with uninterrupted():
            save_checkpoint(self.path(name), model.spec, about, model.state_dict(), training)

    def close(self):
        if self._file:
            self._file.close()


def plain(config):
    """A TrainConfig as a dictionary of plain values, which YAML and JSON can write."""
    values = {}
    for name, value in vars(config).items():
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                value = kind(value)  # jsonargparse makes subclasses of them
                break
        values[name] = value
    return values


def _writing_error(folder, error):
    return InputError("cannot write to {}: {}".format(error.filename or folder, error.strerror or error))
