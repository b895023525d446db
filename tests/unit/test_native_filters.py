"""Slates that filters leave something out of, and those of `search` and `raw`, are in native code those of their twin:
the slate to the last bit, answer and decision to the last byte."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.packing import ItemMark, pack_session
from feature_repo.contracts.session_record import CartChange
from serving.adapters.online import OnlineRecords
from serving.native import parts
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.item_facts import ItemFacts
from serving.pipeline.live_items import write_values
from serving.pipeline.placements import PRESETS, Placements
from serving.pipeline.policy import EXCLUDE, KEEP, SESSION, SlatePolicy, SlateRules
from serving.pipeline.values import Person, Slate, SlateRequest, Tuning
from tests.serving_builders import Shop
from tests.unit.test_native_answers import SEGMENTS, TIMES, BothWays, asking, packed
from tests.unit.test_native_ruled import DAY, _showings
from tests.unit.test_native_slates import NOW, SECOND, Both, question, shop

pytestmark = pytest.mark.skipif(parts.slates is None, reason="serving/native is not compiled (make setup)")

OF_ITEMS = (
    'not category == "D"', 'category in ["A", "D"]', 'brand == "x"', 'not brand in ["x", "y"]', "price < 3",
    'price is null or tag == "gift"', 'created_at > ago("30d")', 'attributes.size >= 2', "true", 'category == "A > B"',
)  # fmt: skip
OF_PEOPLE = ("not in_session(item)", "not in_cart(item) and price < 9", 'not bought_within("30d") or brand == "x"',
             'seen_within("2d") or not category == "D"')  # fmt: skip


def _facts(drawn: random.Random, catalogue: Catalogue) -> Catalogue:
    """Columns that filters ask for, with gaps; at times none of one."""
    size = len(catalogue.item_ids)
    for number, facts in enumerate(catalogue.attributes):
        if facts is not None:
            price = drawn.choice([None, 1.0, 2.99, 3.0, 8.0])
            catalogue.attributes[number] = {**facts, "price": price}
    created = [drawn.choice([None, NOW - 30 * DAY + drawn.randrange(-1, 3) * SECOND]) for _ in range(size)]
    newest = [(number, micros) for number, micros in enumerate(created) if micros is not None]
    facts_ = ItemFacts(
        brand=[drawn.choice(["x", "y", "z", "", None]) for _ in range(drawn.choice([0, size, size]))],
        tags=[drawn.choice([(), ("gift",), ("gift", "new")]) for _ in range(size)],
        created_micros=created,
        attributes=[drawn.choice([None, '{"size": 2}', '{"size": "2"}']) for _ in range(size)],  # type: ignore[arg-type]
    )
    return replace(
        catalogue, facts=facts_, newest=sorted(newest, key=lambda row: -row[1]), remembered={}, bound_filters={}
    )  # fmt: skip


def _policy(drawn: random.Random, *, anybody: bool = False) -> SlatePolicy:
    """One that arranges nothing."""
    of_item = drawn.choice(OF_ITEMS)
    text = drawn.choice([None, of_item, of_item, of_item if anybody else drawn.choice(OF_PEOPLE)])
    rules = SlateRules(
        filter=drawn.choice([None, None, drawn.choice(OF_ITEMS)]),
        seen=drawn.choice([SESSION, KEEP] if anybody else [SESSION, KEEP, "2d"]),
        bought=drawn.choice([EXCLUDE, KEEP] if anybody else [EXCLUDE, KEEP, "7d"]),
        frequency_cap=None if anybody else drawn.choice([None, None, 3]),
    )
    name = "shelf"
    if drawn.random() < 0.3:
        name = drawn.choice(["search", "raw"])
        rules = PRESETS[name].rules
    return SlatePolicy(rules, name, filter=text, reasons=drawn.random() < 0.8, seed="id1")


def test_random_policies_get_the_same_slates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, both = random.Random(20240401), Both(monkeypatch)
    rungs: set[str] = set()
    for at in range(16):
        sold = shop(drawn)
        catalogue = _facts(drawn, sold.catalogue(tmp_path / str(at)))
        for _ in range(60):
            request, person, tuning, now = question(drawn, sold.numbers)
            request.policy = _policy(drawn)
            _know(drawn, person, [*sold.numbers, "unknown"])
            found = both.ask(request, person, catalogue, tuning, now)
            if isinstance(found, Slate) and len(found.items) == request.num_results:
                rungs |= {report.rung for report in found.rungs if report.eligible}
                assert found.policy == {"placement": request.policy.placement}
            if drawn.random() < 0.2:
                price = drawn.choice([None, 1.0, 5.0])
                write_values(catalogue, drawn.choice(list(sold.numbers.values())), {"price": price})
    assert both.native_answers > 250  # the others are short, or odd
    assert rungs >= {"personal", "segment", "category", "region", "filtered_category", "popular", "static"}


def _know(drawn: random.Random, person: Person, names: list[str]) -> None:
    """What filters ask of somebody."""
    _showings(drawn, person, names)
    state = person.session
    state.cart = [CartChange(NOW - SECOND, drawn.random() < 0.3, 1, drawn.choice(names)) for _ in range(4)]
    state.bought += [ItemMark(NOW - drawn.choice([1, 29, 31]) * DAY, drawn.choice(names)) for _ in range(3)]
    state.bought += [ItemMark(drawn.choice([-5, -1, 0]), drawn.choice(names))]


def test_random_policies_get_the_same_bytes(tmp_path: Path, environment: Environment) -> None:
    drawn, both = random.Random(20240402), BothWays(environment)
    given = with_filter = 0
    for at in range(30):
        sold = shop(drawn)
        catalogue = _facts(drawn, sold.catalogue(tmp_path / str(at)))
        names = [*sold.numbers, "unknown"]
        for _ in range(50):
            request, person, _, _ = question(drawn, sold.numbers)
            request.recent_events = ()
            request.policy = _policy(drawn, anybody=drawn.random() < 0.9)
            _know(drawn, person, names)
            records = OnlineRecords(
                catalogue.version,
                packed(catalogue, person.candidates),  # type: ignore[arg-type]
                drawn.choice([None, *[pack_session(person.session)] * 4]),
                drawn.choice([None, *SEGMENTS[:3]]),
                TIMES[0],
            )
            answer = both.ask(asking(request, may_store=drawn.random() < 0.9), catalogue, records)
            given += answer is not None
            with_filter += answer is not None and request.policy.filter is not None
    assert given == both.at_once > 250  # the others are short, odd, or ask about somebody
    assert with_filter > 80


def test_a_filter_that_asks_about_somebody_is_for_the_steps(environment: Environment, tmp_path: Path) -> None:
    both = BothWays(environment)
    catalogue = Shop({f"i{at}": {} for at in range(9)}, popular=[(f"i{at}", 9.0 - at) for at in range(9)]).catalogue(
        tmp_path
    )
    policy = Placements().policy("default", seed="id1", filter="not in_cart(item)")
    asked, empty = asking(SlateRequest(3, "u1", policy=policy)), OnlineRecords(catalogue.version)
    answer = both.ask(asked, catalogue, empty)  # nobody has a cart
    assert answer is not None
    assert b'"item_id":"i0"' in answer
    with_cart = pack_session(replace(question(random.Random(1), {"i0": 0})[1].session, events=[], cart=[
        CartChange(NOW - SECOND, False, 1, "i0")]))  # fmt: skip
    assert both.ask(asked, catalogue, OnlineRecords(catalogue.version, None, with_cart)) is None
    policy = replace(policy, rules=SlateRules(diversity=0.5), filter=None)  # type: ignore[type-var]
    assert both.ask(asking(SlateRequest(3, "u1", policy=policy)), catalogue, empty) is not None


@pytest.mark.parametrize("preset", ["search", "raw"])
def test_presets_that_arrange_nothing_are_native(preset: str, environment: Environment, tmp_path: Path) -> None:
    """What was touched and bought stays; what was dismissed leaves."""
    both = BothWays(environment)
    catalogue = Shop({f"i{at}": {} for at in range(9)}, popular=[(f"i{at}", 9.0 - at) for at in range(9)]).catalogue(
        tmp_path
    )
    state = question(random.Random(1), {"i0": 0})[1].session
    record = pack_session(replace(state, events=[], bought=[ItemMark(1, "i0")], dismissed=[ItemMark(1, "i1")]))
    policy = Placements().policy(preset, seed="id1")
    asked = asking(SlateRequest(3, "u1", policy=policy))
    answer = both.ask(asked, catalogue, OnlineRecords(catalogue.version, None, record))
    assert answer is not None
    assert [f'"item_id":"i{at}"'.encode() in answer for at in range(5)] == [True, False, True, True, False]
    assert (b'"reasons":[]' in answer) is (preset == "search")


def test_columns_of_another_size_are_left_to_the_twin(tmp_path: Path) -> None:
    catalogue = Shop({"a": {}, "b": {}}, popular=[("a", 2.0), ("b", 1.0)]).catalogue(tmp_path)
    compiled: Any = parts.slates

    def chosen(filters: list[Any]) -> Any:
        request, person = SlateRequest(1), Person()
        return compiled.choose(request, person, [], catalogue, Tuning(), NOW, {}, filters, [])

    class Wrong:
        known, apart = bytearray(1), frozenset[int]()

    assert chosen([]) is not None
    assert chosen([Wrong()]) is None
