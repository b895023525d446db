"""What one user buys, packed, in one published version. Little-endian; the format is the first byte and in the key.

Purchase record v1
    header  <BBHiI  format=1, 0, count, as_of (days since 1970-01-01), manifest hash: as in a candidates record
    row     <IHIff  item number, visits, last visit (seconds since 1970), expected interval (days), worth
    A visit is one moment at which the user bought the item. `worth` is the sum over visits of 2^(-age / half-life) at
    the version's as_of; the half-life is in the manifest. Rows are sorted by worth, largest first; ties by number.

It holds facts and no score, because what is due changes by the hour. A golden file is kept in tests/golden for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from feature_repo.contracts.errors import ContractError, MixedVersionError
from feature_repo.contracts.publication import pack_version, unpack_version

FORMAT_V1 = 1
MAX_PURCHASES = 100
"""Items of one user; those of least worth are left out."""
MAX_VISITS = 65_535

_HEADER = struct.Struct("<BBHiI")
_ROW = struct.Struct("<IHIff")
HEADER_BYTES = _HEADER.size


class Purchase(NamedTuple):
    """One item that a user bought. `last_seconds`: seconds since 1970 (UTC) of the last visit."""

    item_number: int
    visits: int
    last_seconds: int
    expected_days: float
    worth: float


def pack_purchases(version: str, rows: Sequence[Purchase]) -> bytes:
    """One user's record. Raises ContractError on too many rows or a number out of range."""
    if len(rows) > MAX_PURCHASES:
        raise ContractError(f"at most {MAX_PURCHASES} purchases fit a record, got {len(rows)}")
    days, manifest_hash = pack_version(version)
    try:
        packed = [_ROW.pack(*row) for row in rows]
    except (struct.error, OverflowError) as error:
        raise ContractError(f"a purchase record cannot hold these rows: {error}") from error
    return _HEADER.pack(FORMAT_V1, 0, len(rows), days, manifest_hash) + b"".join(packed)


def unpack_purchases(record: bytes, *, expected_version: str | None = None) -> list[Purchase]:
    """Inverse of `pack_purchases`.

    Raises ContractError when the record is no whole one, MixedVersionError when it belongs to another version.
    """
    if len(record) < HEADER_BYTES:
        raise ContractError(f"a purchase record has at least {HEADER_BYTES} bytes, got {len(record)}")
    form, _, count, days, manifest_hash = _HEADER.unpack_from(record)
    if form != FORMAT_V1:
        raise ContractError(f"purchase record format {form}, expected {FORMAT_V1}")
    expected = HEADER_BYTES + count * _ROW.size
    if len(record) != expected:
        raise ContractError(f"a purchase record of {count} rows has {expected} bytes, got {len(record)}")
    version = unpack_version(days, manifest_hash)
    if expected_version is not None and version != expected_version:
        raise MixedVersionError(f"serving {expected_version}, but the record belongs to {version}")
    return [Purchase(*row) for row in _ROW.iter_unpack(record[HEADER_BYTES:])]
