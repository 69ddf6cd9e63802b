"""Event files, from which TensorBoard draws a run's curves; where tensorboardX is installed."""

import os
import struct
import time
from importlib.util import find_spec
from typing import Any

from runtime.cli import log, typed_path


class EventFile:
    """Writes figures and pictures of a run to an event file in its folder, once it is opened.

    What fails is a warning, and then nothing more is written. (tensorboardX's SummaryWriter
    would wait for ever for a thread that an error has ended; its EventsWriter has no thread.)
    """

    def __init__(self) -> None:
        self._names = self._writer = None  # of the file: where it starts, how it ends

    def open(self, folder: str, last: int) -> None:
        """Open a new file, if tensorboardX is installed; earlier ones count up to step ``last``."""
        if find_spec("tensorboardX"):
            # Its name has the second only, and a run may be resumed in the same one.
            self._names = os.path.join(folder, "events"), f".{os.getpid()}.{last}"
            # TensorBoard drops what earlier files have from this step on.
            self._add(last + 1, session_log={"status": "START"})
        if self._names:
            log(f"to watch the training: tensorboard --logdir {typed_path(folder)}")

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Add a step's figures, by name."""
        values = [{"tag": name, "simple_value": figure} for name, figure in figures.items()]
        self._add(step, summary={"value": values})

    def add_picture(self, step: int, path: str) -> None:
        """Add the PNG file that was drawn after a step. Raises OSError."""
        with open(path, "rb") as file:
            data = file.read()
        width, height = struct.unpack_from(">II", data, 16)
        image = {"width": width, "height": height, "encoded_image_string": data}
        name = os.path.splitext(os.path.basename(path))[0]
        self._add(step, summary={"value": [{"tag": name, "image": image}]})

    def _add(self, step: int, **content: Any) -> None:
        if self._names is None:  # not opened, or it failed
            return
        try:
            from tensorboardX.event_file_writer import EventsWriter

            self._writer = self._writer or EventsWriter(*self._names)
            from tensorboardX.proto.event_pb2 import Event

            self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
            self._writer.flush()
        except Exception as error:
            self._names = None
            log(f"cannot write events for TensorBoard: {error}", "warning")
