"""Graph filters: GF-CF and BSPM, which smooth a history over the graph of people and items without any training.

Y. Shen et al.: How powerful is graph convolution for recommendation? (GF-CF, 2021);
J. Choi et al.: Blurring-sharpening process models for collaborative filtering (BSPM, 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import InteractionMatrix, Terms
from spark_jobs.models.item_pairs import Block, as_columns, item_pairs, times_pairs
from spark_jobs.models.linear import LinearScores, strength
from spark_jobs.models.spectral import leading_vectors, right_singular_vectors

CELLS_PER_BLOCK = 16_000_000
"""Cells of (items + people) x histories that scoring holds at a time: fewer histories at once on a larger graph."""
COLUMNS_OF_PAIRS = 32
"""Histories that are multiplied by P at a time: their scores of some ten thousand items stay near the processor."""
ORDER = 4
"""Of the Runge-Kutta step: the terms of the series."""
NEGLIGIBLE = 0.02
"""A term of the series is left out where all that it could still change is this share."""


class GraphFilter(LinearScores):
    """score = (h P + low_pass h D^-1/2 V V' D^1/2) f(P).

    N = Du^-1/2 X Di^-1/2 with X = log2(1 + preference) and D its row and column sums, P = N'N, V the leading right
    singular vectors of N, D = Di. f sharpens what the sum has blurred: one Runge-Kutta step of length `sharpening`
    along ds/dt = -s P, that is f(p) = 1 - tp + (tp)^2/2 - (tp)^3/6 + (tp)^4/24. `sharpening` 0 is GF-CF, else BSPM.

    P is built only where histories are short (`item_pairs`); elsewhere N' (N h) costs as much as the interactions are
    many. Within the span of V the series is summed by its singular values, outside by as many products as matter there.

    params
        factors        width of V, the ideal low-pass filter
        low_pass       its weight; raising it trades detail for what everybody's taste has in common
        sharpening     length of the step; too long a step makes noise of it
        popular_power  scores are divided by (column sum of the item) ** this
        seed           of the singular vectors
    """

    name = "graph_filter"
    source = int(Source.ITEM_KNN)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self._set(sparse.csr_matrix((0, 0), dtype=np.float32), np.zeros(0), np.zeros((0, 0)), np.zeros(0))

    def _set(
        self,
        graph: sparse.csr_matrix,
        item_degrees: NDArray[np.floating],
        vectors: NDArray[np.floating],
        values: NDArray[np.floating],
    ) -> None:
        self.graph = graph
        self._by_item = graph.T.tocsr()
        self.item_degrees = item_degrees.astype(np.float32)
        self.vectors, self.values = vectors.astype(np.float32), values.astype(np.float32)
        self._mixed: NDArray[np.float64] | None = None
        self._pairs: sparse.csr_matrix | None = None
        self._tails: NDArray[np.float32] | None = None

    @property
    def item_count(self) -> int:  # type: ignore[override]
        return int(self.graph.shape[1])

    def fit(self, matrix: InteractionMatrix) -> None:
        weighted = strength(matrix.preference)
        people = np.asarray(weighted.sum(axis=1), dtype=np.float64).ravel()
        items = np.asarray(weighted.sum(axis=0), dtype=np.float64).ravel()
        graph = sparse.csr_matrix(
            sparse.diags(_root_inverse(people)) @ weighted @ sparse.diags(_root_inverse(items)), dtype=np.float32
        )
        graph.sort_indices()
        factors, seed = int(self.params["factors"]), int(self.params["seed"])
        pairs = item_pairs(graph)
        if pairs is None:
            vectors, values = right_singular_vectors(graph, factors, seed=seed)
        else:
            vectors, values = leading_vectors(pairs, min(factors, graph.shape[0]), seed=seed)
        self._set(graph, items, vectors, values)
        self._take_pairs(pairs)

    def _take_pairs(self, pairs: sparse.csr_matrix | None) -> None:
        """With P at hand, what the low pass leads to is summed beforehand: low_pass D^1/2 V sharpened, by columns."""
        self._pairs = pairs
        if pairs is not None and float(self.params["low_pass"]):
            roots = np.sqrt(self.item_degrees) * np.float32(self.params["low_pass"])
            self._tails = self._sharpened(np.ascontiguousarray(roots[:, None] * self.vectors))

    def refit(self, params: Mapping[str, Any]) -> GraphFilter | None:
        """The same fit with other params, nothing learned anew; None when they ask for other vectors."""
        if any(self.params[name] != params[name] for name in ("factors", "seed")):
            return None
        model = GraphFilter(params)
        model.graph, model._by_item, model.item_degrees = self.graph, self._by_item, self.item_degrees
        model.vectors, model.values = self.vectors, self.values
        model._take_pairs(self._pairs)
        return model

    def score_block(
        self,
        histories: sparse.csr_matrix,
        rows: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Histories alone decide; `rows` changes nothing."""
        scores = np.empty(histories.shape, np.float32)
        step = max(1, CELLS_PER_BLOCK // max(1, sum(self.graph.shape)))
        if self._pairs is not None:
            step = min(step, COLUMNS_OF_PAIRS)
        weighted = strength(histories)
        for start in range(0, histories.shape[0], step):
            scores[start : start + step] = self._scores(weighted[start : start + step]).T
        return scores

    def _scores(self, weighted: sparse.csr_matrix) -> NDArray[np.float32]:
        """Scores of a few histories, items down, histories across."""
        known = _root_inverse(self.item_degrees).astype(np.float32)
        tastes = self.vectors.T @ (sparse.diags(known) @ weighted.T)
        low_pass = np.float32(self.params["low_pass"])
        if self._pairs is not None:
            scores = self._sharpened(times_pairs(weighted, self._pairs))
            if self._tails is not None:
                scores += self._tails @ tastes
        else:
            blurred = self._twice(weighted.T.toarray())
            if low_pass:
                blurred += (low_pass * np.sqrt(self.item_degrees))[:, None] * (self.vectors @ tastes)
            scores = self._sharpened(blurred)
        power = float(self.params["popular_power"])
        if power:
            scores *= (np.maximum(self.item_degrees, 1.0) ** -power).astype(np.float32)[:, None]
        return scores

    def _sharpened(self, blurred: Block) -> NDArray[np.float32]:
        """f(P) of a block (`item_pairs.times_pairs`), items down."""
        length = float(self.params["sharpening"])
        if not length:
            return as_columns(blurred)
        inside = np.asarray((blurred @ self.vectors).T if sparse.issparse(blurred) else self.vectors.T @ blurred)
        within = self.values.astype(np.float64) ** 2
        beyond = float(within.min()) if len(within) else 1.0
        products = _terms_needed(length * beyond)
        term, sharpened = blurred, as_columns(blurred).copy()
        for order in range(1, products + 1):
            term = self._twice(term)
            sharpened += np.float32((-length) ** order / factorial(order)) * as_columns(term)
        rest = sum(
            ((-length * within) ** order / factorial(order) for order in range(products + 1, ORDER + 1)),
            start=np.zeros_like(within),
        )
        if products < ORDER:
            sharpened += self.vectors @ (rest.astype(np.float32)[:, None] * inside)
        return sharpened

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:  # noqa: ARG002
        """The terms of the score, but that outside the span of V the sharpening is left out: they sum to the score up
        to that, and cost a product of columns instead of a score for each item of the history."""
        strong = strength(history)
        asked = np.asarray(item_numbers, dtype=np.int64)
        roots = np.sqrt(self.item_degrees.astype(np.float64))
        before = self.vectors[strong.indices].astype(np.float64)
        after = self.vectors[asked].astype(np.float64)
        values = (self._by_item[asked] @ self._by_item[strong.indices].T).toarray().astype(np.float64)
        squares = self.values.astype(np.float64) ** 2
        length, low_pass = float(self.params["sharpening"]), float(self.params["low_pass"])
        sharpened = sum(
            ((-length * squares) ** order / factorial(order) for order in range(1, ORDER + 1)), np.zeros_like(squares)
        )
        values += (after * (sharpened * squares)) @ before.T
        if low_pass:
            known = before * _root_inverse(self.item_degrees)[strong.indices, None]
            values += low_pass * (roots[asked, None] * (after @ known.T))
            values += low_pass * (after * sharpened) @ (self._mixing() @ known.T)
        power = float(self.params["popular_power"])
        values *= (np.maximum(self.item_degrees[asked], 1.0) ** -power)[:, None]
        return Terms(strong.indices, values * strong.data.astype(np.float64))

    def _mixing(self) -> NDArray[np.float64]:
        """V' D^1/2 V: what the low pass leaves within the span of V."""
        if self._mixed is None:
            wide = self.vectors.astype(np.float64)
            self._mixed = wide.T @ (np.sqrt(self.item_degrees.astype(np.float64))[:, None] * wide)
        return self._mixed

    def _twice(self, block: Block) -> Block:
        """P applied."""
        if self._pairs is not None:
            return times_pairs(block, self._pairs)
        return np.asarray(self._by_item @ (self.graph @ block))

    def save(self, folder: Path) -> None:
        arrays = {
            "graph_data": self.graph.data,
            "graph_indices": self.graph.indices,
            "graph_indptr": self.graph.indptr,
            "item_degrees": self.item_degrees,
            "vectors": self.vectors,
            "values": self.values,
        }
        save_arrays(folder, model=self.name, params=self.params, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> GraphFilter:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        shape = (len(arrays["graph_indptr"]) - 1, len(arrays["item_degrees"]))
        graph = sparse.csr_matrix((arrays["graph_data"], arrays["graph_indices"], arrays["graph_indptr"]), shape=shape)
        model._set(graph, arrays["item_degrees"], arrays["vectors"], arrays["values"])
        model._take_pairs(item_pairs(graph))
        return model


def _terms_needed(reach: float) -> int:
    """How many terms of the series matter where its argument is at most `reach`."""
    for products in range(1, ORDER):
        if reach ** (products + 1) / factorial(products + 1) < NEGLIGIBLE:
            return products
    return ORDER


def _root_inverse(degrees: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = np.asarray(degrees, np.float64)
    return np.where(wide > 0, 1.0 / np.sqrt(np.where(wide > 0, wide, 1.0)), 0.0)
