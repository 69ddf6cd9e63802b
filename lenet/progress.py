"""How a training goes, for the person who waits: a bar on a terminal, a line now and then in a log."""

import math
import sys
import time
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from ofrecord.cli import InputError, say, talk

from .ranks import RANK

LOG_SECONDS = 60  # between two lines where there is no terminal
PICTURE_SECONDS = 30  # between two drawings of a picture, which takes a second
SHOWN_STEPS = 50  # whose mean loss is shown


class Progress:
    """Prints a Run's losses to stdout and shows on stderr how far it is. A context manager."""

    def __init__(self, run):
        self.run = run
        self._first = run.step
        self._printed = run.step
        self._drawn = {}

    def __enter__(self):
        self._start = self._logged = time.perf_counter()
        self._bar = tqdm(total=self.run.plan.steps, initial=self.run.step, unit="step",
                         disable=None if RANK == 0 else True)  # None: only on a terminal
        return self

    def __exit__(self, *_):
        self._bar.close()

    @contextmanager
    def aside(self):
        """What is done meanwhile (saving, evaluating, drawing) is not training, and not counted in images/s."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start

    def show(self, steps):
        """The run has the losses of so many more steps. Raises InputError where one is no number."""
        losses = self.run.losses[self._printed:]
        for step, loss in enumerate(losses, start=self._printed + 1):
            if step % self.run.config.print_every == 0:
                with tqdm.external_write_mode():  # clear of the bar
                    say(str(np.array([loss], np.float32)))  # as the tutorial prints them: [6.778578]
            if not math.isfinite(loss):
                raise InputError("the loss is {} at step {}: try a lower --learning_rate".format(loss, step))
        say(flush=True)  # kept, whatever comes
        self._printed = self.run.step
        self._bar.set_postfix(loss="{:.4g}".format(self._recent_loss()), refresh=False,
                              **{"images/s": "{:.0f}".format(self._rate())})
        self._bar.update(steps)
        if self._bar.disable and time.perf_counter() - self._logged > LOG_SECONDS:
            self._logged = time.perf_counter()
            plan = self.run.plan
            minutes = (plan.steps - self.run.step) * plan.batch_size / self._rate() / 60
            talk("step {:,} of {:,}: loss {:.4g}, {:.0f} images/s, about {:.0f} min left".format(
                self.run.step, plan.steps, self._recent_loss(), self._rate(), math.ceil(minutes)))

    def draws(self, picture):
        """Is it time to draw this picture anew? Now and then as the run goes, and at its end."""
        now = time.perf_counter()
        if not self.run.finished and now - self._drawn.setdefault(picture, now) < PICTURE_SECONDS:
            return False
        self._drawn[picture] = now
        return True

    def talk(self, text):
        """Say something, clear of the bar."""
        with tqdm.external_write_mode(file=sys.stderr):
            talk(text)

    def report(self):
        """What this sitting came to."""
        steps = self.run.step - self._first
        if steps:
            self.talk("{:,} steps in {:.1f} s, {:.0f} images/s, final loss {:.4g}".format(
                steps, steps * self.run.plan.batch_size / self._rate(), self._rate(), self.run.losses[-1]))

    def _recent_loss(self):
        return float(np.mean(self.run.losses[-SHOWN_STEPS:]))

    def _rate(self):
        """Images/s in this sitting."""
        return (self.run.step - self._first) * self.run.plan.batch_size / (time.perf_counter() - self._start)
