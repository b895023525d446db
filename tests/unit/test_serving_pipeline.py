"""The pipeline, stage by stage, with numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contracts.errors import RequestError
from feature_repo.contracts.packing import (
    FLAG_BOT,
    FLAG_PERSONALIZE_DENIED,
    NO_REASON,
    ItemMark,
    PackedCandidate,
    SessionEvent,
    SessionState,
    Source,
    open_candidates,
    pack_candidates,
    session_hash,
)
from feature_repo.contracts.session_blend import normaliser
from serving.pipeline.candidates import Rung, fill_candidates
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.consent import allows_personalization, as_allowed
from serving.pipeline.identify import session_events
from serving.pipeline.order import order_candidates
from serving.pipeline.score import Ballot, count_votes, effective_weight, session_ballots
from serving.pipeline.similar import similar_items
from serving.pipeline.slate import build_slate
from serving.pipeline.values import Person, Row, Slate, SlateRequest, Tuning
from tests.serving_builders import Shop

pytestmark = pytest.mark.usefixtures("either_way")

SECOND = 1_000_000
NOW = 1_709_900_000 * SECOND  # 2024-03-08T12:13:20Z
S1, S2 = session_hash("s1"), session_hash("s2")
TUNING = Tuning(
    session_weight=3.0, session_events=20, session_gap_seconds=1800, position_decay=0.9, half_life_seconds=1800
)

KITCHEN, HOME = "Home > Kitchen", "Home"
SHOP = Shop(
    {
        "mug": {"title": "Blue Mug", "category": KITCHEN, "price": 4.5},
        "cup": {"title": "Tea Cup", "category": KITCHEN},
        "pot": {"title": "Tea Pot", "category": KITCHEN},
        "pan": {"title": "Frying Pan", "category": KITCHEN},
        "lamp": {"title": "Desk Lamp", "category": HOME},
        "rug": {"title": None, "category": HOME},
        "sofa": {"title": "Sofa", "category": HOME, "availability": "OUT_OF_STOCK"},
        "vase": {"title": "Vase", "category": HOME, "is_hidden": True},
        "milk": {"title": "Milk", "category": KITCHEN, "expire_time": "2024-03-08T12:13:20Z"},  # this very instant
        "stool": {"title": "Stool", "category": HOME, "available_quantity": 0},
        "chair": {"title": "Chair", "category": HOME, "availability": "PREORDER", "available_quantity": 0},
    },
    neighbours={
        "cup": [("pot", 0.8), ("lamp", 0.4), ("sofa", 0.4)],
        "mug": [("cup", 0.9), ("pot", 0.4), ("rug", 0.2)],
        "chair": [("sofa", 0.7)],
        "pan": [("pot", 0.5), ("mug", 0.25)],
    },
    popular=[("sofa", 90.0), ("lamp", 60.0), ("mug", 30.0), ("pan", 30.0)],
    by_category={"Home": [("lamp", 9.0), ("chair", 3.0)], KITCHEN: [("mug", 8.0), ("cup", 4.0)]},
    by_region={"DE": [("rug", 5.0)]},
    static=[("chair", 1.0), ("pan", 0.5)],
    first_number=1,
)
N = SHOP.numbers


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return SHOP.catalogue(tmp_path_factory.mktemp("publications"))


def event(item: str, seconds_ago: float, kind: str = "view_item", session: int = S1) -> SessionEvent:
    return SessionEvent(NOW - int(seconds_ago * SECOND), kind, session, item)


def night(*rows: tuple[str, float], reason: str | None = None) -> list[Row]:
    return [(N[i], s, int(Source.ALS), N[reason] if reason else NO_REASON, NO_REASON) for i, s in rows]


def slate(catalogue: Catalogue, person: Person | None = None, **request: object) -> Slate:
    ticks = itertools.count(step=5000)
    wanted = SlateRequest(**{"num_results": 3, **request})
    return build_slate(wanted, person or Person(), catalogue, TUNING, now_micros=NOW, timer=lambda: next(ticks))


def ids(answer: Slate) -> list[str]:
    return [item.item_id for item in answer.items]


class TestIdentify:
    EVENTS = (
        event("a", 4000, session=S2),
        event("b", 3000),
        event("c", 2000, session=0),
        event("d", 1000),
        event("e", 100, session=S2),
    )

    def found(self, events: Sequence[SessionEvent], **given: object) -> list[str]:
        options = {"session_id": None, "recent_events": (), "now_micros": NOW, "gap_seconds": 1800, **given}
        return [e.item_id for e in session_events(SessionState(events=list(events)), **options)]

    def test_a_named_session_has_its_events_alone_however_old(self) -> None:
        assert self.found(self.EVENTS, session_id="s1") == ["b", "d"]
        assert self.found(self.EVENTS, session_id="new") == []

    def test_without_a_name_the_latest_session_goes_on_if_it_is_fresh(self) -> None:
        assert self.found(self.EVENTS) == ["a", "e"]
        assert self.found([event("d", 1800)]) == ["d"]  # exactly the gap: still on
        assert self.found([event("d", 1800.000001)]) == []
        assert self.found([event("ahead", -500)]) == ["ahead"]  # a client's clock that runs ahead

    def test_events_without_a_session_id_belong_together_by_gaps(self) -> None:
        events = [event("x", 6000, session=0), event("y", 4000, session=0), event("z", 2500, session=0)]
        events += [event("other", 2400), event("w", 701, session=0)]
        # w-z: 1799 s apart, together; z-y: 1500 s, together; y-x: 2000 s, apart. `other` has a session of its own.
        assert self.found(events) == ["y", "z", "w"]
        assert self.found([event("z", 2500, session=0), event("w", 700, session=0)]) == ["w"]  # half an hour: apart

    def test_a_session_id_that_comes_back_after_a_day_is_another_session(self) -> None:
        day = 24 * 3600
        events = [event("x", 2 * day), event("y", day), event("z", 1)]
        assert self.found(events, session_id="s1") == self.found(events) == ["y", "z"]

    def test_events_of_the_request_join_in_time_order(self) -> None:
        recent = [event("late", 50), event("early", 2900)]
        assert self.found(self.EVENTS, session_id="s1", recent_events=recent) == ["b", "early", "d", "late"]


class TestConsent:
    @pytest.mark.parametrize(
        ("asked", "session_flags", "candidates_deny", "allowed"),
        [
            (None, 0, False, True),
            (True, 0, False, True),
            (False, 0, False, False),
            (None, FLAG_PERSONALIZE_DENIED, False, False),
            (None, 0, True, False),
            (True, FLAG_PERSONALIZE_DENIED, False, False),  # the strictest wins: a yes in the request undoes nothing
            (True, 0, True, False),
        ],
    )
    def test_whoever_says_no_wins(
        self, asked: bool | None, session_flags: int, candidates_deny: bool, allowed: bool
    ) -> None:
        person = Person(candidates_deny=candidates_deny, session=SessionState(flags=session_flags))
        request = SlateRequest(num_results=1, user_id="u1", personalize=asked)
        assert allows_personalization(request, person) is allowed

    def test_what_cannot_be_read_might_say_no(self) -> None:
        unknown = Person(consent_unknown=True)
        assert not allows_personalization(SlateRequest(num_results=1, user_id="u1"), unknown)
        assert not allows_personalization(SlateRequest(num_results=1, anonymous_id="a1"), unknown)
        assert allows_personalization(SlateRequest(num_results=1, user_id="u1", personalize=True), unknown)
        assert allows_personalization(SlateRequest(num_results=1), unknown)


class TestCandidates:
    def test_scores_are_divided_by_the_best(self) -> None:
        assert [normaliser(8.0, 0.002)(score) for score in (8.0, 4.0, 0.002)] == [1.0, 0.5, 0.001]
        # Down to zero or below: stretched between last and first, the last kept off zero.
        assert [normaliser(3.0, -1.0)(score) for score in (3.0, 0.0, -1.0)] == [1.0, 0.25, 0.001]
        assert normaliser(0.0, 0.0)(0.0) == 1.0

    def test_a_short_rung_is_topped_up_from_the_next_and_stays_above_it(self) -> None:
        rungs = [
            Rung("first", night(("mug", 8.0), ("cup", 4.0))),
            Rung("second", night(("cup", 100.0), ("pan", 50.0), ("pot", 10.0))),
            Rung("never", night(("rug", 1.0))),
        ]
        pool, reports = fill_candidates(iter(rungs), wanted=3, admits=lambda n: n != N["pot"], whole=True)
        # pan: 0.5 of its own list x 0.5 (worst of the first rung) x 0.999
        assert pool.bases == {N["mug"]: 1.0, N["cup"]: 0.5, N["pan"]: pytest.approx(0.24975)}
        assert reports == [("first", 2, 2), ("second", 3, 1)]

    LONG = (("mug", 4.0), ("cup", 3.0), ("rug", 3.0), ("pan", 2.0), ("lamp", 1.0))

    @pytest.mark.parametrize(("whole", "bases"), [(True, [1.0, 0.75, 0.75, 0.5, 0.25]), (False, [1.0, 0.75, 0.75])])
    def test_a_rung_is_taken_whole_or_as_far_as_ties_with_the_last_place_reach(
        self, whole: bool, bases: list[float]
    ) -> None:
        rungs = [Rung("nothing", []), Rung("refused", night(("pot", 1.0))), Rung("long", night(*self.LONG))]
        pool, reports = fill_candidates(iter(rungs), wanted=2, admits=lambda n: n != N["pot"], whole=whole)
        assert list(pool.bases.values()) == bases
        assert [(r.offered, r.eligible) for r in reports] == [(0, 0), (1, 0), (5, len(bases))]

    def test_looking_at_everything_changes_no_answer(self, catalogue: Catalogue) -> None:
        person = Person(candidates=night(*self.LONG))
        for size in range(1, 8):
            brief = slate(catalogue, person, user_id="u1", num_results=size)
            assert brief.items == slate(catalogue, person, user_id="u1", num_results=size, explain=True).items
            assert len(brief.items) == min(size, 6)

    def test_a_score_that_is_no_number_is_no_candidate(self) -> None:
        rows = night(("mug", 4.0), ("cup", math.nan), ("pan", 2.0))
        pool, _ = fill_candidates(iter([Rung("night", rows)]), wanted=3, admits=lambda _: True, whole=True)
        assert pool.bases == {N["mug"]: 1.0, N["pan"]: 0.5}

    @pytest.mark.parametrize(
        ("person", "request_", "level", "reason", "items"),
        [
            # The list of the night has two eligible items: topped up from popular (sofa is out of stock).
            (Person(candidates=night(("pan", 2.0), ("sofa", 1.5), ("mug", 1.0))), {}, "personal", None,
             ["pan", "mug", "lamp"]),
            (Person(candidates=[], segment=KITCHEN), {}, "segment", "no_eligible_candidates", ["mug", "cup", "lamp"]),
            (Person(segment="Home > Garden > Tools"), {}, "segment", "unknown_user", ["lamp", "chair", "mug"]),
            (Person(segment="Toys"), {"category": KITCHEN}, "category", "unknown_user", ["mug", "cup", "lamp"]),
            (Person(), {"region": "DE"}, "region", "unknown_user", ["rug", "lamp", "mug"]),
            (Person(), {"region": "FR"}, "popular", "unknown_user", ["lamp", "mug", "pan"]),
            (Person(), {"user_id": None}, "popular", "no_user", ["lamp", "mug", "pan"]),
            (Person(unavailable="store_down"), {}, "popular", "store_down", ["lamp", "mug", "pan"]),
            (Person(), {"exclude_item_ids": frozenset({"lamp", "mug"})}, "popular", "unknown_user", ["pan", "chair"]),
            (Person(candidates=night(("vase", 1.0))), {"exclude_item_ids": frozenset({"lamp", "mug", "pan"})},
             "static", "no_eligible_candidates", ["chair"]),
            (Person(), {"exclude_item_ids": frozenset(SHOP.items)}, "none", "unknown_user", []),
        ],
    )  # fmt: skip
    def test_the_ladder(
        self, catalogue: Catalogue, person: Person, request_: dict, level: str, reason: str | None, items: list[str]
    ) -> None:
        answer = slate(catalogue, person, **{"user_id": "u1", **request_})
        assert (answer.fallback_level, answer.fallback_reason, ids(answer)) == (level, reason, items)

    def test_sources_and_words_of_the_rungs(self, catalogue: Catalogue) -> None:
        def first(person: Person, **request: object) -> tuple[Source, str | None, str]:
            item = slate(catalogue, person, num_results=1, **request).items[0]
            assert len(item.reasons) == 1
            return item.source, item.reasons[0].item_id, item.reasons[0].text

        told = Person(candidates=night(("pan", 1.0), reason="rug"))
        assert first(told) == (Source.ALS, "rug", "because of your interest in rug")  # no title: its id
        assert first(Person(segment="Home > Garden")) == (Source.SEGMENT, None, "popular in Home, where you look most")
        assert first(Person(), category=KITCHEN) == (Source.CATEGORY, None, "popular in Home > Kitchen")
        assert first(Person(), region="DE") == (Source.REGION, None, "popular in DE")
        assert first(Person()) == (Source.POPULARITY, None, "popular with everybody")

    def test_a_past_item_that_left_the_catalogue_is_not_named(self, catalogue: Catalogue) -> None:
        rows = [(N["pan"], 1.0, int(Source.ALS), 0, 4_000_000)]  # number 0 is a gap
        reasons = slate(catalogue, Person(candidates=rows), num_results=1).items[0].reasons
        assert [(r.item_id, r.text) for r in reasons] == [(None, "similar to what you and others like you chose")]


class TestFilters:
    def test_every_filter_counts_distinct_items(self, catalogue: Catalogue) -> None:
        state = SessionState(
            events=[event("lamp", 60)],
            bought=[ItemMark(1, "mug"), ItemMark(2, "gone from the shop")],
            dismissed=[ItemMark(1, "cup"), ItemMark(3, "mug")],  # mug: both; counted as bought
        )
        rows = night(*((item, 20.0 - i) for i, item in enumerate(SHOP.items)))
        rows.append((999, 0.5, int(Source.ALS), NO_REASON, NO_REASON))
        answer = slate(
            catalogue,
            Person(candidates=rows, session=state),
            num_results=10,
            user_id="u1",
            session_id="s1",
            exclude_item_ids=frozenset({"rug", "nobody knows"}),
        )
        assert sorted(ids(answer)) == ["chair", "pan", "pot"]
        assert answer.filtered == {
            "bought": 1,
            "dismissed": 1,
            "excluded": 1,
            "expired": 1,
            "hidden": 1,
            "not_in_bundle": 1,
            "out_of_stock": 2,
            "seen_in_session": 1,
        }

    def test_bought_and_dismissed_stay_away_in_every_session_but_seen_only_in_its_own(
        self, catalogue: Catalogue
    ) -> None:
        state = SessionState(
            events=[event("pan", 10), event("lamp", 5, "impression")],
            bought=[ItemMark(1, "mug")],
            dismissed=[ItemMark(1, "cup")],
        )
        person = Person(candidates=night(("mug", 4), ("cup", 3), ("pan", 2), ("lamp", 1)), session=state)
        assert "pan" not in ids(slate(catalogue, person, session_id="s1"))
        assert ids(slate(catalogue, person, session_id="another", num_results=2)) == ["pan", "lamp"]

    @pytest.mark.parametrize(("kind", "name"), [("purchase", "bought"), ("not_interested", "dismissed")])
    def test_the_requests_own_events_filter_too(self, catalogue: Catalogue, kind: str, name: str) -> None:
        answer = slate(catalogue, recent_events=[event("lamp", 0, kind)], num_results=4)
        assert "lamp" not in ids(answer)
        assert answer.filtered[name] == 1


STEPS = [0.05, 0.1, 0.3, 0.5, 0.7, 0.9]
"""Similarities that tie often."""


class TestScore:
    def test_ballots_decay_by_position_and_time(self, catalogue: Catalogue) -> None:
        session = [
            event("nothing like it", 9999),
            event("mug", 1900),
            event("lamp", 500, "impression"),  # does not vote, takes no position
            event("cup", 100, "add_to_cart"),
        ]
        ballots = session_ballots(session, catalogue, TUNING)
        # cup: cart 2.0 at position 0; mug: 1.0 x 0.9 x half for 1800 s before the newest vote
        assert [(b.event.item_id, b.weight) for b in ballots] == [("cup", 2.0), ("mug", pytest.approx(0.45))]
        assert effective_weight(ballots, TUNING) == pytest.approx(3 * 2.45 / 3.45)

    def test_only_the_last_events_vote_and_items_without_neighbours_do_not(self, catalogue: Catalogue) -> None:
        session = [event("mug", 40), event("lamp", 30), event("cup", 20), event("pan", 10)]
        two = replace(TUNING, session_events=2)
        assert [b.event.item_id for b in session_ballots(session, catalogue, two)] == ["pan", "cup"]

    def test_votes_are_shares_of_the_loudest_item_that_may_be_shown(self, catalogue: Catalogue) -> None:
        ballots = session_ballots([event("mug", 1900), event("cup", 100)], catalogue, TUNING)
        votes = count_votes(ballots, lambda numbers: [number for number in numbers if number == N["pot"]])
        # cup 1.0, mug 0.45: lamp 0.4, sofa 0.4, cup 0.45 x 0.9 = 0.405, rug 0.45 x 0.2 = 0.09; pot (0.98) is not shown
        assert votes == {
            N["cup"]: 1.0,
            N["lamp"]: pytest.approx(0.4 / 0.405),
            N["sofa"]: pytest.approx(0.4 / 0.405),
            N["rug"]: pytest.approx(0.09 / 0.405),
        }

    @given(
        ballots=st.lists(
            st.tuples(st.sampled_from([0.3, 1.0, 2.0]), st.dictionaries(st.integers(0, 30), st.sampled_from(STEPS))),
            min_size=1,
            max_size=4,
        ),
        bases=st.dictionaries(st.integers(0, 30), st.sampled_from([0.001, 0.25, 0.5, 1.0])),
        weight=st.sampled_from([0.5, 2.0, 10_000.0]),
        wanted=st.integers(1, 6),
    )
    @settings(max_examples=300)
    def test_votes_that_cannot_matter_are_not_worked_out(
        self,
        ballots: list[tuple[float, dict[int, float]]],
        bases: dict[int, float],
        weight: float,
        wanted: int,
    ) -> None:
        def best(votes: dict[int, float]) -> list[tuple[float, int]]:
            scored = {n: bases.get(n, 0.0) + weight * votes.get(n, 0.0) for n in {*bases, *votes}}
            return sorted(((-score, n) for n, score in scored.items() if score > 0))[:wanted]

        cast = [Ballot(event("x", 1), at, loudness, near) for at, (loudness, near) in enumerate(ballots)]
        some = count_votes(cast, lambda _: [], wanted=wanted, weight=weight)
        everything = count_votes(cast, lambda _: [])
        assert some.items() <= everything.items()
        assert best(some) == best(everything)

    def test_far_behind_is_left_out_and_a_tie_is_not(self) -> None:
        near = {1: 0.9, 2: 0.8, 3: 0.5, 4: 0.3, 5: 0.299}
        ballots = [Ballot(event("x", 1), 0, 1.0, near)]
        # the second best has 0.8; with the best base, 1.0, and a weight of 0.9 / 0.5 an item needs 0.8 - 0.5 = 0.3
        some = count_votes(ballots, lambda _: [], wanted=2, weight=1.8)
        assert some == {1: 1.0, 2: 0.8 / 0.9, 3: 0.5 / 0.9, 4: 0.3 / 0.9}
        assert len(count_votes(ballots, lambda _: [], wanted=5, weight=1.8)) == 5
        assert len(count_votes(ballots, lambda _: [], wanted=2, weight=1.0)) == 5

    def test_a_slate_after_two_clicks(self, catalogue: Catalogue) -> None:
        person = Person(
            candidates=night(("pan", 10.0), ("lamp", 5.0), ("rug", 2.0), reason="chair"),
            session=SessionState(events=[event("mug", 1900), event("cup", 100)]),
        )
        answer = slate(catalogue, person, user_id="u1", session_id="s1", num_results=4)
        # weight 3 x 1.45 / 2.45 = 1.7755; votes pot 1, lamp 0.4 / 0.98, rug 0.09 / 0.98
        assert [(i.item_id, i.source, round(i.score, 6)) for i in answer.items] == [
            ("pot", Source.SESSION, 0.639706),  # 1.7755 / 2.7755, new
            ("lamp", Source.SESSION, 0.441252),  # (0.5 + 1.7755 x 0.408163) / 2.7755: votes outweigh the base
            ("pan", Source.ALS, 0.360294),  # 1 / 2.7755
            ("rug", Source.ALS, 0.130807),  # (0.2 + 0.163057) / 2.7755: the night's word is louder
        ]
        assert [tuple(reason.item_id for reason in item.reasons) for item in answer.items] == [
            ("cup", "mug"), ("cup",), ("chair",), ("chair",),
        ]  # fmt: skip
        assert answer.items[0].reasons[0].text == "because you viewed Tea Cup"
        assert answer.session_weight == pytest.approx(1.7755102)

    def test_an_item_that_the_votes_lifted_into_the_slate_names_them(self, catalogue: Catalogue) -> None:
        person = Person(
            candidates=night(("pan", 10.0), ("lamp", 9.9), ("rug", 9.8), reason="chair"),
            session=SessionState(events=[event("mug", 100, "purchase")]),
        )
        answer = slate(catalogue, person, user_id="u1", session_id="s1", num_results=3)
        # weight 1.5; cup 1.5 / 2.5, rug (0.98 + 1.5 x 0.2 / 0.9) / 2.5 = 0.525, pan 1 / 2.5. Without votes the slate
        # is pan, lamp, rug: rug was there before, and its base is louder than its votes, so the night owns it.
        assert [(i.item_id, i.source) for i in answer.items] == [
            ("cup", Source.SESSION),
            ("rug", Source.ALS),
            ("pan", Source.ALS),
        ]
        assert answer.items[0].reasons[0].text == "because you bought Blue Mug"
        # Of two places it would have had none: the votes own it.
        one = slate(catalogue, person, user_id="u1", session_id="s1", num_results=2)
        assert [(i.item_id, i.source) for i in one.items] == [("cup", Source.SESSION), ("rug", Source.SESSION)]

    def test_events_on_one_item_add_up_and_speak_with_the_loudest_ones_words(self, catalogue: Catalogue) -> None:
        session = [event("mug", 3, "add_to_cart"), event("mug", 2), event("cup", 1)]
        answer = slate(catalogue, Person(session=SessionState(events=session)), session_id="s1", num_results=1)
        # For the pot: cup 1 x 0.8 = 0.8; mug (0.9 x 1 + 0.81 x 2) x 0.4 = 1.008: the mug is louder
        assert [(r.item_id, r.text) for r in answer.items[0].reasons] == [
            ("mug", "because you put Blue Mug in your cart"),
            ("cup", "because you viewed Tea Cup"),
        ]

    def test_dismissed_items_do_not_vote(self, catalogue: Catalogue) -> None:
        state = SessionState(events=[event("mug", 5)], dismissed=[ItemMark(NOW, "mug")])
        assert slate(catalogue, Person(session=state), session_id="s1").session_weight == 0

    def test_a_stranger_gets_session_votes_over_popular(self, catalogue: Catalogue) -> None:
        answer = slate(catalogue, session_id="s1", recent_events=[event("cup", 0)])
        assert (answer.fallback_level, answer.fallback_reason) == ("popular", "no_user")
        assert [(i.item_id, i.source) for i in answer.items] == [
            ("pot", Source.SESSION),  # 1.5 / 2.5 = 0.6
            ("lamp", Source.SESSION),  # base 60 / 90, half a vote: (0.667 + 1.5 x 0.5) / 2.5 = 0.567
            ("mug", Source.POPULARITY),  # base 30 / 90, tied with pan: by id
        ]

    def test_a_session_of_nothing_but_neighbours(self, catalogue: Catalogue) -> None:
        answer = slate(
            catalogue, recent_events=[event("cup", 0)], exclude_item_ids=frozenset({"lamp", "mug", "pan", "chair"})
        )
        assert (answer.fallback_level, ids(answer)) == ("session", ["pot"])


class TestConsentInTheSlate:
    def test_a_no_that_cannot_be_read_may_be_one(self) -> None:
        person = Person(consent_unknown=True, unavailable="session_damaged")
        assert as_allowed(SlateRequest(5, "u1"), person)[1:3] == (Person(), False)
        assert as_allowed(SlateRequest(5, "u1", personalize=True), person)[1:3] == (person, True)

    def test_without_consent_person_and_session_do_not_exist(self, catalogue: Catalogue) -> None:
        state = SessionState(events=[event("cup", 5)], bought=[ItemMark(1, "lamp")], flags=FLAG_PERSONALIZE_DENIED)
        person = Person(candidates=night(("pan", 1.0)), session=state, segment=KITCHEN)
        denied = slate(catalogue, person, user_id="u1", session_id="s1", recent_events=[event("mug", 0)])
        nobody = slate(catalogue)
        assert denied.items == nobody.items
        assert (denied.fallback_level, denied.fallback_reason) == ("popular", "consent")
        assert (denied.personalized, denied.session, denied.session_weight) == (False, [], 0.0)

    def test_a_bot_gets_what_nobody_in_particular_gets(self, catalogue: Catalogue) -> None:
        state = SessionState(events=[event("cup", 5)], flags=FLAG_BOT)
        person = Person(candidates=night(("pan", 1.0)), session=state, segment=KITCHEN)
        bot = slate(catalogue, person, user_id="u1", session_id="s1", personalize=True)
        assert bot.items == slate(catalogue).items
        assert (bot.fallback_level, bot.fallback_reason, bot.personalized) == ("popular", "bot", False)
        state.flags |= FLAG_PERSONALIZE_DENIED  # who says no hears that their no was heard
        assert slate(catalogue, person, user_id="u1").fallback_reason == "consent"

    def test_place_still_counts(self, catalogue: Catalogue) -> None:
        answer = slate(catalogue, Person(segment=HOME), user_id="u1", personalize=False, category=KITCHEN)
        assert (answer.fallback_level, answer.fallback_reason, ids(answer)[0]) == ("category", "consent", "mug")


class TestOrder:
    def test_ties_break_by_item_id_and_scores_that_are_no_numbers_leave(self) -> None:
        item_ids = ["pot", "mug", "cup", "pan", "rug", "lamp"]
        scores = dict(enumerate([1.0, 1.0, math.nan, 2.0, math.inf, -math.inf]))
        assert order_candidates(scores, 2, item_ids) == [3, 1]
        assert order_candidates(scores, 9, item_ids) == [3, 1, 0]
        assert order_candidates({2: math.nan}, 9, item_ids) == []
        assert order_candidates({}, 9, item_ids) == []

    def test_a_slate_has_a_size(self) -> None:
        with pytest.raises(RequestError, match="got 0"):
            order_candidates({}, 0, [])


class TestSlate:
    def test_undoing_the_clicks_restores_the_first_slate(self, catalogue: Catalogue) -> None:
        person = Person(candidates=night(("pan", 10.0), ("lamp", 5.0), ("mug", 2.0), reason="cup"))
        before = slate(catalogue, person, user_id="u1", session_id="s0")
        clicked = replace(person, session=SessionState(events=[event("cup", 5)]))
        during = slate(catalogue, clicked, user_id="u1", session_id="s1")
        after = slate(catalogue, clicked, user_id="u1", session_id="s2")
        assert ids(during) != ids(before)
        assert after.items == before.items

    def test_stage_times_come_from_the_timer(self, catalogue: Catalogue) -> None:
        stages = ["consent", "identify", "session", "candidates", "score", "order", "explain"]
        assert slate(catalogue, explain=True).stage_micros == dict.fromkeys(stages, 5)
        assert slate(catalogue).stage_micros == {}  # nobody asked


class TestSimilar:
    def ask(self, catalogue: Catalogue, item: str, count: int, *excluded: str) -> tuple[list[str], str, dict[str, int]]:
        request = SlateRequest(count, exclude_item_ids=frozenset(excluded), explain=True)
        found = similar_items(N[item], request, Person(), catalogue, Tuning(), now_micros=NOW)
        return [i.item_id for i in found.items], found.fallback_level, dict(found.filtered)

    def test_neighbours_first_then_the_category_then_everybody(self, catalogue: Catalogue) -> None:
        assert self.ask(catalogue, "cup", 2) == (["pot", "lamp"], "similar", {"out_of_stock": 1})
        assert self.ask(catalogue, "cup", 4, "lamp") == (
            ["pot", "mug", "pan", "chair"],
            "similar",
            {"excluded": 1, "out_of_stock": 1},
        )
        assert self.ask(catalogue, "chair", 2)[:2] == (["lamp", "mug"], "category")  # its one neighbour is out of stock

    def test_reasons_name_the_asked_item_only_where_it_is_the_reason(self, catalogue: Catalogue) -> None:
        found = similar_items(N["cup"], SlateRequest(3), Person(), catalogue, Tuning(), now_micros=NOW)
        assert [(i.item_id, i.reasons[0].item_id, i.reasons[0].text) for i in found.items] == [
            ("pot", "cup", "similar to Tea Cup"),
            ("lamp", "cup", "similar to Tea Cup"),
            ("mug", None, "popular in Home > Kitchen"),
        ]


class TestTheShortWay:
    """What is left out because it cannot be in the slate never changes the slate."""

    SIZE = 40

    @pytest.fixture(scope="class")
    def shelf(self, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
        drawn = random.Random(5)
        names = [f"n{number:02d}" for number in range(self.SIZE)]
        near = {
            name: [(other, round(drawn.random(), 1)) for other in drawn.sample(names, 12)]
            for name in drawn.sample(names, 30)
        }
        listed = [(name, float(self.SIZE - at // 2)) for at, name in enumerate(drawn.sample(names, 30))]
        facts = {name: {"title": name.upper(), "category": HOME} for name in names}
        for name in names[::9]:
            facts[name]["availability"] = "OUT_OF_STOCK"
        sold = Shop(facts, neighbours=near, popular=listed, static=[(name, 1.0) for name in names])
        return sold.catalogue(tmp_path_factory.mktemp("publications"))

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_it_leads_where_the_long_way_leads(self, shelf: Catalogue, data: st.DataObject) -> None:
        number = st.integers(0, self.SIZE - 1)
        version = "2024-03-08-00000001"
        numbers = data.draw(st.lists(number, unique=True, max_size=30))
        some = st.sampled_from([3.0, 2.0, 1.5, 1.0, 0.5, 0.001, -1.0])
        scores = sorted(data.draw(st.lists(some, min_size=30, max_size=30)), reverse=True)
        packed = [PackedCandidate(n, s, Source.ALS, 3) for n, s in zip(numbers, scores, strict=False)]
        rows, _ = open_candidates(pack_candidates(version, packed), version)
        kinds = st.sampled_from(["view_item", "add_to_cart", "purchase", "not_interested"])
        clicks = data.draw(st.lists(st.tuples(number, kinds, st.integers(0, 4000)), max_size=6))
        events = sorted([event(f"n{n:02d}", ago, kind) for n, kind, ago in clicks], key=lambda one: one.micros)
        person = Person(candidates=rows, session=SessionState(events=events))
        excluded = frozenset(f"n{n:02d}" for n in data.draw(st.lists(number, max_size=5)))
        size = data.draw(st.integers(1, 45))

        def answer(**more: object) -> Slate:
            asked = SlateRequest(size, "u1", session_id="s1", exclude_item_ids=excluded, **more)  # type: ignore[arg-type]
            return build_slate(asked, person, shelf, TUNING, now_micros=NOW, timer=lambda: 0)

        short, long = answer(), answer(explain=True)
        assert short.items == long.items
        assert (short.fallback_level, short.fallback_reason) == (long.fallback_level, long.fallback_reason)
        if len(short.items) < size:
            assert short.filtered == long.filtered
