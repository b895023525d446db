"""Sequences that cannot be: each rule by hand, the contract and Spark held to each other, and what the night keeps."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from typing import Any

import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.events import subject_key
from feature_repo.contracts.run import PINNED_TABLES
from feature_repo.contracts.sequences import SequenceEvent, SequenceRule, find_breaks
from feature_repo.contracts.times import to_micros
from spark_jobs.io import light_delta
from spark_jobs.jobs.refine_events import refine_events
from spark_jobs.transforms import sequences as twin
from tests.builders import EventRow, make_events, make_run, silver_event, utc, write_bronze_events

pytestmark = pytest.mark.spark


def ordered(**fields: Any) -> dict[str, Any]:
    return {"properties": json.dumps(fields)}


def placed(session: str, region: str | None, **more: Any) -> dict[str, Any]:
    return {"session_id": session, "properties": json.dumps({"context": {"region": region}}), **more}


def arrived(moment: str) -> dict[str, Any]:
    return {"session_id": "s", "received_at": utc(moment)}


T = "2024-03-01T10:00:00"
CASES: list[EventRow] = [
    ("r1", "u1", "refund", T, "i1"),  # nothing was ever bought: refund_without_purchase
    ("p1", "u1", "purchase", "2024-03-01T10:00:01", "i1"),  # ... not before that refund
    ("r2", "u1", "refund", "2024-03-01T10:00:01", "i1"),  # at the instant of the purchase: fine
    ("r3", "u2", "refund", "2024-03-05T10:00:00", "i1"),  # u1's purchase is not u2's: refund_without_purchase
    ("d1", "u1", "remove_from_cart", T, "i1"),  # removal_without_addition
    ("a1", "u1", "add_to_cart", T, "i2"),
    ("d2", "u1", "remove_from_cart", "2024-03-02T10:00:00", "i2"),
    ("o1", "u3", "purchase", T, "i1", ordered(order_id="A")),
    ("o2", "u3", "purchase", T, "i1", ordered(order_id="A")),  # a second line of the order: one instant
    ("o3", "u3", "purchase", T, "i2", ordered(order_id="A")),
    ("o4", "u3", "purchase", "2024-03-01T10:00:07", "i1", ordered(transaction_id="A")),  # order_repeated
    ("o5", "u3", "purchase", "2024-03-01T10:00:07", "i1", ordered(order_id="B")),
    ("o6", "u3", "purchase", "2024-03-01T10:00:07", "i1"),  # names no order
    ("o7", "u4", "purchase", "2024-03-01T10:00:07", "i1", ordered(order_id="A")),  # another person's order
    ("o8", "u3", "view_item", "2024-03-01T10:00:09", "i1", ordered(order_id="A")),  # no purchase
    ("g1", "u5", "view_item", T, "i1", placed("s1", "DE")),
    ("g2", "u5", "view_item", "2024-03-01T10:00:20", "i1", placed("s1", None)),  # says nothing
    ("g3", "u5", "view_item", "2024-03-01T10:00:59", "i1", placed("s1", "BR")),  # session_in_two_regions
    ("g4", "u5", "view_item", "2024-03-01T10:01:59", "i1", placed("s1", "DE")),  # a minute later
    ("g5", "u5", "view_item", "2024-03-01T10:02:00", "i1", placed("s2", "BR")),  # elsewhere
    ("b1", "u6", "view_item", "2024-03-03T10:00:00", "i1", arrived("2024-03-03T10:00:01")),
    ("b2", "u6", "view_item", "2024-03-02T10:00:00", "i1", arrived("2024-03-03T10:00:02")),
    ("b3", "u6", "view_item", "2024-03-02T09:59:59", "i1", arrived("2024-03-03T10:00:03")),
    ("b4", "u6", "view_item", "2024-03-01T09:59:59", "i1", arrived("2024-03-03T10:00:00")),
]  # fmt: skip
EXPECTED = {
    ("r1", "refund_without_purchase"),
    ("r3", "refund_without_purchase"),
    ("d1", "removal_without_addition"),
    ("o4", "order_repeated"),
    ("g3", "session_in_two_regions"),
    ("b3", "session_time_backwards"),  # 24 hours and a second; b2 exactly 24 hours; b4 arrived before them
}


def contract_breaks(rows: list[EventRow]) -> set[tuple[str, str]]:
    events = []
    for position, row in enumerate(rows):
        silver = silver_event(position, row)
        events.append(
            SequenceEvent(
                silver["event_id"], silver["event_type"], subject_key(silver["user_id"], None), silver["item_id"],
                silver["session_id"], to_micros(silver["event_timestamp"]), to_micros(silver["received_at"]),
                silver["source"], silver["source_position"], json.loads(silver["properties"] or "{}"),
            )
        )  # fmt: skip
    random.Random(3).shuffle(events)
    return {(found.event_id, found.rule.value) for found in find_breaks(events)}


def test_each_rule_by_hand() -> None:
    assert contract_breaks(CASES) == EXPECTED
    assert {rule for _, rule in EXPECTED} == {rule.value for rule in SequenceRule}


def test_spark_finds_what_the_contract_finds(spark: SparkSession) -> None:
    rng = random.Random(5)
    rows = list(CASES)
    kinds = ("purchase", "refund", "add_to_cart", "remove_from_cart", "view_item")
    for n in range(400):
        at = utc("2024-03-01") + timedelta(seconds=rng.choice((1, 20, 3000)) * rng.randint(0, 120))
        more: dict[str, Any] = {"received_at": at + timedelta(seconds=rng.randint(0, 200_000))}
        said: dict[str, Any] = {"order_id": rng.choice((None, "A", "B", 7, ""))}
        said["context"] = rng.choice(({}, {"country": "DE"}, {"location": {"country": "FR"}}, {"region": ""}))
        more |= {"session_id": rng.choice((None, "s1", "s2")), "properties": rng.choice((None, json.dumps(said)))}
        rows.append((f"x{n}", f"v{rng.randint(1, 4)}", rng.choice(kinds), at, f"i{rng.randint(1, 5)}", more))
    events = make_events(spark, rows)
    assert set(twin.may_break(events)) == set(SequenceRule)
    found = [(row["event_id"], row["rule"]) for row in twin.find_breaks(events).collect()]
    expected = contract_breaks(rows)
    assert len(found) == len(set(found)) == len(expected) > 60
    assert set(found) == expected
    assert {rule for _, rule in expected} == {rule.value for rule in SequenceRule}


@pytest.mark.soak  # two nights; the rules themselves are tested above
def test_a_night_marks_them_and_learns_an_order_once(spark: SparkSession, environment: Environment) -> None:
    def night(as_of: str, **more: Any) -> dict[str, Any]:
        pins = {name: light_delta.version(environment, name) for name in PINNED_TABLES}
        return refine_events(spark, environment, make_run(environment, as_of, run_key=as_of, pins=pins, **more))

    def flags() -> set[tuple[str, str]]:
        rows = light_delta.read_table(environment, "silver.quality_flags").to_pylist()
        assert len({(r["event_id"], r["rule"]) for r in rows}) == len(rows)
        return {(r["event_id"], r["rule"]) for r in rows}

    write_bronze_events(environment, CASES)
    report = night("2024-03-10")
    assert report["sequence_breaks"]["refund_without_purchase"] == 2
    assert flags() == EXPECTED
    assert len(light_delta.read_table(environment, "silver.events")) == len(CASES)  # nothing is lost
    learned = set(light_delta.read_table(environment, "silver.interactions")["event_id"].to_pylist())
    assert {"o1", "o2", "o3", "o5"} <= learned
    assert "o4" not in learned
    # the purchase that a refund lacked comes late: the mark goes, and so does nothing else
    write_bronze_events(environment, [("late", "u2", "purchase", "2024-03-04T10:00:00", "i1")], first_position=100)
    night("2024-03-10", derive_days=("2024-03-04",))
    assert flags() == EXPECTED - {("r3", "refund_without_purchase")}
