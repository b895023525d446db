"""The rule table of `events` for the shape that nearly every event has, without the price of the whole table.

`check_common_event` says yes to what is plainly well-formed and gives exactly what `check_event` would give; about all
else it says nothing, and the caller asks `check_event`. It never rejects. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, NamedTuple

from feature_repo.contracts.events import (
    EVENT_FIELDS,
    EVENT_TYPES,
    ITEM_REQUIRED,
    MAX_ID_BYTES,
    TWO_IDS_REQUIRED,
)
from feature_repo.contracts.times import EARLIEST_EVENT

MAX_SHAPES = 1024
"""So many lists of fields are remembered; when there are more, all are forgotten."""

TEXTS = frozenset(
    {
        "event_id", "user_id", "anonymous_id", "session_id", "item_id", "currency", "recommendation_id", "placement",
        "page_view_id", "channel",
    }
)  # fmt: skip
FLAT_FIELDS = frozenset({"context", "properties"})
_KNOWN = TEXTS | FLAT_FIELDS | {"event_type", "timestamp", "value", "quantity", "price"}
COMMON_TYPES = EVENT_TYPES - {kind.value for kind in TWO_IDS_REQUIRED}
COMMON_TYPES_WITHOUT_ITEM = COMMON_TYPES - {kind.value for kind in ITEM_REQUIRED}
"""Of the types that `check_common_event` knows, those that mean something without an item."""
_LARGEST = 2**63


class Shape(NamedTuple):
    """What is the same for all events with these fields, in this order."""

    fields: Sequence[str]
    is_ordered: bool
    texts: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    types: frozenset[str]
    numbers: Sequence[str]
    flat: Sequence[str]


_shapes: dict[tuple[str, ...], Shape] = {}


def check_common_event(event: dict[str, Any], *, latest: datetime) -> dict[str, Any] | None:
    """The event as `check_event` normalises it, or None: ask there. The argument stays as it is.

    `event` is an object of parsed JSON; `latest` is `received_at` + MAX_FUTURE_SKEW.
    """
    keys = tuple(event)
    shape = _shapes.get(keys)
    if shape is None:
        shape = _learn(keys)
        if shape is None:
            return None
    texts = shape.texts(event)
    try:
        joined = "".join(texts)
        moment = datetime.fromisoformat(event["timestamp"])
    except (TypeError, ValueError):
        return None
    if (
        not joined.isascii()
        or not all(texts)
        or "\x00" in joined
        or (len(joined) > MAX_ID_BYTES and max(map(len, texts)) > MAX_ID_BYTES)
        or moment.tzinfo is not UTC
        or not EARLIEST_EVENT <= moment <= latest
    ):
        return None
    kind = event["event_type"]
    if type(kind) is not str or kind not in shape.types:
        return None
    for name in shape.numbers:
        if not is_good_number(name, event[name]):
            return None
    for name in shape.flat:
        if not _is_flat(event[name]):
            return None
    good = event.copy() if shape.is_ordered else {name: event[name] for name in shape.fields}
    good["timestamp"] = moment
    return good


def is_good_number(name: str, value: object) -> bool:
    if name == "quantity":
        return type(value) is int and 0 < value < 2**31
    if type(value) is float:
        is_good = value - value == 0.0  # neither infinite nor NaN
    else:
        is_good = type(value) is int and -_LARGEST < value < _LARGEST
    return is_good and (name == "value" or value >= 0)  # type: ignore[operator]


def _is_flat(value: object) -> bool:
    return type(value) is dict and not any(isinstance(inner, (dict, list)) for inner in value.values())


def _learn(keys: tuple[str, ...]) -> Shape | None:
    """The shape of these fields; None when the whole table has to look at such events."""
    is_common = (
        _KNOWN.issuperset(keys)
        and {"event_id", "event_type", "timestamp"}.issubset(keys)
        and ("user_id" in keys or "anonymous_id" in keys)
    )
    if not is_common:
        return None
    if len(_shapes) >= MAX_SHAPES:
        _shapes.clear()
    fields = tuple(name for name in EVENT_FIELDS if name in keys)
    _shapes[keys] = shape = _shape_of(fields, fields == keys)
    return shape


def _shape_of(fields: Sequence[str], is_ordered: bool) -> Shape:
    return Shape(
        fields,
        is_ordered,
        itemgetter(*(name for name in fields if name in TEXTS)),
        frozenset(COMMON_TYPES if "item_id" in fields else COMMON_TYPES_WITHOUT_ITEM),
        tuple(name for name in fields if name in ("value", "quantity", "price")),
        tuple(name for name in fields if name in FLAT_FIELDS),
    )
