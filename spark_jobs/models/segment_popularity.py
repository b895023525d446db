"""Segment popularity: what most people prefer in the categories where this person looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import InteractionMatrix, Terms
from spark_jobs.models.linear import LinearScores, strength, strengths


class SegmentPopularity(LinearScores):
    """score of j = (sum of log2(1 + preference) over the history's items in j's top category) * share of j in it.

    The share of an item is its part of its category's popularity, in which each subject's part is capped, as in
    `popularity`. Items without a category score 0, and so does everything for a person without any of a category.

    params
        subject_cap   the most one subject can add to one item, in event weights
    """

    name = "segment_popularity"
    source = int(Source.SEGMENT)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self.segments: NDArray[np.int32] = np.empty(0, np.int32)
        self.shares: NDArray[np.float32] = np.empty(0, np.float32)

    @property
    def item_count(self) -> int:  # type: ignore[override]
        return len(self.segments)

    def fit(self, matrix: InteractionMatrix) -> None:
        """Raises DataError when nothing is said of the items (`matrix.content` is None)."""
        if matrix.content is None:
            raise DataError("segment_popularity has no segments: nobody described the items", field="content")
        known, numbers = np.unique(matrix.content.tops, return_inverse=True)
        self.segments = (numbers - (1 if len(known) and known[0] < 0 else 0)).astype(np.int32)
        capped = np.minimum(matrix.preference.data.astype(np.float64), float(self.params["subject_cap"]))
        totals = np.bincount(matrix.preference.indices, weights=capped, minlength=matrix.item_count)
        inside = self.segments >= 0
        of_segment = np.bincount(self.segments[inside], weights=totals[inside], minlength=1)
        whole = np.maximum(of_segment, 1e-12)[np.maximum(self.segments, 0)]
        self.shares = np.where(inside, totals / whole, 0.0).astype(np.float32)

    def score_block(
        self,
        histories: sparse.csr_matrix,
        rows: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Histories alone decide; `rows` changes nothing."""
        members = np.flatnonzero(self.segments >= 0)
        shape = (self.item_count, int(self.segments.max(initial=0)) + 1)
        ones = np.ones(len(members), np.float32)
        belongs = sparse.csr_matrix((ones, (members, self.segments[members])), shape=shape)
        looks = (strength(histories) @ belongs).toarray()
        return (looks[:, np.maximum(self.segments, 0)] * self.shares).astype(np.float32, copy=False)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:  # noqa: ARG002
        """Of an item of the same category its share times log2(1 + preference); each row sums to its score."""
        asked = np.asarray(item_numbers, dtype=np.int32)
        places = np.tile(np.arange(history.nnz), len(asked))
        values = self.pair_terms(history.indices, history.data, places, np.repeat(asked, history.nnz))
        return Terms(history.indices, values.reshape(len(asked), history.nnz))

    def pair_terms(
        self,
        past: NDArray[np.int32],
        preference: NDArray[np.float32],
        places: NDArray[np.int64],
        asked: NDArray[np.int32],
    ) -> NDArray[np.float64]:
        """As `block_reasons.PairTerms`."""
        segments = self.segments[asked]
        is_same = (segments >= 0) & (segments == self.segments[past][places])
        return np.where(is_same, strengths(preference)[places] * self.shares[asked], np.float32(0)).astype(np.float64)

    def save(self, folder: Path) -> None:
        arrays = {"segments": self.segments, "shares": self.shares}
        save_arrays(folder, model=self.name, params=self.params, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> SegmentPopularity:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        model.segments, model.shares = arrays["segments"], arrays["shares"]
        return model
