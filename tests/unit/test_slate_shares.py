"""What each source has of a served item's relevance, by hand: lists and sessions, rungs, chance, old records; and that
relevance falls by the share of what is taken away."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.contracts.list_shares import ListPart, pack_shares
from feature_repo.contracts.packing import (
    FLAG_PERSONALIZE_DENIED,
    PackedCandidate,
    SessionEvent,
    SessionState,
    Source,
    open_candidates,
    pack_candidates,
)
from serving.api.rendering import explained_items, explained_list
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.placements import SlateRules
from serving.pipeline.policy import SlatePolicy
from serving.pipeline.rank_given import UNKNOWN_ITEM, rank_given
from serving.pipeline.shares import in_a_sentence, shares_of_slate, slate_shares
from serving.pipeline.similar import similar_items
from serving.pipeline.slate import build_slate
from serving.pipeline.values import Person, Reason, Slate, SlateItem, SlateRequest, SourceShare, Tuning
from tests.serving_builders import Shop

SECOND = 1_000_000
NOW = 1_709_900_000 * SECOND  # 2024-03-08T12:13:20Z
TUNING = Tuning(session_weight=3.0, session_weight_alone=3.0)
"""One click of now is as loud as 3 x 1 / (1 + 1) = 1.5."""
SHOP = Shop(
    {item: {"title": item.capitalize(), "category": "Home"} for item in ("mug", "cup", "pot", "pan", "lamp", "rug")},
    neighbours={"lamp": [("pot", 0.8), ("cup", 0.4)]},
    popular=[("rug", 90.0), ("pan", 60.0), ("mug", 30.0)],
    by_category={"Home": [("rug", 9.0)]},
    static=[("pan", 1.0)],
)
N = SHOP.numbers
PARTS = (ListPart.ALS, ListPart.ITEM_KNN)
CLICK = SessionState(events=[SessionEvent(NOW - SECOND, "view_item", 1, "lamp")])


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return SHOP.catalogue(tmp_path_factory.mktemp("publications"))


def of_night(catalogue: Catalogue, *, tells: bool = True, cup: float = 0.5) -> Person:
    """mug 1 (als .7, item_knn .3), cup .5 (als .6, item_knn .4), pan .25 (nothing speaks for it)."""
    rows = [PackedCandidate(N["mug"], 1.0, Source.ALS), PackedCandidate(N["cup"], cup, Source.ALS, N["rug"]),
            PackedCandidate(N["pan"], 0.25, Source.ALS)]  # fmt: skip
    shares = pack_shares(PARTS, [(175, 75), (150, 100), None]) if tells else b""
    record = pack_candidates(catalogue.version, rows, shares=shares)
    return Person(open_candidates(record, catalogue.version)[0])


def slate(catalogue: Catalogue, person: Person, **asked: object) -> Slate:
    ticks = itertools.count()
    request = SlateRequest(**{"num_results": 4, "user_id": "u1", "explain": True, **asked})  # type: ignore[arg-type]
    return build_slate(request, person, catalogue, TUNING, now_micros=NOW, timer=lambda: next(ticks))


def told(found: Slate) -> dict[str, dict[str, float]]:
    by_item = {
        item.item_id: {share.name: share.share for share in shares}
        for item, shares in zip(found.items, shares_of_slate(found), strict=True)
    }
    for shares in by_item.values():
        assert sum(shares.values()) == pytest.approx(1.0, abs=1e-12)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    return by_item


def clicked(person: Person) -> Person:
    person.session = CLICK
    return person


def test_the_list_and_the_session_by_hand(catalogue: Catalogue) -> None:
    """Votes: pot 1, cup .5, times 1.5. pot 0 + 1.5, cup .5 + .75, mug 1 + 0, pan .25 + 0."""
    found = slate(catalogue, clicked(of_night(catalogue)))
    assert found.session_weight == 1.5
    assert told(found) == {
        "pot": {"session": 1.0},
        "cup": {"session": 0.6, "als": 0.24, "item_knn": 0.16},  # .75 of 1.25; .6 and .4 of the other .5
        "mug": {"als": 0.7, "item_knn": 0.3},
        "pan": {"list": 1.0},  # the night did not know why either
    }


def test_relevance_falls_by_the_share_of_what_is_taken_away(catalogue: Catalogue) -> None:
    def relevance(found: Slate, item_id: str) -> float:
        score = next(item.score for item in found.items if item.item_id == item_id)
        return score * (1 + found.session_weight)

    whole = slate(catalogue, clicked(of_night(catalogue)))
    shares = told(whole)["cup"]
    assert relevance(whole, "cup") == pytest.approx(1.25)
    without_session = slate(catalogue, of_night(catalogue))
    assert relevance(without_session, "cup") == pytest.approx(1.25 * (1 - shares["session"]))
    assert "session" not in told(without_session)["cup"]
    without_part = slate(catalogue, clicked(of_night(catalogue, cup=0.5 * 0.6)))  # the night's score by als alone
    assert relevance(without_part, "cup") == pytest.approx(1.25 * (1 - shares["item_knn"]))


def test_a_record_of_before_is_one_source(catalogue: Catalogue) -> None:
    found = told(slate(catalogue, clicked(of_night(catalogue, tells=False))))
    assert found["cup"] == {"session": 0.6, "list": 0.4}
    assert found["mug"] == {"list": 1.0}
    row = (N["mug"], 1.0, int(Source.ALS), 2**32 - 1, 2**32 - 1)
    assert told(slate(catalogue, Person([row])))["mug"] == {"list": 1.0}


def test_who_has_only_a_session_and_who_has_nothing(catalogue: Catalogue) -> None:
    visitor = slate(catalogue, clicked(Person()), user_id=None, anonymous_id="a1")
    assert told(visitor) == {
        "pot": {"session": 1.0},
        "rug": {"popularity": 1.0},
        "cup": {"session": 1.0},
        "pan": {"popularity": 1.0},
    }
    nobody = slate(catalogue, Person(), user_id=None, num_results=2, category="Home")
    assert told(nobody) == {"rug": {"category": 1.0}, "pan": {"popularity": 1.0}}


def test_who_said_no_has_neither_list_nor_session(catalogue: Catalogue) -> None:
    person = clicked(of_night(catalogue))
    person.session = SessionState(events=CLICK.events, flags=FLAG_PERSONALIZE_DENIED)
    assert {name for shares in told(slate(catalogue, person)).values() for name in shares} == {"popularity"}


def test_what_chance_put_there_says_exploration(catalogue: Catalogue) -> None:
    explored, kept = 0, 0
    for seed in range(40):
        policy = SlatePolicy(SlateRules(exploration=0.5), "home", seed=str(seed))
        found = slate(catalogue, clicked(of_night(catalogue)), policy=policy, num_results=2)
        assert found.policy is not None
        places = {rank - 1 for rank in found.policy["exploration"]["ranks"]}
        for place, shares in enumerate(told(found).values()):
            assert (shares == {"exploration": 1.0}) == (place in places)
            explored, kept = explored + (place in places), kept + (place not in places)
    assert min(explored, kept) > 20


def test_nobody_pays_who_does_not_ask(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nobody asked for shares")

    monkeypatch.setattr("serving.pipeline.slate.slate_shares", never)
    monkeypatch.setattr("serving.pipeline.rank_given.slate_shares", never)
    for more in ({}, {"policy": SlatePolicy(SlateRules(exploration=0.5), "home")}, {"num_results": 40}):
        assert slate(catalogue, clicked(of_night(catalogue)), explain=False, **more).shares == ()
    with pytest.raises(AssertionError, match="nobody asked"):
        slate(catalogue, clicked(of_night(catalogue)))


def test_given_items_have_theirs_too(catalogue: Catalogue) -> None:
    request = SlateRequest(9, user_id="u1", explain=True)
    found = rank_given(
        ["lamp", "rug", "cup", "no such item"], request, clicked(of_night(catalogue)), catalogue, TUNING,
        now_micros=NOW, timer=itertools.count().__next__,
    )  # fmt: skip
    # of the asked items only cup has a vote, so it is the loudest: .5 + 1.5 x 1
    assert told(found) == {
        "cup": {"session": 0.75, "als": 0.15, "item_knn": 0.1},
        "rug": {"popularity": 1.0},
        "lamp": {"given": 1.0},
        "no such item": {"given": 1.0},
    }


def test_a_list_that_blends_nothing_has_one_source_each(catalogue: Catalogue) -> None:
    found = similar_items(N["lamp"], SlateRequest(3, explain=True), Person(), catalogue, TUNING, now_micros=NOW)
    assert told(found) == {"pot": {"item_knn": 1.0}, "cup": {"item_knn": 1.0}, "rug": {"category": 1.0}}


MUG = Reason("mug", "Mug", "because you viewed Mug")
POPULAR = Reason(None, None, "popular with everybody")


@pytest.mark.parametrize(
    ("shares", "reasons", "expected"),
    [
        ([("als", 0.62), ("session", 0.38)], [MUG],
         "Liked by people with a taste like yours (62 %), what goes with what you do right now (38 %), because you "
         "viewed Mug."),
        ([("session", 1.0)], [MUG, Reason("pot", "Pot", "because you bought Pot")],
         "What goes with what you do right now, because you viewed Mug and because you bought Pot."),
        ([("popularity", 1.0)], [POPULAR], "Popular with everybody."),
        ([("als", 0.4), ("ease", 0.3), ("item_knn", 0.2), ("popularity", 0.0996), ("other", 0.0004)], [],
         "Like items that you chose (50 %), liked by people with a taste like yours (40 %), popular with everybody "
         "(10 %)."),
        ([("als", 0.9995), ("popularity", 0.0005)], [],
         "Liked by people with a taste like yours (more than 99 %), popular with everybody (less than 1 %)."),
        ([("als", 0.3333), ("content", 0.3334), ("popularity", 0.3333)], [],  # rounding can turn what is nearly equal
         "Described like items that you chose (33 %), liked by people with a taste like yours (33 %), popular with "
         "everybody (33 %)."),
        ([("exploration", 1.0)], [MUG], "Tried out by chance, to learn whether people like it."),
        ([("a later name", 1.0)], [], "A later name."),
    ],
)  # fmt: skip
def test_in_words(shares: list[tuple[str, float]], reasons: Sequence[Reason], expected: str) -> None:
    assert in_a_sentence(tuple(SourceShare(*share) for share in shares), tuple(reasons)) == expected


@given(
    base=st.floats(0, 1, allow_subnormal=False), vote=st.floats(0, 1), weight=st.floats(0, 10_000),
    marks=st.lists(st.integers(0, 250), min_size=3, max_size=3),
)  # fmt: skip
def test_shares_sum_to_one_whatever_they_are(base: float, vote: float, weight: float, marks: list[int]) -> None:
    ends = [0, *sorted(marks), 250]
    units = tuple(b - a for a, b in itertools.pairwise(ends))
    version = "2024-03-08-1a2b3c4d"
    record = pack_candidates(version, [PackedCandidate(1, 1.0, 3)], shares=pack_shares([5, 4, 8, 0], [units]))
    rows, _ = open_candidates(record, version)
    item = SlateItem(1, "i1", 0.0, base, vote, Source.ALS, ())
    (shares,) = slate_shares([item], weight=weight, candidates=rows, origins={})
    total = base + weight * vote
    assert sum(share.share for share in shares) == pytest.approx(1.0, abs=1e-12)
    assert all(share.share > 0 and share.share == round(share.share, 4) for share in shares)
    if total > 0:
        by_name = {share.name: share.share for share in shares}
        assert by_name.get("session", 0.0) == pytest.approx(weight * vote / total, abs=1.1e-4)
        assert by_name.get("als", 0.0) == pytest.approx(units[0] / 250 * base / total, abs=1.1e-4)


def test_shares_are_rounded_as_decimals_are() -> None:
    """All halves of the last place, and what is a hair beside them: als has n / 20,000, the session the rest."""
    for n in range(1, 20_000):
        for base in (n / 20_000, n / 20_000 * (1 + 1e-15), n / 20_000 * (1 - 1e-9)):
            vote = 1.0 - base
            item = SlateItem(1, "i1", 0.0, base, vote, Source.ALS, ())
            (shares,) = slate_shares([item], weight=1.0, candidates=None, origins={1: (int(Source.ALS), 0, 0)})
            first = round(max(base, vote) / (base + vote), 4)
            rest = [round(1.0 - first, 4)] if first < 1.0 else []
            assert [share.share for share in shares] == [first, *rest]
            assert shares[0].name == ("als" if base >= vote else "session")


PAST = [
    MUG,
    POPULAR,
    Reason("pot", 'a "quoted" pot', 'because you bought a "quoted"\n pot'),
    Reason("ü", "Ü\u2028", "Ü \\ é"),
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["mug", "pan", "unknown"]),
            st.lists(st.sampled_from(PAST), max_size=3),
            st.lists(
                st.tuples(
                    st.sampled_from(["als", "ease", "item_knn", "session", "exploration", "other", "popularity"]),
                    st.integers(1, 10_000),
                ),
                min_size=1, max_size=5, unique_by=lambda share: share[0],
            ),
        ),
        max_size=6,
    )
)  # fmt: skip
def test_they_are_written_as_the_encoder_writes_them(
    catalogue: Catalogue, items: list[tuple[str, list[Reason], list[tuple[str, int]]]]
) -> None:
    slate = Slate([], "personal", None, {}, [], [], 0.0, True, {})
    slate.items = [
        SlateItem(N.get(item, UNKNOWN_ITEM), item, 0.5, 0.5, 0.0, Source.ALS, tuple(reasons))
        for item, reasons, _ in items
    ]
    slate.shares = [
        tuple(SourceShare(name, share / 10_000) for name, share in sorted(shares, key=lambda share: -share[1]))
        for _, _, shares in items
    ]
    assert orjson.dumps(explained_list(slate, catalogue)) == orjson.dumps(explained_items(slate, catalogue, ()))


def test_every_share_is_written_as_the_encoder_writes_it(catalogue: Catalogue) -> None:
    slate = Slate(
        [SlateItem(N["mug"], "mug", 0.5, 0.5, 0.0, Source.ALS, ())] * 10_000, "", None, {}, [], [], 0, True, {}
    )
    slate.shares = [(SourceShare("als", units / 10_000),) for units in range(1, 10_001)]
    assert orjson.dumps(explained_list(slate, catalogue)) == orjson.dumps(explained_items(slate, catalogue, ()))


def test_a_relevance_of_next_to_nothing_has_a_source() -> None:
    """A quarter of the smallest number is none."""
    version, shares = "2024-03-08-1a2b3c4d", pack_shares([5, 4, 8, 0], [(60, 60, 70, 60)])
    rows, _ = open_candidates(pack_candidates(version, [PackedCandidate(1, 1.0, 3)], shares=shares), version)
    item = SlateItem(1, "i1", 0.0, 5e-324, 0.0, Source.ALS, ())
    assert slate_shares([item], weight=0.0, candidates=rows, origins={}) == [(SourceShare("als", 1.0),)]
