"""Features of users, items and users by category, and item numbers: each expected value worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from pyspark.sql import SparkSession

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import EventType
from feature_repo.contracts.feature_table import FEATURE_VIEWS, feature_view, features
from feature_repo.contracts.run import FEATURES_FILE
from feature_repo.contracts.tables import table_path
from spark_jobs.io import light_delta
from spark_jobs.io.delta import overwrite_partitions
from spark_jobs.io.light_delta import read_table as read
from spark_jobs.io.run_store import read_report
from spark_jobs.io.table_hash import hash_tables
from spark_jobs.jobs.build_features import build_features
from spark_jobs.transforms.feature_facts import feature_facts
from spark_jobs.transforms.item_features import item_features
from spark_jobs.transforms.item_ids import named_before, number_items
from spark_jobs.transforms.user_features import user_category_features, user_features
from tests.builders import EventRow, make_events, make_frame, make_run, utc, write_rows

pytestmark = pytest.mark.spark

MARCH_31 = date(2024, 3, 31)
"""as_of, a Sunday. The windows of 1, 7, 30, 90 and 365 days begin on 30, 24 and 1 March, 1 January, 1 April 2023."""

ITEMS = [
    {
        "item_id": "i1", "category": "Home > Lamps", "price": 10.0, "available_quantity": 9,
        "created_at": utc("2024-03-29T12:00:00"),
    },
    {"item_id": "i2", "category": "Books", "price": 40.0, "created_at": utc("2024-01-01")},  # nobody knows the stock
    {"item_id": "i3", "category": None, "available_quantity": 5},  # in the catalogue since nobody knows when
    {"item_id": "future", "category": "Books", "price": 1000.0, "created_at": utc("2024-03-31")},
]  # fmt: skip
EVENTS = [
    ("a1", "ann", "view_item", "2024-03-24T00:00:00", "i1", {"channel": "app"}),  # first instant of 7 days; a Sunday
    # a second early for 7 days; a click is a view
    ("a2", "ann", "click", "2024-03-23T23:59:59", "i1", {"channel": "web", "properties": '{"device": "tablet"}'}),
    ("a3", "ann", "view_item", "2024-03-01T00:00:00", "i2", {"channel": "web"}),  # first instant of 30 days; a Friday
    ("a4", "ann", "view_item", "2024-02-29T23:59:59", "i2", {"channel": "app"}),  # a second early; same session as a3
    ("a5", "ann", "add_to_cart", "2024-03-24T00:10:00", "i2", {"price": 20.0}),
    ("a6", "ann", "purchase", "2024-01-01T00:00:00", "i2", {"price": 0.1, "quantity": 3, "value": 99.0}),
    ("a7", "ann", "purchase", "2024-03-24T00:20:00", "i1", {"value": 5.25}),  # no price: its value
    ("a8", "ann", "purchase", "2023-12-31T23:59:59", "i2", {"price": 1000.0}),  # a second early for 90 days
    ("a9", "ann", "view_item", "2024-03-31T00:00:00", "i3"),  # the cut-off itself: not seen
    ("a10", "ann", "refund", "2024-03-24T00:30:00", "i1", {"price": 5.0}),  # takes nothing off, tells no preference
    ("b1", "bob", "search", "2023-06-01T00:00:00", None),  # his only event: old, without an item
    ("c1", "cat", "view_item", "2024-03-30T00:00:00", "i1", {"is_bot": True}),
    ("d1", "dan", "view_item", "2024-03-30T00:00:00", "i1"),  # does not allow personalization; 1 day begins here
    ("x1", None, "view_item", "2024-03-30T00:00:00", "i1", {"anonymous_id": "anon"}),
    ("e1", "eve", "view_item", "2024-03-30T00:00:00", "i9", {"consent_train": False}),  # an item not in the catalogue
    ("e2", "eve", "view_item", "2024-03-30T00:00:10", "i3"),  # no category
    # Friday 29 March; the night ends at 6
    ("f1", "fay", "search", "2024-03-29T05:59:59", None, {"channel": "app", "properties": '{"device": "phone"}'}),
    ("f2", "fay", "view_item", "2024-03-29T06:00:00", "i1", {"price": 12.0, "channel": "app"}),
    (
        "f3", "fay", "add_to_cart", "2024-03-29T06:10:00", "i1",
        {"price": 15.0, "channel": "web", "properties": '{"device": "phone"}'},
    ),
    ("f4", "fay", "purchase", "2024-03-29T06:20:00", "i1", {"price": 10.0, "quantity": 2}),
    ("f5", "fay", "add_to_cart", "2024-03-29T22:00:00", "i1"),  # again: the item counts once as carted; night begins
    # late: received after the cut-off
    ("f6", "fay", "purchase", "2024-03-28T21:59:59", "i2", {"price": 40.0, "received_at": utc("2024-04-05")}),
    ("f7", "fay", "add_to_cart", "2024-03-29T12:00:00", "i3"),  # never bought
    ("g1", "gus", "purchase", "2024-03-02T10:00:00", "i2", {"price": 30.0}),
    ("g2", "gus", "purchase", "2024-03-05T10:00:00", "i2", {"price": 30.0}),
]  # fmt: skip
MINUTE, SECOND = 1 / 1440, 1 / 86400
STAMPS = {"feature_timestamp": utc("2024-03-31").replace(tzinfo=None), "as_of": MARCH_31}


def features_at(
    spark: SparkSession, rows: Sequence[EventRow], as_of: date = MARCH_31, items: Sequence[dict[str, Any]] = ITEMS
) -> dict[str, dict[Any, dict[str, Any]]]:
    """View -> key -> row, of every view; dan denies personalization."""
    catalogue = make_frame(spark, "bronze.items", items)
    denied = spark.createDataFrame([("dan",)], "user_id string")
    facts = feature_facts(make_events(spark, rows), catalogue, denied, as_of=as_of).persist()
    frames = {
        "user_features": user_features(facts, as_of=as_of),
        "item_features": item_features(facts, catalogue, as_of=as_of),
        "user_category_features": user_category_features(facts, as_of=as_of),
    }
    found = {}
    for name, frame in frames.items():
        view = feature_view(name)
        assert frame.columns == list(view.columns())
        collected = [row.asDict() for row in frame.collect()]
        found[name] = {tuple(row[key] for key in view.join_keys): row for row in collected}
        assert len(found[name]) == len(collected)
    facts.unpersist()
    return found


@pytest.fixture(scope="module")
def found(spark: SparkSession) -> dict[str, dict[Any, dict[str, Any]]]:
    return features_at(spark, EVENTS)


def expected_row(view: str, keys: tuple[str, ...], values: Sequence[Any]) -> dict[str, Any]:
    """Values in the order of the view's features; floating-point numbers to 1e-9."""
    spec = feature_view(view)
    close = [pytest.approx(value, abs=1e-9) if isinstance(value, float) else value for value in values]
    return {
        **dict(zip(spec.join_keys, keys, strict=True)),
        **dict(zip((feature.name for feature in spec.features), close, strict=True)),
        **STAMPS,
    }


