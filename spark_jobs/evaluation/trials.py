"""Trials: which recipe a family enters the night's comparison with, chosen before anybody looks at the test window.

Each trial is fitted on the training split without its own last days (the validation window) and asked for those. The
test window, which the gate judges on, is never seen here.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from spark_jobs.evaluation.full_ranking import evaluate, is_relevant, rank_unseen
from spark_jobs.evaluation.metrics import metric_name, ranking_metrics
from spark_jobs.evaluation.split import INTERACTED, TimeSplit, split_by_time
from spark_jobs.models.als import AfterSweep, Sweep
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.factory import Fitted, fit
from spark_jobs.models.item_content import ItemContent
from spark_jobs.models.matrix import matrix_rows
from spark_jobs.models.neighbourhood import neighbours
from spark_jobs.models.threads import by_blocks
from spark_jobs.models.training_data import TrainingData

DEFAULT = "default"
MIN_VALIDATION_USERS = 20
MAX_VALIDATION_USERS = 2_000
"""A sample is enough to rank recipes; the gate measures the chosen one on everybody."""
TRIAL_EVENTS = 1_000_000
"""A trial learns from so many interactions at most: most fits of a night are trials, and the comparison is on all."""
_SAMPLE_SALT = b"trials"
CURVE_USERS = 400
"""Persons that the curve over sweeps is drawn from: the first of the validation persons."""
_K = 20


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe on the validation window. `words` says how it differs from the family's (`DEFAULT`: not at all).

    metrics   slice -> metric -> mean
    steps     by sweep, for a model that has any: training_loss, validation_ndcg_at_20
    fitted    the model, of the trial that was chosen; None of others
    """

    words: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    fit_seconds: float
    steps: Mapping[str, Sequence[float]] = field(default_factory=dict)
    fitted: Fitted | None = field(default=None, compare=False, repr=False)

    @property
    def quality(self) -> float:
        """Mean NDCG@20 over all validation persons, rounded so that the last bits of a sum never decide."""
        return round(self.metrics["all"][metric_name("ndcg", _K)], 9)


@dataclass(frozen=True, slots=True)
class Choice:
    """The recipe that a family enters with, the trials it was chosen from (none: it was not), and why, in words."""

    recipe: Mapping[str, Any]
    trials: Sequence[Trial]
    chosen: int | None
    why: str

    @property
    def validated(self) -> Trial | None:
        """The trial of the chosen recipe; None when nothing was tried."""
        return None if self.chosen is None else self.trials[self.chosen]


def validation_split(
    split: TimeSplit, *, item_count: int, days: int, exclude_seen: str = INTERACTED, most_events: int | None = None
) -> TimeSplit | None:
    """The training part of `split`, split again by time; None when it is empty or nothing can be held back. Of more
    than `most_events` interactions (None: any number will do) a sample of the people is taken (`some_people`)."""
    if split.test_days == 0 or split.train.num_rows == 0:
        return None
    found = split_by_time(
        split.train if most_events is None else some_people(split.train, most_events),
        cut_off=split.test_start,
        item_count=item_count,
        test_days=days,
        max_test_users=MAX_VALIDATION_USERS,
        exclude_seen=exclude_seen,
    )
    return found if len(found.subjects) >= MIN_VALIDATION_USERS else None


def some_people(interactions: pa.Table, most_events: int) -> pa.Table:
    """All of `interactions` (sorted), or those of as many people as have no more than `most_events` together.

    Nobody is cut: a recipe that suits histories of some length suits them whatever the number of people. Who is taken
    is decided by a digest of the subject key, so neither order nor other people decide who comes first.
    """
    if interactions.num_rows <= most_events:
        return interactions
    subjects = interactions["subject_key"].combine_chunks()
    codes = np.asarray(subjects.indices)
    keys = subjects.dictionary.to_pylist()
    digests = [hashlib.blake2b(key.encode(), digest_size=8, salt=_SAMPLE_SALT).digest() for key in keys]
    order = np.argsort(np.array(digests, dtype="S8"), kind="stable")
    together = np.cumsum(np.bincount(codes, minlength=len(keys))[order])
    is_taken = np.zeros(len(keys), bool)
    is_taken[order[together <= most_events]] = True
    return interactions.filter(pa.array(is_taken[codes]))


def choose_recipe(
    recipe: Mapping[str, Any],
    validation: TimeSplit | None,
    *,
    item_count: int,
    count: int,
    data: TrainingData | None = None,
    is_wanted: bool = False,
) -> Choice:
    """`choose_recipes` of one family."""
    options: dict[str, Any] = {"item_count": item_count, "count": count, "data": data, "is_wanted": is_wanted}
    return choose_recipes({"": recipe}, validation, **options)[""]


