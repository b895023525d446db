"""Keep the tables that Spark writes quick to read, and free of files that nobody may read any more. Rows never change.

Reads    the Delta logs of silver and gold
Writes   the same tables with other files; maintenance.json in the run folder: per table files and bytes before and
         after, partitions compacted and clustered, files deleted

A partition of several small files becomes one file. A partition of CLUSTER_FROM_BYTES or more is laid out by subject,
so that reading one person opens one file of it. Files that no version of the last `retention_days` needs are deleted.
What to do follows from the log alone: a second run finds nothing to do.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa
from delta.tables import DeltaTable
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import MAINTENANCE_FILE
from feature_repo.contracts.tables import OWN_UPKEEP, TABLES, table, table_path
from spark_jobs.io.commits import commit, take_back_torn
from spark_jobs.io.light_delta import open_table
from spark_jobs.io.run_store import write_report
from spark_jobs.jobs.entry import run_command
from spark_jobs.session import get_session

MIN_RETENTION_DAYS = 7
MAX_RETENTION_DAYS = 30
"""A shorter retention takes away what a running or failed night reads; a longer one keeps people's history too long."""

SUBJECT_COLUMNS: Mapping[str, str] = {
    "silver.events": "subject_key", "silver.interactions": "subject_key", "silver.sessions": "subject_key",
    "gold.user_features": "user_id", "gold.candidates": "user_id",
}  # fmt: skip
"""Tables that are read for one person (erasure, an export, a question), and by which column."""

CLUSTER_FROM_BYTES = 64_000_000
CLUSTERED_FILE_BYTES = 16_000_000
"""Below the first a partition is one file and a read of one person costs its opening: clustering would win nothing."""

_OWN_RETENTION: Mapping[str, str] = {
    "spark.databricks.delta.vacuum.retentionWindowIgnore.enabled": "false",
    "spark.databricks.delta.retentionDurationCheck.enabled": "false",
}
_STATISTICS_PREFIX = 30
"""Delta cuts the text in its statistics at 32 characters: ranges are compared by fewer."""


class DataFile(NamedTuple):
    """One data file of a table, as the log tells it. `first`, `last`: the range of the subject column, None unknown."""

    partition: tuple[Any, ...]
    size: int
    first: str | None
    last: str | None


def main(environment: Environment, arguments: argparse.Namespace) -> None:
    """The job: one Spark session, one table after another."""
    check_retention(arguments.retention_days)
    spark = get_session("maintain_tables")
    try:
        maintain_tables(
            spark,
            environment,
            arguments.run_key,
            dry_run=arguments.dry_run == "True",
            retention_days=arguments.retention_days,
        )
    finally:
        spark.stop()


def maintain_tables(
    spark: SparkSession, environment: Environment, run_key: str, *, dry_run: bool, retention_days: int
) -> dict[str, Any]:
    """Table -> what was done (of a dry run: what would be), also in maintenance.json."""
    check_retention(retention_days)
    if not dry_run:
        take_back_torn(environment)
    report = {}
    for name in sorted(n for n, spec in TABLES.items() if spec.writer not in OWN_UPKEEP):
        if open_table(environment, name) is None:
            continue
        report[name] = done = maintain_table(spark, environment, name, dry_run=dry_run, retention_days=retention_days)
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in done.items()), flush=True)
    write_report(environment, run_key, MAINTENANCE_FILE, {"dry_run": dry_run, "tables": report})
    return report


def check_retention(days: int) -> None:
    """Raises DataError outside of MIN_RETENTION_DAYS to MAX_RETENTION_DAYS."""
    if not MIN_RETENTION_DAYS <= days <= MAX_RETENTION_DAYS:
        raise DataError(
            f"retention_days is from {MIN_RETENTION_DAYS} to {MAX_RETENTION_DAYS}, got {days}", field="retention_days"
        )


def crowded_partitions(files: Sequence[DataFile], *, is_clusterable: bool) -> list[tuple[Any, ...]]:
    """Partitions of several files that are better one file; big ones of a clusterable table are not."""
    return sorted(
        (
            partition
            for partition, found in _by_partition(files).items()
            if len(found) > 1 and not (is_clusterable and _size(found) >= CLUSTER_FROM_BYTES)
        ),
        key=str,
    )


def unclustered_partitions(files: Sequence[DataFile]) -> list[tuple[Any, ...]]:
    """Big partitions whose files do not have the subjects in ranges of their own."""
    return sorted(
        (
            partition
            for partition, found in _by_partition(files).items()
            if _size(found) >= CLUSTER_FROM_BYTES and not _is_clustered(found)
        ),
        key=str,
    )


def maintain_table(
    spark: SparkSession, environment: Environment, name: str, *, dry_run: bool, retention_days: int
) -> dict[str, Any]:
    """Compact, cluster and vacuum one table, by its own writer; what was done (of a dry run: what would be).

    Raises DependencyError when another process keeps the table's commits to itself.
    """
    with commit(environment, name):
        return _maintain(spark, environment, name, dry_run=dry_run, retention_days=retention_days)


