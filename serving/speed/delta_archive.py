"""Appends to one bronze table without a JVM: exactly once by stream position, and on disk when it says so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.tables import TABLE_PROPERTIES, table, table_path
from serving.speed.table_upkeep import keep_up

_ARROW = {
    "string": pa.string(), "bigint": pa.int64(), "int": pa.int32(), "double": pa.float64(), "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"), "date": pa.date32(), "binary": pa.binary(),
}  # fmt: skip

_UNKNOWN_TO_THIS_WRITER = frozenset({"delta.enableRowTracking"})
"""deltalake 1.6 cannot parse it; it never turns row tracking on either."""


class DeltaArchive:
    """One bronze table. This process is its only writer (deltalake records transaction versions, it does not enforce
    them; `position` is what makes a repeated append harmless)."""

    def __init__(
        self, lakehouse: str, name: str, *, tenant: str, on_synced: Callable[[float], None] = lambda _: None
    ) -> None:
        """`on_synced` hears how many seconds each append waited for the disk."""
        spec = table(name)
        self._schema = pa.schema([pa.field(column, _ARROW[kind]) for column, kind in spec.columns.items()])
        self._partition_by = list(spec.partition_by)
        self._path = table_path(lakehouse, name, tenant=tenant)
        self._name = name
        self._on_synced = on_synced
        self._delta: DeltaTable | None = None

    def open(self) -> None:
        """Create the table when it is missing; make sure that its newest commit is on disk: a process that died between
        commit and fsync left it to us. Raises DependencyError when the lakehouse does not answer."""
        try:
            if DeltaTable.is_deltatable(self._path):
                self._delta = DeltaTable(self._path)
            else:
                if "://" not in self._path:
                    Path(self._path).mkdir(parents=True, exist_ok=True)
                self._delta = DeltaTable.create(
                    self._path,
                    self._schema,
                    mode="ignore",
                    partition_by=self._partition_by,
                    configuration={k: v for k, v in TABLE_PROPERTIES.items() if k not in _UNKNOWN_TO_THIS_WRITER},
                )
        except (DeltaError, OSError) as error:
            raise DependencyError(f"{self._name} at {self._path} cannot be opened: {error}") from error
        self._sync_newest_commit()

    def position(self, app_id: str) -> int:
        """The position number up to which the rows of `app_id` are in the table; -1 when there are none."""
        version = self._opened().transaction_version(app_id)
        return -1 if version is None else int(version)

    def append(self, rows: Sequence[Mapping[str, Any]], positions: Mapping[str, int]) -> None:
        """Add the rows and move `positions` (app id -> position number) in one commit, and wait until it is on disk.

        Raises DependencyError when that cannot be done; then the caller opens the
        table anew and asks for its positions.
        """
        data = pa.Table.from_pylist(list(rows), schema=self._schema)
        transactions = [Transaction(app_id, number) for app_id, number in sorted(positions.items())]
        try:
            write_deltalake(
                self._opened(),
                data,
                mode="append",
                commit_properties=CommitProperties(app_transactions=transactions),
            )
        except (DeltaError, OSError) as error:
            raise DependencyError(f"{self._name} cannot be written: {error}") from error
        began = perf_counter()
        self._sync_newest_commit()
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
            committed=self._sync_newest_commit,
        )

    def _opened(self) -> DeltaTable:
        assert self._delta is not None, "open() comes first"
        return self._delta

    def _sync_newest_commit(self) -> None:
        """fsync the data files of the newest commit, its log entry, and the folders that name them.

        On an object store a finished write is durable by itself.
        """
        if "://" in self._path:
            return
        root = Path(self._path)
        entry = root / "_delta_log" / f"{self._opened().version():020d}.json"
        folders = {root, entry.parent}
        if entry.exists():
            for line in entry.read_text(encoding="utf-8").splitlines():
                added = json.loads(line).get("add")
                if added:
                    data_file = root / unquote(added["path"])
                    _fsync(data_file)
                    folders.add(data_file.parent)
            _fsync(entry)
        for folder in sorted(folders):
            _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
