"""POST /v1/events without HTTP: a body becomes events, events become log entries, answers become statuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from feature_repo.contracts.events import Rejection, check_event, subject_key
from feature_repo.contracts.times import format_timestamp
from serving.adapters.event_log import EventLog, LogEntry, QuarantinedEvent
from serving.adapters.json_bytes import decode_json, encode_json
from serving.api.errors import BodyTooLargeError, UnreadableBodyError
from serving.observability import EVENTS, NOT_STORED, QUARANTINED


def events_in(body: bytes, *, max_events: int) -> list[tuple[Any, bytes]]:
    """The events of a body, each with its bytes: one object, {"events": [...]}, or a bare list.

    The bytes of an event in a list are its JSON written anew. Raises UnreadableBodyError when the body is none of
    these, BodyTooLargeError for more than `max_events`.
    """
    try:
        document = decode_json(body)
    except ValueError as error:
        raise UnreadableBodyError(f"the body is not JSON: {error}") from error
    if isinstance(document, Mapping) and "events" not in document:
        return [(document, body)]
    events = document["events"] if isinstance(document, Mapping) else document
    if not isinstance(events, list) or not events:
        raise UnreadableBodyError('expected an event, a list of events or {"events": [...]} with 1 or more events')
    if len(events) > max_events:
        raise BodyTooLargeError(
            f"at most {max_events} events fit one request, got {len(events)}; send several requests"
        )
    return [(event, encode_json(event)) for event in events]


async def take_events(
    events: list[tuple[Any, bytes]], log: EventLog, *, received_at: datetime, new_nonce: Callable[[], str]
) -> list[dict[str, Any]]:
    """Check, make durable, and say for each event, in order, what became of it.

    Good and quarantined events are durable when this returns. Whoever said consent.store=false is only counted, even
    when the event is not valid. Raises DependencyError when the log does not confirm; then every event may be sent
    again under the same id.
    """
    results: list[dict[str, Any]] = []
    entries: list[LogEntry] = []
    entry_results: list[dict[str, Any]] = []
    quarantined: list[QuarantinedEvent] = []
    mark = new_nonce()
    for index, (event, raw) in enumerate(events):
        good, rejection = check_event(event, received_at=received_at)
        is_stored = not _forbids_storing(event)
        if good is None:
            assert rejection is not None
            result = _rejected(index, event, rejection)
            if is_stored:
                quarantined.append(
                    QuarantinedEvent(raw, rejection.reason.value, rejection.field or "", rejection.detail)
                )
        else:
            result = {"index": index, "event_id": good["event_id"], "status": "accepted"}
            if is_stored:
                subject = subject_key(good.get("user_id"), good.get("anonymous_id"))
                entry_results.append(result)
                entries.append(LogEntry(subject, good["event_id"], f"{mark}.{index}", _entry_json(good)))
        if not is_stored:
            result["stored"] = False
        results.append(result)
    for result, is_new in zip(entry_results, await _append(log, entries, quarantined), strict=True):
        if not is_new:
            result["status"] = "duplicate"
    _count(results)
    return results


async def _append(log: EventLog, entries: list[LogEntry], quarantined: list[QuarantinedEvent]) -> list[bool]:
    return await log.append(entries, quarantined) if entries or quarantined else []


def _entry_json(event: Mapping[str, Any]) -> bytes:
    return encode_json({**event, "timestamp": format_timestamp(event["timestamp"])})


def _forbids_storing(event: object) -> bool:
    consent = event.get("consent") if isinstance(event, Mapping) else None
    return isinstance(consent, Mapping) and consent.get("store") is False


def _rejected(index: int, event: object, rejection: Rejection) -> dict[str, Any]:
    event_id = event.get("event_id") if isinstance(event, Mapping) else None
    return {
        "index": index,
        "event_id": event_id if isinstance(event_id, str) and _has_utf8(event_id) else None,
        "status": "quarantined",
        "reason": rejection.reason.value,
        "field": rejection.field,
        "detail": rejection.detail,
    }


def _has_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _count(results: list[dict[str, Any]]) -> None:
    for result in results:
        EVENTS.labels(result["status"]).inc()
        if result["status"] == "quarantined":
            QUARANTINED.labels(result["reason"]).inc()
        if result.get("stored") is False:
            NOT_STORED.inc()
