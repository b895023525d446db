"""Tables of Spark's read and written a day at a time from Arrow: each day's rows are a file, all days one commit.

For histories that fit in memory in part: what Spark would move and sort, and write with hundreds of files open, is
written here one file after the other. Where Spark made the table it keeps its properties; who commits holds its lock
(infra/adr/0025).
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from itertools import chain
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import fs

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.object_store import store_problem
from feature_repo.contracts.tables import TableSpec, table, table_path
from spark_jobs.io.commits import commit
from spark_jobs.io.light_delta import arrow_schema, open_table, stored_columns
from spark_jobs.io.light_tables import create_if_missing

ROWS_AT_ONCE = 131_072
_WRITERS = 2
_NO_TWO_ALIKE = frozenset({"event_id", "session_key", "source_position", "properties"})
"""Columns of which a dictionary would be made for nothing."""
_RANGE_CHARACTERS = 32
_BEYOND_ALL = "\U0010ffff"


class DayFile(NamedTuple):
    """One file of a table: the rows of one day, None where they have none."""

    day: date | None
    fragment: ds.Fragment
    schema: pa.Schema

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Its rows in their order, the same each time; what the stored table lacks is not among the columns."""
        names = [name for name in columns if name in self.schema.names]
        return iter(self.fragment.to_batches(columns=names, schema=self.schema, batch_size=ROWS_AT_ONCE))


def day_files(
    environment: Environment, name: str, version: int | None = None, *, words: Collection[str] = ()
) -> list[DayFile]:
    """The files of a table that is partitioned by one day column, sorted by day (those without one first) and path.

    The columns `words` come as dictionaries. Raises as `light_delta.open_table`.
    """
    found = open_table(environment, name, version)
    if found is None:
        return []
    stored = set(stored_columns(found, list(table(name).columns)))
    options = ds.ParquetReadOptions(dictionary_columns=stored.intersection(words))
    dataset = found.to_pyarrow_dataset(parquet_read_options=options)
    (day_column,) = table(name).partition_by
    files = []
    for fragment in dataset.get_fragments():
        day = ds.get_partition_keys(fragment.partition_expression).get(day_column)
        files.append(DayFile(day, fragment, dataset.schema))
    return sorted(files, key=lambda file: (file.day or date.min, file.fragment.path))


def write_days(
    environment: Environment,
    name: str,
    rows: Iterable[tuple[date, pa.Table]],
    *,
    before: date | None = None,
    only: date | None = None,
) -> None:
    """Put `rows` in the place of all that a table of Spark's has of days before `before`, or of the day `only` (None:
    of any), in one commit.

    rows  (day, its rows with the contract's columns but the day); each becomes a file. They are made while others are
          written: a few are in memory at once

    The table must be there (`delta.create_if_missing`). Columns that it lacks are added. Raises what making the rows
    raises, DependencyError when the table cannot be written or another process keeps its commits to itself; then the
    table stays as it was, and files that no commit names go with the next vacuum.
    """
    spec = table(name)
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    options = environment.storage_options
    with commit(environment, name):
        try:
            found = DeltaTable(path, storage_options=options)
            files = fs.PyFileSystem(DeltaStorageHandler(path, options))
            made: list[AddAction | RemoveAction] = [*_write_files(files, spec, rows, ranged=_ranged(found, spec))]
            (day_column,) = spec.partition_by
            replaced = {"<": before, "=": only}
            filters = [(day_column, sign, day.isoformat()) for sign, day in replaced.items() if day is not None] or None
            found.create_write_transaction(
                made, "overwrite", _with_new_columns(found, name), [day_column], partition_filters=filters
            )
        except (DeltaError, OSError) as error:
            raise DependencyError(f"{name} at {path} cannot be written: {store_problem(path, error)}") from error


class WrittenFile(NamedTuple):
    """A data file that lies in a table's folder and that no commit names yet; `path` is within that folder."""

    path: str
    size: int
    rows: int


def write_batches(
    environment: Environment, name: str, day: date, batches: Iterable[pa.RecordBatch]
) -> WrittenFile | None:
    """Rows of `day` as one data file of a table that is partitioned by one day column, a batch in memory at a time.
    None when there are none. Any process may do this at any time: only a commit makes them rows of the table.

    Raises ContractError on a row of another day.
    """
    (day_column,) = table(name).partition_by
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    files = fs.PyFileSystem(DeltaStorageHandler(path, environment.storage_options))
    schema = pa.schema([field for field in arrow_schema(name) if field.name != day_column])
    some = (batch for batch in batches if batch.num_rows)
    first = next(some, None)
    if first is None:
        return None
    within, rows = f"{day_column}={day.isoformat()}/part-{uuid4()}.snappy.parquet", 0
    with files.open_output_stream(within) as file:
        with pq.ParquetWriter(file, schema, compression="snappy", store_schema=False) as writer:
            for batch in chain([first], some):
                if strays := set(pc.unique(batch[day_column]).to_pylist()) - {day}:
                    raise ContractError(f"{name}: rows of {', '.join(sorted(map(str, strays)))} among those of {day}")
                writer.write_table(pa.Table.from_batches([batch]).select(schema.names).cast(schema))
                rows += batch.num_rows
        size = file.tell()
    return WrittenFile(within, size, rows)


