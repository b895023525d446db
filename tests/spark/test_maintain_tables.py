"""Silver and gold, maintained by Spark: the same rows in fewer files, twice is once, what is pinned can be read."""

from __future__ import annotations

import os
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import MAINTENANCE_FILE
from feature_repo.contracts.tables import table_path
from spark_jobs.io import light_delta
from spark_jobs.io.delta import overwrite_partitions, read_table
from spark_jobs.io.run_store import read_report
from spark_jobs.io.table_hash import hash_tables
from spark_jobs.jobs import maintain_tables as job
from spark_jobs.jobs.maintain_tables import DataFile, crowded_partitions, maintain_tables, unclustered_partitions
from tests.builders import make_events, make_frame

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

DAY = date(2024, 3, 1)
USERS = [f"u{n:03d}" for n in range(200)]


@pytest.fixture
def shop(spark: SparkSession, environment: Environment) -> Environment:
    """A day of silver in five files in no order of subjects, another in one; numbers of items in two files."""
    events = [
        *((f"e{n}", user, "view_item", "2024-03-01T10:00:00") for n, user in enumerate(USERS)),
        ("late", "u000", "view_item", "2024-03-02T10:00:00"),
    ]
    overwrite_partitions(make_events(spark, []), environment, "silver.events", None)
    path = table_path(environment.lakehouse, "silver.events")
    make_events(spark, events).repartition(5, "event_id").write.format("delta").mode("append").save(path)
    for n in (1, 2):
        numbers = [{"item_id": f"i{n}", "item_number": n, "first_as_of": DAY}]
        if n == 1:
            overwrite_partitions(make_frame(spark, "gold.item_ids", numbers), environment, "gold.item_ids", None)
        else:
            target = table_path(environment.lakehouse, "gold.item_ids")
            make_frame(spark, "gold.item_ids", numbers).coalesce(1).write.format("delta").mode("append").save(target)
    return environment


def test_small_files_become_one_and_what_was_pinned_stays(spark: SparkSession, shop: Environment) -> None:
    once, pinned = hash_tables(shop), light_delta.version(shop, "silver.events")
    planned = maintain_tables(spark, shop, "r0", dry_run=True, retention_days=30)
    assert light_delta.version(shop, "silver.events") == pinned

    past = time.time() - 40 * 86_400  # written long ago, removed only now
    for file in Path(table_path(shop.lakehouse, "silver.events")).rglob("*.parquet"):
        os.utime(file, (past, past))
    report = maintain_tables(spark, shop, "r1", dry_run=False, retention_days=7)
    assert report["silver.events"]["deleted_files"] == 0
    assert set(report) == {"silver.events", "gold.item_ids"}
    assert report == read_report(shop, "r1", MAINTENANCE_FILE)["tables"]
    events = report["silver.events"]
    assert events["compacted"] == planned["silver.events"]["compacted"] == ["2024-03-01"]
    assert (events["files_before"], events["files_after"], events["clustered"]) == (6, 2, [])
    assert (report["gold.item_ids"]["compacted"], report["gold.item_ids"]["files_after"]) == (["all"], 1)
    assert hash_tables(shop) == once
    assert read_table(spark, shop, "silver.events", pinned).count() == 201
    assert light_delta.read_table(shop, "silver.events", pinned).num_rows == 201

    versions = [light_delta.version(shop, name) for name in report]
    again = maintain_tables(spark, shop, "r1", dry_run=False, retention_days=7)
    assert [(done["compacted"], done["clustered"]) for done in again.values()] == [([], [])] * 2
    assert [light_delta.version(shop, name) for name in report] == versions
    assert hash_tables(shop) == once


