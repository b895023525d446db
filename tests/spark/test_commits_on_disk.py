"""Spark fsyncs nothing: whatever it wrote for a commit is on disk all the same, and a torn one can be written again."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.tables import table_path
from spark_jobs.io.commits import take_back_torn
from spark_jobs.io.delta import append_once, overwrite_partitions, read_table
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.io.light_tables import replace_rows
from spark_jobs.jobs.maintain_tables import maintain_table
from tests.builders import make_frame

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
NAME = "gold.item_neighbours"
DAYS = [date(2024, 3, day) for day in (7, 8, 9)]


def write(spark: SparkSession, environment: Environment, day: date, *numbers: int) -> Path:
    rows = [{"item_number": number, "as_of": day} for number in numbers]
    overwrite_partitions(make_frame(spark, NAME, rows), environment, NAME, {"as_of": [day]})
    return Path(table_path(environment.lakehouse, NAME))


def files_of(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def test_all_that_a_commit_of_sparks_wrote_is_synced(
    spark: SparkSession, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("feature_repo.contracts.torn_commits.sync", synced.append)
    root = write(spark, environment, DAYS[0], 1)
    assert files_of(root) <= set(synced)
    assert root.parent in synced
    assert Path(environment.home) in synced
    for action in (
        lambda: write(spark, environment, DAYS[1], 1, 2),
        lambda: append_once(
            make_frame(spark, NAME, [{"item_number": 3, "as_of": DAYS[1]}]), environment, NAME, app_id="a", version=1
        ),
        lambda: maintain_table(spark, environment, NAME, dry_run=False, retention_days=7),
    ):
        before = files_of(root)
        synced.clear()
        action()
        made = files_of(root) - before
        assert {path.suffix for path in made} == {".json", ".parquet", ".crc"}
        assert made <= set(synced)
        kinds = [path.suffix for path in synced]
        last_data = max(at for at, kind in enumerate(kinds) if kind == ".parquet")
        assert last_data < kinds.index(".json") < synced.index(root / "_delta_log")


def test_what_a_cut_tore_of_sparks_is_written_again_by_the_other_engine(
    spark: SparkSession, environment: Environment
) -> None:
    root = write(spark, environment, DAYS[0], 1)
    write(spark, environment, DAYS[1], 2)
    (torn,) = root.glob(f"as_of={DAYS[1]}/*.parquet")
    torn.write_bytes(b"")
    assert take_back_torn(environment, {"score_users"}) == {NAME: [2]}
    again = pa.Table.from_pylist([{"item_number": 9, "as_of": DAYS[1]}], schema=arrow_schema(NAME))
    replace_rows(environment, NAME, again, DAYS[1])
    jvm = spark.sparkContext._jvm
    assert jvm is not None
    jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()  # as a new job's driver sees it
    assert sorted(row["item_number"] for row in read_table(spark, environment, NAME).collect()) == [1, 9]
    write(spark, environment, DAYS[2], 4)
    assert sorted(row["item_number"] for row in read_table(spark, environment, NAME).collect()) == [1, 4, 9]
