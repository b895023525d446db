"""`python -m serving.speed.archiver`: from the streams to Delta, exactly once; then the streams may forget.

Every few seconds: read each stream behind its archived position, append the rows to bronze.events, bronze.quarantine
or the tables of changes with the stream position as transaction version, fsync, move the archived position, and trim
the stream below min(applied, archived). After a crash between commit and any later step, the table itself says how far
it is: what it already has is not appended again.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import redis

from feature_repo.contracts.changes import CHANGE_TABLE_OF
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError, NightjarError
from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    applied_key,
    archived_key,
    change_stream_key,
    lease_key,
    quarantine_stream_key,
    stream_key,
)
from feature_repo.contracts.stream_entry import split_entry
from serving.settings import ServingSettings
from serving.speed.archive_rows import Row, change_rows, event_rows, quarantine_rows
from serving.speed.change_records import compact_changes
from serving.speed.decision_archive import DecisionArchiver
from serving.speed.delta_archive import DeltaArchive
from serving.speed.giving_way import LowPriority
from serving.speed.maintenance_requests import answer_request
from serving.speed.metrics import ArchiverMetrics, StreamPositions, metrics_port, show_metrics, timed
from serving.speed.positions import START, after, position_number
from serving.speed.roles import Lease, run_role
from serving.speed.table_upkeep import MAX_RETENTION_DAYS

EVENTS_TABLE = "bronze.events"
QUARANTINE_TABLE = "bronze.quarantine"
TABLES = (EVENTS_TABLE, QUARANTINE_TABLE, *CHANGE_TABLE_OF.values())

COMPACTION_ROUNDS = 50
"""After so many rounds the archiver looks for days with many small files."""

PAGE_ENTRIES = 64
"""Entries read at once; each may hold up to 64 events."""

Entry = tuple[str, dict[bytes, bytes]]
"""Stream position and fields."""


class Archiver:
    """Archives all streams of one tenant. `may_write` is asked right before each commit: the role may have been lost
    in the meantime."""

    _rounds = 0

    def __init__(
        self,
        log: redis.Redis,
        online: redis.Redis,
        *,
        lakehouse: str,
        tenant: str,
        storage_options: dict[str, str] | None = None,
        max_entries: int,
        may_write: Callable[[], bool],
        metrics: ArchiverMetrics | None = None,
    ) -> None:
        self._log = log
        self._online = online
        self._tenant = tenant
        self._may_write = may_write
        self._metrics = metrics or ArchiverMetrics()
        self._tables = {
            name: DeltaArchive(
                lakehouse,
                name,
                tenant=tenant,
                storage_options=storage_options,
                on_synced=self._metrics.fsync_seconds.labels(name).observe,
            )
            for name in TABLES
        }
        self._applied_keys: dict[str, str | None] = {
            stream_key(p, tenant): applied_key(p, tenant) for p in range(EVENT_PARTITIONS)
        }
        self._applied_keys[quarantine_stream_key(tenant)] = None  # no consumer reads it
        self._changes = change_stream_key(tenant)
        self._applied_keys[self._changes] = None
        self.stream_share = max(1, max_entries // len(self._applied_keys))
        """How many events of one stream a round takes, so that a busy one does not keep the others waiting."""

    def resume(self) -> None:
        """Open the tables; create what is missing."""
        for archive in self._tables.values():
            archive.open()

    def archive(self) -> int:
        """One round over all streams: how many events the fullest of them gave."""
        rows: dict[str, list[Row]] = {name: [] for name in TABLES}
        moves: dict[str, dict[str, int]] = {name: {} for name in TABLES}
        ends: dict[str, str] = {}
        changes: Sequence[Entry] = ()
        most = 0
        for stream in self._applied_keys:
            entries, count = self._read(stream)
            most = max(most, count)
            if entries:
                ends[stream] = entries[-1][0]
                changes = entries if stream == self._changes else changes
                self._sort_in(stream, entries, rows, moves)
        for name, archive in self._tables.items():
            if moves[name]:
                if not self._may_write():
                    raise DependencyError("the archiver's role was lost before a commit")
                with timed(self._metrics.commit_seconds.labels(name).observe):
                    archive.append(rows[name], moves[name])
                self._metrics.batch_rows.labels(name).observe(len(rows[name]))
                self._metrics.rows.labels(name).inc(len(rows[name]))
        if changes:
            compact_changes(self._log, changes, tenant=self._tenant)
            del ends[self._changes]
        for stream, end in ends.items():
            self._log.set(archived_key(stream), end)
        self._trim()
        self._compact_crowded()
        return most

    def maintain(self, *, dry_run: bool, retention_days: int) -> dict[str, Any]:
        """Compact and vacuum the tables; table -> what was done. Events wait in their streams meanwhile."""
        return {
            name: archive.maintain(dry_run=dry_run, retention_days=retention_days, may_write=self._may_write)
            for name, archive in self._tables.items()
        }

    def _read(self, stream: str) -> tuple[list[Entry], int]:
        """The entries behind the archived position, until they hold a share of events; how many events."""
        stored: Any = self._log.get(archived_key(stream))
        behind, count = stored.decode() if stored else START, 0
        entries: list[Entry] = []
        while count < self.stream_share:
            page = min(PAGE_ENTRIES, self.stream_share - count)
            found: Any = self._log.xrange(stream, min=after(behind), count=page)
            entries += [(stream_id.decode(), fields) for stream_id, fields in found]
            count += sum(len(split_entry(fields)) for _, fields in found)
            if len(found) < page:
                break
            behind = entries[-1][0]
        return entries, count

    def _sort_in(
        self,
        stream: str,
        entries: Sequence[Entry],
        rows: dict[str, list[Row]],
        moves: dict[str, dict[str, int]],
    ) -> None:
        """Add the rows of a stream's entries to those tables that do not have them yet."""
        app_id = f"archiver:{stream}"
        has_until = {name: archive.position(app_id) for name, archive in self._tables.items()}
        for stream_id, fields in entries:
            if stream == self._changes:
                found = change_rows(stream_id, fields, source=stream)
            elif self._applied_keys[stream] is None:
                found = {QUARANTINE_TABLE: quarantine_rows(stream_id, fields, source=stream)}
            else:
                good, bad = event_rows(stream_id, fields, source=stream)
                found = {EVENTS_TABLE: good, QUARANTINE_TABLE: bad}
            number = position_number(stream_id)
            for name, new in found.items():  # each table has a position of its own
                if new and number > has_until[name]:
                    rows[name] += new
                    moves[name][app_id] = number

    def _trim(self) -> None:
        """Forget what is both applied and archived. The positions decide, not what this round did."""
        for stream, applied in self._applied_keys.items():
            ends: list[Any] = [self._log.get(archived_key(stream))]
            if applied is not None:
                ends.append(self._online.get(applied))
            if all(end is not None for end in ends):
                lowest = min((end.decode() for end in ends), key=position_number)
                self._log.xtrim(stream, minid=after(lowest), approximate=False)

    def _compact_crowded(self) -> None:
        """Now and then one file for the many of a day: a commit every two seconds would leave 43,000 of them."""
        self._rounds += 1
        if self._rounds % COMPACTION_ROUNDS == 0:
            for archive in self._tables.values():
                archive.maintain(
                    dry_run=False, retention_days=MAX_RETENTION_DAYS, may_write=self._may_write, only_crowded=True
                )


