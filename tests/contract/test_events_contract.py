"""The rule table of events: each row of the table is broken once, and good events keep everything they said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import (
    DEFAULT_PREFERENCE_WEIGHTS,
    EVENT_TYPES,
    ITEM_REQUIRED,
    Reason,
    check_event,
    derived_event_id,
    expand_items,
    subject_key,
)
from feature_repo.contracts.packing import EVENT_TYPE_ORDER

RECEIVED = datetime(2024, 3, 8, 12, 0, tzinfo=UTC)
GOOD = {
    "event_id": "e1",
    "event_type": "view_item",
    "user_id": "u1",
    "item_id": "i1",
    "timestamp": "2024-03-08T11:59:00Z",
}


def checked(**changes: object) -> dict:
    event = {k: v for k, v in {**GOOD, **changes}.items() if v != "ABSENT"}
    good, rejection = check_event(event, received_at=RECEIVED)
    assert rejection is None, rejection
    return good


def nested(depth: int) -> dict:
    """So many objects inside one another; nested(1) is flat."""
    document: dict = {"value": 1}
    for _ in range(depth - 1):
        document = {"inner": document}
    return document


def rejected(event: object) -> tuple[str, str | None]:
    good, rejection = check_event(event, received_at=RECEIVED)
    assert good is None
    return rejection.reason.value, rejection.field


BROKEN = [
    ({"event_type": "ABSENT"}, "missing_event_type", "event_type"),
    ({"event_type": "veiw_item"}, "unknown_event_type", "event_type"),
    ({"event_type": ["view_item"]}, "unknown_event_type", "event_type"),
    ({"event_id": ""}, "invalid_event_id", "event_id"),
    ({"event_id": 7}, "invalid_event_id", "event_id"),
    ({"user_id": "ABSENT"}, "missing_subject", "user_id"),
    ({"event_type": "alias", "item_id": "ABSENT"}, "missing_subject", "user_id"),  # an alias says that two are one
    ({"event_type": "alias", "user_id": "ABSENT", "anonymous_id": "a1"}, "missing_subject", "user_id"),
    ({"properties": nested(32)}, "nested_too_deeply", "properties"),
    ({"items": nested(32)}, "nested_too_deeply", "items"),
    ({"colour": nested(31)}, "nested_too_deeply", "properties"),  # will lie in properties, one deeper
    ({"user_id": "u\x00"}, "invalid_subject", "user_id"),
    ({"anonymous_id": "ü" * 129}, "invalid_subject", "anonymous_id"),  # 258 bytes in 129 characters
    ({"session_id": "\ud800"}, "invalid_session_id", "session_id"),  # a lone surrogate has no UTF-8
    ({"item_id": "ABSENT"}, "missing_item_id", "item_id"),
    ({"item_id": 12}, "invalid_item_id", "item_id"),
    ({"items": []}, "invalid_items", "items"),
    ({"items": [{"item_id": "i1"}, {"quantity": 1}]}, "invalid_items", "items"),
    ({"items": [{"item_id": "i1", "quantity": 0}]}, "invalid_quantity", "items"),
    ({"items": [{"item_id": "i1", "price": -1}]}, "invalid_price", "items"),
    ({"timestamp": "ABSENT"}, "missing_timestamp", "timestamp"),
    ({"timestamp": "yesterday"}, "invalid_timestamp", "timestamp"),
    ({"timestamp": True}, "invalid_timestamp", "timestamp"),
    ({"timestamp": "2024-03-09T12:00:01Z"}, "timestamp_in_future", "timestamp"),
    ({"timestamp": "1994-12-31T23:59:59Z"}, "timestamp_too_old", "timestamp"),
    ({"quantity": 0}, "invalid_quantity", "quantity"),
    ({"quantity": 1.5}, "invalid_quantity", "quantity"),
    ({"quantity": True}, "invalid_quantity", "quantity"),
    ({"price": -0.01}, "invalid_price", "price"),
    ({"price": float("nan")}, "invalid_price", "price"),
    ({"price": 10**400}, "invalid_price", "price"),
    ({"value": "12"}, "invalid_value", "value"),
    ({"placement": 3}, "invalid_field", "placement"),
    ({"properties": "x"}, "invalid_field", "properties"),
    ({"consent": {"trian": False}}, "invalid_field", "consent"),
    ({"consent": {"train": "no"}}, "invalid_field", "consent"),
]


@pytest.mark.parametrize(("changes", "reason", "field"), BROKEN, ids=[f"{r}-{i}" for i, (_, r, _) in enumerate(BROKEN)])
def test_each_broken_rule_has_its_reason_and_field(changes: dict, reason: str, field: str) -> None:
    event = {k: v for k, v in {**GOOD, **changes}.items() if v != "ABSENT"}
    assert rejected(event) == (reason, field)


def test_every_reason_of_the_request_path_is_exercised() -> None:
    elsewhere = {"unreadable", "missing_event_id", "quantity_not_positive", "price_not_positive"}
    assert {r.value for r in Reason} - elsewhere == {reason for _, reason, _ in BROKEN}


def test_something_that_is_no_object_is_unreadable() -> None:
    assert rejected(["view_item"]) == ("unreadable", None)


def test_the_bounds_themselves_are_allowed() -> None:
    assert checked(timestamp="2024-03-09T12:00:00Z")["timestamp"] == datetime(2024, 3, 9, 12, tzinfo=UTC)
    assert checked(timestamp="1995-01-01T00:00:00Z")["timestamp"] == datetime(1995, 1, 1, tzinfo=UTC)
    assert checked(anonymous_id="ü" * 128)["anonymous_id"] == "ü" * 128
    assert checked(price=0)["price"] == 0


def test_what_was_taken_once_is_taken_again() -> None:
    """The consumer and the archiver apply the rules to what the API wrote."""
    deep = checked(properties=nested(31), colour=nested(30), items=[{"item_id": "i1", "size": nested(29)}])
    again, rejection = check_event(deep, received_at=RECEIVED)
    assert (again, rejection) == (deep, None)
    assert checked(event_type="identify", item_id="ABSENT")["event_type"] == "identify"
    assert checked(event_type="alias", anonymous_id="a1")["anonymous_id"] == "a1"


def test_a_login_says_whose_device_it_is() -> None:
    for said in ("login", "sign_up", "Signed In", "Signed Up"):
        found = checked(event_type=said, anonymous_id="a1", item_id="ABSENT")
        assert (found["event_type"], found["anonymous_id"]) == ("identify", "a1"), said
        assert checked(event_type=said, item_id="ABSENT")["event_type"] == "identify", said  # without a device too


def test_words_about_a_mistake_stay_short() -> None:
    huge = "x" * 1_000_000
    for changes in ({"event_type": huge}, {"user_id": huge}, {"timestamp": huge}, {"price": huge}, {"value": [huge]},
                    {"properties": huge}, {"consent": {huge: True}}, {"consent": {"train": huge}}):  # fmt: skip
        _, rejection = check_event({**GOOD, **changes}, received_at=RECEIVED)
        assert len(rejection.detail) < 300
    _, rejection = check_event({**GOOD, "user_id": "ü" * 129}, received_at=RECEIVED)
    assert "1 to 256 bytes" in rejection.detail
    assert rejection.detail.endswith("of 258 bytes")


def test_a_typing_mistake_gets_the_nearest_name() -> None:
    _, rejection = check_event({**GOOD, "event_type": "purchse"}, received_at=RECEIVED)
    assert rejection.detail == "unknown event_type 'purchse'; did you mean 'purchase'?"


def test_times_are_understood_and_become_utc() -> None:
    noon = datetime(2024, 3, 8, 11, 0, tzinfo=UTC)
    assert checked(timestamp="2024-03-08T12:00:00+01:00")["timestamp"] == noon
    assert checked(timestamp="2024-03-08T11:00:00")["timestamp"] == noon  # no offset means UTC
    assert checked(timestamp=1709895600)["timestamp"] == noon  # seconds
    assert checked(timestamp=1709895600000)["timestamp"] == noon  # milliseconds


def test_names_of_other_systems_become_canonical() -> None:
    assert checked(event_type="Product Viewed")["event_type"] == "view_item"
    assert checked(event_type="purchase-complete")["event_type"] == "purchase"
    assert checked(event_type="Watch")["event_type"] == "watch"


def test_unknown_fields_and_nulls_lose_nothing() -> None:
    good = checked(colour="red", properties={"size": "M", "colour": "blue"}, session_id=None)
    assert good["properties"] == {"colour": "blue", "size": "M"}  # what the client put into properties wins
    assert "session_id" not in good
    assert "colour" not in good


def test_a_missing_event_id_is_a_hash_of_who_what_when() -> None:
    one = checked(event_id="ABSENT")
    assert one["event_id"] == checked(event_id=None)["event_id"]
    assert one["event_id"] == derived_event_id({**GOOD, "price": 3})  # price is not part of it
    assert one["event_id"] != checked(event_id="ABSENT", item_id="i2")["event_id"]
    # printf '["view_item","u1",null,null,"i1","2024-03-08T11:59:00Z",null]' | sha256sum | cut -c1-32
    assert one["event_id"] == "h-7bc5afed171446bd119b4fb49df55c62"


def test_a_basket_becomes_one_event_per_line() -> None:
    basket = checked(
        event_type="purchase",
        item_id="ABSENT",
        quantity=9,
        items=[{"item_id": "i1", "quantity": 2, "price": 3.5}, {"item_id": "i2"}],
    )
    lines = expand_items(basket)
    assert [(e["event_id"], e["item_id"], e["quantity"], e.get("price")) for e in lines] == [
        ("e1:0", "i1", 2, 3.5),
        ("e1:1", "i2", 9, None),
    ]
    assert all("items" not in e and e["user_id"] == "u1" for e in lines)
    assert expand_items(checked()) == [checked()]


def test_a_known_user_wins_over_the_anonymous_id() -> None:
    assert subject_key("7", "x") == "u:7"
    assert subject_key(None, "x") == "a:x"
    with pytest.raises(DataError, match="user_id or an anonymous_id"):
        subject_key("", None)


def test_every_type_has_its_place() -> None:
    assert len(EVENT_TYPES) == 25
    assert set(EVENT_TYPE_ORDER) == EVENT_TYPES
    assert len(EVENT_TYPE_ORDER) == len(set(EVENT_TYPE_ORDER))
    assert set(DEFAULT_PREFERENCE_WEIGHTS) <= {str(t) for t in ITEM_REQUIRED}


def test_receipt_bounds_follow_the_receipt() -> None:
    late = RECEIVED + timedelta(days=1)
    good, rejection = check_event({**GOOD, "timestamp": "2024-03-10T12:00:00Z"}, received_at=late)
    assert rejection is None
    assert good["timestamp"] == datetime(2024, 3, 10, 12, tzinfo=UTC)
