"""Search for better recipes of the night's models, on a validation window only; without Spark.

Reads    silver.interactions and gold.item_ids as they stand
Writes   the trials to `tuning/<tenant>/<search>/<family>.log`, where a search that was stopped goes on; runs in MLflow,
         experiment `tuning`

No task of a night: `nightjar tune` calls it. The validation window is the one of the night's own trials: the last days
before the test window of `as_of`, so what the gate judges on is never looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.times import format_timestamp, start_of_day
from spark_jobs.evaluation.split import INTERACTED, TEST_DAYS, split_by_time
from spark_jobs.evaluation.trials import MIN_VALIDATION_USERS, validation_split
from spark_jobs.evaluation.tuning import FamilyStudy, Rungs, Tried, make_rungs, run_studies
from spark_jobs.io.interactions import read_interactions
from spark_jobs.io.item_content import load_content
from spark_jobs.io.light_delta import days_by_row_count, read_table, version
from spark_jobs.io.tuning_runs import TuningRuns
from spark_jobs.jobs.trained_models import flat_metrics
from spark_jobs.models.item_content import ItemContent
from spark_jobs.models.matrix import numbered_interactions
from spark_jobs.models.night_models import measure_sizes, plan_models
from spark_jobs.models.recipe_choice import RecipeChoice

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked for.

    models        families; empty: those that a night trains when nobody says
    as_of         None: the day after the last interaction
    minutes       of the clock; each family has its first trial whatever it says
    most_trials   of a family; None: as many as the minutes allow
    """

    models: tuple[str, ...] = ()
    as_of: date | None = None
    minutes: float = 15.0
    most_trials: int | None = None
    test_days: int = TEST_DAYS
    exclude_seen: str = INTERACTED
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found. `families`: name -> the first trial (the recipe as it was) and the best."""

    choice: RecipeChoice
    families: Mapping[str, tuple[Tried, Tried]]
    trials: Mapping[str, list[Tried]]
    mlflow_run_id: str
    folder: Path


def tune_models(
    environment: Environment, search: Search, *, spent: Callable[[], float], say: Say = lambda _: None
) -> Found:
    """The whole search. `spent` says how many seconds have gone since it began.

    Raises DataError when there is nothing to learn from, too few validation persons or an unknown model, and
    DependencyError when MLflow does not answer.
    """
    if search.minutes <= 0:
        raise DataError(f"minutes is above 0, got {search.minutes:g}", field="minutes")
    reads = {name: version(environment, name) for name in ("silver.interactions", "gold.item_ids", "bronze.items")}
    as_of = search.as_of or _day_after_the_last(environment)
    numbers = read_table(environment, "gold.item_ids", reads["gold.item_ids"], ["item_id", "item_number"])
    interactions = _interactions(environment, as_of, reads, numbers)
    item_count = 1 + pc.max(numbers["item_number"]).as_py()
    content = load_content(environment, reads, numbers, item_count=item_count)
    rungs = _rungs(interactions, item_count, as_of, search, content)
    sizes = measure_sizes(interactions, item_count=item_count, content=content)
    program = plan_models(search.models, sizes, has_repeats=search.exclude_seen != INTERACTED)
    for note in program.notes:
        say(f"left out: {note}")
    validation = rungs.validation
    say(
        f"{validation.train.num_rows:,} interactions before {validation.test_start:%Y-%m-%d}; "
        f"{len(validation.subjects):,} validation persons over {validation.test_days} days"
        + ("" if rungs.sampled is None else f", {len(rungs.sampled.subjects):,} of them on the first rung")
    )
    key = _key(environment, as_of, reads, search)
    folder = Path(environment.home) / "tuning" / environment.tenant / key
    studies = {
        name: FamilyStudy(name, recipe, rungs, folder=folder, seed=search.seed)
        for name, recipe in program.recipes.items()
    }
    tags = {f"nightjar.delta.{name}": str(number) for name, number in reads.items()}
    runs = TuningRuns(environment, key=key, as_of=as_of.isoformat(), tags=tags)
    families = {name: runs.log_family(name) for name in studies}

    def told(name: str, tried: Tried) -> None:
        _log(runs, families[name], name, tried)
        best = studies[name].best()
        words = "pruned" if tried.quality is None else f"{tried.quality:.4f}"
        best_words = "" if best is None else f", best {best.quality:.4f}"
        say(f"{spent():6.0f} s  {name:<17} trial {tried.number:<3} {words}{best_words}")

    for name, study in studies.items():
        for tried in study.tried():  # of a search that was killed between a trial and its log
            _log(runs, families[name], name, tried)
    run_studies(studies, spent=spent, budget_seconds=60 * search.minutes, most_trials=search.most_trials, told=told)
    return _found(environment, studies, runs, families, as_of, reads, search, folder)


def _log(runs: TuningRuns, family: tuple[str, set[int]], name: str, tried: Tried) -> None:
    run_id, logged = family
    if tried.number in logged:
        return
    metrics = {**flat_metrics(tried.metrics), "fit_and_score_seconds": tried.seconds}
    runs.log_trial(
        run_id, name, number=tried.number, recipe=tried.recipe, metrics=metrics, pruned=tried.quality is None
    )
    logged.add(tried.number)


def _found(
    environment: Environment,
    studies: Mapping[str, FamilyStudy],
    runs: TuningRuns,
    families: Mapping[str, tuple[str, set[int]]],
    as_of: date,
    reads: Mapping[str, int],
    search: Search,
    folder: Path,
) -> Found:
    trials = {name: study.tried() for name, study in studies.items()}
    best = {name: (trials[name][0], found) for name, study in studies.items() if (found := study.best()) is not None}
    origin = {
        "tuned_on": as_of.isoformat(),
        "validation_ndcg_at_20": {name: found.quality for name, (_, found) in best.items()},
        "default_ndcg_at_20": {name: first.quality for name, (first, _) in best.items()},
        "trials": {name: len(tried) for name, tried in trials.items()},
        "delta_versions": dict(reads), "exclude_seen": search.exclude_seen, "seed": search.seed,
        "code_version": environment.code_version, "mlflow_run_id": runs.run_id,
    }  # fmt: skip
    choice = RecipeChoice({name: found.recipe for name, (_, found) in best.items()}, origin=origin)
    ended = {
        name: (
            families[name][0],
            found.recipe,
            flat_metrics(found.metrics),
            list(accumulate((t.quality or 0.0 for t in trials[name]), max)),
        )
        for name, (_, found) in best.items()
    }
    runs.end(ended, files={"recipes.json": json.dumps(choice.to_json(), indent=1, sort_keys=True)})
    return Found(choice, best, trials, runs.run_id, folder)


def _day_after_the_last(environment: Environment) -> date:
    days = days_by_row_count(environment, "silver.interactions")
    if not days:
        raise DataError("silver.interactions is empty: `nightjar run nightly` fills it", field="as_of")
    return max(days) + timedelta(days=1)


def _interactions(environment: Environment, as_of: date, reads: Mapping[str, int], numbers: pa.Table) -> pa.Table:
    """Raises DataError when there are none, or one is about an item without a number."""
    version = reads["silver.interactions"]
    rows = read_interactions(environment, numbers, cut_off=start_of_day(as_of), version=version)
    if not rows.num_rows:
        raise DataError(f"silver.interactions has nothing before {as_of}", field="as_of")
    return numbered_interactions(rows)


def _rungs(interactions: pa.Table, item_count: int, as_of: date, search: Search, content: ItemContent) -> Rungs:
    split = split_by_time(
        interactions, cut_off=start_of_day(as_of), item_count=item_count, test_days=search.test_days,
        exclude_seen=search.exclude_seen,
    )  # fmt: skip
    validation = validation_split(split, item_count=item_count, days=search.test_days, exclude_seen=search.exclude_seen)
    if validation is None:
        raise DataError(
            f"fewer than {MIN_VALIDATION_USERS} persons can be asked before {format_timestamp(split.test_start)}: "
            "there is nothing to tune on",
            field="as_of",
        )
    return make_rungs(validation, item_count=item_count, seed=search.seed, content=content)


def _key(environment: Environment, as_of: date, reads: Mapping[str, int], search: Search) -> str:
    """Of all that decides a search but its budget and its models: the same search goes on, another begins anew."""
    what = [environment.tenant, as_of.isoformat(), dict(reads), search.test_days, search.exclude_seen, search.seed]
    return f"{as_of.isoformat()}-{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]}"
