"""The common model interface: fit, score by user block, similar, explain, save and load as plain arrays.

A model never sees ids, tables or Spark: it gets an `InteractionMatrix` and gives back arrays. That is what lets one
kernel run in a driver, in an executor's `mapInArrow`, in a bench and in a test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spark_jobs.models.item_content import ItemContent


@dataclass(frozen=True, slots=True)
class InteractionMatrix:
    """Who preferred what, how much, and when last.

    subjects     subject keys, sorted; row r of the matrix is subjects[r]
    preference   CSR float32, shape (subjects, item_count): summed event weights, decayed by age; columns are item
                 numbers, indices sorted within each row, no explicit zeros
    last_micros  int64, aligned with preference.data: newest event of the pair, us since 1970 UTC
    content      what the catalogue says of each item; None: nobody told
    """

    subjects: NDArray[np.str_]
    preference: sparse.csr_matrix
    last_micros: NDArray[np.int64]
    content: ItemContent | None = None

    @property
    def item_count(self) -> int:
        return int(self.preference.shape[1])


class Terms(NamedTuple):
    """What each past item adds to the scores of some items.

    items   item numbers of the history
    values  shape (items asked, items of the history), in the model's own units
    """

    items: NDArray[np.int32]
    values: NDArray[np.float64]


@runtime_checkable
class Model(Protocol):
    """One recommender. Everything is deterministic given the matrix, the parameters and the seed in them."""

    name: str
    """`popularity`, `item_knn`, `als` ...: the name in MLflow, in gold.evaluations and in reasons."""
    source: int
    """`packing.Source` of its candidates."""
    params: Mapping[str, Any]

    def fit(self, matrix: InteractionMatrix) -> None:
        """Learn. Called once."""

    def score_block(self, histories: sparse.csr_matrix, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Scores, shape (block, item_count), higher is better, of every item for each history (CSR rows).

        `rows` are the users' rows in the fitted matrix, or -1 for a history that was not there (it is folded in);
        None means all -1. Seen items are *not* removed here. -inf: never to be listed; the model knows nothing of it.
        """

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """The nearest items of one item, best first, ties by number, itself left out; empty when nothing is known."""

    def explain(
        self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]
    ) -> list[tuple[int | None, int | None]]:
        """For each item the one or two items of the history (1 x item_count) that spoke most for it, best first."""

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:
        """The numbers behind `explain`: what each item of the history adds to the score of each asked item."""

    def save(self, folder: Path) -> None:
        """Arrays (.npy, no pickle) + manifest.json with params, shapes and SHA-256 of each file."""

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Inverse of `save`. Raises ContractError when a file does not match its SHA-256."""
