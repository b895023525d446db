"""Events without HTTP: a body becomes events, events become log entries, answers become statuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from feature_repo.contracts.events import (
    MAX_NESTING,
    Reason,
    Rejection,
    check_event,
    is_nested_deeper,
    subject_key,
)
from feature_repo.contracts.times import format_timestamp
from serving.adapters.event_log import EventLog, LogEntry, QuarantinedEvent
from serving.adapters.json_bytes import decode_json, encode_json
from serving.api.clock import corrected_for_skew
from serving.api.dialects.values import Translated
from serving.api.errors import BodyTooLargeError, Limit, UnreadableBodyError
from serving.observability import EVENTS, NOT_STORED, QUARANTINED

MAX_BODY_NESTING = 200
"""A body that nests deeper cannot be parsed. One event in it may nest MAX_NESTING deep, or is quarantined."""


class Arrival(NamedTuple):
    """One event of a request: what the rule table will judge (or why that is pointless already), and its bytes.

    `is_refused`: its original says consent.store=false, whatever became of it in translation.
    """

    event: object
    raw: bytes
    is_refused: bool = False


def parse_json(body: bytes) -> Any:
    """The document of a body. Raises UnreadableBodyError when it is no JSON, or nests deeper than MAX_BODY_NESTING."""
    try:
        document = decode_json(body)
    except ValueError as error:
        raise UnreadableBodyError(f"the body is not JSON: {error}") from error
    if is_nested_deeper(document, MAX_BODY_NESTING):
        words = f"objects and lists nest more than {MAX_BODY_NESTING} deep"
        limit = Limit("max_body_nesting", MAX_BODY_NESTING + 1, MAX_BODY_NESTING)
        raise UnreadableBodyError(f"the body cannot be parsed: {words}", limit=limit)
    return document


def events_in(body: bytes, *, max_events: int) -> list[Arrival]:
    """The events of a JSON body: one object, {"events": [...]}, or a bare list.

    The bytes of an event in a list are its JSON written anew. Raises UnreadableBodyError when the body is none of
    these, BodyTooLargeError for more than `max_events`.
    """
    document = parse_json(body)
    if isinstance(document, Mapping) and "events" not in document:
        return [Arrival(document, body)]
    events = document["events"] if isinstance(document, Mapping) else document
    if not isinstance(events, list) or not events:
        raise UnreadableBodyError('expected an event, a list of events or {"events": [...]} with 1 or more events')
    require_count(len(events), max_events)
    return [Arrival(event, encode_json(event)) for event in events]


def events_in_lines(body: bytes, *, max_events: int) -> list[Arrival]:
    """The events of an NDJSON body, one in each line that is not blank. A line that is no JSON becomes a rejection.

    Raises UnreadableBodyError when no line is JSON, BodyTooLargeError for more than `max_events` lines.
    """
    lines = [line for line in (line.strip() for line in body.split(b"\n")) if line]
    require_count(len(lines), max_events)
    arrivals = [_line(line) for line in lines]
    if all(isinstance(arrival.event, Rejection) for arrival in arrivals):
        raise UnreadableBodyError("the body has no line that is JSON; expected one event in each line")
    return arrivals


def _line(line: bytes) -> Arrival:
    try:
        document = decode_json(line)
    except ValueError as error:
        return Arrival(Rejection(Reason.UNREADABLE, None, f"the line is not JSON: {str(error)[:200]}"), line)
    if is_nested_deeper(document, MAX_BODY_NESTING):
        detail = f"the line nests more than {MAX_NESTING} objects and lists inside one another"
        return Arrival(Rejection(Reason.NESTED_TOO_DEEPLY, None, detail), line)
    return Arrival(document, line)


def arrivals_of(translated: Iterable[Translated]) -> Iterator[Arrival]:
    """Translated events with the bytes of their originals, written anew one by one."""
    return (Arrival(event, encode_json(original), _refuses_storing(original)) for event, original in translated)


def require_count(count: int, max_events: int) -> None:
    """Raises BodyTooLargeError for more than `max_events`."""
    if count > max_events:
        raise BodyTooLargeError(Limit("max_events", count, max_events), "events")


async def take_events(
    arrivals: Iterable[Arrival],
    log: EventLog,
    *,
    received_at: datetime,
    new_nonce: Callable[[], str],
    max_written_bytes: int,
    refuses_storing: Callable[[str], bool] = lambda _: False,
    refuses_training: Callable[[str], bool] = lambda _: False,
) -> list[dict[str, Any]]:
    """Correct clocks, check, make durable, and say for each event, in order, what became of it.

    Good and quarantined events are durable when this returns. Whoever said consent.store=false, in the event or before
    (`refuses_storing` knows users by id), is only counted, even when the event is not valid. An event of a user who
    said consent.train=false before (`refuses_training`) is kept as one that says so itself. Raises DependencyError
    when the log does not confirm; then every event may be sent again under the same id. Raises BodyTooLargeError,
    before anything is written, when the events together take more than `max_written_bytes` in the log.
    """
    results: list[dict[str, Any]] = []
    entries: list[LogEntry] = []
    entry_results: list[dict[str, Any]] = []
    quarantined: list[QuarantinedEvent] = []
    mark = new_nonce()
    written_bytes = 0
    for index, (event, raw, is_refused) in enumerate(arrivals):
        good, rejection = _checked(event, received_at)
        is_stored = not (is_refused or _forbids_storing(event) or _of_refusing_user(event, refuses_storing))
        if good is None:
            assert rejection is not None
            result = _rejected(index, event, rejection)
            if is_stored:
                quarantined.append(
                    QuarantinedEvent(raw, rejection.reason.value, rejection.field or "", rejection.detail)
                )
                written_bytes += len(raw)
        else:
            result = {"index": index, "event_id": good["event_id"], "status": "accepted"}
            if is_stored:
                if _of_refusing_user(good, refuses_training):
                    good = {**good, "consent": {**good.get("consent", {}), "train": False}}
                subject = subject_key(good.get("user_id"), good.get("anonymous_id"))
                entry_results.append(result)
                nonce, may_share = f"{mark}.{index}", not good.get("items")
                entries.append(LogEntry(subject, good["event_id"], nonce, _entry_json(good), may_share))
                written_bytes += len(entries[-1].event)
        if written_bytes > max_written_bytes:
            raise BodyTooLargeError(Limit("max_written_bytes", written_bytes, max_written_bytes), "bytes in the log")
        if not is_stored:
            result["stored"] = False
        results.append(result)
    for result, is_new in zip(entry_results, await _append(log, entries, quarantined), strict=True):
        if not is_new:
            result["status"] = "duplicate"
    _count(results)
    return results


def _checked(event: object, received_at: datetime) -> tuple[dict[str, Any], None] | tuple[None, Rejection]:
    if isinstance(event, Rejection):
        return None, event
    if isinstance(event, Mapping) and "sent_at" in event:
        event = corrected_for_skew(event, received_at=received_at)
    return check_event(event, received_at=received_at)


async def _append(log: EventLog, entries: list[LogEntry], quarantined: list[QuarantinedEvent]) -> list[bool]:
    return await log.append(entries, quarantined) if entries or quarantined else []


def _entry_json(event: Mapping[str, Any]) -> bytes:
    return encode_json({**event, "timestamp": format_timestamp(event["timestamp"])})


def _forbids_storing(event: object) -> bool:
    consent = event.get("consent") if isinstance(event, Mapping) else None
    return isinstance(consent, Mapping) and consent.get("store") is False


def _of_refusing_user(event: object, refuses_storing: Callable[[str], bool]) -> bool:
    user_id = event.get("user_id") if isinstance(event, Mapping) else None
    return isinstance(user_id, str) and refuses_storing(user_id)


def _refuses_storing(original: object) -> bool:
    """The same of a foreign document: beside its events, or in the envelope's data."""
    return _forbids_storing(original) or (isinstance(original, Mapping) and _forbids_storing(original.get("data")))


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
