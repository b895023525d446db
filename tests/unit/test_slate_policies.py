"""A slate under a policy, with numbers worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contracts.packing import NO_REASON, ItemMark, SessionEvent, SessionState, Source
from feature_repo.contracts.session_record import CartChange
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.diversity import SAME_BRAND, DiverseOrder, Likeness, category_likeness, discounted
from serving.pipeline.exploration import explore
from serving.pipeline.fatigue import Showings, fatigued, left_alone, shown_often
from serving.pipeline.live_items import write_values
from serving.pipeline.policy import KEEP, NO_RULES, OFF, SlatePolicy, SlateRules
from serving.pipeline.rotation import DAY_MICROS, rotated, rotation_seed
from serving.pipeline.slate import build_slate
from serving.pipeline.untried import untried_items
from serving.pipeline.values import Person, Row, Slate, SlateRequest, Tuning
from tests.serving_builders import Shop

SECOND = 1_000_000
NOW = 1_709_900_000 * SECOND  # 2024-03-08T12:13:20Z
DAY = DAY_MICROS
KITCHEN, HOME, TOYS = "Home > Kitchen", "Home", "Toys"

SHOP = Shop(
    {
        "mug_blue": {"category": KITCHEN, "price": 4.5, "brand": "Acme", "group_id": "mug", "tags": ["gift"]},
        "mug_red": {"category": KITCHEN, "price": 4.5, "brand": "Acme", "group_id": "mug"},
        "cup": {"category": KITCHEN, "price": 3.0, "brand": "Acme", "attributes": '{"colour": "white", "ml": 250}'},
        "pot": {"category": KITCHEN, "price": 20.0, "brand": "Bolt"},
        "lamp": {"category": HOME, "price": 35.0, "brand": "Bolt", "tags": ["gift", "adult"]},
        "rug": {"category": HOME, "price": None, "language": "de"},
        "ball": {"category": TOYS, "price": 2.0, "brand": "Acme", "created_at": "2024-03-07T00:00:00Z"},
        "kite": {"category": TOYS, "price": 9.0, "availability": "OUT_OF_STOCK"},
        "game": {"category": TOYS, "price": 30.0, "tags": ["adult"]},
        "odd": {"price": 1.0, "brand": "Rare"},  # on no list at all
    },
    neighbours={"cup": [("pot", 0.9)], "ball": [("game", 0.4)]},
    popular=[("ball", 8.0), ("lamp", 4.0)],
    by_category={TOYS: [("ball", 8.0), ("kite", 5.0), ("game", 2.0)], KITCHEN: [("pot", 3.0)]},
    static=[("ball", 8.0), ("lamp", 4.0), ("rug", 1.0)],
)
LIST = {"mug_blue": 1.0, "mug_red": 0.9, "cup": 0.8, "pot": 0.7, "lamp": 0.6, "rug": 0.5}
TUNING = Tuning()


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return SHOP.catalogue(tmp_path_factory.mktemp("publications"))


def rows(scores: Mapping[str, float]) -> list[Row]:
    return [(SHOP.numbers[i], score, int(Source.ALS), NO_REASON, NO_REASON) for i, score in scores.items()]


def slate_of(
    catalogue: Catalogue, *, rules: SlateRules = NO_RULES, state: SessionState | None = None, size: int = 4,
    scores: Mapping[str, float] = LIST, session: tuple[SessionEvent, ...] = (), policy: SlatePolicy | None = None,
    **more: Any,
) -> Slate:  # fmt: skip
    asked = {name: more.pop(name) for name in ("filter", "item_ids", "seed", "reasons") if name in more}
    policy = policy or SlatePolicy(rules, "test", **asked)
    request = SlateRequest(size, user_id="u1", recent_events=session, policy=policy, **more)
    person = Person(rows(scores), session=state or SessionState())
    return build_slate(request, person, catalogue, TUNING, now_micros=NOW, timer=itertools.count().__next__)


def ids(slate: Slate) -> list[str]:
    return [item.item_id for item in slate.items]


def touched(item_id: str, event_type: str = "view_item") -> SessionEvent:
    return SessionEvent(NOW - SECOND, event_type, 0, item_id)


def test_a_policy_without_rules_changes_nothing(catalogue: Catalogue) -> None:
    for session in ((), (touched("cup"),)):
        request = SlateRequest(3, user_id="u1", recent_events=session, explain=True)
        person = Person(rows(LIST), session=SessionState(dismissed=[ItemMark(1, "mug_red")]))
        timer = itertools.count().__next__
        plain = build_slate(request, person, catalogue, TUNING, now_micros=NOW, timer=timer)
        ruled = build_slate(
            replace(request, policy=SlatePolicy(NO_RULES, "default")), person, catalogue, TUNING, now_micros=NOW,
            timer=timer,
        )  # fmt: skip
        assert plain.policy is None
        assert ruled.policy == {"placement": "default"}
        assert (ruled.items, ruled.filtered, ruled.rungs) == (plain.items, plain.filtered, plain.rungs)
        assert len(ruled.items) == 3


def test_filters_of_placement_and_request(catalogue: Catalogue) -> None:
    found = slate_of(catalogue, rules=SlateRules(filter='not tag == "gift"'), filter="price < 20", explain=True)
    # personal: mug_red, cup; popular: ball; the rest of the catalogue by number from above: odd
    assert ids(found) == ["mug_red", "cup", "ball", "odd"]
    # taken out in turn: mug_blue and lamp by the placement; pot, rug and game by the request; kite is sold out
    assert found.filtered == {"filter": 3, "out_of_stock": 1, "placement_filter": 2}
    assert [item.source for item in found.items] == [Source.ALS, Source.ALS, Source.POPULARITY, Source.STATIC]


def test_a_selective_filter_fills_from_the_lists_it_names(catalogue: Catalogue) -> None:
    found = slate_of(catalogue, filter=f'category in ["{TOYS}"] and price > 1')
    assert ids(found) == ["ball", "game"]
    assert found.filtered["out_of_stock"] == 1
    assert [report.rung for report in found.rungs] == [
        "personal",
        "filtered_category",
        "popular",
        "static",
        "catalogue",
    ]
    assert ids(slate_of(catalogue, filter='brand == "Rare"')) == ["odd"]
    assert ids(slate_of(catalogue, filter='language == "de" or item_id == "odd"')) == ["rug", "odd"]
    assert ids(slate_of(catalogue, filter="attributes.ml > 200 and attributes.colour == 'white'")) == ["cup"]
    assert ids(slate_of(catalogue, filter="price > 1000")) == []


def test_what_a_filter_says_of_the_person(catalogue: Catalogue) -> None:
    state = SessionState(
        cart=[CartChange(NOW - DAY, False, 1, "cup")],
        bought=[ItemMark(NOW - 40 * DAY, "pot"), ItemMark(NOW - 20 * DAY, "lamp")],
        seen={"rug": NOW - 2 * DAY},
    )
    keep = SlateRules(seen=KEEP, bought=KEEP)

    def left(text: str) -> list[str]:
        return ids(
            slate_of(catalogue, rules=keep, state=state, filter=f"{text} and item_id in {json.dumps(list(LIST))}")
        )

    assert left("not in_cart(item)") == ["mug_blue", "mug_red", "pot", "lamp"]
    assert left('bought_within("30d")') == ["lamp"]
    assert left('bought_within("40d")') == ["pot", "lamp"]
    assert left('seen_within("3d") or in_cart(item)') == ["cup", "rug"]
    assert left("in_session(item)") == []
    only = slate_of(catalogue, rules=keep, session=(touched("pot"),), filter="in_session(item)")
    assert ids(only) == ["pot"]


def test_without_consent_filters_know_nobody(catalogue: Catalogue) -> None:
    state = SessionState(cart=[CartChange(NOW, False, 1, "ball")])
    found = slate_of(catalogue, rules=OFF, state=state, filter="in_cart(item)", personalize=False)
    assert ids(found) == []


def test_prices_and_stock_are_read_as_they_are_now(tmp_path: Path) -> None:
    fresh = SHOP.catalogue(tmp_path)
    assert ids(slate_of(fresh, filter='price < 4 and brand == "Acme"')) == ["cup", "ball"]
    write_values(fresh, SHOP.numbers["mug_red"], {"price": 1.0})
    assert ids(slate_of(fresh, filter='price < 4 and brand == "Acme"')) == ["mug_red", "cup", "ball"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (NO_RULES, ["mug_red", "lamp", "rug", "ball"]),
        (SlateRules(seen="7d"), ["mug_red", "lamp", "ball", "odd"]),
        (SlateRules(seen="1d"), ["mug_red", "lamp", "rug", "ball"]),
        (SlateRules(seen=KEEP), ["mug_blue", "mug_red", "lamp", "rug"]),
        (SlateRules(bought=KEEP), ["mug_red", "pot", "lamp", "rug"]),
        (SlateRules(bought="30d"), ["mug_red", "pot", "lamp", "rug"]),
        (SlateRules(bought="40d"), ["mug_red", "lamp", "rug", "ball"]),  # to the very second
        (SlateRules(seen="2d"), ["mug_red", "lamp", "ball", "odd"]),
        (OFF, ["mug_blue", "mug_red", "pot", "lamp"]),
    ],
)
def test_seen_and_bought(catalogue: Catalogue, rules: SlateRules, expected: list[str]) -> None:
    """mug_blue was touched in this session, rug shown two days ago, pot bought 40 days ago, cup dismissed."""
    state = SessionState(
        bought=[ItemMark(NOW - 40 * DAY, "pot")], dismissed=[ItemMark(1, "cup")], seen={"rug": NOW - 2 * DAY}
    )
    session = (touched("pan"), touched("mug_blue"))  # the shop does not have pans
    text = "not item_id == 'game'"
    found = slate_of(catalogue, rules=rules, state=state, session=session, filter=text, explain=True)
    assert ids(found) == expected
    assert found.filtered["dismissed"] == 1


def test_one_variant_per_group_and_caps(catalogue: Catalogue) -> None:
    assert ids(slate_of(catalogue, rules=SlateRules(one_per_group=True))) == ["mug_blue", "cup", "pot", "lamp"]
    two = slate_of(catalogue, rules=SlateRules(max_per_category=2))
    assert ids(two) == ["mug_blue", "mug_red", "lamp", "rug"]
    assert two.filtered == {"category_cap": 2}
    top = slate_of(catalogue, rules=SlateRules(max_per_category=2, category_depth=1))  # of Home > ... two, then toys
    assert ids(top) == ["mug_blue", "mug_red", "ball"]
    brand = slate_of(catalogue, rules=SlateRules(max_per_brand=1, one_per_group=True), size=6)
    assert ids(brand) == ["mug_blue", "pot", "rug"]  # ball is of Acme too
    assert brand.filtered == {"brand_cap": 3, "same_group": 1}


def test_min_relevance_leaves_places_empty(catalogue: Catalogue) -> None:
    found = slate_of(catalogue, rules=SlateRules(min_relevance=0.75))
    assert ids(found) == ["mug_blue", "mug_red", "cup"]
    assert found.filtered["below_min_relevance"] == 4  # pot, lamp, rug, and ball from the rungs behind


def test_only_the_asked_items(catalogue: Catalogue) -> None:
    asked = ("odd", "game", "nowhere", "kite", "rug", "cup", "odd")
    found = slate_of(catalogue, item_ids=asked, size=10)
    assert ids(found) == ["cup", "rug", "game", "odd"]
    assert found.filtered == {"out_of_stock": 1, "unknown_item": 1}
    assert found.items[0].source == Source.ALS
    excluded = slate_of(catalogue, item_ids=asked, size=10, exclude_item_ids=frozenset({"cup", "pot"}))
    assert ids(excluded) == ["rug", "game", "odd"]
    assert excluded.filtered == {"excluded": 1, "out_of_stock": 1, "unknown_item": 1}
    voted = slate_of(catalogue, item_ids=("odd", "pot", "lamp"), session=(touched("cup"),), scores={})
    assert ids(voted) == ["pot", "lamp", "odd"]
    assert voted.items[0].source == Source.SESSION


def test_reasons_can_be_left_out(catalogue: Catalogue) -> None:
    found = slate_of(catalogue, reasons=False)
    assert [item.reasons for item in found.items] == [(), (), (), ()]


def test_likeness_by_hand(catalogue: Catalogue) -> None:
    assert category_likeness("A > B > C", "A > B > D") == pytest.approx(2 / 3)
    assert category_likeness("A", "A > B") == 0.5
    assert category_likeness("A > B", "B > A") == 0.0
    number = SHOP.numbers
    near = Likeness([number[i] for i in SHOP.items], catalogue)
    assert near.of(number["cup"]) == 0.0
    near.take(number["mug_blue"])
    assert near.of(number["mug_red"]) == 1.0  # the same group
    assert near.of(number["pot"]) == 1.0  # the same category
    assert near.of(number["ball"]) == SAME_BRAND
    assert near.of(number["lamp"]) == 0.5  # Home beside Home > Kitchen
    assert near.of(number["odd"]) == 0.0
    near.take(number["ball"])
    assert near.of(number["game"]) == 1.0


def test_diversity_by_hand(catalogue: Catalogue) -> None:
    """At 0.5, half the likeness off half the relevance, ball having 0.4995 of it:
    after mug_blue  mug_red .45 - .5, cup .4 - .5, pot .35 - .5, lamp .3 - .25, rug .25 - .25, ball .24975 - .3
    after lamp      mug_red -.05, ball -.05025, cup -.1, pot -.15, rug .25 - .5
    """
    found = slate_of(catalogue, rules=SlateRules(diversity=0.5), explain=True)
    assert ids(found) == ["mug_blue", "lamp", "mug_red", "ball"]
    assert found.policy is not None
    assert found.policy["diversity"]["asked"] == 0.5
    plain = 1 + 0.9 / math.log2(3) + 0.8 / 2 + 0.7 / math.log2(5)
    by_id = {item.item_id: item.score for item in found.items}
    kept = sum(by_id[item] / math.log2(rank + 1) for rank, item in enumerate(ids(found), start=1)) / plain
    assert found.policy["diversity"]["relevance_kept"] == pytest.approx(kept, abs=1e-6)
    assert kept < 1
    same = slate_of(catalogue, rules=SlateRules(diversity=0.0001), explain=True)
    assert ids(same) == ["mug_blue", "mug_red", "cup", "pot"]
    assert same.policy is not None
    assert same.policy["diversity"]["relevance_kept"] == 1.0
    assert discounted([1, 2], {1: 1.0, 2: 0.5}) == pytest.approx(1 + 0.5 / math.log2(3))


@given(
    scores=st.lists(st.sampled_from([0.1, 0.5, 0.5, 0.9, 1.0]), min_size=1, max_size=len(SHOP.items)),
    diversity=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_the_lazy_order_is_the_greedy_one(catalogue: Catalogue, scores: list[float], diversity: float) -> None:
    relevance = dict(enumerate(scores))
    ranked = sorted(relevance, key=lambda number: (-relevance[number], catalogue.item_id(number)))
    order = DiverseOrder(ranked, relevance, catalogue, diversity)
    lazy = []
    while (number := order.next()) is not None:
        order.take(number)
        lazy.append(number)
    slow, near, left = [], Likeness(ranked, catalogue), list(ranked)
    while left:
        worth = [(1 - diversity) * (relevance[n] / max(scores)) - diversity * near.of(n) for n in left]
        best = left.pop(worth.index(max(worth)))
        near.take(best)
        slow.append(best)
    assert [round(relevance[n], 9) for n in lazy] == [round(relevance[n], 9) for n in slow]
    assert lazy == slow


def test_exploration_shows_what_it_logs() -> None:
    """3 places, 4 others: over many seeds every item is shown as often as its propensity says."""
    shown: Counter[tuple[int, int]] = Counter()
    runs = 4_000
    for seed in range(runs):
        found = explore([1, 2, 3], [11, 12, 13, 14], share=0.2, seed=str(seed))
        assert len(set(found.slate)) == 3
        for position, (number, propensity) in enumerate(zip(found.slate, found.propensities, strict=True)):
            shown[position, number] += 1
            assert propensity == pytest.approx(0.8 if number < 10 else 0.05)
            assert (position in found.explored) == (number > 10)
    assert len(shown) == 15
    for (_, number), count in shown.items():
        expected = 0.8 if number < 10 else 0.05
        assert abs(count / runs - expected) < 4 * math.sqrt(expected * (1 - expected) / runs)


def test_a_share_of_exploration_goes_to_untried_items() -> None:
    """3 places, 4 others, 2 untried items for a quarter: they can have the last two places only."""
    shown: Counter[tuple[int, int]] = Counter()
    runs = 6_000
    for seed in range(runs):
        found = explore([1, 2, 3], [11, 12, 13, 14], share=0.4, seed=str(seed), untried=[21, 22], untried_share=0.25)
        assert len(set(found.slate)) == 3
        for position, (number, propensity) in enumerate(zip(found.slate, found.propensities, strict=True)):
            shown[position, number] += 1
            of_pool = 0.1 if position == 0 else 0.075
            assert propensity == pytest.approx(0.6 if number < 10 else of_pool if number < 20 else 0.05)
            assert (position in found.explored) == (number > 10)
    assert len(shown) == 5 + 7 + 7
    for (position, number), count in shown.items():
        expected = 0.6 if number < 10 else 0.05 if number > 20 else 0.1 if position == 0 else 0.075
        assert abs(count / runs - expected) < 4 * math.sqrt(expected * (1 - expected) / runs)


def test_new_items_that_nobody_had_are_shown_by_exploration_alone(catalogue: Catalogue) -> None:
    """as_of is 2024-03-08. Untried are `odd` and `game`; `ball` is popular, `kite` sold out, `rug` too old."""
    as_of = catalogue.as_of_micros
    ages = {"odd": 0, "ball": 1, "kite": 2, "game": 30, "rug": 31}
    newest = [(SHOP.numbers[name], as_of - days * DAY) for name, days in ages.items()]
    popularity = {SHOP.numbers["ball"]: 8.0}
    fresh = replace(catalogue, newest=newest, popularity=popularity, remembered={})
    assert [SHOP.numbers[name] for name in ("odd", "kite", "game")] == untried_items(fresh)
    rules = SlateRules(exploration=0.2, exploration_new=0.5)
    shown: Counter[str] = Counter()
    for seed in range(300):
        found = slate_of(fresh, rules=rules, size=2, seed=str(seed))
        for item, propensity in zip(found.items, found.propensities, strict=True):
            if item.item_id in ("odd", "game"):
                shown[item.item_id] += 1
                assert (item.source, item.score) == (Source.NEW, 0.0)
                assert [reason.text for reason in item.reasons] == ["new in the shop"]
                assert propensity == pytest.approx(0.2 * 0.5 / 2)
            assert item.item_id != "kite"
    assert min(shown["odd"], shown["game"]) > 10  # 600 places x 0.05 are 30 of each
    for without in (replace(rules, exploration_new=0.0), replace(rules, min_relevance=0.1)):
        slates = [slate_of(fresh, rules=without, size=2, seed=str(seed)) for seed in range(100)]
        assert not {"odd", "game"} & {item.item_id for found in slates for item in found.items}


def test_exploration_with_few_others() -> None:
    assert explore([1, 2, 3], [], share=0.2, seed="s") == ([1, 2, 3], [1.0, 1.0, 1.0], [])
    for seed in range(50):
        found = explore([1, 2, 3], [9], share=0.2, seed=str(seed))
        assert found.slate[:2] == [1, 2]
        assert found.propensities[:2] == [1.0, 1.0]
    assert explore([1, 2], [8, 9], share=0.2, seed="a") == explore([1, 2], [8, 9], share=0.2, seed="a")


def test_explored_slates_keep_the_caps(catalogue: Catalogue) -> None:
    rules = SlateRules(exploration=0.2, one_per_group=True, max_per_category=2)
    explored = 0
    for seed in range(60):
        found = slate_of(catalogue, rules=rules, size=3, seed=str(seed))
        assert len(found.items) == len(found.propensities) == 3
        paths = Counter(catalogue.category(item.item_number) for item in found.items)
        assert max(paths.values()) <= 2
        assert len({"mug_blue", "mug_red"} & set(ids(found))) <= 1
        assert found.policy is not None
        ranks = found.policy["exploration"]["ranks"]
        explored += len(ranks)
        assert [rank for rank, p in enumerate(found.propensities, start=1) if p < 0.5] == ranks
    assert explored > 10


def test_rotation_by_day_and_person() -> None:
    monday, tuesday = rotation_seed("u:a", NOW), rotation_seed("u:a", NOW + DAY)
    assert rotation_seed("u:a", NOW + 3600 * SECOND) == monday
    assert len({monday, tuesday, rotation_seed("u:b", NOW), rotation_seed(None, NOW)}) == 4
    scores = dict.fromkeys(range(2000), 1.0)
    turned = rotated(scores, rotation=0.2, seed=monday)
    assert min(turned.values()) >= 0.8
    assert max(turned.values()) <= 1.0
    assert sum(turned.values()) / 2_000 == pytest.approx(0.9, abs=0.005)
    again = rotated({7: 1.0}, rotation=0.2, seed=monday)
    assert again[7] == turned[7]  # whatever else is there
    far = rotated({1: 1.0, 2: 0.79}, rotation=0.2, seed=tuesday)
    assert far[1] > far[2]


def test_a_rotated_slate_holds_for_a_day(catalogue: Catalogue) -> None:
    rules = SlateRules(rotation=0.9)
    assert ids(slate_of(catalogue, rules=rules)) == ids(slate_of(catalogue, rules=rules))
    assert {item.score for item in slate_of(catalogue, rules=rules).items} <= set(LIST.values())


def test_what_was_shown_and_left_alone() -> None:
    day = NOW // DAY
    state = SessionState(
        seen={"fresh": NOW, "clicked": NOW - DAY, "again": NOW, "before": NOW - 3 * DAY, "later": NOW - 3 * DAY},
        events=[SessionEvent(NOW - DAY, "click", 0, "clicked"), SessionEvent(NOW - 2 * DAY, "click", 0, "again")],
        interests={(day - 3, "before"): 2, (day - 4, "later"): 2, (day, "again"): 2},
    )
    assert left_alone(state, []) == {"fresh": (NOW, 1), "again": (NOW, 1), "later": (NOW - 3 * DAY, 1)}
    session = [SessionEvent(NOW, "click", 0, "fresh")]
    assert left_alone(state, session) == {"again": (NOW, 1), "later": (NOW - 3 * DAY, 1)}


def test_showings_count_from_the_day_after_the_touch_and_within_the_span() -> None:
    day = NOW // DAY
    state = SessionState(
        seen={"often": NOW, "touched": NOW, "lately": NOW, "gone": NOW - DAY},
        events=[SessionEvent(NOW - 2 * DAY, "click", 0, "touched"), SessionEvent(NOW, "click", 0, "gone")],
        shown={
            (day - 4, "often"): 50, (day - 3, "often"): 2, (day, "often"): 3, (day, "gone"): 9,
            (day - 3, "touched"): 9, (day - 2, "touched"): 9, (day - 1, "touched"): 1, (day, "touched"): 1,
            (day - 9, "lately"): 9,
        },
    )  # fmt: skip
    found = left_alone(state, [], since_micros=NOW - 3 * DAY)
    assert found == {"often": (NOW, 5), "touched": (NOW, 2), "lately": (NOW, 1)}


def test_a_cap_counts_days_back_from_today() -> None:
    day = NOW // DAY
    state = SessionState(shown={(day, "cup"): 2, (day - 1, "cup"): 1, (day - 2, "cup"): 9, (day, "pot"): 2})
    assert shown_often(state, cap=2, since_micros=NOW) == ["cup", "pot"]
    assert shown_often(state, cap=3, since_micros=NOW - DAY) == ["cup"]
    assert shown_often(state, cap=4, since_micros=NOW - DAY) == []
    assert shown_often(state, cap=12, since_micros=NOW - 2 * DAY) == ["cup"]


def test_what_was_shown_often_enough_leaves(catalogue: Catalogue) -> None:
    day = NOW // DAY
    shown = {(day, "mug_blue"): 3, (day - 1, "mug_red"): 2, (day, "mug_red"): 1, (day - 2, "cup"): 99, (day, "cup"): 2}
    rules = SlateRules(frequency_cap=3, frequency_days=2)
    found = slate_of(catalogue, rules=rules, state=SessionState(shown=shown), explain=True)
    assert ids(found) == ["cup", "pot", "lamp", "rug"]
    assert found.filtered == {"shown_often": 2}
    assert ids(slate_of(catalogue, rules=NO_RULES, state=SessionState(shown=shown)))[0] == "mug_blue"


def test_fatigue_fades() -> None:
    last_shown = {1: NOW, 2: NOW - 3 * DAY, 3: NOW - 4 * DAY, 4: NOW + DAY, 9: NOW}
    shown = {number: Showings(micros, 1) for number, micros in last_shown.items()}
    scores = dict.fromkeys(range(1, 6), 0.8)
    sunk = fatigued(scores, shown, fatigue=0.5, span_micros=4 * DAY, now_micros=NOW)
    assert sunk == {1: 0.4, 2: pytest.approx(0.7), 3: 0.8, 4: 0.4, 5: 0.8}


def test_each_showing_sinks_an_item_further() -> None:
    shown = {1: Showings(NOW, 1), 2: Showings(NOW, 3), 3: Showings(NOW - 3 * DAY, 2)}
    sunk = fatigued(dict.fromkeys((1, 2, 3), 0.8), shown, fatigue=0.5, span_micros=4 * DAY, now_micros=NOW)
    assert sunk == {1: 0.4, 2: pytest.approx(0.1), 3: pytest.approx(0.8 * 0.875**2)}


def test_a_shown_item_sinks_in_the_slate(catalogue: Catalogue) -> None:
    state = SessionState(seen={"mug_blue": NOW - SECOND})
    found = slate_of(catalogue, rules=SlateRules(fatigue=0.25), state=state)
    assert ids(found) == ["mug_red", "cup", "mug_blue", "pot"]
    assert [item.score for item in found.items] == [0.9, 0.8, 1.0, 0.7]
    assert ids(slate_of(catalogue, rules=NO_RULES, state=state))[0] == "mug_blue"
    long_ago = replace(state, shown={(NOW // DAY - 20, "mug_blue"): 50, (NOW // DAY, "mug_blue"): 1})
    assert ids(slate_of(catalogue, rules=SlateRules(fatigue=0.25), state=long_ago)) == ids(found)
    twice = replace(state, shown={(NOW // DAY, "mug_blue"): 2})
    assert ids(slate_of(catalogue, rules=SlateRules(fatigue=0.25), state=twice))[:2] == ["mug_red", "cup"]
    assert "mug_blue" not in ids(slate_of(catalogue, rules=SlateRules(fatigue=0.25), state=twice))


def test_a_cap_looks_behind_the_best_of_a_long_list(tmp_path: Path) -> None:
    # Forty popular items of one category come before those of another: more than a slate looks at first.
    items = [*(f"a{at:02d}" for at in range(40)), "b1", "b2", "b3"]
    long = Shop(
        {item: {"category": "A" if item[0] == "a" else "B"} for item in items},
        popular=[(item, 100.0 - at) for at, item in enumerate(items)],
        static=[("a00", 1.0)],
    )
    for explain in (False, True):
        policy = SlatePolicy(SlateRules(max_per_category=2), "test")
        slate = build_slate(
            SlateRequest(5, policy=policy, explain=explain), Person(), long.catalogue(tmp_path / str(explain)), TUNING,
            now_micros=NOW, timer=itertools.count().__next__,
        )  # fmt: skip
        assert ids(slate) == ["a00", "a01", "b1", "b2"]
        assert slate.filtered == {"category_cap": 39}
        assert [item.score for item in slate.items] == [1.0, 0.99, 0.6, 0.59]
        assert slate.rungs == [("popular", 43, 43), ("static", 1, 0)]
