"""What was shown lately and left alone sinks, and comes back with time.

The session record keeps when an item was last shown or touched, not how often it was shown: so one showing counts like
ten, and the last one counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from feature_repo.contracts.packing import SessionEvent, SessionState
from serving.pipeline.rotation import DAY_MICROS


def left_alone(state: SessionState, session: Sequence[SessionEvent]) -> dict[str, int]:
    """Item id -> event time (us) at which it was last shown, of items that were not touched then or later.

    Of a touch that lies too far back for its instant to be kept only the day is known; it counts for the whole day.
    """
    touched: dict[str, int] = {}
    for day, item_id in state.interests:
        touched[item_id] = max((day + 1) * DAY_MICROS, touched.get(item_id, 0))
    exact: dict[str, int] = {}
    for event in (*state.events, *session):
        exact[event.item_id] = max(event.micros, exact.get(event.item_id, 0))
    touched |= exact
    return {item_id: micros for item_id, micros in state.seen.items() if micros > touched.get(item_id, -1)}


def fatigued(
    scores: Mapping[int, float], shown_at: Mapping[int, int], *, fatigue: float, span_micros: int, now_micros: int
) -> dict[int, float]:
    """The scores, less `fatigue` of it for an item shown right now, and less by age down to nothing after the span."""
    sunk = dict(scores)
    for number, micros in shown_at.items():
        age = max(0, now_micros - micros)
        if number in sunk and age < span_micros:
            sunk[number] *= 1.0 - fatigue * (1.0 - age / span_micros)
    return sunk
