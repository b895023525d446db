"""A job of the night gives way to those who answer people on the same machine.

It has minutes, an answer has milliseconds. The kernel runs whoever is nicer after the others; on a machine with nothing
else to do that costs nothing. What a job starts from then on gives way as well.
"""

from __future__ import annotations

import os

from feature_repo.contracts.turns import LONG_MS, take_turns_of

NICENESS = 10
"""As of a consumer that catches up (`backlog_niceness`): a tenth of a processor is left beside a busy server."""


def give_way() -> None:
    """From now on; a process that is nicer already stays so."""
    os.nice(max(0, NICENESS - os.nice(0)))
    take_turns_of(LONG_MS)  # or whoever wakes up waits for the end of a turn
