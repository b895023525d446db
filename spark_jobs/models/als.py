"""Implicit-feedback matrix factorization by alternating least squares, with two engines behind one switch.

Both engines minimise, over user vectors x and item vectors y,
    sum over all (u, i) of c_ui (p_ui - x_u . y_i)^2 + regularization,   p = 1 where there was an interaction else 0,
    c_ui = 1 + alpha * log(1 + preference_ui).

`native` runs the kernel of the `implicit` package in this process; `mllib` runs the sweeps by Spark's ALS, on the cores
of a cluster where there is one (`models.mllib`). Both begin from the matrix of this process and end in its arrays: it
has to hold them either way. They give arrays of one shape; scores, folding in and reasons are one code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import InteractionMatrix, Terms
from spark_jobs.models.factors import FactorScores, sweeps
from spark_jobs.models.mllib import fit_mllib
from spark_jobs.models.threads import by_blocks, kernel_threads, ranges

ENGINES = ("native", "mllib")
USERS_PER_BLOCK = 512
SOLVED_AT_ONCE = 64
"""Equations that are handed to the solver together: each is solved as if alone, and the call costs once."""

KERNEL_THREADS = 0
"""Threads of the native kernel; 0 means `kernel_threads`. Each row is solved on its own, so no number changes the
result."""


class Sweep(NamedTuple):
    """The state after one sweep over users and items. `loss` is the kernel's mean of the objective per cell; the
    vectors are views that the next sweep overwrites."""

    loss: float
    user_factors: NDArray[np.float32]
    item_factors: NDArray[np.float32]


AfterSweep = Callable[[Sweep], None]


class Als(FactorScores):
    """score(u, i) = x_u . y_i, where x_u is the exact solution for u's history given all y.

    Because x_u is linear in the history, a score is a sum of one term per item of the history:
        y_i^T A_u^-1 y_j c_uj,   A_u = Y^T Y + sum_j (c_uj - 1) y_j y_j^T + ridge_u I
    and these terms are the explanation. Someone who was not there at fit time is folded in by the same equation.

    params
        engine          native or mllib; they are compared by a test
        factors         length of the vectors; more fits finer taste and needs more data
        iterations      sweeps over users and items
        regularization  ridge of each vector; for mllib, which scales it by the number of a user's items, the ridge
                        per item: the engines want different values
        alpha           how much an interaction outweighs a non-interaction
        seed            of the first vectors
    """

    name = "als"
    source = int(Source.ALS)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        engine = self.params["engine"]
        if engine not in ENGINES:
            raise DataError(
                f"als engine {engine!r}, expected one of {ENGINES}{nearest(str(engine), ENGINES)}", field="engine"
            )
        self.user_factors: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self.item_factors: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._item_gram: NDArray[np.float64] | None = None

    def fit(
        self,
        matrix: InteractionMatrix,
        after_sweep: AfterSweep | None = None,
        start: NDArray[np.float32] | None = None,
    ) -> None:
        """Learn. `after_sweep` is told each sweep of the native engine, and changes nothing; mllib shows none.

        start  item vectors to begin from, zeros for an item without: fewer sweeps. mllib always begins from nothing.
        """
        if self.params["engine"] == "native":
            learned = fit_native(matrix, self.params, after_sweep, start)
        else:
            learned = fit_mllib(matrix, self.params)
        self.item_factors = np.ascontiguousarray(learned, dtype=np.float32)
        self._item_gram = None
        rows = matrix.preference.shape[0]
        self.user_factors = np.zeros((rows, self.item_factors.shape[1]), np.float32)

        def folded(part: slice) -> tuple[slice, NDArray[np.float32]]:
            return part, self.fold_in(matrix.preference[part])

        for part, vectors in by_blocks(folded, ranges(rows, USERS_PER_BLOCK)):
            self.user_factors[part] = vectors

    def fold_in(self, histories: sparse.csr_matrix) -> NDArray[np.float32]:
        """The vectors of histories (CSR rows over all items), solved exactly; zeros for an empty history."""
        factors = self.item_factors.shape[1]
        vectors = np.zeros((histories.shape[0], factors), np.float32)
        having = np.flatnonzero(np.diff(histories.indptr))
        for first in range(0, len(having), SOLVED_AT_ONCE):
            rows = having[first : first + SOLVED_AT_ONCE]
            systems, sides = np.empty((len(rows), factors, factors)), np.empty((len(rows), factors, 1))
            for at, row in enumerate(rows.tolist()):
                systems[at], liked, confidence = self._equation(histories, row)
                sides[at, :, 0] = confidence @ liked
            vectors[rows] = np.linalg.solve(systems, sides)[:, :, 0]
        return vectors

    def contributions(self, history: sparse.csr_matrix, item_numbers: Sequence[int]) -> NDArray[np.float64]:
        """The terms of the scores, shape (items asked, items of the history); each row sums to its score."""
        return self._contributions(history, 0, np.asarray(item_numbers, dtype=np.int64))

    def terms_in_block(self, histories: sparse.csr_matrix, place: int, item_numbers: NDArray[np.int32]) -> Terms:
        """`terms` of the history in row `place`."""
        indices = histories.indices[histories.indptr[place] : histories.indptr[place + 1]]
        return Terms(indices, self._contributions(histories, place, item_numbers))

    def _contributions(
        self, histories: sparse.csr_matrix, place: int, item_numbers: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        if histories.indptr[place] == histories.indptr[place + 1]:
            return np.zeros((len(item_numbers), 0))
        system, liked, confidence = self._equation(histories, place)
        asked = self.item_factors[item_numbers].astype(np.float64)
        return asked @ np.linalg.solve(system, liked.T * confidence)

    def _equation(
        self, histories: sparse.csr_matrix, row: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(A_u, the vectors of the history's items, their confidences)."""
        if self._item_gram is None:
            wide = self.item_factors.astype(np.float64)
            self._item_gram = wide.T @ wide
        part = slice(histories.indptr[row], histories.indptr[row + 1])
        liked = self.item_factors[histories.indices[part]].astype(np.float64)
        confidence = 1.0 + float(self.params["alpha"]) * np.log1p(histories.data[part].astype(np.float64))
        ridge = float(self.params["regularization"])
        if self.params["engine"] == "mllib":
            ridge *= len(liked)
        system = self._item_gram + (liked.T * (confidence - 1.0)) @ liked
        system[np.diag_indices_from(system)] += ridge
        return system, liked, confidence

    def save(self, folder: Path) -> None:
        arrays = {"item_factors": self.item_factors, "user_factors": self.user_factors}
        save_arrays(folder, model=self.name, params=self.params, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> Als:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        model.item_factors, model.user_factors = arrays["item_factors"], arrays["user_factors"]
        return model


def fit_native(
    matrix: InteractionMatrix,
    params: Mapping[str, Any],
    after_sweep: AfterSweep | None,
    start: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Item vectors from the `implicit` kernel, BLAS held to one thread; items without interactions get zeros."""
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    confidence = matrix.preference.astype(np.float32, copy=True)
    confidence.data = 1.0 + np.float32(params["alpha"]) * np.log1p(confidence.data)
    with threadpool_limits(1, "blas"):
        kernel = AlternatingLeastSquares(
            factors=int(params["factors"]),
            regularization=float(params["regularization"]),
            iterations=sweeps(int(params["iterations"]), start),
            random_state=int(params["seed"]),
            dtype=np.float32,
            num_threads=KERNEL_THREADS or kernel_threads(),
            calculate_training_loss=after_sweep is not None,
        )

        if start is not None:
            kernel.item_factors = start.astype(np.float32, copy=True)  # the kernel works in place

        def told(_: int, __: float, loss: float) -> None:
            if after_sweep is not None:
                after_sweep(Sweep(float(loss), kernel.user_factors, kernel.item_factors))

        kernel.fit(confidence, show_progress=False, callback=told)
    return np.array(kernel.item_factors)
