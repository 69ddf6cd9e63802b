"""The figures of a run; metrics.csv, TensorBoard's events and the pictures follow from them."""

from contextlib import suppress
from typing import NamedTuple

import numpy as np

from runtime.atomic import replace_file
from runtime.cli import count, os_errors

from .checkpoint import Arrays
from .events import EventFile
from .plan import Plan


class Row(NamedTuple):
    """The figures of a step, or of an evaluation after it: None for the other's."""

    step: int  # from 1
    epoch: int
    learning_rate: float | None
    loss: np.float32 | None
    eval_loss: float | None
    eval_accuracy: float | None

    def to_csv(self) -> str:
        return ",".join("" if figure is None else str(figure) for figure in self) + "\n"


class History:
    """The rows of a run in order, of which metrics.csv is a copy."""

    def __init__(self, plan: Plan):
        self.rows: list[Row] = []
        self.step = 0  # the last one whose loss is known
        self.events = EventFile()
        self._plan = plan
        self._file = None  # metrics.csv, where the run is kept

    def losses(self, epoch: int | None = None) -> np.ndarray:
        """Return the loss of each step, or of each that began in an epoch, float32."""
        rows = (row for row in self.rows if row.loss is not None and epoch in (None, row.epoch))
        return np.array([row.loss for row in rows], np.float32)

    @property
    def evaluations(self) -> dict[int, tuple[float, float]]:
        """The loss and the accuracy of each evaluation, by step."""
        rows = (row for row in self.rows if row.eval_loss is not None)
        return {row.step: (row.eval_loss, row.eval_accuracy) for row in rows}

    @property
    def best_step(self) -> int | None:
        """The step of the highest accuracy; of equals, as small datasets have, of the lowest loss."""
        evaluations = self.evaluations
        ranked = ((accuracy, -loss, -step) for step, (loss, accuracy) in evaluations.items())
        return -max(ranked)[2] if evaluations else None

    def to_arrays(self) -> Arrays:
        """Return ``rows``, float64 (n, 6), to be kept in a checkpoint; NaN stands for None."""
        return {"rows": np.array(self.rows, np.float64).reshape(-1, len(Row._fields))}

    def load_arrays(self, arrays: Arrays, last: int) -> None:
        """Take up what to_arrays returned after step ``last``. Raises ValueError for other arrays."""
        rows = arrays.get("rows")
        if arrays.keys() != {"rows"} or rows.dtype != np.float64 or rows.shape[1:] != (6,):
            raise ValueError("it has no history")
        of_step = ~np.isnan(rows[:, 3])
        known = np.where(of_step[:, None], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1])
        if (np.isfinite(rows) != known).any() or rows[of_step, 0].tolist() != [*range(1, last + 1)]:
            raise ValueError(f"its history is not that of {count(last, 'step')}")
        for figures in rows.tolist():
            step, epoch, rate, loss, *evaluation = (None if f != f else f for f in figures)
            loss = loss if loss is None else np.float32(loss)
            self.rows.append(Row(int(step), int(epoch), rate, loss, *evaluation))
        self.step = last

    def open(self, folder: str) -> None:
        """Write metrics.csv anew, keep it open, and begin to write events. Raises InputError."""
        path = f"{folder}/metrics.csv"
        with os_errors("write", path):
            with replace_file(path, "w") as file:
                file.write(",".join(Row._fields) + "\n")
                file.writelines(row.to_csv() for row in self.rows)
            self._file = open(path, "a", encoding="utf-8", newline="", buffering=1)
        self.events.open(folder, self.step)

    def add_losses(self, losses: list[float], learning_rates: list[float]) -> None:
        """Add the next steps. Raises InputError where metrics.csv cannot be written."""
        for loss, learning_rate in zip(losses, learning_rates, strict=True):
            self.step += 1
            self._add(learning_rate, np.float32(loss), None, None)
            self.events.add(self.step, {"loss/training": loss, "learning_rate": learning_rate})

    def add_evaluation(self, loss: float, accuracy: float) -> None:
        """Add the evaluation after the last step. Raises InputError as add_losses does."""
        self._add(None, None, loss, accuracy)
        self.events.add(self.step, {"loss/evaluation": loss, "accuracy/evaluation": accuracy})

    def _add(self, *figures: float | None) -> None:
        self.rows.append(Row(self.step, self._plan.epoch_of(self.step), *figures))
        if self._file:
            with os_errors("write", self._file.name):
                self._file.write(self.rows[-1].to_csv())

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was reported
            if self._file:
                self._file.close()
