"""How far a long computation is: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from .cli import log, output

LOG_SECONDS = 60  # between two lines where there is no terminal


class Progress(tqdm):
    """Shows how many of ``total`` steps of ``items_per_step`` images are ``done``, on stderr."""

    def __init__(self, total: int, done: int, items_per_step: int, enabled: bool = True):
        # disable=None: only on a terminal.
        super().__init__(total=total, initial=done, unit="step", disable=None if enabled else True)
        self.first, self._items = done, items_per_step
        self._start = self._logged = time.perf_counter()

    def output(self, *lines: str) -> None:
        """Print results, clear of the bar."""
        with tqdm.external_write_mode():
            output(*lines, flush=True)

    def log(self, text: str, level: str | None = None) -> None:
        """Print a message, clear of the bar."""
        with tqdm.external_write_mode(file=sys.stderr):
            log(text, level)

    def show(self, done: int, loss: float) -> None:
        """Show that so many steps are done, and the recent loss."""
        rate = self.rate(done)
        self.set_postfix({"loss": f"{loss:.4g}", "images/s": f"{rate:.0f}"}, refresh=False)
        self.update(done - self.n)
        if self.disable and time.perf_counter() - self._logged > LOG_SECONDS:
            self._logged = time.perf_counter()
            minutes = (self.total - done) * self._items / rate / 60
            where = f"step {done:,} of {self.total:,}: loss {loss:.4g}"
            log(f"{where}, {rate:.0f} images/s, about {minutes:.0f} min left")

    def rate(self, done: int) -> float:
        """Return images/s since this object was made, without what happened in timer_paused."""
        return (done - self.first) * self._items / (time.perf_counter() - self._start)

    @contextmanager
    def timer_paused(self) -> Iterator[None]:
        """Leave what happens meanwhile (saving, evaluating, drawing) out of images/s."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start
