"""The search for a blend's weights: on a pool of each question's best items, by coordinates. The bench and the night
search by this one code; they differ in their questions, their grid and what they call good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spark_jobs.models.blend_model import FLOOR_PART, LAST_RESORT
from spark_jobs.models.ranking import mask_items, top_items

LEAST_GAIN = 0.0005
"""Relative: a blend that gains less than this by a part does without it."""


class Pool(NamedTuple):
    """The items that may reach a list, question by question.

    values    float32, questions x places x parts: standardised scores; -inf where there is no item, or none to offer
    is_right  questions x places: the item is an answer
    counts    how many answers each question has
    """

    values: NDArray[np.float32]
    is_right: NDArray[np.bool_]
    counts: NDArray[np.int64]

    def part(self, rows: NDArray[np.bool_]) -> Pool:
        return Pool(self.values[rows], self.is_right[rows], self.counts[rows])


def pool_block(
    scaled: Sequence[NDArray[np.float32]],
    relevant: sparse.csr_matrix,
    counts: NDArray[np.int64],
    *,
    seen: sparse.csr_matrix | None,
    depth: int,
) -> Pool:
    """The pool of a block of questions: the `depth` best items of every part. `scaled` has the standardised scores of
    each part, questions x items, and is changed: what is `seen` is never offered."""
    best = []
    for scores in scaled:
        if seen is not None:
            mask_items(scores, seen)
        best.append(top_items(scores, depth)[0])
    candidates = [np.unique(row) for row in np.concatenate(best, axis=1)]
    width = max(len(row) for row in candidates)
    values = np.full((len(candidates), width, len(scaled)), -np.inf, np.float32)
    is_right = np.zeros((len(candidates), width), bool)
    for row, items in enumerate(candidates):
        for column, scores in enumerate(scaled):
            values[row, : len(items), column] = scores[row, items]
        right = relevant.indices[relevant.indptr[row] : relevant.indptr[row + 1]]
        is_right[row, : len(items)] = np.isin(items, right)
    return Pool(values, is_right, counts)


def join_pools(blocks: Sequence[Pool]) -> Pool:
    """The pools of blocks of questions as one."""
    width = max(block.values.shape[1] for block in blocks)
    return Pool(
        np.concatenate([_widened(block.values, width, -np.inf) for block in blocks]),
        np.concatenate([_widened(block.is_right, width, False) for block in blocks]),
        np.concatenate([block.counts for block in blocks]),
    )


def weighted_scores(pool: Pool, weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """The weighted sum at each place; -inf where there is nothing to offer."""
    used = np.flatnonzero(weights)
    scores: NDArray[np.float32] = pool.values[:, :, used] @ weights[used].astype(np.float32)
    scores[np.isnan(scores)] = -np.inf
    return scores


def pool_hits(pool: Pool, scores: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """Whether each of the `k` best places by `scores` holds an answer."""
    numbers, values = top_items(scores, k)
    return np.take_along_axis(pool.is_right, numbers.astype(np.int64), axis=1) & np.isfinite(values)


def weight_floor(names: Sequence[str]) -> NDArray[np.float64]:
    """The least weight of each part: popularity is never quite without a say."""
    return np.array([LAST_RESORT if name == FLOOR_PART else 0.0 for name in names])


def search_weights(
    names: Sequence[str],
    start: NDArray[np.float64],
    target: Callable[[NDArray[np.float64]], float],
    *,
    grid: Sequence[float],
    may_go_on: Callable[[], bool] = lambda: True,
) -> tuple[NDArray[np.float64], float]:
    """(weights, their target): each part in turn takes the value of the grid that is best, round after round until none
    gains LEAST_GAIN, or `may_go_on` says no after a round. Ties go to the smaller weight."""
    floor = weight_floor(names)
    weights = np.maximum(start, floor)
    best = target(weights)
    improved, rounds = True, 0
    while improved and (rounds == 0 or may_go_on()):
        improved, rounds = False, rounds + 1
        for place in range(len(names)):
            results = []
            for value in (value for value in grid if value != weights[place]):
                tried = weights.copy()
                tried[place] = max(value, floor[place])
                results.append((target(tried), -value) if tried.any() else (0.0, 0.0))
            gained, value = max(results)
            if gained > best * (1 + LEAST_GAIN):
                weights[place] = max(-value, floor[place])
                best, improved = gained, True
    return weights, best


def _widened(array: NDArray[Any], width: int, fill: Any) -> NDArray[Any]:
    padding = [(0, 0), (0, width - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, padding, constant_values=fill)
