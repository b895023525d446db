"""The places of a page, written by native code from one reading, are the bytes of the way through all steps."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.packing import FLAG_BOT, ItemMark, SessionEvent, SessionState, pack_session
from feature_repo.contracts.session_record import CartChange
from serving.adapters.online import OnlineRecords
from serving.api.hot_pages import HotPages
from serving.api.pages import PageQuestion, Place
from serving.native import described, parts
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.item_facts import members_by_value
from serving.pipeline.placements import PRESETS, Placement
from serving.pipeline.policy import SlateRules
from serving.pipeline.trending import Votes
from serving.pipeline.values import SlateRequest
from tests.serving_builders import Shop
from tests.unit.test_native_answers import SEGMENTS, TIMES, BothWays, packed, session
from tests.unit.test_native_ruled import DAY, _facts, _showings
from tests.unit.test_native_slates import NOW, SECOND, question, shop

pytestmark = pytest.mark.skipif(parts.pages is None, reason=f"serving answers from {described()}")

KINDS = ("recommendations", "recommendations", "similar", "bought_together", "trending", "new", "continue")
ODD = (ContractError, KeyError, ValueError, OverflowError, ZeroDivisionError)
FILTERED = {
    "without D": Placement("without D", rules=SlateRules(filter='not category == "D"')),
    "of A": Placement("of A", rules=SlateRules(filter='category == "A"', diversity=0.3)),
}
NAMES = (None, "home", "email", "product_page", "search", "raw", "cart", 'a"b')
PLACEMENTS = (*NAMES, *FILTERED)
WITHOUT_RULES = (*[None, "default", 'a"b'] * 3, *NAMES)


class BothPages(BothWays):
    """Pages of one server, at once and step by step. `here` counts the places that native code made, `all_places` all
    of the pages that it began."""

    def __init__(self, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, placement in FILTERED.items():
            monkeypatch.setitem(PRESETS, name, placement)  # type: ignore[arg-type]
        super().__init__(environment)
        self.pages = HotPages(self.services, self.answers)
        self.votes: dict[str, Votes] = {}
        self.here, self.all_places, self.levels = 0, 0, Counter[str]()
        opened: list[Any] = []
        monkeypatch.setattr(self.services.lists, "fresh_votes", self._fresh)
        open_page = self.answers.open_page

        def counted(*given: Any) -> Any:
            opened.append(open_page(*given))
            return opened[-1]

        monkeypatch.setattr(self.answers, "open_page", counted)
        self._opened = opened

    def _fresh(self, window: str, region: str | None) -> Votes:
        found = self.votes.get(window, Votes((), 0))
        return found if region is not None or found.regional is None else found._replace(regional=None)

    def page(
        self, request: SlateRequest, places: list[Place], catalogue: Catalogue, records: OnlineRecords, **more: Any
    ) -> dict[str, Any] | None:
        """What native code gives, after page and decisions were compared with what the steps give."""
        asked = PageQuestion(
            "land", request, more.get("item_id"), places, more.get("may_store", True), NOW - 3 * SECOND
        )  # fmt: skip
        logged = self.decisions.payloads
        try:
            fast = self.pages.at_once(asked, 5_000, catalogue, records)
        except ODD:
            fast = None
            assert logged == []
        fast_logged = [logged.pop(0) for _ in range(len(logged))]
        try:
            plain = self.pages.by_steps(asked, 5_000, self.recommender.lone_asker(request, catalogue, records, []))
        except ODD:
            plain = None
            assert logged == []
        if fast is None:
            logged.clear()
            return None
        assert plain is not None
        assert fast == plain
        assert fast_logged == logged
        logged.clear()
        page = self._opened.pop()
        self.at_once += 1
        self.here += len(page.levels)
        self.all_places += len(places)
        self.levels.update(page.levels)
        found: dict[str, Any] = orjson.loads(fast)
        return found


@pytest.fixture
def both(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> BothPages:
    return BothPages(environment, monkeypatch)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    names = [*(f"i{at}" for at in range(9)), "ü ser/1"]
    return Shop(
        {name: {"title": name.upper(), "is_hidden": name == "i3", "category": "A > B"} for name in names},
        popular=[(name, 20.0 - at) for at, name in enumerate(names)],
        by_category={"A": [("i8", 2.0), ("i7", 1.0)]},
        neighbours={"i1": [("i2", 1.0), ("i3", 0.7), ("i0", 0.5)]},
        together={"i1": [("i5", 0.5), ("i6", 0.25)]},
    ).catalogue(tmp_path)


def _record(drawn: random.Random, state: SessionState, names: list[str]) -> bytes:
    """With a cart and, at times, a no."""
    cart = [
        CartChange(NOW - drawn.randrange(4000) * SECOND, drawn.random() < 0.3, drawn.randrange(3), drawn.choice(names))
        for _ in range(drawn.choice([0, 2, 9]))
    ]
    bought = [*state.bought, *[ItemMark(NOW - drawn.randrange(4000) * SECOND, drawn.choice(names))]]
    return pack_session(
        replace(state, cart=sorted(cart), bought=bought, flags=drawn.choice([0] * 19 + [FLAG_BOT]))
    )  # fmt: skip


def _newest(drawn: random.Random, catalogue: Catalogue) -> list[tuple[int, float]]:
    """Of some items, when they were made: many at one instant, some long ago; at times of none."""
    moments = [catalogue.as_of_micros - drawn.randrange(-1, 60) * DAY for _ in range(5)]
    known = [number for number, item_id in enumerate(catalogue.item_ids) if item_id is not None]
    made = [(number, drawn.choice(moments)) for number in known if drawn.random() < 0.8]
    return sorted(made, key=lambda row: -row[1]) if drawn.random() < 0.7 else []


def _votes(drawn: random.Random, names: list[str]) -> Votes:
    counts = {name: drawn.randrange(1, 9) for name in drawn.choices(names, k=drawn.choice([1, 9]))}
    own = sorted(((name, 30 - 3 * count) for name, count in counts.items()), key=lambda row: -row[1])
    regional = Votes(own, 0) if sum(counts.values()) % 4 else None  # with enough votes, or too few
    return Votes(sorted(counts.items(), key=lambda row: -row[1]), 1, regional=regional)


def _places(drawn: random.Random, names: list[str]) -> list[Place]:
    kinds = [drawn.choice(KINDS) for _ in range(drawn.choice([1, 3, 5]))]
    return [
        Place(
            kind, drawn.choice([1, 2, 3, 5, 12]),
            drawn.choice(PLACEMENTS if kind == "recommendations" else WITHOUT_RULES),
            drawn.choice([None, None, drawn.choice(names)]), drawn.choice(["5m", "1h"]), drawn.choice([30.0, 0.5]),
        )
        for kind in kinds
    ]  # fmt: skip


def test_random_pages_get_the_same_bytes(tmp_path: Path, both: BothPages) -> None:
    drawn = random.Random(20240312)
    asked = 0
    sources: set[str] = set()
    seen: Counter[str] = Counter()
    for at in range(24):
        sold = shop(drawn)
        catalogue = sold.catalogue(tmp_path / str(at))
        facts = _facts(drawn, len(catalogue.item_ids))
        groups = [
            group if item_id else None for group, item_id in zip(facts.group_id, catalogue.item_ids, strict=False)
        ]
        facts = replace(facts, group_id=groups, members=members_by_value((), (), (), groups))
        catalogue = replace(
            catalogue, facts=facts, newest=_newest(drawn, catalogue), remembered={},
            bound_filters={},
        )  # fmt: skip
        names = [*sold.numbers, "unknown"]
        for _ in range(40):
            request, person, _, _ = question(drawn, sold.numbers)
            request.num_results = 1
            request.recent_events = () if drawn.random() < 0.95 else request.recent_events
            request.exclude_item_ids = frozenset(drawn.sample(names, drawn.choice([0, 0, 3])))
            request.anonymous_id = drawn.choice([None, None, "a1"])
            _showings(drawn, person, names)
            both.votes = {window: _votes(drawn, names) for window in ("5m", "1h") if drawn.random() < 0.5}
            records = OnlineRecords(
                catalogue.version,
                packed(catalogue, person.candidates),  # type: ignore[arg-type]
                drawn.choice([None, *[_record(drawn, person.session, names)] * 4]),
                drawn.choice([None, *SEGMENTS]),
                drawn.choice([*TIMES[:1] * 4, *TIMES]),
            )
            found = both.page(
                request, _places(drawn, names), catalogue, records, may_store=drawn.random() < 0.9,
                item_id=drawn.choice(names),
            )  # fmt: skip
            asked += 1
            for place in () if found is None else found["placements"]:
                sources |= {item["source"] for item in place["items"]}
                said = [
                    one["text"] for item in place["items"] for one in item["reasons"] if item["source"] == "trending"
                ]
                seen["of all"] += any(text.startswith("trending in the") for text in said)
                seen["of a region"] += any(text.startswith("trending in DE in the") for text in said)
                seen["filtered"] += bool(place.get("filtered"))
                seen["short"] += "filtered" in place
        kept = catalogue.remember("native trends")
        assert {window for window, _ in kept} <= {"5m", "1h"}
        assert len(kept) <= 8  # votes of before are not kept: of each window those of all, and of each region
    assert asked == 960
    assert both.at_once > 350
    assert both.all_places > both.here > 500  # the other places are short, or odd, or know what is on the page
    assert {
        "personal",
        "popular",
        "similar",
        "trending",
        "new",
        "older",
        "continue",
        "none",
    } <= both.levels.keys()
    assert sources >= {"session", "als", "popularity", "item_knn", "trending", "new", "continued"}
    assert min(seen["short"], seen["filtered"]) > 100
    assert min(seen["of all"], seen["of a region"]) > 5, seen


def test_no_item_twice_and_each_place_its_own_way(both: BothPages, catalogue: Catalogue) -> None:
    places = [
        Place("continue", 2), Place("similar", 3), Place("bought_together", 2), Place("trending", 1), Place("new", 1),
    ]  # fmt: skip
    both.votes = {"1h": Votes([("i4", 3), ("i6", 2)], 0)}
    record = session((90, "i7"), (60, "i1"), bought=[ItemMark(1, "ü ser/1")])
    found = both.page(
        SlateRequest(1, "u1"), places, catalogue, OnlineRecords(catalogue.version, None, record), item_id="i1"
    )
    assert found is not None
    assert [[item["item_id"] for item in one["items"]] for one in found["placements"]] == [
        ["i7"], ["i2", "i0", "i8"], ["i5", "i6"], ["i4"], [],
    ]  # fmt: skip
    assert found["placements"][0]["filtered"] == {"excluded": 1}
    assert both.here == 4  # nothing is left for the last one: its twin says why
    assert [one["items"][0]["reasons"][0]["text"] for one in found["placements"][:4]] == [
        "you looked at it", "similar to I1", "often bought together with I1", "trending in the last hour",
    ]  # fmt: skip


def test_what_was_begun_comes_by_what_was_done(both: BothPages, catalogue: Catalogue) -> None:
    def did(ago: int, kind: str, item: str) -> SessionEvent:
        return SessionEvent(NOW - ago * SECOND, kind, 0, item)

    record = pack_session(
        SessionState(
            [
                did(90, "view_item", "i0"), did(80, "like", "i1"), did(70, "view_item", "i1"),
                did(60, "view_item", "i2"), did(50, "add_to_cart", "i4"), did(40, "view_item", "i5"),
                did(30, "purchase", "i5"), did(20, "add_to_cart", "i6"), did(10, "remove_from_cart", "i6"),
            ],
            bought=[ItemMark(NOW - 5 * SECOND, "i7")],
            dismissed=[ItemMark(NOW, "i0")],
            cart=[CartChange(NOW - 900 * SECOND, False, 2, "i8"), CartChange(NOW - 800 * SECOND, False, 1, "i7")],
        )
    )  # fmt: skip
    found = both.page(
        SlateRequest(1, "u1"), [Place("continue", 9)], catalogue, OnlineRecords(catalogue.version, None, record)
    )
    assert found is not None
    (place,) = found["placements"]
    assert [(item["item_id"], item["reasons"][0]["text"]) for item in place["items"]] == [
        ("i4", "still in your cart"), ("i8", "still in your cart"), ("i1", "you liked it"), ("i2", "you looked at it"),
    ]  # fmt: skip
    assert place["filtered"] == {"dismissed": 1}
    assert both.here == 1


def test_records_cut_short_or_garbled_are_left_to_the_steps(both: BothPages, catalogue: Catalogue) -> None:
    places = [Place("continue", 2), Place("recommendations", 3, "home"), Place("trending", 2), Place("new", 1)]
    day = NOW // DAY
    state = SessionState(
        [SessionEvent(NOW - SECOND, "view_item", 0, "i1")], [ItemMark(1, "i5")], [ItemMark(1, "i6")],
        cart=[CartChange(NOW - 9 * SECOND, False, 1, "i4")], seen={"i2": NOW - 3 * SECOND, "i1": NOW - SECOND},
        shown={(day, "i2"): 3}, interests={(day, "i1"): 2},
    )  # fmt: skip
    whole, version, request = pack_session(state), catalogue.version, SlateRequest(1, "u1")
    assert both.page(request, places, catalogue, OnlineRecords(version, None, whole)) is not None
    for size in range(len(whole)):
        assert both.page(request, places, catalogue, OnlineRecords(version, None, whole[:size])) is None
    drawn, made = random.Random(6), both.at_once
    for _ in range(600):
        garbled = bytearray(whole)
        for _ in range(drawn.choice([1, 1, 3])):
            garbled[drawn.randrange(len(garbled))] = drawn.choice([0, 1, 3, 128, 255])
        both.page(request, places, catalogue, OnlineRecords(version, None, bytes(garbled)))
    assert both.at_once > made + 200


def test_what_was_shown_and_left_alone_sinks(both: BothPages, tmp_path: Path) -> None:
    names = [f"i{at:02d}" for at in range(60)]
    catalogue = Shop(
        {name: {} for name in names}, popular=[(name, 100.0 - at) for at, name in enumerate(names)]
    ).catalogue(tmp_path)
    places, request = [Place("recommendations", 3, "email")], SlateRequest(1, "u1")

    def shown(**state: Any) -> list[str]:
        record = pack_session(SessionState(**state))
        found = both.page(request, places, catalogue, OnlineRecords(catalogue.version, None, record))
        assert found is not None
        return [item["item_id"] for item in found["placements"][0]["items"]]

    first = shown()[0]
    day = NOW // DAY
    left = {"seen": {first: NOW - SECOND}, "shown": {(day, first): 4}}
    assert first not in shown(**left)
    assert first in shown(**left, interests={(day, first): 2})  # it was touched on that day
    assert both.here == 3
