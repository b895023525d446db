"""Changes of items and users without HTTP: a body becomes records, records become changes, answers become statuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from feature_repo.contracts.changes import DELETE, ID_FIELDS, Change, check_change
from feature_repo.contracts.events import Rejection
from serving.adapters.change_feed import CatalogueTail
from serving.adapters.event_log import EventLog
from serving.api.errors import BodyTooLargeError, Limit, UnreadableBodyError
from serving.api.ingest import events_in_lines, parse_json, require_count
from serving.observability import CATALOGUE_CHANGES
from serving.pipeline.overlay import CatalogueOverlay, names_of
from serving.speed.positions import position_number

REACH_SECONDS = 0.25
"""How long an answer waits until its changes come back through the stream; after that it judges by what is known."""


def records_in(body: bytes, kind: str, operation: str, *, max_records: int) -> list[object]:
    """The records of a JSON body: one object, {"items": [...]} (or "users"), or a list; of DELETE also ids as texts.

    Raises UnreadableBodyError when the body is none of these, BodyTooLargeError for more than `max_records`.
    """
    document = parse_json(body)
    if isinstance(document, Mapping) and kind not in document:
        return [document]
    records = document[kind] if isinstance(document, Mapping) else document
    if not isinstance(records, list) or not records:
        ids = " or ids" if operation == DELETE else ""
        raise UnreadableBodyError(f'expected an object, a list of objects{ids} or {{"{kind}": [...]}} with 1 or more')
    require_count(len(records), max_records)
    return records


def records_in_lines(body: bytes, *, max_records: int) -> list[object]:
    """The records of an NDJSON body, one in each line that is not blank. A line that is no JSON becomes a rejection."""
    return [arrival.event for arrival in events_in_lines(body, max_events=max_records)]


async def take_changes(
    kind: str,
    operation: str,
    records: Iterable[object],
    log: EventLog,
    tail: CatalogueTail,
    overlay: CatalogueOverlay,
    *,
    received_at: datetime,
    max_written_bytes: int,
) -> list[dict[str, Any]]:
    """Check, make durable, and say for each record, in order, what became of it.

    Good changes are durable when this returns, stale ones too; of rejected ones nothing is kept. Raises DependencyError
    when the log does not confirm: then every change may be sent again. Raises BodyTooLargeError, before anything is
    written, when the changes together take more than `max_written_bytes` in the log.
    """
    id_field = ID_FIELDS[kind]
    results: list[dict[str, Any]] = []
    changes: list[Change] = []
    change_results: list[dict[str, Any]] = []
    for index, record in enumerate(records):
        change, rejection = _checked(kind, operation, record, received_at)
        if change is None:
            assert rejection is not None
            results.append({"index": index, id_field: _id_in(record, id_field), **_rejected(rejection)})
        else:
            changes.append(change)
            results.append({"index": index, id_field: change.record_id, "status": "accepted"})
            change_results.append(results[-1])
    written = [change.to_json() for change in changes]
    written_bytes = sum(map(len, written))
    if written_bytes > max_written_bytes:
        raise BodyTooLargeError(Limit("max_written_bytes", written_bytes, max_written_bytes), "bytes in the log")
    positions = [position_number(stream_id) for stream_id in await log.append_changes(written)]
    if positions:
        await tail.reach(positions[-1], seconds=REACH_SECONDS)
    _tell_late(change_results, changes, positions, overlay.late_fields)
    for result in results:
        CATALOGUE_CHANGES.labels(kind, result["status"]).inc()
    return results


def _tell_late(
    results: Sequence[dict[str, Any]],
    changes: Sequence[Change],
    positions: Sequence[int],
    late_fields: Callable[[Change, int], tuple[str, ...]],
) -> None:
    for result, change, position in zip(results, changes, positions, strict=True):
        late = late_fields(change, position)
        if late and len(late) == len(change.fields):
            result["status"] = "stale"
        elif late:
            result["stale_fields"] = names_of(late)


def _checked(
    kind: str, operation: str, record: object, received_at: datetime
) -> tuple[Change, None] | tuple[None, Rejection]:
    if isinstance(record, Rejection):
        return None, record
    return check_change(kind, operation, record, received_at=received_at)


def _rejected(rejection: Rejection) -> dict[str, Any]:
    return {
        "status": "rejected",
        "reason": rejection.reason.value,
        "field": rejection.field,
        "detail": rejection.detail,
    }


def _id_in(record: object, id_field: str) -> str | None:
    record_id = record.get(id_field) if isinstance(record, Mapping) else record
    if not isinstance(record_id, str):
        return None
    return record_id.encode("utf-8", "replace").decode("utf-8")[:256]
