"""A Raspberry Pi's word on its voltage and speed, in words for the metrics.

The bits are those of ``vcgencmd get_throttled`` in raspberrypi.com's documentation: 0 to 3 of this
moment, 16 to 19 the same at any time since the board was started.
"""

import time
from pathlib import Path

from contract.metrics import EARLIER, THROTTLED_NOW
from stage.machine import read_throttled, throttled_files

EARLIER_BIT = 16
MIN_INTERVAL_S = 1.0
"""The firmware is asked by a mailbox of the processor: no oftener than it is told."""


def throttling_words(word: int) -> tuple[str, ...]:
    """What the bits of a word mean; ``…_earlier`` where it was so and is not now."""
    now = tuple(name for bit, name in enumerate(THROTTLED_NOW) if word >> bit & 1)
    earlier = (name for bit, name in enumerate(THROTTLED_NOW) if word >> (EARLIER_BIT + bit) & 1)
    return (*now, *(name + EARLIER for name in earlier if name not in now))


class Throttling:
    """Reads the word of this board, at most once a second."""

    def __init__(self, root: Path = Path("/")) -> None:
        """``root`` is where /sys is looked for. Which files there are is looked up once."""
        try:
            self._files = throttled_files(root)
        except OSError:
            self._files = []
        self._read_at = -MIN_INTERVAL_S
        self._words: tuple[str, ...] | None = None

    def words(self) -> tuple[str, ...] | None:
        """See :func:`throttling_words`; None where the board does not tell. Never raises."""
        now = time.monotonic()
        if self._files and now - self._read_at >= MIN_INTERVAL_S:
            self._read_at = now
            word = read_throttled(self._files)
            self._words = None if word is None else throttling_words(word)
        return self._words
