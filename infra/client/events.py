"""Events as the client makes them: complete, and with an id that never changes again."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def new_event_id() -> str:
    """A UUID of version 7 (RFC 9562): ids of one time lie together."""
    millis = time.time_ns() // 1_000_000
    number = int.from_bytes(millis.to_bytes(6, "big") + os.urandom(10), "big")
    number = number & ~(0xF << 76) | 7 << 76  # version
    number = number & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=number))


def make_event(
    event_type: str,
    *,
    user_id: str | None = None,
    anonymous_id: str | None = None,
    event_id: str | None = None,
    timestamp: datetime | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """One event for `send` or `put`. Without an `event_id` it gets one now, once: every attempt to send bears that id.

    `timestamp` must be aware; without one it happens now. `fields`: item_id, items, session_id, recommendation_id,
    placement, value, quantity, price, currency, consent, properties ... (infra/docs/events.md). None is left out.
    Raises ValueError without a subject, or for a naive time.
    """
    if user_id is None and anonymous_id is None:
        raise ValueError("an event needs a user_id or an anonymous_id")
    if timestamp is not None and timestamp.tzinfo is None:
        raise ValueError(f"timestamp must be aware, got {timestamp.isoformat()} without a time zone")
    moment = (timestamp or datetime.now(UTC)).astimezone(UTC)
    event = {
        "event_id": event_id or new_event_id(),
        "event_type": event_type,
        "user_id": user_id,
        "anonymous_id": anonymous_id,
        "timestamp": moment.isoformat().replace("+00:00", "Z"),
        **fields,
    }
    return {name: value for name, value in event.items() if value is not None}


def with_id(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event itself, copied, with an id if it has none."""
    return {**event, "event_id": event.get("event_id") or new_event_id()}
