"""What lies in an event stream, checked once more by the rule table that let it in: a stream may hold anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from feature_repo.contracts import common_events
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import check_event, subject_key
from feature_repo.contracts.keys import session_key
from feature_repo.contracts.stream_entry import split_entry
from feature_repo.contracts.times import MAX_FUTURE_SKEW, from_micros, to_micros
from serving.adapters.json_bytes import decode_json
from serving.native import parts
from serving.speed.positions import receipt_micros

check_common_event = common_events.check_common_event
if parts.subjects is not None:
    check_common_event = parts.subjects.check_common_event

_new = tuple.__new__
"""What a NamedTuple's own constructor does, without the call."""


class Entry(NamedTuple):
    """A stream entry, split: (event, nonce) of each event in it."""

    position: str
    events: Sequence[tuple[bytes, bytes]]


class LoggedEvent(NamedTuple):
    """One event where it lies: partition, position of its entry, number in the entry. `event` and `subject` are None,
    and `problem` says why, when it cannot be applied; `micros` is the event's time (us since 1970)."""

    partition: int
    position: str
    number: int
    raw: bytes
    nonce: bytes
    event: Mapping[str, Any] | None
    subject: str | None
    problem: str | None = None
    micros: int = 0

    @property
    def place(self) -> str:
        """What names it within its partition."""
        return place_of(self.position, self.number)


ReadOne = Callable[[int, str, int, bytes, bytes], LoggedEvent]
"""`read_logged`"""


def place_of(position: str, number: int) -> str:
    """`<position>.<number>`"""
    return f"{position}.{number}"


def split_rows(rows: Sequence[tuple[str, Mapping[bytes, bytes]]]) -> list[Entry]:
    """Entries as they were read: position and fields."""
    return [_new(Entry, (position, split_entry(fields))) for position, fields in rows]


def first_entries(entries: Sequence[Entry], events: int) -> Sequence[Entry]:
    """The first of them, with at most so many events, and at least one entry."""
    count = 0
    for at, entry in enumerate(entries):
        count += len(entry.events)
        if count > events and at:
            return entries[:at]
    return entries


def read_logged(partition: int, position: str, number: int, raw: bytes, nonce: bytes) -> LoggedEvent:
    """The event, or its problem; whatever goes wrong, it is the problem of this event alone."""
    try:
        event = read_event(position, raw)
        subject = subject_key(event.get("user_id"), event.get("anonymous_id"))
        micros = to_micros(event["timestamp"])
        return _new(LoggedEvent, (partition, position, number, raw, nonce, event, subject, None, micros))
    except Exception as error:  # one event must never hold up the others
        words = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        return LoggedEvent(partition, position, number, raw, nonce, None, None, words)


def read_entries(partition: int, entries: Iterable[Entry], read_one: ReadOne = read_logged) -> list[LoggedEvent]:
    """All events of these entries, in their order; `read_one` reads each that is not plainly a common event."""
    return [
        read_one(partition, position, number, raw, nonce)
        for position, events in entries
        for number, (raw, nonce) in enumerate(events)
    ]


def by_session_key(live: Iterable[LoggedEvent], tenant: str) -> dict[str, list[LoggedEvent]]:
    """Session keys in the order of their first event, each with its events in theirs."""
    found: dict[str, list[LoggedEvent]] = {}
    for one in live:
        assert one.subject is not None
        found.setdefault(one.subject, []).append(one)
    return {session_key(subject, tenant): some for subject, some in found.items()}


def read_event(stream_id: str, raw: bytes) -> dict[str, Any]:
    """One event of a stream entry, as `check_event` gives it (`timestamp` is aware, UTC).

    Raises DataError when it is none. The API judged the time by its own clock; the log's may lag by up to a day.
    """
    try:
        document = decode_json(raw)
    except ValueError as error:
        raise DataError(f"not JSON: {error}") from error
    received_at, latest = latest_of(stream_id)
    event = check_common_event(document, latest=latest) if type(document) is dict else None
    if event is not None:
        return event
    event, rejection = check_event(document, received_at=received_at)
    if event is None:
        assert rejection is not None
        raise DataError(f"{rejection.reason.value}: {rejection.detail}", field=rejection.field)
    return event


@lru_cache(maxsize=1024)
def latest_of(stream_id: str) -> tuple[datetime, datetime]:
    """(the latest receipt by the API's clock, the latest event time). Events of one entry share theirs."""
    received_at = from_micros(receipt_micros(stream_id)) + MAX_FUTURE_SKEW
    return received_at, received_at + MAX_FUTURE_SKEW
