"""Bronze to silver on real Delta tables: counts that add up, incremental equals full, a run killed anywhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import PINNED_TABLES, REFINE_FILE, Run
from spark_jobs.io import light_delta
from spark_jobs.io.refine_state import days_to_derive, read_state
from spark_jobs.io.run_store import read_report
from spark_jobs.io.table_hash import hash_tables
from spark_jobs.jobs import refine_events as job
from spark_jobs.jobs import refine_in_memory
from tests.builders import make_run, write_bronze_events, write_rows

pytestmark = pytest.mark.spark

FIRST_NIGHT = [
    ("e1", "u1", "view_item", "2024-03-01T10:00:00", "i1"),
    ("e2", "u1", "add_to_cart", "2024-03-01T10:10:00", "i1"),
    ("e2", "u1", "add_to_cart", "2024-03-01T10:10:00", "i1"),  # delivered twice
    ("e3", "u1", "purchase", "2024-03-01T10:39:59", "i2", {"price": 9.5, "quantity": 2}),  # 29:59 later: same session
    ("e4", "u1", "view_item", "2024-03-01T23:50:00", "i3"),  # its session will go on after midnight
    ("e5", None, "view_item", "2024-03-01T12:00:00", "i1", {"anonymous_id": "a1"}),
    ("e6", "u2", "view_item", "2024-03-02T09:00:00", "i2", {"session_id": "s1"}),
    ("e7", "u2", "view_item", "2024-03-02T11:00:00", "i3", {"session_id": "s1"}),  # two hours, but the client says so
    ("e8", "u2", "search", "2024-03-02T11:01:00", None, {"session_id": "s1"}),  # no item: no interaction
    ("e9", "u3", "view_item", "2024-03-02T10:00:00", "i1", {"consent_train": False}),
    ("e10", "denier", "view_item", "2024-03-02T10:00:00", "i1"),  # consent_train false in bronze.users
    ("e11", "ghost", "view_item", "2024-03-02T10:00:00", "i1"),  # consent_store false in bronze.users
    ("e12", "u4", "purchase", "2024-03-02T10:00:00", "i4", {"quantity": 0}),  # refused
    ("e13", "u5", "view_item", "2024-03-03T00:00:00", "i1"),  # the cut-off of the first night: outside
    ("e14", "u6", "view_item", "2024-03-02T08:00:00", "i5"),
]
IMPORTED = [
    ("e1", "u1", "view_item", "2024-03-01T10:00:00", "i1", {"source": "zz"}),  # also in bronze.events: "test" < "zz"
    ("m1", "u7", "purchase", "2024-02-28T10:00:00", "i9", {"price": 1.0}),
    ("m0", "u9", "view_item", "2024-02-20T10:00:00", "i9"),  # nothing will happen to this day again
]
LATER = [
    ("n1", "u1", "view_item", "2024-03-02T00:05:00", "i4"),  # late, a day that stands: joins e4's session of 1 March
    (
        "e6",
        "u2",
        "view_item",
        "2024-03-01T08:00:00",
        "i2",
        {"session_id": "s1"},
    ),  # e6 again, a day earlier: moves there
    ("m1", "u7", "purchase", "2024-02-27T10:00:00", "i9"),  # moves too; 28 February gained nothing but must lose it
    ("n2", "u8", "view_item", "2024-03-03T10:00:00", "i1"),
    ("e14", "u6", "view_item", "2024-03-03T08:00:00", "i5"),  # e14 again, a day later: a duplicate
]
USERS = [
    {"user_id": "denier", "consent_train": False},
    {"user_id": "ghost", "consent_store": False},
    {"user_id": "u1", "consent_train": True},
]
LATER_USERS = [
    {"user_id": "denier", "consent_train": True},  # may be learned from again
    {"user_id": "u9", "consent_train": False},  # no longer; no event of theirs is derived again
    {"user_id": "u5", "consent_store": False},  # no longer kept
]


def bring_first(environment: Environment) -> None:
    write_bronze_events(environment, FIRST_NIGHT)
    write_bronze_events(environment, IMPORTED, name="bronze.events_import")
    write_rows(environment, "bronze.users", USERS)


def bring_later(environment: Environment) -> None:
    write_bronze_events(environment, LATER, first_position=100)
    write_rows(environment, "bronze.users", LATER_USERS, mode="overwrite")


def pinned(environment: Environment, as_of: str, **other: Any) -> Run:
    pins = {name: light_delta.version(environment, name) for name in PINNED_TABLES}
    days = days_to_derive(environment, read_state(environment), as_of=date.fromisoformat(as_of), pins=pins)
    return make_run(environment, as_of, pins=pins, derive_days=days, **other)


def rows(environment: Environment, name: str, *columns: str) -> list[tuple[Any, ...]]:
    table = light_delta.read_table(environment, name, columns=columns)
    return sorted(tuple(row.values()) for row in table.to_pylist())


@pytest.fixture(scope="module")
def first_night(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An installation after its first night, as_of 3 March. Tests work on copies."""
    place = Environment.from_mapping({"NIGHTJAR_HOME": str(tmp_path_factory.mktemp("first-night"))})
    bring_first(place)
    job.refine_events(spark, place, pinned(place, "2024-03-03", run_key="first"))
    return place


