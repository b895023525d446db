"""The rule tables of items and users: each rule at its edges."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from feature_repo.contracts.catalogue import (
    AVAILABILITIES,
    AVAILABILITY_ALIASES,
    check_item,
    check_user,
    updated_at,
)
from feature_repo.contracts.tables import table

NEW_YORK = timezone(timedelta(hours=-5))


def good(record: dict[str, Any]) -> dict[str, Any]:
    row, rejection = check_item(record)
    assert rejection is None
    assert row is not None
    return row


def test_a_row_has_the_columns_of_its_table() -> None:
    item, _ = check_item({"item_id": "i"})
    user, _ = check_user({"user_id": "u"})
    assert item is not None
    assert user is not None
    assert {*item, "source"} == set(table("bronze.items").columns)
    assert {*user, "source"} == set(table("bronze.users").columns)


def test_every_known_word_of_availability_is_one_of_ours() -> None:
    assert set(AVAILABILITY_ALIASES.values()) == set(AVAILABILITIES)
    words = {
        "in stock": "IN_STOCK", "https://schema.org/SoldOut": "OUT_OF_STOCK", "BackOrder": "BACKORDER",
        "http://schema.org/PreOrder": "PREORDER", "BACKORDER": "BACKORDER",
    }  # fmt: skip
    assert {word: good({"item_id": "i", "availability": word})["availability"] for word in words} == words


GOOD: list[tuple[str, Any, str, Any]] = [
    ("item_id", "x" * 256, "item_id", "x" * 256),
    ("price", 0, "price", 0.0),
    ("price", 1e15, "price", 1e15),
    ("currency", "eur", "currency", "EUR"),
    ("available_quantity", 2**31 - 1, "available_quantity", 2**31 - 1),
    ("available_quantity", 3.0, "available_quantity", 3),
    ("created_at", "1900-01-01", "created_at", datetime(1900, 1, 1, tzinfo=UTC)),
    ("expire_time", datetime(2199, 12, 31, 18, tzinfo=NEW_YORK), "expire_time", datetime(2199, 12, 31, 23, tzinfo=UTC)),
    ("is_hidden", "Yes", "is_hidden", True),
    ("is_hidden", "0", "is_hidden", False),
    ("category", "A > B", "category", "A > B"),
    ("categories", ["A", "B"], "category", "A"),
    ("categories", [], "category", None),
    ("tags", "a, b,,", "attributes", '{"tags": ["a", "b"]}'),
    ("available_time", 1_709_895_600_000, "attributes", '{"available_time": "2024-03-08T11:00:00Z"}'),
    ("group_id", "g", "attributes", '{"group_id": "g"}'),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "column", "expected"), GOOD)
def test_a_value_at_its_edge_is_taken(field: str, value: Any, column: str, expected: Any) -> None:
    assert good({"item_id": "i", field: value})[column] == expected


BAD: list[tuple[str, Any, str]] = [
    ("item_id", "x" * 257, "invalid_item_id"),
    ("item_id", 7, "invalid_item_id"),
    ("item_id", "a\x00", "invalid_item_id"),
    ("price", 1.01e15, "invalid_price"),
    ("price", -0.001, "invalid_price"),
    ("currency", "EURO", "invalid_field"),
    ("currency", "\u20ac", "invalid_field"),
    ("available_quantity", 2**31, "invalid_quantity"),
    ("available_quantity", True, "invalid_quantity"),
    ("availability", "IN STOCK", "invalid_field"),
    ("availability", 1, "invalid_field"),
    ("created_at", "1899-12-31T23:59:59Z", "invalid_timestamp"),
    ("expire_time", "2200-01-01", "invalid_timestamp"),
    ("updated_at", "yesterday", "invalid_timestamp"),
    ("is_hidden", 1, "invalid_field"),
    ("categories", [7], "invalid_field"),
    ("tags", ["a", 7], "invalid_field"),
    ("group_id", 7, "invalid_field"),
    ("attributes", "x", "invalid_field"),
]


@pytest.mark.parametrize(("field", "value", "reason"), BAD)
def test_a_value_beyond_its_edge_is_refused_with_what_was_expected(field: str, value: Any, reason: str) -> None:
    row, rejection = check_item({"item_id": "i", field: value})
    assert row is None
    assert rejection is not None
    assert (str(rejection.reason), rejection.field) == (reason, field)
    assert " is " in rejection.detail or "expected" in rejection.detail


def test_attributes_keep_what_has_no_column_and_say_when_the_row_changed() -> None:
    row = good(
        {"item_id": "i", "colour": "red", "size": 1, "attributes": {"size": 2}, "updated_at": "2024-03-08T01:00+01:00"}
    )
    assert json.loads(row["attributes"]) == {"colour": "red", "size": 2, "updated_at": "2024-03-08T00:00:00Z"}
    assert updated_at(row) == datetime(2024, 3, 8, tzinfo=UTC)
    assert updated_at({"attributes": None}) is None


def test_consent_is_true_false_or_not_asked() -> None:
    row, _ = check_user({"user_id": "u", "consent": {"store": True, "train": None}, "consent_share": "no"})
    assert row is not None
    said = {name: value for name, value in row.items() if name.startswith("consent_")}
    assert said == {"consent_store": True, "consent_train": None, "consent_share": False, "consent_personalize": None}
    for broken in (
        {"consent_train": 1},
        {"consent": {"train": "maybe"}},
        {"consent": {"sell": True}},
        {"consent": True},
    ):
        _, rejection = check_user({"user_id": "u", **broken})
        assert rejection is not None
        assert str(rejection.reason) == "invalid_field"
