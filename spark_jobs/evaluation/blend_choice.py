"""The night's blend: its mode and weights, chosen on the validation window from the recipes that were tried there.

The test window, which the gate judges on, is never seen here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spark_jobs.evaluation.blending import (
    Pool,
    join_pools,
    pool_block,
    pool_hits,
    search_weights,
    weight_floor,
    weighted_scores,
)
from spark_jobs.evaluation.full_ranking import CELLS_PER_BLOCK
from spark_jobs.evaluation.metrics import metric_name, ranking_metrics
from spark_jobs.evaluation.split import TimeSplit
from spark_jobs.evaluation.trials import Choice, Trial
from spark_jobs.models.activity import ACTIVITY_SLICES
from spark_jobs.models.blend import standardize
from spark_jobs.models.blend_model import CASCADE, FLOOR_PART, SWITCHING, WEIGHTED
from spark_jobs.models.factory import Fitted
from spark_jobs.models.matrix import histories_of, matrix_rows
from spark_jobs.models.ranking import top_items
from spark_jobs.models.recipes import blend_recipe

PERSONS = 1_000
"""Of the validation that weights are searched on: weights move little beyond."""
GRID = (0.0, 0.05, 0.15, 0.35, 0.7, 1.0, 1.5)
"""Coarser than the bench's: one night's window tells no finer."""
LEAST_SLICE_PERSONS = 100
"""A slice with fewer gets the weights of everybody."""
POOL_DEPTH = 100
CASCADE_DEPTH = 50
FIRST_STAGES = 3
"""So many of the best single models are tried as the first stage of a cascade, and the weighted blend."""
_K = 20

Weights = dict[str, float]


class _Way(NamedTuple):
    """One way to blend, and what each validation person got of it (NDCG@20)."""

    words: str
    recipe: Mapping[str, Any]
    quality: NDArray[np.float64]


def choose_blend(choices: Mapping[str, Choice], validation: TimeSplit | None) -> Choice:
    """The blend of the recipes that were chosen, or no recipe (empty), with the reason.

    Tried in this order: the same weights for everybody; weights by slice; a part per slice (switching); the items of
    one part or of the blend ordered by another (cascade). A later way is taken only if it is better than the one held
    by more than one standard error of the paired difference over the persons: else it is luck.
    """
    fitted = {name: c.validated.fitted for name, c in sorted(choices.items()) if c.validated and c.validated.fitted}
    if validation is None or len(fitted) < 2:
        return Choice({}, (), None, "no blend: fewer than two models were tried on a validation window")
    began = time.monotonic()
    names = list(fitted)
    slices = validation.slices
    rows = np.unique(np.linspace(0, len(slices) - 1, min(PERSONS, len(slices))).astype(np.int64))
    pool, slices = _make_pool(list(fitted.values()), validation, rows), slices[rows]
    recipes = {name: choices[name].recipe for name in names}
    ways = _ways(names, pool, slices, recipes)
    best = 0
    for number, way in enumerate(ways):
        if number and _is_better(way.quality, ways[best].quality):
            best = number
    seconds = time.monotonic() - began
    trials = [Trial(way.words, way.recipe, _metrics(way.quality, slices), seconds) for way in ways]
    chosen = ways[best]
    speaking = [name for name in chosen.recipe["params"]["parts"] if name != FLOOR_PART]
    persons = f"{len(slices):,} persons, {validation.test_days} days from {validation.test_start:%Y-%m-%d}"
    if len(speaking) < 2:
        return Choice(
            {}, trials, best, f"no blend: {speaking[0] if speaking else FLOOR_PART} alone is best ({persons})"
        )
    why = f"{chosen.words} is best of {len(ways)} ways: validation NDCG@20 {trials[best].quality:.4f} ({persons})"
    return Choice(chosen.recipe, trials, best, why)


def _ways(
    names: Sequence[str], pool: Pool, slices: NDArray[np.str_], recipes: Mapping[str, Mapping[str, Any]]
) -> list[_Way]:
    singles = np.array([_quality(pool, _alone(names, place)).mean() for place in range(len(names))])
    start = _alone(names, int(singles.argmax()))

    def found(words: str, by_slice: Mapping[str, NDArray[np.float64]], mode: str) -> _Way:
        quality = np.zeros(len(slices))
        for part in ACTIVITY_SLICES:
            inside = slices == part
            if inside.any():
                quality[inside] = _quality(pool.part(inside), by_slice[part])
        weights = {part: _named(names, by_slice[part]) for part in ACTIVITY_SLICES}
        return _Way(words, blend_recipe(recipes, weights, mode=mode), quality)

    shared, _ = search_weights(names, start, partial(_mean_quality, pool), grid=GRID)
    ways = [found("weighted", dict.fromkeys(ACTIVITY_SLICES, shared), WEIGHTED)]
    own, switched = dict.fromkeys(ACTIVITY_SLICES, shared), dict.fromkeys(ACTIVITY_SLICES, start)
    for part in ACTIVITY_SLICES:
        inside = slices == part
        if inside.sum() < LEAST_SLICE_PERSONS:
            continue
        mine = pool.part(inside)
        tried, _ = search_weights(
            names, shared, partial(_mean_quality, mine), grid=GRID, may_go_on=lambda: False
        )  # one round: it starts where everybody's weights ended
        if _is_better(_quality(mine, tried), _quality(mine, shared)):
            own[part] = tried
        alone = [_quality(mine, _alone(names, place)).mean() for place in range(len(names))]
        switched[part] = _alone(names, int(np.argmax(alone)))
    if any((own[part] != shared).any() for part in ACTIVITY_SLICES):
        ways.append(found("weighted by slice", own, WEIGHTED))
    if any((switched[part] != start).any() for part in ACTIVITY_SLICES):
        ways.append(found("switching by slice", switched, SWITCHING))
    return [*ways, *_cascades(names, pool, shared, singles, recipes)]


def _cascades(
    names: Sequence[str],
    pool: Pool,
    shared: NDArray[np.float64],
    singles: NDArray[np.float64],
    recipes: Mapping[str, Mapping[str, Any]],
) -> list[_Way]:
    """The best cascade, if any was made."""
    order = np.argsort(-singles, kind="stable")[:FIRST_STAGES]
    stages = [("the weighted blend", shared), *((names[place], _alone(names, int(place))) for place in order)]
    ways = []
    for words, first in stages:
        scores = weighted_scores(pool, first)
        head = (
            scores
            >= np.where(np.isfinite(top := top_items(scores, CASCADE_DEPTH)[1]), top, np.inf).min(axis=1)[:, None]
        )
        for place, name in enumerate(names):
            if name in (words, FLOOR_PART):
                continue
            second = _alone(names, place)
            later = np.where(head, weighted_scores(pool, second), -np.inf)
            ways.append(
                (f"cascade: {words}, {CASCADE_DEPTH} best ordered by {name}", first, second, _ndcg(pool, later))
            )
    if not ways:
        return []
    words, first, second, quality = max(ways, key=lambda way: way[3].mean())
    weights = dict.fromkeys(ACTIVITY_SLICES, _named(names, first))
    recipe = blend_recipe(recipes, weights, mode=CASCADE, second=_named(names, second), depth=CASCADE_DEPTH)
    return [_Way(words, recipe, quality)]


def _make_pool(fitted: Sequence[Fitted], validation: TimeSplit, rows: NDArray[np.int64]) -> Pool:
    item_count = fitted[0].matrix.item_count
    step = max(1, CELLS_PER_BLOCK // max(1, item_count))
    blocks = []
    for start in range(0, len(rows), step):
        asked = rows[start : start + step]
        scaled = []
        for one in fitted:
            own = matrix_rows(one.matrix, validation.subjects[asked])
            scores = one.model.score_block(histories_of(one.matrix, own), own)
            scores[~np.isfinite(scores)] = -np.inf
            scaled.append(standardize(scores))
        relevant = validation.relevant[asked]
        counts = np.diff(relevant.indptr).astype(np.int64)
        blocks.append(pool_block(scaled, relevant, counts, seen=validation.seen[asked], depth=POOL_DEPTH))
    return join_pools(blocks)


def _alone(names: Sequence[str], place: int) -> NDArray[np.float64]:
    weights = np.zeros(len(names))
    weights[place] = 1.0
    return np.maximum(weights, weight_floor(names))


def _named(names: Sequence[str], weights: NDArray[np.float64]) -> Weights:
    return {name: float(weight) for name, weight in zip(names, weights, strict=True) if weight}


def _quality(pool: Pool, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return _ndcg(pool, weighted_scores(pool, weights))


def _mean_quality(pool: Pool, weights: NDArray[np.float64]) -> float:
    return float(_quality(pool, weights).mean())


def _ndcg(pool: Pool, scores: NDArray[np.float32]) -> NDArray[np.float64]:
    return ranking_metrics(pool_hits(pool, scores, _K), pool.counts, (_K,))[metric_name("ndcg", _K)]


def _is_better(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """By more than a standard error of the paired difference."""
    difference = one - other
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return bool(difference.mean() > max(error, 1e-9))


def _metrics(quality: NDArray[np.float64], slices: NDArray[np.str_]) -> dict[str, dict[str, float]]:
    name = metric_name("ndcg", _K)
    found = {"all": {name: float(quality.mean())}}
    return found | {
        part: {name: float(quality[slices == part].mean())} for part in ACTIVITY_SLICES if (slices == part).any()
    }
