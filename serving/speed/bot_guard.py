"""Bots on the speed path: the same rules as at night (`contracts.bots`), on the entries of one partition as they come.

A flagged subject keeps everything: its events are durable and in its session record. But the record says FLAG_BOT, so
its answers come from the non-personal rungs, and whoever counts trends or popularity leaves the event out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from feature_repo.contracts.bots import BotCounters, is_bot
from feature_repo.contracts.packing import FLAG_BOT, SessionState

MICROS_PER_DAY = 86_400_000_000
MAX_SUBJECTS = 50_000
"""Subjects that one guard counts; beyond it the one heard of longest ago is forgotten. A bot is heard of all along."""


class BotGuard:
    """Counters of the subjects of the partitions that one consumer owns, in memory.

    They begin anew with the process; what was flagged stays flagged, for that is in the session record. Bounded: a
    subject takes about 400 bytes, and up to 60 kB more when it looks at a thousand different items in a day.
    """

    def __init__(self, *, max_subjects: int = MAX_SUBJECTS) -> None:
        self._max_subjects = max_subjects
        self._subjects: OrderedDict[str, tuple[int, BotCounters]] = OrderedDict()
        self._counted_to: dict[int, int] = {}

    def judge(
        self, state: SessionState, event: Mapping[str, Any], subject: str, *, micros: int, partition: int, position: int
    ) -> tuple[SessionState, bool]:
        """`state` with FLAG_BOT set or cleared as this checked event demands, and whether the event is a bot's.

        `state` is the record before the event, `micros` the event's time (us since 1970). `position`
        (`positions.position_number`) makes it harmless to judge an entry again after a failed write. A flag holds for
        the UTC day of event time on which it was earned: the first event of a later day, by the newest event in the
        record, starts clean.
        """
        if position > self._counted_to.get(partition, -1):
            self._counted_to[partition] = position
            self._count(subject, micros, event)
        flagged = self._is_flagged(subject, micros)
        if not flagged and state.flags & FLAG_BOT:
            flagged = bool(state.events) and micros // MICROS_PER_DAY <= state.events[-1].micros // MICROS_PER_DAY
        flags = state.flags | FLAG_BOT if flagged else state.flags & ~FLAG_BOT
        return (state if flags == state.flags else replace(state, flags=flags)), flagged

    def _count(self, subject: str, micros: int, event: Mapping[str, Any]) -> None:
        day = micros // MICROS_PER_DAY
        found = self._subjects.get(subject)
        if found is None or found[0] < day:
            found = self._subjects[subject] = (day, BotCounters())
            if len(self._subjects) > self._max_subjects:
                self._subjects.popitem(last=False)
        elif found[0] > day:
            return  # a late event of a day that is over: the night counts it
        self._subjects.move_to_end(subject)
        context, kind = event.get("context"), event["event_type"]
        for line in event.get("items") or (event,):
            found[1].add(kind, micros, line.get("item_id"), context=context)

    def _is_flagged(self, subject: str, micros: int) -> bool:
        found = self._subjects.get(subject)
        return found is not None and found[0] == micros // MICROS_PER_DAY and is_bot(found[1])
