"""Tuning within a budget: each model by coordinate search over its grids, then the weights of the blend.

Validation slices alone decide. The target of the search is sqrt(recall@k * ndcg@k), for sessions sqrt(hr@k * mrr@k):
both figures count, in proportion. Several slices count by the number of their questions, beyond `ENOUGH` of them
alike: which slice is most like the test nobody knows, and more questions make none truer. Everything but the clock is
seeded; a budget in trials instead of seconds makes a search repeatable to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.bench.quality.ranking import Part, by_block, evaluate, metrics_of
from infra.bench.quality.spaces import Family
from infra.bench.quality.tasks import Slice, Task, sample
from spark_jobs.evaluation.blending import (
    Pool,
    join_pools,
    pool_block,
    pool_hits,
    search_weights,
    weight_floor,
    weighted_scores,
)
from spark_jobs.models.blend import standardize
from spark_jobs.models.blend_model import FLOOR_PART
from spark_jobs.models.recipes import recipe_id
from spark_jobs.models.search_spaces import changed, value_at

Say = Callable[[str], None]

BLEND_SHARE = 0.2
"""Of the budget, kept for the weights of the blend."""
POOL_DEPTH = 150
"""Each part brings so many of its best items to the pool in which blend weights are tried."""
LEAST_BLEND_QUESTIONS = 2_000
"""Asked for the weights of the blend whatever the budget; where there is time, all of the validation."""
POOL_SHARE = 0.6
"""Of what is left of the budget, for the scores that the weights are tried on."""
FOLDS = 4
"""Weights are searched on all but one fold in turn and judged on that one; what is used is their mean."""
BLEND_GRID = (0.0, 0.03, 0.06, 0.1, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.5)
ENOUGH = 800
"""Questions of a slice that count. Of fewer chance answers too much of each."""
LEAST_WEIGHT = 0.02
"""Of the largest: a part that has less in the mean does not pay for its scores."""
FAVOUR = 4.0
"""The better a model is, the more time its search gets: by this power of its share of the best target. One at .7 of it
gets a quarter."""
HOPELESS = 0.3
"""Of the best target: what is below has no place in a blend, and is not asked for its scores."""

Metrics = dict[str, float]


class Trial(NamedTuple):
    """One recipe on the validation slices: its target, the target of each slice, and each metric."""

    recipe: Mapping[str, Any]
    target: float
    targets: tuple[float, ...]
    metrics: Metrics
    seconds: float


@dataclass(slots=True)
class Found:
    """The best of one model."""

    family: Family
    best: Trial | None = None
    parts: list[Part] = field(default_factory=list)
    trials: int = 0
    seconds: float = 0.0
    is_finished: bool = False


class Budget:
    """Seconds on a clock that is given, or a number of trials."""

    def __init__(self, seconds: float, *, trials: int | None = None, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.trials, self._clock, self._start = seconds, trials, clock, clock()

    def spent(self) -> float:
        return self._clock() - self._start

    def allows(self, share: float, used_trials: int, expected: float) -> bool:
        """Whether one more trial of `expected` seconds fits into this share of the budget."""
        if self.trials is not None:
            return used_trials < self.trials
        return self.spent() + expected <= share * self.seconds


def target_of(metrics: Mapping[str, float], protocol: str, k: int) -> float:
    pair = ("hr", "mrr") if protocol == "sessions" else ("recall", "ndcg")
    return sqrt(metrics[f"{pair[0]}@{k}"] * metrics[f"{pair[1]}@{k}"])


def tune(task: Task, families: list[Family], budget: Budget, k: int, say: Say) -> dict[str, Found]:
    """The best recipe of each model, by name. A model that the budget has no time for is left out."""
    searches = {family.name: _search(family, task, k) for family in families}
    found = {family.name: Found(family) for family in families}
    share, used = 1.0 - BLEND_SHARE, 0
    while True:
        name = _next(found, by_trials=budget.trials is not None)
        if name is None:
            break
        one = found[name]
        expected = one.best.seconds if one.best else 0.0
        is_first = name == families[0].name and not one.trials  # it is run whatever the budget
        if not is_first and not budget.allows(share, used, expected):
            one.is_finished = True
            continue
        begun = time.process_time()
        step = next(searches[name], None)
        one.seconds += time.process_time() - begun
        if step is None:
            one.is_finished = True
            continue
        used += 1
        one.trials += 1
        trial, parts = step
        if one.best is None or trial.target > one.best.target:
            one.best, one.parts = trial, parts
            say(f"{budget.spent():6.0f} s  {name:<17} {_targets(trial)}  {_words(trial)}")
    return {name: one for name, one in found.items() if one.best is not None}


def _next(found: Mapping[str, Found], *, by_trials: bool) -> str | None:
    """Whoever has not begun; else who had least processor time for how good it is: a moment when the machine had much
    else to do is charged to nobody."""
    open_ones = {name: one for name, one in found.items() if not one.is_finished}
    best = max((one.best.target for one in found.values() if one.best), default=0.0)
    for name, one in open_ones.items():
        if one.best is None:
            return name
    if not open_ones:
        return None
    return min(open_ones, key=lambda name: _charged(open_ones[name], best, by_trials))


def _charged(one: Found, best: float, by_trials: bool) -> float:
    assert one.best is not None
    share = one.best.target / best if best else 1.0
    return (one.trials if by_trials else one.seconds) / max(share, 1e-3) ** FAVOUR


def _search(family: Family, task: Task, k: int) -> Iterator[tuple[Trial, list[Part]]]:
    """Coordinate search: along each grid as long as it gets better, round after round until nothing does."""
    tried: set[str] = set()

    def attempt(recipe: Mapping[str, Any], like: list[Part] | None) -> tuple[Trial, list[Part]]:
        tried.add(recipe_id(recipe))
        return run_trial(recipe, task, k, like)

    best, parts = attempt(family.start, None)
    yield best, parts
    improved = True
    while improved:
        improved = False
        for path, grid in family.grids.items():
            for direction in (1, -1):
                while True:
                    value = value_at(best.recipe, path)
                    place = _place(grid, value) + direction
                    if not 0 <= place < len(grid):
                        break
                    recipe = changed(best.recipe, path, grid[place])
                    if recipe_id(recipe) in tried:
                        break
                    trial, fitted = attempt(recipe, parts)
                    yield trial, fitted
                    if trial.target <= best.target:
                        break
                    best, parts, improved = trial, fitted, True


def _place(grid: Any, value: Any) -> int:
    """Where a value stands in its grid, or the nearest number."""
    if value in grid:
        return list(grid).index(value)
    numbers = [(abs(float(entry) - float(value)), place) for place, entry in enumerate(grid) if entry is not None]
    return min(numbers)[1]


def run_trial(
    recipe: Mapping[str, Any], task: Task, k: int, like: list[Part] | None = None
) -> tuple[Trial, list[Part]]:
    """Fit the recipe on every slice's training and measure it there."""
    begun = time.monotonic()
    parts, all_metrics = [], []
    for number, asked in enumerate(task.searched):
        part = Part(recipe, asked.training, like=like[number] if like else None)
        parts.append(part)
        all_metrics.append(evaluate(part, asked, k))
    shares = [min(len(asked.questions), ENOUGH) for asked in task.searched]
    metrics = {
        name: float(np.average([found[name] for found in all_metrics], weights=shares)) for name in all_metrics[0]
    }
    targets = tuple(target_of(found, task.protocol, k) for found in all_metrics)
    return Trial(recipe, float(np.average(targets, weights=shares)), targets, metrics, time.monotonic() - begun), parts


