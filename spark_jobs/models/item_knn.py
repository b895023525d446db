"""Item-kNN: people who preferred what you preferred also preferred these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import InteractionMatrix, Terms
from spark_jobs.models.matrix import dense_part, link_values
from spark_jobs.models.products import dense_product, term_count
from spark_jobs.models.ranking import top_items, two_best
from spark_jobs.models.threads import by_blocks, ranges

ITEMS_PER_BLOCK = 256
"""Rows of the item-item product made at a time. Raising it costs memory and gains little speed."""
SPARSE_BELOW = 4
"""A block of the product is searched entry by entry where it has fewer terms than one cell in so many."""

WEIGHTINGS = ("log", "tfidf", "bm25")
BM25_K1, BM25_B = 1.2, 0.75
"""Okapi's usual constants: how soon repetition saturates, how much the length of a history counts."""


class ItemKnn:
    """similarity(i, j) = x_i . x_j / (|x_i| |x_j| + shrinkage), x_i being the column of log(1 + preference) of item i.

    Each row of a person with many items counts less: it is divided by (number of items) ** (user_damping / 2) before
    the product. Each item keeps its `neighbours` most similar others, ties by number. A score is the sum over the
    history of log(1 + preference) * similarity.

    params
        neighbours     how many others each item keeps; more is smoother, larger and more popular
        shrinkage      pulls similarities that rest on few people towards 0
        user_damping   0: heavy users weigh as they come; 1: everyone's items weigh alike in sum of squares
        weighting      of the matrix that likeness is counted in: `log` as above; `tfidf` times log(people / people who
                       have the item); `bm25` Okapi's, which also counts less of a long history
    """

    name = "item_knn"
    source = int(Source.ITEM_KNN)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = {"weighting": "log", **params}
        weighting = self.params["weighting"]
        if weighting not in WEIGHTINGS:
            hint = nearest(str(weighting), WEIGHTINGS)
            raise DataError(f"item_knn weighting {weighting!r}, expected one of {WEIGHTINGS}{hint}", field="weighting")
        self._set_similarity(sparse.csr_matrix((0, 0), dtype=np.float32))

    def fit(self, matrix: InteractionMatrix) -> None:
        self.fit_items(matrix, np.arange(matrix.item_count))

    def fit_items(self, matrix: InteractionMatrix, item_numbers: NDArray[np.integer]) -> None:
        """As `fit`, for the neighbours of these items (ascending) alone; the others get none."""
        weighted = _weigh(matrix.preference, str(self.params["weighting"]))
        lengths = np.diff(weighted.indptr)
        damped = np.maximum(lengths, 1) ** (-float(self.params["user_damping"]) / 2)
        weighted.data *= np.repeat(damped, lengths).astype(np.float32)
        columns = weighted.tocsc()
        norms = np.sqrt(np.asarray(columns.multiply(columns).sum(axis=0), dtype=np.float64)).ravel()
        shrinkage, kept = float(self.params["shrinkage"]), int(self.params["neighbours"])
        transposed = columns.T.tocsr()  # the same arrays, read by item

        def nearest_of(block: slice) -> sparse.csr_matrix:
            asked = item_numbers[block]

            def likeness(values: NDArray[np.float32], rows: Any, columns: Any) -> NDArray[np.float32]:
                own = asked[rows]
                scale = norms[own] * norms[columns] + shrinkage
                return np.where(own == columns, 0.0, values / scale).astype(np.float32)

            return best_of_product(transposed[asked], weighted, likeness, kept)

        nothing = sparse.csr_matrix((0, matrix.item_count), dtype=np.float32)
        found = sparse.vstack(
            [nothing, *by_blocks(nearest_of, ranges(len(item_numbers), ITEMS_PER_BLOCK))], format="csr"
        )
        lengths = np.zeros(matrix.item_count, np.int64)
        lengths[item_numbers] = np.diff(found.indptr)
        parts = (found.data, found.indices, np.r_[0, np.cumsum(lengths)].astype(found.indptr.dtype))
        self._set_similarity(sparse.csr_matrix(parts, shape=(matrix.item_count, matrix.item_count)))

    def _set_similarity(self, similarity: sparse.csr_matrix) -> None:
        self.similarity = similarity
        self._by_history = similarity.T.tocsr()

    def score_block(
        self,
        histories: sparse.csr_matrix,
        rows: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Histories alone decide; `rows` changes nothing."""
        return dense_product(_strength(histories), self._by_history)

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """The kept neighbours of the item, at most `count`."""
        row = slice(self.similarity.indptr[item_number], self.similarity.indptr[item_number + 1])
        numbers, values = self.similarity.indices[row], self.similarity.data[row]
        order = np.lexsort((numbers, -values))[:count]
        return [(int(numbers[k]), float(values[k])) for k in order]

    def explain(
        self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]
    ) -> list[tuple[int | None, int | None]]:
        """The items of the history with the largest terms of the sum that is the score."""
        found = self.terms(history, row, item_numbers)
        return two_best(found.values, found.items)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:  # noqa: ARG002
        """log(1 + preference) * similarity; each row sums to its score."""
        strength = _strength(history)
        links = dense_part(self.similarity, np.asarray(item_numbers, dtype=np.int64), strength.indices)
        return Terms(strength.indices, links * strength.data.astype(np.float64))

    def pair_terms(
        self,
        past: NDArray[np.int32],
        preference: NDArray[np.float32],
        places: NDArray[np.int64],
        asked: NDArray[np.int32],
    ) -> NDArray[np.float64]:
        """As `block_reasons.PairTerms`."""
        links = link_values(self.similarity, asked, past[places])
        return links * np.log1p(preference).astype(np.float64)[places]

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


def _weigh(preference: sparse.csr_matrix, weighting: str) -> sparse.csr_matrix:
    """The matrix that likeness is counted in."""
    if weighting == "log":
        return _strength(preference)
    people = preference.shape[0]
    having = np.bincount(preference.indices, minlength=preference.shape[1])
    rarity = np.log((1.0 + people) / (1.0 + having))
    if weighting == "tfidf":
        weighted = _strength(preference)
    else:
        weighted = preference.astype(np.float32, copy=True)
        lengths = np.asarray(preference.sum(axis=1), dtype=np.float64).ravel()
        relative = lengths / max(lengths.mean(), 1e-12) if people else lengths
        norm = np.repeat(BM25_K1 * (1 - BM25_B + BM25_B * relative), np.diff(preference.indptr))
        weighted.data = (weighted.data * (BM25_K1 + 1) / (weighted.data + norm)).astype(np.float32)
    weighted.data *= rarity[weighted.indices].astype(np.float32)
    return weighted


Scale = Callable[[NDArray[np.float32], Any, Any], NDArray[np.float32]]
"""(values, their rows, their columns), arrays that broadcast to one shape -> what is to be kept of them."""


def best_of_product(left: sparse.csr_matrix, right: sparse.csr_matrix, scale: Scale, count: int) -> sparse.csr_matrix:
    """The `count` largest positive entries of each row of left @ right, scaled; of equal ones the lower columns stay.

    A product most of whose cells are filled is made, scaled and searched as a whole: the same entries, and nothing is
    sorted.
    """
    rows, columns = left.shape[0], right.shape[1]
    if term_count(left, right) * SPARSE_BELOW >= rows * columns:
        return best_of_cells(dense_product(left, right), scale, count)
    products = (left @ right).tocsr()
    products.sort_indices()
    own = np.repeat(np.arange(rows), np.diff(products.indptr))
    products.data = scale(products.data, own, products.indices)
    return keep_best(products, count)


def best_of_cells(cells: NDArray[np.float32], scale: Scale, count: int) -> sparse.csr_matrix:
    """The same of a dense block."""
    rows, columns = cells.shape
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing is, 0 / 0 is nothing too
        cells = scale(cells, np.arange(rows)[:, None], np.arange(columns)[None, :])
    numbers, values = top_items(cells, count)
    numbers = np.where(values > 0, numbers, columns)  # behind all that are kept
    order = np.argsort(numbers, axis=1)
    kept = np.take_along_axis(numbers, order, axis=1)
    is_kept = kept < columns
    indptr = np.r_[0, np.cumsum(is_kept.sum(axis=1))].astype(np.int32)
    found = np.take_along_axis(values, order, axis=1)[is_kept]
    return sparse.csr_matrix((found, kept[is_kept].astype(np.int32), indptr), shape=cells.shape)


def keep_best(similarity: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
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
