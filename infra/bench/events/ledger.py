"""The torture's own book: every event it ever sent, what was said about it, and what must therefore be true.

Nothing here reads Nightjar's own bookkeeping: the book is compared with streams, tables and session records.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from feature_repo.contracts.events import check_event, subject_key
from feature_repo.contracts.packing import SessionState
from feature_repo.contracts.times import from_micros
from serving.speed.session_state import fold_event

_FAR = from_micros(4_102_444_800_000_000)  # the year 2100: no event is from the future


@dataclass(slots=True)
class Findings:
    """What is wrong. All zero: the promise was kept."""

    lost: set[str] = field(default_factory=set)
    twice: set[str] = field(default_factory=set)
    strangers: set[str] = field(default_factory=set)
    applied_too_often: int = 0
    applied_too_seldom: int = 0
    wrong_sessions: list[str] = field(default_factory=list)

    @property
    def events_lost(self) -> int:
        """Acknowledged events that are nowhere, or whose effect is missing."""
        return len(self.lost) + self.applied_too_seldom

    @property
    def events_counted_twice(self) -> int:
        """Events accepted, archived or applied more than once."""
        return len(self.twice) + self.applied_too_often

    def is_clean(self) -> bool:
        """Whether there is nothing to report."""
        return not (self.events_lost or self.events_counted_twice or self.strangers or self.wrong_sessions)


class Ledger:
    """Events by id. `note` writes down answers; `judge` compares."""

    def __init__(self) -> None:
        self.sent: dict[str, dict[str, Any]] = {}
        self.acknowledged: set[str] = set()
        self._accepted: Counter[str] = Counter()
        self._states: dict[str, SessionState] = {}
        self._replayed: set[str] = set()

    def send(self, event: dict[str, Any]) -> None:
        """An event is about to be sent."""
        self.sent[event["event_id"]] = event

    def note(self, event_id: str, status: str) -> None:
        """A 202 said `accepted` or `duplicate`: from now on the event must never be lost."""
        self.acknowledged.add(event_id)
        if status == "accepted":
            self._accepted[event_id] += 1

    def expected_states(self, live: Iterable[str]) -> Mapping[str, SessionState]:
        """The session state of every person after the events in `live`: an offline replay, in order of the ids."""
        for event_id in sorted(set(live) - self._replayed):
            document = self.sent.get(event_id)
            if document is None:
                continue
            event, _ = check_event(document, received_at=_FAR)
            assert event is not None
            subject = subject_key(event.get("user_id"), event.get("anonymous_id"))
            fold_event(self._states.setdefault(subject, SessionState()), event)
            self._replayed.add(event_id)
        return self._states

    def judge(
        self,
        *,
        deliveries: Iterable[tuple[str, str, int]],
        applied: int,
        states: Mapping[str, SessionState | None],
    ) -> Findings:
        """Compare with what is there.

        `deliveries`: (event id, source, position) of every row of the table and of every event of the streams that is
        not in the table yet. `applied`: how many events the consumer says it applied. `states`: the stored session
        state of every person of the book. A delivery that was answered with `duplicate` is kept too, at a position of
        its own; the same one twice is not.
        """
        found = Findings()
        times = Counter(deliveries)
        live = {event_id for event_id, _, _ in times}
        found.lost = self.acknowledged - live
        found.strangers = live - self.sent.keys()
        found.twice = {event_id for (event_id, _, _), count in times.items() if count > 1}
        found.twice |= {event_id for event_id, count in self._accepted.items() if count > 1}
        found.applied_too_often = max(0, applied - len(live))
        found.applied_too_seldom = max(0, len(live) - applied)
        expected = self.expected_states(live)
        found.wrong_sessions = sorted(subject for subject, state in expected.items() if states.get(subject) != state)
        return found


def event_id_of(raw: bytes) -> str:
    """The id of an event of a stream entry."""
    return str(json.loads(raw)["event_id"])