def _targets(trial: Trial) -> str:
    parts = "+".join(f"{target:.4f}" for target in trial.targets) if len(trial.targets) > 1 else ""
    return f"{trial.target:.5f} {parts}".rstrip()


def _words(trial: Trial) -> str:
    recipe = trial.recipe
    weights = " ".join(f"{kind}={weight:g}" for kind, weight in recipe["weights"].items() if len(recipe["weights"]) > 1)
    params = " ".join(f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}" for n, v in recipe["params"].items())
    life = f"half_life={recipe['half_life_days']:g}" if recipe.get("half_life_days") else ""
    return " ".join(word for word in (params, life, weights) if word)


# --- the blend -------------------------------------------------------------------------------------------------------


class Blended(NamedTuple):
    """The weight of each part that has any, and targets on questions that did not choose the weights: `target` of the
    blend, `single` of the best model alone on the same questions."""

    weights: dict[str, float]
    target: float
    single: float


def tune_blend(task: Task, found: Mapping[str, Found], budget: Budget, k: int, say: Say) -> Blended:
    """Weights by cross-validation: for each fold a coordinate search from the best single model on the other folds. The
    mean of their weights is used; the folds that were left out say how good a blend is that has not seen its questions.

    With many parts one search follows the luck of its questions; the mean of several does less so.
    """
    names = _hopeful(found)
    pools = _pools(task, found, names, budget, k)
    count = sum(len(pool.counts) for pool in pools)
    say(f"{budget.spent():6.0f} s  blending {', '.join(names)} on {count:,} questions")
    best_single = max(names, key=lambda name: found[name].best.target)  # type: ignore[union-attr]
    start = np.array([1.0 if name == best_single else 0.0 for name in names])
    alone = np.maximum(start, weight_floor(names))
    of_folds, targets, singles = [], [], []
    for fold in range(FOLDS):
        inside, outside = _without(pools, fold), _only(pools, fold)
        if not outside or not inside:
            continue
        weights, _ = search_weights(
            names,
            start,
            partial(_mean_target, inside, protocol=task.protocol, k=k),
            grid=BLEND_GRID,
            may_go_on=lambda: budget.trials is not None or budget.spent() < budget.seconds,
        )
        of_folds.append(weights / weights.max())
        targets.append(_mean_target(outside, weights, protocol=task.protocol, k=k))
        singles.append(_mean_target(outside, alone, protocol=task.protocol, k=k))
    if not of_folds:  # a single question: nothing to learn weights from
        value = found[best_single].best.target  # type: ignore[union-attr]
        return Blended({best_single: 1.0}, value, value)
    mean = np.mean(of_folds, axis=0)
    mean[mean < LEAST_WEIGHT * mean.max()] = 0.0
    mean = np.maximum(mean, weight_floor(names))
    chosen = {name: round(float(weight), 4) for name, weight in zip(names, mean, strict=True) if weight}
    made = Blended(chosen, float(np.mean(targets)), float(np.mean(singles)))
    say(f"{budget.spent():6.0f} s  blend             {made.target:.5f}, {best_single} {made.single:.5f}  {chosen}")
    return made


