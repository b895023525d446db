"""The weights of the blend: searched on pools of the validation's best items, judged on questions left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.bench.quality.blend_weights import BlendWeights
from infra.bench.quality.ranking import Part, by_block, metrics_of
from infra.bench.quality.tasks import Slice, Task, sample
from infra.bench.quality.training import ALL, PREFIX_SLICES
from infra.bench.quality.tuning import ENOUGH, Budget, Found, Say, target_of
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

POOL_DEPTH = 150
"""Each part brings so many of its best items to the pool in which blend weights are tried."""
LEAST_BLEND_QUESTIONS = 2_000
"""Asked for the weights of the blend whatever the budget; where there is time, all of the validation."""
POOL_SHARE = 0.6
"""Of what is left of the budget, for the scores that the weights are tried on."""
FOLDS = 4
"""Weights are searched on all but one fold in turn and judged on that one; what is used is their mean."""
BLEND_GRID = (0.0, 0.03, 0.06, 0.1, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.5)
LEAST_WEIGHT = 0.02
"""Of the largest: a part that has less in the mean does not pay for its scores."""
HOPELESS = 0.3
"""Of the best target: what is below has no place in a blend, and is not asked for its scores."""

BySlice = Callable[[str], NDArray[np.float64]]
"""Slice of a question -> the weights of the parts."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions of the validation: the pool of each, and its slice by the length of its session (users: all of one)."""

    pool: Pool
    slices: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.slices)

    def part(self, rows: NDArray[np.bool_]) -> Asked:
        return Asked(self.pool.part(rows), self.slices[rows])

    def as_one(self) -> Asked:
        """The same questions as one slice."""
        return Asked(self.pool, np.full(len(self), ALL))

    def folds(self) -> NDArray[np.int64]:
        return np.arange(len(self)) % FOLDS


class Blended(NamedTuple):
    """The weights, and targets on questions that did not choose them: `target` of the blend, `single` of the best model
    alone on the same questions."""

    weights: BlendWeights
    target: float
    single: float


def tune_blend(task: Task, found: Mapping[str, Found], budget: Budget, k: int, say: Say) -> Blended:
    """Weights by cross-validation: for each fold a coordinate search from the best single model on the other folds. The
    mean of their weights is used; the folds that were left out say how good a blend is that has not seen its questions.

    With many parts one search follows the luck of its questions; the mean of several does less so.

    Running sessions of each length (`PREFIX_SLICES`) get weights of their own, searched on from those of all, where
    the folds that were left out are the better for it: one click says less of a session than of its item.
    """
    names = _hopeful(found)
    pools = _pools(task, found, names, budget, k)
    say(f"{budget.spent():6.0f} s  blending {', '.join(names)} on {sum(map(len, pools)):,} questions")
    best_single = max(names, key=lambda name: found[name].best.target)  # type: ignore[union-attr]
    start = np.array([1.0 if name == best_single else 0.0 for name in names])
    alone = np.maximum(start, weight_floor(names))
    judge = partial(_mean_target, protocol=task.protocol, k=k)

    def left_out(weights: Callable[[int, str], NDArray[np.float64]]) -> float:
        """The mean target of the folds, each by the weights (of a fold, for a slice) that did not see it."""
        return float(np.mean([judge(_only(pools, fold), partial(weights, fold)) for fold in folds]))

    def search(inside: Sequence[Asked], begin: NDArray[np.float64]) -> NDArray[np.float64]:
        together = [asked.as_one() for asked in inside]
        weights, _ = search_weights(
            names,
            begin,
            lambda tried: judge(together, lambda _: tried),
            grid=BLEND_GRID,
            may_go_on=lambda: budget.trials is not None or budget.spent() < budget.seconds,
        )
        return weights / weights.max()

    folds = [fold for fold in range(FOLDS) if _only(pools, fold) and _without(pools, fold)]
    if not folds:  # a single question: nothing to learn weights from
        value = found[best_single].best.target  # type: ignore[union-attr]
        return Blended(BlendWeights({best_single: 1.0}), value, value)
    of_folds = {fold: search(_without(pools, fold), start) for fold in folds}
    weights = BlendWeights(_mean(names, list(of_folds.values())))
    target, single = left_out(lambda fold, _: of_folds[fold]), left_out(lambda *_: alone)
    say(f"{budget.spent():6.0f} s  blend             {target:.5f}, {best_single} {single:.5f}  {weights.of_all}")
    if _may_follow_lengths(pools) and (budget.trials is not None or budget.spent() < budget.seconds):
        by_length = {
            name: {fold: search(_of_prefixes(_without(pools, fold), name), of_folds[fold]) for fold in folds}
            for name in PREFIX_SLICES
        }
        means = {name: _mean(names, list(weights_of.values())) for name, weights_of in by_length.items()}
        better = left_out(lambda fold, name: by_length[name][fold])
        say(f"{budget.spent():6.0f} s  blend by length   {better:.5f}  {means}")
        if better > target:
            weights, target = weights._replace(of_prefixes=means), better
    return Blended(weights, target, single)


