"""One item as the shop has changed it, written into a catalogue."""

from __future__ import annotations

from typing import Any

from feature_repo.contracts.changes import RecordState, Stamp
from feature_repo.contracts.times import parse_timestamp, to_micros
from serving.pipeline.catalogue import Catalogue, Stock

AVAILABLE_TIME = "attributes.available_time"
CATEGORY, CREATED_AT = "category", "created_at"
WRITTEN_FIELDS = frozenset(
    {"availability", "available_quantity", "is_hidden", "price", "title", "expire_time", AVAILABLE_TIME}
)
"""What is written into every version that has the item."""
FIRST_FIELDS = frozenset({CATEGORY, CREATED_AT})
"""What is taken from changes too of items that no night has seen (`first_catalogue`, `arrivals`)."""

_SOLD_BEFORE = ("PREORDER", "BACKORDER")
"""Items that are sold before their available_time, and so may be shown."""


def write_item(catalogue: Catalogue, item_id: str, state: RecordState) -> None:
    """Bring one item of a version up to date; an item that it does not have stays unknown."""
    number = catalogue.numbers.get(item_id)
    if number is None:
        return
    said: dict[str, Any] = {}
    for name in WRITTEN_FIELDS:
        word = state.word(name)
        if word is not None and not is_built_in(catalogue, word[1]):
            said[name] = word[0]
    write_values(catalogue, number, said)


def write_values(catalogue: Catalogue, number: int, said: dict[str, Any]) -> None:
    """Bring one item up to date with these of WRITTEN_FIELDS."""
    stock = catalogue.stocks[number] or Stock(None, None, False)
    catalogue.stocks[number] = stock = Stock(
        said.get("availability", stock.availability),
        said.get("available_quantity", stock.quantity),
        bool(said.get("is_hidden", stock.is_hidden)),
    )
    catalogue.refusals[number] = stock.refusal()
    facts: dict[str, Any] = {name: said[name] for name in ("title", "price") if name in said}
    if facts:
        catalogue.attributes[number] = {**(catalogue.attributes[number] or {}), **facts}
    if said.get(AVAILABLE_TIME) is not None and stock.availability in _SOLD_BEFORE:
        said = {**said, AVAILABLE_TIME: None}
    for name, times in (("expire_time", catalogue.expire_micros), (AVAILABLE_TIME, catalogue.available_micros)):
        if name in said and said[name] is None:
            times.pop(number, None)
        elif name in said:
            times[number] = to_micros(parse_timestamp(said[name]))
    catalogue.forget(number)


def is_built_in(catalogue: Catalogue, stamp: Stamp) -> bool:
    """The night that made the version knew a change of this stamp."""
    return stamp.position <= catalogue.changes_position and stamp.at_micros < catalogue.as_of_micros