def _hopeful(found: Mapping[str, Found]) -> list[str]:
    """The models that may enter a blend, sorted: all but the hopeless; popularity may always."""
    targets = {name: one.best.target for name, one in found.items() if one.best is not None}
    least = HOPELESS * max(targets.values())
    return sorted(name for name, target in targets.items() if target >= least or name == FLOOR_PART)


def _pools(task: Task, found: Mapping[str, Found], names: list[str], budget: Budget, k: int) -> list[Pool]:
    """The pool of each slice: of the least number of questions first, of more when that took little of the budget."""
    searched = sum(len(asked.questions) for asked in task.searched)  # fewer than that only of a very large catalogue
    least = max(1, min(LEAST_BLEND_QUESTIONS, searched) // len(task.validations))

    def make(most: int) -> list[Pool]:
        return [
            _pool([found[name].parts[number] for name in names], sample(asked, most), k)
            for number, asked in enumerate(task.validations)
        ]

    begun = budget.spent()
    pools = make(least)
    taken = max(budget.spent() - begun, 1e-9)
    whole = max(len(asked.questions) for asked in task.validations)
    left = POOL_SHARE * (budget.seconds - budget.spent())
    most = min(whole, int(least * left / taken)) if budget.trials is None else least
    return make(most) if most > 1.5 * least else pools


def _fold_of(pool: Pool) -> NDArray[np.int64]:
    return np.arange(len(pool.counts)) % FOLDS


def _only(pools: Sequence[Pool], fold: int) -> list[Pool]:
    parts = [pool.part(_fold_of(pool) == fold) for pool in pools]
    return [part for part in parts if len(part.counts)]


def _without(pools: Sequence[Pool], fold: int) -> list[Pool]:
    parts = [pool.part(_fold_of(pool) != fold) for pool in pools]
    return [part for part in parts if len(part.counts)]


def _mean_target(pools: Sequence[Pool], weights: NDArray[np.float64], *, protocol: str, k: int) -> float:
    targets = [_target(pool, weights, protocol, k) for pool in pools]
    return float(np.average(targets, weights=[min(len(pool.counts), ENOUGH) for pool in pools]))


def _pool(parts: list[Part], asked: Slice, k: int) -> Pool:
    depth = max(POOL_DEPTH, 3 * k)

    def work(block: Slice) -> Pool:
        scaled = [standardize(part.scores(block.questions)) for part in parts]
        return pool_block(scaled, block.relevant, block.relevant_counts, seen=block.seen, depth=depth)

    return join_pools(list(by_block(asked, work)))


def _target(pool: Pool, weights: NDArray[np.float64], protocol: str, k: int) -> float:
    hits = pool_hits(pool, weighted_scores(pool, weights), k)
    means = {name: float(found.mean()) for name, found in metrics_of(hits, pool.counts, k).items()}
    return target_of(means, protocol, k)
