"""Stream entries as rows of bronze.events and bronze.quarantine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import Reason, expand_items
from feature_repo.contracts.times import from_micros
from serving.speed.entries import read_event
from serving.speed.positions import position_number, receipt_micros

_ALSO_IN_PROPERTIES = ("context", "page_view_id", "sent_at")
"""Fields without a column of their own."""

Row = dict[str, Any]


def event_rows(stream_id: str, fields: Mapping[bytes, bytes], *, source: str) -> tuple[list[Row], list[Row]]:
    """(rows of bronze.events, rows of bronze.quarantine) of one entry of an event stream.

    One row per line of `items` (ids `<event_id>:<line>`); all lines share the entry's position. `received_at` is when
    the log took the entry. An entry that is no event is quarantined as unreadable.
    """
    raw = fields.get(b"event", b"")
    try:
        event = read_event(stream_id, raw)
    except DataError as error:
        return [], [_quarantine_row(raw, Reason.UNREADABLE.value, error.field, str(error), stream_id, source)]
    return [_event_row(line, stream_id, source) for line in expand_items(event)], []


def quarantine_rows(stream_id: str, fields: Mapping[bytes, bytes], *, source: str) -> list[Row]:
    """The row of bronze.quarantine of one entry of the quarantine stream."""
    reason, field, detail = (
        fields.get(name, b"").decode("utf-8", "replace") for name in (b"reason", b"field", b"detail")
    )
    return [_quarantine_row(fields.get(b"raw", b""), reason, field or None, detail, stream_id, source)]


def _event_row(event: Mapping[str, Any], stream_id: str, source: str) -> Row:
    moment = event["timestamp"]
    consent = event.get("consent", {})
    extra = {name: event[name] for name in _ALSO_IN_PROPERTIES if name in event}
    properties = {**event.get("properties", {}), **extra}
    return {
        "event_id": event["event_id"],
        "event_type": event["event_type"],
        "user_id": event.get("user_id"),
        "anonymous_id": event.get("anonymous_id"),
        "session_id": event.get("session_id"),
        "item_id": event.get("item_id"),
        "event_timestamp": moment,
        "received_at": from_micros(receipt_micros(stream_id)),
        "quantity": event.get("quantity"),
        "price": _number(event.get("price")),
        "value": _number(event.get("value")),
        "currency": event.get("currency"),
        "recommendation_id": event.get("recommendation_id"),
        "placement": event.get("placement"),
        "channel": event.get("channel"),
        "consent_train": consent.get("train"),
        "consent_personalize": consent.get("personalize"),
        "properties": json.dumps(properties, sort_keys=True) if properties else None,
        "source": source,
        "source_position": position_number(stream_id),
        "event_date": moment.date(),
    }


def _quarantine_row(raw: bytes, reason: str, field: str | None, detail: str, stream_id: str, source: str) -> Row:
    return {
        "raw": raw,
        "reason": reason,
        "field": field,
        "detail": detail,
        "source": source,
        "source_position": position_number(stream_id),
        "quarantined_at": from_micros(receipt_micros(stream_id)),
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
