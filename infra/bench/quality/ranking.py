"""Models on a slice: fitted, asked by blocks on all cores, measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from infra.bench.quality.blend_weights import BlendWeights
from infra.bench.quality.tasks import SEED, Slice
from infra.bench.quality.training import Questions, Training
from spark_jobs.evaluation.full_ranking import is_relevant
from spark_jobs.evaluation.metrics import ranking_metrics
from spark_jobs.models.blend import standardize
from spark_jobs.models.factory import SEQUENCE_MODELS, build_model, build_sequence_model
from spark_jobs.models.ranking import mask_items, top_items

CELLS_PER_BLOCK = 4_000_000
METRICS: Mapping[str, str] = {"recall": "recall", "ndcg": "ndcg", "hr": "hit_rate", "mrr": "mrr"}
"""Name in the report -> name in `evaluation.metrics`."""

Recipe = Mapping[str, Any]


class Part:
    """A recipe, fitted on a training."""

    def __init__(self, recipe: Recipe, training: Training, *, like: Part | None = None) -> None:
        """`like`: the same recipe but for its params, from which whatever need not be learned again is taken."""
        self.recipe, self.training = recipe, training
        self.is_sequential = recipe["model"] in SEQUENCE_MODELS
        if self.is_sequential:
            self.owners, self.sequences = training.sequences(recipe)
        else:
            self.matrix = training.matrix(recipe)
        self.model = (like._refitted(recipe, training) if like is not None else None) or self._fitted()

    def _fitted(self) -> Any:
        name, params = self.recipe["model"], self.recipe["params"]
        with threadpool_limits(1, "blas"):
            if self.is_sequential:
                sequential = build_sequence_model(name, params)
                sequential.fit(self.sequences)
                return sequential
            model = build_model(name, params)
            model.fit(self.matrix)
            return model

    def _refitted(self, recipe: Recipe, training: Training) -> Any:
        refit = getattr(self.model, "refit", None)
        same = {name: value for name, value in self.recipe.items() if name != "params"}
        if refit is None or training is not self.training or any(recipe[name] != same[name] for name in same):
            return None
        return refit(recipe["params"])

    def scores(self, questions: Questions) -> NDArray[np.float32]:
        """Scores of all items for each question, as a fresh array; what is not finite ranks last."""
        if self.is_sequential:
            asked = self.training.asked_sequences(self.owners, self.sequences, questions)
            found = self.model.score_sequences(asked)
        else:
            histories, rows = self.training.histories(self.matrix, questions)
            found = self.model.score_block(histories, rows)
        found = np.asarray(found, np.float32)
        finite = np.isfinite(found)
        if not finite.all():
            found[~finite] = -np.inf
        return found


def by_block(asked: Slice, work: Callable[[Slice], Any], *, is_shuffled: bool = False) -> Iterator[Any]:
    """`work` on blocks of the slice; one BLAS thread each, as many at once as there are cores. What it gives comes in
    the order of the questions, also when the work is done in an order shuffled by a seed."""
    step = max(1, CELLS_PER_BLOCK // max(1, asked.training.item_count))
    rows = np.arange(len(asked.questions))
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    order = np.random.default_rng(SEED).permutation(len(blocks)) if is_shuffled else np.arange(len(blocks))
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        done = list(pool.map(lambda number: work(_block(asked, blocks[number])), order.tolist()))
    for place in np.argsort(order).tolist():
        yield done[place]


def _block(asked: Slice, rows: NDArray[np.int64]) -> Slice:
    part = slice(rows[0], rows[-1] + 1)
    return asked._replace(
        questions=asked.questions.part(rows),
        relevant=asked.relevant[part],
        relevant_counts=asked.relevant_counts[part],
        seen=None if asked.seen is None else asked.seen[part],
        negatives=None if asked.negatives is None else asked.negatives[part],
    )


def measure(scores: NDArray[np.float32], block: Slice, k: int) -> dict[str, NDArray[np.float64]]:
    """The metrics at k of each question, by their names in the report. Changes `scores`."""
    if block.negatives is not None:
        return _measure_sampled(scores, block, k)
    if block.seen is not None:
        mask_items(scores, block.seen)
    numbers, values = top_items(scores, k)
    numbers = np.where(np.isfinite(values), numbers, -1)
    return metrics_of(is_relevant(numbers, block.relevant), block.relevant_counts, k)


def _measure_sampled(scores: NDArray[np.float32], block: Slice, k: int) -> dict[str, NDArray[np.float64]]:
    """Each answer is ranked against the negatives alone (ties by item number); the mean over a question's answers."""
    assert block.negatives is not None
    found: dict[str, list[float]] = {f"{name}@{k}": [] for name in METRICS}
    for row in range(len(block.relevant_counts)):
        answers = block.relevant.indices[block.relevant.indptr[row] : block.relevant.indptr[row + 1]]
        against = block.negatives.indices[block.negatives.indptr[row] : block.negatives.indptr[row + 1]]
        against = np.setdiff1d(against, answers)
        mine, theirs = scores[row, answers][:, None], scores[row, against][None, :]
        ahead = (theirs > mine) | ((theirs == mine) & (against[None, :] < answers[:, None]))
        rank = ahead.sum(axis=1)
        hits = np.zeros((int(block.relevant_counts[row]), k), bool)
        inside = np.flatnonzero((rank < k) & np.isfinite(mine[:, 0]))
        hits[inside, rank[inside]] = True
        for name, values in metrics_of(hits, np.ones(len(hits), np.int64), k).items():
            found[name].append(float(values.mean()))
    return {name: np.array(values) for name, values in found.items()}


