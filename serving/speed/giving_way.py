"""Work that gives way: a thread of its own, which the kernel runs after everybody who answers people.

A consumer that catches up has a processor's worth of work for minutes. Beside API workers on the same machine it would
take their turns, and every answer would wait for it. Only the thread that catches up stands back; what is new is
applied at the priority of the process, so that freshness in quiet times costs nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

logger = logging.getLogger("nightjar.speed")

Result = TypeVar("Result")


class LowPriority:
    """Calls what it is given in one thread of lower priority, and waits for it.

    `niceness` is the thread's (0 to 19; a process that is nicer already stays so); 0: there is no such thread, calls
    are made where they are. Threads have priorities of their own on Linux alone: elsewhere the same.
    """

    def __init__(self, niceness: int) -> None:
        self._niceness = niceness
        self._thread: ThreadPoolExecutor | None = None
        if niceness > 0 and sys.platform == "linux":
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="backlog", initializer=self._stand_back)

    def call(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises."""
        return work() if self._thread is None else self._thread.submit(work).result()

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
