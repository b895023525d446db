"""Which manner of the session model suits a shop: asked of its newest sessions, learned from those before."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spark_jobs.models.recipes import SESSION_MANNERS, default_sequence_recipe
from spark_jobs.models.sequences import Sequences
from spark_jobs.models.session_transitions import SessionTransitions

MODEL = "session_transitions"
K = 20
MOST_PLACES = 200_000
"""Of the newest sessions, what is learned from and asked: enough to tell manners apart, in seconds."""
ASKED_SHARE = 0.1
MOST_QUESTIONS = 2_000
LEAST_QUESTIONS = 50
"""Of fewer answers nothing follows: the first manner is taken."""
QUESTIONS_PER_BLOCK = 500
SEED = 20_240_229


class Choice(NamedTuple):
    """The recipe chosen, the name of its manner, and what each manner reached: {"hr", "mrr"} at K; empty when there was
    too little to ask."""

    recipe: Mapping[str, Any]
    manner: str
    reached: Mapping[str, Mapping[str, float]]
    questions: int


def session_recipe(manner: str) -> dict[str, Any]:
    """The recipe of `session_transitions` in one of SESSION_MANNERS."""
    recipe = default_sequence_recipe(MODEL)
    recipe["params"].update(SESSION_MANNERS[manner])
    return recipe


def choose_session_recipe(sequences: Sequences) -> Choice:
    """The manner with the largest sqrt(hit rate * reciprocal rank) at K, ties by order of SESSION_MANNERS.

    Each of the newest sessions (oldest first in `sequences`) is asked once, at a place drawn by a seed, for its next
    item, if that is one that the session did not have yet; all others are ranked, ties by number. Nothing of an asked
    session is learned.
    """
    newest = _newest(sequences, MOST_PLACES)
    first_asked = len(newest) - int(len(newest) * ASKED_SHARE)
    prefixes, targets = _questions(newest.block(np.arange(first_asked, len(newest))))
    names = list(SESSION_MANNERS)
    if len(targets) < LEAST_QUESTIONS:
        return Choice(session_recipe(names[0]), names[0], {}, len(targets))
    earlier = newest.block(np.arange(first_asked))
    reached = {name: _reached(session_recipe(name), earlier, prefixes, targets) for name in names}
    best = max(names, key=lambda name: sqrt(reached[name]["hr"] * reached[name]["mrr"]))
    return Choice(session_recipe(best), best, reached, len(targets))


def _newest(sequences: Sequences, places: int) -> Sequences:
    first = int(np.searchsorted(sequences.starts, len(sequences.items) - places))
    return sequences if first == 0 else sequences.block(np.arange(min(first, len(sequences)), len(sequences)))


def _questions(sequences: Sequences) -> tuple[Sequences, NDArray[np.int64]]:
    """(the sessions up to a place, the item at that place) of sessions that did not have the item before it."""
    rng = np.random.default_rng(SEED)
    lengths = np.diff(sequences.starts)
    rows = np.flatnonzero(lengths > 1)
    if len(rows) > MOST_QUESTIONS:
        rows = np.sort(rng.choice(rows, MOST_QUESTIONS, replace=False))
    cut = 1 + (rng.random(len(rows)) * (lengths[rows] - 1)).astype(np.int64)
    targets = sequences.items[sequences.starts[rows] + cut]
    whole = sequences.block(rows)
    owner = np.repeat(np.arange(len(rows)), np.diff(whole.starts))
    is_before = np.arange(len(whole.items)) - whole.starts[owner] < cut[owner]
    is_new = np.bincount(owner, weights=is_before & (whole.items == targets[owner]), minlength=len(rows)) == 0
    kept = is_before & is_new[owner]
    starts = np.r_[0, np.cumsum(cut[is_new])].astype(np.int64)
    prefixes = Sequences(
        starts, whole.items[kept], whole.weights[kept], whole.micros[kept], whole.item_count, whole.cut_off
    )
    return prefixes, targets[is_new].astype(np.int64)


def _reached(
    recipe: Mapping[str, Any], earlier: Sequences, prefixes: Sequences, targets: NDArray[np.int64]
) -> dict[str, float]:
    model = SessionTransitions(recipe["params"])
    model.fit(earlier)
    ranks = []
    for start in range(0, len(prefixes), QUESTIONS_PER_BLOCK):
        rows = np.arange(start, min(start + QUESTIONS_PER_BLOCK, len(prefixes)))
        asked = prefixes.block(rows)
        scores = model.score_sparsely(asked)
        for row, target in enumerate(targets[rows]):
            part = slice(scores.indptr[row], scores.indptr[row + 1])
            had = asked.items[asked.starts[row] : asked.starts[row + 1]]
            ranks.append(_rank(scores.indices[part], scores.data[part], target, had))
    rank = np.array(ranks)
    return {"hr": float((rank < K).mean()), "mrr": float(np.where(rank < K, 1 / (1 + rank), 0.0).mean())}


def _rank(numbers: NDArray[np.int32], values: NDArray[np.float64], target: int, had: NDArray[np.int32]) -> int:
    """How many items stand before the target, those left out that the session had; K when it has no score."""
    mine = values[numbers == target]
    if not len(mine):
        return K
    ahead = (values > mine[0]) | ((values == mine[0]) & (numbers < target))
    return int(np.count_nonzero(ahead & ~np.isin(numbers, had)))
