"""What one event does to what we know of its person. Pure; the order in which events arrive does not matter."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from typing import Any

from feature_repo.contracts.events import DISMISSING_TYPES, expand_items
from feature_repo.contracts.packing import (
    FLAG_PERSONALIZE_DENIED,
    ItemMark,
    SessionEvent,
    SessionState,
    session_hash,
)
from feature_repo.contracts.times import to_micros
from serving.pipeline.identify import BUYING_TYPES, TOUCHING_TYPES

MAX_EVENTS = 50
MAX_MARKS = 200


def apply_event(state: SessionState, event: Mapping[str, Any]) -> SessionState:
    """The state after one checked event (`events.check_event`).

    Kept are the newest 50 events that touched an item, the 200 items bought and the 200 dismissed last (each with its
    newest time), and the newest word about personalization; two opposite words of one instant are a no. So the result
    depends on the set of events alone: not on their order, and not on how often one is delivered. An order counts
    line by line. The argument stays as it is.
    """
    micros = to_micros(event["timestamp"])
    hashed = session_hash(event.get("session_id"))
    kind = event["event_type"]
    item_ids = [line["item_id"] for line in expand_items(event) if "item_id" in line]
    events, bought, dismissed = state.events, state.bought, state.dismissed
    if kind in TOUCHING_TYPES:
        events = _with_events(events, [SessionEvent(micros, kind, hashed, item_id) for item_id in item_ids])
    if kind in BUYING_TYPES:
        bought = _with_marks(bought, micros, item_ids)
    if kind in DISMISSING_TYPES:
        dismissed = _with_marks(dismissed, micros, item_ids)
    flags, consent_micros = _consent(state, micros, event.get("consent", {}).get("personalize"))
    return SessionState(events, bought, dismissed, flags, consent_micros)


def _with_events(events: Sequence[SessionEvent], new: Sequence[SessionEvent]) -> list[SessionEvent]:
    kept = list(events)
    for event in new:
        if event not in kept:
            insort(kept, event, key=_event_order)
    return kept[-MAX_EVENTS:]


def _event_order(event: SessionEvent) -> tuple[int, str, str, int]:
    return (event.micros, event.item_id, event.event_type, event.session_hash)


def _with_marks(marks: Sequence[ItemMark], micros: int, item_ids: Sequence[str]) -> list[ItemMark]:
    newest = {mark.item_id: mark.micros for mark in marks}
    for item_id in item_ids:
        newest[item_id] = max(micros, newest.get(item_id, micros))
    return sorted(ItemMark(at, item_id) for item_id, at in newest.items())[-MAX_MARKS:]


def _consent(state: SessionState, micros: int, personalize: bool | None) -> tuple[int, int]:
    if personalize is None or (state.consent_micros and micros < state.consent_micros):
        return state.flags, state.consent_micros
    denied = personalize is False
    if micros == state.consent_micros:
        denied = denied or bool(state.flags & FLAG_PERSONALIZE_DENIED)
    flags = state.flags & ~FLAG_PERSONALIZE_DENIED
    return (flags | FLAG_PERSONALIZE_DENIED if denied else flags), micros