@pytest.fixture
def shop(first_night: Environment, environment: Environment) -> Environment:
    """A copy of the installation after its first night."""
    shutil.copytree(first_night.home, environment.home)
    return environment


@pytest.mark.soak  # a night over three entrances; what each makes of an event is held together without Spark
def test_an_event_that_came_through_every_entrance_counts_once(spark: SparkSession, environment: Environment) -> None:
    """And so does one of a day that Kafka alone brings, after a night that knew of no such table."""
    write_bronze_events(environment, [("e1", "u1", "view_item", "2024-03-01T10:00:00", "i1", {"source": "stream"})])
    same = {"source": "a.csv"}  # the smallest source is the first delivery
    write_bronze_events(
        environment, [("e1", "u1", "view_item", "2024-03-01T10:00:00", "i1", same)], name="bronze.events_import"
    )
    before = pinned(environment, "2024-03-02", run_key="before")
    job.refine_events(
        spark, environment, replace(before, pins={n: v for n, v in before.pins.items() if "kafka" not in n})
    )
    from_kafka = [
        ("e1", "u1", "view_item", "2024-03-01T10:00:00", "i1", {"source": "kafka:clicks/0"}),
        ("k1", "u1", "purchase", "2024-02-27T10:00:00", "i2", {"source": "kafka:clicks/0"}),  # late, another day
        ("k1", "u1", "purchase", "2024-02-27T10:00:00", "i2", {"source": "kafka:clicks/1"}),
        ("k2", "u1", "purchase", "2024-02-27T10:00:00", "i2", {"source": "kafka:clicks/1", "quantity": 0}),
    ]
    write_bronze_events(environment, from_kafka, name="bronze.events_kafka")
    run = pinned(environment, "2024-03-02", run_key="after")
    assert run.derive_days == ("2024-02-27", "2024-03-01")
    report = job.refine_events(spark, environment, run)
    assert report["sources"]["bronze.events_kafka"] == {
        "read": 4, "kept": 1, "duplicates": 2, "quarantined": 1, "withheld": 0, "outside": 0,
    }  # fmt: skip
    assert rows(environment, "silver.events", "event_id", "source") == [("e1", "a.csv"), ("k1", "kafka:clicks/0")]
    assert rows(environment, "silver.quarantine", "reason", "source") == [("invalid_quantity", "kafka:clicks/1")]


def test_the_first_night_derives_every_day(shop: Environment) -> None:
    report = read_report(shop, "first", REFINE_FILE)
    assert report["days_derived"] == "all"
    assert report["sources"] == {
        "bronze.events": {"read": 15, "kept": 11, "duplicates": 1, "quarantined": 1, "withheld": 1, "outside": 1},
        "bronze.events_import": {"read": 3, "kept": 2, "duplicates": 1, "quarantined": 0, "withheld": 0, "outside": 0},
        "bronze.events_kafka": dict.fromkeys(("read", "kept", "duplicates", "quarantined", "withheld", "outside"), 0),
    }
    assert report["total"]["read"] == 18
    assert report["quarantined_by_reason"] == {"invalid_quantity": 1}
    assert (report["events"], report["sessions"], report["interactions"], report["bots"]) == (13, 9, 10, 0)
    assert rows(shop, "silver.events", "event_id", "source") == sorted(
        [(f"e{n}", "test") for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14)] + [("m0", "test"), ("m1", "test")]
    )
    learned = [event_id for (event_id,) in rows(shop, "silver.interactions", "event_id")]
    assert learned == ["e1", "e14", "e2", "e3", "e4", "e5", "e6", "e7", "m0", "m1"]
    assert rows(shop, "silver.sessions", "subject_key", "event_count", "duration_seconds", "has_purchase") == [
        ("a:a1", 1, 0.0, False),
        ("u:denier", 1, 0.0, False),
        ("u:u1", 1, 0.0, False),
        ("u:u1", 3, 2399.0, True),
        ("u:u2", 3, 7260.0, False),
        ("u:u3", 1, 0.0, False),
        ("u:u6", 1, 0.0, False),
        ("u:u7", 1, 0.0, True),
        ("u:u9", 1, 0.0, False),
    ]
    [(raw, reason, day)] = rows(shop, "silver.quarantine", "raw", "reason", "event_date")
    assert (json.loads(raw)["event_id"], reason, day) == ("e12", "invalid_quantity", date(2024, 3, 2))


