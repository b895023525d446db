"""The tracking pixel: the query of an image address as one event.

Parameters bear the names of the event's fields: event_type, user_id, anonymous_id, session_id, item_id, timestamp,
sent_at, event_id, value, quantity, price, currency, recommendation_id, placement, page_view_id, channel; consent_store,
consent_train, consent_personalize, consent_share are true or false. item_id may come several times (a list that was
shown). Other parameters are kept in properties. Without timestamp the event happened when it was received.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from feature_repo.contracts.events import CONSENT_PURPOSES
from feature_repo.contracts.times import format_timestamp
from serving.api.dialects.values import Document, as_count, as_number

_PLAIN = frozenset(
    {
        "event_id", "event_type", "user_id", "anonymous_id", "session_id", "currency", "recommendation_id",
        "placement", "page_view_id", "channel",
    }
)  # fmt: skip
_CONVERT = {"value": as_number, "price": as_number, "quantity": as_count, "timestamp": as_number, "sent_at": as_number}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_CONSENT = {f"consent_{purpose}": purpose for purpose in CONSENT_PURPOSES}


def translate(parameters: Sequence[tuple[str, str]], *, received_at: datetime) -> Document:
    """The event. An empty parameter was not given; of a repeated one the last counts."""
    event: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    consent: dict[str, Any] = {}
    item_ids: list[str] = []
    for name, text in parameters:
        if not text:
            continue
        if name == "item_id":
            item_ids.append(text)
        elif name in _PLAIN:
            event[name] = text
        elif name in _CONVERT:
            event[name] = _CONVERT[name](text)
        elif name in _CONSENT:
            consent[_CONSENT[name]] = _TRUTH.get(text.lower(), text)
        else:
            properties[name] = text
    if len(item_ids) == 1:
        event["item_id"] = item_ids[0]
    elif item_ids:
        event["items"] = [{"item_id": item_id} for item_id in item_ids]
    event.setdefault("timestamp", format_timestamp(received_at))
    if properties:
        event["properties"] = properties
    if consent:
        event["consent"] = consent
    return event
