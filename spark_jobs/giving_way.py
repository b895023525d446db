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
RESTS, LONGEST_REST_SECONDS = 9.0, 0.02
"""Rests are so many times as long as the asking before them: the store is busy for a job a tenth of the time."""

T = TypeVar("T")
Answer = TypeVar("Answer")


def give_way() -> None:
    """From now on; a process that is nicer already stays so."""
    os.nice(max(0, NICENESS - os.nice(0)))
    take_turns_of(LONG_MS)  # or whoever wakes up waits for the end of a turn


def ask_in_pieces(
    rows: Iterable[T],
    size: int,
    ask: Callable[[list[T]], Answer],
    *,
    seconds: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[list[T], Answer]]:
    """The rows, `size` at a time, each piece with what `ask` says to it. Between two askings lies a rest.

    For what keeps a store busy that answers people as well: the store knows nothing of niceness. It is free while the
    next piece is made and while the caller looks at an answer. That is rest too; only what is missing is slept."""
    remaining = iter(rows)
    rested_at = seconds()
    while piece := list(islice(remaining, size)):
        if (missing := rested_at - seconds()) > 0:
            sleep(missing)
        began = seconds()
        answer = ask(piece)
        ended = seconds()
        rested_at = ended + min(LONGEST_REST_SECONDS, RESTS * (ended - began))
        yield piece, answer