def decayed(*weights_and_ages: tuple[float, float]) -> float:
    return sum(weight * 0.5 ** (age / 7) for weight, age in weights_and_ages)


USERS: dict[str, list[Any]] = {
    "ann": [
        1,  # views 7 d: a1
        3,  # 30 d: a1 a2 a3
        1,  # carts
        2,  # purchases 90 d: a6 a7
        5.55,  # 3 x 0.1 + 5.25
        7 - 30 * MINUTE,  # a10
        1,  # sessions: a2 a1 a5 a7 a10 begins on the 23rd; that of a4 a3 began in February
        1801.0,  # 23:59:59 to 00:30:00
        2,
        "Books",  # a3 a4 a5 a6: 4; Lamps a1 a2 a7: 3
        90 + SECOND,  # a8
        7 - 20 * MINUTE,  # a7
        3,  # 1, 23, 24 March
        2,  # 1 January, 24 March
        42.0,  # 31 December to 24 March is 84 days, two steps
        2.775,
        0.5,  # a10 of a6 a7
        1.0,  # i2 was bought, but before the window
        0,
        0.25125,  # a5 20/40, a6 0.1/40; that of the future book does not count
        2,
        1.0,  # all six between 23:59 and 00:30
        5 / 6,  # a3 is the Friday
        1 / 3,  # a1 of a1 a2 a3
        "app",  # a1 app, a2 tablet, a3 web: a tie
        2.0,
        1.0,
    ],
    "bob": [
        0, 0, 0, 0, 0.0, 304.0, 0, None, 0, None, 304.0, None, 0, 0, None, None, None, None, 0, None, 0, *[None] * 6,
    ],
    "eve": [
        2, 2, 0, 0, 0.0, 1 - 10 * SECOND, 1, 10.0, 2, None, 1.0, None, 1, 0, None, None, None, None, 0, None, 0,
        1.0, 1.0, None, None, 2.0, 0.0,
    ],
    "fay": [
        1, 1,
        3,  # f3 f5 f7
        2, 60.0,
        1 + 120 * MINUTE,  # f5
        4,  # f6 | f1 f2 f3 f4 | f7 | f5
        300.25,  # 20 min 1 s over four
        3,
        "Home > Lamps",
        2 + 120 * MINUTE + SECOND,  # f6
        1 + 1060 * MINUTE,  # f4
        2, 2, 1.0, 30.0,
        0.0,
        0.5,  # i3 of i1 i3
        1,
        1.1,  # 1.0 1.0 1.2 1.5
        2,
        2 / 7,  # f1 f5
        0.0,
        2 / 3,  # f1 f2 of f1 f2 f3
        "phone",  # f1 f3; f2 app
        1.0, 0.5,
    ],
    "gus": [
        0, 0, 0, 2, 60.0, 25 + 840 * MINUTE, 2, 0.0, 1, "Books", 28 + 840 * MINUTE, 25 + 840 * MINUTE, 2, 2, 3.0, 30.0,
        0.0, None, 0, 0.75, 1, 0.0,
        0.5,  # 2 March is a Saturday
        None, None, 1.0, 1.0,
    ],
}  # fmt: skip
ITEM_ROWS: dict[str, list[Any]] = {
    "i1": [
        4,  # views 7 d: a1 d1 x1 f2 (the bot's c1 is none)
        5,  # and a2
        2,  # purchases: a7 f4
        4,  # ann dan anon fay
        0.4,
        10.5,  # a10 5, f2 12, f3 15, f4 10
        1.5,
        decayed(
            (1, 7), (1, 7 + SECOND), (8, 7 - 20 * MINUTE), (2, 1), (1, 1.75), (4, 1.75 - 10 * MINUTE),
            (8, 1.75 - 20 * MINUTE), (4, 1 + 120 * MINUTE),
        ),
        2,  # d1 x1
        0, 2, 2,  # carts: f3 f5
        0, 2,
        3,  # a7 1, f4 2
        25.25,
        120 / 35,  # 4 of 7 days against 5 of 30
        0.4,
        0.5,  # a10 of a7 f4
        None,  # no price before the 24th
        1 + 1060 * MINUTE,
        90.0,  # 9 pieces, 3 sold in 30 days
        2,  # ann fay
        0.0,
    ],
    "i2": [
        0, 1, 3, 3, 3.0,
        24.02,  # a5 20, a6 0.1, f6 40, g1 30, g2 30; a8 is too old
        90.0,
        decayed(
            (1, 30), (1, 30 + SECOND), (4, 7 - 10 * MINUTE), (8, 90), (8, 90 + SECOND), (8, 2 + 120 * MINUTE + SECOND),
            (8, 28 + 840 * MINUTE), (8, 25 + 840 * MINUTE),
        ),
        0, 0, 1, 1, 0, 1, 3, 100.0,
        0.0,
        1.0,
        0.0,  # none of a6 f6 g1 g2
        30 / (60.1 / 3) - 1,  # a5 f6 against a6 g1 g2
        2 + 120 * MINUTE + SECOND,
        None,  # stock unknown
        3,  # ann fay gus
        1 / 3,  # gus; ann's other purchase is too old
    ],
    "i3": [
        1, 1, 0, 2, 0.0, None, None, decayed((1, 1 - 10 * SECOND), (4, 1.5)), 1, 0, 1, 1, 0, 0, 0, 0.0, 30 / 7, 1.0,
        None, None, None,
        None,  # nothing sold
        0, None,
    ],
    "i9": [
        1, 1, 0, 1, 0.0, None, None, decayed((1, 1)), 1, 0, 0, 0, 0, 0, 0, 0.0, 30 / 7, 0.0, None, None, None, None, 0,
        None,
    ],
}  # fmt: skip
USER_CATEGORIES: dict[tuple[str, str], list[Any]] = {
    ("ann", "Books"): [1, 2, 1, 0, 1, 0.3, 4 / 7, 7 - 10 * MINUTE],  # a3 a4 a5 a6
    ("ann", "Home > Lamps"): [2, 2, 0, 1, 1, 5.25, 3 / 7, 7 - 20 * MINUTE],  # a1 a2 a7; the refund is no preference
    ("fay", "Books"): [0, 0, 0, 1, 1, 40.0, 0.2, 2 + 120 * MINUTE + SECOND],  # f6
    ("fay", "Home > Lamps"): [1, 1, 2, 1, 1, 20.0, 0.8, 1 + 120 * MINUTE],  # f2 f3 f4 f5
    ("gus", "Books"): [0, 0, 0, 2, 2, 60.0, 1.0, 25 + 840 * MINUTE],
}


