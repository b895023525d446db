"""Products of sparse matrices whose result is mostly filled, as dense blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spark_jobs.native import products as native


def dense_product(left: sparse.csr_matrix, right: sparse.csr_matrix) -> NDArray[np.float32]:
    """left @ right, a fresh array. Native code and scipy add the same terms in the same order: the same bits."""
    if native is None or left.dtype != np.float32 or right.dtype != np.float32:
        return dense_product_twin(left, right)
    if left.shape[1] != right.shape[0]:
        raise ValueError(f"{left.shape} @ {right.shape}")
    found = np.zeros((left.shape[0], right.shape[1]), np.float32)
    native.add_product(*_parts(left), *_parts(right), found)
    return found


def dense_product_twin(left: sparse.csr_matrix, right: sparse.csr_matrix) -> NDArray[np.float32]:
    """The same by scipy alone."""
    found: NDArray[np.float32] = (left @ right).toarray().astype(np.float32, copy=False)
    return found


def term_count(left: sparse.csr_matrix, right: sparse.csr_matrix) -> int:
    """How many products of two entries left @ right adds up."""
    return int(np.diff(right.indptr)[left.indices].sum())


def _parts(matrix: sparse.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    return (
        matrix.indptr.astype(np.int64, copy=False),
        matrix.indices.astype(np.int32, copy=False),
        np.ascontiguousarray(matrix.data),
    )
