"""The person's own items: what they began and did not buy, and what they buy again and again. Nothing tops these up:
a shelf that is headed "buy again" and shows what was never bought would lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from feature_repo.contracts.events import EventType
from feature_repo.contracts.packing import SessionEvent, SessionState, Source
from feature_repo.contracts.purchase_record import Purchase
from serving.pipeline.candidates import Rung
from serving.pipeline.cart import cart_contents
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.consent import Allowed, as_allowed
from serving.pipeline.filters import SlateFilter
from serving.pipeline.identify import CLIENT_GAP_MICROS, session_events
from serving.pipeline.list_rules import BEGUN, BOUGHT_BEFORE, eligible_in_list
from serving.pipeline.list_slate import Tell, in_words, list_slate
from serving.pipeline.ruled_slate import RuledSlate
from serving.pipeline.values import Person, Reason, Slate, SlateRequest, Tuning

MICROS = 1_000_000
DAY_MICROS = 86_400 * MICROS

_STEPS: Mapping[str, tuple[int, str]] = {
    EventType.ADD_TO_WISHLIST: (1, "you put it on your wishlist"),
    EventType.LIKE: (1, "you liked it"),
}
_PURCHASE, _ADD, _REMOVE = map(str, (EventType.PURCHASE, EventType.ADD_TO_CART, EventType.REMOVE_FROM_CART))
_LOOKED = (2, "you looked at it")
_IN_CART = (0, "still in your cart")


def continue_slate(
    request: SlateRequest, person: Person, catalogue: Catalogue, tuning: Tuning, *, now_micros: int
) -> Slate:
    """What the session, or the last one before it, left open: in the cart, wished for, looked at, and not bought since.

    First what lies in the cart (whenever it was put there), then what was wished for or liked, then what was looked at;
    within each the newest first, ties by item id. Dismissed and excluded items leave. fallback_level is `continue` or
    `none`; fallback_reason `nothing_begun` when there is nothing to continue.
    """
    allowed = as_allowed(request, person)
    request, person = allowed.request, allowed.person
    session = _last_session(request, person.session, tuning, now_micros)
    begun = _begun(person.session, session)
    ordered = sorted(begun, key=lambda item_id: (begun[item_id][0], -begun[item_id][2], item_id))
    numbers = [catalogue.numbers[item_id] for item_id in ordered if item_id in catalogue.numbers]
    rows = [(number, 1 / (1 + place)) for place, number in enumerate(numbers)]

    def tell(number: int, _: Source) -> tuple[Reason, ...]:
        return in_words(begun[catalogue.item_id(number)][1])

    eligible = eligible_in_list(allowed, catalogue, tuning, habits=BEGUN, now_micros=now_micros)
    return _own_slate("continue", Source.CONTINUED, rows, eligible, allowed, catalogue, tell, "nothing_begun", session)


def buy_again_slate(
    purchases: Sequence[Purchase],
    request: SlateRequest,
    person: Person,
    catalogue: Catalogue,
    tuning: Tuning,
    *,
    due_power: float,
    now_micros: int,
) -> Slate:
    """What the person bought, by how often and how lately, and by whether it is due.

    score = worth x (d e^(1 - d))^due_power, d = time since the last purchase / expected interval: the formula of the
    model `repurchase`, at this instant and with what was bought since the night. What is in the cart or was dismissed
    leaves; an item bought for the first time since the night has no interval yet, and is not there. fallback_level is
    `buy_again` or `none`; fallback_reason `no_purchases` when the night knows of none.
    """
    allowed = as_allowed(request, person)
    current = bring_up_to_date(purchases, allowed.person.session, catalogue) if allowed.personalized else []
    scored = [(p.item_number, p.worth * readiness(p, due_power, now_micros=now_micros)) for p in current]
    rows = sorted((row for row in scored if row[1] > 0), key=lambda row: (-row[1], row[0]))
    by_number = {purchase.item_number: purchase for purchase in current}

    def tell(number: int, _: Source) -> tuple[Reason, ...]:
        return in_words(in_plain_words(by_number[number]))

    in_cart = cart_contents(allowed.person.session)
    own = {catalogue.numbers[item_id]: "in_cart" for item_id in in_cart if item_id in catalogue.numbers}
    eligible = eligible_in_list(allowed, catalogue, tuning, habits=BOUGHT_BEFORE, own=own, now_micros=now_micros)
    return _own_slate("buy_again", Source.REPURCHASE, rows, eligible, allowed, catalogue, tell, "no_purchases")


def bring_up_to_date(purchases: Sequence[Purchase], state: SessionState, catalogue: Catalogue) -> list[Purchase]:
    """The night's facts with the purchases that the speed layer heard of since: one visit more, at that instant."""
    bought = {catalogue.numbers[m.item_id]: m.micros for m in state.bought if m.item_id in catalogue.numbers}
    current = []
    for purchase in purchases:
        seconds = bought.get(purchase.item_number, 0) // MICROS
        if seconds > purchase.last_seconds:
            purchase = purchase._replace(visits=purchase.visits + 1, last_seconds=seconds, worth=purchase.worth + 1.0)
        current.append(purchase)
    return current


