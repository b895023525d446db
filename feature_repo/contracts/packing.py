"""The packed records in Redis `online`. Little-endian; the format number is the first byte and part of the key.

Candidates row v1
    header  <BBHiI  format=1, flags, count, as_of (days since 1970-01-01), manifest hash (the 8 hex of the version)
    row     <IfBII  item number, score, source, first reason, second reason (item numbers, NO_REASON when absent)
    Rows are sorted by score, best first; ties by item number. Every record carries its version, so that an answer
    that would mix two versions is refused.

Session record v1
    header  <BBqHHH format=1, flags, consent time (us since 1970), event count, bought count, dismissed count
    event   <qBQH   event time (us), event type (index in EVENT_TYPE_ORDER), session hash, id length; then the id
    bought, dismissed  <qH  event time (us), id length; then the id
    Every list is sorted by time, oldest first; ties by item id.

Golden files of both formats are kept in tests/golden for ever.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from feature_repo.contracts.errors import ContractError, MixedVersionError
from feature_repo.contracts.publication import pack_version, unpack_version

FORMAT_V1 = 1
NO_REASON = 0xFFFFFFFF
MAX_CANDIDATES = 65_535

FLAG_PERSONALIZE_DENIED = 1
"""Both records: this person said no to personalization; only non-personal rungs may answer."""


class Source(IntEnum):
    """Where a candidate comes from. Numbers are stored: append, never renumber."""

    POPULARITY = 1
    ITEM_KNN = 2
    ALS = 3
    SESSION = 4
    SEGMENT = 5
    CATEGORY = 6
    REGION = 7
    STATIC = 8


class PackedCandidate(NamedTuple):
    """`first_reason` and `second_reason` are item numbers of past items that spoke for this one, or None."""

    item_number: int
    score: float
    source: int
    first_reason: int | None = None
    second_reason: int | None = None


_CANDIDATES_HEADER = struct.Struct("<BBHiI")
CANDIDATE_ROW = struct.Struct("<IfBII")
"""Public so that hot paths can `iter_unpack` rows themselves, from byte CANDIDATES_HEADER_BYTES on."""
CANDIDATES_HEADER_BYTES = _CANDIDATES_HEADER.size


def pack_candidates(version: str, rows: Iterable[PackedCandidate], *, flags: int = 0) -> bytes:
    """One user's record. Raises ContractError on a number out of range or too many rows."""
    packed = [
        CANDIDATE_ROW.pack(
            r.item_number, r.score, r.source,
            NO_REASON if r.first_reason is None else r.first_reason,
            NO_REASON if r.second_reason is None else r.second_reason,
        )
        for r in rows
    ]  # fmt: skip
    return pack_candidates_header(version, len(packed), flags=flags) + b"".join(packed)


def pack_candidates_header(version: str, count: int, *, flags: int = 0) -> bytes:
    """The header of a record of `count` rows, for writers that pack the rows of many users at once."""
    if count > MAX_CANDIDATES:
        raise ContractError(f"at most {MAX_CANDIDATES} candidates fit a record, got {count}")
    days, manifest_hash = pack_version(version)
    return _CANDIDATES_HEADER.pack(FORMAT_V1, flags, count, days, manifest_hash)


def read_candidates_header(record: bytes) -> tuple[str, int, int]:
    """(version, flags, count). Raises ContractError when the record is not a whole v1 record."""
    if len(record) < CANDIDATES_HEADER_BYTES:
        raise ContractError(f"a candidates record has at least {CANDIDATES_HEADER_BYTES} bytes, got {len(record)}")
    form, flags, count, days, manifest_hash = _CANDIDATES_HEADER.unpack_from(record)
    if form != FORMAT_V1:
        raise ContractError(f"candidates record format {form}, expected {FORMAT_V1}")
    expected = CANDIDATES_HEADER_BYTES + count * CANDIDATE_ROW.size
    if len(record) != expected:
        raise ContractError(f"a candidates record of {count} rows has {expected} bytes, got {len(record)}")
    return unpack_version(days, manifest_hash), flags, count


def unpack_candidates(record: bytes, *, expected_version: str | None = None) -> tuple[list[PackedCandidate], int]:
    """(rows, flags). Raises MixedVersionError when the record belongs to another version than expected."""
    version, flags, _ = read_candidates_header(record)
    if expected_version is not None and version != expected_version:
        raise MixedVersionError(f"serving {expected_version}, but the record belongs to {version}")
    rows = [
        PackedCandidate(n, s, src, None if a == NO_REASON else a, None if b == NO_REASON else b)
        for n, s, src, a, b in CANDIDATE_ROW.iter_unpack(record[CANDIDATES_HEADER_BYTES:])
    ]
    return rows, flags


