"""Identity in the nightly tables: the rule in Spark is the rule in Python, and a night can be taken back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.identity import Edge, claim_of, current_name, merge_edges, owner_at
from feature_repo.contracts.run import PINNED_TABLES, Run
from spark_jobs.io import light_delta
from spark_jobs.io.refine_state import days_to_derive, read_state
from spark_jobs.io.table_hash import hash_table
from spark_jobs.jobs import refine_events as job
from spark_jobs.jobs.build_features import build_feature_tables
from spark_jobs.jobs.refine_in_memory import identity_of
from spark_jobs.transforms import identity
from spark_jobs.transforms.identity import identity_edges, resolve_events
from spark_jobs.transforms.whole_history import whose
from tests.builders import EventRow, make_events, make_run, write_bronze_events

pytestmark = pytest.mark.spark

DERIVED = ("silver.sessions", "silver.interactions", "silver.quality_flags")

ANONYMOUS = [
    ("p1", None, "view_item", "2024-03-01T10:00:00", "i1", {"anonymous_id": "phone"}),
    ("p2", None, "view_item", "2024-03-01T10:20:00", "i2", {"anonymous_id": "phone"}),
    ("l1", None, "add_to_cart", "2024-03-02T09:00:00", "i3", {"anonymous_id": "laptop"}),
    ("u1", "u", "view_item", "2024-03-01T10:40:00", "i4"),  # 20 minutes after p2: joined, it is one session
    ("u2", "u", "remove_from_cart", "2024-03-02T09:30:00", "i3"),  # never added, unless the laptop is theirs
    ("t1", None, "view_item", "2024-03-02T12:00:00", "i5", {"anonymous_id": "tablet"}),  # between u and v
    ("t2", "u", "view_item", "2024-03-01T12:00:00", "i5", {"anonymous_id": "tablet"}),
    ("t3", "v", "view_item", "2024-03-03T12:00:00", "i5", {"anonymous_id": "tablet"}),
    ("x1", None, "view_item", "2024-03-01T08:00:00", "i9", {"anonymous_id": "stranger"}),
]
LOGINS = [
    ("in1", "u", "identify", "2024-03-03T10:00:00", None, {"anonymous_id": "phone"}),
    ("in2", "u", "identify", "2024-03-03T10:05:00", None, {"anonymous_id": "laptop"}),
]
WITHOUT_EDGES = [(*row[:5], {}) for row in LOGINS]
"""The same deeds of the same user; they say nothing of a device."""
UNDO = [
    ("un1", "u", "unmerge", "2024-03-04T09:00:00", None, {"anonymous_id": "phone"}),
    ("un2", "u", "unmerge", "2024-03-04T09:00:01", None, {"anonymous_id": "laptop"}),
]


def night(spark: SparkSession, place: Environment, as_of: str, *, is_full: bool = False) -> Run:
    pins = {name: light_delta.version(place, name) for name in PINNED_TABLES}
    days = days_to_derive(place, read_state(place), as_of=date.fromisoformat(as_of), pins=pins)
    run = make_run(place, as_of, pins=pins, derive_days=None if is_full else days)
    job.refine_events(spark, place, run)
    return run


def rows(place: Environment, name: str, *columns: str) -> list[tuple[Any, ...]]:
    found = light_delta.read_table(place, name, columns=columns)
    return sorted((tuple(row.values()) for row in found.to_pylist()), key=repr)


def owners(place: Environment) -> dict[str, str]:
    return dict(rows(place, "silver.interactions", "event_id", "subject_key"))


def shop(environment: Environment, name: str) -> Environment:
    return environment._replace(lakehouse=f"{environment.home}/{name}", runs=f"{environment.home}/{name}-runs")


@pytest.mark.soak  # four nights of refine_events
def test_a_person_is_joined_and_parted_again(
    spark: SparkSession, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Night 1 knows strangers, night 2 the login, night 3 its undo: it leaves what a full night without both makes."""
    place = shop(environment, "lake")
    write_bronze_events(place, ANONYMOUS[:-2] + ANONYMOUS[-1:])
    night(spark, place, "2024-03-03")
    assert owners(place) == {
        "p1": "a:phone", "p2": "a:phone", "l1": "a:laptop", "u1": "u:u", "t1": "u:u", "t2": "u:u", "x1": "a:stranger",
    }  # fmt: skip

    breaks = [("u2", "u:u", "removal_without_addition")]
    assert rows(place, "silver.quality_flags", "event_id", "subject_key", "rule") == breaks
    write_bronze_events(place, [*LOGINS, ANONYMOUS[-2]], first_position=100)
    run = night(spark, place, "2024-03-04")
    assert run.derive_days == ("2024-03-03",)  # what was seen before is another day's, and changes all the same
    assert owners(place) == {
        "p1": "u:u", "p2": "u:u", "l1": "u:u", "u1": "u:u", "t2": "u:u", "t3": "u:v", "x1": "a:stranger",
        "t1": "a:tablet",  # v came: nobody's
    }  # fmt: skip
    assert rows(place, "silver.quality_flags", "event_id") == []
    sessions = rows(place, "silver.sessions", "subject_key", "user_id", "session_date", "event_count")
    assert ("u:u", "u", date(2024, 3, 1), 3) in sessions  # p1, p2 and u1
    assert ("a:tablet", None, date(2024, 3, 2), 1) in sessions
    raw = dict(rows(place, "silver.events", "event_id", "subject_key"))
    assert (raw["p1"], raw["l1"], raw["t1"]) == ("a:phone", "a:laptop", "a:tablet")
    assert rows(place, "silver.identity_edges", "anonymous_id", "user_id", "undone_at") == [
        ("laptop", "u", None), ("phone", "u", None), ("tablet", "u", None), ("tablet", "v", None),
    ]  # fmt: skip
    write_bronze_events(place, UNDO, first_position=200)
    night(spark, place, "2024-03-05")
    never = shop(environment, "never")
    write_bronze_events(never, ANONYMOUS[:-2] + ANONYMOUS[-1:])
    write_bronze_events(never, [*WITHOUT_EDGES, ANONYMOUS[-2]], first_position=100)
    night(spark, never, "2024-03-05", is_full=True)
    for name in DERIVED:
        assert hash_table(place, name) == hash_table(never, name), name
    assert owners(place)["p1"] == "a:phone"
    assert rows(place, "silver.quality_flags", "event_id", "subject_key", "rule") == breaks
    undone = rows(place, "silver.identity_edges", "anonymous_id", "undone_at")
    assert [name for name, at in undone if at is not None] == ["laptop", "phone"]
    small = {name: hash_table(place, name) for name in ("silver.events", "silver.identity_edges", *DERIVED)}
    monkeypatch.setattr(job, "MOST_COMPUTED", 0)
    night(spark, place, "2024-03-05", is_full=True)
    assert {name: hash_table(place, name) for name in small} == small

    build_feature_tables(spark, place, as_of=date(2024, 3, 4))  # of the day before the undo: nobody knew of it
    build_feature_tables(spark, place, as_of=date(2024, 3, 5))
    counts = ("user_id", "as_of", "user_view_count_30d", "user_cart_count_30d")
    assert rows(place, "gold.user_features", *counts) == [
        ("u", date(2024, 3, 4), 4, 1), ("u", date(2024, 3, 5), 2, 0),
        ("v", date(2024, 3, 4), 1, 0), ("v", date(2024, 3, 5), 1, 0),
    ]  # fmt: skip