def choose_recipes(
    recipes: Mapping[str, Mapping[str, Any]],
    validation: TimeSplit | None,
    *,
    item_count: int,
    count: int,
    data: TrainingData | None = None,
    is_wanted: bool = False,
) -> dict[str, Choice]:
    """Try the recipe of each family and `count` neighbours of it; the best NDCG@20 over all persons is taken, ties by
    trial number. Trials run side by side, a thread each.

    So the recipe itself is kept unless another is better on these persons. `count` 0, too few validation persons, or
    als on mllib (each trial would be a Spark job of minutes): nothing is tried, the recipe is taken. `is_wanted`: the
    recipe is tried even with `count` 0, as a blend wants to know how good it is. `data`: the training part of the
    validation, when somebody has it already.
    """
    untried = {name: _why_untried(recipe, validation, count, is_wanted) for name, recipe in recipes.items()}
    choices = {name: Choice(recipes[name], (), None, why) for name, why in untried.items() if why}
    if validation is not None and len(choices) < len(recipes):
        data = data or validation_data(validation, item_count=item_count)
        trials = [
            (name, words, one)
            for name in recipes
            if name not in choices
            for words, one in [
                (DEFAULT, recipes[name]),
                *((n.words, n.recipe) for n in neighbours(recipes[name], count)),
            ]
        ]
        tried: dict[str, list[Trial]] = {}
        ran = by_blocks(lambda trial: _run_trial(trial[1], trial[2], validation, data), trials)
        for (name, _, _), trial in zip(trials, ran, strict=True):
            _keep(tried.setdefault(name, []), trial)
        choices |= {name: _best_of(some, validation) for name, some in tried.items()}
    return {name: choices[name] for name in recipes}


def _recipes_to_try(recipe: Mapping[str, Any], count: int) -> list[tuple[str, Mapping[str, Any]]]:
    """(words, recipe): the recipe itself first."""
    return [(DEFAULT, recipe), *((near.words, near.recipe) for near in neighbours(recipe, count))]


def _why_untried(recipe: Mapping[str, Any], validation: TimeSplit | None, count: int, is_wanted: bool) -> str:
    """Why a recipe is taken as it is; empty when it is tried."""
    if count <= 0 and not is_wanted:
        return "no trials were asked for: the default recipe"
    if validation is None:
        return f"fewer than {MIN_VALIDATION_USERS} validation persons: the default recipe"
    if recipe["params"].get("engine") == "mllib":
        return "als on mllib is not tried: the default recipe"
    return ""


def _keep(tried: list[Trial], trial: Trial) -> None:
    """Add a trial of a family; only the best keeps its model."""
    best = _chosen(tried) if tried else None
    if best is not None and trial.quality <= tried[best].quality:
        trial = replace(trial, fitted=None)
    elif best is not None:
        tried[best] = replace(tried[best], fitted=None)
    tried.append(trial)


def _chosen(tried: Sequence[Trial]) -> int:
    return max(range(len(tried)), key=lambda n: (tried[n].quality, -n))


def _best_of(tried: Sequence[Trial], validation: TimeSplit) -> Choice:
    chosen = _chosen(tried)
    best, first = tried[chosen], tried[0]
    persons = (
        f"{len(validation.subjects):,} persons, {validation.test_days} days from {validation.test_start:%Y-%m-%d}, "
        f"learned from {validation.train.num_rows:,} interactions"
    )
    if len(tried) == 1:
        why = f"the recipe as it is, no other was tried: validation NDCG@20 {first.quality:.4f} ({persons})"
    elif chosen == 0:
        why = f"the default is best of {len(tried)} trials: validation NDCG@20 {first.quality:.4f} ({persons})"
    else:
        why = (
            f"{best.words} is best of {len(tried)} trials: validation NDCG@20 {best.quality:.4f}, "
            f"the default {first.quality:.4f} ({persons})"
        )
    return Choice(best.recipe, tried, chosen, why)


def validation_data(validation: TimeSplit, *, item_count: int, content: ItemContent | None = None) -> TrainingData:
    """What recipes learn from when they are tried."""
    return TrainingData(validation.train, item_count=item_count, cut_off=validation.test_start, content=content)


def _run_trial(words: str, recipe: Mapping[str, Any], validation: TimeSplit, data: TrainingData) -> Trial:
    losses: list[float] = []
    curve: list[float] = []

    def watch(matrix: InteractionMatrix) -> AfterSweep:
        rows = matrix_rows(matrix, validation.subjects[:CURVE_USERS])
        known = np.flatnonzero(rows >= 0)
        seen, relevant = validation.seen[known], validation.relevant[known]
        counts = np.diff(relevant.indptr).astype(np.int64)

        def after_sweep(sweep: Sweep) -> None:
            losses.append(sweep.loss)
            curve.append(_curve_point(sweep, rows[known], seen, relevant, counts))

        return after_sweep

    began = time.monotonic()
    fitted = fit(recipe, data, after_sweep=watch)
    seconds = time.monotonic() - began
    metrics = evaluate(fitted.model, fitted.matrix, validation).by_slice(validation.slices)
    steps = {"training_loss": losses, "validation_ndcg_at_20": curve} if losses else {}
    return Trial(words, recipe, metrics, seconds, steps, fitted)


def _curve_point(
    sweep: Sweep, rows: np.ndarray, seen: sparse.csr_matrix, relevant: sparse.csr_matrix, counts: np.ndarray
) -> float:
    """Mean NDCG@20 of the kernel's own vectors, which lag half a sweep behind folding in: cheap, and enough to see
    where more sweeps stop helping."""
    if len(rows) == 0:
        return 0.0
    numbers = rank_unseen(sweep.user_factors[rows] @ sweep.item_factors.T, seen, _K)
    return float(ranking_metrics(is_relevant(numbers, relevant), counts, (_K,))[metric_name("ndcg", _K)].mean())
