"""Items that the shop puts while a version is served that does not have them.

A version that is held has numbers to spare behind its own (`make_room`). An item that is put gets the first free one,
and its facts are written into the columns there: so it is an item like others, in lists, filters and records of people,
until a version comes that has it. Of such an item category, price, stock, validity, title and `created_at` are known:
no neighbours, no popularity, no brand, tags or attributes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, cast

from feature_repo.contracts.changes import RecordState
from feature_repo.contracts.times import parse_timestamp, to_micros
from serving.pipeline.catalogue import Catalogue, Refusals
from serving.pipeline.item_facts import category_levels
from serving.pipeline.live_items import CATEGORY, CREATED_AT, WRITTEN_FIELDS, is_built_in, write_item, write_values
from serving.pipeline.new_items import enter_new, forget_new

MAX_ARRIVALS = 10_000
"""Items that a version takes in beyond its own, for as long as it is held; further ones wait for the next night. Room
for so many takes 1 MB a version, and a byte each for every filter that it keeps ready."""
_HIDDEN = "is_hidden"


def make_room(catalogue: Catalogue, size: int) -> None:
    """Let a version take in so many items beyond its own. Before anybody is answered from it: columns grow."""
    count = len(catalogue.item_ids)
    facts = catalogue.facts
    columns: list[Any] = [catalogue.item_ids, catalogue.attributes, catalogue.stocks]
    columns += [facts.brand, facts.language, facts.group_id, facts.currency, facts.tags, facts.created_micros]
    for column in columns:
        if len(column) == count:  # a bundle of before there was such a column has none of it
            column.extend([() if column is facts.tags else None] * size)
    cast(Refusals, catalogue.refusals).make_room(size)
    arrivals = catalogue.arrivals
    arrivals.first = arrivals.next = count
    arrivals.end = count + size


def write_change(catalogue: Catalogue, item_id: str, state: RecordState) -> None:
    """Bring one item of a version up to date; one that it does not have arrives, if it was put.

    Not taken in: what was only changed, what is hidden (DELETE says so) before it has ever come, what the night that
    made the version knew and left out, and what finds no room.
    """
    arrivals = catalogue.arrivals
    number = catalogue.numbers.get(item_id)
    if number is not None and number < arrivals.first:
        write_item(catalogue, item_id, state)
        return
    if number is None:
        whole = state.whole
        if whole is None or state.put_value(_HIDDEN) or is_built_in(catalogue, whole) or arrivals.next == arrivals.end:
            return
        number = _enter(catalogue, item_id)
    _write(catalogue, number, state)


def _enter(catalogue: Catalogue, item_id: str) -> int:
    """Give an item the next number."""
    arrivals = catalogue.arrivals
    number, arrivals.next = arrivals.next, arrivals.next + 1
    cast(list[str | None], catalogue.item_ids)[number] = item_id
    cast(dict[str, int], catalogue.numbers)[item_id] = number
    catalogue.attributes[number] = {"title": None, "category": None, "price": None}
    columns = catalogue.remember("native").get("columns")
    if columns:
        columns.arrive(number)
    return number


def _write(catalogue: Catalogue, number: int, state: RecordState) -> None:
    """What is known of an item that has arrived. Of one whose PUT was forgotten meanwhile: what was said since."""
    names: Iterable[str] = (*WRITTEN_FIELDS, CATEGORY, CREATED_AT)
    if state.whole is not None:
        said = {name: state.put_value(name) for name in names}
    else:
        said = {name: word[0] for name in names if (word := state.word(name)) is not None}
    if CATEGORY in said:
        _move(catalogue, number, said.pop(CATEGORY) or None)
    created = said.pop(CREATED_AT, None)
    if created is not None:
        _date(catalogue, number, to_micros(parse_timestamp(created)), is_told=True)
    elif state.whole is not None:
        _date(catalogue, number, state.whole.at_micros, is_told=False)
    if state.whole is not None:
        catalogue.arrivals.put_micros = max(catalogue.arrivals.put_micros, state.whole.at_micros)
    write_values(catalogue, number, said)
    for kept in catalogue.bound_filters.values():
        kept.forget(number)


def _move(catalogue: Catalogue, number: int, category: str | None) -> None:
    """Let the item be in this category."""
    before = catalogue.category(number)
    if category == before:
        return
    members = cast(dict[str, Any], catalogue.facts.members.get(CATEGORY, {}))
    for level in category_levels(before):
        if level in members:
            members[level].remove(number)
    for level in category_levels(category):
        members.setdefault(level, array("I")).append(number)
    catalogue.attributes[number] = {**(catalogue.attributes[number] or {}), CATEGORY: category}
    shelves = catalogue.remember("native").get("shelves")
    if shelves is not None:
        shelves.forget_category(number)
    if number in catalogue.arrivals.micros:
        forget_new(catalogue)


def _date(catalogue: Catalogue, number: int, micros: int, *, is_told: bool) -> None:
    """Let the item be as new as this. `is_told`: the shop said so; else it is when it was put."""
    if number < len(catalogue.facts.created_micros):
        catalogue.facts.created_micros[number] = micros if is_told else None
    known, newest = catalogue.arrivals.micros, cast(list[tuple[int, int]], catalogue.newest)
    if known.get(number) == micros:
        return
    if number in known:
        newest.remove((number, known[number]))
        forget_new(catalogue)
    known[number] = micros
    at = bisect_right(newest, -micros, key=lambda row: -row[1])
    while at and newest[at - 1][1] == micros and _comes_behind(catalogue, newest[at - 1][0], number):
        at -= 1
    newest.insert(at, (number, micros))
    enter_new(catalogue, at, number, micros)
    catalogue.remember("untried items").clear()


def _comes_behind(catalogue: Catalogue, other: int, number: int) -> bool:
    """Of two items of one time: those of the version first, then by id, whichever was put first."""
    return other >= catalogue.arrivals.first and catalogue.item_id(other) > catalogue.item_id(number)
