"""Models that are a link from each item to some others: scores, reasons, and the arrays on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import Terms
from spark_jobs.models.item_knn import ITEMS_PER_BLOCK, best_of_cells, best_of_product
from spark_jobs.models.linear import LinearScores, strength, strengths
from spark_jobs.models.matrix import dense_part, link_values
from spark_jobs.models.products import dense_product
from spark_jobs.models.threads import by_blocks, ranges


class LinkedItems(LinearScores):
    """score of j = sum over the history of log2(1 + preference of i) * links[i, j].

    Subclasses name themselves and fill `links`, CSR float32 (items x items).
    """

    name: str
    array: str
    """What the links are called in the files."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self.links = sparse.csr_matrix((0, 0), dtype=np.float32)

    @property
    def item_count(self) -> int:  # type: ignore[override]
        return int(self.links.shape[0])

    def score_block(
        self,
        histories: sparse.csr_matrix,
        rows: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Histories alone decide; `rows` changes nothing."""
        return dense_product(strength(histories), self.links)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:  # noqa: ARG002
        """log2(1 + preference) * link; each row sums to its score."""
        strong = strength(history)
        links = dense_part(self.links, strong.indices, np.asarray(item_numbers, dtype=np.int64)).T
        return Terms(strong.indices, links * strong.data.astype(np.float64))

    def pair_terms(
        self,
        past: NDArray[np.int32],
        preference: NDArray[np.float32],
        places: NDArray[np.int64],
        asked: NDArray[np.int32],
    ) -> NDArray[np.float64]:
        """As `block_reasons.PairTerms`."""
        links = link_values(self.links, past[places], asked)
        return links * strengths(preference).astype(np.float64)[places]

    def save(self, folder: Path) -> None:
        parts = {"data": self.links.data, "indices": self.links.indices, "indptr": self.links.indptr}
        arrays = {f"{self.array}_{name}": array for name, array in parts.items()}
        save_arrays(folder, model=self.name, params=self.params, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        data, indices, indptr = (arrays[f"{cls.array}_{name}"] for name in ("data", "indices", "indptr"))
        items = len(indptr) - 1
        model.links = sparse.csr_matrix((data, indices, indptr), shape=(items, items))
        return model


def best_links(
    left: sparse.csr_matrix,
    right: sparse.csr_matrix,
    column_factors: NDArray[np.float32],
    count: int,
    more: Callable[[slice], NDArray[np.float32]] | None = None,
) -> sparse.csr_matrix:
    """Of left @ right, links from all items to all, times the factor of where they lead: the `count` best of each item,
    never to itself, ties by number. `more` is added to the product: a dense block for a range of items."""

    def best_of(block: slice) -> sparse.csr_matrix:
        def weighed(values: NDArray[np.float32], rows: Any, columns: Any) -> NDArray[np.float32]:
            return np.where(rows + block.start == columns, 0.0, values * column_factors[columns]).astype(np.float32)

        if more is None:
            return best_of_product(left[block], right, weighed, count)
        return best_of_cells(dense_product(left[block], right) + more(block), weighed, count)

    blocks = list(by_blocks(best_of, ranges(len(column_factors), ITEMS_PER_BLOCK)))
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix((0, 0), dtype=np.float32)
