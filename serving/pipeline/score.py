"""The session's say: its last events vote for what should come next, by the session index or by item neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from feature_repo.contracts.events import DISMISSING_TYPES, SESSION_VOTE_WEIGHTS
from feature_repo.contracts.packing import SessionEvent
from feature_repo.contracts.session_blend import session_loudness
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.identify import MICROS
from serving.pipeline.session_index import SessionIndex
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
    """The ballots of a session (oldest event first), newest first: by the version's session index if it has one
    (`_index_ballots`), else those of its last `tuning.session_events` voting events by the items' neighbours.

    weight = SESSION_VOTE_WEIGHTS[type] x position_decay^position x 0.5^(age / half_life), where the newest voting event
    has position 0 and age is counted back from it, so a slate does not change while nothing happens. Events of other
    types, on items without neighbours, or on `silenced` items (dismissed ones) do not vote and take no position.
    """
    if catalogue.session_index is not None:
        return _index_ballots(session, catalogue, catalogue.session_index, tuning, silenced)
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


def _index_ballots(
    session: Sequence[SessionEvent], catalogue: Catalogue, index: SessionIndex, tuning: Tuning, silenced: frozenset[int]
) -> list[Ballot]:
    """weight = SESSION_VOTE_WEIGHTS[type] x index.loudness[step] x 0.5^(age / half_life).

    Steps are counted from the newest voting event as the model counts places: consecutive events on one item are one
    place, whose loudest event speaks; an item that comes again takes a place and speaks from its latest one alone.
    Events of other types, on items that the version does not know, or on `silenced` ones take no place.
    """
    ballots: list[Ballot] = []
    heard: set[int] = set()
    newest, step, latest, is_repeat = 0, -1, -1, False
    for event in reversed(session):
        type_weight = SESSION_VOTE_WEIGHTS.get(event.event_type)
        number = catalogue.numbers.get(event.item_id)
        if type_weight is None or number is None or number in silenced:
            continue
        newest = newest or event.micros
        if number != latest:
            step, latest, is_repeat = step + 1, number, number in heard
            if step == len(index.reads):
                break
            heard.add(number)
        if is_repeat:
            continue
        age_seconds = (newest - event.micros) / MICROS
        weight = type_weight * index.loudness[step] * 0.5 ** (age_seconds / tuning.half_life_seconds)
        if ballots and ballots[-1].item_number == number:
            if weight > ballots[-1].weight:
                ballots[-1] = ballots[-1]._replace(event=event, weight=weight)
        elif row := index.row(number, index.reads[step]):
            ballots.append(Ballot(event, number, weight, row))
    return ballots


def silenced_items(session: Sequence[SessionEvent], dismissed: Sequence[str], catalogue: Catalogue) -> frozenset[int]:
    """Numbers of the items that the person said no to: their neighbours get no vote from them."""
    said_no = [event[3] for event in session if event[1] in DISMISSING_TYPES]
    if not said_no and not dismissed:
        return NOBODY
    return frozenset(catalogue.numbers[item_id] for item_id in {*said_no, *dismissed} if item_id in catalogue.numbers)


def count_votes(
    ballots: Sequence[Ballot],
    refused: Callable[[Mapping[int, float]], list[int]],
    *,
    wanted: int | None = None,
    weight: float = 0.0,
) -> dict[int, float]:
    """Votes of the eligible items, in [0, 1]: the sum of weight x similarity, divided by the largest such sum.

    Only items with a positive sum are in it. Items that may not be shown neither appear nor set the scale.
    With `wanted`, those are left out that cannot be among so many best by base + `weight` x vote, whatever their bases
    in [0, 1] are.
    """
    if not ballots:
        return {}
    first = ballots[0].weight
    sums = {number: first * similarity for number, similarity in ballots[0].similarities.items()}
    for ballot in ballots[1:]:
        loudness = ballot.weight
        for number, similarity in ballot.similarities.items():
            if number in sums:
                sums[number] += loudness * similarity
            else:
                sums[number] = loudness * similarity
    for number in refused(sums):
        del sums[number]
    if wanted is not None and len(sums) > wanted and weight > 0:
        ranked = sorted(sums.values(), reverse=True)
        top = ranked[0]
        least = ranked[wanted - 1] * (1 - 1e-9) - top / weight  # rounding must not take out what ties
        if least > 0:
            return {number: total / top for number, total in sums.items() if total >= least}
    else:
        top = max(sums.values(), default=0.0)
    if not top > 0:
        return {}
    if min(sums.values()) > 0:
        return {number: total / top for number, total in sums.items()}
    return {number: total / top for number, total in sums.items() if total > 0}


def effective_weight(ballots: Sequence[Ballot], tuning: Tuning, *, beside_own_list: bool = True) -> float:
    """How loud this session is: `session_loudness` of its ballots' weights. Beside lists that are not the person's own
    the most is session_weight_alone instead of session_weight."""
    total = sum([ballot.weight for ballot in ballots])
    most = tuning.session_weight if beside_own_list else tuning.session_weight_alone
    return session_loudness(total, most)


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
