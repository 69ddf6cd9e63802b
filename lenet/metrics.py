"""The figures of a training, and the files that they are kept in: ``metrics.csv``, events."""

import os
from contextlib import suppress

import numpy as np

from runtime.atomic import flush_file, replace_file
from runtime.cli import os_errors

from .events import EventFile
from .plan import Plan

COLUMNS = ("step", "epoch", "learning_rate", "loss", "eval_loss", "eval_accuracy")


class Metrics:
    """The loss of each step, and evaluations as {step: (loss, accuracy)}."""

    def __init__(self, plan: Plan):
        self.losses: list[float] = []
        self.evaluations: dict[int, tuple[float, float]] = {}
        self.events = EventFile()
        self._plan = plan
        self._lines = [",".join(COLUMNS) + "\n"]  # of the file, when it is opened
        self._file = None  # nothing is kept, or rank 0 keeps it

    @property
    def step(self) -> int:
        """The last step whose loss is known."""
        return len(self.losses)

    @property
    def best_step(self) -> int | None:
        """The step of the highest accuracy, the first of equals."""
        return max(self.evaluations, key=lambda n: (self.evaluations[n][1], -n), default=None)

    def epoch_loss(self) -> float:
        """Return the mean loss of the steps of the epoch that the last step was in."""
        start = self._plan.end_of_epoch(self._plan.epoch_of(self.step) - 1)
        return float(np.mean(self.losses[start:]))

    def read(self, path: str, last: int) -> None:
        """Read what a file has up to step ``last``.

        Raises ValueError where it is damaged, and OSError.
        """
        with open(path, encoding="utf-8", newline="") as file:
            if next(file, "") != self._lines[0]:
                raise ValueError("not a table of metrics")
            for line in file:
                row = line.split(",")
                if not line.endswith("\n") or int(row[0]) > last:
                    break  # truncated, or after the checkpoint
                step, _, _, loss, eval_loss, eval_accuracy = row
                if eval_loss:
                    self.evaluations[int(step)] = float(eval_loss), float(eval_accuracy)
                elif int(step) != self.step + 1:
                    raise ValueError(f"step {step} follows step {self.step}")
                else:
                    self.losses.append(float(np.float32(loss)))
                self._lines.append(line)
        if self.step != last:
            raise ValueError(f"it ends with step {self.step}, and the checkpoint is of {last}")

    def open(self, path: str) -> None:
        """Write what is known to a file, in place of the one there, and what follows too."""
        with os_errors("write", path):
            with replace_file(path, "w") as file:
                file.writelines(self._lines)
            self._file = open(path, "a", encoding="utf-8", newline="", buffering=1)  # line by line
        self.events.open(os.path.dirname(path), self.step)

    def add_losses(self, losses: list[float], learning_rates: list[float]) -> None:
        """Add the next steps."""
        for loss, learning_rate in zip(losses, learning_rates, strict=True):
            self.losses.append(loss)
            # Of a float32 the fewest digits that give it again.
            self._add_row(repr(learning_rate), str(np.float32(loss)), "", "")
            self.events.add(self.step, {"loss/training": loss, "learning_rate": learning_rate})

    def add_evaluation(self, loss: float, accuracy: float) -> None:
        """Add the evaluation after the last step."""
        self.evaluations[self.step] = loss, accuracy
        self._add_row("", "", repr(loss), repr(accuracy))
        self.events.add(self.step, {"loss/evaluation": loss, "accuracy/evaluation": accuracy})

    def flush(self) -> None:
        """Write the file to the disk. Raises InputError."""
        with os_errors("write", self._file.name):
            flush_file(self._file)

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was reported
            if self._file:
                self._file.close()

    def _add_row(self, *figures: str) -> None:
        if self._file:
            with os_errors("write", self._file.name):
                row = str(self.step), str(self._plan.epoch_of(self.step)), *figures
                self._file.write(",".join(row) + "\n")
