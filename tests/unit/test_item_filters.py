"""Filters over the columns of a version: what is remembered of an item is what a slow and obvious answer says, now."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.pipeline.catalogue import Catalogue, Stock
from serving.pipeline.first_catalogue import first_catalogue, with_votes
from serving.pipeline.item_facts import ItemFacts, TextColumn
from serving.pipeline.item_filters import (
    MAX_BOUND_FILTERS,
    MAX_REMEMBERED_BYTES,
    PersonFacts,
    item_filter,
    personal_filter,
)
from serving.pipeline.live_items import write_values
from tests.filter_cases import DAY, EXPRESSIONS, FIELDS, ITEMS, NOW, NUMBERS, Tree, holds


def catalogue_of(items: list[dict[str, Any]]) -> Catalogue:
    """The items as columns, numbered as they come; the first number has no item."""
    size = len(items) + 1
    rows: list[dict[str, Any]] = [{}, *items]
    created = [item.get("created_at") for item in rows]
    return replace(
        first_catalogue({}, now_micros=NOW),
        item_ids=[None, *(f"i{at}" for at in range(1, size))],
        numbers={f"i{at}": at for at in range(1, size)},
        attributes=[{"category": item.get("category"), "price": item.get("price")} for item in rows],
        stocks=[Stock(None, item.get("available_quantity"), False) for item in rows],
        refusals=[None] * size,
        newest=sorted(((n, at) for n, at in enumerate(created) if at is not None), key=lambda row: (-row[1], row[0])),
        facts=ItemFacts(
            brand=[item.get("brand") for item in rows],
            language=[item.get("language") for item in rows],
            tags=[item.get("tag", ()) for item in rows],
            created_micros=created,
            attributes=TextColumn(
                [json.dumps(item["attributes"]) if item.get("attributes") else None for item in rows]
            ),
        ),
        remembered={},
        bound_filters={},
    )


def shifted(tree: Tree, micros: int) -> Tree:
    """The tree of the same text so much later: ages count back from then."""
    match tree:
        case ("not", part):
            return ("not", shifted(part, micros))
        case ("and" | "or" as word, parts):
            return (word, [shifted(part, micros) for part in parts])
        case ("order", field, relation, bound) if "time" in FIELDS[field]:
            return ("order", field, relation, bound + micros)
    return tree


@settings(max_examples=200, deadline=None)
@given(
    st.lists(EXPRESSIONS, min_size=1, max_size=3),
    st.lists(ITEMS, min_size=1, max_size=6),
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, -1, DAY, -DAY, 30 * DAY, 31 * DAY]),
            st.booleans(),
            st.one_of(st.none(), st.sampled_from(NUMBERS)),
            st.one_of(st.none(), st.integers(0, 3)),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_what_is_remembered_holds(
    filters: list[tuple[str, Tree]], items: list[dict[str, Any]], requests: list[tuple[int, bool, Any, Any]]
) -> None:
    """Requests at one instant and another, of somebody and of nobody; before each the shop changes the first item."""
    catalogue = catalogue_of(items)
    known = [dict(item) for item in items]
    person = PersonFacts(
        in_cart={f"i{at}": 1 for at, item in enumerate(items, start=1) if item["in_cart"]} | {"unknown": 1},
        bought_at={f"i{at}": item["bought_at"] for at, item in enumerate(items, start=1) if item["bought_at"]},
    )
    for later, is_somebody, price, quantity in requests:
        known[0]["price"], known[0]["available_quantity"] = price, quantity
        write_values(catalogue, 1, {"price": price, "available_quantity": quantity})
        for text, tree in filters:
            passes: Any = item_filter(text, catalogue, now_micros=NOW + later)
            asked = known
            if is_somebody:
                passes = personal_filter(text, passes, person, now_micros=NOW + later)
            else:
                asked = [{**item, "in_cart": False, "bought_at": None} for item in known]
            expected = [holds(shifted(tree, later), item) for item in asked]
            assert [passes(at) for at in range(1, len(items) + 1)] == expected
            assert [passes(at) for at in range(1, len(items) + 1)] == expected  # as it is remembered


def test_many_items_of_one_age_are_asked_again() -> None:
    items = [{"created_at": NOW - 30 * DAY + at} for at in range(6_000)]
    catalogue = catalogue_of(items)
    for later in (0, 3_000, -1, 6_000, 2_999):
        passes = item_filter('created_at > ago("30d")', catalogue, now_micros=NOW + later)
        assert sum(passes(number) for number in range(1, 6_001)) == max(0, 5_999 - max(later, -1))


def test_those_that_were_asked_last_are_kept() -> None:
    catalogue = catalogue_of([{"price": 1.0}])
    standing = item_filter("price < 7", catalogue, now_micros=NOW)
    for number in range(2 * MAX_BOUND_FILTERS):
        item_filter(f"price < {number + 10}", catalogue, now_micros=NOW)
        assert item_filter("price < 7", catalogue, now_micros=NOW) is standing
    assert len(catalogue.bound_filters) == MAX_BOUND_FILTERS


def test_of_a_large_catalogue_fewer_are_kept() -> None:
    size = MAX_REMEMBERED_BYTES // 8
    catalogue = replace(catalogue_of([]), item_ids=[None] * size)
    for number in range(20):
        item_filter(f"price < {number}", catalogue, now_micros=NOW)
    assert sum(len(one.known) for one in catalogue.bound_filters.values()) <= MAX_REMEMBERED_BYTES
    assert len(catalogue.bound_filters) == 7


def test_a_first_catalogue_with_votes_knows_changes_of_the_plain_one() -> None:
    plain = catalogue_of([{"price": 9.0}])
    voted = with_votes(plain, {"i1": 3})
    assert not item_filter("price < 5", voted, now_micros=NOW)(1)
    write_values(plain, 1, {"price": 4.0})
    assert item_filter("price < 5", voted, now_micros=NOW)(1)
