"""The event rules and deduplication as Spark sees them, held to the contract."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.events import Reason, check_event
from spark_jobs.transforms.events import (
    check_deliveries,
    first_deliveries,
    quarantine_rows,
    rejection_reason,
)
from tests.builders import bronze_event, make_bronze_events, utc

pytestmark = pytest.mark.spark

MARCH_1 = "2024-03-01T10:00:00"
LONG = "é" * 129  # 258 bytes of UTF-8, 129 characters

DELIVERIES: list[tuple[str, tuple[Any, ...]]] = [
    ("", ("e1", "u1", "view_item", MARCH_1, "i1")),
    ("", ("e1", None, "search", MARCH_1, None, {"anonymous_id": "a1"})),  # a search needs no item
    ("", ("é" * 128, "u1", "purchase", MARCH_1, "i1", {"price": 0.0, "quantity": 1, "value": -5.0})),  # just allowed
    ("", ("e1", "u1", "view_item", utc("2024-03-02T10:00:01"), "i1", {"received_at": utc(MARCH_1) + timedelta(0, 1)})),
    ("missing_event_type", ("e1", "u1", None, MARCH_1)),
    ("unknown_event_type", ("e1", "u1", "veiw_item", MARCH_1)),
    ("invalid_event_id", ("", "u1", "view_item", MARCH_1)),
    ("invalid_event_id", (LONG, "u1", "view_item", MARCH_1)),
    ("missing_subject", ("e1", None, "view_item", MARCH_1)),
    ("missing_subject", ("e1", "u1", "alias", MARCH_1, None)),  # an alias says that two are one
    ("missing_subject", ("e1", None, "alias", MARCH_1, None, {"anonymous_id": "a1"})),
    ("", ("e1", "u1", "alias", MARCH_1, None, {"anonymous_id": "a1"})),
    ("", ("e1", "u1", "identify", MARCH_1, None)),
    ("invalid_subject", ("e1", "", "view_item", MARCH_1)),
    ("invalid_subject", ("e1", "u1", "view_item", MARCH_1, "i1", {"anonymous_id": LONG})),
    ("invalid_session_id", ("e1", "u1", "view_item", MARCH_1, "i1", {"session_id": LONG})),
    ("invalid_item_id", ("e1", "u1", "search", MARCH_1, LONG)),
    ("missing_item_id", ("e1", "u1", "view_item", MARCH_1, None)),
    ("missing_timestamp", ("e1", "u1", "view_item", None)),
    ("timestamp_too_old", ("e1", "u1", "view_item", "1994-12-31T23:59:59")),
    (
        "timestamp_in_future",
        ("e1", "u1", "view_item", utc("2024-03-02T10:00:02"), "i1", {"received_at": utc(MARCH_1) + timedelta(0, 1)}),
    ),
    ("invalid_quantity", ("e1", "u1", "purchase", MARCH_1, "i1", {"quantity": 0})),
    ("invalid_price", ("e1", "u1", "purchase", MARCH_1, "i1", {"price": -0.01})),
    ("invalid_price", ("e1", "u1", "purchase", MARCH_1, "i1", {"price": float("nan")})),
    ("invalid_price", ("e1", "u1", "purchase", MARCH_1, "i1", {"price": float("inf")})),
    ("invalid_value", ("e1", "u1", "purchase", MARCH_1, "i1", {"value": float("-inf")})),
    ("invalid_field", ("e1", "u1", "purchase", MARCH_1, "i1", {"currency": ""})),
    ("invalid_field", ("e1", "u1", "purchase", MARCH_1, "i1", {"placement": LONG})),
    # two broken rules: the first in order counts
    ("unknown_event_type", ("", "u1", "nothing", None, None)),
    ("missing_item_id", ("e1", "u1", "purchase", None, None, {"price": -1.0})),
]

CHECKED_FIELDS = (
    "event_id", "event_type", "user_id", "anonymous_id", "session_id", "item_id", "quantity", "price", "value",
    "currency", "recommendation_id", "placement", "channel",
)  # fmt: skip


def contract_reason(row: dict[str, Any]) -> str:
    event = {field: row[field] for field in CHECKED_FIELDS} | {"timestamp": row["event_timestamp"]}
    _, rejection = check_event(event, received_at=row["received_at"])
    return rejection.reason.value if rejection else ""


def test_spark_refuses_what_the_contract_refuses(spark: SparkSession) -> None:
    frame = make_bronze_events(spark, [row for _, row in DELIVERIES])
    found = check_deliveries(frame).select("source_position", rejection_reason().alias("reason")).collect()
    by_position = {row["source_position"]: row["reason"] or "" for row in found}

    assert len(by_position) == len(DELIVERIES) == 30
    for position, (expected, row) in enumerate(DELIVERIES):
        assert contract_reason(bronze_event(position, row)) == expected, row
        assert by_position[position] == expected, row


def test_what_the_contract_would_mend_is_refused_here(spark: SparkSession) -> None:
    """At the entrance an id is derived and an alias resolved; a bronze row that still needs it has another writer."""
    frame = make_bronze_events(
        spark,
        [
            (None, "u1", "view_item", MARCH_1),
            ("e1", "u1", "Product Viewed", MARCH_1),
            ("e1", "u1", "view_item", "2024-03-01T23:59:59", "i1", {"event_date": date(2024, 3, 2)}),
            ("nul\x00", "u1", "view_item", MARCH_1),
        ],
    )
    checked = check_deliveries(frame)
    rows = quarantine_rows(checked.filter("broken_rule is not null"), columns=frame.columns, no_day=date(1970, 1, 1))
    found = {row["source_position"]: row for row in rows.collect()}
    assert {position: row["reason"] for position, row in found.items()} == {
        0: Reason.MISSING_EVENT_ID,
        1: Reason.UNKNOWN_EVENT_TYPE,
        2: Reason.INVALID_TIMESTAMP,
        3: Reason.INVALID_EVENT_ID,
    }
    assert (found[1]["field"], found[1]["detail"]) == ("event_type", "unknown 'Product Viewed'")
    assert found[2]["event_date"] == date(2024, 3, 2)


def test_the_first_delivery_counts_whenever_it_came(spark: SparkSession) -> None:
    rows = [
        ("a", "u1", "view_item", "2024-03-05T10:00:00"),  # 0
        ("a", "u1", "view_item", "2024-01-01T10:00:00"),  # 1 came last, two months older: first
        ("b", "u1", "view_item", MARCH_1, "i1", {"source": "s2"}),  # 2
        ("b", "u1", "view_item", MARCH_1, "i1", {"source": "s10"}),  # 3 "s10" < "s2" as text: first
        ("c", "u1", "view_item", MARCH_1),  # 4 position 4 < 5: first
        ("c", "u2", "view_item", MARCH_1),  # 5
        ("d", "u1", "purchase", "2024-02-01T10:00:00", "i1", {"quantity": 0}),  # 6 older, but breaks a rule
        ("d", "u1", "purchase", MARCH_1, "i1"),  # 7 so this is the first
    ]
    marked = first_deliveries(check_deliveries(make_bronze_events(spark, rows)))
    first = sorted(row["source_position"] for row in marked.filter("is_first").collect())
    assert (first, marked.count()) == ([1, 3, 4, 7], 8)