def full_night(spark: SparkSession, incremental: Environment, run: Run, folder: Path) -> dict[str, str]:
    """Hashes of the tables when everything was there at once and every day is derived."""
    at_once = incremental._replace(lakehouse=str(folder))
    bring_first(at_once)
    bring_later(at_once)
    job.refine_events(spark, at_once, replace(run, derive_days=None))
    return hash_tables(at_once)


def test_an_incremental_night_makes_the_tables_of_a_full_one(spark, shop, tmp_path) -> None:
    untouched = day_files(shop, "silver.events", date(2024, 2, 20))
    assert len(untouched) == 1
    bring_later(shop)
    run = pinned(shop, "2024-03-04")
    assert run.derive_days == ("2024-02-27", "2024-03-01", "2024-03-02", "2024-03-03")

    report = job.refine_events(spark, shop, run)

    assert (report["days_derived"], read_state(shop).as_of) == (5, "2024-03-04")
    assert rows(shop, "silver.sessions", "subject_key", "session_date", "event_count") == [
        ("a:a1", date(2024, 3, 1), 1),
        ("u:denier", date(2024, 3, 2), 1),
        ("u:ghost", date(2024, 3, 2), 1),  # no longer refuses storing
        ("u:u1", date(2024, 3, 1), 2),  # e4 and n1, across midnight
        ("u:u1", date(2024, 3, 1), 3),
        ("u:u2", date(2024, 3, 1), 1),  # e6 moved to 08:00 of the day before ...
        ("u:u2", date(2024, 3, 2), 2),  # ... 27 hours before e7: another session
        ("u:u3", date(2024, 3, 2), 1),
        ("u:u6", date(2024, 3, 2), 1),
        ("u:u7", date(2024, 2, 27), 1),
        ("u:u8", date(2024, 3, 3), 1),
        ("u:u9", date(2024, 2, 20), 1),
    ]
    learned = {event_id for (event_id,) in rows(shop, "silver.interactions", "event_id")}
    assert learned == {"e1", "e2", "e3", "e4", "e5", "e6", "e7", "e10", "e11", "e14", "m1", "n1", "n2"}
    assert day_files(shop, "silver.events", date(2024, 2, 20)) == untouched

    assert hash_tables(shop) == full_night(spark, shop, run, tmp_path / "at-once")


@pytest.mark.soak
def test_a_night_killed_at_every_table_ends_as_a_full_one(spark, shop, monkeypatch, tmp_path) -> None:
    bring_later(shop)
    run = pinned(shop, "2024-03-04")
    write = job.overwrite_partitions
    for dies_before in ("silver.sessions", "silver.interactions", "silver.events"):

        def dies(
            frame: Any, place: Environment, name: str, *given: Any, fatal: str = dies_before, **named: Any
        ) -> None:
            if name == fatal:
                raise KeyboardInterrupt
            write(frame, place, name, *given, **named)

        monkeypatch.setattr(job, "overwrite_partitions", dies)
        with pytest.raises(KeyboardInterrupt):
            job.refine_events(spark, shop, run)
        assert read_state(shop).as_of == "2024-03-03"
        assert pinned(shop, "2024-03-04").derive_days == run.derive_days
    monkeypatch.undo()

    job.refine_events(spark, shop, run)

    assert read_state(shop).as_of == "2024-03-04"
    assert hash_tables(shop) == full_night(spark, shop, run, tmp_path / "at-once")


@pytest.mark.soak  # three nights; what is sorted out is held to the small way in test_deliveries
@pytest.mark.parametrize("way", ["in memory", "by Spark"])
def test_a_history_too_large_to_be_kept_makes_the_same_tables(spark, shop, monkeypatch, tmp_path, way) -> None:
    """Its deliveries are sorted out by exception, silver.events is written first, and read for what follows."""
    monkeypatch.setattr(job, "fits_in_memory", lambda *_: way == "in memory")
    bring_later(shop)
    run = pinned(shop, "2024-03-04")
    usual = full_night(spark, shop, run, tmp_path / "usual")
    counts = read_report(shop, run.run_key, REFINE_FILE)

    monkeypatch.setattr(job, "MOST_COMPUTED", 0)
    assert full_night(spark, shop, run, tmp_path / "large") == usual
    assert [counts["total"][name] for name in ("kept", "duplicates", "quarantined", "withheld")] == [16, 5, 1, 1]
    assert read_report(shop, run.run_key, REFINE_FILE) == counts

    large = shop._replace(lakehouse=str(tmp_path / "large"))
    assert (read_state(large).as_of, read_state(large).pins) == ("2024-03-04", run.pins)
    job.refine_events(spark, large, replace(run, derive_days=None))
    assert hash_tables(large) == usual


