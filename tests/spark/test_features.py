"""User and item features and item numbers, each expected value worked out by hand."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import FEATURES_FILE
from spark_jobs.io import light_delta
from spark_jobs.io.delta import overwrite_partitions
from spark_jobs.io.run_store import read_report
from spark_jobs.io.table_hash import hash_tables
from spark_jobs.jobs.build_features import build_features
from spark_jobs.transforms.features import item_features, number_items, user_features
from tests.builders import make_events, make_frame, make_run, utc, write_rows

pytestmark = pytest.mark.spark

MARCH_31 = date(2024, 3, 31)
"""as_of. The windows of 7, 30 and 90 days begin on 24 March, 1 March and 1 January."""

ITEMS = [
    {"item_id": "i1", "category": "Home > Lamps", "created_at": utc("2024-03-29T12:00:00")},
    {"item_id": "i2", "category": "Books", "created_at": utc("2024-01-01")},
    {"item_id": "i3", "category": None},  # in the catalogue since nobody knows when
    {"item_id": "future", "category": "Books", "created_at": utc("2024-03-31")},
]
EVENTS = [
    ("a1", "ann", "view_item", "2024-03-24T00:00:00", "i1"),  # first instant of 7 days
    ("a2", "ann", "click", "2024-03-23T23:59:59", "i1"),  # a second early for 7 days; a click is a view
    ("a3", "ann", "view_item", "2024-03-01T00:00:00", "i2"),  # first instant of 30 days
    ("a4", "ann", "view_item", "2024-02-29T23:59:59", "i2"),  # a second early: 90 days only; same session as a3
    ("a5", "ann", "add_to_cart", "2024-03-24T00:10:00", "i2", {"price": 20.0}),
    ("a6", "ann", "purchase", "2024-01-01T00:00:00", "i2", {"price": 0.1, "quantity": 3, "value": 99.0}),
    ("a7", "ann", "purchase", "2024-03-24T00:20:00", "i1", {"value": 5.25}),  # no price: its value
    ("a8", "ann", "purchase", "2023-12-31T23:59:59", "i2", {"price": 1000.0}),  # a second early for 90 days
    ("a9", "ann", "view_item", "2024-03-31T00:00:00", "i3"),  # the cut-off itself: not seen
    ("a10", "ann", "refund", "2024-03-24T00:30:00", "i1", {"price": 5.0}),  # takes nothing off, tells no preference
    ("b1", "bob", "search", "2023-06-01T00:00:00", None),  # his only event: old, without an item
    ("c1", "cat", "view_item", "2024-03-30T00:00:00", "i1", {"is_bot": True}),
    ("d1", "dan", "view_item", "2024-03-30T00:00:00", "i1"),  # does not allow personalization
    ("x1", None, "view_item", "2024-03-30T00:00:00", "i1", {"anonymous_id": "anon"}),
    ("e1", "eve", "view_item", "2024-03-30T00:00:00", "i9", {"consent_train": False}),  # an item not in the catalogue
    ("e2", "eve", "view_item", "2024-03-30T00:00:10", "i3"),  # no category
]


def by_key(frame: DataFrame, key: str) -> dict[str, dict[str, Any]]:
    found = {row[key]: row.asDict() for row in frame.collect()}
    assert len(found) == frame.count()
    return found


def test_user_features_by_hand(spark: SparkSession) -> None:
    denied = spark.createDataFrame([("dan",)], "user_id string")
    frame = user_features(make_events(spark, EVENTS), make_frame(spark, "bronze.items", ITEMS), denied, as_of=MARCH_31)
    found = by_key(frame, "user_id")

    assert sorted(found) == ["ann", "bob", "eve"]
    stamps = {"feature_timestamp": utc("2024-03-31").replace(tzinfo=None), "as_of": MARCH_31}
    assert found["ann"] == {
        "user_id": "ann",
        **stamps,
        "user_view_count_7d": 1,  # a1
        "user_view_count_30d": 3,  # a1 a2 a3
        "user_cart_count_30d": 1,
        "user_purchase_count_90d": 2,  # a6 a7
        "user_purchase_value_90d": pytest.approx(5.55, abs=1e-12),  # 3 x 0.1 + 5.25
        "user_days_since_last_event": pytest.approx(6 + 23.5 / 24, abs=1e-12),  # a10 on 24 March 00:30
        "user_session_count_30d": 1,  # a2 a1 a5 a7 a10 begins on the 23rd; that of a4 a3 began in February
        "user_session_length_mean_30d": 1801.0,  # 23:59:59 to 00:30:00
        "user_distinct_item_count_30d": 2,
        "user_top_category_90d": "Books",  # a3 a4 a5 a6: 4; Lamps a1 a2 a7: 3
    }
    assert found["bob"] == {
        "user_id": "bob",
        **stamps,
        "user_view_count_7d": 0,
        "user_view_count_30d": 0,
        "user_cart_count_30d": 0,
        "user_purchase_count_90d": 0,
        "user_purchase_value_90d": 0.0,
        "user_days_since_last_event": 304.0,  # 1 June to 31 March of a leap year
        "user_session_count_30d": 0,
        "user_session_length_mean_30d": None,
        "user_distinct_item_count_30d": 0,
        "user_top_category_90d": None,
    }
    assert (found["eve"]["user_view_count_7d"], found["eve"]["user_distinct_item_count_30d"]) == (2, 2)
    assert (found["eve"]["user_session_length_mean_30d"], found["eve"]["user_top_category_90d"]) == (10.0, None)


def test_equal_categories_go_by_alphabet(spark: SparkSession) -> None:
    events = make_events(
        spark,
        [
            ("e1", "u1", "purchase", "2024-03-30T00:00:00", "i1"),  # one purchase weighs no more than one view here
            ("e2", "u1", "view_item", "2024-03-30T00:00:00", "i2"),
        ],
    )
    nobody = spark.createDataFrame([], "user_id string")
    [row] = user_features(events, make_frame(spark, "bronze.items", ITEMS), nobody, as_of=MARCH_31).collect()
    assert row["user_top_category_90d"] == "Books"


def test_item_features_by_hand(spark: SparkSession) -> None:
    found = by_key(
        item_features(make_events(spark, EVENTS), make_frame(spark, "bronze.items", ITEMS), as_of=MARCH_31), "item_id"
    )

    assert sorted(found) == ["i1", "i2", "i3", "i9"]  # `future` is created at the cut-off
    features = [name for name in found["i1"] if name.startswith("item_") and name != "item_id"]
    assert {item: [row[name] for name in features] for item, row in found.items()} == {
        # views 7d, 30d, purchases 30d, subjects 30d, conversion, mean price, days since created, popularity
        "i1": [
            3,  # a1 d1 x1 (the bot's c1 is none)
            4,  # and a2
            1,  # a7
            3,  # ann dan anon
            0.25,
            5.0,  # a10
            1.5,
            # a1 at 7 days, a2 at 7 days 1 s, a7 at 7 days less 20 min (weight 8), d1 and x1 at 1 day
            pytest.approx(
                0.5 + 0.5 ** ((7 + 1 / 86400) / 7) + 8 * 0.5 ** ((7 - 20 / 1440) / 7) + 2 * 0.5 ** (1 / 7), abs=1e-9
            ),
        ],
        "i2": [
            0,
            1,  # a3
            0,
            1,
            0.0,
            pytest.approx((20.0 + 0.1) / 2, abs=1e-9),  # a5 a6; a8 is too old
            90.0,
            # a3 at 30 days, a4 a second more, a5 at 7 days less 10 min (4), a6 at 90 days (8), a8 a second more (8)
            pytest.approx(
                0.5 ** (30 / 7)
                + 0.5 ** ((30 + 1 / 86400) / 7)
                + 4 * 0.5 ** ((7 - 10 / 1440) / 7)
                + 8 * 0.5 ** (90 / 7)
                + 8 * 0.5 ** ((90 + 1 / 86400) / 7),
                abs=1e-9,
            ),
        ],
        "i3": [
            1,
            1,
            0,
            1,
            0.0,
            None,
            None,
            pytest.approx(0.5 ** ((1 - 10 / 86400) / 7), abs=1e-9),
        ],  # e2; a9 is too late
        "i9": [1, 1, 0, 1, 0.0, None, None, pytest.approx(0.5 ** (1 / 7), abs=1e-9)],
    }


def test_item_numbers_are_appended_and_never_move(spark: SparkSession) -> None:
    known = make_frame(
        spark,
        "gold.item_ids",
        [{"item_id": "zz", "item_number": 0, "first_as_of": date(2024, 1, 1)}, {"item_id": "i2", "item_number": 4}],
    )
    items, events = make_frame(spark, "bronze.items", ITEMS), make_events(spark, EVENTS)
    assert sorted(number_items(known, items, events, as_of=MARCH_31).collect()) == [
        ("i1", 5, MARCH_31),
        ("i3", 6, MARCH_31),
        ("i9", 7, MARCH_31),
    ]
    empty = make_frame(spark, "gold.item_ids", [])
    first_night = sorted(number_items(empty, items, events, as_of=MARCH_31).collect())
    assert [row["item_number"] for row in first_night] == [0, 1, 2, 3]
    everybody = make_frame(spark, "gold.item_ids", [row.asDict() for row in first_night])
    assert number_items(everybody, items, events, as_of=MARCH_31).count() == 0


def test_the_job_builds_gold_and_builds_the_same_again(spark: SparkSession, environment) -> None:
    overwrite_partitions(make_events(spark, EVENTS), environment, "silver.events", None)
    write_rows(environment, "bronze.items", ITEMS)
    write_rows(environment, "bronze.users", [{"user_id": "dan", "consent_personalize": False}])
    run = make_run(environment, MARCH_31, pins={"bronze.items": 0, "bronze.users": 0})

    report = build_features(spark, environment, run)

    assert report == {"as_of": "2024-03-31", "items_new": 4, "users": 3, "items": 4}
    assert report == read_report(environment, run.run_key, FEATURES_FILE)
    once = hash_tables(environment, MARCH_31)
    again = build_features(spark, environment, run)
    assert (again["items_new"], light_delta.version(environment, "gold.item_ids")) == (0, 1)
    assert hash_tables(environment, MARCH_31) == once

    earlier = make_run(environment, "2023-01-01", pins=run.pins)
    with pytest.raises(DataError, match=r"silver\.events has nothing before 2023-01-01"):
        build_features(spark, environment, earlier)
