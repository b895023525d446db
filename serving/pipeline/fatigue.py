"""What was shown lately and left alone sinks, deeper each time, and comes back with time.

The session record keeps when an item was last shown or touched, and how often it was shown on which day, on whatever
channel. Of two things that happened on one day the order of many showings is not known: a day on which the item was
touched counts as one showing if the last one came after the touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from feature_repo.contracts.packing import SessionEvent, SessionState
from serving.pipeline.rotation import DAY_MICROS


class Showings(NamedTuple):
    """When an item was last shown (event time, us), and how often since it was last touched; 1 or more."""

    micros: int
    times: int


def left_alone(state: SessionState, session: Sequence[SessionEvent], *, since_micros: int = 0) -> dict[str, Showings]:
    """Item id -> its showings on the day of `since_micros` and later, of items not touched when last shown or later.

    Of a touch that lies too far back for its instant to be kept only the day is known; it counts for the whole day.
    """
    seen = state.seen
    if not seen:
        return {}
    touched: dict[str, int] = {}
    for day, item_id in state.interests:
        if item_id in seen:
            touched[item_id] = max((day + 1) * DAY_MICROS, touched.get(item_id, 0))
    exact: dict[str, int] = {}
    for events in (state.events, session):
        for micros, _, _, item_id, _ in events:
            if item_id in seen:
                exact[item_id] = max(micros, exact.get(item_id, 0))
    touched |= exact
    last = {item_id: micros for item_id, micros in seen.items() if micros > touched.get(item_id, -1)}
    if not last:
        return {}
    counts = dict.fromkeys(last, 0)
    first_day = since_micros // DAY_MICROS
    for (day, item_id), count in state.shown.items():
        if item_id in counts and day >= first_day and day > touched.get(item_id, -1) // DAY_MICROS:
            counts[item_id] += count
    return {item_id: Showings(micros, max(1, counts[item_id])) for item_id, micros in last.items()}


def shown_often(state: SessionState, *, cap: int, since_micros: int) -> list[str]:
    """Items that were shown `cap` times or more on the day of `since_micros` and later, touched or not; sorted."""
    first_day, counts = since_micros // DAY_MICROS, dict[str, int]()
    for (day, item_id), count in state.shown.items():
        if day >= first_day:
            counts[item_id] = counts.get(item_id, 0) + count
    return sorted(item_id for item_id, count in counts.items() if count >= cap)


def fatigued(
    scores: Mapping[int, float], shown: Mapping[int, Showings], *, fatigue: float, span_micros: int, now_micros: int
) -> dict[int, float]:
    """score * (1 - fatigue * (1 - age / span))^times: for an item shown right now it loses `fatigue` of it for each
    time that it was shown, and less by the age of the last showing, down to nothing after the span."""
    sunk = dict(scores)
    for number, (micros, times) in shown.items():
        age = max(0, now_micros - micros)
        if number in sunk and age < span_micros:
            sunk[number] *= (1.0 - fatigue * (1.0 - age / span_micros)) ** times
    return sunk
