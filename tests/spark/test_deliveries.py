"""Which deliveries count, by marking each and by exception: the same of both, and what is right by hand."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from spark_jobs.transforms.deliveries import SortedOut, by_exception, mark, of_marked
from spark_jobs.transforms.events import repeated_ids
from tests.builders import make_bronze_events

pytestmark = pytest.mark.spark

MARCH_1 = "2024-03-01T10:00:00"
ROWS: list[tuple[Any, ...]] = [
    ("a", "u1", "view_item", MARCH_1),  # 0
    ("b", "u1", "view_item", "2024-03-02T10:00:00"),  # 1 came again, earlier: a duplicate
    ("b", "u1", "view_item", MARCH_1),  # 2
    ("c", "u2", "purchase", MARCH_1, "i1", {"quantity": 0}),  # 3 breaks a rule
    ("d", "u2", "purchase", MARCH_1, "i1", {"quantity": 0}),  # 4 breaks a rule, and
    ("d", "u2", "purchase", "2024-03-03T10:00:00", "i1"),  # 5 a later one of this event does not
    (None, "u2", "view_item", MARCH_1),  # 6 breaks a rule, without an id
    (None, "u3", "view_item", MARCH_1),  # 7 another
    ("e", "ghost", "view_item", MARCH_1),  # 8 withheld
    ("f", "ghost", "view_item", MARCH_1),  # 9 withheld, and
    ("f", "u4", "view_item", "2024-03-02T10:00:00"),  # 10 a duplicate all the same
    ("g", None, "view_item", MARCH_1, "i1", {"anonymous_id": "d1"}),  # 11 nobody known
    ("h", "ghost", "view_item", MARCH_1, None),  # 12 breaks a rule before it is withheld
]


def positions(frame: DataFrame) -> list[int]:
    return sorted(row[0] for row in frame.select("source_position").collect())


def outcomes(found: SortedOut) -> dict[tuple[str, str, str | None], int]:
    counts: dict[tuple[str, str, str | None], int] = {}
    for one in found.outcomes:
        counts[one[:3]] = counts.get(one[:3], 0) + one.deliveries
    return counts


@pytest.mark.parametrize("way", ["each is marked", "by exception"])
def test_what_becomes_of_each_delivery(spark: SparkSession, way: str) -> None:
    deliveries = make_bronze_events(spark, ROWS).withColumn("table", F.lit("t"))
    denying = spark.createDataFrame([("ghost",)], "user_id string")
    if way == "by exception":
        found = by_exception(deliveries, denying)
    else:
        marked = mark(deliveries, repeated_ids(deliveries), denying)
        found = of_marked(marked, marked)

    assert positions(found.kept) == [0, 2, 5, 11]
    assert {row["subject_key"] for row in found.kept.collect()} == {"u:u1", "u:u2", "a:d1"}
    assert positions(found.rejected) == [3, 4, 6, 7, 12]
    assert positions(found.checked) == list(range(len(ROWS)))
    assert positions(found.checked.filter("broken_rule is not null")) == [3, 4, 6, 7, 12]
    assert outcomes(found) == {
        ("t", "kept", None): 4,
        ("t", "duplicates", None): 2,
        ("t", "withheld", None): 2,
        ("t", "quarantined", "invalid_quantity"): 2,
        ("t", "quarantined", "missing_event_id"): 2,
        ("t", "quarantined", "missing_item_id"): 1,
    }


def test_a_history_without_exceptions_counts_as_it_is(spark: SparkSession) -> None:
    deliveries = make_bronze_events(spark, [ROWS[0], ROWS[11]]).withColumn("table", F.lit("t"))
    found = by_exception(deliveries, spark.createDataFrame([], "user_id string"))
    assert (positions(found.kept), positions(found.rejected)) == ([0, 1], [])
    assert outcomes(found) == {("t", "kept", None): 2}
