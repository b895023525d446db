"""Popularity: what most subjects preferred lately. The baseline that every other model has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import InteractionMatrix, Terms


class Popularity:
    """Score of an item = sum over subjects of their preference, each subject's part capped.

    Recency lives in the matrix: its half-life makes this an exponentially decayed count.

    params
        subject_cap   the most one subject can add to one item, in event weights. Raising it lets a few eager
                      subjects decide; the default is one purchase.
    """

    name = "popularity"
    source = int(Source.POPULARITY)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self.item_scores: NDArray[np.float32] = np.empty(0, np.float32)

    def fit(self, matrix: InteractionMatrix) -> None:
        capped = np.minimum(matrix.preference.data.astype(np.float64), float(self.params["subject_cap"]))
        totals = np.bincount(matrix.preference.indices, weights=capped, minlength=matrix.item_count)
        self.item_scores = totals.astype(np.float32)

    def score_block(
        self,
        histories: sparse.csr_matrix,
        rows: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """The same scores for everybody, as a fresh array that the caller may change."""
        return np.tile(self.item_scores, (histories.shape[0], 1))

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:  # noqa: ARG002
        """Always empty: popularity knows no item-to-item likeness."""
        return []

    def explain(
        self,
        history: sparse.csr_matrix,  # noqa: ARG002
        row: int,  # noqa: ARG002
        item_numbers: Sequence[int],
    ) -> list[tuple[int | None, int | None]]:
        """No reasons: the history had no say."""
        return [(None, None)] * len(item_numbers)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:  # noqa: ARG002
        """None, for the same reason."""
        return Terms(np.empty(0, np.int32), np.zeros((len(item_numbers), 0)))

    def pair_terms(
        self,
        past: NDArray[np.int32],  # noqa: ARG002
        preference: NDArray[np.float32],  # noqa: ARG002
        places: NDArray[np.int64],  # noqa: ARG002
        asked: NDArray[np.int32],
    ) -> NDArray[np.float64]:
        """Zeros: the history has no say."""
        return np.zeros(len(asked))

    def save(self, folder: Path) -> None:
        save_arrays(folder, model=self.name, params=self.params, arrays={"item_scores": self.item_scores})

    @classmethod
    def load(cls, folder: Path) -> Popularity:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        model.item_scores = arrays["item_scores"]
        return model
