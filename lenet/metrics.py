"""The figures of a training, and the file that they are kept in: ``metrics.csv``."""

import csv
import os

import numpy as np

from runtime.atomic import flush_file, replace_file

from .plan import Plan

COLUMNS = ("step", "epoch", "learning_rate", "loss", "eval_loss", "eval_accuracy")


class Metrics:
    """Losses and learning rates of each step, and evaluations as {step: (loss, accuracy)}."""

    def __init__(self, plan: Plan):
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.evaluations: dict[int, tuple[float, float]] = {}
        self._plan, self._file = plan, None

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
        try:
            with open(path, encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if None in row.values() or int(row["step"]) > last:
                        break  # after the checkpoint, and perhaps truncated
                    if row["eval_loss"]:
                        figures = float(row["eval_loss"]), float(row["eval_accuracy"])
                        self.evaluations[int(row["step"])] = figures
                        continue
                    if int(row["step"]) != self.step + 1:
                        raise ValueError(f"step {row['step']} follows step {self.step}")
                    self.learning_rates.append(float(row["learning_rate"]))
                    self.losses.append(float(np.float32(row["loss"])))
        except (KeyError, TypeError, csv.Error) as error:
            raise ValueError(f"not a table of metrics ({error})") from None
        if self.step != last:
            raise ValueError(f"it ends with step {self.step}, and the checkpoint is of {last}")

    def open(self, path: str) -> None:
        """Write what is known to a file, in place of the one there, and what follows too."""
        with replace_file(path, "w") as file:
            rows = [COLUMNS]
            for step in range(1, self.step + 1):
                rows.append(self._loss_row(step))
                if step in self.evaluations:
                    rows.append(self._evaluation_row(step))
            self._write(file, rows)
        self._file = open(os.path.join(path), "a", encoding="utf-8", newline="")

    def add_losses(self, losses: list[float], learning_rates: list[float]) -> None:
        """Add the next steps. Raises OSError."""
        first = self.step
        self.losses += losses
        self.learning_rates += learning_rates
        self._write(self._file, [self._loss_row(n) for n in range(first + 1, self.step + 1)])

    def add_evaluation(self, loss: float, accuracy: float) -> None:
        """Add the evaluation after the last step. Raises OSError."""
        self.evaluations[self.step] = loss, accuracy
        self._write(self._file, [self._evaluation_row(self.step)])

    def flush(self) -> None:
        """Write the file to the disk. Raises OSError."""
        if self._file:
            flush_file(self._file)

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _loss_row(self, step: int) -> tuple:
        loss = str(np.float32(self.losses[step - 1]))  # the fewest digits that give it again
        rate = repr(self.learning_rates[step - 1])
        return step, self._plan.epoch_of(step), rate, loss, "", ""

    def _evaluation_row(self, step: int) -> tuple:
        return step, self._plan.epoch_of(step), "", "", *map(repr, self.evaluations[step])

    @staticmethod
    def _write(file, rows) -> None:
        if file:
            csv.writer(file, lineterminator="\n").writerows(rows)
            file.flush()
