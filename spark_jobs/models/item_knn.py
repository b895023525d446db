"""Item-kNN: people who preferred what you preferred also preferred these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.ranking import two_best

ITEMS_PER_BLOCK = 256
"""Rows of the item-item product made at a time. Raising it costs memory and gains little speed."""


class ItemKnn:
    """similarity(i, j) = x_i . x_j / (|x_i| |x_j| + shrinkage), x_i being the column of log(1 + preference) of item i.

    Each row of a person with many items counts less: it is divided by (number of items) ** (user_damping / 2) before
    the product. Each item keeps its `neighbours` most similar others, ties by number. A score is the sum over the
    history of log(1 + preference) * similarity.

    params
        neighbours     how many others each item keeps; more is smoother, larger and more popular
        shrinkage      pulls similarities that rest on few people towards 0
        user_damping   0: heavy users weigh as they come; 1: everyone's items weigh alike in sum of squares
    """

    name = "item_knn"
    source = int(Source.ITEM_KNN)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self._set_similarity(sparse.csr_matrix((0, 0), dtype=np.float32))

    def fit(self, matrix: InteractionMatrix) -> None:
        weighted = _strength(matrix.preference)
        lengths = np.diff(weighted.indptr)
        damped = np.maximum(lengths, 1) ** (-float(self.params["user_damping"]) / 2)
        weighted.data *= np.repeat(damped, lengths).astype(np.float32)
        columns = weighted.tocsc()
        norms = np.sqrt(np.asarray(columns.multiply(columns).sum(axis=0), dtype=np.float64)).ravel()
        shrinkage, kept = float(self.params["shrinkage"]), int(self.params["neighbours"])
        transposed = columns.T.tocsr()  # the same arrays, read by item
        blocks = []
        for start in range(0, matrix.item_count, ITEMS_PER_BLOCK):
            stop = min(start + ITEMS_PER_BLOCK, matrix.item_count)
            products = (transposed[start:stop] @ weighted).tocsr()
            products.sort_indices()
            own = np.repeat(np.arange(start, stop), np.diff(products.indptr))
            scale = norms[own] * norms[products.indices] + shrinkage
            products.data = np.where(own == products.indices, 0.0, products.data / scale).astype(np.float32)
            blocks.append(_keep_best(products, kept))
        self._set_similarity(sparse.vstack(blocks, format="csr"))

    def _set_similarity(self, similarity: sparse.csr_matrix) -> None:
        self.similarity = similarity
        self._by_history = similarity.T.tocsr()

    def score_block(
        self,
        histories: sparse.csr_matrix,
        rows: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Histories alone decide; `rows` changes nothing."""
        return (_strength(histories) @ self._by_history).toarray().astype(np.float32, copy=False)

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """The kept neighbours of the item, at most `count`."""
        row = slice(self.similarity.indptr[item_number], self.similarity.indptr[item_number + 1])
        numbers, values = self.similarity.indices[row], self.similarity.data[row]
        order = np.lexsort((numbers, -values))[:count]
        return [(int(numbers[k]), float(values[k])) for k in order]

    def explain(
        self,
        history: sparse.csr_matrix,
        row: int,  # noqa: ARG002
        item_numbers: Sequence[int],
    ) -> list[tuple[int | None, int | None]]:
        """The items of the history with the largest terms of the sum that is the score."""
        strength = _strength(history)
        links = self.similarity[np.asarray(item_numbers, dtype=np.int64)][:, strength.indices].toarray()
        return [two_best(terms, strength.indices) for terms in links * strength.data]

    def save(self, folder: Path) -> None:
        arrays = {
            "similarity_data": self.similarity.data,
            "similarity_indices": self.similarity.indices,
            "similarity_indptr": self.similarity.indptr,
        }
        save_arrays(folder, model=self.name, params=self.params, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> ItemKnn:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        items = len(arrays["similarity_indptr"]) - 1
        parts = (arrays["similarity_data"], arrays["similarity_indices"], arrays["similarity_indptr"])
        model._set_similarity(sparse.csr_matrix(parts, shape=(items, items)))
        return model


def _strength(preference: sparse.csr_matrix) -> sparse.csr_matrix:
    """log(1 + preference): the tenth view says less than the first."""
    strength = preference.astype(np.float32, copy=True)
    np.log1p(strength.data, out=strength.data)
    return strength


def _keep_best(similarity: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """The `count` largest positive entries of each row; of equal ones the lower columns stay. Columns are sorted."""
    kept = similarity.data > 0
    for row in np.flatnonzero(np.diff(similarity.indptr) > count):
        part = slice(similarity.indptr[row], similarity.indptr[row + 1])
        values = similarity.data[part]
        threshold = -np.partition(-values, count - 1)[count - 1]
        above = values > threshold
        equal = np.flatnonzero(values == threshold)[: count - int(above.sum())]
        above[equal] = True
        kept[part] &= above
    ends = np.r_[0, np.cumsum(kept)][similarity.indptr]
    return sparse.csr_matrix((similarity.data[kept], similarity.indices[kept], ends), shape=similarity.shape)