def readiness(purchase: Purchase, due_power: float, *, now_micros: int) -> float:
    """(d e^(1 - d))^due_power: 1 when it is due now, less before and after; 0 when it was bought this instant."""
    since_days = max(0.0, (now_micros / MICROS - purchase.last_seconds) / 86_400)
    due = since_days / max(purchase.expected_days, 1e-3)
    return float((due * math.exp(1 - min(due, 700.0))) ** due_power)


def in_plain_words(purchase: Purchase) -> str:
    """The reason of an item to buy again."""
    times = "once" if purchase.visits == 1 else "twice" if purchase.visits == 2 else f"{purchase.visits} times"
    days = max(1, round(purchase.expected_days))
    every = "day" if days == 1 else f"{days} days"
    return f"you bought it {times}; {'people buy it' if purchase.visits == 1 else 'you buy it'} about every {every}"


def _last_session(request: SlateRequest, state: SessionState, tuning: Tuning, now_micros: int) -> list[SessionEvent]:
    """The session that asks; when it has touched nothing yet, the newest one before it, however old."""
    running = session_events(
        state,
        session_id=request.session_id,
        recent_events=request.recent_events,
        now_micros=now_micros,
        gap_seconds=tuning.session_gap_seconds,
    )
    if running or not state.events:
        return running
    last = state.events[-1]
    gap = CLIENT_GAP_MICROS if last.session_hash else int(tuning.session_gap_seconds * MICROS)
    found: list[SessionEvent] = []
    for event in reversed(state.events):
        if event.session_hash != last.session_hash or (found and found[-1].micros - event.micros >= gap):
            break
        found.append(event)
    return found[::-1]


def _begun(state: SessionState, session: Sequence[SessionEvent]) -> dict[str, tuple[int, str, int]]:
    """Item id -> (step, in words, us) of what was begun and not bought since; of several steps the most decided."""
    bought = {mark.item_id: mark.micros for mark in state.bought}
    for micros, kind, _, item_id, _ in session:
        if kind == _PURCHASE:
            bought[item_id] = max(micros, bought.get(item_id, -1))
    begun: dict[str, tuple[int, str, int]] = {}
    removed: dict[str, int] = {}
    added: list[SessionEvent] = []
    for event in session:
        micros, kind, _, item_id, _ = event
        if kind == _ADD:
            added.append(event)
        elif kind == _REMOVE:
            removed[item_id] = micros
            begun.pop(item_id, None)
        elif kind != _PURCHASE:
            step, words = _STEPS.get(kind, _LOOKED)
            held = begun.get(item_id)
            if micros > bought.get(item_id, -1) and (held is None or step <= held[0]):
                begun[item_id] = (step, words, micros)
    put = {change.item_id: change.micros for change in state.cart if not change.is_removal}
    in_cart = dict.fromkeys(cart_contents(state))
    for micros, _, _, item_id, _ in added:  # what the request itself brings is in no cart yet
        if micros > max(bought.get(item_id, -1), removed.get(item_id, -1)):
            in_cart[item_id] = None
            put[item_id] = max(micros, put.get(item_id, -1))
    for item_id in in_cart:
        begun[item_id] = (*_IN_CART, put.get(item_id, 0))
    return begun


def _own_slate(
    name: str,
    source: Source,
    rows: Sequence[tuple[int, float]],
    eligible: SlateFilter | RuledSlate,
    allowed: Allowed,
    catalogue: Catalogue,
    tell: Tell,
    empty: str,
    session: Sequence[SessionEvent] = (),
) -> Slate:
    request = allowed.request
    names_nobody = request.user_id is None and request.anonymous_id is None
    why_not = (
        allowed.unavailable
        or (None if allowed.personalized else "consent")
        or ("no_user" if names_nobody and not request.recent_events else None)
        or (None if rows else empty)
    )
    return list_slate(
        iter([Rung(name, rows, source)] if rows else []),
        own=name,
        wanted=request.num_results,
        eligible=eligible,
        catalogue=catalogue,
        tell=tell,
        why_not=why_not,
        personalized=allowed.personalized,
        session=session,
        whole=True,
    )
