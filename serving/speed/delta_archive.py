"""Appends to one table without a JVM: exactly once by stream position, and on disk when it says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.object_store import is_on_store, store_problem
from feature_repo.contracts.tables import TABLE_PROPERTIES, table, table_path
from feature_repo.contracts.torn_commits import MOST_UNSYNCED_COMMITS, sync_commits, take_back_torn_commits
from serving.speed.table_upkeep import keep_up

_ARROW = {
    "string": pa.string(), "bigint": pa.int64(), "int": pa.int32(), "double": pa.float64(), "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"), "date": pa.date32(), "binary": pa.binary(),
    "array<int>": pa.list_(pa.int32()), "array<float>": pa.list_(pa.float32()), "array<double>": pa.list_(pa.float64()),
    "array<string>": pa.list_(pa.string()), "array<array<string>>": pa.list_(pa.list_(pa.string())),
}  # fmt: skip

_UNKNOWN_TO_THIS_WRITER = frozenset({"delta.enableRowTracking"})
"""deltalake 1.6 cannot parse it; it never turns row tracking on either."""


class DeltaArchive:
    """One table. This process is its only writer. deltalake records transaction versions; it refuses one that somebody
    else wrote since the table was opened, not one that is there already: `position` is what makes a repeated append
    harmless."""

    def __init__(
        self,
        lakehouse: str,
        name: str,
        *,
        tenant: str,
        storage_options: dict[str, str] | None = None,
        on_synced: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`on_synced` hears how many seconds each append waited for the disk."""
        spec = table(name)
        self._schema = pa.schema([pa.field(column, _ARROW[kind]) for column, kind in spec.columns.items()])
        self._partition_by = list(spec.partition_by)
        self._path = table_path(lakehouse, name, tenant=tenant)
        self._storage_options = storage_options
        self._name = name
        self._on_synced = on_synced
        self._delta: DeltaTable | None = None
        self._synced_version = -1

    def open(self) -> None:
        """Create the table when it is missing; take back what a power cut tore; make sure that the newest commits are
        on disk: a process that died between commit and fsync left them to us.

        Raises DependencyError when the lakehouse does not answer.
        """
        self._synced_version = -1
        try:
            if not is_on_store(self._path):
                take_back_torn_commits(Path(self._path))
            if DeltaTable.is_deltatable(self._path, storage_options=self._storage_options):
                self._delta = DeltaTable(self._path, storage_options=self._storage_options)
            else:
                if not is_on_store(self._path):
                    Path(self._path).mkdir(parents=True, exist_ok=True)
                self._delta = DeltaTable.create(
                    self._path,
                    self._schema,
                    mode="ignore",
                    partition_by=self._partition_by,
                    configuration={k: v for k, v in TABLE_PROPERTIES.items() if k not in _UNKNOWN_TO_THIS_WRITER},
                    storage_options=self._storage_options,
                )
        except (DeltaError, OSError) as error:
            problem = store_problem(self._path, error)
            raise DependencyError(f"{self._name} at {self._path} cannot be opened: {problem}") from error
        self._sync_commits()

    def position(self, app_id: str) -> int:
        """The position number up to which the rows of `app_id` are in the table; -1 when there are none."""
        version = self._opened().transaction_version(app_id)
        return -1 if version is None else int(version)

    @property
    def schema(self) -> pa.Schema:
        """The table's columns, in order."""
        return self._schema

    def append(self, rows: Sequence[Mapping[str, Any]] | pa.Table, positions: Mapping[str, int]) -> None:
        """Add the rows (or a table of `schema`) and move `positions` (app id -> position number) in one commit, and
        wait until it is on disk.

        Raises DependencyError when that cannot be done; then the caller opens the
        table anew and asks for its positions.
        """
        data = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=self._schema)
        transactions = [Transaction(app_id, number) for app_id, number in sorted(positions.items())]
        try:
            write_deltalake(
                self._opened(),
                data,
                mode="append",
                commit_properties=CommitProperties(app_transactions=transactions),
            )
        except (DeltaError, OSError) as error:
            raise DependencyError(f"{self._name} cannot be written: {store_problem(self._path, error)}") from error
        began = perf_counter()
        self._sync_commits()
        self._on_synced(perf_counter() - began)

    def maintain(
        self, *, dry_run: bool, retention_days: int, may_write: Callable[[], bool], only_crowded: bool = False
    ) -> dict[str, Any]:
        """Compact and vacuum the table; what was done, as `table_upkeep.keep_up` tells it. On disk when it returns."""
        return keep_up(
            self._opened(),
            dry_run=dry_run,
            only_crowded=only_crowded,
            retention_days=retention_days,
            may_write=may_write,
            committed=self._sync_commits,
        )

    def _opened(self) -> DeltaTable:
        assert self._delta is not None, "open() comes first"
        return self._delta

    def _sync_commits(self) -> None:
        """fsync every commit that may not be on disk yet. On an object store a finished write is durable by itself."""
        if is_on_store(self._path):
            return
        newest = self._opened().version()
        first = min(max(self._synced_version + 1, newest + 1 - MOST_UNSYNCED_COMMITS), newest)
        sync_commits(Path(self._path), first, newest)
        self._synced_version = newest
