"""Clocks of devices that are wrong: corrected by when they say they sent, against when we received."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import derived_event_id
from feature_repo.contracts.times import format_timestamp, parse_timestamp

MAX_CORRECTED_SKEW = timedelta(hours=24)
"""A clock that is further off is not corrected: as likely the request was stored and sent again much later."""


def corrected_for_skew(event: Mapping[str, Any], *, received_at: datetime) -> Mapping[str, Any]:
    """The event with its timestamp corrected; the event itself when the rule does not apply.

    The rule is Segment's: timestamp + (received_at - sent_at). It applies when both times can be read, the event
    happened no later than it was sent, and the two clocks differ by at most 24 hours. The time as it came is kept in
    properties.original_timestamp. A missing event_id is derived from the fields as they came, so that a retry, which
    is received later, has the same id.
    """
    try:
        sent_at = parse_timestamp(event["sent_at"])
        timestamp = event["timestamp"]
        happened_at = parse_timestamp(timestamp)
    except (DataError, KeyError):
        return event
    skew = received_at - sent_at
    properties = event.get("properties")
    is_plausible = happened_at <= sent_at and abs(skew) <= MAX_CORRECTED_SKEW
    if not is_plausible or not skew or not (properties is None or isinstance(properties, Mapping)):
        return event
    try:
        corrected = format_timestamp(happened_at + skew)
    except OverflowError:  # the year 9999 and beyond, or before the year 1
        return event
    event_id = event.get("event_id")
    return {
        **event,
        "event_id": derived_event_id(event) if event_id is None else event_id,
        "timestamp": corrected,
        "properties": {**(properties or {}), "original_timestamp": timestamp},
    }
