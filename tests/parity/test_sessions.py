"""Sessions rebuilt by the night are those that the speed layer stored: the same events through both, for real."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.events import subject_key
from feature_repo.contracts.keys import dedup_key, partition_of, session_key
from feature_repo.contracts.run import PINNED_TABLES
from feature_repo.contracts.session_record import SessionState, unpack_session
from serving.adapters.event_log import LogEntry
from serving.adapters.redis_event_log import RedisEventLog
from serving.pipeline.session_signals import Evidence
from serving.speed.archiver import Archiver
from serving.speed.consumer import Consumer
from spark_jobs.io import light_delta
from spark_jobs.io.delta import read_table
from spark_jobs.jobs.refine_events import refine_events
from spark_jobs.transforms.sessions import assign_sessions
from tests.builders import make_run
from tests.session_oracle import NO_STEP, TOUCHING

pytestmark = [pytest.mark.spark, pytest.mark.redis]

NOON = datetime(2024, 3, 8, 12, tzinfo=UTC)
MINUTE, HOUR = 60.0, 3600.0
NOT_KEPT = NO_STEP - TOUCHING
"""Types that a record counts and does not list: impressions, lists of items, dislikes."""

_numbers = itertools.count()


def said(who: str, seconds: float, kind: str = "view_item", item: str | None = "i1", **more: Any) -> dict[str, Any]:
    """One event, `seconds` after noon. `who` is a user, or a visitor when it begins with `anon`."""
    whose = {"anonymous_id" if who.startswith("anon") else "user_id": who}
    moment = NOON + timedelta(seconds=seconds)
    event = {"event_id": f"e{next(_numbers)}", "event_type": kind, "timestamp": moment.isoformat(), **whose, **more}
    return event if item is None else {**event, "item_id": item}


def long_session() -> list[dict[str, Any]]:
    """75 views in an uneven rhythm (a steady one is a bot's): more than a record lists."""
    seconds = itertools.accumulate(20 + n * 37 % 53 for n in range(75))
    return [said("long", 2 * HOUR + at, item=f"i{n % 11}") for n, at in enumerate(seconds)]


EVENTS = [
    # pauses without a session id: a microsecond below half an hour holds together, half an hour does not
    said("gap", 0), said("gap", 1799.999999, item="i2"), said("gap", 3599.999999, item="i3"),
    said("gap", 4000, "add_to_cart", "i3", quantity=2),
    # a search in between: two pauses of twenty minutes
    said("step", 0), said("step", 20 * MINUTE, "search", None), said("step", 40 * MINUTE, item="i2"),
    said("step", 75 * MINUTE, "page_view", None), said("step", 76 * MINUTE, "begin_checkout", None),
    # the client's id wins: over two hours, over a session without id in between, up to a day
    said("id", 0, session_id="s1"), said("id", 30 * MINUTE, item="i8"),
    said("id", 2 * HOUR, item="i2", session_id="s1"),
    said("id", 26 * HOUR - 0.000001, item="i3", session_id="s1"),  # a microsecond below a day later
    said("id", 50 * HOUR - 0.000001, item="i4", session_id="s1"),  # a day after that: another session
    said("id", 50 * HOUR + 5, item="i5", session_id="s2"), said("id", 50 * HOUR + 9, item="i6", session_id="s1"),
    # a basket, two events of one instant, midnight, and what a record only counts
    said("mixed", 11.9 * HOUR, item="i1"), said("mixed", 11.9 * HOUR, "add_to_cart", "i1"),
    said("mixed", 12.1 * HOUR, "impression", "i7"), said("mixed", 12.2 * HOUR, "dislike", "i7"),
    said("mixed", 12.3 * HOUR, "purchase", None, items=[{"item_id": "i1", "quantity": 2}, {"item_id": "i2"}]),
    said("mixed", 12.3 * HOUR + 1, "view_item_list", None), said("mixed", 12.4 * HOUR, "page_view", None),
    # a visitor whom nobody ever named
    said("anon1", 5, item="i4"), said("anon1", 10, "remove_from_cart", "i4"), said("anon1", 3 * HOUR, item="i5"),
    *long_session(),
]  # fmt: skip
REPEATED = ("gap", "id", "mixed")
"""Whose last event is delivered again when its mark is gone, so that nobody refuses it."""


@dataclass(frozen=True)
class Both:
    """What the two layers made of the events."""

    nights: Mapping[tuple[str, str], list[dict[str, Any]]]
    """(subject, session_key) -> silver events of one session, by time"""
    summaries: list[dict[str, Any]]
    records: Mapping[str, SessionState]


@pytest.fixture(scope="module")
def both(spark: SparkSession, _redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Both:
    place = Environment.from_mapping({"NIGHTJAR_HOME": str(tmp_path_factory.mktemp("parity"))})
    return asyncio.run(through_both(spark, place, _redis_server))


async def through_both(spark: SparkSession, environment: Environment, redis_url: str) -> Both:
    order = random.Random(7).sample(EVENTS, len(EVENTS))  # late ones, too
    again = [[e for e in EVENTS if e.get("user_id") == who][-1] for who in REPEATED]
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        consumer = Consumer(client, client, tenant="default", batch=100, session_ttl_seconds=1000)
        consumer.resume()
        for events in (order, again):
            client.delete(*(dedup_key(partition_of(whose(event)), event["event_id"]) for event in events))
            log = RedisEventLog(redis_url, tenant="default", timeout_seconds=5)
            entries = [LogEntry(whose(e), e["event_id"], f"n{next(_numbers)}", json.dumps(e).encode()) for e in events]
            assert all(await log.append(entries))
            await log.close()
            while consumer.consume(block_ms=None):
                pass
        archiver = Archiver(
            client, client, lakehouse=environment.lakehouse, tenant="default", max_entries=1000, may_write=lambda: True
        )
        archiver.resume()
        while archiver.archive():
            pass
        subjects = {whose(event) for event in EVENTS}
        records = {subject: unpack_session(client.get(session_key(subject)) or b"") for subject in subjects}
    pins = {name: light_delta.version(environment, name) for name in PINNED_TABLES}
    report = refine_events(spark, environment, make_run(environment, "2024-04-01", pins=pins))
    assert (report["total"]["duplicates"], report["bots"]) == (len(REPEATED), 0)
    nights = defaultdict(list)
    for row in assign_sessions(read_table(spark, environment, "silver.events")).orderBy("event_timestamp").collect():
        nights[row["subject_key"], row["session_key"]].append(row.asDict())
    return Both(nights, light_delta.read_table(environment, "silver.sessions").to_pylist(), records)


def whose(event: Mapping[str, Any]) -> str:
    return subject_key(event.get("user_id"), event.get("anonymous_id"))


def micros(moment: datetime) -> int:
    return (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def test_closed_sessions_are_the_same(both: Both) -> None:
    """At the end of each session of the night, the running session of the record is that session, event by event."""
    assert Counter(subject for subject, _ in both.nights) == {
        "u:gap": 2, "u:step": 2, "u:id": 4, "u:mixed": 1, "a:anon1": 2, "u:long": 1,
    }  # fmt: skip
    for (subject, _), events in both.nights.items():
        record = both.records[subject]
        end = max(micros(event["event_timestamp"]) for event in events)
        as_of_then = SessionState(
            events=[event for event in record.events if event.micros <= end],
            steps=[event for event in record.steps if event.micros <= end],
        )
        running = Evidence(as_of_then, end, catalogue=None).running  # type: ignore[arg-type]
        expected = sorted(
            (micros(e["event_timestamp"]), e["event_type"], e["item_id"] if e["event_type"] in TOUCHING else "")
            for e in events
            if e["event_type"] not in NOT_KEPT
        )
        kept = expected[-50:] if subject == "u:long" else expected
        assert sorted((e.micros, e.event_type, e.item_id) for e in running) == kept, subject


def test_the_table_of_sessions_holds_the_same_ones(both: Both) -> None:
    assert {(row["subject_key"], row["session_key"]) for row in both.summaries} == both.nights.keys()
    for row in both.summaries:
        events = both.nights[row["subject_key"], row["session_key"]]
        assert (row["event_count"], micros(row["ended_at"])) == (len(events), micros(events[-1]["event_timestamp"]))


def test_counts_times_and_purchases_of_each_subject_agree(both: Both) -> None:
    assert len(both.records) == 6
    for subject, record in both.records.items():
        rows = [row for (whom, _), events in both.nights.items() if whom == subject for row in events]
        times = [micros(row["event_timestamp"]) for row in rows]
        assert (record.first_micros, record.last_micros) == (min(times), max(times))
        once = {row["event_id"].partition(":")[0]: row["event_type"] for row in rows}  # lines of a basket are one event
        # a repeat of what a record does not list is counted again there: none of REPEATED is such an event
        assert record.counts == Counter(once.values()), subject
        bought = {row["item_id"]: micros(row["event_timestamp"]) for row in rows if row["event_type"] == "purchase"}
        assert {mark.item_id: mark.micros for mark in record.bought} == bought
