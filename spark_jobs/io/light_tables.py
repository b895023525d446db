"""Writes without a JVM: for tables whose only writer is a light task (`tables.LIGHT_WRITERS`), and for rows of others
that are Arrow's already, and many. To make rows of Java of lists of numbers takes longer than to find the numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.object_store import is_on_store, store_problem
from feature_repo.contracts.tables import LIGHT_WRITERS, table, table_path
from spark_jobs.io.commits import commit
from spark_jobs.io.light_delta import arrow_schema, with_missing

RETENTION_HOURS = 30 * 24
_UNKNOWN_TO_THIS_WRITER = frozenset({"delta.enableRowTracking"})


def replace_days(environment: Environment, name: str, rows: pa.Table, days: Collection[date]) -> None:
    """Put `rows` in the place of what the table has of `days` (its one partition column), in one commit, and remove
    the files that no version of the last 30 days needs. The table is created when missing; no days, no commit.

    Raises ContractError on a row of another day or a table of another engine, DependencyError when it cannot be
    written.
    """
    spec = table(name)
    if spec.writer not in LIGHT_WRITERS:
        raise ContractError(f"{name} is written by {spec.writer}, with Spark")
    (day_column,) = spec.partition_by
    if strays := set(rows[day_column].to_pylist()) - set(days):
        raise ContractError(f"{name}: rows of {sorted(strays, key=str)} among those of {sorted(days)}")
    if not days:
        return
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    options = environment.storage_options
    listed = ", ".join(f"'{day.isoformat()}'" for day in sorted(days))
    try:
        with commit(environment, name):
            create_if_missing(environment, name)
            predicate = f"{day_column} IN ({listed})"
            write_deltalake(path, rows, mode="overwrite", predicate=predicate, storage_options=options)
            DeltaTable(path, storage_options=options).vacuum(RETENTION_HOURS, dry_run=False)
    except (DeltaError, OSError) as error:
        raise DependencyError(f"{name} at {path} cannot be written: {store_problem(path, error)}") from error


def replace_day(environment: Environment, name: str, batches: Iterable[pa.RecordBatch], day: date) -> None:
    """Put the rows of `batches`, which are made while they are written, in the place of what a table of Spark's has of
    `day` (its one partition column), in one commit. Columns that the stored table lacks are added.

    The table is created when missing. Raises what making a batch raises, ContractError on a row of another day,
    DependencyError when the table cannot be written or another process keeps its commits to itself; then the table
    stays as it was.
    """
    (day_column,) = table(name).partition_by
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    failed: list[Exception] = []

    def checked() -> Iterator[pa.RecordBatch]:
        made = iter(batches)
        try:
            # The writer asks in a thread of its own in which no other table can be read.
            while (batch := elsewhere.submit(next, made, None).result()) is not None:
                if strays := set(pc.unique(batch[day_column]).to_pylist()) - {day}:
                    raise ContractError(f"{name}: rows of {', '.join(sorted(map(str, strays)))} among those of {day}")
                yield batch
        except Exception as error:  # the writer would tell no more than its words
            failed.append(error)
            raise

    rows = pa.RecordBatchReader.from_batches(arrow_schema(name), checked())
    with commit(environment, name), ThreadPoolExecutor(1) as elsewhere:
        try:
            create_if_missing(environment, name)
            write_deltalake(
                path, rows, mode="overwrite", predicate=f"{day_column} = '{day.isoformat()}'", schema_mode="merge",
                storage_options=environment.storage_options,
            )  # fmt: skip
        except Exception as error:
            if failed:
                raise failed[0] from None
            raise DependencyError(f"{name} at {path} cannot be written: {store_problem(path, error)}") from error


def replace_rows(environment: Environment, name: str, rows: pa.Table, day: date) -> None:
    """`replace_day` with rows that are all there. Columns that they lack are null."""
    replace_day(environment, name, with_missing(rows, arrow_schema(name)).to_batches(), day)


def create_if_missing(environment: Environment, name: str) -> None:
    """The empty table, with the properties that Spark would give it, but for those that this writer does not know."""
    spec, options = table(name), environment.storage_options
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    if DeltaTable.is_deltatable(path, storage_options=options):
        return
    if not is_on_store(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    DeltaTable.create(
        path,
        arrow_schema(name),
        mode="ignore",
        partition_by=list(spec.partition_by),
        configuration={k: v for k, v in spec.properties.items() if k not in _UNKNOWN_TO_THIS_WRITER},
        storage_options=options,
    )
