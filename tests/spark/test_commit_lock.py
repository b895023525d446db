"""Whatever Spark writes on an object store waits for the table's lock: none of it reaches the store before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from spark_jobs.io import writer_lock
from spark_jobs.io.delta import append_once, note_on_table, overwrite_partitions, spark_schema
from spark_jobs.jobs.maintain_tables import maintain_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark
NAME = "gold.item_ids"

WRITES: dict[str, Callable[[SparkSession, Environment, DataFrame], object]] = {
    "overwrite": lambda _, env, frame: overwrite_partitions(frame, env, NAME, None),
    "append": lambda _, env, frame: append_once(frame, env, NAME, app_id="a", version=1),
    "note": lambda spark, env, _: note_on_table(spark, env, NAME, {"said": 1}),
    "maintain": lambda spark, env, _: maintain_table(spark, env, NAME, dry_run=False, retention_days=7),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_waits_for_the_driver_before_it(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    nowhere = {"NIGHTJAR_LAKEHOUSE": "s3a://shop", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    env = Environment.from_mapping({"NIGHTJAR_HOME": str(tmp_path), **nowhere})
    frame = spark.createDataFrame([], spark_schema(NAME))
    with writer_lock.commit_lock(env, NAME, wait_seconds=0.0):
        monkeypatch.setattr(writer_lock, "COMMIT_SECONDS", 0.0)
        with pytest.raises(DependencyError, match=rf"process \d+ has been writing {NAME} for 0 s"):
            WRITES[kind](spark, env, frame)
