"""From the votes of subjects to the trend tables of one partition. Pure, but for the tables it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from feature_repo.contracts.session_record import TrendVote
from feature_repo.contracts.trend_record import WINDOWS

BUCKETS = {window.number: window.buckets for window in WINDOWS}


class VoteChange(NamedTuple):
    """One vote that comes into a bucket (counted since 1970), or leaves it."""

    window: int
    bucket: int
    item_id: str
    is_withdrawn: bool


def vote_changes(before: Sequence[TrendVote], after: Sequence[TrendVote]) -> list[VoteChange]:
    """What the tables must learn when a subject's votes change. A period that the subject has just forgotten keeps its
    votes: it is over."""
    if before == after:
        return []
    periods = {(vote.window, vote.period) for vote in after}
    old, new = set(before), set(after)
    withdrawn = {vote for vote in old - new if (vote.window, vote.period) in periods}
    return [
        *(_change(vote, is_withdrawn=True) for vote in sorted(withdrawn)),
        *(_change(vote, is_withdrawn=False) for vote in sorted(new - old)),
    ]


def buckets_of(changes: Iterable[VoteChange]) -> list[tuple[int, int]]:
    """The (window, bucket) pairs they speak of, sorted."""
    return sorted({(change.window, change.bucket) for change in changes})


def _change(vote: TrendVote, *, is_withdrawn: bool) -> VoteChange:
    return VoteChange(vote.window, vote.period * BUCKETS[vote.window] + vote.bucket, vote.item_id, is_withdrawn)