def _may_follow_lengths(pools: Sequence[Asked]) -> bool:
    """Whether there are `ENOUGH` questions of each length to learn weights from."""
    slices = np.concatenate([asked.slices for asked in pools])
    return all((slices == name).sum() >= ENOUGH for name in PREFIX_SLICES)


def _mean(names: Sequence[str], of_folds: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """The weights that are used: the mean, without what would not pay for its scores."""
    mean = np.mean(of_folds, axis=0)
    mean[mean < LEAST_WEIGHT * mean.max()] = 0.0
    mean = np.maximum(mean, weight_floor(names))
    return {name: round(float(weight), 4) for name, weight in zip(names, mean, strict=True) if weight}


def _hopeful(found: Mapping[str, Found]) -> list[str]:
    """The models that may enter a blend, sorted: all but the hopeless; popularity may always."""
    targets = {name: one.best.target for name, one in found.items() if one.best is not None}
    least = HOPELESS * max(targets.values())
    return sorted(name for name, target in targets.items() if target >= least or name == FLOOR_PART)


def _pools(task: Task, found: Mapping[str, Found], names: list[str], budget: Budget, k: int) -> list[Asked]:
    """The pool of each slice: of the least number of questions first, of more when that took little of the budget."""
    searched = sum(len(asked.questions) for asked in task.searched)  # fewer than that only of a very large catalogue
    least = max(1, min(LEAST_BLEND_QUESTIONS, searched) // len(task.validations))

    def make(most: int) -> list[Asked]:
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


def _pool(parts: list[Part], asked: Slice, k: int) -> Asked:
    depth = max(POOL_DEPTH, 3 * k)

    def work(block: Slice) -> Pool:
        scaled = [standardize(part.scores(block.questions)) for part in parts]
        return pool_block(scaled, block.relevant, block.relevant_counts, seen=block.seen, depth=depth)

    return Asked(join_pools(list(by_block(asked, work))), asked.questions.prefix_slices())


def _only(pools: Sequence[Asked], fold: int) -> list[Asked]:
    return _parts(pools, lambda asked: asked.folds() == fold)


def _without(pools: Sequence[Asked], fold: int) -> list[Asked]:
    return _parts(pools, lambda asked: asked.folds() != fold)


def _of_prefixes(pools: Sequence[Asked], name: str) -> list[Asked]:
    return _parts(pools, lambda asked: asked.slices == name)


def _parts(pools: Sequence[Asked], chosen: Callable[[Asked], NDArray[np.bool_]]) -> list[Asked]:
    parts = [asked.part(chosen(asked)) for asked in pools]
    return [part for part in parts if len(part)]


def _mean_target(pools: Sequence[Asked], by_slice: BySlice, *, protocol: str, k: int) -> float:
    targets = [_target(asked, by_slice, protocol, k) for asked in pools]
    return float(np.average(targets, weights=[min(len(asked), ENOUGH) for asked in pools]))


def _target(asked: Asked, by_slice: BySlice, protocol: str, k: int) -> float:
    """Of one slice of the validation, where the weights of a question may follow the length of its session."""
    told: dict[str, list[NDArray[np.float64]]] = {}
    names = sorted(set(asked.slices.tolist()))
    for name in names:
        part = asked.part(asked.slices == name) if len(names) > 1 else asked
        hits = pool_hits(part.pool, weighted_scores(part.pool, by_slice(name)), k)
        for metric, values in metrics_of(hits, part.pool.counts, k).items():
            told.setdefault(metric, []).append(values)
    return target_of({metric: float(np.concatenate(values).mean()) for metric, values in told.items()}, protocol, k)
