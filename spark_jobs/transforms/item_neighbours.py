"""gold.item_neighbours: which items are like which, made anew for the items that were touched.

An item is touched when an event about it came, changed or went. The neighbours of the others are kept from the night
before, although they depend a little on what happened elsewhere: on how long the histories of an item's people have
grown, on how many people its neighbours have now, and on how old it all is. How much that loses is measured on a real
shop (infra/docs/incremental.md), and bounded: no row is kept for longer than `touched.OLDEST_DAYS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.item_knn import ItemKnn
from spark_jobs.transforms.bundle_files import NEIGHBOURS_PER_ITEM, neighbour_rows
from spark_jobs.transforms.touched import Digests, untouched

NEIGHBOUR_RULES = f"{NEIGHBOURS_PER_ITEM} long"


class Neighbours(NamedTuple):
    """rows       by item number: [(neighbour, similarity), ...], best first
    scored_as_of  by item number: the night that made the row
    touched       why rows were made -> how many; `kept` is how many were not
    """

    rows: Sequence[Sequence[tuple[int, float]]]
    scored_as_of: Sequence[date]
    touched: Mapping[str, int]
    kept: int


def item_neighbours(
    params: Mapping[str, Any],
    matrix: InteractionMatrix,
    eligible: NDArray[np.bool_],
    digests: Digests,
    stored: pa.Table,
    *,
    as_of: date,
) -> Neighbours:
    """The nearest eligible items of every item, by item-kNN with `params` on `matrix`.

    `digests` are those of the items (`touched.item_digests`), `stored` the rows of the night before that were made
    alike; without any, every row is made.
    """
    found = untouched(
        stored.to_batches(), digests, eligible, key="item_number", listed="neighbour_numbers", as_of=as_of
    )
    kept = stored.filter(pa.array(np.isin(stored["item_number"].to_numpy(), found.keys)))
    knn = ItemKnn(params)
    knn.fit_items(matrix, np.setdiff1d(np.arange(matrix.item_count), found.keys))
    rows: list[Sequence[tuple[int, float]]] = list(neighbour_rows(knn, eligible))
    scored = [as_of] * len(rows)
    columns = ("item_number", "neighbour_numbers", "similarities", "scored_as_of")
    for number, near, values, when in zip(*(kept[name].to_pylist() for name in columns), strict=True):
        rows[number], scored[number] = list(zip(near, values, strict=True)), when
    return Neighbours(rows, scored, found.touched, len(found.keys))


def neighbour_table(found: Neighbours, digests: Digests, *, made_by: str, as_of: date) -> pa.Table:
    """Rows of gold.item_neighbours: one for every item that has neighbours."""
    known = [number for number, row in enumerate(found.rows) if row]
    return pa.table(
        {
            "item_number": pa.array(known, pa.int32()),
            "neighbour_numbers": pa.array([[n for n, _ in found.rows[k]] for k in known], pa.list_(pa.int32())),
            "similarities": pa.array([[s for _, s in found.rows[k]] for k in known], pa.list_(pa.float32())),
            "history_digest": pa.array(digests.of(np.array(known, np.int64)).tolist(), pa.string()),
            "made_by": pa.array([made_by] * len(known), pa.string()),
            "scored_as_of": pa.array([found.scored_as_of[k] for k in known], pa.date32()),
            "as_of": pa.array([as_of] * len(known), pa.date32()),
        }
    )
