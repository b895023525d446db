"""Features counted in memory and features counted by Spark are the same features."""

from __future__ import annotations

import random
from datetime import date, timedelta
from typing import Any

import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.events import EventType
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from feature_repo.contracts.tables import table
from spark_jobs.io.light_delta import read_table as read
from spark_jobs.io.table_hash import hash_tables
from spark_jobs.jobs import build_features as job
from tests.builders import EventRow, make_run, silver_event, utc, write_rows

pytestmark = pytest.mark.spark

AS_OF = date(2024, 3, 31)
EDGES = [timedelta(days=d, microseconds=m) for d in (1, 7, 30, 31, 90, 365) for m in (-1, 0, 1)]
"""Ages at which a window begins, and a moment to either side."""
PROPERTIES = [
    None, None, '{"device": "phone"}', '{"device": "tablet", "x": 1}', '{"device": ""}', '{"device": null}',
    '{"device": 7}', '{"device": {"kind": "tv"}}', '{"\\u0064evice": "escaped"}', '{"other": {"device": "inner"}}',
    "no json, a device", "[1]",
]  # fmt: skip
PRICES = [None, None, 0.0, 0.1, 9.99, 12.0, 0.1234565, 0.0000005, 2.5e12, 123456789012.25]
ITEMS = [
    {
        "item_id": "i0", "category": "B", "price": 10.0, "available_quantity": 7,
        "created_at": utc("2024-03-30T23:59:59"),
    },
    {"item_id": "i1", "category": "B", "price": 20.0, "created_at": utc("2024-03-31")},  # its price does not count yet
    {"item_id": "i2", "category": "A > ü", "price": 1.0},
    {"item_id": "i3", "category": "A > ü", "price": 2.0, "available_quantity": 0},
    {"item_id": "i4", "category": "A > ü", "price": None},
    {"item_id": "i5", "category": None, "price": 5.0},
    {"item_id": "i6", "category": "free", "price": 0.0},
    {"item_id": "never met", "category": "C", "price": 3.0, "created_at": utc("2020-01-01")},
]  # fmt: skip


def lopsided(count: int) -> list[EventRow]:
    """Events of few people on few items, most of one of them: equal instants, ages at the edge of every window, logins,
    former names, bots, people who said no and yes again."""
    drawn = random.Random(11)
    kinds = [str(kind) for kind in EventType]
    common = ["view_item", "view_item", "click", "add_to_cart", "purchase", "refund", "search"]
    rows: list[EventRow] = []
    for n in range(count):
        kind = drawn.choice(common) if n % 5 else drawn.choice(kinds)
        age = drawn.choice(EDGES) if n % 3 == 0 else timedelta(seconds=drawn.randrange(1, 40 * 86400, 600))
        user = drawn.choice(["ann", "ann", "ann", "bob", "cat", "dan", "eve", None, "old ann"])
        device = drawn.choice([None, "d1", "d2", "d3"]) if user else drawn.choice(["d1", "d2", "d3", "d4"])
        if kind in ("unmerge", "alias"):
            user, device = drawn.choice([("ann", "d2"), ("ann", "old ann"), ("bob", "d3")])
        moment = utc("2024-03-31") - age + (timedelta(days=2) if n % 97 == 0 else timedelta())
        other: dict[str, Any] = {
            "anonymous_id": device,
            "session_id": drawn.choice([None, None, "s1", "s2"]),
            "price": drawn.choice(PRICES),
            "quantity": drawn.choice([None, None, 1, 3]),
            "value": drawn.choice([None, 5.25, 0.1, 3e12]),
            "channel": drawn.choice([None, "app", "web"]),
            "properties": drawn.choice(PROPERTIES),
            "consent_personalize": drawn.choice([None, None, None, True, False]) if user == "cat" else None,
            "is_bot": n % 13 == 0,
        }
        item = drawn.choice(["i0", "i0", "i0", "i1", "i2", "i3", "i4", "i5", "i6", "not in the catalogue", None])
        rows.append((f"e{n}", user, kind, moment, item, other))
    rows += [(f"only{n}", "one view", "view_item", utc("2022-01-01"), "long gone") for n in range(1)]
    rows.append(("late", "bob", "purchase", utc("2024-03-30T23:00:00"), "i2", {"price": 1.5}))
    return [*rows, ("b", "only a bot", "view_item", utc("2024-03-30"), "of a bot", {"is_bot": True})]


def same(left: Any, right: Any) -> bool:
    return left == right or (isinstance(left, float) and left == pytest.approx(right, rel=1e-13, abs=1e-11))


@pytest.mark.parametrize("count", [700, 3])
def test_what_spark_counts_is_what_is_counted_in_memory(
    spark: SparkSession, environment, tmp_path, monkeypatch, count: int
) -> None:
    rows = [silver_event(position, row) for position, row in enumerate(lopsided(count))]
    tables: list[dict[str, list[dict[str, Any]]]] = []
    hashes = []
    for way in (True, False):
        place = environment._replace(lakehouse=str(tmp_path / str(way)))
        write_rows(place, "silver.events", rows[::2])
        write_rows(place, "silver.events", rows[1::2])
        write_rows(place, "bronze.items", ITEMS)
        write_rows(place, "bronze.users", [{"user_id": "dan", "consent_personalize": False}, {"user_id": "ann"}])
        run = make_run(place, AS_OF, pins={"bronze.items": 0, "bronze.users": 0})
        monkeypatch.setattr(job, "fits_in_memory", lambda *_, way=way: way)
        job.build_features(spark, place, run)
        hashes.append(hash_tables(place))
        found = {}
        for view in FEATURE_VIEWS.values():
            stored = read(place, view.table).to_pylist()
            found[view.table] = sorted(stored, key=lambda row, keys=view.join_keys: [row[key] for key in keys])
        tables.append(found)
    in_memory, by_spark = tables
    compared = 0
    for name, expected in by_spark.items():
        keys = FEATURE_VIEWS[name.removeprefix("gold.")].join_keys
        assert [[row[key] for key in keys] for row in in_memory[name]] == [
            [row[key] for key in keys] for row in expected
        ]
        for mine, theirs in zip(in_memory[name], expected, strict=True):
            for column in table(name).columns:
                compared += 1
                assert same(mine[column], theirs[column]), (name, [mine[key] for key in keys], column)
    assert compared > (500 if count > 3 else 60)
    assert hashes[0] == hashes[1]
    if count > 3:
        feature_values = {
            (name, column): {row[column] for row in rows} for name, rows in by_spark.items() for column in rows[0]
        }
        dull = {key for key, values in feature_values.items() if len(values) == 1} - {
            (name, column) for name in by_spark for column in ("as_of", "feature_timestamp")
        }
        assert dull == set()  # what never differs is not compared
