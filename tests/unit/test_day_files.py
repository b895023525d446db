"""Tables of Spark's, written a day at a time from Arrow: what is replaced, what a file is, what a failure leaves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.tables import table, table_path
from spark_jobs.io import writer_lock
from spark_jobs.io.day_files import day_files, write_days
from spark_jobs.io.light_delta import arrow_schema, days_by_row_count, open_table, read_table, version
from tests.builders import utc

NAME = "silver.interactions"
FIRST, SECOND, THIRD = date(2024, 3, 1), date(2024, 3, 2), date(2024, 3, 3)


def path_of(environment: Environment) -> str:
    return table_path(environment.lakehouse, NAME, tenant=environment.tenant)


def make_table(environment: Environment, *, without: str | None = None, is_told: bool = True) -> None:
    """`is_told`: its log keeps the contract's ranges and no others, as that of tables made now does."""
    Path(path_of(environment)).mkdir(parents=True)
    fields = [field for field in arrow_schema(NAME) if field.name != without]
    properties = {"delta.dataSkippingStatsColumns": "subject_key"} if is_told else None
    DeltaTable.create(path_of(environment), pa.schema(fields), partition_by=["event_date"], configuration=properties)


def some(day: date, *ids: str, subject: str = "u:a") -> tuple[date, pa.Table]:
    rows = [
        {**dict.fromkeys(table(NAME).columns), "event_id": one, "subject_key": subject, "item_id": "i", "price": 1.5,
         "event_type": "view_item", "event_timestamp": utc(f"{day}T10:00:00"), "session_key": f"{one:0>32}"}
        for one in ids
    ]  # fmt: skip
    return day, pa.Table.from_pylist(rows, schema=arrow_schema(NAME)).drop_columns("event_date")


def stored(environment: Environment) -> list[tuple[Any, ...]]:
    rows = read_table(environment, NAME, columns=["event_date", "event_id"]).to_pylist()
    return sorted(tuple(row.values()) for row in rows)


def test_days_are_replaced_in_one_commit_and_later_ones_stay(environment: Environment) -> None:
    make_table(environment)
    write_days(environment, NAME, iter([some(FIRST, "a", "b"), some(SECOND, "c"), some(THIRD, "d")]))
    assert stored(environment) == [(FIRST, "a"), (FIRST, "b"), (SECOND, "c"), (THIRD, "d")]
    write_days(environment, NAME, iter([some(FIRST, "e"), some(FIRST, "f")]), before=THIRD)
    assert stored(environment) == [(FIRST, "e"), (FIRST, "f"), (THIRD, "d")]  # a day that nothing is said of is empty
    assert version(environment, NAME) == 2
    assert days_by_row_count(environment, NAME) == {FIRST: 2, THIRD: 1}
    write_days(environment, NAME, iter([some(SECOND)]))
    assert (stored(environment), version(environment, NAME)) == ([], 3)


def test_a_failure_leaves_the_table(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    make_table(environment)
    write_days(environment, NAME, iter([some(FIRST, "a")]))

    def breaks() -> Iterator[tuple[date, pa.Table]]:
        yield some(FIRST, "b")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_days(environment, NAME, breaks())
    monkeypatch.setattr(writer_lock, "COMMIT_SECONDS", 0.0)
    with (
        writer_lock.commit_lock(environment, NAME),
        pytest.raises(DependencyError, match=r"has been writing silver\.interactions"),
    ):
        write_days(environment, NAME, iter([some(FIRST, "c")]))
    assert (stored(environment), version(environment, NAME)) == ([(FIRST, "a")], 1)


def test_a_file_is_one_day_small_and_without_useless_dictionaries(environment: Environment) -> None:
    make_table(environment)
    write_days(environment, NAME, iter([some(FIRST, *(f"id-{n}" for n in range(500)))]))
    [path] = Path(path_of(environment)).rglob("*.parquet")
    assert path.parent.name == "event_date=2024-03-01"
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"SNAPPY"}
    with_dictionary = {name for name, column in columns.items() if column.has_dictionary_page}
    assert with_dictionary == set(columns) - {"event_id", "session_key"}
    assert "event_date" not in columns
    assert pq.ParquetFile(path).schema_arrow.field("event_timestamp").type == pa.timestamp("us", tz="UTC")


def test_the_log_keeps_the_range_of_subjects_even_of_long_ones(environment: Environment) -> None:
    make_table(environment)
    long = "u:" + "ü" * 40
    rows = pa.concat_tables([some(FIRST, "a", subject="a:b")[1], some(FIRST, "b", subject=long)[1]])
    write_days(environment, NAME, iter([(FIRST, rows)]))
    found = open_table(environment, NAME)
    assert found is not None
    [action] = pa.table(found.get_add_actions(flatten=True)).to_pylist()
    assert (action["num_records"], action["null_count.subject_key"], action["min.subject_key"]) == (2, 0, "a:b")
    assert len(action["max.subject_key"]) == 33
    assert action["max.subject_key"] > long
    assert [name for name, low in action.items() if name.startswith("min.") and low is not None] == ["min.subject_key"]


@pytest.mark.parametrize(
    ("is_told", "subject"), [(True, "u:a"), (False, "u:a"), (True, None)], ids=["of now", "of before", "all null"]
)
def test_every_column_can_be_asked_for_whatever_ranges_the_log_keeps(
    environment: Environment, is_told: bool, subject: Any
) -> None:
    """A column without a range is not one without a row."""
    make_table(environment, is_told=is_told)
    write_days(environment, NAME, iter([some(FIRST, "a", "b", subject=subject), some(SECOND, "c", subject=subject)]))
    rows = DeltaTable(path_of(environment)).to_pyarrow_dataset()
    known = pc.field("subject_key").is_null() if subject is None else pc.field("subject_key") == subject
    for condition in (pc.field("price") >= 1.5, pc.field("event_id") <= "c", pc.field("session_key").is_valid(), known):
        assert rows.count_rows(filter=condition) == 3
        assert rows.count_rows(filter=condition & (pc.field("event_date") == FIRST)) == 2


def test_a_column_that_joined_the_contract_joins_the_table(environment: Environment) -> None:
    make_table(environment, without="price")
    write_days(environment, NAME, iter([some(FIRST, "a")]))
    assert read_table(environment, NAME, columns=["price"]).to_pylist() == [{"price": 1.5}]
    assert "price" in {field.name for field in DeltaTable(path_of(environment)).schema().fields}


def test_files_come_by_day_and_give_the_same_rows_again(environment: Environment) -> None:
    make_table(environment, without="price")
    days = [some(SECOND, "c"), some(FIRST, "a", "b")]
    DeltaTable(path_of(environment))  # it is there, and has no file yet
    assert day_files(environment, NAME) == []
    write_days(environment, NAME, iter(days))
    files = day_files(environment, NAME, words=("event_id",))
    assert [file.day for file in files] == [FIRST, SECOND]
    for _ in range(2):
        batches = [batch for file in files for batch in file.batches(["item_id", "event_id", "nothing"])]
        assert [batch.schema.names for batch in batches] == [["item_id", "event_id"]] * 2
        assert [value for batch in batches for value in batch["event_id"].to_pylist()] == ["a", "b", "c"]
        assert pa.types.is_dictionary(batches[0].schema.field("event_id").type)
    assert day_files(environment, NAME, -1) == day_files(environment, "silver.sessions") == []
