"""What a person's own history takes out of a slate, by the rules of a placement, and what filters may ask about it."""

from __future__ import annotations

from collections.abc import Sequence

from feature_repo.contracts.events import DISMISSING_TYPES
from feature_repo.contracts.filter_language import parse_span
from feature_repo.contracts.packing import SessionEvent, SessionState
from serving.pipeline.cart import cart_contents
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.fatigue import shown_often
from serving.pipeline.identify import BUYING_TYPES, TOUCHING_TYPES
from serving.pipeline.item_filters import PersonFacts
from serving.pipeline.policy import EXCLUDE, KEEP, SESSION, SlateRules
from serving.pipeline.rotation import DAY_MICROS
from serving.pipeline.values import SlateRequest


def ruled_exclusions(
    rules: SlateRules,
    request: SlateRequest,
    catalogue: Catalogue,
    state: SessionState,
    session: Sequence[SessionEvent],
    now_micros: int,
    *,
    keeps_dismissed: bool = False,
) -> dict[int, str]:
    """Item number -> the personal filter that takes it out; of several the last one here."""
    found: list[tuple[str, str]] = []
    if rules.seen not in (KEEP, SESSION):
        since = now_micros - parse_span(rules.seen)
        found += [("seen", item_id) for item_id, micros in state.seen.items() if micros >= since]
    if rules.seen != KEEP:
        found += [("seen_in_session", event.item_id) for event in session if event.event_type in TOUCHING_TYPES]
    if not keeps_dismissed:
        found += [("dismissed", mark.item_id) for mark in state.dismissed]
        found += [("dismissed", event.item_id) for event in session if event.event_type in DISMISSING_TYPES]
    if rules.bought != KEEP:
        since = -1 if rules.bought == EXCLUDE else now_micros - parse_span(rules.bought)
        found += [("bought", mark.item_id) for mark in state.bought if mark.micros >= since]
        found += [("bought", event.item_id) for event in session if event.event_type in BUYING_TYPES]
    if rules.frequency_cap is not None:
        since = now_micros - (rules.frequency_days - 1) * DAY_MICROS
        often = shown_often(state, cap=rules.frequency_cap, since_micros=since)
        found += [("shown_often", item_id) for item_id in often]
    found += [("excluded", item_id) for item_id in request.exclude_item_ids]
    numbers = catalogue.numbers
    return {numbers[item_id]: name for name, item_id in found if item_id in numbers}


def person_facts(state: SessionState, session: Sequence[SessionEvent]) -> PersonFacts:
    touched = {event.item_id: event.micros for event in session if event.event_type in TOUCHING_TYPES}
    bought = {mark.item_id: mark.micros for mark in state.bought}
    bought |= {event.item_id: event.micros for event in session if event.event_type in BUYING_TYPES}
    return PersonFacts(cart_contents(state), touched, bought, {**state.seen, **touched})
