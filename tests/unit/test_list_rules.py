"""What the rules of a placement do in every kind of list, with orders worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.packing import NO_REASON, ItemMark, SessionEvent, SessionState, Source
from feature_repo.contracts.purchase_record import Purchase
from serving.pipeline.caps import variants_of
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.list_rules import GIVEN, OF_ITEMS, concerns_list
from serving.pipeline.new_items import new_slate
from serving.pipeline.own_items import buy_again_slate, continue_slate
from serving.pipeline.policy import KEEP, OFF, SlatePolicy, SlateRules
from serving.pipeline.rank_given import rank_given
from serving.pipeline.rotation import DAY_MICROS
from serving.pipeline.similar import bought_together, similar_items
from serving.pipeline.trending import Votes, trending_slate, voted_rows
from serving.pipeline.values import Person, Slate, SlateRequest, Tuning
from tests.serving_builders import Shop

SECOND = 1_000_000
NOW = 1_709_900_000 * SECOND  # 2024-03-08T12:13:20Z
TODAY = NOW // DAY_MICROS
TEA, GARDEN, TOYS = "Home > Tea", "Garden", "Toys"

# Every list has a, b, c, d in this order; those that are topped up go on with e.
SHOP = Shop(
    {
        "asked": {"title": "Pot"},
        "a": {"category": TEA, "brand": "X", "group_id": "g", "tags": ["adult"], "created_at": "2024-03-07T00:00:00Z"},
        "b": {"category": TEA, "brand": "X", "group_id": "g", "created_at": "2024-03-06T00:00:00Z"},
        "c": {"category": GARDEN, "brand": "X", "created_at": "2024-03-05T00:00:00Z"},
        "d": {"category": GARDEN, "brand": "Y", "created_at": "2024-03-04T00:00:00Z"},
        "e": {"category": TOYS, "brand": "Z"},
        "alone": {"category": "Attic", "brand": "Q"},
    },
    neighbours={"asked": [("a", 0.9), ("b", 0.8), ("c", 0.7), ("d", 0.6)]},
    together={"asked": [("a", 0.5), ("b", 0.4), ("c", 0.3), ("d", 0.2)]},
    popular=[("e", 9.0)],
    by_category={"Attic": [("alone", 1.0)]},
)
N = SHOP.numbers
ABCD = ["a", "b", "c", "d"]
TOPPED_UP = ("similar", "bought_together", "trending", "new")
OWN = ("continue", "buy_again")
KINDS = (*TOPPED_UP, *OWN, "rank")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return SHOP.catalogue(tmp_path_factory.mktemp("publications"))


def similar(request: SlateRequest, person: Person, catalogue: Catalogue) -> Slate:
    return similar_items(N["asked"], request, person, catalogue, Tuning(), now_micros=NOW)


def together(request: SlateRequest, person: Person, catalogue: Catalogue) -> Slate:
    return bought_together([N["asked"]], request, person, catalogue, Tuning(), now_micros=NOW)


def trending(request: SlateRequest, person: Person, catalogue: Catalogue) -> Slate:
    votes = Votes([("a", 4), ("b", 3), ("c", 2), ("d", 1)], 0)
    voted = voted_rows(votes, catalogue, request.category, request.region)
    return trending_slate(voted, request, person, catalogue, Tuning(), window="1h", now_micros=NOW)


def new(request: SlateRequest, person: Person, catalogue: Catalogue) -> Slate:
    return new_slate(request, person, catalogue, Tuning(), max_age_days=30.0, now_micros=NOW)


def begun(request: SlateRequest, person: Person, catalogue: Catalogue) -> Slate:
    looked = [SessionEvent(NOW - ago * 60 * SECOND, "view_item", 0, item) for ago, item in enumerate(ABCD, start=1)]
    person = replace(person, session=replace(person.session, events=looked[::-1]))
    return continue_slate(request, person, catalogue, Tuning(), now_micros=NOW)


def buy_again(request: SlateRequest, person: Person, catalogue: Catalogue) -> Slate:
    month_ago = NOW // SECOND - 30 * 86_400
    bought = [
        Purchase(N[item], 2, month_ago, 30.0, worth) for item, worth in zip(ABCD, (4.0, 3.0, 2.0, 1.0), strict=True)
    ]
    return buy_again_slate(bought, request, person, catalogue, Tuning(), due_power=1.0, now_micros=NOW)


def rank(request: SlateRequest, person: Person, catalogue: Catalogue) -> Slate:
    scores = zip(ABCD, (1.0, 0.9, 0.8, 0.7), strict=True)
    own = [(N[item], score, int(Source.ALS), NO_REASON, NO_REASON) for item, score in scores]
    person = replace(person, candidates=own)
    asked = [*ABCD, "unheard"]
    return rank_given(asked, request, person, catalogue, Tuning(), now_micros=NOW, timer=lambda: 0)


LISTS: dict[str, Callable[[SlateRequest, Person, Catalogue], Slate]] = {
    "similar": similar, "bought_together": together, "trending": trending, "new": new, "continue": begun,
    "buy_again": buy_again, "rank": rank,
}  # fmt: skip


def ask(
    kind: str, catalogue: Catalogue, rules: SlateRules | None = None, *, size: int = 4, filter: str | None = None,
    state: SessionState | None = None, reasons: bool = True, **more: Any,
) -> Slate:  # fmt: skip
    policy = None
    if rules is not None or filter is not None:
        policy = SlatePolicy(rules or SlateRules(), "here", filter=filter, reasons=reasons, seed="id1")
    request = SlateRequest(size, user_id="u1", policy=policy, **more)
    return LISTS[kind](request, Person(session=state or SessionState()), catalogue)


def ids(slate: Slate) -> list[str]:
    return [item.item_id for item in slate.items]


def and_e(kind: str, *shown: str) -> list[str]:
    """With what tops up a list that is; an id that the version does not know comes last in a given one."""
    return [*shown, *(["e"] if kind in TOPPED_UP else ["unheard"] if kind == "rank" else [])][:4]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryList:
    def test_has_its_own_order_without_rules(self, catalogue: Catalogue, kind: str) -> None:
        plain = ask(kind, catalogue)
        assert ids(plain) == ABCD
        assert plain.policy is None
        ruled = ask(kind, catalogue, SlateRules())
        assert ruled.policy == {"placement": "here"}
        assert (ruled.items, ruled.filtered, ruled.rungs) == (plain.items, plain.filtered, plain.rungs)
        assert (ruled.fallback_level, ruled.fallback_reason) == (plain.fallback_level, plain.fallback_reason)

    def test_keeps_to_the_filter_of_the_placement(self, catalogue: Catalogue, kind: str) -> None:
        slate = ask(kind, catalogue, SlateRules(filter='not tag == "adult"'))
        shown = ["b", "c", "d"] if kind == "rank" else and_e(kind, "b", "c", "d")
        assert ids(slate) == shown
        unknown = {"unknown_item": 1} if kind == "rank" else {}
        assert slate.filtered == {"placement_filter": 1, **unknown}

    def test_keeps_to_the_filter_of_the_request(self, catalogue: Catalogue, kind: str) -> None:
        slate = ask(kind, catalogue, filter='brand == "Y"')
        assert ids(slate) == ["d"]
        unknown = {"unknown_item": 1} if kind == "rank" else {}
        assert slate.filtered == {"filter": 4 if kind in TOPPED_UP else 3, **unknown}

    def test_shows_one_variant_of_a_product(self, catalogue: Catalogue, kind: str) -> None:
        slate = ask(kind, catalogue, SlateRules(one_per_group=True))
        assert ids(slate) == and_e(kind, "a", "c", "d")
        assert slate.filtered == {"same_group": 1}

    def test_breaks_no_cap(self, catalogue: Catalogue, kind: str) -> None:
        by_brand = ask(kind, catalogue, SlateRules(max_per_brand=1))
        assert ids(by_brand) == and_e(kind, "a", "d")
        assert by_brand.filtered == {"brand_cap": 2}
        by_category = ask(kind, catalogue, SlateRules(max_per_category=1))
        assert ids(by_category) == and_e(kind, "a", "c")
        assert by_category.filtered == {"category_cap": 2}

    def test_knows_what_was_bought_lately(self, catalogue: Catalogue, kind: str) -> None:
        bought = [ItemMark(NOW - 30 * DAY_MICROS, "c"), ItemMark(NOW - DAY_MICROS, "b")]
        state = SessionState(bought=bought)
        slate = ask(kind, catalogue, SlateRules(bought="7d"), state=state)
        assert ids(slate) == and_e(kind, "a", "c", "d")
        assert slate.filtered == {"bought": 1}
        kept = ask(kind, catalogue, SlateRules(bought=KEEP), state=state)
        assert ids(kept)[:4] == (["a", "c", "d", "b"] if kind == "buy_again" else ABCD)  # b was just bought: not due
        for rules in (None, SlateRules(max_per_brand=9)):
            habit = ids(ask(kind, catalogue, rules, state=state))
            assert set(habit) == ({"a", "d", "e"} if kind in ("trending", "new") else set(ABCD))

    def test_knows_what_was_shown_lately(self, catalogue: Catalogue, kind: str) -> None:
        state = SessionState(seen={"a": NOW - 3600 * SECOND, "b": NOW - 2 * DAY_MICROS})
        slate = ask(kind, catalogue, SlateRules(seen="1d"), state=state)
        if kind == "continue":  # it is made of what was seen
            assert ids(slate) == ABCD
        else:
            assert ids(slate) == and_e(kind, "b", "c", "d")
            assert slate.filtered == {"seen": 1}

    def test_knows_what_was_shown_often(self, catalogue: Catalogue, kind: str) -> None:
        state = SessionState(shown={(TODAY, "a"): 1, (TODAY - 1, "a"): 1, (TODAY, "b"): 1}, seen={"a": NOW, "b": NOW})
        slate = ask(kind, catalogue, SlateRules(frequency_cap=2), state=state)
        assert ids(slate) == and_e(kind, "b", "c", "d")
        assert slate.filtered == {"shown_often": 1}

    def test_lets_sink_what_was_shown_and_left_alone(self, catalogue: Catalogue, kind: str) -> None:
        state = SessionState(seen={"a": NOW})
        slate = ask(kind, catalogue, SlateRules(fatigue=1.0), state=state)
        assert ids(slate) == (["b", "c", "d", "e"] if kind in TOPPED_UP else ["b", "c", "d", "a"])
        of_a = next(item for item in ask(kind, catalogue, SlateRules()).items if item.item_id == "a")
        assert of_a.score == {item.item_id: item for item in slate.items}.get("a", of_a).score

    def test_leaves_out_what_was_dismissed(self, catalogue: Catalogue, kind: str) -> None:
        state = SessionState(dismissed=[ItemMark(NOW - DAY_MICROS, "a")])
        for rules in (None, SlateRules(max_per_brand=9)):
            slate = ask(kind, catalogue, rules, state=state, explain=True)
            assert ids(slate) == (["b", "c", "d", "a"] if kind == "rank" else and_e(kind, "b", "c", "d"))
            assert slate.filtered == ({} if kind == "rank" else {"dismissed": 1})
            assert slate.personalized

    def test_hears_of_it_in_the_request_itself(self, catalogue: Catalogue, kind: str) -> None:
        dismissed = [SessionEvent(NOW, "not_interested", 0, "a")]
        for rules in (None, SlateRules(max_per_brand=9)):
            shown = ids(ask(kind, catalogue, rules, recent_events=dismissed))
            assert shown == (["b", "c", "d", "a"] if kind == "rank" else and_e(kind, "b", "c", "d"))

    def test_uses_nothing_of_somebody_who_refuses(self, catalogue: Catalogue, kind: str) -> None:
        state = SessionState(dismissed=[ItemMark(NOW, "a")], shown={(TODAY, "b"): 5}, seen={"b": NOW})
        for rules in (None, SlateRules(frequency_cap=2, filter='tag == "adult" or brand is not null')):
            slate = ask(kind, catalogue, rules, state=state, personalize=False)
            assert ids(slate) == ([] if kind in OWN else ABCD)
            assert not slate.personalized

    def test_gives_no_reasons_where_the_placement_has_none(self, catalogue: Catalogue, kind: str) -> None:
        slate = ask(kind, catalogue, SlateRules(), reasons=False)
        assert ids(slate) == ABCD
        assert not any(item.reasons for item in slate.items)


@pytest.mark.parametrize("kind", TOPPED_UP)
class TestAListOfItemsOrOfTheShop:
    def test_leaves_out_what_scores_too_low(self, catalogue: Catalogue, kind: str) -> None:
        least = {"similar": 0.85, "bought_together": 0.75, "trending": 0.7, "new": 0.85}[kind]
        slate = ask(kind, catalogue, SlateRules(min_relevance=least))
        assert ids(slate) == ["a", "b"]
        assert slate.filtered == {"below_min_relevance": 3}

    def test_is_as_diverse_as_the_placement_says(self, catalogue: Catalogue, kind: str) -> None:
        # By unlikeness alone: behind a comes what shares neither category nor brand with it; of equals the best first.
        assert ids(ask(kind, catalogue, SlateRules(diversity=1.0), size=3)) == ["a", "d", "e"]

    def test_finds_what_only_the_filter_leads_to(self, catalogue: Catalogue, kind: str) -> None:
        slate = ask(kind, catalogue, filter='category == "Attic"')
        assert ids(slate) == ["alone"]
        assert slate.items[0].reasons[0].text == "popular in its category"
        assert slate.fallback_level == "filtered_category"
        assert slate.filtered == {"filter": 5}


@pytest.mark.parametrize("kind", [*OWN, "rank"])
def test_what_has_an_order_of_its_own_keeps_it(catalogue: Catalogue, kind: str) -> None:
    rules = SlateRules(diversity=1.0, rotation=1.0, exploration=0.2, min_relevance=1.0)
    slate = ask(kind, catalogue, rules)
    assert ids(slate) == ABCD
    assert set(slate.propensities) <= {1.0}


def test_nothing_is_left_to_chance_twice(catalogue: Catalogue) -> None:
    slate = ask("similar", catalogue, SlateRules(exploration=0.2), size=2)
    assert len(slate.propensities) == 2
    assert all(chance in (0.8, pytest.approx(0.2 / 3)) for chance in slate.propensities)  # c, d and e may take part
    assert ids(slate) == ids(ask("similar", catalogue, SlateRules(exploration=0.2), size=2))


def test_the_item_that_is_asked_for_is_never_there_nor_counted(catalogue: Catalogue) -> None:
    slate = ask("similar", catalogue, filter='item_id in ["asked", "a"]')
    assert ids(slate) == ["a"]
    assert slate.filtered == {"filter": 4}


def test_given_items_go_on_where_a_place_has_no_room(catalogue: Catalogue) -> None:
    slate = ask("rank", catalogue, SlateRules(max_per_brand=1), size=1)
    assert (ids(slate), slate.filtered) == (["a"], {})


def test_which_policies_concern_a_list() -> None:
    assert not concerns_list(SlatePolicy(OFF, "raw"), GIVEN)
    assert not concerns_list(SlatePolicy(SlateRules(diversity=0.5), "home"), GIVEN)
    assert concerns_list(SlatePolicy(SlateRules(diversity=0.5), "home"), OF_ITEMS)
    assert concerns_list(SlatePolicy(SlateRules(bought="7d"), "home"), GIVEN)
    assert concerns_list(SlatePolicy(OFF, "raw", filter="price < 3"), GIVEN)


def test_variants_of_a_product(catalogue: Catalogue, tmp_path: Path) -> None:
    assert variants_of(["a", "c", "unheard"], catalogue) == {"a", "b"}
    assert variants_of(["c"], catalogue) == frozenset()
