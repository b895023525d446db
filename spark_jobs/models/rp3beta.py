"""RP3beta: a walk of three steps from a person over their items and those items' people, popular ends damped.

B. Paudel, F. Christoffel, C. Newell, A. Bernstein: Updatable, accurate, diverse, and scalable recommendations for
interactive applications (2016).
"""

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
from spark_jobs.models.item_knn import ITEMS_PER_BLOCK, keep_best
from spark_jobs.models.linear import LinearScores, strength
from spark_jobs.models.matrix import dense_part


class Rp3Beta(LinearScores):
    """walk(i -> j) = sum over people u of p(i -> u)^alpha p(u -> j)^alpha / degree(j)^beta; score = history . walk.

    p(i -> u) and p(u -> j) are the shares of log2(1 + preference) of the item and of the person; degree(j) is how many
    people have j. Each item keeps its `neighbours` best ends, ties by number.

    params
        alpha        below 1 evens out the probabilities of the steps
        beta         how much a popular end is damped; 0 is P3alpha
        neighbours   ends kept for each item; more is smoother and larger
    """

    name = "rp3beta"
    source = int(Source.ITEM_KNN)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self.walk = sparse.csr_matrix((0, 0), dtype=np.float32)

    @property
    def item_count(self) -> int:  # type: ignore[override]
        return int(self.walk.shape[0])

    def fit(self, matrix: InteractionMatrix) -> None:
        weighted = strength(matrix.preference)
        alpha, beta, kept = (
            float(self.params["alpha"]),
            float(self.params["beta"]),
            int(self.params["neighbours"]),
        )
        to_items = _shares(weighted).power(alpha)
        to_people = _shares(weighted.T.tocsr()).power(alpha)
        degree = np.bincount(weighted.indices, minlength=matrix.item_count)
        damped = (np.maximum(degree, 1.0) ** -beta).astype(np.float32)
        blocks = []
        for start in range(0, matrix.item_count, ITEMS_PER_BLOCK):
            stop = min(start + ITEMS_PER_BLOCK, matrix.item_count)
            ends = (to_people[start:stop] @ to_items).tocsr()
            ends.sort_indices()
            own = np.repeat(np.arange(start, stop), np.diff(ends.indptr))
            ends.data = np.where(own == ends.indices, 0.0, ends.data * damped[ends.indices]).astype(np.float32)
            blocks.append(keep_best(ends, kept))
        self.walk = sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix((0, 0), dtype=np.float32)

    def score_block(
        self,
        histories: sparse.csr_matrix,
        rows: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Histories alone decide; `rows` changes nothing."""
        return (strength(histories) @ self.walk).toarray().astype(np.float32, copy=False)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:  # noqa: ARG002
        """log2(1 + preference) * walk; each row sums to its score."""
        strong = strength(history)
        links = dense_part(self.walk, strong.indices, np.asarray(item_numbers, dtype=np.int64)).T
        return Terms(strong.indices, links * strong.data.astype(np.float64))

    def save(self, folder: Path) -> None:
        arrays = {"walk_data": self.walk.data, "walk_indices": self.walk.indices, "walk_indptr": self.walk.indptr}
        save_arrays(folder, model=self.name, params=self.params, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> Rp3Beta:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        items = len(arrays["walk_indptr"]) - 1
        parts = (arrays["walk_data"], arrays["walk_indices"], arrays["walk_indptr"])
        model.walk = sparse.csr_matrix(parts, shape=(items, items))
        return model


def _shares(weighted: sparse.csr_matrix) -> sparse.csr_matrix:
    """Each row divided by its sum; an empty row stays empty."""
    totals = np.asarray(weighted.sum(axis=1), dtype=np.float64).ravel()
    scaled = weighted.astype(np.float32, copy=True)
    scaled.data = (scaled.data / np.repeat(np.where(totals > 0, totals, 1.0), np.diff(weighted.indptr))).astype(
        np.float32
    )
    return scaled