def test_user_features_by_hand(found: dict[str, dict[Any, dict[str, Any]]]) -> None:
    assert sorted(found["user_features"]) == [("ann",), ("bob",), ("eve",), ("fay",), ("gus",)]
    assert len(USERS) == 5
    for user_id, values in USERS.items():
        assert found["user_features"][(user_id,)] == expected_row("user_features", (user_id,), values), user_id


def test_item_features_by_hand(found: dict[str, dict[Any, dict[str, Any]]]) -> None:
    assert sorted(found["item_features"]) == [("i1",), ("i2",), ("i3",), ("i9",)]  # `future` is created at the cut-off
    assert len(ITEM_ROWS) == 4
    for item_id, values in ITEM_ROWS.items():
        assert found["item_features"][(item_id,)] == expected_row("item_features", (item_id,), values), item_id


def test_user_category_features_by_hand(found: dict[str, dict[Any, dict[str, Any]]]) -> None:
    assert sorted(found["user_category_features"]) == sorted(USER_CATEGORIES)
    assert len(USER_CATEGORIES) == 5
    for key, values in USER_CATEGORIES.items():
        row = found["user_category_features"][key]
        assert row == expected_row("user_category_features", key, values), key


def test_nothing_from_the_cut_off_on_moves_a_value(
    spark: SparkSession, found: dict[str, dict[Any, dict[str, Any]]]
) -> None:
    """Every type of event, by everybody, on every item, from the cut-off's first instant on."""
    moments = ("2024-03-31T00:00:00", "2024-03-31T00:00:01", "2024-04-02T13:00:00")
    people: list[tuple[str | None, dict[str, Any]]] = [
        (u, {}) for u in ("ann", "bob", "cat", "dan", "eve", "fay", "new")
    ]
    planted = [
        (f"p{kind}{user}{item}{at}", user, str(kind), at, item,
         {"price": 7777.0, "quantity": 99, "value": 7777.0, "channel": "app", "session_id": "s", **other})
        for kind in EventType
        for user, other in [*people, (None, {"anonymous_id": "anon"})]
        for item, at in zip(("i1", "i2", "i9"), moments, strict=True)
    ]  # fmt: skip
    assert len(planted) == len(EventType) * 8 * 3 >= 21 * 8 * 3
    planted.append(("punew", "fay", "purchase", "2024-03-31T00:00:00", "only after", {"price": 1.0}))
    after = features_at(spark, [*EVENTS, *planted])
    compared = 0
    for name, view in FEATURE_VIEWS.items():
        assert sorted(after[name]) == sorted(found[name])
        for feature in view.features:
            compared += 1
            assert {k: r[feature.name] for k, r in after[name].items()} == {
                k: r[feature.name] for k, r in found[name].items()
            }, feature.name
    assert compared == len(features()) == 59


