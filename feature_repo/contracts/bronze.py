"""A checked event as a row of `bronze.events` or `bronze.events_import`: both entrances keep the same things."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from feature_repo.contracts.times import require_utc

_PLAIN = (
    "event_id", "event_type", "user_id", "anonymous_id", "session_id", "item_id", "quantity", "currency",
    "recommendation_id", "placement", "channel",
)  # fmt: skip
_KEPT_IN_PROPERTIES = ("sent_at", "page_view_id", "context")


def bronze_row(event: Mapping[str, Any], *, received_at: datetime, source: str, source_position: int) -> dict[str, Any]:
    """One checked single-item event (`events.check_event`, then `events.expand_items`) with the columns of the table.

    What has no column of its own (sent_at, page_view_id, context, consent.share) joins the client's properties and wins
    over entries of the same name. `properties` is ASCII JSON with sorted keys, or null when there is nothing in it.
    """
    moment = require_utc(event["timestamp"])
    consent = event.get("consent") or {}
    rest = {field: event[field] for field in _KEPT_IN_PROPERTIES if field in event}
    if "share" in consent:
        rest["consent"] = {"share": consent["share"]}
    properties = {**event.get("properties", {}), **rest}
    return {
        **{field: event.get(field) for field in _PLAIN},
        "event_timestamp": moment,
        "received_at": received_at,
        "price": None if event.get("price") is None else float(event["price"]),
        "value": None if event.get("value") is None else float(event["value"]),
        "consent_train": consent.get("train"),
        "consent_personalize": consent.get("personalize"),
        "properties": json.dumps(properties, sort_keys=True, default=str) if properties else None,
        "source": source,
        "source_position": source_position,
        "event_date": moment.date(),
    }
