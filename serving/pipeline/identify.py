"""Whose events count: the session that a request belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from feature_repo.contracts.events import CLIENT_SESSION_GAP, SESSION_VOTE_WEIGHTS, EventType
from feature_repo.contracts.packing import SessionEvent, SessionState, session_hash

MICROS = 1_000_000
CLIENT_GAP_MICROS = CLIENT_SESSION_GAP // timedelta(microseconds=1)

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

    With a `session_id`: the newest session of that id alone, however old. Without: the subject's latest session, if its
    last event is at most `gap_seconds` before `now_micros`. A pause ends a session, as in the night's tables: without a
    session id one of `gap_seconds` or longer, with one a day or longer. An event from a clock that runs ahead counts as
    just now.
    """
    if session_id is not None:
        stored = _newest_session(state.events, session_hash(session_id), CLIENT_GAP_MICROS)
    else:
        stored = _latest_session(state.events, now_micros=now_micros, gap_micros=int(gap_seconds * MICROS))
    return sorted([*stored, *recent_events], key=lambda event: event.micros) if recent_events else stored


def _latest_session(events: Sequence[SessionEvent], *, now_micros: int, gap_micros: int) -> list[SessionEvent]:
    if not events or now_micros - events[-1].micros > gap_micros:
        return []
    latest = events[-1].session_hash
    return _newest_session(events, latest, CLIENT_GAP_MICROS if latest else gap_micros)


def _newest_session(events: Sequence[SessionEvent], wanted: int, gap_micros: int) -> list[SessionEvent]:
    """The events of one session id (0: without one) behind its last pause of `gap_micros` or longer."""
    found: list[SessionEvent] = []
    after = None
    for event in reversed(events):
        micros, _, hashed, _, _ = event
        if hashed == wanted:
            if after is not None and after - micros >= gap_micros:
                break
            after = micros
            found.append(event)
    found.reverse()
    return found
