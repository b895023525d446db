"""What the decision of a list says of its inputs, so that the list can be made again: votes, interests, marks.

Votes are of many people and expire; a person's record goes on. So the votes and interests that were used are written
down, and of the record how much of it there was: what is kept later shows by that whether it is all that was there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from feature_repo.contracts.packing import SessionState
from serving.pipeline.trending import Scope, VotedRows

MOST_LOGGED = 200
"""Voted items of one answer that its decision names. An answer that looked at more is not made again."""
TREND, INTERESTS, KNOWN = "trend", "interests", "known"
ABOUT_PERSON = frozenset({INTERESTS, KNOWN})
"""These are of a person: they are logged where that allows storing."""


def trend_inputs(voted: VotedRows, error: int, shown: Collection[int], *, needs_all: bool) -> dict[str, Any]:
    """The votes that an answer goes by: whose they are, and its voted items as far as it shows them.

    shown      the numbers of the items that are there because they trend
    needs_all  what is not shown may have decided too: a placement puts the candidates in order

    Rows are (item number, votes), most first, up to the last that is shown; the first is always there, because scores
    are shares of its votes. `rows` is null when there are more than MOST_LOGGED of them.
    """
    end = len(voted.rows) if needs_all else min(1, len(voted.rows))
    left = set() if needs_all else set(shown)
    for at, (number, _) in enumerate(voted.rows, start=1):
        if not left:
            break
        if number in left:
            left.remove(number)
            end = at
    return {
        "scope": voted.scope.value,
        "region_votes": voted.region_votes,
        "error": error,
        "rows": voted.rows[:end] if end <= MOST_LOGGED else None,
    }


def logged_votes(trend: Mapping[str, Any] | None) -> VotedRows | None:
    """Inverse of `trend_inputs`; None when the rows are not kept."""
    if trend is None or trend["rows"] is None:
        return None
    rows = [(number, votes) for number, votes in trend["rows"]]
    return VotedRows(rows, Scope(trend["scope"]), trend["region_votes"])


def marks_of(state: SessionState) -> dict[str, int]:
    """How much of a record takes items out of a list."""
    return {"bought": len(state.bought), "dismissed": len(state.dismissed)}


def record_of(state: SessionState) -> dict[str, int]:
    """How much of a record a list of the person's own items is made of."""
    return {**marks_of(state), "events": len(state.events), "cart": len(state.cart)}
