"""Google Analytics 4, as its Measurement Protocol sends it: client_id, user_id, timestamp_micros, events[].

client_id or app_instance_id -> anonymous_id; events[].name -> event_type (GA4 names are ours; login and sign_up are
`identify`, view_search_results is `search`); timestamp_micros of the event, else of the body; from params: items[],
item_id, currency, value, quantity, price, ga_session_id or session_id -> session_id, event_id, and our
recommendation_id, placement, page_view_id. The rest of params lies in properties, user_properties in
context.user_properties. A purchase without event_id has the id `purchase-<transaction_id>`, so it counts once, as in
GA4. The engagement_time_msec of a user_engagement is also its value, in seconds. An event without a time happened when
it was received. Entries of `consent` that bear the names of our purposes are consent; Google's own (ad_user_data,
ad_personalization) speak of advertising and are kept in context.consent.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import Reason, Rejection
from feature_repo.contracts.times import format_timestamp, from_micros
from serving.api.dialects.values import (
    ATTRIBUTION_FIELDS,
    Document,
    Translated,
    as_count,
    as_id,
    as_number,
    lines_of,
    own_consent,
    take_first,
    without_nulls,
)

_TYPES = {"login": "identify", "sign_up": "identify", "view_search_results": "search"}
_ITEM_ID = ("item_id", "id")
_SHARED = ("client_id", "app_instance_id", "user_id", "timestamp_micros", "consent", "user_properties")


def translate(document: object, *, received_at: datetime) -> list[Translated] | None:
    """The events of a body. None when it is no Measurement Protocol body at all."""
    if not isinstance(document, dict) or not isinstance(document.get("events"), list) or not document["events"]:
        return None
    shared = {name: document[name] for name in _SHARED if document.get(name) is not None}
    return [_one(event, shared, received_at) for event in document["events"]]


def _one(event: object, shared: Document, received_at: datetime) -> Translated:
    original = {**shared, "events": [event]}
    if not isinstance(event, dict):
        detail = f"an event is a JSON object, got {type(event).__name__}"
        return Translated(Rejection(Reason.UNREADABLE, None, detail), original)
    given = event.get("params")
    if given is not None and not isinstance(given, dict):
        return Translated(Rejection(Reason.INVALID_FIELD, "params", "params is an object"), original)
    micros = event.get("timestamp_micros", shared.get("timestamp_micros"))
    try:
        moment = received_at if micros is None else from_micros(_whole(micros))
    except (DataError, OverflowError) as error:
        detail = f"timestamp_micros is microseconds since 1970, got {str(micros)[:40]!r} ({type(error).__name__})"
        return Translated(Rejection(Reason.INVALID_TIMESTAMP, "timestamp_micros", detail), original)
    return Translated(_event(event, dict(given or {}), shared, moment), original)


def _event(event: Document, params: dict[str, Any], shared: Document, moment: datetime) -> dict[str, Any]:
    name = event.get("name")
    event_id = as_id(params.pop("event_id", None))
    transaction_id = params.get("transaction_id")
    if event_id is None and name == "purchase" and isinstance(transaction_id, str | int):
        event_id = f"purchase-{transaction_id}"
    millis = as_number(params.get("engagement_time_msec"))
    if name == "user_engagement" and "value" not in params and type(millis) in (int, float):
        params["value"] = millis / 1000
    context = {n: shared[n] for n in ("consent", "user_properties") if n in shared}
    return without_nulls(
        {
            "event_id": event_id,
            "event_type": _TYPES.get(name, name) if isinstance(name, str) else name,
            "user_id": as_id(shared.get("user_id")),
            "anonymous_id": as_id(shared.get("client_id", shared.get("app_instance_id"))),
            "session_id": as_id(take_first(params, ("ga_session_id", "session_id"))),
            "item_id": as_id(params.pop("item_id", None)),
            "timestamp": format_timestamp(moment),
            "value": as_number(params.pop("value", None)),
            "quantity": as_count(params.pop("quantity", None)),
            "price": as_number(params.pop("price", None)),
            "currency": params.pop("currency", None),
            "items": lines_of(params.pop("items", None), _ITEM_ID),
            **{field: params.pop(field, None) for field in ATTRIBUTION_FIELDS},
            "context": context,
            "properties": params,
            "consent": own_consent(shared.get("consent")),
        }
    )


def _whole(value: object) -> int:
    number = as_number(value)
    if not isinstance(number, int) or isinstance(number, bool):
        raise DataError("not a whole number", field="timestamp_micros")
    return number
