"""How long a write waits for others to share its fsync.

At some thousand events a second one comes every few hundred microseconds. Each written alone would cost an fsync, two
round trips of the consumer and a batch of it; most of what an event costs is then the cost of being alone. So writes
follow one another no closer than `PAUSE_SECONDS`, as long as requests keep coming meanwhile.

Where nobody comes while somebody waits, waiting is of no use: a client that sends its next event when it has the last
answer, or a handful of them. Whether that is so can only be tried: after each wait in whose last half nobody came,
twice as many writes as the time before go out without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PAUSE_SECONDS = 0.002
"""Between the beginnings of two writes."""
ENOUGH_EVENTS = 32
"""So many are worth a write of their own, whenever the last one was."""
MOST_SKIPS = 64
"""Writes without a wait between two tries."""


class Gathering:
    """Of one log. `seconds`: monotonic."""

    def __init__(self, *, seconds: Callable[[], float] = time.perf_counter) -> None:
        self._seconds = seconds
        self._written = self._came = -PAUSE_SECONDS
        self._skips = self._skips_left = 0
        self._is_waiting = False

    def come(self, events: int) -> bool:
        """A request has come, with which `events` wait; whether whoever waits should go on waiting."""
        if self._is_waiting:
            self._came = self._seconds()
        return events < ENOUGH_EVENTS

    def left(self, events: int) -> float:
        """Seconds to wait before `events` are written; 0 or less: they are to leave now."""
        if self._skips_left or events >= ENOUGH_EVENTS:
            return 0.0
        return self._written + PAUSE_SECONDS - self._seconds()

    def wait(self) -> None:
        """Those who wait now do so for others to come."""
        self._is_waiting = True

    def write(self) -> None:
        """A group leaves."""
        now = self._seconds()
        if self._skips_left:
            self._skips_left -= 1
        if self._is_waiting:
            self._is_waiting = False
            if now - self._came <= PAUSE_SECONDS / 2:
                self._skips = 0
            else:
                self._skips = self._skips_left = min(MOST_SKIPS, 2 * self._skips or 1)
        self._written = now