def _maintain(
    spark: SparkSession, environment: Environment, name: str, *, dry_run: bool, retention_days: int
) -> dict[str, Any]:
    before = _files(environment, name)
    subject = SUBJECT_COLUMNS.get(name)
    crowded = crowded_partitions(before, is_clusterable=subject is not None)
    unclustered = unclustered_partitions(before) if subject else []
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    if not dry_run:
        if crowded:
            _optimizer(spark, path, name, crowded).executeCompaction()
        if unclustered:
            _with_settings(
                spark,
                {"spark.databricks.delta.optimize.maxFileSize": str(CLUSTERED_FILE_BYTES)},
                lambda: _optimizer(spark, path, name, unclustered).executeZOrderBy(str(subject)),
            )
    deleted = _vacuum(spark, environment, name, path, dry_run=dry_run, retention_days=retention_days)
    after = before if dry_run else _files(environment, name)
    return {
        "files_before": len(before),
        "files_after": len(after),
        "bytes_before": _size(before),
        "bytes_after": _size(after),
        "compacted": [_shown(partition) for partition in crowded],
        "clustered": [_shown(partition) for partition in unclustered],
        "deleted_files": deleted,
    }


def _optimizer(spark: SparkSession, path: str, name: str, partitions: Sequence[tuple[Any, ...]]) -> Any:
    builder = DeltaTable.forPath(spark, path).optimize()
    columns = table(name).partition_by
    if not columns:
        return builder
    conditions = [
        " AND ".join(f"`{c}` <=> {_literal(value)}" for c, value in zip(columns, values, strict=True))
        for values in partitions
    ]
    return builder.where(" OR ".join(f"({condition})" for condition in conditions))


def _vacuum(
    spark: SparkSession, environment: Environment, name: str, path: str, *, dry_run: bool, retention_days: int
) -> int:
    """Delete what is older than the retention and in no version since; how many files. Without any, nothing starts."""
    found = open_table(environment, name)
    assert found is not None
    hours = retention_days * 24
    obsolete = found.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)  # only lists
    if obsolete and not dry_run:
        # Delta would take the table's own 30 days, whatever hours it is told, and refuse fewer; these were checked
        _with_settings(spark, _OWN_RETENTION, lambda: DeltaTable.forPath(spark, path).vacuum(float(hours)))
    return len(obsolete)


def _with_settings(spark: SparkSession, settings: Mapping[str, str], action: Callable[[], object]) -> None:
    before = {name: spark.conf.get(name, None) for name in settings}
    for name, value in settings.items():
        spark.conf.set(name, value)
    try:
        action()
    finally:
        for name, old in before.items():
            if old is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, old)


def _files(environment: Environment, name: str) -> list[DataFile]:
    found = open_table(environment, name)
    if found is None:
        return []
    actions = pa.table(found.get_add_actions(flatten=True))
    count = actions.num_rows

    def column(wanted: str) -> list[Any]:
        return actions[wanted].to_pylist() if wanted in actions.column_names else [None] * count

    subject = SUBJECT_COLUMNS.get(name, "")
    values = [column(f"partition.{c}") for c in table(name).partition_by]
    partitions = list(zip(*values, strict=True)) if values else [()] * count
    ranges = zip(column(f"min.{subject}"), column(f"max.{subject}"), strict=True)
    return [
        DataFile(partition, size, first, last)
        for partition, size, (first, last) in zip(partitions, column("size_bytes"), ranges, strict=True)
    ]


def _by_partition(files: Sequence[DataFile]) -> dict[tuple[Any, ...], list[DataFile]]:
    found: dict[tuple[Any, ...], list[DataFile]] = defaultdict(list)
    for file in files:
        found[file.partition].append(file)
    return found


def _size(files: Sequence[DataFile]) -> int:
    return sum(file.size for file in files)


def _is_clustered(files: Sequence[DataFile]) -> bool:
    if len(files) < 2:
        return False
    ranges = sorted((f.first or "", f.last or "") for f in files)
    cut = _STATISTICS_PREFIX
    return all(left[1][:cut] <= right[0][:cut] for left, right in pairwise(ranges))


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, date):
        return f"DATE'{value.isoformat()}'"
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _shown(partition: tuple[Any, ...]) -> str:
    return "/".join("null" if value is None else str(value) for value in partition) or "all"


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-key", required=True, help="the folder of the run")
    parser.add_argument("--dry-run", default="False", choices=["True", "False"], help="say what would be done")
    parser.add_argument("--retention-days", type=int, default=MAX_RETENTION_DAYS, help="7 to 30")
    return parser


if __name__ == "__main__":
    run_command(main, arguments_parser())
