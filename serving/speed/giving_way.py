"""Work that gives way: a thread of its own, which the kernel runs after everybody who answers people.

A consumer that catches up has a processor's worth of work for minutes. Beside API workers on the same machine it would
take their turns, and every answer would wait for it. Only the thread that catches up stands back; what is new is
applied at the priority of the process, so that freshness in quiet times costs nothing. It asks for long turns as well
(`contracts.turns`): niceness alone does not make it stop when somebody wakes up.

Who stands back must not starve: a step that took too long is followed by some at full priority.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from feature_repo.contracts.turns import LONG_MS, take_turns_of

logger = logging.getLogger("nightjar.speed")

FULL_STEPS = 20
"""So many steps at full priority after one that took too long."""

Result = TypeVar("Result")


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
