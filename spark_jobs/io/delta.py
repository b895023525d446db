"""The Delta tables as Spark sees them: read at a pinned version, overwrite whole partitions, append once.

Every write is one commit that replaces the partitions it names, or that the table takes only once: running a job again
gives the same table. It is on disk when the call returns. On an object store one driver at a time writes a table, and
none a table of the light engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import cast

import pyarrow as pa
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.types import StructType

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, nearest
from feature_repo.contracts.object_store import is_on_store
from feature_repo.contracts.tables import LIGHT_WRITERS, TableSpec, table, table_path
from spark_jobs.io.commits import commit

Partitions = Mapping[str, Collection[date | str]]
_LEAVES_OUT_EMPTY_COMMITS = "spark.databricks.delta.skipRecordingEmptyCommits"


def spark_schema(name: str) -> StructType:
    """The columns of a table as Spark's types, in contract order, all nullable."""
    fields = ", ".join(f"`{column}` {kind}" for column, kind in table(name).columns.items())
    return cast(StructType, StructType.fromDDL(fields))


def table_version(spark: SparkSession, environment: Environment, name: str) -> int:
    """The newest version of a table, or -1 when there is no such table yet."""
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    if not DeltaTable.isDeltaTable(spark, path):
        return -1
    return int(DeltaTable.forPath(spark, path).history(1).select("version").collect()[0][0])


def read_table(spark: SparkSession, environment: Environment, name: str, version: int | None = None) -> DataFrame:
    """A table with its contract's columns, at `version` (None: the newest).

    A table that does not exist, or a version of -1 (pinned when it did not exist), is an empty frame. Columns that the
    stored table does not have yet are null.
    """
    spec = table(name)
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    if version == -1 or (version is None and not DeltaTable.isDeltaTable(spark, path)):
        return spark.createDataFrame([], spark_schema(name))
    reader = spark.read.format("delta")
    if version is not None:
        reader = reader.option("versionAsOf", version)
    stored = reader.load(path)
    present = set(stored.columns)
    return stored.select(
        *(
            (F.col(column) if column in present else F.lit(None)).cast(kind).alias(column)
            for column, kind in spec.columns.items()
        )
    )


def frame_of(spark: SparkSession, rows: pa.Table) -> DataFrame:
    """A frame of rows of Arrow. PySpark alone would lose those that come after many empty pieces of a table."""
    return spark.createDataFrame(rows.combine_chunks())


def overwrite_partitions(
    frame: DataFrame,
    environment: Environment,
    name: str,
    partitions: Partitions | str | None,
    *,
    user_metadata: Mapping[str, object] | None = None,
    as_it_lies: bool = False,
) -> None:
    """Replace partitions of a table by `frame`, in one commit; the table is created when missing.

    partitions     {column: values}, e.g. {"as_of": [day]}; or a predicate over partition columns in SQL; or None for
                   the whole table. No values: nothing is written. A row of `frame` outside of them is an error and
                   nothing is written.
    user_metadata  kept with the commit, as JSON.
    as_it_lies     each task writes the rows that it has: nothing is moved or sorted, and a partition is as many files
                   as tasks had rows of it.

    A table made before a column joined the contract gains that column; its older rows have null there.
    Raises ContractError when `frame` lacks a column of the contract or has one too many, DependencyError when another
    process keeps the table's commits to itself. Each partition becomes one file (rows are brought together by
    partition column first), unless they are taken as they lie.
    """
    spec = table(name)
    if isinstance(partitions, Mapping) and not all(partitions.values()):
        return
    rows = _conform(frame, spec)
    path = _path_of_ours(environment, spec)
    if spec.partition_by and not as_it_lies:
        rows = rows.repartition(*spec.partition_by).sortWithinPartitions(*spec.partition_by)
    # A table that an older version made gains the columns it lacks; the frame has exactly the contract's.
    writer = rows.write.format("delta").mode("overwrite").option("mergeSchema", "true")
    if partitions is not None:
        writer = writer.option("replaceWhere", partitions if isinstance(partitions, str) else _predicate(partitions))
    if user_metadata is not None:
        writer = writer.option("userMetadata", json.dumps(user_metadata, sort_keys=True))
    create_if_missing(frame.sparkSession, environment, name)
    with commit(environment, name):
        writer.save(path)


