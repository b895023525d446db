"""The quarantined events of the API, of imports and of Kafka, and what became of each since."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError, nearest
from feature_repo.contracts.events import Reason
from infra.importing.tables import find_table

API_TABLE, IMPORT_TABLE, REPLAYS_TABLE = "bronze.quarantine", "bronze.quarantine_import", "bronze.quarantine_replays"
KAFKA_TABLE = "bronze.quarantine_kafka"
QUARANTINE_TABLES = (API_TABLE, IMPORT_TABLE, KAFKA_TABLE)


class Outcome(StrEnum):
    """What became of one attempt. Stable words: they are stored and shown."""

    ACCEPTED = "accepted"
    """The API took it."""
    DUPLICATE = "duplicate"
    """The API had an event of that id already."""
    IMPORTED = "imported"
    NOT_STORED = "not_stored"
    """Its person does not allow storing: it was only counted."""
    STILL_BAD = "still_bad"


class State(StrEnum):
    """Where a quarantined event is now."""

    OPEN = "open"
    """Nobody has tried yet."""
    REPLAYED = "replayed"
    STILL_BAD = "still_bad"
    """It was tried, and breaks a rule all the same."""


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """One row of a quarantine table. `last` is its newest row in bronze.quarantine_replays, or None."""

    quarantine_id: str
    table: str
    raw: bytes
    reason: str
    field: str | None
    detail: str
    source: str
    source_position: int
    quarantined_at: datetime
    last: Mapping[str, Any] | None = None

    @property
    def state(self) -> State:
        """A mended event stays mended, whatever was tried afterwards."""
        if self.last is None:
            return State.OPEN
        return State.STILL_BAD if self.last["outcome"] == Outcome.STILL_BAD else State.REPLAYED

    @property
    def own_event_id(self) -> str:
        """The id of an event that came without one: made of where it was refused, so that two replays are one event."""
        name = f"{self.source}\x00{self.source_position}".encode("utf-8", "surrogatepass")
        return "q-" + hashlib.sha256(name).hexdigest()[:32]


def quarantine_id(table: str, source: str, position: int, raw: bytes) -> str:
    """12 hex that name a quarantined event. The bytes are part of it: a file that was imported again with another line
    at that place has another event there."""
    digest = hashlib.sha256(f"{table}\x00{source}\x00{position}\x00".encode("utf-8", "surrogatepass") + raw)
    return digest.hexdigest()[:12]


def read_records(
    env: Environment,
    *,
    reason: str | None = None,
    since: datetime | None = None,
    states: Sequence[State] = tuple(State),
    tables: Sequence[str] = QUARANTINE_TABLES,
) -> list[QuarantinedRecord]:
    """The quarantined events that match, oldest first. `since` is about when they were quarantined, inclusive.

    Raises DataError for a reason that does not exist, DependencyError when a table cannot be read.
    """
    if reason is not None and reason not in tuple(Reason):
        hint = nearest(reason, [str(r) for r in Reason]) or "; `nightjar quarantine list` names those that occur"
        raise DataError(f"there is no reason {reason!r}{hint}", field="reason")
    newest = newest_attempts(env)
    found = [
        QuarantinedRecord(**row, last=newest.get(row["quarantine_id"]))
        for name in tables
        for row in _rows(env, name, reason, since)
    ]
    return sorted(
        (record for record in found if record.state in states),
        key=lambda r: (r.quarantined_at, r.table, r.source, r.source_position),
    )


def find_record(env: Environment, start: str) -> QuarantinedRecord:
    """The one whose id begins with `start`. Raises DataError when there is none, or more than one."""
    found = [record for record in read_records(env) if record.quarantine_id.startswith(start)] if start else []
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(sorted({record.quarantine_id for record in found})[:5])
        raise DataError(f"{len(found)} quarantined events begin with {start!r}: {several}", field="id")
    raise DataError(f"no quarantined event {start!r}; `nightjar quarantine list` names them", field="id")


def newest_attempts(env: Environment) -> dict[str, dict[str, Any]]:
    """quarantine_id -> its last attempt; one that succeeded wins over any that did not."""
    rows = _read(env, REPLAYS_TABLE, None)
    newest: dict[str, dict[str, Any]] = {}
    for row in sorted(rows.to_pylist(), key=lambda r: (r["outcome"] != Outcome.STILL_BAD, r["replayed_at"])):
        newest[row["quarantine_id"]] = row
    return newest


def count_by_reason(records: Sequence[QuarantinedRecord]) -> dict[str, dict[str, int]]:
    """reason -> state -> how many; the most frequent reason first."""
    totals = Counter(record.reason for record in records)
    both = Counter((record.reason, str(record.state)) for record in records)
    ordered = sorted(totals, key=lambda reason: (-totals[reason], reason))
    return {reason: {str(state): both[reason, str(state)] for state in State} for reason in ordered}


def _rows(env: Environment, name: str, reason: str | None, since: datetime | None) -> Iterator[dict[str, Any]]:
    condition: pc.Expression | None = None
    for one in (
        None if reason is None else pc.field("reason") == reason,
        None if since is None else pc.field("quarantined_at") >= pa.scalar(since, pa.timestamp("us", "UTC")),
    ):
        if one is not None:
            condition = one if condition is None else condition & one
    for row in _read(env, name, condition).to_pylist():
        row = {**row, "raw": row["raw"] or b"", "detail": row["detail"] or ""}
        yield {
            "quarantine_id": quarantine_id(name, row["source"], row["source_position"], row["raw"]),
            "table": name,
            **row,
        }


def _read(env: Environment, name: str, condition: pc.Expression | None) -> pa.Table:
    delta = find_table(env, name)
    if delta is None:
        return pa.table({})
    try:
        return delta.to_pyarrow_dataset().to_table(filter=condition)
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise DependencyError(f"{name} cannot be read: {error}") from error
