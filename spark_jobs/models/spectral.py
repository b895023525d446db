"""The leading singular vectors of a sparse matrix, by seeded randomized subspace iteration.

N. Halko, P.-G. Martinsson, J. Tropp: Finding structure with randomness (2011), algorithm 4.4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

OVERSAMPLING = 10


def right_singular_vectors(
    matrix: sparse.csr_matrix, count: int, *, seed: int, iterations: int = 3
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(vectors as columns, shape (columns, count); singular values, largest first).

    `count` is cut to the smaller side of the matrix. The sign of a vector is fixed: its largest entry is positive. More
    `iterations` separate close singular values better. One BLAS thread, so that no machine changes a bit.
    """
    rows, columns = matrix.shape
    count = min(count, rows, columns)
    if count <= 0:
        return np.zeros((columns, 0), np.float32), np.zeros(0, np.float32)
    width = min(count + OVERSAMPLING, rows, columns)
    transposed = matrix.T.tocsr()
    with threadpool_limits(1, "blas"):
        basis = np.random.default_rng(seed).standard_normal((columns, width)).astype(np.float32)
        for _ in range(iterations):
            basis = np.linalg.qr(matrix @ basis)[0]
            basis = np.linalg.qr(transposed @ basis)[0]
        image = (matrix @ basis).astype(np.float64)
        squares, rotation = np.linalg.eigh(image.T @ image)
        leading = np.argsort(-squares, kind="stable")[:count]
        vectors = (basis @ rotation[:, leading].astype(np.float32)).astype(np.float32)
    return _with_signs(vectors), np.sqrt(np.maximum(squares[leading], 0)).astype(np.float32)


def leading_vectors(
    square: sparse.csr_matrix, count: int, *, seed: int, iterations: int = 3
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """As `right_singular_vectors` of a matrix N of which `square` is N'N, without reading N: the same iteration."""
    columns = square.shape[0]
    count = min(count, columns)
    if count <= 0:
        return np.zeros((columns, 0), np.float32), np.zeros(0, np.float32)
    width = min(count + OVERSAMPLING, columns)
    with threadpool_limits(1, "blas"):
        basis = np.random.default_rng(seed).standard_normal((columns, width)).astype(np.float32)
        for _ in range(iterations):
            basis = np.linalg.qr(square @ basis)[0]
        squares, rotation = np.linalg.eigh(basis.T.astype(np.float64) @ (square @ basis))
        leading = np.argsort(-squares, kind="stable")[:count]
        vectors = (basis @ rotation[:, leading].astype(np.float32)).astype(np.float32)
    return _with_signs(vectors), np.sqrt(np.maximum(squares[leading], 0)).astype(np.float32)


def _with_signs(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest entry of each is made positive."""
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    signs[signs == 0] = 1
    return np.asarray(vectors * signs)