def test_what_is_in_the_window_does_move_every_feature(
    spark: SparkSession, found: dict[str, dict[Any, dict[str, Any]]]
) -> None:
    """The other side of the test above: the same kind of event a moment earlier is seen by every feature."""
    at = "2024-03-30T23:59:59"
    items = [{**ITEMS[0], "available_quantity": 50, "created_at": utc("2024-03-30")}, *ITEMS[1:]]
    extra: dict[str, Any] = {"price": 77.0, "quantity": 9, "channel": "app", "properties": '{"device": "a"}'}
    planted = [
        (f"p{n}{kind}{user}{item}", user, str(kind), at, item, extra)
        for n in range(6)
        for kind in EventType
        for user in ("ann", "bob", "fay")
        for item in ("i1", "i2")
    ] + [("early", "fay", "view_item", "2022-01-01", "i1"), ("again", "fay", "purchase", "2024-03-20", "i1", extra)]
    after = features_at(spark, [*EVENTS, *planted], items=items)
    still = {
        feature.name
        for name, view in FEATURE_VIEWS.items()
        for feature in view.features
        if all(after[name][key][feature.name] == row[feature.name] for key, row in found[name].items())
    }
    assert still == set()


def test_item_numbers_are_appended_and_never_move(spark: SparkSession) -> None:
    known = make_frame(
        spark,
        "gold.item_ids",
        [{"item_id": "zz", "item_number": 0, "first_as_of": date(2024, 1, 1)}, {"item_id": "i2", "item_number": 4}],
    )
    items = make_frame(spark, "bronze.items", ITEMS)
    named = named_before(make_events(spark, EVENTS), MARCH_31)
    assert sorted(number_items(known, items, named, as_of=MARCH_31).collect()) == [
        ("i1", 5, MARCH_31),
        ("i3", 6, MARCH_31),
        ("i9", 7, MARCH_31),
    ]
    empty = make_frame(spark, "gold.item_ids", [])
    first_night = sorted(number_items(empty, items, named, as_of=MARCH_31).collect())
    assert [row["item_number"] for row in first_night] == [0, 1, 2, 3]
    everybody = make_frame(spark, "gold.item_ids", [row.asDict() for row in first_night])
    assert number_items(everybody, items, named, as_of=MARCH_31).count() == 0


