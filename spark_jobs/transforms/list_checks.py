"""Whether published lists hold only what may be published: asked of the rows themselves, against the bundle's items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.times import parse_timestamp

LARGEST_SCORE = 1e6
"""Of either sign. Models score by sums of weights or standardised scores; beyond this a float32 keeps no order."""
_EXAMPLES = 3


def list_faults(rows: pa.Table, items: Mapping[str, Sequence[Any]], *, cut_off: datetime) -> list[str]:
    """Every kind of fault with its count; empty when all is well.

    rows     gold.candidates of one as_of: user_id, item_numbers, scores
    items    the bundle's items.json: columns item_number, is_hidden, created_at, expire_time; empty: no item
    cut_off  aware UTC: the instant at which items must be there and not yet expired
    """
    users, numbers = rows["user_id"].combine_chunks(), rows["item_numbers"].combine_chunks()
    flat = np.asarray(numbers.flatten()).astype(np.int64)
    scores = np.asarray(rows["scores"].combine_chunks().flatten()).astype(np.float64)
    if len(scores) != len(flat):
        return [f"scores and item_numbers differ in length: {len(scores):,} and {len(flat):,}"]
    owners = np.asarray(pc.list_parent_indices(numbers)).astype(np.int64)
    faults = []

    def tell(what: str, wrong: NDArray[np.bool_]) -> None:
        if wrong.any():
            first = [users[int(row)].as_py() for row in np.unique(owners[wrong])[:_EXAMPLES]]
            faults.append(f"{what}: {int(wrong.sum()):,} places, first of {', '.join(map(repr, first))}")

    known, open_ = _open_items(items, cut_off, size=int(flat.max(initial=-1)) + 1)
    place = np.where(flat >= 0, flat, len(known) - 1)
    tell("item numbers that no item has", ~known[place])
    tell("items that are hidden, expired or not there yet", known[place] & ~open_[place])
    tell("scores that are no number of usual size", ~(np.abs(scores) <= LARGEST_SCORE))
    order = np.lexsort((flat, owners))
    repeated = np.zeros(len(flat), bool)
    repeated[order[1:]] = (flat[order][1:] == flat[order][:-1]) & (owners[order][1:] == owners[order][:-1])
    tell("items listed twice", repeated)
    if twice := len(users) - len(pc.unique(users)):
        faults.append(f"users with more than one list: {twice:,}")
    return faults


def _open_items(
    items: Mapping[str, Sequence[Any]], cut_off: datetime, *, size: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """By item number (one more than any, for those that are none): is it an item; may it be published."""
    found = items.get("item_number", ())
    size = max(size, 1 + max(found, default=-1)) + 1
    known, is_open = np.zeros(size, bool), np.zeros(size, bool)
    columns = (items.get(name, ()) for name in ("is_hidden", "created_at", "expire_time"))
    for number, is_hidden, created_at, expire_time in zip(found, *columns, strict=True):
        has_begun = created_at is None or parse_timestamp(created_at) < cut_off
        has_ended = expire_time is not None and parse_timestamp(expire_time) <= cut_off
        known[number] = True
        is_open[number] = not is_hidden and has_begun and not has_ended
    return known, is_open
