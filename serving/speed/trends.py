"""From the votes of subjects to the trend tables of one partition. Pure, but for the tables it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from feature_repo.contracts.session_record import Votes
from feature_repo.contracts.trend_record import WINDOWS

BUCKETS = {window.number: window.buckets for window in WINDOWS}


_NONE: Mapping[str, int] = {}


class VoteChange(NamedTuple):
    """One vote that comes into a bucket (counted since 1970), or leaves it."""

    window: int
    bucket: int
    item_id: str
    is_withdrawn: bool


def vote_changes(before: Mapping[tuple[int, int], Mapping[str, int]], after: Votes) -> list[VoteChange]:
    """What the tables must learn when a subject's votes change. A period that the subject has just forgotten keeps its
    votes: it is over."""
    changes: list[VoteChange] = []
    for (window, period), votes in after.items():
        held = before.get((window, period), _NONE)
        if held == votes:
            continue
        first = period * BUCKETS[window]
        for item_id, bucket in held.items():
            if votes.get(item_id) != bucket:
                changes.append(VoteChange(window, first + bucket, item_id, True))
        for item_id, bucket in votes.items():
            if held.get(item_id) != bucket:
                changes.append(VoteChange(window, first + bucket, item_id, False))
    return changes


def buckets_of(changes: Iterable[VoteChange]) -> list[tuple[int, int]]:
    """The (window, bucket) pairs they speak of, sorted."""
    return sorted({(change.window, change.bucket) for change in changes})
