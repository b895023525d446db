"""What lies in an event stream, checked once more by the rule table that let it in: a stream may hold anything."""

from __future__ import annotations

from typing import Any

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import check_event
from feature_repo.contracts.times import MAX_FUTURE_SKEW, from_micros
from serving.adapters.json_bytes import decode_json
from serving.speed.positions import receipt_micros


def read_event(stream_id: str, raw: bytes) -> dict[str, Any]:
    """The event of one stream entry, as `check_event` gives it (`timestamp` is aware, UTC).

    Raises DataError when it is none. The API judged the time by its own clock; the log's may lag by up to a day.
    """
    try:
        document = decode_json(raw)
    except ValueError as error:
        raise DataError(f"not JSON: {error}") from error
    received_at = from_micros(receipt_micros(stream_id)) + MAX_FUTURE_SKEW
    event, rejection = check_event(document, received_at=received_at)
    if event is None:
        assert rejection is not None
        raise DataError(f"{rejection.reason.value}: {rejection.detail}", field=rejection.field)
    return event
