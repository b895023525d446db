"""A job of the night gives way to those who answer people on the same machine.

It has minutes, an answer has milliseconds. The kernel runs whoever is nicer after the others; on a machine with nothing
else to do that costs nothing. What a job starts from then on gives way as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from feature_repo.contracts.turns import LONG_MS, take_turns_of

NICENESS = 10
"""As of a consumer that catches up (`backlog_niceness`): a tenth of a processor is left beside a busy server."""
RESTS, LONGEST_REST_SECONDS = 3.0, 0.01
"""Rests are so many times as long as the work before them."""

T = TypeVar("T")


def give_way() -> None:
    """From now on; a process that is nicer already stays so."""
    os.nice(max(0, NICENESS - os.nice(0)))
    take_turns_of(LONG_MS)  # or whoever wakes up waits for the end of a turn


def in_pieces(
    rows: Iterable[T],
    size: int,
    *,
    seconds: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[list[T]]:
    """The rows, `size` at a time, with a rest after what the caller does with each piece. For what keeps a store busy
    that answers people as well: the store knows nothing of niceness."""
    remaining = iter(rows)
    while piece := list(islice(remaining, size)):
        began = seconds()
        yield piece
        sleep(min(LONGEST_REST_SECONDS, RESTS * (seconds() - began)))
