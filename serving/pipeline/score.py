"""The session's say: its last events vote, through item neighbours, for what should come next."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from feature_repo.contracts.events import DISMISSING_TYPES, SESSION_VOTE_WEIGHTS
from feature_repo.contracts.packing import SessionEvent
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.identify import MICROS
from serving.pipeline.values import Tuning

NOBODY: frozenset[int] = frozenset()


class Ballot(NamedTuple):
    """One event's votes: its weight after decay, and the similarity of each neighbour of its item."""

    event: SessionEvent
    item_number: int
    weight: float
    similarities: Mapping[int, float]


def session_ballots(
    session: Sequence[SessionEvent], catalogue: Catalogue, tuning: Tuning, *, silenced: frozenset[int] = frozenset()
) -> list[Ballot]:
    """The ballots of the last `tuning.session_events` voting events of a session (oldest first), newest first.

    weight = SESSION_VOTE_WEIGHTS[type] x position_decay^position x 0.5^(age / half_life), where the newest voting event
    has position 0 and age is counted back from it, so a slate does not change while nothing happens. Events of other
    types, on items without neighbours, or on `silenced` items (dismissed ones) do not vote and take no position.
    """
    ballots: list[Ballot] = []
    newest = 0
    for event in reversed(session):
        type_weight = SESSION_VOTE_WEIGHTS.get(event.event_type)
        number = catalogue.numbers.get(event.item_id)
        if type_weight is None or number is None or number in silenced:
            continue
        similarities = catalogue.similarities_of(number)
        if not similarities:
            continue
        newest = newest or event.micros
        age_seconds = (newest - event.micros) / MICROS
        decay = tuning.position_decay ** len(ballots) * 0.5 ** (age_seconds / tuning.half_life_seconds)
        ballots.append(Ballot(event, number, type_weight * decay, similarities))
        if len(ballots) == tuning.session_events:
            break
    return ballots


def silenced_items(session: Sequence[SessionEvent], dismissed: Sequence[str], catalogue: Catalogue) -> frozenset[int]:
    """Numbers of the items that the person said no to: their neighbours get no vote from them."""
    said_no = [event[3] for event in session if event[1] in DISMISSING_TYPES]
    if not said_no and not dismissed:
        return NOBODY
    return frozenset(catalogue.numbers[item_id] for item_id in {*said_no, *dismissed} if item_id in catalogue.numbers)


def count_votes(ballots: Sequence[Ballot], refused: Callable[[Collection[int]], list[int]]) -> dict[int, float]:
    """Votes of the eligible items, in [0, 1]: the sum of weight x similarity, divided by the largest such sum.

    Only items with a positive sum are in it. Items that may not be shown neither appear nor set the scale.
    """
    if not ballots:
        return {}
    first = ballots[0].weight
    sums = {number: first * similarity for number, similarity in ballots[0].similarities.items()}
    for ballot in ballots[1:]:
        weight, so_far = ballot.weight, sums.get
        for number, similarity in ballot.similarities.items():
            sums[number] = so_far(number, 0.0) + weight * similarity
    for number in refused(sums):
        del sums[number]
    top = max(sums.values(), default=0.0)
    if not top > 0:
        return {}
    if min(sums.values()) > 0:
        return {number: total / top for number, total in sums.items()}
    return {number: total / top for number, total in sums.items() if total > 0}


def effective_weight(ballots: Sequence[Ballot], tuning: Tuning) -> float:
    """How loud this session is: session_weight x W / (W + 1), W = sum of its ballots' weights.

    One click speaks at half of the full weight, three at nearly three quarters; without a ballot it is 0.
    """
    total = sum([ballot.weight for ballot in ballots])
    return tuning.session_weight * total / (total + 1)


def score_candidates(
    bases: Mapping[int, float], votes: Mapping[int, float], weight: float, *, wanted: int | None = None
) -> Mapping[int, float]:
    """Scores: (base + weight x vote) / (1 + weight), of every candidate and of every voted item that was none.

    Of the voted items that were none, those are left out that cannot be among the best `wanted` (None: none is).
    Without votes the scores are the base scores themselves.
    """
    if not votes:
        return bases
    share, vote_of = 1 + weight, votes.get
    scores = {number: (base + weight * vote_of(number, 0.0)) / share for number, base in bases.items()}
    least = 0.0
    if wanted is not None and len(scores) >= wanted and weight > 0:
        best = sorted(filter(math.isfinite, scores.values()), reverse=True)
        if len(best) >= wanted:
            least = best[wanted - 1] * share / weight * (1 - 1e-9)  # rounding must not take out what ties
    for number, vote in votes.items():
        if vote >= least and number not in bases:
            scores[number] = weight * vote / share
    return scores
