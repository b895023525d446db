"""From the workers' decision files to silver.decisions, exactly once; then the files may go.

Closed files and growing ones are read alike, behind the offset that the table has of each (its transaction version).
A file is deleted when no worker holds it any more and the commit of its last whole frame is on disk. A crash in
between leaves a file whose rows the table already has: the next round finds nothing in it and deletes it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from feature_repo.contracts.decisions import FILE_HEADER, LOG_SUFFIX, read_frames
from feature_repo.contracts.errors import ContractError, DependencyError
from serving.adapters.decision_log import PARTIAL_SUFFIX
from serving.speed.decision_columns import DecisionTable
from serving.speed.delta_archive import DeltaArchive
from serving.speed.metrics import ArchiverMetrics, timed

logger = logging.getLogger(__name__)

DECISIONS_TABLE = "silver.decisions"
MAX_ROUND_BYTES = 16 << 20
"""How much one round takes of a file, and about how much of all; a whole frame fits."""


class Piece(NamedTuple):
    """What one round reads of one file. `is_closed`: no worker appends to it any more."""

    data: bytes
    is_closed: bool


class DecisionArchiver:
    """Archives the decision files of one tenant. `may_write` is asked right before each commit."""

    def __init__(
        self,
        folder: str,
        *,
        lakehouse: str,
        tenant: str,
        storage_options: dict[str, str] | None = None,
        may_write: Callable[[], bool],
        metrics: ArchiverMetrics | None = None,
        max_round_bytes: int = MAX_ROUND_BYTES,
    ) -> None:
        self._folder = Path(folder)
        self._may_write = may_write
        self._metrics = metrics or ArchiverMetrics()
        self._max_round_bytes = max_round_bytes
        observe = self._metrics.fsync_seconds.labels(DECISIONS_TABLE).observe
        self._table = DeltaArchive(
            lakehouse, DECISIONS_TABLE, tenant=tenant, storage_options=storage_options, on_synced=observe
        )

    def resume(self) -> None:
        """Open the table, create it when it is missing; remove what a worker that died had only begun."""
        self._table.open()
        for path in self._folder.glob(f"*{PARTIAL_SUFFIX}"):
            if _read(path, 0, 0).is_closed:
                path.unlink(missing_ok=True)

    def archive(self) -> bool:
        """One round over all files; whether more waits.

        A frame that is whole but no decision is left out, counted as damaged and logged.
        """
        rows = DecisionTable(self._table.schema)
        positions: dict[str, int] = {}
        finished: list[Path] = []
        damaged, room = 0, self._max_round_bytes
        paths = sorted(self._folder.glob(f"*{LOG_SUFFIX}"))
        for path in paths:
            if room <= 0:
                break
            app_id = f"decisions:{path.name}"
            start = max(self._table.position(app_id), len(FILE_HEADER))
            piece = _read(path, start, self._max_round_bytes)
            found = read_frames(piece.data, start)
            for end, payload in found.payloads:
                try:
                    rows.add(payload, source=path.name, source_position=end)
                except ContractError as error:
                    logger.error("%s before byte %d: %s", path.name, end, error)
                    damaged += len(payload)
            if found.payloads:
                positions[app_id] = found.end
                damaged += found.damaged
                room -= found.end - start
            if len(piece.data) == self._max_round_bytes:
                room = 0  # and it has more
            elif piece.is_closed:
                damaged += start + len(piece.data) - found.end
                finished.append(path)
        if positions:
            self._commit(rows, positions)
        if damaged:
            self._metrics.damaged_decision_bytes.inc(damaged)
        for path in finished:
            path.unlink(missing_ok=True)
        self._metrics.decision_files.set(len(paths) - len(finished))
        return room <= 0

    def maintain(self, *, dry_run: bool, retention_days: int) -> dict[str, Any]:
        """Compact and vacuum the table; table -> what was done."""
        return {
            DECISIONS_TABLE: self._table.maintain(
                dry_run=dry_run, retention_days=retention_days, may_write=self._may_write
            )
        }

    def _commit(self, rows: DecisionTable, positions: dict[str, int]) -> None:
        if not self._may_write():
            raise DependencyError("the archiver's role was lost before a commit")
        with timed(self._metrics.commit_seconds.labels(DECISIONS_TABLE).observe):
            self._table.append(rows.table(), positions)
        self._metrics.batch_rows.labels(DECISIONS_TABLE).observe(len(rows))
        self._metrics.rows.labels(DECISIONS_TABLE).inc(len(rows))


def _read(path: Path, start: int, limit: int) -> Piece:
    """At most `limit` bytes from `start` on. Whether the writer is gone is asked first: then the file is whole."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # renamed by its writer meanwhile
        return Piece(b"", is_closed=False)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            is_closed = True
        except BlockingIOError:
            is_closed = False
        return Piece(os.pread(descriptor, limit, start), is_closed)
    finally:
        os.close(descriptor)
