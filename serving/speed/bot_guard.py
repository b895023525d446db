"""Bots on the speed path: the same rules as at night (`contracts.bots`), on the entries of one consumer as they come.

A flagged subject keeps everything: its events are durable and in its session record. But the record says FLAG_BOT, so
its answers come from the non-personal rungs, and whoever counts trends or popularity leaves the event out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from feature_repo.contracts.bots import BROWSING_NAMES, BotCounters, is_bot
from feature_repo.contracts.packing import FLAG_BOT
from feature_repo.contracts.session_record import SessionState
from serving.native import parts

MICROS_PER_DAY = 86_400_000_000
MAX_SUBJECTS = 50_000
"""Subjects that one guard counts; beyond it the one heard of longest ago is forgotten. A bot is heard of all along."""


def new_counters() -> BotCounters:
    """Of a new day; in native code where there is any."""
    return BotCounters() if parts.subjects is None else parts.subjects.BotCounters()


@dataclass(slots=True)
class _Seen:
    """What one subject did on the newest day it was heard of; `position`: up to where its entries are counted."""

    day: int
    position: int = -1
    counters: BotCounters = field(default_factory=new_counters)


class BotGuard:
    """Counters of the subjects of the partitions that one consumer owns, in memory.

    They begin anew with the process; what was flagged stays flagged, for that is in the session record. Bounded: a
    subject takes about 400 bytes, and up to 60 kB more when it looks at a thousand different items in a day.
    """

    def __init__(self, *, max_subjects: int = MAX_SUBJECTS) -> None:
        self._max_subjects = max_subjects
        self._subjects: OrderedDict[str, _Seen] = OrderedDict()

    def judge(self, state: SessionState, event: Mapping[str, Any], subject: str, *, micros: int, position: int) -> bool:
        """Whether this checked event is a bot's; FLAG_BOT of `state` says the same afterwards.

        `state` is the subject's record before the event, `micros` the event's time (us since 1970). `position`
        (`positions.position_number`), which rises for one subject, makes it harmless to judge an entry again after a
        failed write. A flag holds for the UTC day of event time on which it was earned: the first event of a later day,
        by the newest event in the record, starts clean.
        """
        day = micros // MICROS_PER_DAY
        seen = self._see(subject, day)
        counters = seen.counters
        if position > seen.position:
            seen.position = position
            if day == seen.day:  # a late event of a day that is over is counted by the night
                context, kind = event.get("context"), event["event_type"]
                if kind in BROWSING_NAMES and "items" in event:
                    for line in event["items"] or (event,):
                        counters.add(kind, micros, line.get("item_id"), context=context)
                else:
                    counters.add(kind, micros, event.get("item_id"), context=context)
        flagged = day == seen.day and is_bot(counters)
        if state.flags & FLAG_BOT:
            flagged = flagged or day <= state.last_micros // MICROS_PER_DAY
            if not flagged:
                state.flags &= ~FLAG_BOT
        elif flagged:
            state.flags |= FLAG_BOT
        return flagged

    def _see(self, subject: str, day: int) -> _Seen:
        """The subject's entry, of a new day when `day` is newer."""
        seen = self._subjects.get(subject)
        if seen is None:
            seen = self._subjects[subject] = _Seen(day)
            if len(self._subjects) > self._max_subjects:
                self._subjects.popitem(last=False)
        else:
            self._subjects.move_to_end(subject)
            if seen.day < day:
                seen.day, seen.counters = day, new_counters()
        return seen
