"""What matrix factorizations have in common once they are fitted: one vector per user and item, scores x_u . y_i."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spark_jobs.models.base import Terms
from spark_jobs.models.ranking import top_items, two_best

WARM_SHARE = 4
"""A fit that begins from the item vectors of the night before makes a quarter of the sweeps."""


def sweeps(iterations: int, start: NDArray[np.float32] | None) -> int:
    """How many sweeps a fit makes: all of them from nothing, fewer from a `start`."""
    return iterations if start is None else math.ceil(iterations / WARM_SHARE)


class FactorScores(ABC):
    """Mixin of models with `user_factors` (rows of the fitted matrix) and `item_factors`, both (count, factors)."""

    user_factors: NDArray[np.float32]
    item_factors: NDArray[np.float32]

    @abstractmethod
    def fold_in(self, histories: sparse.csr_matrix) -> NDArray[np.float32]:
        """The vectors of histories (CSR rows over all items), given the items; zeros for an empty history."""

    @abstractmethod
    def contributions(self, history: sparse.csr_matrix, item_numbers: Sequence[int]) -> NDArray[np.float64]:
        """The terms of the scores, shape (items asked, items of the history); each row sums to its score."""

    def score_block(self, histories: sparse.csr_matrix, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        if rows is None:
            rows = np.full(histories.shape[0], -1, np.int64)
        vectors = np.zeros((histories.shape[0], self.item_factors.shape[1]), np.float32)
        fitted = rows >= 0
        vectors[fitted] = self.user_factors[rows[fitted]]
        if not fitted.all():
            vectors[~fitted] = self.fold_in(histories[np.flatnonzero(~fitted)])
        scores: NDArray[np.float32] = vectors @ self.item_factors.T
        return scores

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """By the cosine of item vectors; items without interactions have none and are left out."""
        norms = np.linalg.norm(self.item_factors, axis=1)
        if norms[item_number] == 0:
            return []
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = self.item_factors @ self.item_factors[item_number] / (norms * norms[item_number])
        cosine[item_number] = -np.inf
        numbers, values = top_items(cosine[None, :], count)
        return [(int(n), float(v)) for n, v in zip(numbers[0], values[0], strict=True) if np.isfinite(v)]

    def explain(
        self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]
    ) -> list[tuple[int | None, int | None]]:
        """The items of the history with the largest terms of the score; the history decides, not `row`."""
        found = self.terms(history, row, item_numbers)
        return two_best(found.values, found.items)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:  # noqa: ARG002
        """`contributions`, with whose they are."""
        return Terms(history.indices, self.contributions(history, item_numbers))
