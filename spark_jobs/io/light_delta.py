"""The Delta tables without a JVM, for light tasks: pyarrow readers over `deltalake`. Reads only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from pyarrow.parquet import filters_to_expression

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.object_store import is_on_store, store_problem
from feature_repo.contracts.tables import table, table_path

_ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(), "boolean": pa.bool_(), "int": pa.int32(), "bigint": pa.int64(), "float": pa.float32(),
    "double": pa.float64(), "date": pa.date32(), "timestamp": pa.timestamp("us", tz="UTC"), "binary": pa.binary(),
    "array<int>": pa.list_(pa.int32()), "array<float>": pa.list_(pa.float32()),
    "array<double>": pa.list_(pa.float64()), "array<string>": pa.list_(pa.string()),
    "array<array<string>>": pa.list_(pa.list_(pa.string())),
}  # fmt: skip

NO_DAY = date(1970, 1, 1)
"""The day of a row that has none: its Delta partition is null."""


def arrow_schema(name: str) -> pa.Schema:
    """The columns of a table as Arrow types, in contract order, all nullable."""
    return pa.schema([pa.field(column, _ARROW_TYPES[kind]) for column, kind in table(name).columns.items()])


def open_table(environment: Environment, name: str, version: int | None = None) -> DeltaTable | None:
    """The table at `version` (None: the newest), or None when it does not exist (or `version` is -1).

    Raises DataError when the table exists and the version does not, DependencyError when the object store does not
    let us look.
    """
    if version == -1:
        return None
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    try:
        return DeltaTable(path, version=version, storage_options=environment.storage_options)
    except TableNotFoundError:
        return None
    except OSError as error:
        if is_on_store(path):
            raise DependencyError(f"{name} cannot be opened: {store_problem(path, error)}") from error
        raise DataError(f"{name} cannot be read: {error}", field=name) from error
    except Exception as error:  # deltalake raises its base error for an unknown version
        raise DataError(f"{name} has no version {version} any more, or cannot be read: {error}", field=name) from error


def version(environment: Environment, name: str) -> int:
    """The newest version, or -1 when there is no such table yet."""
    found = open_table(environment, name)
    return -1 if found is None else found.version()


def read_table(
    environment: Environment,
    name: str,
    version: int | None = None,
    columns: Sequence[str] | None = None,
    filters: pc.Expression | list[tuple[str, str, Any]] | None = None,
) -> pa.Table:
    """Rows of a table with its contract's columns (or those named), at `version` (None: the newest).

    `filters` is pyarrow's: an expression, or [(column, operator, value), ...]; both prune partitions. A table that
    does not exist is an empty one with the contract's schema; columns that the stored table does not have yet are null.
    Row order is not defined.
    """
    schema = arrow_schema(name)
    names = list(columns) if columns is not None else schema.names
    wanted = pa.schema([schema.field(column) for column in names])
    found = open_table(environment, name, version)
    if found is None:
        return wanted.empty_table()
    stored = stored_columns(found, names)
    try:
        rows = found.to_pyarrow_table(columns=stored, filters=filters)
    except pa.ArrowNotImplementedError:
        if filters is None:
            raise
        # Files of deltalake's merge (imports) call their texts string views, which pyarrow cannot hold against the
        # bounds of a file, as it does for up to 50 values. Read as the table's own type, they compare.
        rows = found.to_pyarrow_table().filter(filters_to_expression(filters)).select(stored)
    return with_missing(rows, wanted)


def stream_rows(
    found: DeltaTable, wanted: pa.Schema, filters: pc.Expression, *, rows_at_once: int = 131_072
) -> Iterator[pa.RecordBatch]:
    """The rows of a table, a batch at a time, with the columns and types of `wanted`; what it lacks is null. Row order
    is not defined."""
    columns = stored_columns(found, wanted.names)
    for batch in found.to_pyarrow_dataset().to_batches(columns=columns, filter=filters, batch_size=rows_at_once):
        yield from with_missing(pa.Table.from_batches([batch]), wanted).to_batches()


def stored_columns(found: DeltaTable, names: Sequence[str]) -> list[str]:
    """Those of `names` that the stored table has: a column that joined the contract later comes with the next write."""
    stored = {field.name for field in found.schema().fields}
    return [name for name in names if name in stored]


def with_missing(rows: pa.Table, wanted: pa.Schema) -> pa.Table:
    """`rows` with the columns and types of `wanted`; what they lack is null."""
    arrays = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in wanted
    ]
    return pa.table(arrays, schema=wanted)


def days_by_row_count(environment: Environment, name: str, version: int | None = None) -> dict[date, int]:
    """Day -> rows, from the log alone, of a table partitioned by one day column. Rows without a day count under NO_DAY.

    Raises DataError when a file was written without statistics.
    """
    days: dict[date, int] = {}
    for (_, day), count in _files(environment, name, version).items():
        if count is None:
            raise DataError(f"{name}: a data file carries no row count in the Delta log", field=name)
        days[day] = days.get(day, 0) + count
    return days


def days_changed_between(environment: Environment, name: str, v_old: int, v_new: int) -> set[date]:
    """Days (partitions) whose files differ between two versions; -1 is before the table existed.

    A compaction counts as a change: it costs a derivation, never a wrong result. Rows without a day count as NO_DAY.
    Raises DataError when a version is gone; then every day must be derived.
    """
    if v_old == v_new:
        return set()
    return {day for _, day in _files(environment, name, v_old).keys() ^ _files(environment, name, v_new).keys()}


def last_user_metadata(environment: Environment, name: str, key: str) -> dict[str, Any] | None:
    """The user metadata of the newest commit whose JSON object has `key`, or None."""
    found = open_table(environment, name)
    for commit in found.history() if found is not None else []:
        try:
            metadata = json.loads(commit.get("userMetadata") or "null")
        except ValueError:
            continue
        if isinstance(metadata, dict) and key in metadata:
            return metadata
    return None


def _files(environment: Environment, name: str, version: int | None) -> dict[tuple[str, date], int | None]:
    found = open_table(environment, name, version)
    if found is None:
        return {}
    (day_column,) = table(name).partition_by
    actions = pa.table(found.get_add_actions(flatten=True))
    if not actions.num_rows:
        return {}
    days = (day or NO_DAY for day in actions[f"partition.{day_column}"].to_pylist())
    return dict(
        zip(zip(actions["path"].to_pylist(), days, strict=True), actions["num_records"].to_pylist(), strict=True)
    )
