"""A history that is sorted out, profiled and judged in memory makes what Spark makes of it."""

from __future__ import annotations

import json
import random
from datetime import date, timedelta
from typing import Any

import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import PINNED_TABLES, QUALITY_FILE, REFINE_FILE
from spark_jobs.io import light_delta
from spark_jobs.io.run_store import read_report
from spark_jobs.io.table_hash import hash_tables
from spark_jobs.jobs import refine_events as job
from spark_jobs.quality.limits import DEFAULTS
from tests.builders import EventRow, bronze_event, make_run, utc, write_rows

pytestmark = pytest.mark.spark

AS_OF = date(2024, 3, 20)
TABLES = ("bronze.events", "bronze.events_import")
BROKEN: list[tuple[Any, ...]] = [
    (None, "ann", "view_item", "2024-03-18T10:00:00"),
    (None, "bob", "view_item", "2024-03-18T10:00:00"),
    ("", "ann", "view_item", "2024-03-18T10:00:00"),
    ("n1", "ann", "no such type", "2024-03-18T10:00:00"),
    ("n2", "ann", "view_item", None),  # lies under no day
    ("n3", "ann", "view_item", "2024-03-18T10:00:00", "i1", {"event_date": date(2024, 3, 17)}),
    ("n4", "ghost", "view_item", "2024-03-18T10:00:00", None),  # broken before it is withheld
]


def lopsided() -> list[list[EventRow]]:
    """Deliveries of each table: repeated ids with every tie there is, broken ones, people who said no, logins and their
    undoing, a bot, orders told twice, sessions that go back in time."""
    drawn = random.Random(4)
    kinds = ["view_item"] * 6 + ["add_to_cart", "purchase", "purchase", "refund", "remove_from_cart", "search"]
    tables: list[list[EventRow]] = [[], []]
    for n in range(500):
        kind = drawn.choice(kinds)
        user = drawn.choice(["ann", "ann", "ann", "bob", "cat", "ghost", "denier", None, "old ann"])
        device = drawn.choice([None, "d1", "d2"]) if user else drawn.choice(["d1", "d2", "d3"])
        if n % 50 == 0:
            kind, (user, device) = drawn.choice([("alias", ("ann", "old ann")), ("unmerge", ("ann", "d2"))])
        said = {"order_id": drawn.choice(["A", "B"]), "context": {"region": drawn.choice(["DE", "BR"])}}
        moment = utc("2024-03-16") + timedelta(seconds=drawn.choice([1, 30, 4000]) * drawn.randint(0, 85))
        other: dict[str, Any] = {
            "anonymous_id": device,
            "session_id": drawn.choice([None, "s1", "s2"]),
            "price": drawn.choice([None, 0.0, 9.5, 2000.0, -1.0 if n % 40 == 0 else 3.0]),
            "quantity": drawn.choice([None, 1, 4]),
            "currency": drawn.choice([None, "EUR", "euro", "usd"]),
            "channel": drawn.choice([None, "app"]),
            "consent_train": drawn.choice([None, None, True, False]),
            "properties": drawn.choice([None, None, json.dumps(said), "[]", "no json", '{"colour": 1}']),
            "received_at": moment + timedelta(seconds=drawn.choice([1, 3600, 3601, 90_000])),
            "source": drawn.choice(["s10", "s2"]),
        }
        item = None if kind == "search" else drawn.choice(["i1", "i1", "i2", "i3", "not in the catalogue"])
        row = (f"e{n}", user, kind, moment, item, other)
        tables[n % 2].append(row)
        for _ in range(drawn.choice([0, 0, 0, 1, 2])):  # came again: the same, or elsewhere, or at another time
            late = {
                **other,
                **drawn.choice([{}, {"source": "s1"}, {"price": 77.0}, {"quantity": 0}, {"user_id": "bob"}]),
            }
            again = drawn.choice([moment, moment, moment + timedelta(days=1)])
            tables[drawn.choice([0, 1])].append((f"e{n}", user, kind, again, item, late))
    crawl = utc("2024-03-17T05:00:00")
    for n in range(260):
        tables[0].append((f"c{n}", "crawler", "view_item", crawl + timedelta(milliseconds=900 * n), f"i{n % 4}"))
    tables[1] += BROKEN
    tables[1].append(("later", "ann", "view_item", utc("2024-03-20"), "i1"))  # the cut-off itself
    return tables


def filled(place: Environment) -> None:
    for name, rows in zip(TABLES, lopsided(), strict=True):
        # few positions: many deliveries are alike in all that orders them
        deliveries = [{**bronze_event(n % 3, row), "source_position": n % 3} for n, row in enumerate(rows)]
        write_rows(place, name, deliveries[::2])
        write_rows(place, name, deliveries[1::2])
    write_rows(place, "bronze.items", [{"item_id": "i1", "price": 10.0}, {"item_id": "i2", "price": 100.0}])
    said = [{"user_id": "ghost", "consent_store": False}, {"user_id": "denier", "consent_train": False}]
    write_rows(place, "bronze.users", [*said, {"user_id": "ann"}])


def test_what_spark_makes_is_what_is_made_in_memory(spark: SparkSession, environment, tmp_path, monkeypatch) -> None:
    hashes, reports, profiles = [], [], []
    for way in ("in memory", "by Spark"):
        place = environment._replace(lakehouse=str(tmp_path / way))
        filled(place)
        pins = {name: light_delta.version(place, name) for name in PINNED_TABLES}
        loose = {"accept_quality": ",".join(DEFAULTS)}
        run = make_run(place, AS_OF, run_key=way.replace(" ", "-"), pins=pins, params=loose)
        monkeypatch.setattr(job, "MOST_COMPUTED", 0 if way == "in memory" else 10**9)
        job.refine_events(spark, place, run)
        hashes.append(hash_tables(place))
        reports.append(read_report(place, run.run_key, REFINE_FILE))
        profiles.append(read_report(place, run.run_key, QUALITY_FILE))
    in_memory, by_spark = reports
    assert by_spark["bots"] == 1
    assert all(by_spark["total"][way] > 5 for way in ("kept", "duplicates", "quarantined", "withheld"))
    assert len(by_spark["sequence_breaks"]) == 5
    assert in_memory == by_spark
    assert hashes[0] == hashes[1]
    days = [{day["day"]: day for day in profile["days"]} for profile in profiles]
    assert len(days[1]) > 20
    for day, expected in days[1].items():
        assert days[0][day] == expected, day
    assert sum(len(day["property_keys"]) for day in days[1].values()) > 3
    assert profiles[0] == profiles[1]
