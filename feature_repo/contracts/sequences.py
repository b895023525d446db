"""Sequences that cannot be: what several events of one subject say together, each of them good by itself.

Nothing here is quarantined. A verdict on a sequence can change with the next delivery (the purchase that a refund lacks
may be on its way), and what is quarantined is out of everything; so such an event is kept, marked in
silver.quality_flags, and shown. Only an order told twice is also left out of what is learned from.

The night judges (`spark_jobs.transforms.sequences`; a test holds the two to each other): it knows a subject's history,
and late deliveries have arrived. What each rule means in a shop is in infra/docs/event-quality.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from feature_repo.contracts.events import EventType
from feature_repo.contracts.regions import named_region


class SequenceRule(StrEnum):
    """Stable words: they are stored and shown."""

    REFUND_WITHOUT_PURCHASE = "refund_without_purchase"
    """No purchase of that item by that subject, at that time or before."""
    REMOVAL_WITHOUT_ADDITION = "removal_without_addition"
    """remove_from_cart of an item that the subject never added."""
    ORDER_REPEATED = "order_repeated"
    """A purchase of an item under an order id that the subject's purchase of the same item had at an earlier instant.
    Lines of one order are of one instant."""
    SESSION_IN_TWO_REGIONS = "session_in_two_regions"
    """Less than a minute after an event of the same session in another region."""
    SESSION_TIME_BACKWARDS = "session_time_backwards"
    """More than 24 hours before an event of the same session that arrived earlier."""


NOT_LEARNED_FROM = frozenset({SequenceRule.ORDER_REPEATED})
"""An order counts once. A purchase never added to a cart is no rule at all: one-click buying is that."""

REGION_MICROS = 60_000_000
BACKWARDS_MICROS = 86_400_000_000

ORDER_FIELDS = ("order_id", "orderId", "transaction_id")
"""Where `properties` names the order: ours and Segment's, RudderStack's, GA4's."""


class SequenceEvent(NamedTuple):
    """What the rules look at; a row of silver.events. Times are microseconds since 1970."""

    event_id: str
    event_type: str
    subject_key: str
    item_id: str | None
    session_id: str | None
    micros: int
    received_micros: int
    source: str
    source_position: int
    properties: Mapping[str, Any]


class SequenceBreak(NamedTuple):
    """One rule that one event breaks."""

    event_id: str
    rule: SequenceRule


def order_of(properties: Mapping[str, Any]) -> str | None:
    """The order that an event names, or None."""
    return _first(properties, ORDER_FIELDS)


def region_of(properties: Mapping[str, Any]) -> str | None:
    """The region that an event names (`context` lies in the properties of a stored event), or None."""
    return named_region(properties.get("context"))


def _first(fields: Mapping[str, Any], paths: Iterable[str]) -> str | None:
    for path in paths:
        value: Any = fields
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def find_breaks(events: Iterable[SequenceEvent]) -> set[SequenceBreak]:
    """Every rule that each of these events breaks; events of any subjects, in any order.

    By event time, except for SESSION_TIME_BACKWARDS, which goes by arrival. Ties break by source and position.
    """
    rows = list(events)
    by_time = sorted(rows, key=lambda e: (e.micros, e.source, e.source_position, e.event_id))
    by_arrival = sorted(rows, key=lambda e: (e.received_micros, e.source, e.source_position, e.event_id))
    return {*_without_a_first(by_time), *_repeated_orders(by_time), *_two_regions(by_time), *_backwards(by_arrival)}


def _without_a_first(by_time: list[SequenceEvent]) -> Iterable[SequenceBreak]:
    for kind, earlier, rule in (
        (EventType.REFUND, EventType.PURCHASE, SequenceRule.REFUND_WITHOUT_PURCHASE),
        (EventType.REMOVE_FROM_CART, EventType.ADD_TO_CART, SequenceRule.REMOVAL_WITHOUT_ADDITION),
    ):
        first: dict[tuple[str, str | None], int] = {}
        for e in by_time:
            if e.event_type == earlier:
                first.setdefault((e.subject_key, e.item_id), e.micros)
        for e in by_time:
            if e.event_type == kind and first.get((e.subject_key, e.item_id), e.micros + 1) > e.micros:
                yield SequenceBreak(e.event_id, rule)


def _repeated_orders(by_time: list[SequenceEvent]) -> Iterable[SequenceBreak]:
    first: dict[tuple[str, str, str | None], int] = {}
    for e in by_time:
        order = order_of(e.properties) if e.event_type == EventType.PURCHASE else None
        if order is not None and first.setdefault((e.subject_key, order, e.item_id), e.micros) < e.micros:
            yield SequenceBreak(e.event_id, SequenceRule.ORDER_REPEATED)


def _two_regions(by_time: list[SequenceEvent]) -> Iterable[SequenceBreak]:
    last: dict[tuple[str, str], tuple[int, str]] = {}
    for e in by_time:
        region = region_of(e.properties)
        if e.session_id is None or region is None:
            continue
        before = last.get((e.subject_key, e.session_id))
        if before is not None and before[1] != region and e.micros - before[0] < REGION_MICROS:
            yield SequenceBreak(e.event_id, SequenceRule.SESSION_IN_TWO_REGIONS)
        last[e.subject_key, e.session_id] = (e.micros, region)


def _backwards(by_arrival: list[SequenceEvent]) -> Iterable[SequenceBreak]:
    newest: dict[tuple[str, str], int] = {}
    for e in by_arrival:
        if e.session_id is None:
            continue
        so_far = newest.get((e.subject_key, e.session_id), e.micros)
        if e.micros < so_far - BACKWARDS_MICROS:
            yield SequenceBreak(e.event_id, SequenceRule.SESSION_TIME_BACKWARDS)
        newest[e.subject_key, e.session_id] = max(so_far, e.micros)
