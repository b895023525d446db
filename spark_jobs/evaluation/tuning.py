"""Tuning one family of models: Optuna draws recipes, the validation window says how good they are.

T. Akiba et al.: Optuna, a next-generation hyperparameter optimization framework (2019), with its tree-structured Parzen
estimator. The test window, which the gate judges on, is never seen here.

A trial has two rungs. On the first the recipe is fitted on a quarter of the people; one that is worse there than the
median of those before it goes no further (it is pruned). On the second it is fitted on everybody. Where a quarter
holds too few validation persons to tell, there is the second rung alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.compute as pc
from optuna.storages.journal import JournalFileBackend

from spark_jobs.evaluation.full_ranking import evaluate
from spark_jobs.evaluation.metrics import metric_name
from spark_jobs.evaluation.split import TimeSplit
from spark_jobs.evaluation.trials import validation_data
from spark_jobs.models.factory import fit
from spark_jobs.models.item_content import ItemContent
from spark_jobs.models.recipes import recipe_id
from spark_jobs.models.search_spaces import Grid, changed, search_space, value_at
from spark_jobs.models.training_data import TrainingData

QUARTER = 0.25
LEAST_SAMPLED = 100
"""Validation persons in the quarter below which nothing is pruned: such a mean is mostly luck."""
STARTUP_TRIALS = 8
"""Drawn at random before the estimator has anything to go by, and before anything is pruned."""
_RECIPE, _METRICS, _SECONDS = "recipe", "metrics", "seconds"
_K = 20

Metrics = Mapping[str, Mapping[str, float]]


class Tried(NamedTuple):
    """One trial that has ended. `quality` is the validation NDCG@20 over everybody, None when it was pruned;
    `metrics` are by slice, of the last rung it reached."""

    number: int
    recipe: Mapping[str, Any]
    quality: float | None
    metrics: Metrics
    seconds: float


@dataclass(frozen=True, slots=True)
class Rungs:
    """What recipes are tried on: everybody, and a quarter of the people (None: too few)."""

    validation: TimeSplit
    data: TrainingData
    sampled: TimeSplit | None
    sampled_data: TrainingData | None


def make_rungs(validation: TimeSplit, *, item_count: int, seed: int, content: ItemContent | None = None) -> Rungs:
    """The data of both rungs; the quarter is drawn by `seed` from all people that have training events."""
    data = validation_data(validation, item_count=item_count, content=content)
    known = np.asarray(validation.train["subject_key"].combine_chunks().dictionary.to_pylist(), dtype=np.str_)
    drawn = known[np.random.default_rng(seed).random(len(known)) < QUARTER]
    asked = np.flatnonzero(np.isin(validation.subjects, drawn))
    if len(asked) < LEAST_SAMPLED:
        return Rungs(validation, data, None, None)
    wanted = pc.is_in(validation.train["subject_key"].cast("string"), value_set=pa.array(drawn.tolist(), pa.string()))
    train = validation.train.filter(wanted)
    sampled = TimeSplit(
        validation.test_start, validation.test_days, validation.note, train, validation.subjects[asked],
        validation.train_event_counts[asked], validation.seen[asked], validation.relevant[asked],
        validation.known_items,
    )  # fmt: skip
    return Rungs(validation, data, sampled, validation_data(sampled, item_count=item_count, content=content))


class FamilyStudy:
    """The trials of one family, kept in a file, so that a search that was stopped goes on where it was.

    `start` is tried first. Equal seeds, data and files give equal trials; the clock decides only how many there are.
    """

    def __init__(self, name: str, start: Mapping[str, Any], rungs: Rungs, *, folder: Path, seed: int) -> None:
        self.name, self._start, self._rungs, self._seed = name, start, rungs, seed
        self._space = {
            ".".join(path): (path, with_value(grid, value_at(start, path)))
            for path, grid in search_space(start).items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(folder / f"{name}.log"))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
        )
        for left in self._study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # by a search that was killed
            self._study.tell(left.number, state=optuna.trial.TrialState.FAIL)
        if not self._study.trials:
            self._study.enqueue_trial(self._places(start))

    @property
    def is_exhausted(self) -> bool:
        """Every recipe of the space was tried."""
        return len({recipe_id(one.recipe) for one in self.tried()}) >= self._size()

    def tried(self) -> list[Tried]:
        """All trials that ended well, by number."""
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return [_tried(trial) for trial in self._study.get_trials(states=ended)]

    def best(self) -> Tried | None:
        """The best of those that were tried on everybody, ties by number; None before the first."""
        whole = [one for one in self.tried() if one.quality is not None]
        return max(whole, key=lambda one: (one.quality, -one.number)) if whole else None

    def next_trial(self) -> Tried:
        """Try one more recipe. One that was tried before costs nothing: its figures are taken over."""
        count = len(self._study.trials)
        self._study.sampler = optuna.samplers.TPESampler(
            seed=self._seed + count, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=False
        )
        trial = self._study.ask()
        recipe = self._recipe(trial)
        known = {recipe_id(one.recipe): one for one in self.tried()}.get(recipe_id(recipe))
        if known is not None:
            return self._end(trial, recipe, known.metrics, known.quality, 0.0)
        began = time.monotonic()
        rungs = self._rungs
        if rungs.sampled is not None and rungs.sampled_data is not None:
            metrics = _measure(recipe, rungs.sampled, rungs.sampled_data)
            trial.report(_quality(metrics), step=0)
            if trial.should_prune():
                return self._end(trial, recipe, metrics, None, time.monotonic() - began)
        metrics = _measure(recipe, rungs.validation, rungs.data)
        return self._end(trial, recipe, metrics, _quality(metrics), time.monotonic() - began)

    def _end(
        self, trial: optuna.Trial, recipe: Mapping[str, Any], metrics: Metrics, quality: float | None, seconds: float
    ) -> Tried:
        for name, value in ((_RECIPE, recipe), (_METRICS, metrics), (_SECONDS, seconds)):
            trial.set_user_attr(name, value)
        if quality is None:
            ended = self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            ended = self._study.tell(trial, quality)
        return _tried(ended)

    def _recipe(self, trial: optuna.Trial) -> dict[str, Any]:
        recipe = dict(self._start)
        for name, (path, grid) in self._space.items():
            place = trial.suggest_int(name, 0, len(grid) - 1)
            recipe = changed(recipe, path, grid[place])
        return recipe

    def _places(self, recipe: Mapping[str, Any]) -> dict[str, int]:
        return {name: list(grid).index(value_at(recipe, path)) for name, (path, grid) in self._space.items()}

    def _size(self) -> int:
        size = 1
        for _, grid in self._space.values():
            size *= len(grid)
        return size


def run_studies(
    studies: Mapping[str, FamilyStudy],
    *,
    spent: Callable[[], float],
    budget_seconds: float,
    most_trials: int | None = None,
    told: Callable[[str, Tried], None] = lambda *_: None,
) -> None:
    """Trials of the families in turn, whoever had least time next, until the budget is spent.

    `spent` says how many seconds have gone. A family has its first trial whatever the budget, and another one while
    what its last one took still fits. `most_trials` of a family, those of earlier searches included.
    """
    seconds = {name: sum(one.seconds for one in study.tried()) for name, study in studies.items()}
    last: dict[str, float] = {}
    open_ones = list(studies)
    while open_ones:
        name = min(open_ones, key=lambda one: (one in last, seconds[one]))
        study = studies[name]
        is_first = study.best() is None
        done = most_trials is not None and len(study.tried()) >= most_trials
        if done or study.is_exhausted or (not is_first and spent() + last.get(name, 0.0) >= budget_seconds):
            open_ones.remove(name)
            continue
        tried = study.next_trial()
        last[name] = tried.seconds
        seconds[name] += max(tried.seconds, 1e-3)
        told(name, tried)


def with_value(grid: Grid, value: Any) -> Grid:
    """The grid with `value` at its place in the order; as it is when it has the value already."""
    if value in grid:
        return grid
    numbers = [place for place, entry in enumerate(grid) if entry is not None]
    rises = grid[numbers[-1]] > grid[numbers[0]]
    after = [place for place in numbers if (grid[place] < value) == rises]
    place = after[-1] + 1 if after else numbers[0]
    return (*grid[:place], value, *grid[place:])


def _measure(recipe: Mapping[str, Any], split: TimeSplit, data: TrainingData) -> dict[str, dict[str, float]]:
    fitted = fit(recipe, data)
    found = evaluate(fitted.model, fitted.matrix, split).by_slice(split.slices)
    return {part: {name: float(value) for name, value in of_part.items()} for part, of_part in found.items()}


def _quality(metrics: Metrics) -> float:
    return round(metrics["all"][metric_name("ndcg", _K)], 9)


def _tried(trial: optuna.trial.FrozenTrial) -> Tried:
    kept = trial.user_attrs
    pruned = trial.state == optuna.trial.TrialState.PRUNED
    return Tried(trial.number, kept[_RECIPE], None if pruned else trial.value, kept[_METRICS], float(kept[_SECONDS]))
