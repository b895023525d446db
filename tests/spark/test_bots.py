"""Bots at night: whom the rules name, and the same counters as the contract's own code counts."""

from __future__ import annotations

import json
import random
from datetime import date, timedelta
from typing import Any

import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.bots import LEAST_BUSY, MAX_ITEMS, BotCounters, broken_bot_rules
from feature_repo.contracts.times import to_micros
from spark_jobs.transforms.bots import count_day, find_bots, flag_bots
from tests.builders import EventRow, make_events, utc

pytestmark = pytest.mark.spark

SPEED = ("browsing", "gaps", "quick_gaps", "steps", "steady_steps", "second_peak", "minute_peak", "hour_peak")
CRAWLER = json.dumps({"context": {"userAgent": "Mozilla/5.0 (compatible; SomeBot/1.0; +http://some.example)"}})
PHONE = json.dumps({"context": {"user_agent": "Mozilla/5.0 (Linux; Android 12; CUBOT) Mobile Safari/537.36"}})


def browse(name: str, count: int, start: str, seconds: float, kind: str = "view_item", **more: Any) -> list[EventRow]:
    begin = utc(start)
    return [(f"{name}-{n}", name, kind, begin + timedelta(seconds=n * seconds), "i1", more) for n in range(count)]


def test_a_bot_is_one_on_that_day_only(spark: SparkSession) -> None:
    rows = [
        *browse("crawler", 201, "2024-03-01T10:00:00", 1.45),  # 41 a minute
        ("next-day", "crawler", "view_item", "2024-03-02T10:00:00"),
        *browse("clockwork", 102, "2024-03-01T10:00:00", 7.0),
        *browse("brief", 200, "2024-03-01T10:00:00", 1.0),  # 60 a minute, 200 a day
        *browse("wholesaler", 300, "2024-03-01T10:00:00", 0.0, "purchase"),  # one order of 300 lines
        *browse("lists", 300, "2024-03-01T10:00:00", 0.0, "view_item_list"),  # lists are many lines at one instant
        *browse("midnight", 120, "2024-03-01T23:58:00", 1.0),  # 120 on each side of midnight: neither day is over 200
        *browse("midnight2", 120, "2024-03-02T00:00:00", 1.0),
        *browse("honest", 1, "2024-03-01T10:00:00", 1.0, "search", properties=CRAWLER),
        *browse("phone", 1, "2024-03-01T10:00:00", 1.0, "search", properties=PHONE),
        *browse("torn", 1, "2024-03-01T10:00:00", 1.0, "search", properties="{agent"),
    ]
    events = make_events(spark, rows)
    bots = find_bots(events)
    found = {row["subject_key"]: (row["event_date"], row["bot_rules"]) for row in bots.collect()}
    day = date(2024, 3, 1)
    assert found == {
        "u:crawler": (day, ["per_minute"]),
        "u:clockwork": (day, ["rhythm"]),
        "u:honest": (day, ["crawler_agent"]),
    }
    flagged = flag_bots(events.drop("is_bot"), bots)
    assert (flagged.filter("is_bot").count(), flagged.count()) == (201 + 102 + 1, len(rows))
    assert flagged.filter("event_id = 'next-day'").first()["is_bot"] is False


def crowd() -> list[EventRow]:
    """Subjects of every tempo, uneven and steady, some over midnight, with ties, other types, and user agents."""
    rng = random.Random(11)
    rows: list[EventRow] = []
    for number, tempo in enumerate((0.0, 0.1, 0.55, 1.6, 5.0, 40.0, 900.0) * 2):
        at, name, is_steady = utc("2024-03-01T20:00:00"), f"s{number}", number >= 7
        for n in range(320 if number % 3 else 160):
            at += timedelta(microseconds=round(1e6 * tempo * (1 if is_steady else rng.choice((0.5, 1, 1, 1.04, 3)))))
            kind = rng.choice(("view_item",) * 20 + ("page_view", "purchase", "view_item_list", "search"))
            if is_steady and tempo in (5.0, 40.0):
                kind = "view_item"
            more = {"properties": rng.choice((CRAWLER, PHONE))} if n == 9 and number % 2 else {}
            rows.append((f"{name}-{n}", name, kind, at, f"i{rng.randint(1, 40)}", more))
    return rows


def test_spark_counts_what_the_contract_counts(spark: SparkSession) -> None:
    rows = crowd()
    expected: dict[tuple[str, date], BotCounters] = {}
    for _, user, kind, at, item, more in rows:
        context = json.loads(more["properties"])["context"] if more else None
        expected.setdefault((f"u:{user}", at.date()), BotCounters()).add(kind, to_micros(at), item, context=context)
    expected = {k: c for k, c in expected.items() if c.browsing > LEAST_BUSY or c.is_crawler}
    found = {(row["subject_key"], row["event_date"]): row for row in count_day(make_events(spark, rows)).collect()}
    assert len(expected) > 14
    assert len({day for _, day in expected}) >= 3
    assert found.keys() == expected.keys()
    for key, counters in expected.items():
        row = found[key]
        assert row["is_crawler"] == counters.is_crawler, key
        if counters.browsing > LEAST_BUSY:
            assert {n: row[n] for n in SPEED} == {n: getattr(counters, n) for n in SPEED}, key
            assert min(row["items"], MAX_ITEMS + 1) == len(counters.items), key
    judged = find_bots(make_events(spark, rows)).collect()
    verdicts = {(row["subject_key"], row["event_date"]): row["bot_rules"] for row in judged}
    assert verdicts == {k: [r.value for r in broken_bot_rules(c)] for k, c in expected.items() if broken_bot_rules(c)}
    assert len({rule for broken in verdicts.values() for rule in broken}) == 5
