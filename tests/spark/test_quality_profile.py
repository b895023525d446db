"""The profile of a few deliveries, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from spark_jobs.quality.profile import Day, profile_days
from spark_jobs.quality.profile_in_memory import PROFILE_COLUMNS, PROFILE_WORDS, Broken, profile_day
from spark_jobs.transforms.events import check_deliveries
from spark_jobs.transforms.quality import count_sources
from tests.builders import make_bronze_events, make_frame, utc

pytestmark = pytest.mark.spark

FIRST, END = date(2024, 3, 1), date(2024, 3, 4)

LIVE = [
    ("e1", "u1", "view_item", "2024-03-01T10:00:00", "i1", {"price": 10.0, "currency": "EUR"}),
    ("e1", "u1", "view_item", "2024-03-01T10:00:00", "i1", {"price": 10.0, "currency": "EUR"}),  # delivered twice
    ("e2", "u2", "purchase", "2024-03-01T11:00:00", "i2", {
        "price": 100.0, "quantity": 3, "currency": "EUR", "properties": '{"colour": "red", "size": {"deep": 1}}',
        "received_at": utc("2024-03-01T12:00:01")}),  # an hour and a second late; i2 costs 5
    ("e3", "u2", "purchase", "2024-03-01T11:00:00", "i2", {  # what e2 says, under another id
        "price": 100.0, "quantity": 3, "currency": "EUR", "received_at": utc("2024-03-01T12:00:00")}),  # not late yet
    ("e4", None, "search", "2024-03-01T23:59:59.999999", None, {"anonymous_id": "a1", "currency": "euro"}),
    ("e5", "u3", "purchase", "2024-03-01T00:00:00", "i9", {"price": 7.0, "quantity": 0, "properties": "no object"}),
    ("e6", "u3", "viewed", "2024-03-01T09:00:00", "i1"),  # no such type
]  # fmt: skip
IMPORTED = [
    ("m1", "u1", "purchase", "2024-03-03T08:00:00", "i1", {"price": 1.0, "quantity": 2, "source": "day.csv"}),
    ("m2", "u4", "purchase", "2024-03-03T09:00:00", "i1", {"price": 2.0, "quantity": 4, "source": "day.csv"}),
    ("m3", "u5", "purchase", "2024-03-03T09:00:00", "i3", {"price": 9.0, "source": "history.csv"}),
    ("m4", "u5", "purchase", "2024-03-01T09:00:00", "i1", {"source": "history.csv"}),
    ("m5", "u5", "purchase", "2024-03-01T09:30:00", "i1", {"source": "history.csv"}),
]  # fmt: skip
CRAWL = [("c1", f"2024-03-03T05:{minute:02d}:{second:02d}") for minute in range(6) for second in range(34)]  # 204
ITEMS = [{"item_id": "i1", "price": 10.0}, {"item_id": "i2", "price": 5.0}, {"item_id": "i3", "price": None}]


@pytest.fixture(scope="module")
def checked(spark: SparkSession) -> DataFrame:
    crawled = [(f"c{n}", who, "view_item", moment, "i1", {"source": "crawl"}) for n, (who, moment) in enumerate(CRAWL)]
    imports = make_bronze_events(spark, [*IMPORTED, *crawled]).withColumn("received_at", F.lit(utc("2030-01-01")))
    live = make_bronze_events(spark, LIVE).withColumn("table", F.lit("bronze.events"))
    both = live.unionByName(imports.withColumn("table", F.lit("bronze.events_import")))
    return check_deliveries(both).persist()


@pytest.fixture(scope="module", params=["by Spark", "in memory"])
def days(spark: SparkSession, checked: DataFrame, request: pytest.FixtureRequest) -> list[Day]:
    catalogue = make_frame(spark, "bronze.items", ITEMS)
    if request.param == "by Spark":
        return profile_days(checked, catalogue, first=FIRST, end=END)
    broken = {FIRST: [Broken("purchase", "invalid_quantity", 1), Broken("viewed", "unknown_event_type", 1)]}
    rows = checked.toArrow()
    found = []
    for day in (FIRST + timedelta(days=n) for n in range(3)):
        of_day = rows.filter(pc.equal(rows["event_date"], pa.scalar(day))).select([*PROFILE_COLUMNS, "table"])
        of_day = of_day.combine_chunks()
        for word in PROFILE_WORDS if of_day.num_rows else ():
            place = of_day.schema.get_field_index(word)
            of_day = of_day.set_column(place, word, of_day[word].dictionary_encode())
        found.append(profile_day(day, of_day, catalogue.select("item_id", "price").toArrow(), broken.get(day, [])))
    keys = {"colour": 1, "size": 1}  # Spark counts those of both ways
    return [replace(found[0], property_keys=keys), *found[1:]]


def test_counts_of_a_day(days: list[Day]) -> None:
    assert [day.day for day in days] == [date(2024, 3, 1), date(2024, 3, 2), date(2024, 3, 3)]
    day = days[0]
    total = day.total
    assert {kind: part.deliveries for kind, part in day.types.items()} == {
        "(other)": 1, "purchase": 5, "search": 1, "view_item": 2,
    }  # fmt: skip
    assert (total.deliveries, total.with_event_id, total.event_ids, total.contents) == (9, 9, 8, 7)
    assert (day.repeated_ids, day.copies) == (1, 1)
    assert (total.live, total.late, total.broken) == (7, 1, 2)
    assert day.reasons == {"invalid_quantity": 1, "unknown_event_type": 1}
    assert day.tables == {"bronze.events": 7, "bronze.events_import": 2}
    assert day.currencies == {"(none)": 4, "(other)": 1, "EUR": 4}
    assert day.property_keys == {"colour": 1, "size": 1}
    filled = {column: count for column, count in total.filled.items() if count}
    assert filled == {
        "user_id": 8, "anonymous_id": 1, "item_id": 8, "quantity": 3, "price": 5, "currency": 5, "properties": 2,
    }  # fmt: skip
    assert (total.items, total.in_catalogue) == (3, 7)  # i1, i2, i9; i9 is unknown
    assert (total.priced, total.far_priced) == (4, 2)  # e1 twice, e2, e3; 100 is 20 times 5
    assert (total.first_second, total.last_second) == (0, 86_399)  # the day's first instant is its own, and its last
    assert (days[2].total.first_second, days[2].total.last_second) == (5 * 3600, 9 * 3600)
    assert (day.subjects, day.users, day.bots, day.bot_deliveries, day.busiest_deliveries) == (5, 4, 0, 0, 2)


def test_quantiles_are_of_values_above_zero(days: list[Day]) -> None:
    purchases = days[2].types["purchase"]
    assert (purchases.price, purchases.price_max) == ((1.0, 2.0, 9.0), 9.0)
    assert (purchases.quantity, purchases.quantity_max) == ((2.0, 2.0, 4.0), 4)
    assert days[0].types["search"].price is None


def test_an_empty_day_is_there(days: list[Day]) -> None:
    assert days[1] == Day(date(2024, 3, 2))


def test_imports_are_never_late_and_bots_are_counted(days: list[Day]) -> None:
    day = days[2]
    assert (day.total.live, day.total.late) == (0, 0)
    assert (day.bots, day.bot_deliveries, day.subjects) == (1, 204, 4)
    assert day.busiest_deliveries == 1


def test_files_that_brought_a_day(checked: DataFrame) -> None:
    """history.csv has one row of three on 3 March."""
    brought = count_sources(checked, [date(2024, 3, 3)])
    assert [tuple(row) for row in brought.collect()] == [("crawl", 204), ("day.csv", 2)]
