"""Content: items like those that a person had, by what the catalogue says of them. It needs nobody to have had them.

Likeness is the cosine of TF-IDF vectors (G. Salton, C. Buckley: Term-weighting approaches in automatic text retrieval,
1988), one for each kind of term.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.packing import Source
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.item_content import EMBEDDING, KINDS, ItemContent
from spark_jobs.models.linked_items import LinkedItems, best_links

COMMON_SHARE, COMMON_COUNT = 0.05, 1_000
"""A term that more than this share of all items has, and more than so many, links everything with everything: it says
little, would cost most, and is left out."""


MOST_ITEMS = 30_000
"""The night takes content up to so many: with an embedding every item meets every other."""
MOST_MEETINGS = 4_000_000_000
"""... and up to so many meetings of two items in a term; a fit does about 100 million a second."""


def meetings(content: ItemContent) -> int:
    """How many products a fit adds up, the terms that are too common left out."""
    items, terms = content.terms.shape
    having = np.bincount(content.terms.indices, minlength=terms)
    return int(np.square(having[_is_telling(having, items)]).sum()) + items**2 * content.vectors.shape[1]


def _is_telling(having: NDArray[np.int64], items: int) -> NDArray[np.bool_]:
    return having <= max(COMMON_COUNT, COMMON_SHARE * items)


class Content(LinkedItems):
    """link(i -> j) = (1 + people who have j)^popular_power * likeness(i, j), and likeness(i, j) is the mean over kinds,
    by their weights, of the cosine of x_i and x_j.

    x is an item's terms of one kind (`item_content`), each log(items / items with the term)^idf_power; an item that
    says nothing of a kind is like no other in it. Each item keeps its `neighbours` best, ties by number. Items that
    nobody ever had are linked like all others.

    params
        text, category, brand, price, tags, embedding   the weight of each kind; 0 leaves it out
        idf_power       0: every term counts alike; above 1 only the rare ones do
        popular_power   0: likeness alone decides; raising it brings, of those alike, what many have
        neighbours      others that each item keeps
    """

    name = "content"
    array = "links"
    source = int(Source.CONTENT)

    def fit(self, matrix: InteractionMatrix) -> None:
        """Raises DataError when nothing is said of the items (`matrix.content` is None)."""
        if matrix.content is None:
            raise DataError("content has nothing to learn from: nobody described the items", field="content")
        content = matrix.content
        vectors = _scaled_terms(content, self.params)
        others = vectors.T.tocsr()
        weight = float(self.params[EMBEDDING]) if content.vectors.any() else 0.0
        total = sum(float(self.params[kind]) for n, kind in enumerate(KINDS) if (content.kinds == n).any()) + weight
        dense = content.vectors * np.float32(np.sqrt(weight))
        people = np.bincount(matrix.preference.indices, minlength=matrix.item_count)
        factors = (1.0 + people) ** float(self.params["popular_power"]) / max(total, 1e-12)

        def alike_by_vector(block: slice) -> NDArray[np.float32]:
            product: NDArray[np.float32] = dense[block] @ dense.T
            return product

        self.links = best_links(
            vectors, others, factors.astype(np.float32), int(self.params["neighbours"]),
            more=alike_by_vector if weight else None,
        )  # fmt: skip


def _scaled_terms(content: ItemContent, params: Mapping[str, Any]) -> sparse.csr_matrix:
    """The terms such that the product of two rows is the weighted sum of their cosines."""
    items, terms = content.terms.shape
    having = np.bincount(content.terms.indices, minlength=terms)
    rarity = np.log(items / np.maximum(having, 1)) ** float(params["idf_power"])
    weights = np.array([float(params[kind]) for kind in KINDS])
    is_kept = _is_telling(having, items) & (weights[content.kinds] > 0)
    scaled = (content.terms @ sparse.diags(np.where(is_kept, rarity, 0.0))).tocsr().astype(np.float64)
    rows = np.repeat(np.arange(items), np.diff(scaled.indptr))
    group = rows * len(KINDS) + content.kinds[scaled.indices]
    lengths = np.sqrt(np.bincount(group, weights=scaled.data**2, minlength=items * len(KINDS)))
    root = np.sqrt(weights)[content.kinds[scaled.indices]]
    scaled.data = scaled.data * root / np.maximum(lengths[group], 1e-12)
    scaled.eliminate_zeros()
    return scaled.astype(np.float32)
