"""Work that gives way: a thread of its own, which the kernel runs after everybody who answers people.

A consumer that catches up has a processor's worth of work for minutes. Beside API workers on the same machine it would
take their turns, and every answer would wait for it. Only the thread that catches up stands back; what is new is
applied at the priority of the process, so that freshness in quiet times costs nothing. It asks for long turns as well
(`contracts.turns`): niceness alone does not make it stop when somebody wakes up.

Who stands back must not starve: a step that took too long is followed by some at full priority.

And it rests between its batches (`Rests`): the stores that a batch keeps busy answer people as well and know nothing of
niceness, nor do two hyperthreads that share a core.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from feature_repo.contracts.turns import LONG_MS, take_turns_of

logger = logging.getLogger("nightjar.speed")

FULL_STEPS = 20
"""So many steps at full priority after one that took too long."""

RESTS, LONGEST_REST_SECONDS = 9.0, 1.0
"""Rests are so many times as long as the processor worked for the batch before them: a store and a processor are busy
with a backlog a tenth of the time. Waiting for a processor that others use is no work."""
LATE_SECONDS = 10.0
"""What waits for a shorter time is no backlog that grew while nobody was there: people wait for its effect."""
BUSY_SHARE = 0.05
"""Where somebody waited for a processor for less of the time than this, one is free and nobody has to rest."""
_PRESSURE = Path("/proc/pressure/cpu")

Result = TypeVar("Result")


def seconds_waited() -> float | None:
    """For how long so far somebody on this machine was ready to run and had no processor; None: nobody says."""
    try:
        _, _, micros = _PRESSURE.read_text().partition("\n")[0].rpartition("total=")
        return int(micros) / 1e6
    except (OSError, ValueError):
        return None


class Rests:
    """How long to rest after a batch of a backlog.

    Not at all where a processor was free meanwhile, nor for what is younger than LATE_SECONDS, nor when the backlog has
    been worked off for `longest_seconds` already: then it is to end. Where nobody says whether processors are free,
    none is.
    """

    def __init__(
        self,
        longest_seconds: float,
        *,
        seconds: Callable[[], float] = time.monotonic,
        wall_seconds: Callable[[], float] = time.time,
        cpu_seconds: Callable[[], float] = time.process_time,
        waited: Callable[[], float | None] = seconds_waited,
    ) -> None:
        self._longest_seconds = longest_seconds
        self._seconds = seconds
        self._wall_seconds = wall_seconds
        self._cpu_seconds = cpu_seconds
        self._waited = waited
        self._since: float | None = None
        self._began: tuple[float, float, float | None] = (0.0, 0.0, None)

    def begin(self) -> None:
        """A batch of a backlog is about to be applied; its first one, or one more."""
        now = self._seconds()
        self._since = now if self._since is None else self._since
        self._began = now, self._cpu_seconds(), self._waited()

    def due(self, reached_micros: int) -> float:
        """Seconds to rest after the batch that has begun; `reached_micros`: when the log took the end of it."""
        began, worked_before, waited_before = self._began
        now, worked, waited = self._seconds(), self._cpu_seconds() - worked_before, self._waited()
        took = now - began
        is_free = waited is not None and waited_before is not None and waited - waited_before < BUSY_SHARE * took
        is_young = self._wall_seconds() - reached_micros / 1e6 < LATE_SECONDS
        if is_free or is_young or self._since is None or now - self._since >= self._longest_seconds:
            return 0.0
        return min(LONGEST_REST_SECONDS, RESTS * worked)

    def over(self) -> None:
        """The backlog has been worked off."""
        self._since = None


class LowPriority:
    """Calls what it is given in one thread of lower priority, and waits for it.

    `niceness` is the thread's (0 to 19; a process that is nicer already stays so); 0: there is no such thread, calls
    are made where they are. Threads have priorities of their own on Linux alone: elsewhere the same. A call of more
    than `longest_seconds` is followed by FULL_STEPS that are made where they are.
    """

    def __init__(self, niceness: int, *, longest_seconds: float, seconds: Callable[[], float] = time.monotonic) -> None:
        self._niceness = niceness
        self._longest_seconds = longest_seconds
        self._seconds = seconds
        self._full_steps = 0
        self._thread: ThreadPoolExecutor | None = None
        if niceness > 0 and sys.platform == "linux":
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="backlog", initializer=self._stand_back)

    def call(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises."""
        if self._thread is None:
            return work()
        if self._full_steps:
            self._full_steps -= 1
            return work()
        began = self._seconds()
        try:
            return self._thread.submit(work).result()
        finally:
            if self._seconds() - began > self._longest_seconds:
                self._full_steps = FULL_STEPS

    def close(self) -> None:
        """End the thread; what it does now is finished."""
        if self._thread is not None:
            self._thread.shutdown()

    def _stand_back(self) -> None:
        thread = threading.get_native_id()
        try:
            if os.getpriority(os.PRIO_PROCESS, thread) < self._niceness:
                os.setpriority(os.PRIO_PROCESS, thread, self._niceness)
        except OSError as error:  # a sandbox that forbids it
            logger.warning("a backlog is worked off at full priority: %s", error)
        take_turns_of(LONG_MS)
