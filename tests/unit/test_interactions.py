"""silver.interactions as models, sessions and baskets see them, on a real Delta table and without Spark."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.packing import session_hash
from feature_repo.contracts.tables import table_path
from spark_jobs.io.interactions import SCHEMA, known_numbers, read_interactions
from spark_jobs.io.light_delta import version
from spark_jobs.models.matrix import COLUMNS, numbered_interactions
from spark_jobs.transforms.bought_together import baskets_of, together_rows
from spark_jobs.transforms.session_index import session_sequences, sessions_of
from tests.builders import utc, write_rows

NUMBERS = pa.table({"item_id": ["b", "a", "c"], "item_number": pa.array([3, 7, 0], pa.int32())})
CUT_OFF = utc("2024-03-08")
ROWS = [
    ("u:2", "a", "purchase", "2024-03-01T00:00:00Z", "s1"), ("u:2", "a", "purchase", "2024-03-02T00:00:00Z", "s1"),
    ("u:2", "b", "purchase", "2024-03-02T00:00:00Z", "s1"), ("a:ü", "a", "view_item", "2024-03-02T00:00:00Z", "s2"),
    ("a:ü", "b", "purchase", "2024-03-02T00:00:00Z", "s2"), ("u:1", "a", "purchase", "2024-03-02T00:00:00Z", None),
    ("u:1", "c", "like", "2024-03-07T23:59:59.999999Z", "s3"), ("u:1", "b", "purchase", "2024-03-08T00:00:00Z", "s3"),
]  # fmt: skip


def write(environment: Environment, rows: list[tuple[str, str, str, str, str | None]]) -> None:
    names = ("subject_key", "item_id", "event_type", "event_timestamp", "session_key")
    write_rows(
        environment,
        "silver.interactions",
        [
            {**dict(zip(names, row, strict=True)), "event_id": f"e{n}", "event_timestamp": utc(row[3]),
             "event_date": utc(row[3]).date()}
            for n, row in enumerate(rows)
        ],
    )  # fmt: skip


@pytest.fixture
def shop(environment: Environment) -> Environment:
    write(environment, ROWS[4:])
    write(environment, ROWS[:4])
    return environment


def test_interactions_end_at_the_cut_off_to_the_microsecond(shop: Environment) -> None:
    found = numbered_interactions(read_interactions(shop, NUMBERS, cut_off=CUT_OFF)).to_pylist()
    first = 1_709_251_200_000_000  # 2024-03-01
    day = 86_400_000_000
    assert [tuple(row[name] for name in COLUMNS) for row in found] == [
        ("a:ü", 3, "purchase", first + day), ("a:ü", 7, "view_item", first + day),
        ("u:1", 0, "like", first + 7 * day - 1), ("u:1", 7, "purchase", first + day),
        ("u:2", 3, "purchase", first + day), ("u:2", 7, "purchase", first), ("u:2", 7, "purchase", first + day),
    ]  # fmt: skip
    later = read_interactions(shop, NUMBERS, cut_off=CUT_OFF + timedelta(microseconds=1))
    assert later.num_rows == 8
    assert later.schema == SCHEMA


def test_a_version_is_read_as_it_was(shop: Environment) -> None:
    before = version(shop, "silver.interactions")
    write(shop, ROWS[:1])
    assert read_interactions(shop, NUMBERS, cut_off=CUT_OFF, version=before).num_rows == 7
    assert read_interactions(shop, NUMBERS, cut_off=CUT_OFF).num_rows == 8


def test_an_item_without_a_number_is_refused_for_models_alone(shop: Environment) -> None:
    write(shop, [("u:9", "new", "purchase", "2024-03-03T00:00:00Z", "s1")])
    rows = read_interactions(shop, NUMBERS, cut_off=CUT_OFF)
    with pytest.raises(DataError, match="1 of 8 interactions are about items without a number"):
        numbered_interactions(rows)
    assert baskets_of(rows).num_rows == 4
    assert sessions_of(rows).num_rows == 6


def test_a_run_knows_what_was_numbered_by_its_day_and_what_it_meets() -> None:
    """Item n was numbered a day later by another night; m too, and it is in the interactions: that night ran first."""
    days = [utc(f"2024-03-0{day}").date() for day in (5, 6, 7, 7)]
    numbers = pa.table({"item_id": ["a", "b", "n", "m"], "item_number": pa.array([0, 1, 2, 3], pa.int32()),
                        "first_as_of": pa.array(days, pa.date32())})  # fmt: skip
    met = pa.table({"item_number": pa.array([0, 3, None, 3], pa.int32())})
    found = known_numbers(numbers, met, utc("2024-03-06").date())
    assert found.to_pydict() == {"item_id": ["a", "b", "m"], "item_number": [0, 1, 3]}
    assert known_numbers(numbers, met, utc("2024-03-07").date()).num_rows == 4


def test_a_shop_without_interactions(environment: Environment) -> None:
    for rows in (
        read_interactions(environment, NUMBERS, cut_off=CUT_OFF),
        read_interactions(environment, NUMBERS, cut_off=CUT_OFF, version=-1),
    ):
        assert (rows.num_rows, rows.schema) == (0, SCHEMA)
    write(environment, ROWS[-1:])
    rows = read_interactions(environment, NUMBERS, cut_off=CUT_OFF)
    assert (rows.num_rows, rows.schema) == (0, SCHEMA)
    assert numbered_interactions(rows).num_rows == 0
    assert len(session_sequences(sessions_of(rows), item_count=8, cut_off=CUT_OFF)) == 0


def test_a_file_without_any_session(shop: Environment) -> None:
    write(shop, [("u:3", "c", "like", "2024-03-04T00:00:00Z", None)])
    found = read_interactions(shop, NUMBERS, cut_off=CUT_OFF)
    assert (found.num_rows, found["session_key"].null_count) == (8, 2)
    assert sessions_of(found).num_rows == 6


def test_a_table_of_before_sessions_had_keys(environment: Environment) -> None:
    moment = pa.array([utc("2024-03-03")], pa.timestamp("us", tz="UTC"))
    old = pa.table({"subject_key": ["u:1"], "item_id": ["a"], "event_type": ["like"], "event_timestamp": moment,
                    "event_date": [utc("2024-03-03").date()]})  # fmt: skip
    path = table_path(environment.lakehouse, "silver.interactions", tenant=environment.tenant)
    write_deltalake(path, old, partition_by=["event_date"])
    rows = read_interactions(environment, NUMBERS, cut_off=CUT_OFF)
    assert rows.to_pylist()[0] == {
        "subject_key": "u:1", "item_number": 7, "event_type": "like", "micros": 1_709_424_000_000_000,
        "session_key": None,
    }  # fmt: skip
    assert (baskets_of(rows).num_rows, sessions_of(rows).num_rows) == (0, 0)


def test_a_basket_is_what_one_session_bought(shop: Environment) -> None:
    found = baskets_of(read_interactions(shop, NUMBERS, cut_off=CUT_OFF))
    rows = sorted((row["basket"], row["item_number"]) for row in found.to_pylist())
    assert rows == [("s1", 3), ("s1", 7), ("s1", 7), ("s2", 3)]
    together = together_rows(found, np.ones(8, bool), least_baskets=1, shrinkage=0.0)
    assert together[7] == [(3, 1.0)], "of the one basket with two items"


def test_sessions_by_bits_that_stay_the_same(shop: Environment) -> None:
    found = sessions_of(read_interactions(shop, NUMBERS, cut_off=CUT_OFF))
    s1, s2, s3 = (
        int.from_bytes(session_hash(name).to_bytes(8, "big"), "big", signed=True) for name in ("s1", "s2", "s3")
    )
    rows = sorted((row["session"], row["item_number"]) for row in found.to_pylist())
    assert rows == sorted([(s1, 7), (s1, 7), (s1, 3), (s2, 7), (s2, 3), (s3, 0)])