def main() -> int:
    """Entry point; the exit code."""
    host, port = metrics_port()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        environment = Environment.from_mapping(os.environ)
        settings = ServingSettings.from_mapping(os.environ)
        metrics = ArchiverMetrics()
        metrics.registry.register(StreamPositions.from_environment("archiver", environment))
        show_metrics(metrics.registry, host, port)
    except NightjarError as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    log = redis.Redis.from_url(environment.redis_log_url, socket_timeout=10)
    online = redis.Redis.from_url(environment.redis_online_url, socket_timeout=5)
    lease = Lease(log, lease_key("archiver", environment.tenant), seconds=settings.lease_seconds)
    archiver = Archiver(
        log,
        online,
        lakehouse=environment.lakehouse,
        tenant=environment.tenant,
        storage_options=environment.storage_options,
        max_entries=settings.archive_events,
        may_write=lease.hold,
        metrics=metrics,
    )
    decisions = DecisionArchiver(
        environment.decisions,
        lakehouse=environment.lakehouse,
        tenant=environment.tenant,
        storage_options=environment.storage_options,
        may_write=lease.hold,
        metrics=metrics,
    )

    def open_tables() -> None:
        archiver.resume()
        decisions.resume()

    def maintain(**options: Any) -> dict[str, Any]:
        return {**archiver.maintain(**options), **decisions.maintain(**options)}

    # A round makes thousands of rows that all die with it: looking for cycles among them finds none.
    gc.collect()
    gc.freeze()
    gc.set_threshold(500_000, 50, 1000)
    batch_work = LowPriority(settings.backlog_niceness, longest_seconds=settings.lease_seconds / 4)

    def resume() -> None:
        batch_work.call(open_tables)  # the engine starts its threads with the first table, and they inherit priority

    def step(stopping: threading.Event) -> None:
        answer_request(log, environment.tenant, maintain)
        is_calm = batch_work.call(archiver.archive) < archiver.stream_share
        if not batch_work.call(decisions.archive) and is_calm:
            stopping.wait(settings.archive_seconds)

    return run_role("archiver", lease, resume=resume, step=step, metrics=metrics)


if __name__ == "__main__":
    sys.exit(main())
