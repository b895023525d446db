"""RP3beta: a walk of three steps from a person over their items and those items' people, popular ends damped.

B. Paudel, F. Christoffel, C. Newell, A. Bernstein: Updatable, accurate, diverse, and scalable recommendations for
interactive applications (2016).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from feature_repo.contracts.packing import Source
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.linear import strength
from spark_jobs.models.linked_items import LinkedItems, best_links


class Rp3Beta(LinkedItems):
    """walk(i -> j) = sum over people u of p(i -> u)^alpha p(u -> j)^alpha / degree(j)^beta; score = history . walk.

    p(i -> u) and p(u -> j) are the shares of log2(1 + preference) of the item and of the person; degree(j) is how many
    people have j. Each item keeps its `neighbours` best ends, ties by number.

    params
        alpha        below 1 evens out the probabilities of the steps
        beta         how much a popular end is damped; 0 is P3alpha
        neighbours   ends kept for each item; more is smoother and larger
    """

    name = "rp3beta"
    array = "walk"
    source = int(Source.ITEM_KNN)

    def fit(self, matrix: InteractionMatrix) -> None:
        weighted = strength(matrix.preference)
        alpha, beta, kept = (
            float(self.params["alpha"]),
            float(self.params["beta"]),
            int(self.params["neighbours"]),
        )
        to_items = _shares(weighted).power(alpha)
        to_people = _shares(weighted.T.tocsr()).power(alpha)
        degree = np.bincount(weighted.indices, minlength=matrix.item_count)
        damped = (np.maximum(degree, 1.0) ** -beta).astype(np.float32)
        self.links = best_links(to_people, to_items, damped, kept)


def _shares(weighted: sparse.csr_matrix) -> sparse.csr_matrix:
    """Each row divided by its sum; an empty row stays empty."""
    totals = np.asarray(weighted.sum(axis=1), dtype=np.float64).ravel()
    scaled = weighted.astype(np.float32, copy=True)
    scaled.data = (scaled.data / np.repeat(np.where(totals > 0, totals, 1.0), np.diff(weighted.indptr))).astype(
        np.float32
    )
    return scaled
