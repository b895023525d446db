"""The change stream compacted to one record per item, and per user who ever refused something; then it may be trimmed.

Serving processes that start late, or were away, read these records and go on from the archived position, which moves in
the same MULTI (`adapters.change_feed`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import redis

from feature_repo.contracts.changes import ITEMS, USERS, Change, RecordState
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.keys import archived_key, change_stream_key, changed_records_key
from serving.pipeline.overlay import SERVED_FIELDS, ever_refused, region_of
from serving.speed.positions import position_number


def compact_changes(log: redis.Redis, entries: Sequence[tuple[str, Mapping[bytes, bytes]]], *, tenant: str) -> None:
    """Take the entries (in order; already in Delta) into the records and move the archived position behind them.

    Twice is once. What is no change, or no record any more, is left out: the archive has its bytes, or starts it anew.
    """
    by_kind: dict[str, dict[str, list[tuple[Change, int]]]] = {ITEMS: {}, USERS: {}}
    for stream_id, fields in entries:
        try:
            change = Change.from_json(fields.get(b"change", b""))
        except ContractError:
            continue
        by_kind[change.kind].setdefault(change.record_id, []).append((change, position_number(stream_id)))
    with log.pipeline(transaction=True) as pipe:
        for kind, changed in by_kind.items():
            states = _compacted(log, kind, changed, tenant)
            if states:
                pipe.hset(changed_records_key(kind, tenant), mapping=states)
        pipe.set(archived_key(change_stream_key(tenant)), entries[-1][0])
        pipe.execute()


def _compacted(
    log: redis.Redis, kind: str, changed: Mapping[str, Sequence[tuple[Change, int]]], tenant: str
) -> dict[Any, Any]:
    if not changed:
        return {}
    stored: Any = log.hmget(changed_records_key(kind, tenant), list(changed))
    states: dict[Any, Any] = {}
    for (record_id, changes), record in zip(changed.items(), stored, strict=True):
        state = _state(record)
        for change, position in changes:
            state.take(change, position, keeps=SERVED_FIELDS[kind])
        if kind == ITEMS or record is not None or ever_refused(state) or region_of(state) is not None:
            states[record_id] = state.to_json()
    return states


def _state(record: bytes | None) -> RecordState:
    if record is None:
        return RecordState()
    try:
        return RecordState.from_json(record)
    except ContractError:
        return RecordState()
