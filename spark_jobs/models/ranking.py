"""The one order of a ranked list: best score first, ties by item number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def top_items(scores: NDArray[np.float32], count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `count` best columns of each row, best first, ties by column: (numbers, scores), shape (rows, min(count, n)).

    Exact also at the boundary: of equal scores the lower numbers enter. A column to leave out scores -inf: it comes
    last, and the caller drops what is not finite. NaN counts as -inf.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    rows, columns = scores.shape
    count = min(count, columns)
    if count <= 0 or rows == 0:
        return np.empty((rows, max(count, 0)), np.int32), np.empty((rows, max(count, 0)), np.float32)
    threshold = -np.partition(-scores, count - 1, axis=1)[:, count - 1]  # negated: the other end is slow on many zeros
    above = scores > threshold[:, None]
    equal = scores == threshold[:, None]
    open_places = count - above.sum(axis=1)
    chosen = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= open_places[:, None]))
    numbers = np.nonzero(chosen)[1].reshape(rows, count)  # ascending within a row, so a stable sort keeps ties in order
    values = np.take_along_axis(scores, numbers, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return (
        np.take_along_axis(numbers, order, axis=1).astype(np.int32),
        np.take_along_axis(values, order, axis=1).astype(np.float32),
    )


def mask_items(scores: NDArray[np.float32], seen: sparse.csr_matrix) -> None:
    """Set to -inf, in place, the items that each row of `seen` has."""
    rows = np.repeat(np.arange(seen.shape[0]), np.diff(seen.indptr))
    scores[rows, seen.indices] = -np.inf


def two_best(contributions: NDArray[np.floating], item_numbers: NDArray[np.int32]) -> tuple[int | None, int | None]:
    """The one or two items with the largest positive contribution, best first, ties by number."""
    positive = np.flatnonzero(contributions > 0)
    order = positive[np.lexsort((item_numbers[positive], -contributions[positive]))]
    first = int(item_numbers[order[0]]) if order.size > 0 else None
    second = int(item_numbers[order[1]]) if order.size > 1 else None
    return first, second
