"""What lies in an event stream, checked once more by the rule table that let it in: a stream may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from feature_repo.contracts.common_events import check_common_event
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import check_event, subject_key
from feature_repo.contracts.times import MAX_FUTURE_SKEW, from_micros
from serving.adapters.json_bytes import decode_json
from serving.speed.positions import receipt_micros


class Entry(NamedTuple):
    """One stream entry; `event` and `subject` are None, and `problem` says why, when it cannot be applied."""

    partition: int
    position: str
    raw: bytes
    nonce: bytes
    event: Mapping[str, Any] | None
    subject: str | None
    problem: str | None = None


def read_entry(partition: int, position: str, fields: Mapping[bytes, bytes]) -> Entry:
    """The entry with its event, or with the problem; whatever goes wrong, it is the problem of this entry alone."""
    raw, nonce = fields.get(b"event", b""), fields.get(b"nonce", b"")
    try:
        event = read_event(position, raw)
        return Entry(
            partition, position, raw, nonce, event, subject_key(event.get("user_id"), event.get("anonymous_id"))
        )
    except Exception as error:  # one entry must never hold up the others
        words = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        return Entry(partition, position, raw, nonce, None, None, words)


def read_event(stream_id: str, raw: bytes) -> dict[str, Any]:
    """The event of one stream entry, as `check_event` gives it (`timestamp` is aware, UTC).

    Raises DataError when it is none. The API judged the time by its own clock; the log's may lag by up to a day.
    """
    try:
        document = decode_json(raw)
    except ValueError as error:
        raise DataError(f"not JSON: {error}") from error
    received_at, latest = _latest_of(receipt_micros(stream_id))
    event = check_common_event(document, latest=latest) if type(document) is dict else None
    if event is not None:
        return event
    event, rejection = check_event(document, received_at=received_at)
    if event is None:
        assert rejection is not None
        raise DataError(f"{rejection.reason.value}: {rejection.detail}", field=rejection.field)
    return event


@lru_cache(maxsize=1024)
def _latest_of(micros: int) -> tuple[datetime, datetime]:
    """(the latest receipt by the API's clock, the latest event time). Entries of one group commit share theirs."""
    received_at = from_micros(micros) + MAX_FUTURE_SKEW
    return received_at, received_at + MAX_FUTURE_SKEW
