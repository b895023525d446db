"""From the votes of subjects to what the trend tables must learn. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from feature_repo.contracts.session_record import SessionState
from feature_repo.contracts.trend_record import WINDOWS

BUCKETS = {window.number: window.buckets for window in WINDOWS}
_WINDOW = {window.number: window for window in WINDOWS}


def expires_at(window: int, bucket: int) -> int:
    """Unix time at which no reader looks at the bucket any more."""
    return _WINDOW[window].expires_at(bucket)


_NONE: Mapping[str, int] = {}
_new = tuple.__new__
"""What a NamedTuple's own constructor does, without the call."""


class Stand(NamedTuple):
    """For what a subject speaks: `SessionState.votes`, and `SessionState.regions` of those that went to one."""

    votes: Mapping[tuple[int, int], Mapping[str, int]]
    regions: Mapping[tuple[int, int, str], str]


class VoteChange(NamedTuple):
    """One vote that comes into a bucket (counted since 1970), or leaves it: in the table of a region, or ("") in that
    of all regions."""

    window: int
    bucket: int
    region: str
    item_id: str
    is_withdrawn: bool


def stand_of(state: SessionState) -> Stand:
    """A copy that stays when the state changes."""
    return Stand({period: votes.copy() for period, votes in state.votes.items()}, state.regions.copy())


def vote_changes(before: Stand, after: Stand, *, newest: int = 0) -> list[VoteChange]:
    """What the tables must learn when a subject's votes change: a vote that moves leaves the region to which it went. A
    period that the subject has just forgotten keeps its votes: it is over. Without changes of buckets at which nobody
    looks any more at `newest` (Unix time)."""
    if before.regions or after.regions:
        changes = _changes_of_regions(before, after)
    else:  # as nearly always
        changes = _changes_of_all(before.votes, after.votes)
    return [change for change in changes if expires_at(change.window, change.bucket) > newest]


def _changes_of_regions(before: Stand, after: Stand) -> list[VoteChange]:
    changes: list[VoteChange] = []
    is_in_place = before.regions == after.regions
    for (window, period), votes in after.votes.items():
        held = before.votes.get((window, period), _NONE)
        if held == votes and is_in_place:
            continue
        first = period * BUCKETS[window]
        for one, other, is_withdrawn in ((held, votes, True), (votes, held, False)):
            regions, others = (before.regions, after.regions) if is_withdrawn else (after.regions, before.regions)
            for item_id, bucket in one.items():
                has_moved = other.get(item_id) != bucket
                if has_moved:
                    changes.append(VoteChange(window, first + bucket, "", item_id, is_withdrawn))
                region = regions.get((window, period, item_id)) if regions else None
                if region and (has_moved or others.get((window, period, item_id)) != region):
                    changes.append(VoteChange(window, first + bucket, region, item_id, is_withdrawn))
    return changes


def _changes_of_all(
    before: Mapping[tuple[int, int], Mapping[str, int]], after: Mapping[tuple[int, int], Mapping[str, int]]
) -> list[VoteChange]:
    """The same where no vote goes to a region."""
    changes: list[VoteChange] = []
    for (window, period), votes in after.items():
        held = before.get((window, period), _NONE)
        if held == votes:
            continue
        first = period * BUCKETS[window]
        for item_id, bucket in held.items():
            if votes.get(item_id) != bucket:
                changes.append(_new(VoteChange, (window, first + bucket, "", item_id, True)))
        for item_id, bucket in votes.items():
            if held.get(item_id) != bucket:
                changes.append(_new(VoteChange, (window, first + bucket, "", item_id, False)))
    return changes
