"""Items that come while a version is served: their places among the newest, their bounds, what filters say of them; and
native code, which has looked into the version before they came, gives the bytes of its twin."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.changes import DELETE, ITEMS, PATCH, PUT, RecordState
from feature_repo.contracts.environment import Environment
from serving.adapters.online import OnlineRecords
from serving.api.pages import Place
from serving.native import described, parts
from serving.pipeline.arrivals import make_room, write_change
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.item_facts import members_by_value
from serving.pipeline.item_filters import PersonFacts, item_filter, matching_numbers, parse_filter, personal_filter
from serving.pipeline.new_items import fresh_items, new_in_words
from serving.pipeline.overlay import CatalogueOverlay
from serving.pipeline.untried import untried_items
from tests.serving_builders import Shop
from tests.unit.test_catalogue_overlay import NOON_MICROS, change
from tests.unit.test_native_answers import SEGMENTS, TIMES, packed
from tests.unit.test_native_pages import BothPages, _newest, _places, _record, _votes
from tests.unit.test_native_ruled import _facts
from tests.unit.test_native_slates import question, shop


def sold() -> Shop:
    return Shop(
        {
            "cup": {"title": "Cup", "category": "Home > Tea", "price": 3.0, "created_at": "2024-03-07T00:00:00Z"},
            "hoe": {"title": "Hoe", "category": "Garden", "created_at": "2024-03-01T00:00:00Z", "brand": "Acme"},
            "pan": {"title": "Pan", "category": "Home"},
        },
        first_number=2,
    )


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return sold().catalogue(tmp_path)


class Shopkeeper:
    """Says what is to be said of items, to an overlay with one version."""

    def __init__(self, catalogue: Catalogue, room: int) -> None:
        self.catalogue, self.overlay, self.position = catalogue, CatalogueOverlay(room=room), 0

    def say(self, operation: str, record: Any) -> None:
        self.position += 1
        self.overlay.take(change(operation, record), self.position)

    def newest(self) -> list[str]:
        return [self.catalogue.item_id(number) for number, _ in self.catalogue.newest]


@pytest.fixture
async def keeper(catalogue: Catalogue) -> Shopkeeper:
    keeper = Shopkeeper(catalogue, 6)
    await keeper.overlay.attach(catalogue)
    return keeper


async def test_it_stands_among_the_newest_by_its_time_ties_by_id(keeper: Shopkeeper, catalogue: Catalogue) -> None:
    assert [catalogue.item_id(number) for number in untried_items(catalogue)] == keeper.newest() == ["cup", "hoe"]
    assert len(fresh_items(catalogue)) == 2
    assert new_in_words(2, catalogue, is_liked=False) == "new since 2024-03-07"
    for item_id, created in (("b", "2024-03-08T09:00:00Z"), ("c", "2024-03-07T00:00:00Z"), ("d", None),
                             ("a", "2024-03-08T09:00:00Z"), ("old", "2024-03-04T00:00:00Z")):  # fmt: skip
        keeper.say(PUT, {"item_id": item_id, "created_at": created, "category": "Home"})
    # d was put at noon; c is as old as the cup, which the version has: that comes first
    assert keeper.newest() == ["d", "a", "b", "cup", "c", "old", "hoe"]
    assert [catalogue.item_id(row[0]) for row in fresh_items(catalogue)] == keeper.newest()
    assert new_in_words(catalogue.numbers["old"], catalogue, is_liked=False) == "new since 2024-03-04"
    # as_of is the start of the 8th: a is 9 hours ahead of it, c a day old
    freshness = {catalogue.item_id(row[0]): row[2] for row in fresh_items(catalogue)}
    assert freshness["a"] == pytest.approx(2 ** (9 / 24 / 7))
    assert freshness["c"] == freshness["cup"] == pytest.approx(0.5 ** (1 / 7))
    assert [catalogue.item_id(number) for number in untried_items(catalogue)] == [
        "d", "a", "b", "cup", "c", "old", "hoe",
    ]  # fmt: skip
    keeper.say(PUT, {"item_id": "a", "created_at": "2024-03-02T00:00:00Z", "category": "Home"})
    keeper.say(PUT, {"item_id": "far", "created_at": "2094-03-02T00:00:00Z"})
    assert keeper.newest() == ["far", "d", "b", "cup", "c", "old", "a", "hoe"]
    assert [catalogue.item_id(row[0]) for row in fresh_items(catalogue)] == keeper.newest()
    assert fresh_items(catalogue)[0][2] == pytest.approx(2 ** (30 / 7))  # thirty days ahead, no more


async def test_what_is_no_item_does_not_come_and_the_room_is_bounded(keeper: Shopkeeper, catalogue: Catalogue) -> None:
    keeper.say(PATCH, {"item_id": "only changed", "price": 3})
    keeper.say(PUT, {"item_id": "hidden", "is_hidden": True})
    keeper.say(DELETE, "gone")
    assert set(catalogue.numbers) == {"cup", "hoe", "pan"}
    for at in range(8):
        keeper.say(PUT, {"item_id": f"n{at}"})
    assert [catalogue.numbers.get(f"n{at}") for at in range(8)] == [5, 6, 7, 8, 9, 10, None, None]
    assert (len(catalogue.item_ids), catalogue.number_end) == (11, 11)
    keeper.say(DELETE, "n0")
    assert catalogue.refusal(5, NOON_MICROS) == "hidden"
    keeper.say(PUT, {"item_id": "n0", "title": "Back"})
    assert (catalogue.refusal(5, NOON_MICROS), catalogue.title(5)) == (None, "Back")
    assert keeper.newest().count("n0") == 1
    assert "n0" in keeper.overlay._unknown  # a version that comes may have it: its record waits for that


async def test_a_version_takes_in_what_its_night_did_not_know(tmp_path: Path) -> None:
    """One item was put the day before as_of, and the night read the log further than that: it chose to leave it out."""
    shop_then = sold()
    shop_then.manifest.volatile["item_changes_position"] = 2  # type: ignore[index]
    catalogue = shop_then.catalogue(tmp_path)
    keeper = Shopkeeper(catalogue, 6)
    keeper.say(PUT, {"item_id": "left out", "updated_at": "2024-03-07T12:00:00Z"})
    keeper.say(PUT, {"item_id": "of today"})
    keeper.say(PUT, {"item_id": "too late", "updated_at": "2024-03-07T12:00:00Z"})
    await keeper.overlay.attach(catalogue)
    assert {"of today", "too late"} == set(catalogue.numbers) - {"cup", "hoe", "pan"}


async def test_filters_ask_it_about_what_is_known_alone(keeper: Shopkeeper, catalogue: Catalogue) -> None:
    def passing(text: str) -> list[str]:
        admits = item_filter(text, catalogue, now_micros=NOON_MICROS)
        return [catalogue.item_id(n) for n in sorted(matching_numbers(parse_filter(text), catalogue)) if admits(n)]

    texts = ('category == "Garden"', "price < 5", 'not brand == "Acme"', 'not attributes.colour == "red"', "price > 0")
    before = [passing(text) for text in texts]
    assert before == [["hoe"], ["cup"], ["cup", "pan"], ["cup", "hoe", "pan"], ["cup"]]
    keeper.say(PUT, {"item_id": "jug", "category": "Garden", "price": 4, "brand": "Zeta"})
    assert [passing(text) for text in texts] == [["hoe", "jug"], ["cup", "jug"], *before[2:4], ["cup", "jug"]]
    keeper.say(PUT, {"item_id": "jug", "category": "Home > Tea", "price": 7, "created_at": "2024-03-08T09:00:00Z"})
    assert [passing(text) for text in texts] == [["hoe"], ["cup"], *before[2:4], ["cup", "jug"]]
    assert passing('category == "Home > Tea"') == ["cup", "jug"]
    garden = 'category == "Garden"'
    assert not item_filter(garden, catalogue, now_micros=NOON_MICROS)(catalogue.numbers["jug"])
    assert list(matching_numbers(parse_filter(garden), catalogue)) == [catalogue.numbers["hoe"]]

    cart = PersonFacts(in_cart={"jug": 1})
    for text, expected in (("in_cart(item)", True), ('in_cart(item) and not brand == "Acme"', False)):
        of_nobody = item_filter(text, catalogue, now_micros=NOON_MICROS)
        mine = personal_filter(text, of_nobody, cart, now_micros=NOON_MICROS)
        assert mine(catalogue.numbers["jug"]) is expected


@pytest.mark.skipif(parts.pages is None, reason=f"serving answers from {described()}")
def test_native_code_that_looked_before_they_came_gives_the_same_bytes(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, drawn = BothPages(environment, monkeypatch), random.Random(20240313)
    shown = 0
    for at in range(12):
        offered = shop(drawn)
        catalogue = offered.catalogue(tmp_path / str(at))
        facts = _facts(drawn, len(catalogue.item_ids))
        groups = [
            group if item_id else None for group, item_id in zip(facts.group_id, catalogue.item_ids, strict=False)
        ]
        facts = replace(facts, group_id=groups, members=members_by_value((), (), (), groups))
        catalogue = replace(
            catalogue, facts=facts, newest=_newest(drawn, catalogue), remembered={}, bound_filters={}
        )  # fmt: skip
        make_room(catalogue, 8)
        states: dict[str, RecordState] = {}
        for step in range(40):
            names = [*offered.numbers, "unknown", *states]
            request, person, _, _ = question(drawn, offered.numbers)
            request.num_results, request.recent_events = 1, ()
            request.exclude_item_ids = frozenset(drawn.sample(names, drawn.choice([0, 0, 3])))
            both.votes = {window: _votes(drawn, names) for window in ("5m", "1h") if drawn.random() < 0.5}
            records = OnlineRecords(
                catalogue.version,
                packed(catalogue, person.candidates),  # type: ignore[arg-type]
                drawn.choice([None, *[_record(drawn, person.session, [*names, *[*states] * 9])] * 4]),
                drawn.choice([None, *SEGMENTS]),
                TIMES[0],
            )
            places = [*_places(drawn, names), Place("new", drawn.choice([1, 5, 12]), max_age_days=30.0)]
            found = both.page(request, places, catalogue, records, item_id=drawn.choice(names))
            for place in () if found is None else found["placements"]:
                shown += sum(item["item_id"] in states for item in place["items"])
            if step % 2:
                _change(drawn, catalogue, states, step)
        kept = fresh_items(catalogue)
        catalogue.remember("fresh items").clear()
        assert fresh_items(catalogue) == kept
    assert both.at_once > 200
    assert both.here > 450
    assert shown > 150


def _change(drawn: random.Random, catalogue: Catalogue, states: dict[str, RecordState], position: int) -> None:
    """Something is said of one of ten new items."""
    item_id = f"n{drawn.randrange(10)} new"
    fields: dict[str, Any] = {"item_id": item_id, "title": drawn.choice(["New", "Tie", None])}
    days = drawn.randrange(-1, 40)
    put = {**fields, "category": drawn.choice(["A", "A > B", "D", None]), "price": 2, "created_at": None}
    if drawn.random() < 0.7:
        put["created_at"] = f"2024-0{1 + (days % 2)}-{1 + days % 20:02d}T00:00:00Z"
    operation, record = drawn.choice(
        [(PUT, put)] * 3 + [(PATCH, {"item_id": item_id, "available_quantity": drawn.randrange(2)}), (DELETE, item_id)]
    )
    state = states.setdefault(item_id, RecordState())
    state.take(change(operation, record, ITEMS), position)
    write_change(catalogue, item_id, state)
