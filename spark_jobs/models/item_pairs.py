"""P = N'N of a graph filter, built: where histories are short, it is smaller than what N' (N x) goes through."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

PRODUCTS_PER_ENTRY = 8
"""P is built where it takes at most so many products for each entry of N: the mean of a history's length, weighted by
the length. P then has fewer entries than that, and reads no row of people in between."""
SPARSE_SHARE = 0.125
"""A block that is emptier than this is multiplied as sparse, entry by entry; a fuller one is faster whole."""


Block: TypeAlias = "sparse.csr_matrix | NDArray[np.float32]"
"""Histories: CSR histories x items while that is nearly empty, else an array items x histories."""


def item_pairs(graph: sparse.csr_matrix) -> sparse.csr_matrix | None:
    """N'N, CSR float32 items x items; None where N' (N x) is the shorter way."""
    lengths = np.diff(graph.indptr).astype(np.int64)
    if int((lengths**2).sum()) > PRODUCTS_PER_ENTRY * graph.nnz:
        return None
    pairs = sparse.csr_matrix(graph.T.tocsr() @ graph)
    pairs.sort_indices()
    return pairs


def times_pairs(block: Block, pairs: sparse.csr_matrix) -> Block:
    """P applied to a block."""
    if isinstance(block, np.ndarray):
        return np.asarray(pairs @ block)
    if block.nnz > SPARSE_SHARE * block.shape[0] * block.shape[1]:
        return np.asarray(pairs @ as_columns(block))
    return sparse.csr_matrix(block @ pairs)  # P is its own transpose


def as_columns(block: Block) -> NDArray[np.float32]:
    """The block as an array items x histories."""
    return block if isinstance(block, np.ndarray) else np.asarray(block.T.toarray(order="C"))
