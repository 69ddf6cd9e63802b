"""The progress of a training: a bar on a terminal, otherwise a line every minute."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from runtime.cli import InputError, count, log, output

from .ranks import RANK
from .run import Run

LOG_SECONDS = 60  # between two lines without a terminal
PICTURE_SECONDS = 30  # between two drawings of a picture, which takes a second
SHOWN_STEPS = 50  # whose mean loss is shown


class Progress:
    """Context manager that prints a Run's losses to stdout and its progress to stderr."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._first = run.step  # the step that this process started after
        self._printed = run.step
        self._drawn = {}  # {picture: when it was last drawn}

    def __enter__(self):
        self._start = self._logged = time.perf_counter()
        self._bar = tqdm(
            total=self.run.plan.steps,
            initial=self.run.step,
            unit="step",
            disable=None if RANK == 0 else True,  # None: disabled without a terminal
        )
        return self

    def __exit__(self, *_):
        self._bar.close()

    @contextmanager
    def timer_paused(self) -> Iterator[None]:
        """Exclude what is done meanwhile (saving, evaluating, drawing) from images/s."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start

    def show(self, steps: int) -> None:
        """Print the run's newest losses and advance the bar by that many ``steps``.

        Raises InputError if a loss is not finite.
        """
        losses = self.run.losses[self._printed :]
        for step, loss in enumerate(losses, start=self._printed + 1):
            if step % self.run.config.print_every == 0:
                with tqdm.external_write_mode():  # the bar is removed meanwhile
                    output(str(np.array([loss], np.float32)))  # the tutorial's format: [6.778578]
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at step {step}: try a lower --learning_rate")
        output(flush=True)
        self._printed = self.run.step
        shown = {"images/s": f"{self._rate():.0f}", "loss": f"{self._recent_loss():.4g}"}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(steps)
        if self._bar.disable and time.perf_counter() - self._logged > LOG_SECONDS:
            self._logged = time.perf_counter()
            plan = self.run.plan
            minutes = (plan.steps - self.run.step) * plan.batch_size / self._rate() / 60
            log(
                f"step {self.run.step:,}/{plan.steps:,}: loss {self._recent_loss():.4g}, "
                f"{self._rate():.0f} images/s, about {math.ceil(minutes):.0f} min left"
            )

    def draws(self, picture: str) -> bool:
        """Whether to draw this picture again: every PICTURE_SECONDS and at the end of the run."""
        now = time.perf_counter()
        if not self.run.finished and now - self._drawn.setdefault(picture, now) < PICTURE_SECONDS:
            return False
        self._drawn[picture] = now
        return True

    def log(self, text: str) -> None:
        """Log a line, with the bar removed meanwhile."""
        with tqdm.external_write_mode(file=sys.stderr):
            log(text)

    def report(self) -> None:
        """Log the number of steps that this process took, their speed and the last loss."""
        steps = self.run.step - self._first
        if steps:
            seconds = steps * self.run.plan.batch_size / self._rate()
            self.log(
                f"{count(steps, 'step')} in {seconds:.1f} s, {self._rate():.0f} images/s, "
                f"final loss {self.run.losses[-1]:.4g}"
            )

    def _recent_loss(self):
        return float(np.mean(self.run.losses[-SHOWN_STEPS:]))

    def _rate(self):
        """Images per second in this process."""
        images = (self.run.step - self._first) * self.run.plan.batch_size
        return images / (time.perf_counter() - self._start)
