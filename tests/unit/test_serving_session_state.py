"""What events do to a session record: the set of events decides, not their order or how often they come."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.packing import (
    FLAG_PERSONALIZE_DENIED,
    ItemMark,
    SessionState,
    pack_session,
    session_hash,
    unpack_session,
)
from serving.speed.entries import read_event
from serving.speed.positions import after, position_number, receipt_micros, stream_id_of
from serving.speed.session_state import MAX_EVENTS, MAX_MARKS, apply_event

SECOND = 1_000_000
NOON = 1_709_899_200 * SECOND  # 2024-03-08T12:00:00Z


def event(kind: str, second: int, item: str | None = None, **more: Any) -> dict[str, Any]:
    base = {"event_id": f"{kind}{second}{item}", "event_type": kind, "user_id": "u1"}
    moment = datetime(2024, 3, 8, 12, second // 60, second % 60, tzinfo=UTC)
    return {**base, "timestamp": moment, **({"item_id": item} if item else {}), **more}


def after_all(*events: dict[str, Any]) -> SessionState:
    return reduce(apply_event, events, SessionState())


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
    words = [event("page_view", 10, consent={"personalize": answer}) for answer in (True, False)]
    assert [after_all(*order).flags for order in itertools.permutations(words)] == [FLAG_PERSONALIZE_DENIED] * 2


def test_the_newest_are_kept() -> None:
    state = after_all(*(event("view_item", second, f"i{second}") for second in range(MAX_EVENTS + 10)))
    assert len(state.events) == MAX_EVENTS
    assert state.events[0].item_id == "i10"
    assert apply_event(state, event("view_item", 5, "too old")) == state
    bought = after_all(*(event("purchase", s, f"i{s:04d}") for s in range(MAX_MARKS + 3))).bought
    assert (len(bought), bought[0].item_id) == (MAX_MARKS, "i0003")


def test_the_argument_stays_as_it_is() -> None:
    before = after_all(event("view_item", 1, "a"), event("purchase", 2, "b"), event("dislike", 3, "c"))
    packed = pack_session(before)
    apply_event(before, event("purchase", 9, "d", consent={"personalize": False}))
    apply_event(before, event("dislike", 9, "e"))
    assert pack_session(before) == packed


_EVENTS = st.lists(
    st.builds(
        event,
        st.sampled_from(["view_item", "purchase", "not_interested", "add_to_cart", "page_view"]),
        st.integers(0, 90),
        st.sampled_from("abcdef"),
        consent=st.sampled_from([{}, {"personalize": True}, {"personalize": False}]),
        session_id=st.sampled_from(["s1", "s2"]),
    ),
    max_size=70,
)


@settings(max_examples=60, deadline=None)
@given(_EVENTS, st.randoms())
def test_order_and_repetition_do_not_matter(events: list[dict[str, Any]], random: Any) -> None:
    shuffled = events + events[: len(events) // 2]
    random.shuffle(shuffled)
    state = after_all(*events)
    assert after_all(*shuffled) == state
    assert unpack_session(pack_session(state)) == state


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
