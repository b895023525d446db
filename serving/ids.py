"""Ids of answers, requests and events.

32 hex digits: 12 of the milliseconds since 1970, 20 random ones. Ids of one time lie together, so statistics tell which
file of a table can hold one. The random digits are those of many, drawn at once: the system is asked rarely.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from serving.native import parts

_DRAWN = 512


class Ids:
    """For one thread. `urandom` and `time_ns` are those of the system."""

    def __init__(
        self, urandom: Callable[[int], bytes] = os.urandom, time_ns: Callable[[], int] = time.time_ns
    ) -> None:  # fmt: skip
        self._urandom, self._time_ns = urandom, time_ns
        self._millis, self._head = -1, ""
        self._tails: list[str] = []

    def new(self) -> str:
        """One that nobody has seen before."""
        millis = self._time_ns() // 1_000_000
        if millis != self._millis:
            self._millis, self._head = millis, f"{millis:012x}"
        if not self._tails:
            digits = self._urandom(10 * _DRAWN).hex()
            self._tails = [digits[at : at + 20] for at in range(0, len(digits), 20)]
        return self._head + self._tails.pop()


class Numbered:
    """Ids that nobody has seen before: the end of one id of `new_id`, and a number behind it."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._prefix = new_id()[-20:]  # it begins with the time
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count:012x}"


def numbered(new_id: Callable[[], str]) -> Callable[[], str]:
    """A `Numbered`, for the thread of the loop."""
    found: Callable[[], str] = Numbered(new_id) if parts.ids is None else parts.ids.Numbered(new_id)
    return found


_ids: Any = Ids() if parts.ids is None else parts.ids.Ids()
new_id: Callable[[], str] = _ids.new
"""An id that nobody has seen before. For the thread of the loop."""
