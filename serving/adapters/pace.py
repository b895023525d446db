"""Long work in a thread beside the event loop, in pieces so small that answers do not wait for it.

A thread that makes a hundred thousand objects has the interpreter most of the time, and gives it away every five
milliseconds only: each step of an answer would wait that long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

WORK_SECONDS, REST_SECONDS = 0.0005, 0.002
"""Longer rests: a version that is expected is ready later, and a processor shared with others is left to them more."""
_LOOKS_EVERY = 16

T = TypeVar("T")


class Pace:
    """Who works at leisure rests after each half of a millisecond; from `hurry` on, nobody does."""

    def __init__(
        self,
        *,
        is_hurried: bool = False,
        seconds: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.is_hurried = is_hurried
        self._seconds, self._sleep = seconds, sleep
        self._began = seconds()

    def hurry(self) -> None:
        """Somebody waits for it. May be called from any thread."""
        self.is_hurried = True

    def breathe(self) -> None:
        """Rest, if it is time to."""
        if not self.is_hurried and self._seconds() - self._began >= WORK_SECONDS:
            self._sleep(REST_SECONDS)
            self._began = self._seconds()

    def over(self, rows: Iterable[T]) -> Iterable[T]:
        """The same rows, with rests between them."""
        return rows if self.is_hurried else self._unhurried(rows)

    def _unhurried(self, rows: Iterable[T]) -> Iterator[T]:
        for at, row in enumerate(rows):
            if at % _LOOKS_EVERY == 0:
                self.breathe()
            yield row


HURRIED = Pace(is_hurried=True)