def create_if_missing(spark: SparkSession, environment: Environment, name: str) -> None:
    """The empty table, with the properties that tables of Spark have. Raises as `overwrite_partitions`.

    It is on disk before its first rows: of a folder that has data and no log Spark makes no table.
    """
    spec = table(name)
    path = _path_of_ours(environment, spec)
    with commit(environment, name):
        if DeltaTable.isDeltaTable(spark, path):
            return
        builder = DeltaTable.createIfNotExists(spark).location(path).addColumns(spark_schema(spec.name))
        for key, value in spec.properties.items():
            builder = builder.property(key, value)
        if spec.partition_by:
            builder = builder.partitionedBy(*spec.partition_by)
        builder.execute()


def note_on_table(
    spark: SparkSession, environment: Environment, name: str, user_metadata: Mapping[str, object]
) -> None:
    """A commit that changes no row, for what is to be kept with it, as JSON. The table exists."""
    empty = spark.createDataFrame([], spark_schema(name))
    writer = empty.write.format("delta").mode("append")
    path = _path_of_ours(environment, table(name))
    spark.conf.set(_LEAVES_OUT_EMPTY_COMMITS, "false")
    try:
        with commit(environment, name):
            writer.option("userMetadata", json.dumps(user_metadata, sort_keys=True)).save(path)
    finally:
        spark.conf.unset(_LEAVES_OUT_EMPTY_COMMITS)


def side_by_side(*writes: Callable[[], None]) -> None:
    """Make writes that do not need one another at the same time: planning one takes a core, and there are several.

    Returns when all have ended. Raises what the first of them raised, in the order given; the others are done by then.
    """
    with ThreadPoolExecutor(len(writes)) as pool:
        done = [pool.submit(write) for write in writes]
    for each in done:
        each.result()


def append_once(frame: DataFrame, environment: Environment, name: str, *, app_id: str, version: int) -> None:
    """Add the rows of `frame` in one commit; the table is created when missing.

    A table that already has `version` or a later one of `app_id` stays as it is, so a repeated append adds nothing.
    """
    spec = table(name)
    rows = _conform(frame, spec)
    path = _path_of_ours(environment, spec)
    if spec.partition_by:
        rows = rows.repartition(*spec.partition_by)
    writer = rows.write.format("delta").mode("append").option("mergeSchema", "true")
    create_if_missing(frame.sparkSession, environment, name)
    with commit(environment, name):
        writer.option("txnAppId", app_id).option("txnVersion", version).save(path)


def _path_of_ours(environment: Environment, spec: TableSpec) -> str:
    """Where Spark writes the table. Raises ContractError for one that the light engine writes on an object store: there
    the two could replace one another's commits."""
    if is_on_store(environment.lakehouse) and spec.writer in LIGHT_WRITERS:
        raise ContractError(f"{spec.name} is written by {spec.writer}, and on an object store never by Spark")
    return table_path(environment.lakehouse, spec.name, tenant=environment.tenant)


def _predicate(partitions: Partitions) -> str:
    return " AND ".join(
        f"`{column}` IN ({', '.join(_literal(value) for value in sorted(values))})"
        for column, values in partitions.items()
    )


def _literal(value: date | str) -> str:
    if isinstance(value, date):
        return f"DATE'{value.isoformat()}'"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _conform(frame: DataFrame, spec: TableSpec) -> DataFrame:
    missing = [column for column in spec.columns if column not in frame.columns]
    unknown = [column for column in frame.columns if column not in spec.columns]
    if missing or unknown:
        hints = "".join(nearest(column, missing) for column in unknown)
        raise ContractError(f"{spec.name}: missing columns {missing}, unknown columns {unknown}{hints}")
    return frame.select(*(F.col(column).cast(kind).alias(column) for column, kind in spec.columns.items()))
