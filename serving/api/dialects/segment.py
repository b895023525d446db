"""Segment and RudderStack: track, identify, alias, page, screen, and batches of them.

messageId -> event_id, userId, anonymousId, event -> event_type (by its alias), originalTimestamp or timestamp, sentAt,
context; from properties: product_id or sku -> item_id, products[] -> items, revenue, value or total (of a review:
rating) -> value, quantity, price, currency, and our recommendation_id, placement, page_view_id. The rest of properties
stays there; traits lie in properties.traits. context.sessionId (RudderStack) is the session. Purposes of ours among
context.consent.categoryPreferences are consent. Not kept: integrations, writeKey and other routing.

A message with both originalTimestamp and timestamp has been corrected by the one who forwarded it: timestamp counts,
and nothing is corrected again. A message without either happened when it was received.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from feature_repo.contracts.events import Reason, Rejection
from feature_repo.contracts.times import format_timestamp
from serving.api.dialects.values import (
    ATTRIBUTION_FIELDS,
    Document,
    Translated,
    as_count,
    as_id,
    as_number,
    as_object,
    lines_of,
    own_consent,
    take_first,
    without_nulls,
)

_ITEM_ID = ("product_id", "productId", "sku", "item_id")
_VALUE = ("revenue", "value", "total")
_TYPES = {"page": "page_view", "screen": "page_view", "identify": "identify", "alias": "alias"}


def translate(document: object, *, kind: str, received_at: datetime) -> list[Translated] | None:
    """The events of a body of `/v1/<kind>`. None when it is no body of that kind at all.

    What the messages of a batch share (sentAt, context) goes to each of them; what a message says itself wins.
    """
    if not isinstance(document, dict):
        return None
    if kind != "batch":
        return [Translated(_event({**document, "type": kind}, received_at), document)]
    messages = document.get("batch")
    if not isinstance(messages, list) or not messages:
        return None
    shared = {name: document[name] for name in ("sentAt", "context") if document.get(name) is not None}
    return [_message(message, shared, received_at) for message in messages]


def write_key_in(document: object) -> str | None:
    """The write key of a body, for clients that cannot set a header."""
    key = document.get("writeKey") if isinstance(document, dict) else None
    return key if isinstance(key, str) else None


def _message(message: object, shared: Document, received_at: datetime) -> Translated:
    if not isinstance(message, dict):
        detail = f"a message of a batch is a JSON object, got {type(message).__name__}"
        return Translated(Rejection(Reason.UNREADABLE, None, detail), message)
    whole = {**shared, **message}
    if isinstance(shared.get("context"), dict) and isinstance(message.get("context"), dict):
        whole["context"] = {**shared["context"], **message["context"]}
    return Translated(_event(whole, received_at), whole)


def _event(message: Document, received_at: datetime) -> dict[str, Any]:
    kind = message.get("type")
    given = message.get("properties")
    properties: dict[str, Any] = {} if given is None else as_object(given)
    context = message.get("context")
    event: dict[str, Any] = {
        "event_id": as_id(message.get("messageId")),
        "event_type": message.get("event") if kind == "track" else _TYPES.get(str(kind), kind),
        "user_id": as_id(message.get("userId")),
        "anonymous_id": as_id(message.get("anonymousId")),
        "channel": message.get("channel"),
        "context": context,
        **_times(message, received_at),
    }
    if isinstance(context, dict):
        consent = as_object(context.get("consent"))
        event["session_id"] = as_id(take_first(dict(context), ("sessionId", "session_id")))
        event["consent"] = own_consent(consent.get("categoryPreferences"))
    if kind == "alias":
        event["anonymous_id"] = as_id(message.get("previousId"))
    if kind == "track":
        event |= _shop_fields(properties, is_rating=message.get("event") in ("Product Reviewed", "rating"))
    for name in ("name", "category", "traits"):
        if message.get(name) is not None:
            properties[name] = message[name]
    event["properties"] = properties if given is None or isinstance(given, dict) else given
    return without_nulls(event)


def _shop_fields(properties: dict[str, Any], *, is_rating: bool) -> dict[str, Any]:
    """The fields that the e-commerce spec puts into properties, taken out of them."""
    taken: dict[str, Any] = {name: properties.pop(name, None) for name in ("currency", *ATTRIBUTION_FIELDS)}
    taken["items"] = lines_of(properties.pop("products", None), _ITEM_ID)
    taken["item_id"] = as_id(take_first(properties, _ITEM_ID))
    taken["quantity"] = as_count(properties.pop("quantity", None))
    taken["price"] = as_number(properties.pop("price", None))
    taken["value"] = as_number(take_first(properties, ("rating",) if is_rating else _VALUE))
    return taken


def _times(message: Document, received_at: datetime) -> dict[str, Any]:
    original, forwarded = message.get("originalTimestamp"), message.get("timestamp")
    if original is not None and forwarded is not None:
        return {"timestamp": forwarded}
    happened = original if original is not None else forwarded
    if happened is None:
        return {"timestamp": format_timestamp(received_at)}
    return {"timestamp": happened, "sent_at": message.get("sentAt")}