def word(number: int, row: Sequence[Any]) -> EventRow:
    kind, user, device, minute = row
    moment = datetime(2024, 3, 1, tzinfo=UTC) + timedelta(minutes=minute)
    return (f"e{number}", user, kind, moment, "i1", {"anonymous_id": device})


@pytest.mark.parametrize("most_broadcast", [identity.MOST_BROADCAST, 0])
def test_the_rule_in_spark_is_the_rule_in_python(
    spark: SparkSession, most_broadcast: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random words about few devices and users, with ties, undos, aliases in chains and circles, and a kiosk."""
    monkeypatch.setattr(identity, "MOST_BROADCAST", most_broadcast)
    random_words = random.Random(20240301)
    kinds = ["view_item", "identify", "identify", "unmerge"]
    words: list[Sequence[Any]] = [
        (random_words.choice(kinds), random_words.choice("uvw"), f"d{random_words.randrange(12)}",
         random_words.randrange(12))
        for _ in range(70)
    ]  # fmt: skip
    words += [("view_item", f"k{n}", "kiosk", n) for n in range(9)]
    words += [("alias", f"n{n + 1}", f"n{n}", 1) for n in range(4)]  # n0 becomes n4
    words += [("alias", f"m{n + 1}", f"m{n}", 1) for n in range(5)]  # m0 is too far from m5, m1 is not
    words += [("alias", "c1", "c0", 1), ("alias", "c0", "c1", 1), ("identify", "c0", "circled", 1)]
    words += [("alias", "b1", "b0", 1), ("alias", "b2", "b0", 2)]  # became two
    words += [("alias", "z1", "z0", 1), ("unmerge", "z1", "z0", 2), ("view_item", "z1", "z0", 3)]
    words += [("identify", "n1", "phone of n", 1)]
    logged_in = [word(number, row) for number, row in enumerate(words)]
    devices = sorted({row[2] for row in words})
    asked = [
        (f"q{device}/{minute}", None, "view_item", word(0, ("", "", "", minute))[3], "i1", {"anonymous_id": device})
        for device in devices
        for minute in range(-1, 13)
    ]
    users = sorted({row[1] for row in words} | {"n0", "m0", "c1", "b0", "z0"})
    asked += [(f"q{user}", user, "view_item", "2024-03-01T00:00:00", "i1", {}) for user in users]
    edges = identity_edges(make_events(spark, logged_in)).persist()

    resolved = resolve_events(make_events(spark, asked), edges).select("event_id", "subject_key").collect()

    known: dict[str, dict[str, Edge]] = {}
    for _, user, kind, moment, _, more in logged_in:
        claim = claim_of({"user_id": user, "event_type": kind, "timestamp": moment, **more})
        assert claim is not None
        of_device = known.setdefault(claim.anonymous_id, {})
        of_device[user] = merge_edges(of_device.get(user, Edge()), claim.edge)

    def now_called(user: str) -> str:
        return current_name(user, lambda name: [u for u, edge in known.get(name, {}).items() if edge.renames])

    expected = {}
    for event_id, user, _, moment, _, more in asked:
        if user is None:
            instant = datetime.fromisoformat(str(moment)) if isinstance(moment, str) else moment
            user = owner_at(known[more["anonymous_id"]], round(instant.timestamp() * 1_000_000))
        expected[event_id] = "a:" + more["anonymous_id"] if user is None else "u:" + now_called(user)
    assert len(expected) == len(asked) > 200
    assert len({value for value in expected.values() if value.startswith("u:")}) >= 12
    assert len(resolved) == len(asked)
    assert dict(tuple(row) for row in resolved) == expected
    told = make_events(spark, asked).select("event_id", "subject_key", "event_timestamp").toArrow()
    micros = told["event_timestamp"].cast("int64").to_numpy()
    people = whose(told["subject_key"].combine_chunks().dictionary_encode(), micros, *identity_of(edges))
    in_memory = people.keys.take(pa.array(people.number)).to_pylist()
    assert dict(zip(told["event_id"].to_pylist(), in_memory, strict=True)) == expected
    assert (expected["qn0"], expected["qm0"], expected["qm1"]) == ("u:n4", "u:m0", "u:m5")
    assert (expected["qc0"], expected["qb0"], expected["qz0"]) == ("u:c0", "u:b0", "u:z0")
    assert expected["qphone of n/5"] == "u:n4"
    edges.unpersist()
