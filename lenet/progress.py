"""What is shown of a training while it runs: losses and messages, a bar, its speed, pictures."""

import os
import sys
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from runtime.cli import log, output

PICTURE_SECONDS = 30  # between two drawings of a picture, which takes a second


class Progress:
    """Prints clear of a bar, which is there on a terminal only, and measures the speed.

    ``done`` of ``total`` steps of ``batch_size`` images were taken before. Time counts from
    here, or from the last call of skip_time, to the last call of show.
    """

    def __init__(self, total: int, done: int, batch_size: int, shown: bool):
        self._bar = tqdm(total=total, initial=done, unit="step", disable=None if shown else True)
        self._batch_size, self.steps, self.seconds = batch_size, 0, 0.0
        self._done, self._since = done, time.perf_counter()
        self._drawn: dict[str, float] = {}  # when each picture was

    def show(self, step: int, loss: float) -> None:
        """Show how far the training is, and its recent loss."""
        self.seconds += time.perf_counter() - self._since
        self.skip_time()
        self.steps = step - self._done
        figures = {"mean loss": f"{loss:.4g}", "images/s": f"{self.rate:.0f}"}
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(step - self._bar.n)

    def skip_time(self) -> None:
        """Leave the time since the last step out of the speed: it was no training."""
        self._since = time.perf_counter()

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.steps * self._batch_size / self.seconds

    def output_loss(self, loss: float) -> None:
        """Print a loss as the tutorial does: ``[7.9320416]``."""
        with tqdm.external_write_mode():
            output(np.array([loss], np.float32))

    def log(self, message: str, level: str | None = None) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            log(message, level)

    def draw(self, path: str, *arguments: Any) -> bool:
        """Draw ``loss.png`` or ``predictions.png``, at the end and now and then.

        Returns whether it did. What fails is a warning.
        """
        name = os.path.splitext(os.path.basename(path))[0]
        now, ends = time.perf_counter(), self._done + self.steps == self._bar.total
        if not ends and now - self._drawn.setdefault(name, now) < PICTURE_SECONDS:
            return False
        self._drawn[name] = now
        try:
            from . import plots  # matplotlib takes a second to import

            draw = {"loss": plots.draw_losses, "predictions": plots.draw_predictions}[name]
            draw(path, *arguments)
        except Exception as error:
            self.log(f"cannot draw {path}: {error}", "warning")
            return False
        return True

    def close(self) -> None:
        self._bar.close()
