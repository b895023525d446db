"""Tuning within a budget: each model by coordinate search over its grids; `blending` finds the weights of the blend.

Validation slices alone decide. The target of the search is sqrt(recall@k * ndcg@k), for sessions sqrt(hr@k * mrr@k):
both figures count, in proportion. Several slices count by the number of their questions, beyond `ENOUGH` of them
alike: which slice is most like the test nobody knows, and more questions make none truer. Everything but the clock is
seeded; a budget in trials instead of seconds makes a search repeatable to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from infra.bench.quality.ranking import Part, evaluate
from infra.bench.quality.spaces import Family
from infra.bench.quality.tasks import Task
from spark_jobs.models.recipes import recipe_id
from spark_jobs.models.search_spaces import changed, value_at

Say = Callable[[str], None]

BLEND_SHARE = 0.2
"""Of the budget, kept for the weights of the blend."""
ENOUGH = 800
"""Questions of a slice that count. Of fewer chance answers too much of each."""
FAVOUR = 4.0
"""The better a model is, the more time its search gets: by this power of its share of the best target. One at .7 of it
gets a quarter."""

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