def test_a_big_day_is_laid_out_by_subject_once(
    spark: SparkSession, shop: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = hash_tables(shop)
    monkeypatch.setattr(job, "CLUSTER_FROM_BYTES", 20_000)  # the first day is 30 KB and more, the second is not
    monkeypatch.setattr(job, "CLUSTERED_FILE_BYTES", 8_000)
    done = maintain_tables(spark, shop, "r1", dry_run=False, retention_days=30)["silver.events"]
    assert (done["compacted"], done["clustered"]) == ([], ["2024-03-01"])
    assert hash_tables(shop) == once
    files = [f for f in job._files(shop, "silver.events") if f.partition == (DAY,)]
    assert len(files) > 1
    holding = [f for f in files if (f.first or "") <= "u:u100" <= (f.last or "")]
    assert len(holding) == 1  # one person, one file
    again = maintain_tables(spark, shop, "r2", dry_run=False, retention_days=30)["silver.events"]
    assert (again["compacted"], again["clustered"]) == ([], [])


def test_the_log_keeps_ranges_of_what_a_table_is_laid_out_by_alone(spark: SparkSession, shop: Environment) -> None:
    """Of tables by subject; all else would be compared row by row while it is written, for nobody."""
    found = light_delta.open_table(shop, "silver.events")
    assert found is not None
    told = set(pa.table(found.get_add_actions(flatten=True)).column_names)
    assert {"num_records", "min.subject_key", "max.subject_key", "partition.event_date"} <= told
    assert not {name for name in told if name.startswith(("min.", "max.", "null_count."))} - {
        "min.subject_key", "max.subject_key", "null_count.subject_key",
    }  # fmt: skip
    numbers = light_delta.open_table(shop, "gold.item_ids")
    assert numbers is not None
    assert "min.item_number" in pa.table(numbers.get_add_actions(flatten=True)).column_names
    assert [day for day, count in light_delta.days_by_row_count(shop, "silver.events").items() if count] == [
        DAY, date(2024, 3, 2),
    ]  # fmt: skip


def test_what_no_version_needs_is_deleted_after_the_retention(spark: SparkSession, shop: Environment) -> None:
    folder = Path(table_path(shop.lakehouse, "silver.events"))
    orphan = folder / "event_date=2024-03-01" / "part-00000-of-a-killed-task.snappy.parquet"
    orphan.write_bytes(b"half a file")
    assert maintain_tables(spark, shop, "r1", dry_run=False, retention_days=7)["silver.events"]["deleted_files"] == 0
    past = time.time() - 8 * 86_400
    os.utime(orphan, (past, past))
    assert maintain_tables(spark, shop, "r2", dry_run=True, retention_days=7)["silver.events"]["deleted_files"] == 1
    assert orphan.exists()
    assert maintain_tables(spark, shop, "r3", dry_run=False, retention_days=30)["silver.events"]["deleted_files"] == 0
    assert maintain_tables(spark, shop, "r4", dry_run=False, retention_days=7)["silver.events"]["deleted_files"] == 1
    assert not orphan.exists()
    assert spark.conf.get("spark.databricks.delta.retentionDurationCheck.enabled", "true") == "true"
    assert read_table(spark, shop, "silver.events").count() == 201


def test_the_retention_has_a_floor_and_a_ceiling(environment: Environment) -> None:
    for days in (6, 31):
        with pytest.raises(DataError, match=f"from 7 to 30, got {days}"):
            job.check_retention(days)


def test_what_is_done_follows_from_the_log() -> None:
    big = job.CLUSTER_FROM_BYTES
    files = [
        DataFile(("one",), 10, "a", "z"),
        DataFile(("small",), 10, "a", "z"), DataFile(("small",), 10, "a", "z"),
        DataFile(("clustered",), big, "a", "m"), DataFile(("clustered",), big, "m", "z"),
        DataFile(("mixed",), big, "a", "n"), DataFile(("mixed",), big, "m", "z"),
        DataFile(("single",), big, "a", "z"),
        DataFile((None,), 10, None, None), DataFile((None,), 10, None, None),
    ]  # fmt: skip
    assert crowded_partitions(files, is_clusterable=True) == [("small",), (None,)]
    assert crowded_partitions(files, is_clusterable=False) == [("clustered",), ("mixed",), ("small",), (None,)]
    assert unclustered_partitions(files) == [("mixed",), ("single",)]
