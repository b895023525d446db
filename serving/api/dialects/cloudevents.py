"""CloudEvents 1.0 around native events: structured, batch and binary (HTTP headers ce-*).

`data` is a native event. What it does not say, the envelope does: event_id is `<source>#<id>` (together they are
unique; a hash when that is longer than an id may be), event_type is the type or its last word after a dot
("com.example.shop.view_item"), timestamp is `time`, else the receipt. source, id, type, subject and extensions are kept
in context.cloudevent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from feature_repo.contracts.events import EVENT_TYPE_ALIASES, EVENT_TYPES, MAX_ID_BYTES, Reason, Rejection
from feature_repo.contracts.times import format_timestamp
from serving.adapters.json_bytes import decode_json
from serving.api.dialects.values import Document, Translated, as_object, without_nulls

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_PREFIX = "ce-"
_REQUIRED = ("id", "source", "type")
_NOT_CONTEXT = frozenset({"specversion", "data", "data_base64", "datacontenttype", "time"})
_JSON_TYPE = re.compile(r"(application|text)/([a-z0-9.-]+\+)?json\s*(;.*)?", re.IGNORECASE)


def translate(document: object, *, received_at: datetime) -> Translated:
    """One envelope in structured form."""
    if not isinstance(document, dict):
        detail = f"a CloudEvent is a JSON object, got {type(document).__name__}"
        return Translated(Rejection(Reason.UNREADABLE, None, detail), document)
    event = _event(document, received_at)
    return Translated(event, document)


def translate_batch(document: object, *, received_at: datetime) -> list[Translated] | None:
    """The envelopes of a batch; None when the body is no list with at least one."""
    if not isinstance(document, list) or not document:
        return None
    return [translate(one, received_at=received_at) for one in document]


def is_binary(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether headers (names in lower case) make the request a CloudEvent in binary form."""
    return any(name == "ce-specversion" for name, _ in headers)


def envelope_of(headers: Iterable[tuple[str, str]], body: bytes) -> dict[str, Any]:
    """The structured form of a binary one. A body that is no JSON is kept as data_base64."""
    envelope: dict[str, Any] = {}
    content_type = None
    for name, value in headers:
        if name.startswith(_PREFIX):
            envelope[name.removeprefix(_PREFIX)] = unquote(value)
        elif name == "content-type":
            content_type = value
    if content_type is not None:
        envelope["datacontenttype"] = content_type
    try:
        return {**envelope, "data": decode_json(body)}
    except ValueError:
        return {**envelope, "data_base64": base64.b64encode(body).decode("ascii")}


def _event(envelope: Document, received_at: datetime) -> Document | Rejection:
    if envelope.get("specversion") != "1.0":
        detail = f"specversion is '1.0', got {str(envelope.get('specversion'))[:40]!r}"
        return Rejection(Reason.INVALID_FIELD, "specversion", detail)
    for name in _REQUIRED:
        if not isinstance(envelope.get(name), str) or not envelope[name]:
            return Rejection(Reason.INVALID_FIELD, name, f"a CloudEvent needs {name}, a text that is not empty")
    data = _data(envelope)
    if isinstance(data, Rejection):
        return data
    event = dict(data)
    if event.get("event_id") is None:
        event["event_id"] = _event_id(envelope["source"], envelope["id"])
    if event.get("event_type") is None:
        event["event_type"] = _event_type(envelope["type"])
    if event.get("timestamp") is None:
        event["timestamp"] = envelope.get("time") or format_timestamp(received_at)
    kept = {name: value for name, value in envelope.items() if name not in _NOT_CONTEXT}
    if isinstance(event.get("context", {}), dict):
        event["context"] = {**as_object(event.get("context")), "cloudevent": kept}
    return without_nulls(event)


def _data(envelope: Document) -> Document | Rejection:
    data, content_type = envelope.get("data"), envelope.get("datacontenttype")
    if content_type is not None and not (isinstance(content_type, str) and _JSON_TYPE.fullmatch(content_type)):
        detail = f"data is JSON (application/json), got {str(content_type)[:80]!r}"
        return Rejection(Reason.INVALID_FIELD, "datacontenttype", detail)
    if "data_base64" in envelope:
        try:
            data = decode_json(base64.b64decode(envelope["data_base64"], validate=True))
        except (binascii.Error, TypeError, ValueError):
            return Rejection(Reason.UNREADABLE, "data_base64", "data_base64 is the base64 of JSON")
    if data is None:
        return {}
    if not isinstance(data, dict):
        return Rejection(Reason.UNREADABLE, "data", f"data is an event, a JSON object, got {type(data).__name__}")
    return data


def _event_id(source: str, name: str) -> str:
    both = f"{source}#{name}"
    data = both.encode("utf-8", "surrogatepass")
    return both if len(data) <= MAX_ID_BYTES else "ce-" + hashlib.sha256(data).hexdigest()[:32]


def _event_type(given: str) -> str:
    return given if given in EVENT_TYPES or given in EVENT_TYPE_ALIASES else given.rpartition(".")[2]