def test_the_job_builds_gold_and_builds_the_same_again(spark: SparkSession, environment) -> None:
    overwrite_partitions(make_events(spark, EVENTS), environment, "silver.events", None)
    # An older version made this table, with a night in it: its columns grow, its row stays.
    path = table_path(environment.lakehouse, "gold.user_features")
    old = {"user_id": ["ann"], "user_view_count_7d": [9], "as_of": [date(2024, 3, 30)]}
    write_deltalake(path, pa.table(old), partition_by=["as_of"])
    write_rows(environment, "bronze.items", ITEMS)
    write_rows(environment, "bronze.users", [{"user_id": "dan", "consent_personalize": False}])
    run = make_run(environment, MARCH_31, pins={"bronze.items": 0, "bronze.users": 0})

    report = build_features(spark, environment, run)

    assert report == {"as_of": "2024-03-31", "items_new": 4, "users": 5, "items": 4, "user_categories": 5}
    assert report == read_report(environment, run.run_key, FEATURES_FILE)
    stored = {(row["user_id"], row["as_of"].day): row for row in read(environment, "gold.user_features").to_pylist()}
    assert len(stored) == 6
    assert (stored["ann", 30]["user_view_count_7d"], stored["ann", 30]["user_purchase_day_count_90d"]) == (9, None)
    assert (stored["ann", 31]["user_view_count_7d"], stored["ann", 31]["user_purchase_day_count_90d"]) == (1, 2)
    once = hash_tables(environment, MARCH_31)
    again = build_features(spark, environment, run)
    assert (again["items_new"], light_delta.version(environment, "gold.item_ids")) == (0, 1)
    assert hash_tables(environment, MARCH_31) == once

    earlier = make_run(environment, "2023-01-01", pins=run.pins)
    with pytest.raises(DataError, match=r"silver\.events has nothing before 2023-01-01"):
        build_features(spark, environment, earlier)
