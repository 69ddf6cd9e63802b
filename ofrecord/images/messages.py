"""What image decoders print to stderr, which may be the one sign that pixels are wrong."""

import os
import re

import numpy as np

ENOUGH_MEMORY = 2**30  # bytes


def check_memory() -> None:
    """Raise MemoryError where a decoder may have failed for lack of memory: many do not tell."""
    np.empty(ENOUGH_MEMORY, np.uint8)


class DecoderMessages:
    """Sends what C libraries print to stderr while they decode to a file in memory.

    libjpeg accepts damaged data and only prints a warning, the one sign that the pixels are
    wrong. One context around many images saves the time that switching takes for each.
    """

    # Messages about images whose pixels are right all the same.
    HARMLESS = re.compile(
        "^libpng warning: |^\\[ WARN:|TIFFReadDirectory|TIFFFetchNormalTag|TIFFReadCustomDirectory"
    )

    is_open = False

    def __enter__(self) -> None:
        self._file, self._stderr = os.memfd_create("decoder-messages"), os.dup(2)
        self._taken = 0
        os.dup2(self._file, 2)
        self.is_open = True

    def __exit__(self, *_: object) -> None:
        os.dup2(self._stderr, 2)
        self.is_open = False
        os.close(self._stderr)
        os.close(self._file)

    def take(self) -> list[str]:
        """Return the messages since the last call that may mean wrong pixels."""
        size = os.lseek(self._file, 0, os.SEEK_CUR)
        if size == self._taken:
            return []
        text = os.pread(self._file, size - self._taken, self._taken).decode("utf-8", "replace")
        self._taken = size
        lines = (line.strip() for line in text.splitlines())
        return [line for line in lines if line and not self.HARMLESS.search(line)]


decoder_messages = DecoderMessages()  # of this process
