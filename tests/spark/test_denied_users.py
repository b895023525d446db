"""Who does not allow personalization: by frames, as features read it, and by Arrow's rows, as the lists do."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.transforms.candidates import denied_in, denied_users
from tests.builders import utc

CUT_OFF = utc("2024-03-08")

USERS = [
    ("asked", False), ("fine", True), ("silent", None), ("came back", False),
]  # fmt: skip
SAID = [
    ("fine", "2024-03-02T00:00:00", True),
    ("changed", "2024-03-02T00:00:00", True),
    ("changed", "2024-03-03T00:00:00", False),  # the newest word
    ("changed", "2024-03-03T00:00:01", None),  # says nothing
    ("again", "2024-03-02T00:00:00", False),
    ("again", "2024-03-03T00:00:00", True),
    ("tied", "2024-03-04T00:00:00", True),  # of one instant a no wins
    ("tied", "2024-03-04T00:00:00", False),
    ("late", "2024-03-08T00:00:00", False),  # the cut-off itself: not known yet
    ("before 1970", "1969-12-31T00:00:00", False),
    ("came back", "2024-03-05T00:00:00", True),  # the register carries no time: it counts
    (None, "2024-03-05T00:00:00", False),
]
DENIED = ["asked", "before 1970", "came back", "changed", "tied"]


def table_of(name: str, columns: list[str], rows: list[tuple]) -> pa.Table:
    schema = pa.schema([arrow_schema(name).field(column) for column in columns])
    return pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows], schema=schema)


@pytest.fixture
def users() -> pa.Table:
    return table_of("bronze.users", ["user_id", "consent_personalize"], USERS)


@pytest.fixture
def said() -> pa.Table:
    rows = [(user, utc(at), consent) for user, at, consent in SAID]
    return table_of("silver.events", ["user_id", "event_timestamp", "consent_personalize"], rows)


def test_the_newest_word_before_the_cut_off_counts(users: pa.Table, said: pa.Table) -> None:
    assert denied_in(users, said, cut_off=CUT_OFF) == DENIED
    assert denied_in(users, said.slice(0, 0), cut_off=CUT_OFF) == ["asked", "came back"]
    assert denied_in(users.slice(0, 0), said.slice(0, 0), cut_off=CUT_OFF) == []


def test_frames_say_the_same(spark: SparkSession, users: pa.Table, said: pa.Table) -> None:
    found = denied_users(spark.createDataFrame(users), spark.createDataFrame(said), cut_off=CUT_OFF)
    assert sorted(found.toArrow()["user_id"].to_pylist()) == DENIED
