"""The one order of a ranked list: best score first, ties by item number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

COLUMNS_PER_GROUP = 64
MOST_CANDIDATES = 32
"""Times the wanted count: a row with more than that many candidates is full of ties, and is ranked the plain way."""

_ROW_AND_COLUMN_BITS = 32
"""What a score of 32 bits leaves of a number that stands for a place and its score."""


def top_items(scores: NDArray[np.float32], count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `count` best columns of each row, best first, ties by column: (numbers, scores), shape (rows, min(count, n)).

    Exact also at the boundary: of equal scores the lower numbers enter. A column to leave out scores -inf: it comes
    last, and the caller drops what is not finite. NaN counts as -inf.

    The `count`-th largest maximum of groups of columns bounds the `count`-th largest score from below, so most columns
    are looked at twice and never sorted.
    """
    rows, columns = scores.shape
    count = min(count, columns)
    if count <= 0 or rows == 0:
        return np.empty((rows, max(count, 0)), np.int32), np.empty((rows, max(count, 0)), np.float32)
    most_rows = 1 << (_ROW_AND_COLUMN_BITS - columns.bit_length())
    if rows > most_rows:
        parts = [top_items(scores[first : first + most_rows], count) for first in range(0, rows, most_rows)]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    groups = columns // COLUMNS_PER_GROUP
    if groups < 2 * count or scores.dtype != np.float32:
        return _top_of_all(scores, count)
    scores = np.ascontiguousarray(scores)
    bound = _bounds(scores, groups, count)
    if bound is None:  # NaN hides what else is in its group
        scores = np.where(np.isnan(scores), np.float32(-np.inf), scores)
        bound = _bounds(scores, groups, count)
    assert bound is not None
    flat = np.flatnonzero((scores >= bound[:, None]).ravel())  # in two dimensions it takes ten times as long
    row, column = np.divmod(flat, columns)
    found = np.bincount(row, minlength=rows)
    is_few = found <= MOST_CANDIDATES * count
    if not is_few.all():
        kept = is_few[row]
        row, column, found = row[kept], column[kept], np.where(is_few, found, 0)
    places = (np.cumsum(found) - found)[is_few, None] + np.arange(count)
    numbers, values = np.empty((rows, count), np.int32), np.empty((rows, count), np.float32)
    numbers[is_few] = _best_columns_first(row, column, scores[row, column], columns.bit_length())[places]
    values[is_few] = scores[np.flatnonzero(is_few)[:, None], numbers[is_few]]
    if not is_few.all():
        numbers[~is_few], values[~is_few] = _top_of_all(scores[~is_few], count)
    return numbers, values


def _best_columns_first(
    rows: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float32], column_bits: int
) -> NDArray[np.int64]:
    """The columns in the order of row, value downwards, column; no value is NaN.

    All three stand in one number, which sorts several times as fast as an order of three keys is found: the bits of a
    float above zero rise with it, those of one below fall.
    """
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 is no less than 0.0
    falling = np.where(bits >> 31, bits, bits ^ 0x7FFFFFFF).astype(np.uint64)
    keys = rows.astype(np.uint64) << np.uint64(32 + column_bits) | falling << np.uint64(column_bits)
    keys |= columns.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64((1 << column_bits) - 1)).astype(np.int64)


def _bounds(scores: NDArray[np.float32], groups: int, count: int) -> NDArray[np.float32] | None:
    """For each row a value that at least `count` columns reach; None where there is a NaN. A group is every
    `groups`-th column: maxima of neighbours would be found one by one."""
    whole = groups * COLUMNS_PER_GROUP
    maxima = scores[:, :whole].reshape(len(scores), COLUMNS_PER_GROUP, groups).max(axis=1)
    if np.isnan(maxima).any() or np.isnan(scores[:, whole:]).any():
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
