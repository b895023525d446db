"""What one event does to what we know of its person. Pure; the order in which events arrive does not matter. (Who is
flagged as a bot aside: `bot_guard` sets that flag before an event comes here, by what it saw when.)

Every part of the state is a maximum, a minimum, a sum that stops at a bound, or the top of a sorted set whose sort key
says nothing but what the events say: so it is a function of the set of events. What has been pushed out of a list
cannot come back by arriving late: it is older than all that is left. Each event must come once. Repeats are left out
before this (the dedup mark, 24 hours); a repeat of an event that is still among the kept ones changes nothing either.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from feature_repo.contracts.events import (
    DISMISSING_TYPES,
    EVENT_TYPES,
    SESSION_VOTE_WEIGHTS,
    EventType,
    expand_items,
)
from feature_repo.contracts.packing import FLAG_BOT, FLAG_PERSONALIZE_DENIED
from feature_repo.contracts.regions import voting_region
from feature_repo.contracts.session_record import (
    MAX_CART_CHANGES,
    MAX_COUNT,
    MAX_EVENTS,
    MAX_INTERESTS,
    MAX_MARKS,
    MAX_SEEN,
    MAX_SHOWINGS,
    MAX_STEPS,
    MAX_WEIGHT,
    CartChange,
    ItemMark,
    Regions,
    SessionEvent,
    SessionState,
    Votes,
    Word,
    event_hash,
    session_hash,
)
from feature_repo.contracts.times import to_micros
from feature_repo.contracts.trend_record import MAX_VOTES, MICROS, WINDOWS, vote_order
from serving.pipeline.identify import BUYING_TYPES, TOUCHING_TYPES

DAY_MICROS = 86_400 * MICROS
MAX_WORD_BYTES = 64
MAX_QUANTITY = 65_535
VOTED_PERIODS = 2
"""Periods of each trend window in which a subject's votes are remembered: the newest ones it has events in."""

_UNMERGE, _IMPRESSION = EventType.UNMERGE.value, EventType.IMPRESSION.value

SILENT_TYPES = TOUCHING_TYPES | DISMISSING_TYPES | {EventType.IMPRESSION, EventType.VIEW_ITEM_LIST}
"""Not kept as steps: they are events on items, or come by the dozen."""
_CART_TYPES = {EventType.ADD_TO_CART: False, EventType.REMOVE_FROM_CART: True}
VOTING_TYPES = frozenset(str(kind) for kind in SESSION_VOTE_WEIGHTS)
"""Events of other types change no vote."""


class Plan(NamedTuple):
    """What events of one type change. `is_removal`: from the cart, None: it stays as it is; `halves`: weight x 2."""

    touches: bool
    is_step: bool
    is_removal: bool | None
    buys: bool
    dismisses: bool
    sees: bool
    shows: bool
    halves: int


def _plan_of(kind: str) -> Plan:
    return Plan(
        touches=kind in TOUCHING_TYPES,
        is_step=kind not in SILENT_TYPES,
        is_removal=_CART_TYPES.get(EventType(kind)),
        buys=kind in BUYING_TYPES,
        dismisses=kind in DISMISSING_TYPES,
        sees=kind in TOUCHING_TYPES or kind == _IMPRESSION,
        shows=kind == _IMPRESSION,
        halves=int(2 * SESSION_VOTE_WEIGHTS.get(kind, 0)),
    )


PLANS = {kind: _plan_of(kind) for kind in EVENT_TYPES}

_new = tuple.__new__
"""What a NamedTuple's own constructor does, without the call."""

Row = TypeVar("Row", bound=tuple[Any, ...])


def replay_session(events: Iterable[Mapping[str, Any]]) -> SessionState:
    """The state after all these checked events of one subject, each event id once (the first one counts)."""
    state, applied = SessionState(), set()
    for event in events:
        if event["event_id"] not in applied:
            applied.add(event["event_id"])
            fold_event(state, event)
    return state


