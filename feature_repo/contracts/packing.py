"""The packed records in Redis `online`. Little-endian; the format number is the first byte.

Candidates record
    header  <BBHiI  format, flags, count, as_of (days since 1970-01-01), manifest hash (the 8 hex of the version)
    row     <IfBII  item number, score, source, first reason, second reason (item numbers, NO_REASON when absent)
    v2      behind the rows what each part of the night's model has of each item (`list_shares`)
    Rows are sorted by score, best first; ties by item number. Every record carries its version, so that an answer
    that would mix two versions is refused. v1 is written where nobody told shares, and read for ever.

The session record is in `session_record`; its names can be had from here too. Golden files of every format are kept in
tests/golden for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple, overload

from feature_repo.contracts.errors import ContractError, MixedVersionError
from feature_repo.contracts.list_shares import read_many_shares, shares_size
from feature_repo.contracts.publication import pack_version, unpack_version
from feature_repo.contracts.session_record import (
    EVENT_TYPE_ORDER as EVENT_TYPE_ORDER,
)
from feature_repo.contracts.session_record import (
    ItemMark as ItemMark,
)
from feature_repo.contracts.session_record import (
    SessionEvent as SessionEvent,
)
from feature_repo.contracts.session_record import (
    SessionState as SessionState,
)
from feature_repo.contracts.session_record import (
    pack_session as pack_session,
)
from feature_repo.contracts.session_record import (
    read_session as read_session,
)
from feature_repo.contracts.session_record import (
    session_hash as session_hash,
)
from feature_repo.contracts.session_record import (
    unpack_session as unpack_session,
)

FORMAT_V1, FORMAT_V2 = 1, 2
NO_REASON = 0xFFFFFFFF
MAX_CANDIDATES = 65_535

FLAG_PERSONALIZE_DENIED = 1
"""Both records: this person said no to personalization; only non-personal rungs may answer."""
FLAG_BOT = 2
"""Session record: this subject behaves like a bot today (`contracts.bots`); only non-personal rungs answer it."""


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
    CONTENT = 9
    # Made by serving itself, never by the night: numbers from 16 on.
    GIVEN = 16
    TRENDING = 17
    TOGETHER = 18
    REPURCHASE = 19
    NEW = 20
    CONTINUED = 21


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


def pack_candidates(version: str, rows: Iterable[PackedCandidate], *, flags: int = 0, shares: bytes = b"") -> bytes:
    """One user's record; `shares` as `list_shares.pack_shares` made them of these rows, or nothing. Raises
    ContractError on a number out of range, too many rows, or shares of another number of rows."""
    packed = [
        CANDIDATE_ROW.pack(
            r.item_number, r.score, r.source,
            NO_REASON if r.first_reason is None else r.first_reason,
            NO_REASON if r.second_reason is None else r.second_reason,
        )
        for r in rows
    ]  # fmt: skip
    return pack_candidates_header(version, len(packed), flags=flags, shares=shares) + b"".join(packed) + shares


def pack_candidates_header(version: str, count: int, *, flags: int = 0, shares: bytes = b"") -> bytes:
    """The header of a record of `count` rows, for writers that pack the rows of many users at once."""
    if count > MAX_CANDIDATES:
        raise ContractError(f"at most {MAX_CANDIDATES} candidates fit a record, got {count}")
    if shares and shares_size(shares, 0, count) != len(shares):
        raise ContractError(f"{len(shares)} bytes are no shares of {count} rows")
    days, manifest_hash = pack_version(version)
    return _CANDIDATES_HEADER.pack(FORMAT_V2 if shares else FORMAT_V1, flags, count, days, manifest_hash)


def read_candidates_header(record: bytes) -> tuple[str, int, int]:
    """(version, flags, count). Raises ContractError when the record is not whole, or of an unknown format."""
    if len(record) < CANDIDATES_HEADER_BYTES:
        raise ContractError(f"a candidates record has at least {CANDIDATES_HEADER_BYTES} bytes, got {len(record)}")
    form, flags, count, days, manifest_hash = _CANDIDATES_HEADER.unpack_from(record)
    if not FORMAT_V1 <= form <= FORMAT_V2:
        raise ContractError(f"candidates record format {form}, expected {FORMAT_V1} or {FORMAT_V2}")
    if (expected := _record_size(record, form, count)) != len(record):
        words = f"has {expected} bytes" if expected > 0 else "tells how many parts share them"
        raise ContractError(f"a candidates record of {count} rows {words}, got {len(record)}")
    return unpack_version(days, manifest_hash), flags, count


def _record_size(record: bytes, form: int, count: int) -> int:
    """How long a record of this header is; -1 of an unknown format, and where its shares cannot be read."""
    rows_end = CANDIDATES_HEADER_BYTES + count * CANDIDATE_ROW.size
    if form == FORMAT_V1:
        return rows_end
    more = shares_size(record, rows_end, count) if form == FORMAT_V2 else -1
    return rows_end + more if more > 0 else -1


CandidateRow = tuple[int, float, int, int, int]
"""Item number, score, source, two reasons (NO_REASON for none)."""


class CandidateRows(Sequence[CandidateRow]):
    """The rows of a record, best first, each unpacked when it is looked at: who wants the best ten pays for ten."""

    __slots__ = ("_bytes", "_count", "_record")

    def __init__(self, record: bytes, count: int) -> None:
        """`record`, `count`: a whole record, as `open_candidates` found it."""
        self._bytes = memoryview(record)[CANDIDATES_HEADER_BYTES : CANDIDATES_HEADER_BYTES + count * CANDIDATE_ROW.size]
        self._record = record
        self._count = count

    @property
    def packed(self) -> memoryview:
        """The rows as they lie in the record."""
        return self._bytes

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[CandidateRow]:
        return CANDIDATE_ROW.iter_unpack(self._bytes)

    @overload
    def __getitem__(self, at: int) -> CandidateRow: ...

    @overload
    def __getitem__(self, at: slice) -> list[CandidateRow]: ...

    def __getitem__(self, at: int | slice) -> CandidateRow | list[CandidateRow]:
        if isinstance(at, slice):
            return list(self)[at]
        if not -self._count <= at < self._count:
            raise IndexError(f"row {at} of {self._count}")
        return CANDIDATE_ROW.unpack_from(self._bytes, at % self._count * CANDIDATE_ROW.size)

    def shares_of(self, numbers: Container[int]) -> dict[int, list[tuple[str, float]]]:
        """Of those of these items that are listed: (part of the night's model, its share), in the order of the
        record's table; an empty list where the record does not tell, or nothing speaks for the item."""
        everybody = _numbers_of(self._count).unpack(self._bytes)
        listed = {number: at for at, number in enumerate(everybody) if number in numbers}
        if self._record[0] == FORMAT_V1:
            return {number: [] for number in listed}
        told = self._record[CANDIDATES_HEADER_BYTES + len(self._bytes) :]
        return dict(zip(listed, read_many_shares(told, listed.values()), strict=True))

    def of_items(self, numbers: Container[int]) -> list[CandidateRow]:
        """The rows of these items, best first."""
        data, size, row = self._bytes, CANDIDATE_ROW.size, CANDIDATE_ROW.unpack_from
        everybody = _numbers_of(self._count).unpack(data)
        return [row(data, at * size) for at, number in enumerate(everybody) if number in numbers]


@lru_cache(maxsize=1024)
def _numbers_of(count: int) -> struct.Struct:
    """The item numbers alone of so many rows."""
    return struct.Struct("<" + f"I{CANDIDATE_ROW.size - 4}x" * count)


@lru_cache(maxsize=16)
def _packed(version: str) -> tuple[int, int]:
    return pack_version(version)


def open_candidates(record: bytes, version: str) -> tuple[CandidateRows, int]:
    """(rows, flags) of a record of this version.

    Raises MixedVersionError when it belongs to another one, ContractError when it is not a whole record.
    """
    try:
        form, flags, count, days, manifest_hash = _CANDIDATES_HEADER.unpack_from(record)
    except struct.error:
        form, flags, count, days, manifest_hash = -1, 0, 0, 0, 0
    if len(record) != _record_size(record, form, count):
        read_candidates_header(record)  # says what is wrong
    if (days, manifest_hash) != _packed(version):
        raise MixedVersionError(f"serving {version}, but the record belongs to {read_candidates_header(record)[0]}")
    return CandidateRows(record, count), flags


def unpack_candidates(record: bytes, *, expected_version: str | None = None) -> tuple[list[PackedCandidate], int]:
    """(rows, flags). Raises MixedVersionError when the record belongs to another version than expected."""
    version, flags, count = read_candidates_header(record)
    if expected_version is not None and version != expected_version:
        raise MixedVersionError(f"serving {expected_version}, but the record belongs to {version}")
    rows = [
        PackedCandidate(n, s, src, None if a == NO_REASON else a, None if b == NO_REASON else b)
        for n, s, src, a, b in CandidateRows(record, count)
    ]
    return rows, flags
