"""EASE: the best linear item-to-item model in closed form, for catalogues of up to some thousand items.

H. Steck: Embarrassingly shallow autoencoders for sparse data (2019); the dropout term is from
H. Steck: Autoencoders that don't overfit towards the identity (2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import InteractionMatrix, Terms
from spark_jobs.models.linear import LinearScores, strength, strengths

MOST_ITEMS = 20_000
"""Beyond it the dense item-to-item matrix (4 bytes a cell, twice while fitting) is too much for a night's machine."""


class Ease(LinearScores):
    """B minimises |X - X B|^2 + sum_j L_j |B_j|^2 with a diagonal of zeros: B_ij = -P_ij / P_jj, P = (X'X + L)^-1.

    X is log2(1 + preference), each person's row divided by (number of items) ** (user_damping / 2);
    L = regularization + dropout / (1 - dropout) * diag(X'X). Scores are X B.

    params
        regularization   ridge; raising it moves weight from rare to frequent items
        dropout          share of each person's items that the closed form pretends to have lost, 0 to below 1
        user_damping     0: heavy users weigh as they come; 1: everyone's items weigh alike in sum of squares
    """

    name = "ease"
    source = int(Source.ITEM_KNN)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        if not 0 <= float(self.params["dropout"]) < 1:
            raise DataError(f"ease dropout must be in [0, 1), got {self.params['dropout']}", field="dropout")
        self.weights: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    @property
    def item_count(self) -> int:  # type: ignore[override]
        return int(self.weights.shape[0])

    def fit(self, matrix: InteractionMatrix) -> None:
        """Learn. Raises DataError when the catalogue has more than MOST_ITEMS items, or X'X + L is singular."""
        count = matrix.item_count
        if count > MOST_ITEMS:
            raise DataError(f"ease is for at most {MOST_ITEMS:,} items, the catalogue has {count:,}", field="model")
        damped = strength(matrix.preference)
        lengths = np.diff(damped.indptr)
        powers = np.maximum(lengths, 1) ** (-float(self.params["user_damping"]) / 2)
        damped.data *= np.repeat(powers, lengths).astype(np.float32)
        gram = (damped.T @ damped).toarray().astype(np.float32 if count > 4_000 else np.float64)
        diagonal = np.diag_indices(count)
        dropout = float(self.params["dropout"])
        gram[diagonal] *= 1.0 + dropout / (1.0 - dropout)
        gram[diagonal] += float(self.params["regularization"])
        with threadpool_limits(1, "blas"):
            inverse = _inverse_of_positive(gram)
        own = inverse[diagonal].copy()
        inverse /= -own[None, :]
        inverse[diagonal] = 0.0
        self.weights = np.ascontiguousarray(inverse, dtype=np.float32)

    def score_block(
        self,
        histories: sparse.csr_matrix,
        rows: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Histories alone decide; `rows` changes nothing."""
        return np.asarray(strength(histories) @ self.weights, dtype=np.float32)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:  # noqa: ARG002
        """log2(1 + preference) * weight; each row sums to its score."""
        strong = strength(history)
        links = self.weights[np.ix_(strong.indices, np.asarray(item_numbers, dtype=np.int64))].T
        return Terms(strong.indices, links * strong.data.astype(np.float64))

    def pair_terms(
        self,
        past: NDArray[np.int32],
        preference: NDArray[np.float32],
        places: NDArray[np.int64],
        asked: NDArray[np.int32],
    ) -> NDArray[np.float64]:
        """As `block_reasons.PairTerms`."""
        return self.weights[past[places], asked] * strengths(preference).astype(np.float64)[places]

    def save(self, folder: Path) -> None:
        save_arrays(folder, model=self.name, params=self.params, arrays={"weights": self.weights})

    @classmethod
    def load(cls, folder: Path) -> Ease:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        model.weights = arrays["weights"]
        return model


def _inverse_of_positive(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """The inverse of a symmetric positive definite matrix, by Cholesky: half the work of a general inverse."""
    single = matrix.dtype == np.float32
    factor, failed = (lapack.spotrf if single else lapack.dpotrf)(matrix, lower=1, clean=0)
    if failed == 0:
        inverse, failed = (lapack.spotri if single else lapack.dpotri)(factor, lower=1)
    if failed:
        raise DataError("ease cannot solve its equations: raise regularization", field="regularization")
    lower = np.tril(inverse, -1)
    return lower + lower.T + np.diag(np.diagonal(inverse))
