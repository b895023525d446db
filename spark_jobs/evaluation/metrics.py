"""Ranking metrics per person, from where in their list the relevant items stood.

Definitions, for a list cut at k and a set of relevant items (the test items):
    recall    hits / |relevant|
    ndcg      sum over hits of 1 / log2(rank + 1), over the same sum for an ideal list: min(|relevant|, k) hits on top
    hit_rate  1 when there is any hit
    mrr       1 / rank of the first hit, 0 when it stands beyond k
Rank starts at 1. Lists are ordered by score, ties by item number (`models.ranking.top_items`): no tie counts as a win.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

METRICS = ("recall", "ndcg", "hit_rate", "mrr")
KS = (10, 20)
CURVE_DEPTH = 50
"""How deep the curve of recall against k goes."""


def metric_name(metric: str, k: int) -> str:
    """`recall_at_20`: the name in evaluation.json, in user_metrics.parquet and in MLflow."""
    return f"{metric}_at_{k}"


def ranking_metrics(
    hits: NDArray[np.bool_], relevant_counts: NDArray[np.int64], ks: Sequence[int] = KS
) -> dict[str, NDArray[np.float64]]:
    """Every metric at every k, one value per person, by `metric_name`.

    hits             shape (persons, places): whether the item at each place of the list is relevant; a list shorter
                     than k simply has no hits there
    relevant_counts  how many relevant items each person has, at least 1
    """
    if (relevant_counts < 1).any():
        raise ValueError("a person without relevant items has no metrics: leave them out")
    places = hits.shape[1]
    gains = 1.0 / np.log2(np.arange(2, max(places, *ks) + 2))
    ideal = np.r_[0.0, np.cumsum(gains)]
    found: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        top = hits[:, :k]
        any_hit = np.logical_or.reduce(top, axis=1)
        first = top.argmax(axis=1) if top.shape[1] else np.zeros(len(hits), np.int64)
        found[metric_name("recall", k)] = top.sum(axis=1) / relevant_counts
        gained: NDArray[np.float64] = (top * gains[: top.shape[1]]).sum(axis=1)
        found[metric_name("ndcg", k)] = gained / ideal[np.minimum(relevant_counts, k)]
        found[metric_name("hit_rate", k)] = np.asarray(any_hit, np.float64)
        found[metric_name("mrr", k)] = np.where(any_hit, 1.0 / (first + 1), 0.0)
    return found


def exposure(numbers: NDArray[np.int32], item_count: int) -> NDArray[np.int64]:
    """How often each item stands in the lists (`numbers`, any shape; a negative number is an empty place)."""
    return np.bincount(numbers[numbers >= 0].ravel(), minlength=item_count)


def coverage(exposed: NDArray[np.int64], known: NDArray[np.bool_]) -> float:
    """Share of the known items (those with a training event) that stand in at least one list."""
    return float(((exposed > 0) & known).sum() / max(1, known.sum()))


def top_share(exposed: NDArray[np.int64], k: int) -> float:
    """Share of all places that the k most shown items take: 1 when everybody gets the same list of k."""
    total = exposed.sum()
    return float(np.sort(exposed)[::-1][:k].sum() / total) if total else 0.0


def lorenz(exposed: NDArray[np.int64], known: NDArray[np.bool_], points: int = 50) -> list[float]:
    """Share of all places taken by the least shown 0/points, 1/points ... points/points of the known items.

    Between items the curve is linear. The diagonal when nothing is shown.
    """
    counts = np.sort(exposed[known]).astype(np.float64)
    share = np.linspace(0.0, 1.0, points + 1)
    if counts.sum() == 0:
        return [float(s) for s in share]
    cumulative = np.r_[0.0, np.cumsum(counts)] / counts.sum()
    return [float(v) for v in np.interp(share * len(counts), np.arange(len(cumulative)), cumulative)]


def gini(exposed: NDArray[np.int64], known: NDArray[np.bool_]) -> float:
    """How unevenly the places fall on the known items: 0 all alike, towards 1 a single item takes all.

    G = sum over items, ascending, of (2 rank - n - 1) x / (n sum x); 0 when nothing is shown.
    """
    counts = np.sort(exposed[known]).astype(np.float64)
    total, size = counts.sum(), len(counts)
    if total == 0:
        return 0.0
    return float(((2 * np.arange(1, size + 1) - size - 1) * counts).sum() / (size * total))
