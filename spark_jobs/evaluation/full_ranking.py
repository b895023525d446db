"""Full ranking: every model ranks *all* items for every test person; training items are removed; the top counts.

Memory: a block of persons x all items for each thread. The lists of a block are turned into metrics and dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spark_jobs.evaluation.list_quality import K, sampled_persons
from spark_jobs.evaluation.metrics import (
    CURVE_DEPTH,
    KS,
    coverage,
    exposure,
    gini,
    lorenz,
    metric_name,
    ranking_metrics,
    top_share,
)
from spark_jobs.evaluation.split import SLICES, TimeSplit
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.matrix import histories_of, matrix_rows
from spark_jobs.models.ranking import mask_items, top_items
from spark_jobs.models.threads import by_blocks, ranges

CELLS_PER_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True)
class ModelEvaluation:
    """What one model did on one split.

    per_user          metric name -> one value per test person, in the order of `split.subjects`
    exposed           by k: how often each item stood in the top k
    known_items       by item number: it had a training event
    non_finite_count  scores that were NaN or +infinite (they rank last); -inf is a model's way to say nothing
    recall_by_k       mean recall at 1, 2, ... CURVE_DEPTH over all test persons; empty without any
    lists             the top 20s of `sampled_persons`, -1 where there is no item
    hits              CSR, persons x items: the test items that their top 20 held (pattern)
    score_seconds     wall time of scoring and ranking everybody, in this process
    """

    per_user: Mapping[str, NDArray[np.float64]]
    exposed: Mapping[int, NDArray[np.int64]]
    known_items: NDArray[np.bool_]
    non_finite_count: int
    recall_by_k: NDArray[np.float64]
    lists: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))
    hits: sparse.csr_matrix = field(default_factory=lambda: sparse.csr_matrix((0, 0), dtype=np.float32))
    score_seconds: float = 0.0

    def beyond_accuracy(self) -> dict[str, float]:
        """`coverage`, `top_share`, `gini` and `distinct_items` at each k, over all test persons."""
        found: dict[str, float] = {}
        for k, exposed in self.exposed.items():
            found[metric_name("coverage", k)] = coverage(exposed, self.known_items)
            found[metric_name("top_share", k)] = top_share(exposed, k)
            found[metric_name("gini", k)] = gini(exposed, self.known_items)
            found[metric_name("distinct_items", k)] = float((exposed > 0).sum())
        return found

    def lorenz(self, k: int) -> list[float]:
        """The Lorenz curve of how often the known items stand in the top k."""
        return lorenz(self.exposed[k], self.known_items)

    def by_slice(self, slices: NDArray[np.str_]) -> dict[str, dict[str, float]]:
        """Means by slice, then metric; a slice without persons is left out."""
        means: dict[str, dict[str, float]] = {}
        for name in SLICES:
            inside = np.ones(len(slices), bool) if name == "all" else slices == name
            if inside.any():
                means[name] = {metric: float(values[inside].mean()) for metric, values in self.per_user.items()}
        return means


class Ranked(NamedTuple):
    """Items of some persons, best first, -1 where there are fewer, none that was closed to them; and how many of the
    scores behind them were not finite (`ModelEvaluation.non_finite_count`)."""

    numbers: NDArray[np.int32]
    non_finite_count: int


Rank = Callable[[NDArray[np.int64], int], Ranked]
"""(places of test persons in the split, how many items) -> their best items."""


def ranking_of(model: Model, matrix: InteractionMatrix, split: TimeSplit) -> Rank:
    """All items of the catalogue, also one nobody ever had, ranked by the model. `matrix` is what it was fitted on; a
    person who has no row there (all their events had no weight in the recipe) is scored on an empty history."""
    rows = matrix_rows(matrix, split.subjects)

    def rank(places: NDArray[np.int64], count: int) -> Ranked:
        scores = model.score_block(histories_of(matrix, rows[places]), rows[places])
        non_finite = int((np.isnan(scores) | (scores == np.inf)).sum())
        return Ranked(rank_unseen(scores, split.seen[places], count), non_finite)

    return rank


def evaluate(model: Model, matrix: InteractionMatrix, split: TimeSplit, *, ks: Sequence[int] = KS) -> ModelEvaluation:
    """What `ranking_of` the model is worth to every test person of the split."""
    return evaluate_ranking(ranking_of(model, matrix, split), split, ks=ks)


def evaluate_ranking(rank: Rank, split: TimeSplit, *, ks: Sequence[int] = KS) -> ModelEvaluation:
    """Ask for the items of every test person of the split, by blocks, and measure them. `rank` is called from several
    threads."""
    deepest = max(CURVE_DEPTH, *ks)
    person_count, item_count = split.relevant.shape
    step = max(1, CELLS_PER_BLOCK // max(1, item_count))
    hits = np.zeros((person_count, deepest), bool)
    exposed = {k: np.zeros(item_count, np.int64) for k in ks}
    non_finite = 0
    sampled, lists = sampled_persons(person_count), np.full((person_count, K), -1, np.int32)
    began = time.monotonic()

    def asked(block: slice) -> tuple[slice, Ranked, NDArray[np.bool_]]:
        part = np.arange(block.start, block.stop)
        found = rank(part, deepest)
        return block, found, is_relevant(found.numbers, split.relevant[part])

    for part, (numbers, strange), is_right in by_blocks(asked, ranges(person_count, step)):
        non_finite += strange
        hits[part, : numbers.shape[1]] = is_right
        width = min(K, numbers.shape[1])
        lists[part, :width] = numbers[:, :width]
        for k in ks:
            exposed[k] += exposure(numbers[:, :k], item_count)
    places = hits[:, :K] & (lists >= 0)
    found = sparse.csr_matrix(
        (np.ones(int(places.sum()), np.float32), (np.nonzero(places)[0], lists[places])), shape=split.relevant.shape
    )
    relevant_counts = np.diff(split.relevant.indptr).astype(np.int64)
    per_user: dict[str, Any] = ranking_metrics(hits, relevant_counts, ks)
    curve = np.empty(0)
    if person_count:
        curve = (np.cumsum(hits, axis=1) / relevant_counts[:, None]).mean(axis=0)[:CURVE_DEPTH]
    return ModelEvaluation(
        per_user, exposed, split.known_items, non_finite, curve, lists[sampled], found, time.monotonic() - began
    )


def rank_unseen(scores: NDArray[np.float32], seen: sparse.csr_matrix, count: int) -> NDArray[np.int32]:
    """The `count` best items of each row that the person has not had, -1 where there are fewer. Changes `scores`."""
    scores[~np.isfinite(scores)] = -np.inf
    mask_items(scores, seen)
    numbers, values = top_items(scores, count)
    return np.where(np.isfinite(values), numbers, -1)


def is_relevant(numbers: NDArray[np.int32], relevant: sparse.csr_matrix) -> NDArray[np.bool_]:
    """Whether each listed item (-1: none) is one of its row's relevant items."""
    width = relevant.shape[1]
    wanted = np.repeat(np.arange(relevant.shape[0]), np.diff(relevant.indptr)) * width + relevant.indices
    listed = np.arange(len(numbers))[:, None] * width + numbers
    return np.isin(listed, wanted) & (numbers >= 0)
