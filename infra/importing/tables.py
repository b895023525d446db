"""The importer's writer of bronze tables, without a JVM. Each call is one Delta commit: all of it, or nothing, and on
disk when the call returns. What a power cut tore of an earlier one, which had not returned then, is taken back first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError, NightjarError
from feature_repo.contracts.object_store import is_on_store, store_problem
from feature_repo.contracts.tables import TABLE_PROPERTIES, table, table_path
from feature_repo.contracts.torn_commits import MOST_UNSYNCED_COMMITS, sync_commits, take_back_torn_commits
from serving.speed.table_upkeep import keep_up

_ARROW_TYPES = {
    "string": pa.string(), "boolean": pa.bool_(), "int": pa.int32(), "bigint": pa.int64(), "double": pa.float64(),
    "date": pa.date32(), "timestamp": pa.timestamp("us", "UTC"), "binary": pa.binary(),
}  # fmt: skip

UNKNOWN_TO_THIS_WRITER = frozenset({"delta.enableRowTracking"})
"""deltalake refuses to create a table that so much as names this property; without it row tracking is off too."""


def bronze_schema(name: str) -> pa.Schema:
    """The Arrow schema of a bronze table, columns in the order of its spec."""
    return pa.schema([(column, _ARROW_TYPES[kind]) for column, kind in table(name).columns.items()])


def find_table(env: Environment, name: str) -> DeltaTable | None:
    """The table, or None when nothing was ever imported into it.

    Raises DependencyError when the object store does not let us look.
    """
    path = table_path(env.lakehouse, name, tenant=env.tenant)
    try:
        return DeltaTable(path, storage_options=env.storage_options)
    except TableNotFoundError:
        return None
    except OSError as error:
        if is_on_store(path):
            raise DependencyError(f"{name} cannot be opened: {store_problem(path, error)}") from error
        raise


def replace_sources(env: Environment, name: str, sources: Sequence[str], batches: Iterable[pa.RecordBatch]) -> None:
    """Rows of `sources` become `batches`, in one commit; rows of other sources stay. Streams: memory is bounded.

    An error raised while `batches` are made comes out unchanged, and nothing is written.
    """
    schema = bronze_schema(name)
    raised: list[NightjarError] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except NightjarError as error:  # crossing into the writer would turn it into text
            raised.append(error)
            raise

    listed = ", ".join("'" + source.replace("'", "''") + "'" for source in sorted(sources))
    rows = pa.RecordBatchReader.from_batches(schema, watched())
    try:
        with _on_disk(env, name) as delta:
            if _has_rows_of(delta, sources):
                write_deltalake(delta, rows, mode="overwrite", predicate=f"source IN ({listed})")
            else:
                write_deltalake(delta, rows, mode="append")
    except (DeltaError, OSError) as error:
        if raised:
            raise raised[0] from error
        raise DependencyError(f"{name} could not be written: {store_problem(env.lakehouse, error)}") from error


def upsert(env: Environment, name: str, key: str, rows: pa.Table, *, update: Sequence[str] = ()) -> None:
    """Rows with a known `key` replace the old ones, others are added, in one commit. Keys are unique in `rows`.

    `update`: the columns that a known row takes over (default: all); the others keep what they had.
    """
    taken = {column: f"s.{column}" for column in update or rows.column_names}
    try:
        with _on_disk(env, name) as delta:
            (
                delta.merge(rows.cast(bronze_schema(name)), f"t.{key} = s.{key}", source_alias="s", target_alias="t")
                .when_matched_update(taken)
                .when_not_matched_insert_all()
                .execute()
            )
    except (DeltaError, OSError) as error:
        raise DependencyError(f"{name} could not be written: {store_problem(env.lakehouse, error)}") from error


def append_rows(env: Environment, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows (column -> value), in one commit; none: nothing is written."""
    if not rows:
        return
    try:
        with _on_disk(env, name) as delta:
            write_deltalake(delta, pa.Table.from_pylist(list(rows), bronze_schema(name)), mode="append")
    except (DeltaError, OSError) as error:
        raise DependencyError(f"{name} could not be written: {store_problem(env.lakehouse, error)}") from error


def users_who_refuse_storage(env: Environment) -> pa.Array:
    """user_ids whose consent_store is false in bronze.users; empty when there is no such table."""
    delta = find_table(env, "bronze.users")
    if delta is None:
        return pa.array([], pa.string())
    rows = delta.to_pyarrow_dataset().to_table(columns=["user_id"], filter=~pc.field("consent_store"))
    return rows["user_id"].combine_chunks()


def keep_up_on_disk(env: Environment, name: str, *, dry_run: bool, retention_days: int) -> dict[str, Any] | None:
    """Compact and vacuum a table, see `keep_up`; each commit is on disk before the next. None when there is none. The
    lease is held.

    Raises DependencyError when it cannot be written.
    """
    path = table_path(env.lakehouse, name, tenant=env.tenant)
    is_local = not is_on_store(path)
    if is_local and not dry_run:
        take_back_torn_commits(Path(path))
    delta = find_table(env, name)
    if delta is None:
        return None
    synced = delta.version() - MOST_UNSYNCED_COMMITS  # who made the newest may have died before they were on disk

    def committed() -> None:
        nonlocal synced
        if is_local:
            sync_commits(Path(path), max(0, synced + 1), delta.version())
            synced = delta.version()

    return keep_up(delta, dry_run=dry_run, retention_days=retention_days, committed=committed)


@contextmanager
def _on_disk(env: Environment, name: str) -> Iterator[DeltaTable]:
    """The table, created where it is missing. What is committed inside is on disk at the end; the lease is held."""
    path = table_path(env.lakehouse, name, tenant=env.tenant)
    if is_on_store(path):  # a finished write is durable there by itself
        yield _created(env, name)
        return
    root = Path(path)
    take_back_torn_commits(root)
    delta = _created(env, name)
    yield delta
    delta.update_incremental()
    newest = delta.version()  # and those before it: who made them may have died before they were on disk
    sync_commits(root, max(0, newest + 1 - MOST_UNSYNCED_COMMITS), newest)


def _created(env: Environment, name: str) -> DeltaTable:
    properties = {key: value for key, value in TABLE_PROPERTIES.items() if key not in UNKNOWN_TO_THIS_WRITER}
    try:
        return DeltaTable.create(
            table_path(env.lakehouse, name, tenant=env.tenant),
            bronze_schema(name),
            mode="ignore",
            partition_by=list(table(name).partition_by),
            configuration=properties,
            description=table(name).grain,
            storage_options=env.storage_options,
        )
    except (DeltaError, OSError) as error:
        raise DependencyError(f"{name} could not be created: {store_problem(env.lakehouse, error)}") from error


def _has_rows_of(delta: DeltaTable, sources: Sequence[str]) -> bool:
    """Whether any row came from `sources`; files whose statistics rule it out are not opened."""
    is_one = pc.field("source").isin(list(sources))
    return bool(delta.to_pyarrow_dataset().head(1, columns=["source"], filter=is_one).num_rows)
