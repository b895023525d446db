"""What may be wrong with packed lists as they lie in a store: asked of the bytes, of many records at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.packing import CANDIDATE_ROW, CANDIDATES_HEADER_BYTES, read_candidates_header

PACKED_ROW = np.dtype([("item_number", "<u4"), ("score", "<f4"), ("source", "u1"), ("first", "<u4"), ("second", "<u4")])
"""A row of a packed record (`packing.CANDIDATE_ROW`)."""
assert PACKED_ROW.itemsize == CANDIDATE_ROW.size


def row_count(record: bytes) -> int:
    """How many rows a record says it has; 0 of a damaged one."""
    try:
        return read_candidates_header(record)[2]
    except ContractError:
        return 0


def record_faults(version: str, records: Sequence[bytes | None]) -> list[str | None]:
    """What is wrong with each record of a version, or None; of several faults the first of these: no record (None), a
    damaged one, one of another version, a score that is not finite, rows out of order (score downwards, then item
    number upwards), an item listed twice."""
    found = [_fault_of_header(version, record) for record in records]
    whole = [n for n, fault in enumerate(found) if fault is None]
    bodies = [_rows_of(records[n]) for n in whole]  # type: ignore[arg-type]
    rows = np.frombuffer(b"".join(bodies), PACKED_ROW)
    owners = np.repeat(np.arange(len(whole)), [len(body) // PACKED_ROW.itemsize for body in bodies])
    for words, owner in (
        ("item listed twice", _listing_twice(rows, owners)),
        ("rows out of order", _out_of_order(rows, owners)),
        ("score not finite", owners[~np.isfinite(rows["score"])]),
    ):
        for place in np.unique(owner).tolist():
            found[whole[place]] = words
    return found


def _rows_of(record: bytes) -> bytes:
    """The rows of a whole record, without the shares behind them."""
    count = int.from_bytes(record[2:4], "little")
    return record[CANDIDATES_HEADER_BYTES : CANDIDATES_HEADER_BYTES + count * CANDIDATE_ROW.size]


def _fault_of_header(version: str, record: bytes | None) -> str | None:
    if record is None:
        return "no record"
    try:
        of_version, _, _ = read_candidates_header(record)
    except ContractError:
        return "damaged record"
    return None if of_version == version else f"record of version {of_version}"


def _listing_twice(rows: NDArray[np.void], owners: NDArray[np.int64]) -> NDArray[np.int64]:
    """The owners, some of them more than once, of an item that they list more than once."""
    listed = np.sort(owners << 32 | rows["item_number"])
    return np.asarray(listed[1:][listed[1:] == listed[:-1]] >> 32)


def _out_of_order(rows: NDArray[np.void], owners: NDArray[np.int64]) -> NDArray[np.int64]:
    above, below = rows[:-1], rows[1:]
    is_tie = above["score"] == below["score"]
    is_wrong = (above["score"] < below["score"]) | (is_tie & (above["item_number"] > below["item_number"]))
    return np.asarray(owners[1:][is_wrong & (owners[1:] == owners[:-1])])