def fold_event(state: SessionState, event: Mapping[str, Any]) -> None:
    """Let one checked event (`events.check_event`) change `state`. An order counts line by line, in `counts` once.

    Kept are the newest 50 events that touched an item and 30 others, 64 changes of the cart, the items bought (200),
    dismissed (200) and shown or touched (100) last, 100 weights of items by day, how often which item was shown on
    which day (the newest 200), and the newest word about personalization; two opposite words of one instant are a no.
    Who is flagged as a bot (`bot_guard`) moves no trend. Should it raise, `state` may be half changed.
    """
    micros = to_micros(event["timestamp"])
    kind = event["event_type"]
    if kind == _UNMERGE:
        return  # an operator's word about identity, no deed of this person
    mark = event_hash(event["event_id"])
    session = session_hash(event.get("session_id"))
    several = event.get("items")
    items = [line["item_id"] for line in several] if several else [event["item_id"]] if "item_id" in event else []

    touches, is_step, is_removal, buys, dismisses, sees, shows, halves = PLANS[kind]
    if touches:
        kept = state.events
        new = [_new(SessionEvent, (micros, kind, session, item, mark)) for item in items]
        if kept and micros <= kept[-1][0] and any(_is_among(kept, one, _event_order) for one in new):
            return
        for one in new:
            _keep(kept, one, _event_order, MAX_EVENTS)
    elif is_step:
        steps = state.steps
        step = _new(SessionEvent, (micros, kind, session, "", mark))
        if steps and micros <= steps[-1][0] and _is_among(steps, step, _event_order):
            return
        _keep(steps, step, _event_order, MAX_STEPS)
    consent = event.get("consent")
    if items:
        if is_removal is not None:
            for line in expand_items(event):
                _keep(state.cart, _cart_change(line, micros, mark, is_removal=is_removal), tuple, MAX_CART_CHANGES)
        if buys:
            _mark_items(state.bought, micros, items, MAX_MARKS)
        if dismisses:
            _mark_items(state.dismissed, micros, items, MAX_MARKS)
        if sees:
            _see(state.seen, micros, items)
        if shows:
            _add_by_day(state.shown, micros, items, 1, MAX_SHOWINGS)
        if halves:
            _add_by_day(state.interests, micros, items, halves, MAX_INTERESTS)
            if not state.flags & FLAG_BOT and (not consent or consent.get("train") is not False):
                context = event.get("context")
                _vote(state.votes, state.regions, micros, items, voting_region(context) if context else "")

    counts = state.counts
    counts[kind] = min(counts.get(kind, 0) + 1, MAX_COUNT)
    if not 0 < state.first_micros <= micros:
        state.first_micros = min(state.first_micros or micros, micros)
    if micros > state.last_micros:
        state.last_micros = micros
    if consent:
        _hear_consent(state, micros, consent.get("personalize"))
    if "context" in event or "channel" in event:
        _hear_words(state, micros, event)


def _event_order(event: SessionEvent) -> tuple[int, str, str, int, int]:
    return (event.micros, event.item_id, event.event_type, event.session_hash, event.event_hash)


def _is_among(rows: MutableSequence[Row], row: Row, order: Callable[[Row], Any]) -> bool:
    if not rows or order(rows[-1]) < order(row):
        return False
    at = bisect_left(rows, order(row), key=order)
    return at < len(rows) and rows[at] == row


def _keep(rows: MutableSequence[Row], row: Row, order: Callable[[Row], Any], limit: int) -> None:
    """Put `row` in its place, unless it is there, and forget the oldest beyond `limit`. A row begins with its time."""
    if not rows or rows[-1][0] < row[0] or order(rows[-1]) < order(row):
        rows.append(row)
    else:
        at = bisect_left(rows, order(row), key=order)
        if rows[at] == row:
            return
        rows.insert(at, row)
    if len(rows) > limit:
        del rows[0]


def _cart_change(line: Mapping[str, Any], micros: int, mark: int, *, is_removal: bool) -> CartChange:
    """Of one line. Added without a quantity: one; taken out without one: all."""
    quantity = min(line.get("quantity") or (0 if is_removal else 1), MAX_QUANTITY)
    return CartChange(micros, is_removal, quantity, line["item_id"], mark)


def _mark_items(marks: MutableSequence[ItemMark], micros: int, items: Iterable[str], limit: int) -> None:
    for item in items:
        for at, mark in enumerate(marks):
            if mark.item_id == item:
                if micros <= mark.micros:
                    break
                del marks[at]
                _keep(marks, ItemMark(micros, item), tuple, limit)
                break
        else:
            _keep(marks, ItemMark(micros, item), tuple, limit)


