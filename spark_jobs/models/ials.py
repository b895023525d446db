"""Implicit matrix factorization with a weight for what was not observed and a ridge that grows with the history.

S. Rendle, W. Krichene, L. Zhang, J. Anderson: Revisiting the performance of iALS on item recommendation benchmarks
(2022). Beside `als` it has its own kernel: every row is solved by conjugate gradients over blocks of rows of like
length, in numpy, so neither a compiler nor a row's luck decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.factors import FactorScores, sweeps
from spark_jobs.models.linear import strength
from spark_jobs.models.threads import kernel_threads

CELLS_PER_BLOCK = 1_000_000
"""Vector entries of the other side that one block of rows gathers."""
STEPS = 3
"""Conjugate gradient steps from the vectors of the last sweep; they get better from sweep to sweep."""
EXACT_STEPS = 24
"""From nothing: as good as solved."""

KERNEL_THREADS = 0
"""0 means `kernel_threads`. Blocks are solved on their own, so no number changes the result."""


class Ials(FactorScores):
    """Minimises  sum over observed w_ui (1 - x_u.y_i)^2 + unobserved * sum over all (x_u.y_i)^2 + ridges.

    w = log2(1 + preference). The ridge of a row with n observations among m on the other side is
    regularization * (n + unobserved * m) ** ridge_power: 0 is one ridge for all, 1 one in proportion to the evidence.

    score(u, i) = x_u.y_i with x_u solved for the history given all y: linear in w, so a score is a sum of one term per
    item of the history, and these terms are the reasons.

    params
        factors         length of the vectors
        iterations      sweeps over people and items
        regularization, ridge_power   above
        unobserved      weight of a pair without interaction against one with a preference of 1
        popular_power   scores are divided by (people who have the item) ** this
        seed            of the first vectors
    """

    name = "ials"
    source = int(Source.ALS)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self.user_factors: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self.item_factors: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self.popular: NDArray[np.float32] = np.empty(0, np.float32)

    def fit(self, matrix: InteractionMatrix, start: NDArray[np.float32] | None = None) -> None:
        """`start`: item vectors to begin from, zeros for an item without; then fewer sweeps do."""
        weighted = strength(matrix.preference)
        by_item = weighted.T.tocsr()
        factors, unobserved = int(self.params["factors"]), float(self.params["unobserved"])
        rng = np.random.default_rng(int(self.params["seed"]))
        deviation = 0.1 / np.sqrt(factors)
        users = (rng.standard_normal((weighted.shape[0], factors)) * deviation).astype(np.float32)
        items = (rng.standard_normal((weighted.shape[1], factors)) * deviation).astype(np.float32)
        ridges = self._ridges(weighted), self._ridges(by_item)
        steps = STEPS
        if start is not None:
            items, users, steps = start.astype(np.float32, copy=True), np.zeros_like(users), EXACT_STEPS
        with threadpool_limits(1, "blas"):
            for _ in range(sweeps(int(self.params["iterations"]), start)):
                users = solve_rows(weighted, items, users, unobserved=unobserved, ridges=ridges[0], steps=steps)
                steps = STEPS
                items = solve_rows(by_item, users, items, unobserved=unobserved, ridges=ridges[1], steps=STEPS)
            items[np.diff(by_item.indptr) == 0] = 0.0
            self.item_factors = items
            self.popular = np.diff(by_item.indptr).astype(np.float32)
            self.user_factors = self.fold_in(matrix.preference)

    def _ridges(self, rows: sparse.csr_matrix) -> NDArray[np.float32]:
        evidence = np.diff(rows.indptr) + float(self.params["unobserved"]) * rows.shape[1]
        return (float(self.params["regularization"]) * evidence ** float(self.params["ridge_power"])).astype(np.float32)

    def fold_in(self, histories: sparse.csr_matrix) -> NDArray[np.float32]:
        """The vectors of histories (CSR rows over all items), solved given the items; zeros for an empty history."""
        weighted = strength(histories)
        nothing = np.zeros((weighted.shape[0], self.item_factors.shape[1]), np.float32)
        return solve_rows(
            weighted,
            self.item_factors,
            nothing,
            unobserved=float(self.params["unobserved"]),
            ridges=self._ridges(weighted),
            steps=EXACT_STEPS,
        )

    def refit(self, params: Mapping[str, Any]) -> Ials | None:
        """The same fit with other params, nothing learned anew; None when more than `popular_power` differs."""
        if any(self.params[name] != value for name, value in params.items() if name != "popular_power"):
            return None
        model = Ials(params)
        model.user_factors, model.item_factors, model.popular = self.user_factors, self.item_factors, self.popular
        return model

    def score_block(self, histories: sparse.csr_matrix, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        scores = super().score_block(histories, rows)
        power = float(self.params["popular_power"])
        if power:
            scores *= (np.maximum(self.popular, 1.0) ** -power).astype(np.float32)
        return scores

    def contributions(self, history: sparse.csr_matrix, item_numbers: Sequence[int]) -> NDArray[np.float64]:
        """The terms of x_u.y_i, shape (items asked, items of the history); each row sums to it."""
        if history.nnz == 0:
            return np.zeros((len(item_numbers), 0))
        items = self.item_factors.astype(np.float64)
        weights = strength(history).data.astype(np.float64)
        liked = items[history.indices]
        system = float(self.params["unobserved"]) * (items.T @ items) + (liked.T * weights) @ liked
        system[np.diag_indices_from(system)] += float(self._ridges(history)[0])
        return items[np.asarray(item_numbers, dtype=np.int64)] @ np.linalg.solve(system, liked.T * weights)

    def save(self, folder: Path) -> None:
        arrays = {"item_factors": self.item_factors, "user_factors": self.user_factors, "popular": self.popular}
        save_arrays(folder, model=self.name, params=self.params, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> Ials:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        model.item_factors, model.user_factors = arrays["item_factors"], arrays["user_factors"]
        model.popular = arrays["popular"]
        return model


def solve_rows(
    weighted: sparse.csr_matrix,
    others: NDArray[np.float32],
    start: NDArray[np.float32],
    *,
    unobserved: float,
    ridges: NDArray[np.float32],
    steps: int,
) -> NDArray[np.float32]:
    """For every row r:  (unobserved Y'Y + sum_j w_rj y_j y_j' + ridge_r I) x = sum_j w_rj y_j,  Y = `others`.

    `steps` conjugate gradient steps from `start`. A row without entries gets zeros.
    """
    gram = np.float32(unobserved) * (others.T @ others)
    solved = np.zeros_like(start)
    blocks = list(_blocks(weighted.indptr, others.shape[1]))

    def solve(rows: NDArray[np.int64]) -> None:
        solved[rows] = _solve_block(weighted, others, start[rows], rows, gram, ridges[rows], steps)

    threads = KERNEL_THREADS or kernel_threads()
    if threads == 1 or len(blocks) < 2:
        for rows in blocks:
            solve(rows)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(solve, blocks))
    return solved


def _blocks(indptr: NDArray[np.integer], factors: int) -> Iterator[NDArray[np.int64]]:
    """Rows with entries, shortest first, in blocks that gather at most CELLS_PER_BLOCK entries when padded."""
    lengths = np.diff(indptr)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    start = 0
    while start < len(order):
        stop = start + max(1, CELLS_PER_BLOCK // (factors * int(lengths[order[start]])))
        while (
            stop > start + 1
            and (min(stop, len(order)) - start) * factors * int(lengths[order[min(stop, len(order)) - 1]])
            > CELLS_PER_BLOCK
        ):
            stop = start + (stop - start) // 2 or start + 1
        yield order[start:stop]
        start = stop


def _solve_block(
    weighted: sparse.csr_matrix,
    others: NDArray[np.float32],
    x: NDArray[np.float32],
    rows: NDArray[np.int64],
    gram: NDArray[np.float32],
    ridges: NDArray[np.float32],
    steps: int,
) -> NDArray[np.float32]:
    lengths = np.diff(weighted.indptr)[rows]
    place = weighted.indptr[rows].astype(np.int64)[:, None] + np.arange(int(lengths.max()))
    inside = np.arange(place.shape[1]) < lengths[:, None]
    place = np.where(inside, place, 0)
    weights = np.where(inside, weighted.data[place], np.float32(0)).astype(np.float32)
    gathered = others[weighted.indices[place]]

    def product(p: NDArray[np.float32]) -> NDArray[np.float32]:
        seen = np.matmul(gathered, p[:, :, None])[:, :, 0] * weights
        return p @ gram + ridges[:, None] * p + np.matmul(seen[:, None, :], gathered)[:, 0, :]

    x = x.copy()
    residual = np.matmul(weights[:, None, :], gathered)[:, 0, :] - product(x)
    direction = residual.copy()
    size = (residual * residual).sum(axis=1)
    for _ in range(steps):
        image = product(direction)
        curvature = (direction * image).sum(axis=1)
        length = np.where(curvature > 0, size / np.where(curvature > 0, curvature, 1), 0).astype(np.float32)
        x += length[:, None] * direction
        residual -= length[:, None] * image
        new_size = (residual * residual).sum(axis=1)
        turn = np.where(size > 0, new_size / np.where(size > 0, size, 1), 0).astype(np.float32)
        direction = residual + turn[:, None] * direction
        size = new_size
    return x
