"""Whose events count: the session that a request belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from feature_repo.contracts.events import SESSION_VOTE_WEIGHTS, EventType
from feature_repo.contracts.packing import SessionEvent, SessionState, session_hash

MICROS = 1_000_000

BUYING_TYPES = frozenset({EventType.PURCHASE})

TOUCHING_TYPES = frozenset(SESSION_VOTE_WEIGHTS) | {
    EventType.REMOVE_FROM_CART,
    EventType.RATING,
    EventType.SHARE,
}
"""Events after which the item has been seen: the speed layer keeps these, and the item leaves its session's slates."""


def session_events(
    state: SessionState,
    *,
    session_id: str | None,
    recent_events: Sequence[SessionEvent],
    now_micros: int,
    gap_seconds: float,
) -> list[SessionEvent]:
    """The events of the session that asks, oldest first; then those that the request itself brought.

    With a `session_id`: the events of that session alone, however old. Without: the subject's latest session, if its
    last event is at most `gap_seconds` before `now_micros`; events that came without a session id belong together
    while no gap between neighbours is longer than that. An event from a clock that runs ahead counts as just now.
    """
    if session_id is not None:
        wanted = session_hash(session_id)
        stored = [event for event in state.events if event.session_hash == wanted]
    else:
        stored = _latest_session(state.events, now_micros=now_micros, gap_micros=int(gap_seconds * MICROS))
    return sorted([*stored, *recent_events], key=lambda event: event.micros) if recent_events else stored


def _latest_session(events: Sequence[SessionEvent], *, now_micros: int, gap_micros: int) -> list[SessionEvent]:
    if not events or now_micros - events[-1].micros > gap_micros:
        return []
    latest = events[-1].session_hash
    if latest:
        return [event for event in events if event.session_hash == latest]
    found: list[SessionEvent] = []
    for event in reversed(events):
        if event.session_hash:
            continue
        if found and found[-1].micros - event.micros > gap_micros:
            break
        found.append(event)
    return found[::-1]