def commit_day(environment: Environment, name: str, day: date, write: Callable[[], Sequence[WrittenFile]]) -> None:
    """Put the files that `write` names in the place of what a table of Spark's has of `day`, in one commit; they are
    written while nobody else commits to it. Columns that the table lacks are added, and the table when it is missing.

    Raises what `write` raises, DependencyError when the table cannot be written or another process keeps its commits to
    itself; then the table stays as it was.
    """
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    (day_column,) = table(name).partition_by
    with commit(environment, name):
        try:
            create_if_missing(environment, name)
            made: list[AddAction | RemoveAction] = [
                AddAction(
                    file.path, file.size, {day_column: day.isoformat()}, int(time.time() * 1000), True,
                    json.dumps({"numRecords": file.rows}),
                )
                for file in write()
            ]  # fmt: skip
            found = DeltaTable(path, storage_options=environment.storage_options)
            only = [(day_column, "=", day.isoformat())]
            found.create_write_transaction(
                made, "overwrite", _with_new_columns(found, name), [day_column], partition_filters=only
            )
        except (DeltaError, OSError) as error:
            raise DependencyError(f"{name} at {path} cannot be written: {store_problem(path, error)}") from error


def _write_files(
    files: fs.FileSystem, spec: TableSpec, rows: Iterable[tuple[date, pa.Table]], *, ranged: Sequence[str]
) -> list[AddAction]:
    made: list[AddAction] = []
    under_way: deque[Future[AddAction]] = deque()
    with ThreadPoolExecutor(_WRITERS) as pool:
        for day, some in rows:
            if some.num_rows:
                under_way.append(pool.submit(_write_file, files, spec, day, some, ranged))
            if len(under_way) > _WRITERS:
                made.append(under_way.popleft().result())
        made += [each.result() for each in under_way]
    return made


def _write_file(files: fs.FileSystem, spec: TableSpec, day: date, rows: pa.Table, ranged: Sequence[str]) -> AddAction:
    (day_column,) = spec.partition_by
    path = f"{day_column}={day.isoformat()}/part-{uuid4()}.snappy.parquet"
    schema = pa.schema([field for field in arrow_schema(spec.name) if field.name != day_column])
    rows = rows.select(schema.names).cast(schema)
    with files.open_output_stream(path) as file:
        pq.write_table(
            rows, file, compression="snappy", store_schema=False, write_statistics=list(spec.ranged) or True,
            use_dictionary=[column for column in schema.names if column not in _NO_TWO_ALIKE],
        )  # fmt: skip
        size = file.tell()
    stats = json.dumps(_stats(rows, ranged), ensure_ascii=False)
    return AddAction(path, size, {day_column: day.isoformat()}, int(time.time() * 1000), True, stats)


def _ranged(found: DeltaTable, spec: TableSpec) -> Sequence[str]:
    """The columns whose ranges the log keeps: those of the contract, if the table was told to keep these and no others.

    delta-rs takes a range that is missing for one from null to null, which no row is in: a condition on any such column
    then finds nothing in the file. Without any range it looks into the file.
    """
    told = found.metadata().configuration.get("delta.dataSkippingStatsColumns")
    return spec.ranged if spec.ranged and told == ",".join(spec.ranged) else ()


def _stats(rows: pa.Table, ranged: Sequence[str]) -> dict[str, Any]:
    """What the log keeps of a file: how many rows, and the ranges of the columns that the table is laid out by; none
    where one of them is all null."""
    lows, highs, nulls = {}, {}, {}
    for column in ranged:
        nulls[column] = rows[column].null_count
        low, high = (bound.as_py() for bound in pc.min_max(rows[column]).values())
        if low is None:
            return {"numRecords": rows.num_rows}
        lows[column] = low[:_RANGE_CHARACTERS]
        highs[column] = high if len(high) <= _RANGE_CHARACTERS else high[:_RANGE_CHARACTERS] + _BEYOND_ALL
    kept = {"minValues": lows, "maxValues": highs, "nullCount": nulls} if ranged else {}
    return {"numRecords": rows.num_rows, **kept}


def _with_new_columns(found: DeltaTable, name: str) -> Any:
    """The schema of the stored table, with the contract's columns that it lacks."""
    stored = found.schema()
    missing = [column for column in arrow_schema(name).names if column not in {field.name for field in stored.fields}]
    if not missing:
        return stored
    new = type(stored).from_arrow(pa.schema([arrow_schema(name).field(column) for column in missing]))
    return type(stored)([*stored.fields, *new.fields])