def _see(seen: dict[str, int], micros: int, items: Iterable[str]) -> None:
    for item in items:
        if seen.get(item, -1) < micros:
            seen[item] = micros
    while len(seen) > MAX_SEEN:
        del seen[min(zip(seen.values(), seen, strict=True))[1]]


def _add_by_day(
    sums: dict[tuple[int, str], int], micros: int, items: Iterable[str], added: int, most_rows: int
) -> None:
    day = micros // DAY_MICROS
    for item in items:
        sums[day, item] = min(sums.get((day, item), 0) + added, MAX_WEIGHT)
    while len(sums) > most_rows:
        del sums[min(sums)]


def _vote(votes: Votes, regions: Regions, micros: int, items: Sequence[str], region: str) -> None:
    """Speak for the items in every window, each in the first bucket of its period in which it was touched, and in the
    region ("": none) where it was; of several of that bucket in the one that sorts first, in none only without any."""
    if not items:
        return
    seconds = micros // MICROS
    for _, window, length, bucket_seconds in WINDOWS:
        period = seconds // length
        here = votes.get((window, period))
        if here is None:
            known = [key for key in votes if key[0] == window]
            if len(known) >= VOTED_PERIODS:
                oldest = min(known)
                if period < oldest[1]:
                    continue
                for item in votes.pop(oldest):
                    regions.pop((*oldest, item), None)
            here = votes[window, period] = {}
        bucket = seconds % length // bucket_seconds
        for item in items:
            held = here.get(item)
            if held is None:
                here[item] = bucket
                if region:
                    regions[window, period, item] = region
                if len(here) > MAX_VOTES:
                    silenced = max(here, key=vote_order)
                    del here[silenced]
                    regions.pop((window, period, silenced), None)
            elif bucket < held:
                here[item] = bucket
                regions.pop((window, period, item), None)
                if region:
                    regions[window, period, item] = region
            elif region and bucket == held:
                vote = (window, period, item)
                regions[vote] = min(region, regions.get(vote, region))


def _hear_consent(state: SessionState, micros: int, personalize: bool | None) -> None:
    if personalize is None or (state.consent_micros and micros < state.consent_micros):
        return
    denied = personalize is False
    if micros == state.consent_micros:
        denied = denied or bool(state.flags & FLAG_PERSONALIZE_DENIED)
    flags = state.flags & ~FLAG_PERSONALIZE_DENIED
    state.flags, state.consent_micros = (flags | FLAG_PERSONALIZE_DENIED if denied else flags), micros


def _hear_words(state: SessionState, micros: int, event: Mapping[str, Any]) -> None:
    """Of two words of one instant the one that sorts last holds; of the first referrer, the one that sorts first."""
    words = _words_of(event)
    if not words:
        return
    known = state.words
    for name, text in words.items():
        held = known.get(name)
        if held is None or held[0] < micros or held < (micros, text):
            known[name] = _new(Word, (micros, text))
    if "referrer" in words:
        word = Word(micros, words["referrer"])
        known["first_referrer"] = min(known.get("first_referrer", word), word)


def _words_of(event: Mapping[str, Any]) -> dict[str, str]:
    """Device, referrer (its host) and language as native, Segment and GA4 events say them in `context`; the channel."""
    found: dict[str, str] = {}
    if "channel" in event:
        _note(found, "channel", event["channel"])
    context = event.get("context")
    if context:
        device, page = context.get("device"), context.get("page")
        if isinstance(device, dict):
            device = device.get("type") or device.get("category")
        _note(found, "device", device)
        referrer = context.get("referrer") or (page.get("referrer") if isinstance(page, dict) else None)
        if isinstance(referrer, str):
            _note(found, "referrer", _host(referrer))
        _note(found, "language", context.get("language") or context.get("locale"))
    return found


def _note(found: dict[str, str], name: str, value: object) -> None:
    if not value:
        return
    text = _cut(value) if isinstance(value, str) else ""
    if text:
        found[name] = text


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or address
    except ValueError:
        return address


@lru_cache(maxsize=4096)  # there are few devices, channels and languages
def _cut(text: str) -> str:
    """At most 64 bytes of UTF-8, without NUL and lone surrogates."""
    if len(text) <= MAX_WORD_BYTES and text.isascii() and "\0" not in text:
        return text
    raw = text.replace("\0", "").encode("utf-8", "replace")[:MAX_WORD_BYTES]
    return raw.decode("utf-8", "ignore")