EVENT_TYPE_ORDER = (
    "view_item", "view_item_list", "select_item", "add_to_cart", "remove_from_cart", "add_to_wishlist", "view_cart",
    "begin_checkout", "purchase", "refund", "search", "impression", "click", "like", "dislike", "not_interested",
    "rating", "share", "watch", "page_view", "survey", "identify", "alias",
    "user_engagement",
)  # fmt: skip
"""Stored as an index: append, never reorder."""
_TYPE_INDEX = {name: i for i, name in enumerate(EVENT_TYPE_ORDER)}


def session_hash(session_id: str | None) -> int:
    """64 bits that stand for a session id in a record; 0 when the client named no session."""
    if not session_id:
        return 0
    return int.from_bytes(hashlib.blake2b(session_id.encode("utf-8"), digest_size=8).digest(), "little") or 1


class SessionEvent(NamedTuple):
    """One event on an item. `micros` is event time in microseconds since 1970 (UTC)."""

    micros: int
    event_type: str
    session_hash: int
    item_id: str


class ItemMark(NamedTuple):
    """An item and the event time of the newest event that marked it (bought, dismissed)."""

    micros: int
    item_id: str


@dataclass(slots=True)
class SessionState:
    """What the speed layer knows of one subject. Lists are oldest first; ties by item id."""

    events: list[SessionEvent] = field(default_factory=list)
    bought: list[ItemMark] = field(default_factory=list)
    dismissed: list[ItemMark] = field(default_factory=list)
    flags: int = 0
    consent_micros: int = 0


_SESSION_HEADER = struct.Struct("<BBqHHH")
_SESSION_EVENT = struct.Struct("<qBQH")
_ITEM_MARK = struct.Struct("<qH")


def pack_session(state: SessionState) -> bytes:
    """The record of one subject. Raises ContractError on an unknown event type."""
    parts = [
        _SESSION_HEADER.pack(
            FORMAT_V1,
            state.flags,
            state.consent_micros,
            len(state.events),
            len(state.bought),
            len(state.dismissed),
        )
    ]
    for event in state.events:
        if event.event_type not in _TYPE_INDEX:
            raise ContractError(f"event type {event.event_type!r} has no number in the session record")
        raw = event.item_id.encode("utf-8")
        parts += (
            _SESSION_EVENT.pack(event.micros, _TYPE_INDEX[event.event_type], event.session_hash, len(raw)),
            raw,
        )
    for marks in (state.bought, state.dismissed):
        parts += _pack_marks(marks)
    return b"".join(parts)


def _pack_marks(marks: Sequence[ItemMark]) -> list[bytes]:
    parts = []
    for mark in marks:
        raw = mark.item_id.encode("utf-8")
        parts += [_ITEM_MARK.pack(mark.micros, len(raw)), raw]
    return parts


def unpack_session(record: bytes) -> SessionState:
    """Inverse of `pack_session`. Raises ContractError when the record is not a whole v1 record."""
    try:
        form, flags, consent_micros, events, bought, dismissed = _SESSION_HEADER.unpack_from(record)
        if form != FORMAT_V1:
            raise ContractError(f"session record format {form}, expected {FORMAT_V1}")
        state = SessionState(flags=flags, consent_micros=consent_micros)
        at = _SESSION_HEADER.size
        for _ in range(events):
            micros, type_index, hashed, size = _SESSION_EVENT.unpack_from(record, at)
            at += _SESSION_EVENT.size
            state.events.append(
                SessionEvent(micros, EVENT_TYPE_ORDER[type_index], hashed, record[at : at + size].decode("utf-8"))
            )
            at += size
        for marks, count in ((state.bought, bought), (state.dismissed, dismissed)):
            for _ in range(count):
                micros, size = _ITEM_MARK.unpack_from(record, at)
                at += _ITEM_MARK.size
                marks.append(ItemMark(micros, record[at : at + size].decode("utf-8")))
                at += size
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ContractError(f"a session record of {len(record)} bytes is cut short or damaged") from error
    if at != len(record):
        raise ContractError(f"a session record ends at byte {at}, got {len(record)} bytes")
    return state
