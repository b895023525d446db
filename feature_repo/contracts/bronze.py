"""A checked event as a row of `bronze.events` or `bronze.events_import`: both entrances keep the same things."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from feature_repo.contracts.times import require_utc

_KEPT_IN_PROPERTIES = ("sent_at", "page_view_id", "context")


def bronze_row(event: Mapping[str, Any], *, received_at: datetime, source: str, source_position: int) -> dict[str, Any]:
    """One checked single-item event (`events.check_event`, then `events.expand_items`) with the columns of the table.

    What has no column of its own (sent_at, page_view_id, context, consent.share) joins the client's properties and wins
    over entries of the same name. `properties` is ASCII JSON with sorted keys, or null when there is nothing in it.
    """
    moment = require_utc(event["timestamp"])
    said = event.get
    price, value, consent = said("price"), said("value"), said("consent") or {}
    properties = _properties(event, consent)
    return {
        "event_id": event["event_id"],
        "event_type": event["event_type"],
        "user_id": said("user_id"),
        "anonymous_id": said("anonymous_id"),
        "session_id": said("session_id"),
        "item_id": said("item_id"),
        "event_timestamp": moment,
        "received_at": received_at,
        "quantity": said("quantity"),
        "price": None if price is None else float(price),
        "value": None if value is None else float(value),
        "currency": said("currency"),
        "recommendation_id": said("recommendation_id"),
        "placement": said("placement"),
        "channel": said("channel"),
        "consent_train": consent.get("train"),
        "consent_personalize": consent.get("personalize"),
        "properties": json.dumps(properties, sort_keys=True, default=str) if properties else None,
        "source": source,
        "source_position": source_position,
        "event_date": moment.date(),
    }


def _properties(event: Mapping[str, Any], consent: Mapping[str, Any]) -> Mapping[str, Any]:
    rest = {field: event[field] for field in _KEPT_IN_PROPERTIES if field in event}
    if "share" in consent:
        rest["consent"] = {"share": consent["share"]}
    own = event.get("properties")
    return {**own, **rest} if own else rest
