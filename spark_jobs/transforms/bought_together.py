"""What is bought together: from the purchases of one session to a short list for every item."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.events import EventType

TOGETHER_PER_ITEM = 30
LEAST_BASKETS = 2
"""A pair that was bought together once is an accident, or somebody's order."""
MOST_ITEMS = 200
"""A basket with more different items says little of any pair, and costs its square."""
SHRINKAGE = 5.0
_ITEMS_PER_BLOCK = 1024

Rows = list[list[tuple[int, float]]]


def baskets_of(interactions: pa.Table) -> pa.Table:
    """Every item of every basket, as often as it was bought: basket (the session key), item_number.

    A basket is what one session bought, however many orders that took. Purchases without a session key have none;
    purchases of items without a number are left out.

    interactions  as `io.interactions.read_interactions` gives them
    """
    is_purchase = pc.equal(interactions["event_type"].cast(pa.string()), EventType.PURCHASE.value)
    is_known = pc.and_(pc.is_valid(interactions["session_key"]), pc.is_valid(interactions["item_number"]))
    bought = interactions.filter(pc.and_(is_purchase, is_known))
    return pa.table({"basket": bought["session_key"], "item_number": bought["item_number"]})


def together_rows(
    baskets: pa.Table,
    eligible: NDArray[np.bool_],
    *,
    count: int = TOGETHER_PER_ITEM,
    least_baskets: int = LEAST_BASKETS,
    most_items: int = MOST_ITEMS,
    shrinkage: float = SHRINKAGE,
) -> Rows:
    """By item number: the `count` eligible items that are bought with it, best first, ties by number.

    score(i, j) = n_ij / sqrt(n_i n_j) x n_ij / (n_ij + shrinkage), n the baskets with an item, with both: the cosine,
    drawn towards 0 for pairs that were seen seldom. Pairs in fewer than `least_baskets` baskets, and baskets of more
    than `most_items` items, do not count. Ineligible items keep a row of their own.

    baskets  basket, item_number; a pair that comes twice counts once
    """
    rows: Rows = [[] for _ in range(len(eligible))]
    matrix = _matrix(baskets, len(eligible), most_items)
    singles = np.asarray(matrix.sum(axis=0)).ravel().astype(np.float64)
    for start in range(0, len(eligible), _ITEMS_PER_BLOCK):
        block = (matrix[:, start : start + _ITEMS_PER_BLOCK].T @ matrix).tocoo()
        one, other, both = block.row + start, block.col, block.data.astype(np.float64)
        kept = (both >= least_baskets) & (one != other) & eligible[other]
        one, other, both = one[kept], other[kept], both[kept]
        scores = both / np.sqrt(singles[one] * singles[other]) * both / (both + shrinkage)
        for at in np.lexsort((other, -scores, one)):
            row = rows[one[at]]
            if len(row) < count:
                row.append((int(other[at]), float(scores[at])))
    return rows


def _matrix(baskets: pa.Table, item_count: int, most_items: int) -> sparse.csc_matrix:
    """Baskets x items, ones; only baskets of 2 to `most_items` items."""
    codes = baskets["basket"].combine_chunks().dictionary_encode()
    codes = pa.chunked_array([codes]).combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
    basket = np.asarray(codes.indices).astype(np.int64)
    items = np.asarray(baskets["item_number"].combine_chunks()).astype(np.int64)
    pairs = np.unique(basket * item_count + items) if len(items) else np.empty(0, np.int64)
    basket, items = np.divmod(pairs, max(1, item_count))
    sizes = np.bincount(basket) if len(basket) else np.empty(0, np.int64)
    kept = (sizes[basket] > 1) & (sizes[basket] <= most_items) if len(basket) else np.empty(0, bool)
    ones = np.ones(int(kept.sum()), np.int32)
    return sparse.csc_matrix((ones, (basket[kept], items[kept])), shape=(len(sizes), item_count))
