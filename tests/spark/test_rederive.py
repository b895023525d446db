"""Features of past days, computed anew: the same as a night's, nothing published, days that cannot be are refused."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import REDERIVE_FILE
from spark_jobs.io import light_delta
from spark_jobs.io.delta import overwrite_partitions, read_table
from spark_jobs.io.refine_state import state_after
from spark_jobs.io.run_store import read_report
from spark_jobs.io.table_hash import hash_tables
from spark_jobs.jobs.build_features import build_features
from spark_jobs.jobs.rederive_features import check_days, days_between, rederive_features
from tests.builders import make_events, make_run, write_rows

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

EVENTS = [
    ("e1", "ann", "view_item", "2024-03-01T10:00:00", "lamp"),
    ("e2", "ann", "purchase", "2024-03-02T10:00:00", "lamp", {"quantity": 1, "price": 10.0}),
    ("e3", "bob", "view_item", "2024-03-03T23:59:59", "sofa"),
    ("e4", "bob", "view_item", "2024-03-04T00:00:00", "lamp"),  # after the last day that is asked for
]
ITEMS = [{"item_id": "lamp", "title": "Lamp"}, {"item_id": "sofa", "title": "Sofa"}]
DAYS = [date(2024, 3, 3), date(2024, 3, 4)]


@pytest.fixture
def shop(spark: SparkSession, environment: Environment) -> Environment:
    """Silver as a night of 2024-03-05 leaves it."""
    night = make_run(environment, "2024-03-05", pins={"bronze.events": -1, "bronze.events_import": -1})
    metadata = state_after(None, night)
    overwrite_partitions(make_events(spark, EVENTS), environment, "silver.events", None, user_metadata=metadata)
    write_rows(environment, "bronze.items", ITEMS)
    return environment


def test_past_days_are_a_nights_days_and_twice_is_once(spark: SparkSession, shop: Environment) -> None:
    night = build_features(spark, shop, make_run(shop, DAYS[0], pins={"bronze.items": 0, "bronze.users": -1}))
    once, numbers = hash_tables(shop, DAYS[0]), light_delta.version(shop, "gold.item_ids")
    left = read_table(spark, shop, "gold.user_features").filter("user_id = 'nobody'")  # of a former definition
    overwrite_partitions(left, shop, "gold.user_features", {"as_of": DAYS[:1]})
    assert hash_tables(shop, DAYS[0]) != once

    rows = rederive_features(spark, shop, "r1", DAYS[:1])
    assert hash_tables(shop, DAYS[0]) == once
    assert rows == {"2024-03-03": {name: night[name] for name in rows["2024-03-03"]}}
    assert (rows["2024-03-03"]["users"], light_delta.version(shop, "gold.item_ids")) == (1, numbers)

    # a retry reads what the first try has pinned, whatever came since
    pins = {"silver.events": 1, "bronze.items": 0, "bronze.users": -1, "bronze.item_changes": -1,
            "bronze.user_changes": -1}  # fmt: skip
    assert read_report(shop, "r1", REDERIVE_FILE) == {"pins": pins, "days": rows}
    write_rows(shop, "bronze.items", [{"item_id": "late", "title": "Late"}])
    again = rederive_features(spark, shop, "r1", DAYS)
    assert hash_tables(shop, DAYS[0]) == once
    assert again["2024-03-03"] == rows["2024-03-03"]
    assert (again["2024-03-04"]["items"], again["2024-03-04"]["users"]) == (len(ITEMS), 2)


@pytest.mark.parametrize(
    ("first", "end", "words"),
    [
        ("2024-03-04", "2024-03-04", "holds no day"),
        ("2024-03-03", "2024-03-07", "silver stands as of 2024-03-05, so 2024-03-06 cannot"),
        ("2024-03-01", "2024-03-03", "the first is of 2024-03-01, so give a `from` of 2024-03-02"),
    ],
)
def test_days_that_cannot_be_are_refused(shop: Environment, first: str, end: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_days(shop, days_between(date.fromisoformat(first), date.fromisoformat(end)))


def test_the_day_of_the_last_night_is_the_last_that_can_be(shop: Environment) -> None:
    check_days(shop, days_between(date(2024, 3, 2), date(2024, 3, 6)))


def test_before_any_night_there_is_nothing_to_derive_from(environment: Environment) -> None:
    with pytest.raises(DataError, match="nightjar run nightly"):
        check_days(environment, DAYS)
