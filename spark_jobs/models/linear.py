"""What follows from a score that is linear in the history: likeness of items, and reasons, without further state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spark_jobs.models.base import Terms
from spark_jobs.models.ranking import top_items, two_best

ScoreRows = Callable[[sparse.csr_matrix], NDArray[np.float32]]

TERMS_PER_BLOCK = 4_000_000
"""Cells (items of a history x items of the catalogue) that `linear_terms` holds at a time."""


class LinearScores(ABC):
    """Mixin of models whose `score_block(h)` is linear in h: `similar` and `explain` are the terms of that sum."""

    item_count: int

    @abstractmethod
    def score_block(self, histories: sparse.csr_matrix, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """As in `Model`."""

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """The items that a history of this one item alone scores best, itself and what it says nothing of left out."""
        unit = sparse.csr_matrix(([1.0], ([0], [item_number])), shape=(1, self.item_count), dtype=np.float32)
        scores = self.score_block(unit)
        scores[0, item_number] = -np.inf
        scores[scores <= 0] = -np.inf
        numbers, values = top_items(scores, count)
        return [(int(n), float(v)) for n, v in zip(numbers[0], values[0], strict=True) if np.isfinite(v)]

    def explain(
        self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]
    ) -> list[tuple[int | None, int | None]]:
        """The items of the history with the largest terms of the sum that is the score."""
        found = self.terms(history, row, item_numbers)
        return two_best(found.values, found.items)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:  # noqa: ARG002
        """By scoring each item of the history alone; a model that knows a shorter way takes it."""
        return Terms(history.indices, linear_terms(self.score_block, history, item_numbers))


def linear_terms(score: ScoreRows, history: sparse.csr_matrix, item_numbers: Sequence[int]) -> NDArray[np.float64]:
    """The term of each item of the history in the score of each asked item, shape (items asked, items of the history).

    Each row of a linear model sums to its score.
    """
    asked = np.asarray(item_numbers, dtype=np.int64)
    terms = np.zeros((len(asked), history.nnz))
    step = max(1, TERMS_PER_BLOCK // max(1, history.shape[1]))
    for start in range(0, history.nnz, step):
        stop = min(start + step, history.nnz)
        alone = sparse.csr_matrix(
            (history.data[start:stop], history.indices[start:stop], np.arange(stop - start + 1)),
            shape=(stop - start, history.shape[1]),
        )
        terms[:, start:stop] = score(alone)[:, asked].T
    return terms


def strength(preference: sparse.csr_matrix) -> sparse.csr_matrix:
    """log2(1 + preference): 1 for a preference of 1, and the tenth view says less than the first."""
    found = preference.astype(np.float32, copy=True)
    found.data = strengths(found.data)
    return found


def strengths(preference: NDArray[np.float32]) -> NDArray[np.float32]:
    """`strength` of single preferences."""
    found: NDArray[np.float32] = (np.log1p(preference) / np.log(2.0)).astype(np.float32)
    return found
