"""Answers take turns with the event loop's other work, so that a queue of them keeps nobody else waiting.

Records of many requests come with one reply of the online store. If all of their answers were made at once, the loop
would look at its sockets again when the last one is written: with the longest answers after half a second, in which
nobody is refused, and nobody's time-out is noticed. So they are made for about a millisecond, then the sockets have
their turn.

What an answer takes, and how many are asked for, also says how long one that comes now would wait: that is what
admission goes by (`front_protocol`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("nightjar.serving")

TURN_NS = 1_000_000
"""How long answers are made before the loop looks at its sockets; one that was begun is finished. Raising it: refusals
and other requests come later, and the loop looks less often."""
FIRST_ESTIMATE_NS = 50_000
_WEIGHT = 1 / 16
"""Of the last turn in the moving mean of what an answer takes."""
_MOST_AT_ONCE = 2.0
"""A turn counts as so many times the mean at most: the longest ones looked for garbage, or loaded a version."""

Work = Callable[[Any], None]


class Turns:
    """Of one event loop. `timer`: monotonic, in ns; `processor_timer`: processor time of this thread, in ns.

    expected  answers that are asked for and not yet made
    each_ns   processor time that one takes lately, with what the loop does between them. How long others have the
              processor meanwhile is not in it: who comes back to a queue after that had better answer it
    """

    def __init__(self, timer: Callable[[], int], *, processor_timer: Callable[[], int] = time.thread_time_ns) -> None:
        self._timer = timer
        self._processor_timer = processor_timer
        self._waiting: deque[tuple[Work, Any] | asyncio.Future[None]] = deque()
        self._is_open = False
        self._began = self._began_processor = 0
        self._made = 0
        self.expected = 0
        self.each_ns = float(FIRST_ESTIMATE_NS)

    @property
    def wait_ns(self) -> float:
        """How long an answer that is asked for now would wait for its turn, by what the ones before it take."""
        return self.expected * self.each_ns

    def expect(self) -> None:
        """Somebody was let in who will ask for an answer as soon as the loop comes to them."""
        self.expected += 1
        asyncio.get_running_loop().call_soon(self._come)

    def do(self, work: Work, argument: Any) -> None:
        """Call `work(argument)` when it is its turn: now, or in a later turn of the loop. Then one answer less is
        expected."""
        if self._is_taken():
            self._waiting.append((work, argument))
            return
        self._made += 1
        self.expected -= 1
        work(argument)

    async def mine(self) -> None:
        """Return when it is the caller's turn. It lasts until the caller waits for something else."""
        if not self._is_taken():
            self._made += 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(granted)
        await granted

    def _come(self) -> None:
        """They have asked, or never will."""
        self.expected -= 1

    def _is_taken(self) -> bool:
        """Whether somebody waits already, or this turn has lasted long enough."""
        if not self._is_open:
            self._is_open = True
            self._began, self._began_processor, self._made = self._timer(), self._processor_timer(), 0
            asyncio.get_running_loop().call_soon(self._next)
            return False
        return bool(self._waiting) or self._timer() - self._began >= TURN_NS

    def _next(self) -> None:
        """The loop has looked at its sockets."""
        now, now_processor = self._timer(), self._processor_timer()
        if self._made:
            took = min((now_processor - self._began_processor) / self._made, self.each_ns * _MOST_AT_ONCE)
            self.each_ns += (took - self.each_ns) * _WEIGHT
        if not self._waiting:
            self._is_open = False
            return
        self._began, self._began_processor, self._made = now, now_processor, 0
        while self._waiting and (not self._made or self._timer() - now < TURN_NS):
            first = self._waiting.popleft()
            if isinstance(first, asyncio.Future):
                if first.done():
                    continue  # whoever waited has gone
                first.set_result(None)
                self._made += 1
                break  # it goes on in the loop's next turn; how long that takes is not known yet
            self._made += 1
            self.expected -= 1
            try:
                first[0](first[1])
            except Exception:
                logger.exception("an answer that was due was not made")
        asyncio.get_running_loop().call_soon(self._next)
