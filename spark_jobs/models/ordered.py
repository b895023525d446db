"""A model of ordered histories behind the interface of all models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import ContractError
from spark_jobs.models.base import InteractionMatrix, Terms
from spark_jobs.models.ranking import two_best
from spark_jobs.models.sequences import SequenceModel, Sequences, make_sequences


class OrderedModel:
    """A `SequenceModel` that keeps the sequences of the people it was fitted on, one a row.

    A history that was not there has no order, so the model says nothing of it: all scores are 0. Sequences are not
    saved with the model; one that was loaded knows nobody until `remember`.
    """

    def __init__(self, inner: SequenceModel, sequences: Sequences | None = None) -> None:
        self.inner = inner
        self.name, self.source, self.params = inner.name, inner.source, inner.params
        self.sequences = sequences if sequences is not None else make_sequences([], item_count=0)

    def fit(self, matrix: InteractionMatrix) -> None:  # noqa: ARG002
        """Never: a matrix has no order. `factory.fit` fits the inner model."""
        raise ContractError(f"{self.name} learns from sequences, not from a matrix")

    def remember(self, sequences: Sequences) -> None:
        """Take the sequences of the people to score, one a row."""
        self.sequences = sequences

    def score_block(self, histories: sparse.csr_matrix, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """By the kept sequences of `rows`; `histories` only say how many there are, and of how many items."""
        if rows is None or not len(self.sequences):
            return np.zeros(histories.shape, np.float32)
        return self.inner.score_sequences(self.sequences.block(rows))

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        return self.inner.similar(item_number, count)

    def explain(
        self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]
    ) -> list[tuple[int | None, int | None]]:
        """The items of the kept sequence with the largest terms."""
        found = self.terms(history, row, item_numbers)
        return two_best(found.values, found.items)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:  # noqa: ARG002
        if row < 0 or row >= len(self.sequences):
            return Terms(np.empty(0, np.int32), np.zeros((len(item_numbers), 0)))
        return self.inner.sequence_terms(self.sequences.block(np.array([row])), item_numbers)

    def save(self, folder: Path) -> None:
        self.inner.save(folder)

    @classmethod
    def load(cls, folder: Path) -> OrderedModel:
        from spark_jobs.models.factory import load_sequence_model  # it knows this model too

        return cls(load_sequence_model(folder))
