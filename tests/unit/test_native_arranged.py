"""An arranged answer and its decision, written by native code in one call, are the bytes of the steps."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.packing import FLAG_BOT, pack_session
from serving.adapters.online import OnlineRecords
from serving.native import described, parts
from serving.pipeline.placements import Placements
from serving.pipeline.policy import NO_RULES, OFF, SlatePolicy, SlateRules
from serving.pipeline.values import SlateRequest
from tests.serving_builders import Shop
from tests.unit.test_native_answers import SEGMENTS, TIMES, BothWays, asking, packed, session
from tests.unit.test_native_ruled import DAY, _facts, _policy, _showings
from tests.unit.test_native_slates import NOW, question, shop

pytestmark = pytest.mark.skipif(parts.arranged is None, reason=f"serving answers from {described()}")

PRESETS = ("home", "email", "product_page", "search", "raw", "cart")


@pytest.fixture
def both(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> BothWays:
    monkeypatch.setattr(parts, "ruled", None)  # the steps are the twin's
    return BothWays(environment)


def _newest(drawn: random.Random, numbers: dict[str, int]) -> list[tuple[int, int]]:
    """Some items made within two months."""
    some = drawn.sample(list(numbers.values()), drawn.choice([0, 3, len(numbers)]))
    return sorted(((n, NOW - drawn.randrange(60) * DAY) for n in some), key=lambda row: (-row[1], row[0]))


def test_random_policies_get_the_same_bytes(tmp_path: Path, both: BothWays) -> None:
    drawn = random.Random(20240311)
    placements, explored, new, levels = Placements(), 0, 0, Counter[str]()
    for at in range(40):
        sold = shop(drawn)
        catalogue = sold.catalogue(tmp_path / str(at))
        catalogue = replace(
            catalogue, facts=_facts(drawn, len(catalogue.item_ids)), remembered={}, bound_filters={},
            newest=_newest(drawn, sold.numbers),
        )  # fmt: skip
        for _ in range(60):
            request, person, _, _ = question(drawn, sold.numbers)
            if drawn.random() < 0.8:
                request.recent_events = ()
            request.num_results = drawn.choice([1, 2, 3, 5])
            request.policy = _policy(drawn)
            if drawn.random() < 0.6:  # without what is the twin's
                plain = replace(request.policy.rules, filter=None, seen="session", frequency_cap=None)
                request.policy = replace(request.policy, rules=plain, filter=None)
            if drawn.random() < 0.3:
                request.policy = placements.policy(drawn.choice(PRESETS), seed="id1")
            if request.policy is not None and drawn.random() < 0.4:
                rules = request.policy.rules
                rules = replace(rules, exploration=0.9, exploration_new=drawn.choice([0.3, 1.0]))
                request.policy = replace(request.policy, rules=rules)
            _showings(drawn, person, [*sold.numbers, "unknown"])
            state = replace(person.session, flags=drawn.choice([0] * 9 + [FLAG_BOT]))
            records = OnlineRecords(
                catalogue.version,
                packed(catalogue, person.candidates),  # type: ignore[arg-type]
                None if drawn.random() < 0.3 else pack_session(state),
                drawn.choice(SEGMENTS),
                drawn.choice(TIMES),
            )
            answer = both.ask(asking(request, may_store=drawn.random() < 0.9), catalogue, records)
            if answer is not None:
                assert request.policy is not None
                explored += request.policy.rules.exploration > 0
                new += b'"source":"new"' in answer
                levels[orjson.loads(answer)["fallback_level"]] += 1
    assert both.at_once > 250  # the others are short, odd, filtered, or somebody's who said no
    assert explored > 40
    assert new > 3
    assert levels.keys() >= {"personal", "segment", "category", "region", "popular"}


def test_a_policy_that_asks_for_more_is_left_to_the_steps(tmp_path: Path, both: BothWays) -> None:
    names = [f"i{at}" for at in range(30)]
    catalogue = Shop(
        {name: {} for name in names}, popular=[(name, 30.0 - at) for at, name in enumerate(names)]
    ).catalogue(tmp_path)
    records = OnlineRecords(catalogue.version, None, session((90, "i1")))
    diverse = SlateRules(diversity=0.3)
    for rules, is_here in (
        (diverse, True),
        (replace(diverse, seen="keep", bought="keep"), True),
        (replace(diverse, seen="7d"), False),
        (replace(diverse, bought="7d"), False),
        (replace(diverse, frequency_cap=2), False),
        (replace(diverse, ranker="published"), False),
        (replace(diverse, filter='not brand == "x"'), True),
        (replace(diverse, filter="not in_cart(item)"), False),
        (NO_RULES, True),  # `answers` does these
        (OFF, True),
    ):
        policy = SlatePolicy(rules, "home", seed="id1")
        answer = both.ask(asking(SlateRequest(3, "u1", policy=policy)), catalogue, records)
        assert (answer is not None) is is_here, rules
    policy = SlatePolicy(diverse, "home", seed="id1", item_ids=("i1", "i2", "i3"))
    assert both.ask(asking(SlateRequest(1, "u1", policy=policy)), catalogue, records) is None
    unknown = SlatePolicy(diverse, "default", is_known=False, reasons=False, seed="id1")
    answer = both.ask(asking(SlateRequest(3, "u1", policy=unknown)), catalogue, records)
    assert answer is not None
    assert [item["reasons"] for item in orjson.loads(answer)["items"]] == [[], [], []]


def test_new_items_are_explored_alike(tmp_path: Path, both: BothWays) -> None:
    drawn = random.Random(5)
    names = [f"i{at}" for at in range(90)]
    popular = [(name, 90.0 - at) for at, name in enumerate(names[:40])]
    facts = {name: {"group_id": f"g{at // 2}", "brand": "x", "is_hidden": at % 9 == 0} for at, name in enumerate(names)}
    sold = Shop(facts, popular=popular)
    days = {name: drawn.randrange(45) for name in names}  # older than 30 days is not new
    new = 0
    for at, some in enumerate((names, names[30:45], names[:40], names[60:62])):
        catalogue = sold.catalogue(tmp_path / str(at))
        newest = sorted(((sold.numbers[n], NOW - days[n] * DAY) for n in some), key=lambda row: (-row[1], row[0]))
        catalogue = replace(catalogue, newest=newest, remembered={})
        for number in range(60):
            rules = SlateRules(
                exploration=0.6, exploration_new=drawn.choice([0.0, 0.5, 1.0]), one_per_group=drawn.random() < 0.5,
                min_relevance=drawn.choice([0.0, 0.0, 0.0, 0.01]), rotation=0.1,
            )  # fmt: skip
            policy = SlatePolicy(rules, "home", seed=f"id{number}")
            records = OnlineRecords(catalogue.version, None, session((90, "i50"), (30, "i31")))
            request = SlateRequest(drawn.choice([1, 4, 8]), "u1", policy=policy)
            answer = both.ask(asking(request), catalogue, records)
            assert answer is not None
            new += answer.count(b'"source":"new"')
    assert new > 60
