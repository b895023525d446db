"""What events do to a session record: the set of events decides, not their order or how often they come."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED
from feature_repo.contracts.session_record import (
    MAX_CART_CHANGES,
    MAX_EVENTS,
    MAX_INTERESTS,
    MAX_MARKS,
    MAX_SEEN,
    MAX_SHOWINGS,
    MAX_STEPS,
    CartChange,
    ItemMark,
    SessionState,
    Word,
    event_hash,
    pack_session,
    session_hash,
    unpack_session,
)
from serving.pipeline.cart import cart_contents
from serving.replays import _state_then
from serving.speed.entries import read_event
from serving.speed.positions import after, position_number, receipt_micros, stream_id_of
from serving.speed.session_state import fold_event, replay_session
from tests.session_oracle import oracle

SECOND = 1_000_000
NOON = 1_709_899_200 * SECOND  # 2024-03-08T12:00:00Z


def event(kind: str, second: int, item: str | None = None, **more: Any) -> dict[str, Any]:
    base = {"event_id": f"{kind}{second}{item}", "event_type": kind, "user_id": "u1"}
    moment = datetime(2024, 3, 8, 12, tzinfo=UTC) + timedelta(seconds=second)
    return {**base, "timestamp": moment, **({"item_id": item} if item else {}), **more}


def after_all(*events: dict[str, Any]) -> SessionState:
    state = SessionState()
    for one in events:
        fold_event(state, one)
    return state


def test_only_events_that_touch_an_item_are_kept_in_time_order() -> None:
    state = after_all(
        event("view_item", 30, "late"),
        event("page_view", 31),
        event("impression", 32, "shown"),
        event("view_item_list", 33, items=[{"item_id": "listed"}]),
        event("refund", 34, "returned"),
        event("add_to_cart", 10, "early", session_id="s1"),
        event("view_item", 30, "also late"),  # the same second: by item id
    )
    assert [(e.micros - NOON, e.event_type, e.item_id, e.session_hash) for e in state.events] == [
        (10 * SECOND, "add_to_cart", "early", session_hash("s1")),
        (30 * SECOND, "view_item", "also late", 0),
        (30 * SECOND, "view_item", "late", 0),
    ]
    assert (state.bought, state.dismissed) == ([], [])


def test_an_order_counts_line_by_line_and_a_second_purchase_moves_the_mark() -> None:
    order = event("purchase", 20, items=[{"item_id": "b", "quantity": 2}, {"item_id": "a"}])
    state = after_all(order, event("purchase", 5, "a"), event("purchase", 40, "b"))
    assert state.bought == [ItemMark(NOON + 20 * SECOND, "a"), ItemMark(NOON + 40 * SECOND, "b")]
    assert [e.item_id for e in state.events] == ["a", "a", "b", "b"]


@pytest.mark.parametrize("kind", ["dislike", "not_interested"])
def test_a_no_to_an_item_is_a_mark_and_no_event(kind: str) -> None:
    state = after_all(event(kind, 7, "x"))
    assert (state.events, state.dismissed) == ([], [ItemMark(NOON + 7 * SECOND, "x")])


def test_the_newest_word_about_personalization_holds() -> None:
    no, yes = {"consent": {"personalize": False}}, {"consent": {"personalize": True}}
    assert after_all(event("page_view", 10, **no)).flags == FLAG_PERSONALIZE_DENIED
    assert after_all(event("page_view", 10, **no), event("page_view", 11, **yes)).flags == 0
    assert after_all(event("page_view", 11, **yes), event("page_view", 10, **no)).flags == 0  # the no came late
    silent = after_all(event("page_view", 10, **no), event("page_view", 99, consent={"train": False}))
    assert (silent.flags, silent.consent_micros) == (FLAG_PERSONALIZE_DENIED, NOON + 10 * SECOND)


def test_two_opposite_words_of_one_instant_are_a_no() -> None:
    words = [event("page_view", 10, event_id=f"{answer}", consent={"personalize": answer}) for answer in (True, False)]
    assert [after_all(*order).flags for order in itertools.permutations(words)] == [FLAG_PERSONALIZE_DENIED] * 2


def test_the_newest_are_kept() -> None:
    state = after_all(*(event("view_item", second, f"i{second}") for second in range(MAX_EVENTS + 10)))
    assert len(state.events) == MAX_EVENTS
    assert state.events[0].item_id == "i10"
    kept = list(state.events)
    fold_event(state, event("view_item", 5, "too old"))
    assert state.events == kept
    bought = after_all(*(event("purchase", s, f"i{s:04d}") for s in range(MAX_MARKS + 3))).bought
    assert (len(bought), bought[0].item_id) == (MAX_MARKS, "i0003")


def test_every_list_forgets_its_oldest() -> None:
    kinds = {"steps": ("search", MAX_STEPS), "cart": ("remove_from_cart", MAX_CART_CHANGES),
             "dismissed": ("dislike", MAX_MARKS)}  # fmt: skip
    for name, (kind, limit) in kinds.items():
        rows = getattr(after_all(*(event(kind, second, f"i{second}") for second in range(limit + 2))), name)
        assert (len(rows), rows[0].micros) == (limit, NOON + 2 * SECOND), name
    seen = after_all(*(event("impression", second, f"i{second}") for second in range(MAX_SEEN + 2))).seen
    assert (len(seen), min(seen.values())) == (MAX_SEEN, NOON + 2 * SECOND)
    daily = [event("click", day * 86_400, "i") for day in range(MAX_INTERESTS + 1)]
    for order in (daily, daily[::-1]):
        days = after_all(*order).interests
        assert (len(days), min(days)) == (MAX_INTERESTS, (19_790 + 1, "i"))
    daily = [event("impression", day * 86_400, "i") for day in range(MAX_SHOWINGS + 1)]
    for order in (daily, daily[::-1]):
        days = after_all(*order).shown
        assert (len(days), min(days)) == (MAX_SHOWINGS, (19_790 + 1, "i"))


def test_showings_are_counted_by_day_and_only_they() -> None:
    lines = [{"item_id": "b"}, {"item_id": "a"}, {"item_id": "b"}]
    state = after_all(
        event("impression", 0, "a"), event("impression", 5, items=lines), event("impression", 43_200, "a"),
        event("view_item", 1, "a"), event("view_item_list", 2, items=lines),
    )  # fmt: skip
    assert state.shown == {(19_790, "a"): 2, (19_790, "b"): 2, (19_791, "a"): 1}


def test_events_without_an_item_are_steps_and_all_are_counted() -> None:
    state = after_all(
        event("search", 3, session_id="s1"), event("page_view", 2), event("impression", 4, "i"), event("click", 9, "i"),
        event("page_view", 7), event("view_item_list", 1, items=[{"item_id": "x"}]),
    )  # fmt: skip
    assert [(e.micros - NOON, e.event_type, e.session_hash) for e in state.steps] == [
        (2 * SECOND, "page_view", 0), (3 * SECOND, "search", session_hash("s1")), (7 * SECOND, "page_view", 0),
    ]  # fmt: skip
    assert state.counts == {"search": 1, "page_view": 2, "impression": 1, "click": 1, "view_item_list": 1}
    assert (state.first_micros, state.last_micros) == (NOON + SECOND, NOON + 9 * SECOND)
    assert state.seen == {"i": NOON + 9 * SECOND}


def test_the_cart_is_what_its_changes_say_in_their_own_order() -> None:
    changes = [
        event("add_to_cart", 1, "a"),
        event("add_to_cart", 2, "a", quantity=3),
        event("add_to_cart", 3, items=[{"item_id": "b", "quantity": 2}, {"item_id": "c"}]),
        event("remove_from_cart", 4, "a", quantity=1),
        event("remove_from_cart", 5, "c"),
        event("add_to_cart", 6, "d"),
        event("purchase", 7, "d"),
        event("add_to_cart", 8, "e"),
        event("remove_from_cart", 8, "e", quantity=9),
        event("remove_from_cart", 2, "b"),  # before it was put in
    ]
    for order in (changes, changes[::-1]):
        state = after_all(*order)
        assert dict(cart_contents(state)) == {"a": 3, "b": 2}
    assert state.cart[0] == CartChange(NOON + SECOND, False, 1, "a", event_hash("add_to_cart1a"))


def test_interests_weigh_items_by_day() -> None:
    state = after_all(
        event("view_item", 0, "a"), event("add_to_wishlist", 5, "a"), event("purchase", 86_400, "a"),
        event("dislike", 9, "a"), event("add_to_cart", 43_199, "b"),
    )  # fmt: skip
    assert state.interests == {(19_790, "a"): 5, (19_791, "a"): 2, (19_790, "b"): 4}


def test_a_subject_speaks_once_for_an_item_in_each_period_where_it_first_touched_it() -> None:
    state = after_all(event("click", 130, "a"), event("view_item", 65, "a"), event("view_item", 299, "a"))
    noon = NOON // SECOND
    assert state.votes == {(0, noon // 300): {"a": 1}, (1, noon // 3600): {"a": 0}, (2, noon // 86_400): {"a": 12}}
    later = after_all(*(event("click", 300 * period, "a") for period in (0, 2, 1, 3)))
    assert sorted(key for key in later.votes if key[0] == 0) == [(0, noon // 300 + 2), (0, noon // 300 + 3)]


def test_a_subject_speaks_for_eight_items_in_a_period_and_who_may_not_be_trained_on_for_none() -> None:
    everything = [event("click", number, f"i{number}") for number in range(30)]
    assert [len(items) for items in after_all(*everything).votes.values()] == [8, 8, 8]
    assert after_all(*everything).votes == after_all(*everything[::-1]).votes
    assert after_all(event("click", 1, "a", consent={"train": False})).votes == {}
    assert after_all(event("impression", 1, "a"), event("remove_from_cart", 1, "b")).votes == {}


def test_what_gives_way_leaves_no_region_behind() -> None:
    """Twelve items in DE: eight have votes in each window, and only they have a region; a period forgotten has none."""
    seen = [event("view_item", n, f"i{n}", context={"region": "DE"}) for n in range(12)]
    state = after_all(*seen)
    spoken = [(*period, item) for period, items in state.votes.items() for item in items]
    assert len(spoken) == 24
    assert state.regions == dict.fromkeys(spoken, "DE")
    later = after_all(*seen, *(event("view_item", 86_400 * n, "z", context={"region": "FR"}) for n in (1, 2)))
    assert set(later.regions.values()) == {"FR"}
    assert len(later.regions) == 6


def test_words_are_the_newest_said_and_the_first_referrer_the_oldest() -> None:
    shop, mail = "https://shop.example/a?b=c", "https://mail.example"
    state = after_all(
        event("page_view", 9, channel="app", context={"device": {"type": "phone"}, "page": {"referrer": shop}}),
        event("page_view", 5, channel="web", context={"device": "tablet", "referrer": mail, "locale": "de-DE"}),
        event("page_view", 12, context={"device": 7, "language": "x" * 70 + "\0", "referrer": "http://[broken"}),
        event("page_view", 8, context={"referrer": "\ud800"}),
    )
    assert state.words == {
        "channel": Word(NOON + 9 * SECOND, "app"), "device": Word(NOON + 9 * SECOND, "phone"),
        "referrer": Word(NOON + 12 * SECOND, "http://[broken"),
        "first_referrer": Word(NOON + 5 * SECOND, "mail.example"),
        "language": Word(NOON + 12 * SECOND, "x" * 64),
    }  # fmt: skip
    assert unpack_session(pack_session(state)) == state


def test_a_repeat_of_an_event_that_is_kept_changes_nothing() -> None:
    """Also without a dedup mark: an order, a click and a search delivered again after a day."""
    events = [
        event("purchase", 5, items=[{"item_id": "a"}, {"item_id": "b"}]), event("click", 7, "c"), event("search", 8),
    ]  # fmt: skip
    assert after_all(*events, *events) == after_all(*events)
    twins = [event("click", 7, "c"), {**event("click", 7, "c"), "event_id": "another"}]
    assert after_all(*twins).counts == {"click": 2}


_KINDS = ["view_item", "purchase", "not_interested", "add_to_cart", "remove_from_cart", "impression", "page_view"]
_EVENT = st.builds(
    event,
    st.sampled_from(_KINDS),
    st.integers(0, 400) | st.integers(0, 90) | st.integers(0, 20 * 86_400),
    st.sampled_from("abcdefghijklm"),
    consent=st.sampled_from([{}, {}, {"personalize": True}, {"personalize": False}, {"train": False}]),
    session_id=st.sampled_from(["s1", "s2"]),
    channel=st.sampled_from(["web", "app"]),
    context=st.sampled_from(
        [
            {},
            {"device": "phone"},
            {"referrer": "a.example"},
            {"referrer": "b.example"},
            {"region": "DE"},
            {"region": "FR"},
            {"region": "de", "device": "phone"},
        ]
    ),
    quantity=st.integers(1, 3),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_EVENT, max_size=130), st.randoms())
def test_the_set_of_events_decides_not_their_order_nor_how_often_they_come(
    events: list[dict[str, Any]], random: Any
) -> None:
    named = [{**one, "event_id": f"e{number}"} for number, one in enumerate(events)]
    deliveries = named + named[::3]
    random.shuffle(deliveries)
    state = replay_session(deliveries)
    assert state == oracle(named)
    packed = pack_session(state)
    assert packed == pack_session(oracle(named))
    assert unpack_session(packed) == state


def test_positions_are_numbers_that_grow_as_positions_grow() -> None:
    ids = ["0-0", "1709899200000-0", "1709899200000-1", "1709899200000-1048575", "1709899200001-0"]
    numbers = [position_number(one) for one in ids]
    assert numbers == sorted(set(numbers))
    assert [stream_id_of(number) for number in numbers] == ids
    assert numbers[-1] < 2**63
    assert after("1709899200000-7") == "1709899200000-8"
    assert receipt_micros("1709899200000-7") == NOON


def test_the_logs_clock_may_lag_behind_the_apis_by_a_day() -> None:
    taken_at = "1709899200000-0"  # noon of the 8th, by the log's clock
    text = '{"event_id":"e","event_type":"page_view","user_id":"u1","timestamp":"%s"}'
    event = read_event(taken_at, (text % "2024-03-10T12:00:00Z").encode())
    assert event["timestamp"] == datetime(2024, 3, 10, 12, tzinfo=UTC)
    with pytest.raises(DataError, match="timestamp_in_future"):
        read_event(taken_at, (text % "2024-03-10T12:00:01Z").encode())


@pytest.mark.parametrize("wrong", ["", "17", "x-1", "1-x", "1-1048576", "-1-2", f"{2**43}-0"])
def test_what_is_no_position_is_refused(wrong: str) -> None:
    with pytest.raises(ContractError, match="position"):
        position_number(wrong)


def test_what_was_known_at_an_instant_leaves_out_what_came_later() -> None:
    state = after_all(
        event("impression", 0, "a"), event("impression", 9, "b"), event("impression", 43_200, "a"),
        event("dislike", 5, "c"), event("purchase", 6, "d"),
    )  # fmt: skip
    then = _state_then(state, NOON + 5 * SECOND)
    assert then.shown == {(19_790, "a"): 1, (19_790, "b"): 1}, "of a day that had begun the instants are not known"
    assert (then.seen, then.bought) == ({}, [])
    assert [mark.item_id for mark in then.dismissed] == ["c"]
    assert then.events == []
