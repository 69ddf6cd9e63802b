"""The figures of a run; metrics.csv, TensorBoard's events and the pictures follow from them."""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from runtime.atomic import replace_file
from runtime.cli import os_errors

from .checkpoint import Arrays
from .events import EventFile
from .plan import Plan

COLUMNS = "step,epoch,learning_rate,loss,eval_loss,eval_accuracy"


class History:
    """The loss and learning rate of each step, and evaluations as {step: (loss, accuracy)}."""

    def __init__(self, plan: Plan):
        self.steps: list[tuple[float, float]] = []  # (loss, learning rate)
        self.evaluations: dict[int, tuple[float, float]] = {}
        self.events = EventFile()
        self._plan = plan
        self._file = None  # metrics.csv, where the run is kept

    @property
    def step(self) -> int:
        """The last step whose loss is known."""
        return len(self.steps)

    @property
    def losses(self) -> np.ndarray:
        """The loss of each step, float32."""
        return np.array([loss for loss, _ in self.steps], np.float32)

    @property
    def best_step(self) -> int | None:
        """The step of the highest accuracy, the first of equals."""
        return max(self.evaluations, key=lambda n: (self.evaluations[n][1], -n), default=None)

    def epoch_loss(self) -> float:
        """Return the mean loss of the steps of the epoch that the last step was in."""
        start = self._plan.end_of_epoch(self._plan.epoch_of(self.step) - 1)
        return float(np.mean([loss for loss, _ in self.steps[start:]]))

    # -- in a checkpoint --

    def to_arrays(self) -> Arrays:
        """Return float64 ``steps`` (n, 2): loss and learning rate; ``evaluations`` (k, 3)."""
        evaluations = [(step, *figures) for step, figures in self.evaluations.items()]
        return {
            "steps": np.array(self.steps, np.float64).reshape(-1, 2),
            "evaluations": np.array(evaluations, np.float64).reshape(-1, 3),
        }

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up what to_arrays returned."""
        self.steps = [tuple(row) for row in arrays["steps"].tolist()]
        rows = arrays["evaluations"].tolist()
        self.evaluations = {int(step): (loss, accuracy) for step, loss, accuracy in rows}

    # -- while it grows --

    def open(self, folder: str) -> None:
        """Write metrics.csv anew, keep it open, and begin to write events. Raises InputError."""
        path = f"{folder}/metrics.csv"
        with os_errors("write", path):
            with replace_file(path, "w") as file:
                file.write(COLUMNS + "\n")
                file.writelines(self._lines())
            self._file = open(path, "a", encoding="utf-8", newline="", buffering=1)
        self.events.open(folder, self.step)

    def add_losses(self, losses: list[float], learning_rates: list[float]) -> None:
        """Add the next steps. Raises InputError where metrics.csv cannot be written."""
        for loss, learning_rate in zip(losses, learning_rates, strict=True):
            self.steps.append((loss, learning_rate))
            self._write(self._step_line(self.step))
            self.events.add(self.step, {"loss/training": loss, "learning_rate": learning_rate})

    def add_evaluation(self, loss: float, accuracy: float) -> None:
        """Add the evaluation after the last step. Raises InputError as add_losses does."""
        self.evaluations[self.step] = loss, accuracy
        self._write(self._evaluation_line(self.step))
        self.events.add(self.step, {"loss/evaluation": loss, "accuracy/evaluation": accuracy})

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was reported
            if self._file:
                self._file.close()

    def _lines(self) -> Iterator[str]:
        for step in range(1, self.step + 1):
            yield self._step_line(step)
            if step in self.evaluations:
                yield self._evaluation_line(step)

    def _step_line(self, step: int) -> str:
        loss, rate = self.steps[step - 1]
        # Of a float32 the fewest digits that give it again.
        return f"{step},{self._plan.epoch_of(step)},{rate!r},{np.float32(loss)},,\n"

    def _evaluation_line(self, step: int) -> str:
        loss, accuracy = self.evaluations[step]
        return f"{step},{self._plan.epoch_of(step)},,,{loss!r},{accuracy!r}\n"

    def _write(self, line: str) -> None:
        if self._file:
            with os_errors("write", self._file.name):
                self._file.write(line)