@pytest.mark.soak  # three nights; what is sorted out is held to the small way in test_deliveries
def test_a_large_night_killed_after_its_events_ends_as_a_full_one(spark, shop, monkeypatch, tmp_path) -> None:
    bring_later(shop)
    run = replace(pinned(shop, "2024-03-04"), derive_days=None)
    monkeypatch.setattr(job, "MOST_COMPUTED", 0)
    write = refine_in_memory.write_days

    def dies(place: Environment, name: str, *given: Any, **named: Any) -> None:
        if name == "silver.interactions":
            raise KeyboardInterrupt
        write(place, name, *given, **named)

    monkeypatch.setattr(refine_in_memory, "write_days", dies)
    with pytest.raises(KeyboardInterrupt):
        job.refine_events(spark, shop, run)
    monkeypatch.undo()
    assert read_state(shop).as_of == "2024-03-03"

    job.refine_events(spark, shop, pinned(shop, "2024-03-04"))  # an incremental one takes over

    assert read_state(shop).as_of == "2024-03-04"
    assert hash_tables(shop) == full_night(spark, shop, run, tmp_path / "at-once")


def test_consent_to_storing_moves_days_that_gained_no_event(spark, shop) -> None:
    """u6 withdraws: 2 March, where e14 lies, is derived again although no delivery came."""
    write_rows(shop, "bronze.users", [*USERS, {"user_id": "u6", "consent_store": False}], mode="overwrite")
    run = pinned(shop, "2024-03-03")
    assert run.derive_days == ()

    report = job.refine_events(spark, shop, run)

    assert (report["days_derived"], report["total"]["withheld"]) == (1, 2)
    kept = {event_id for (event_id,) in rows(shop, "silver.events", "event_id")}
    assert kept == {"e1", "e2", "e3", "e4", "e5", "e6", "e7", "e8", "e9", "e10", "m0", "m1"}
    assert not {"u:u6"} & {subject for (subject,) in rows(shop, "silver.sessions", "subject_key")}


def test_a_backfill_leaves_later_days_and_the_state_alone(spark, shop) -> None:
    before, later = hash_tables(shop), day_files(shop, "silver.events", date(2024, 3, 2))
    assert len(later) == 1

    report = job.refine_events(spark, shop, replace(pinned(shop, "2024-03-02"), derive_days=None))

    assert report["total"]["outside"] == 9
    assert hash_tables(shop) == before
    assert day_files(shop, "silver.events", date(2024, 3, 2)) == later
    assert read_state(shop).as_of == "2024-03-03"


def test_nothing_new_writes_nothing(spark, shop) -> None:
    names = ("silver.events", "silver.sessions", "silver.interactions", "silver.quarantine")
    versions = [light_delta.version(shop, name) for name in names]
    run = pinned(shop, "2024-03-03")
    assert run.derive_days == ()

    report = job.refine_events(spark, shop, run)

    assert (report["days_derived"], report["total"]["kept"], report["events"]) == (0, 0, 13)
    assert [light_delta.version(shop, name) for name in names] == versions


def test_a_broken_feed_stops_the_night_and_leaves_silver(spark, shop) -> None:
    before = hash_tables(shop)
    broken = [(f"b{n}", "u1", "view_item", "2024-03-03T10:00:00", None) for n in range(3)]
    write_bronze_events(shop, [*broken, ("g1", "u1", "view_item", "2024-03-03T11:00:00")], first_position=200)
    run = pinned(shop, "2024-03-04", params={"max_quarantined_share": 0.5})
    assert run.derive_days == ("2024-03-03",)

    with pytest.raises(DataError, match=r"3 of 5 deliveries before 2024-03-04 break a rule \(missing_item_id 3\)"):
        job.refine_events(spark, shop, run)
    assert hash_tables(shop) == before
    assert read_report(shop, run.run_key, REFINE_FILE)["quarantined_by_reason"] == {"missing_item_id": 3}

    report = job.refine_events(spark, shop, replace(run, params={"max_quarantined_share": 0.6}))
    assert report["total"]["quarantined"] == 3


def test_a_night_that_keeps_nothing_stops(spark, environment) -> None:
    write_bronze_events(environment, [("e1", "ghost", "view_item", "2024-03-01T10:00:00")])
    write_rows(environment, "bronze.users", USERS)
    with pytest.raises(DataError, match=r"no event before 2024-03-02 is left of 1 deliveries.*1 belong to users"):
        job.refine_events(spark, environment, pinned(environment, "2024-03-02"))
    assert light_delta.version(environment, "silver.events") == -1


def day_files(environment: Environment, name: str, day: date) -> list[str]:
    opened = light_delta.open_table(environment, name)
    return sorted(opened.file_uris([("event_date", "=", day.isoformat())]))