def metrics_of(hits: NDArray[np.bool_], counts: NDArray[np.int64], k: int) -> dict[str, NDArray[np.float64]]:
    """The metrics at k of each question, by their names in the report, from where its answers stood."""
    values = ranking_metrics(hits, counts, (k,))
    return {f"{name}@{k}": values[f"{inner}_at_{k}"] for name, inner in METRICS.items()}


def evaluate(part: Part, asked: Slice, k: int) -> dict[str, float]:
    """Means of the metrics at k of one part."""
    found = list(by_block(asked, lambda block: measure(part.scores(block.questions), block, k)))
    return {name: float(np.concatenate([block[name] for block in found]).mean()) for name in found[0]}


class Measured(NamedTuple):
    """What `evaluate_all` found.

    values   by name of a part or a blend: each metric of every question that it was asked
    seconds  by part: processor time of its scores, its ranking and its share of the blends
    """

    values: dict[str, dict[str, NDArray[np.float64]]]
    seconds: dict[str, float]


def evaluate_all(
    parts: Mapping[str, Part],
    blends: Mapping[str, BlendWeights],
    asked: Slice,
    k: int,
    *,
    needed: str | None = None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Measured:
    """Every part, and every blend, on all questions. Each part scores once.

    Once `may_go_on` says no, only what `needed` (a part or a blend) is made of goes on. Blocks of questions come in an
    order that is shuffled by a seed, so that the others were asked of a sample of all questions until then.
    """
    wanted = set(parts) if needed is None else set(blends.get(needed, BlendWeights({needed: 1.0})).parts())
    seconds = dict.fromkeys(sorted(parts), 0.0)
    begun_blocks, lock = count(), Lock()

    def work(block: Slice) -> dict[str, dict[str, NDArray[np.float64]]]:
        is_whole = next(begun_blocks) == 0 or needed is None or may_go_on()
        found = {}
        sums: dict[str, NDArray[np.float32]] = {}
        for name in sorted(parts) if is_whole else sorted(wanted):
            begun = time.thread_time()
            scores = parts[name].scores(block.questions)
            used = {label: blend.of(name, block.questions) for label, blend in blends.items() if name in blend.parts()}
            if is_whole or name == needed:
                is_kept = used and block.seen is not None  # measuring strikes out what was seen
                found[name] = measure(scores.copy() if is_kept else scores, block, k)
            if used:
                scaled = standardize(scores)
                for label, weights in used.items():
                    term = scaled * weights[:, None]
                    if label in sums:
                        sums[label] += term
                    else:
                        sums[label] = term
            with lock:
                seconds[name] += time.thread_time() - begun
        totals = sums if is_whole else {label: total for label, total in sums.items() if label == needed}
        return found | {label: measure(total, block, k) for label, total in totals.items()}

    blocks: Sequence[Mapping[str, Mapping[str, NDArray[np.float64]]]] = list(by_block(asked, work, is_shuffled=True))
    names = sorted({name for block in blocks for name in block}, key=[*sorted(parts), *blends].index)
    values = {}
    for name in names:
        told = [block[name] for block in blocks if name in block]
        values[name] = {metric: np.concatenate([block[metric] for block in told]) for metric in told[0]}
    return Measured(values, seconds)
