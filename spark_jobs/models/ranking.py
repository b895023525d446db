"""The one order of a ranked list: best score first, ties by item number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

COLUMNS_PER_CHUNK = 64
MOST_CANDIDATES = 32
"""Times the wanted count: a row with more than that many candidates is full of ties, and is ranked the plain way."""


def top_items(scores: NDArray[np.float32], count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `count` best columns of each row, best first, ties by column: (numbers, scores), shape (rows, min(count, n)).

    Exact also at the boundary: of equal scores the lower numbers enter. A column to leave out scores -inf: it comes
    last, and the caller drops what is not finite. NaN counts as -inf.

    The `count`-th largest maximum of chunks of columns bounds the `count`-th largest score from below, so most columns
    are looked at twice and never sorted.
    """
    rows, columns = scores.shape
    count = min(count, columns)
    if count <= 0 or rows == 0:
        return np.empty((rows, max(count, 0)), np.int32), np.empty((rows, max(count, 0)), np.float32)
    chunks = columns // COLUMNS_PER_CHUNK
    if chunks < 2 * count:
        return _top_of_all(scores, count)
    scores = np.ascontiguousarray(scores)
    bound = _bounds(scores, chunks, count)
    if bound is None:  # NaN hides what else is in its chunk
        scores = np.where(np.isnan(scores), -np.inf, scores)
        bound = _bounds(scores, chunks, count)
    assert bound is not None
    candidates = scores >= bound[:, None]
    many = np.count_nonzero(candidates, axis=1) > MOST_CANDIDATES * count
    numbers, values = np.empty((rows, count), np.int32), np.empty((rows, count), np.float32)
    if many.any():
        numbers[many], values[many] = _top_of_all(scores[many], count)
        candidates[many] = False
    few = np.flatnonzero(~many)
    row, column = np.nonzero(candidates)
    value = scores[row, column]
    order = np.lexsort((column, -value, row))
    first = np.searchsorted(row, few)  # the order leaves each row where it was
    place = order[first[:, None] + np.arange(count)]
    numbers[few], values[few] = column[place], value[place]
    return numbers, values


def _bounds(scores: NDArray[np.float32], chunks: int, count: int) -> NDArray[np.float32] | None:
    """For each row a value that at least `count` columns reach; None where there is a NaN."""
    step, item = scores.strides
    shape, strides = (len(scores), chunks, COLUMNS_PER_CHUNK), (step, COLUMNS_PER_CHUNK * item, item)
    maxima = np.lib.stride_tricks.as_strided(scores, shape, strides, writeable=False).max(axis=2)
    rest = scores[:, chunks * COLUMNS_PER_CHUNK :]
    if np.isnan(maxima).any() or np.isnan(rest).any():
        return None
    found: NDArray[np.float32] = -np.partition(-maxima, count - 1, axis=1)[:, count - 1]
    return found


def _top_of_all(scores: NDArray[np.float32], count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """`top_items` by the plain way: whatever the ties, for any number of columns."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    rows = len(scores)
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


def two_best(
    contributions: NDArray[np.floating], item_numbers: NDArray[np.int32]
) -> list[tuple[int | None, int | None]]:
    """For each row the one or two items with the largest positive contribution, best first, ties by number.

    `contributions` has a column for each of `item_numbers`, which may stand in any order. NaN speaks for nothing.
    """
    if contributions.shape[1] == 0:
        return [(None, None)] * len(contributions)
    order = np.argsort(item_numbers, kind="stable")  # argmax takes the first of equals
    positive = np.where(contributions > 0, contributions, 0)[:, order]
    rows = np.arange(len(positive))
    places, values = [], []
    for _ in range(2):
        best = positive.argmax(axis=1)
        places.append(item_numbers[order[best]].tolist())
        values.append(positive[rows, best].tolist())
        positive[rows, best] = 0
    return [
        (first if first_value else None, second if second_value else None)
        for first, second, first_value, second_value in zip(*places, *values, strict=True)
    ]
