"""Train tonight's recipes on all but the last days, and measure how well each finds what came then.

Reads    silver.interactions, gold.item_ids; bronze.items (pinned) for what they are; the champion's recipe from MLflow
Writes   models/<name>/ (arrays + manifest), user_metrics.parquet, evaluation.json in the run folder;
         gold.evaluations (partition as_of); in MLflow a nested run per model, and a run with trials per family
Then     judge_models decides; score_users refits the winner on all data.

Run params
    models           which to train; popularity always is. Default: all that the size of the data affords
                     (`models.night_models`), and `blend`, the best of them together; repurchase where lists may repeat
    recipes          the recipes that `nightjar recipes apply` chose, as pin_run found them; they come before defaults
    exclude_seen     as in score_users: what may be recommended is what is asked for here
    als_engine       native (default) or mllib
    test_days        length of the test window, default 7 days; it shrinks when the history is short
    max_test_users   how many test persons are judged at most
    trials           how many recipes around each family's default are tried on a validation window, the last days
                     before the test window; default 3. The best enters the comparison. 0: the defaults, untried.
                     Mode and weights of the blend are chosen there too
    trial_events     how many interactions a trial learns from at most, default a million: of a larger shop those of a
                     sample of its people, always the same ones. Models are compared on all
    slice_by         attributes of people (bronze.users) by whose values models are compared as well; default region

`with_session` stands below them, of no recipe: what answers would be that blend the best model's lists with the session
that asks (`evaluation.with_session`). `with_ranker` is what they would be whose best a ranker orders in the request
(`evaluation.with_ranker`); whether the night publishes one is decided by it. Both are measured on the same persons, and
are never judged or published themselves.

The champion's recipe is trained beside them when it is none of tonight's: the gate compares recipes on one split. Too
little data for a test is no error: models are trained, the evaluation says why it is empty, and the gate goes on.
On a cluster one task of an executor does all of this, and the driver hears names and digests (`spark_jobs.engine`); of
als on mllib it has Spark learn (`jobs.asked_of_spark`).
Everything is a function of the data, the recipes and the seeds in them: run again, it makes the same tables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from feature_repo.contracts.changes import USERS
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import nearest
from feature_repo.contracts.run import EVALUATION_FILE, MODELS_FOLDER, USER_METRICS_FILE, Run
from feature_repo.contracts.tables import table_path
from feature_repo.contracts.times import format_timestamp, from_micros
from spark_jobs.evaluation.contestants import (
    choose_contestants,
    why_no_categories,
    why_no_ranker,
    with_categories,
    with_champion,
    without_ranker,
)
from spark_jobs.evaluation.data_profile import profile_interactions
from spark_jobs.evaluation.examples import choose_persons, describe_persons, explain_examples
from spark_jobs.evaluation.full_ranking import ranking_of
from spark_jobs.evaluation.further_slices import further_slices
from spark_jobs.evaluation.gate import METRIC, random_recall
from spark_jobs.evaluation.list_quality import ListQuality, category_numbers
from spark_jobs.evaluation.parameters import read_parameters
from spark_jobs.evaluation.split import (
    INTERACTED,
    MAX_TEST_USERS,
    SLICES,
    TEST_DAYS,
    TimeSplit,
    seen_policy,
    split_by_time,
)
from spark_jobs.evaluation.trials import TRIAL_EVENTS
from spark_jobs.evaluation.with_ranker import why_no_answer_ranker
from spark_jobs.evaluation.with_session import sessions_when_asked
from spark_jobs.io import registry, tracking
from spark_jobs.io.catalogue import categories_of_items, in_run, records_by_id
from spark_jobs.io.entity_features import load_entity_features
from spark_jobs.io.interactions import known_numbers, read_interactions, read_numbers
from spark_jobs.io.item_content import load_content
from spark_jobs.io.light_delta import version as light_version
from spark_jobs.io.light_tables import replace_rows
from spark_jobs.io.parcels import parcels_of
from spark_jobs.io.run_store import folder_of, write_report
from spark_jobs.jobs import executor_work
from spark_jobs.jobs.asked_of_spark import on_executor_with_spark
from spark_jobs.jobs.entry import run_job
from spark_jobs.jobs.resources import measured
from spark_jobs.jobs.trained_answers import TrainedAnswers
from spark_jobs.jobs.trained_models import (
    Examination,
    Trained,
    evaluation_rows,
    log_trained,
    write_user_metrics,
)
from spark_jobs.models.als import AfterSweep, Sweep
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.blend_model import BLEND
from spark_jobs.models.factory import Fitted, fit, newest_learned
from spark_jobs.models.matrix import numbered_interactions
from spark_jobs.models.mllib import is_asked_here
from spark_jobs.models.night_models import check_models, measure_sizes, plan_models
from spark_jobs.models.ranker import RANKER
from spark_jobs.models.recipe_choice import RecipeChoice, read_choice
from spark_jobs.models.recipes import is_fitted_by_spark, recipe_id
from spark_jobs.models.training_data import TrainingData
from spark_jobs.session import get_session, runs_on_cluster

REGION = "region"
IN_A_SESSION = "in a session"
"""The slice of test persons who had a session running when they came for something."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The run params that are this job's; the module says what they mean."""

    models: tuple[str, ...] = ()
    als_engine: str = "native"
    test_days: int = TEST_DAYS
    max_test_users: int = MAX_TEST_USERS
    trials: int = 3
    trial_events: int = TRIAL_EVENTS
    slice_by: tuple[str, ...] = (REGION,)


def main(environment: Environment, run: Run) -> None:
    """Entry point of the process. On a cluster an executor does the job."""
    try:
        if runs_on_cluster():
            for one in train_on_cluster(get_session("train_models"), environment, run):
                print(f"{one.name}: {one.file_bytes:,} bytes, manifest {one.manifest_sha256[:12]}", flush=True)
        else:
            train_models(environment, run)
    finally:
        if (spark := SparkSession.getActiveSession()) is not None:
            spark.stop()


def train_on_cluster(spark: SparkSession, environment: Environment, run: Run) -> list[executor_work.TrainedModel]:
    """`train_models` by one task of an executor, and Spark's ALS where a recipe is fitted by it."""
    with parcels_of(environment, run):
        return on_executor_with_spark(spark, environment, run, partial(executor_work.train, environment, run))


def _applied(run: Run) -> RecipeChoice | None:
    applied = run.params.get("recipes")
    return read_choice(applied) if isinstance(applied, Mapping) else None


def train_models(environment: Environment, run: Run) -> dict[str, Any]:
    """The whole job; returns what evaluation.json says. It has a Spark session only where a recipe is fitted by one:
    to start a session takes longer than to write what it would write."""
    options = read_parameters(TrainOptions, run.params)
    check_models(options.models)
    choice = _applied(run)
    policy = seen_policy(run.params)
    live = registry.champion(environment, before=run.as_of)

    reads = [_read_table(environment, name) for name in ("silver.interactions", "gold.item_ids")]
    events, item_ids = (r.version for r in reads)
    every_number = read_numbers(environment, item_ids)
    met = read_interactions(environment, every_number, cut_off=run.cut_off, version=events)
    interactions, numbers = numbered_interactions(met), known_numbers(every_number, met, run.as_of_day)
    item_count = 1 + max(numbers["item_number"].to_pylist(), default=-1)
    split = split_by_time(
        interactions,
        cut_off=run.cut_off,
        item_count=item_count,
        test_days=options.test_days,
        max_test_users=options.max_test_users,
        exclude_seen=policy,
    )
    last_event = from_micros(pc.max(interactions["micros"]).as_py())
    print(
        f"{interactions.num_rows:,} interactions, {split.train.num_rows:,} before {split.test_start:%Y-%m-%d}; "
        f"{len(split.subjects):,} test persons, {item_count:,} items. {split.note}".rstrip(),
        flush=True,
    )
    content = load_content(environment, run.pins, numbers, item_count=item_count)
    sizes = measure_sizes(interactions, item_count=item_count, content=content)
    program = plan_models(
        options.models, sizes, choice=choice, has_repeats=policy != INTERACTED, als_engine=options.als_engine
    )
    for note in program.notes:
        print(f"left out: {note}", flush=True)

    features = cache(partial(load_entity_features, environment, numbers, item_count, run))
    live_recipe = live.recipe if live is not None else None
    if program.may_rank or (live_recipe or {}).get("model") == RANKER:
        why = why_no_ranker(split, run, features)
        if why:
            program, live_recipe = without_ranker(program, live_recipe, why)
        else:
            program, live_recipe = with_categories(program, live_recipe, why_no_categories(split, run, features))
    with measured() as trials_usage:
        choices = choose_contestants(
            program, split, content, trials=options.trials, trial_events=options.trial_events,
            test_days=options.test_days, policy=policy,
        )  # fmt: skip
    print(f"trials took {trials_usage.wall_seconds:.1f} s", flush=True)
    chosen = {name: one.recipe for name, one in choices.items() if one.recipe}
    recipes, champion_name = with_champion(chosen, live_recipe)
    if is_asked_here() and any(is_fitted_by_spark(recipe) for recipe in recipes.values()):
        get_session("train_models")
        import pyspark.ml  # noqa: F401  # whole, before MLflow looks into it from beside
    folder = folder_of(environment, run.run_key)
    persons = choose_persons(split)
    categories = _categories(environment, run, numbers, item_count)
    lists = ListQuality(split, categories=_category_numbers(categories))
    sessions = sessions_when_asked(met, split)
    further = further_slices(
        split, attributes=_attributes(environment, run, split, options.slice_by), categories=categories,
        people={IN_A_SESSION: sessions.has_any},
    )  # fmt: skip
    examination = Examination(split, persons, lists, further)
    data = TrainingData(
        split.train, item_count=item_count, cut_off=split.test_start, content=content, features=features
    )
    night = tracking.Night(run.run_key, run.mlflow_run_id, run.as_of, reads)
    with ThreadPoolExecutor(1) as beside:  # MLflow takes seconds that the next model does not need
        logged: dict[str, Future[dict[str, Any]]] = {}

        def tell(name: str, one: Trained) -> None:
            logged[name] = beside.submit(log_trained, environment, night, name, one, choices.get(name))

        trained, best = _train_all(recipes, data, examination, folder / MODELS_FOLDER, tell)
        answers = TrainedAnswers(best, trained[best[0]], met, sessions, data, examination, folder / MODELS_FOLDER)
        no_ranker = why_no_answer_ranker(
            interactions.num_rows, len(split.subjects), why_no_ranker(split, run, features)
        )
        by_category = not no_ranker and not why_no_categories(split, run, features)
        rows, not_shown = answers.rows(recipes[best[0]], no_ranker=no_ranker, by_category=by_category, policy=policy)
        trained |= rows
        for name, one in rows.items():
            tell(name, one)
    left_out = [*program.notes, *not_shown]
    write_user_metrics(folder / USER_METRICS_FILE, split, trained)
    counts = {**_users_by_slice(split), **further.person_counts(split)}
    replace_rows(environment, "gold.evaluations", evaluation_rows(run, counts, trained), run.as_of_day)
    examples = [
        {
            **person,
            "lists": {name: one.examples[n] for name, one in trained.items()},
            "why": {name: one.why[n] for name, one in trained.items() if one.why is not None},
        }
        for n, person in enumerate(describe_persons(split, persons, tenant=environment.tenant))
    ]
    seen_counts = np.diff(split.seen.indptr)
    models = {name: logged[name].result() for name in trained}
    used = trials_usage.metrics("trials")
    tracking.log_report(environment, run.mlflow_run_id, files={}, tags={}, metrics=used, tables=reads)
    report = {
        "as_of": run.as_of,
        "run_key": run.run_key,
        "test": {
            "days": split.test_days,
            "start": format_timestamp(split.test_start),
            "note": split.note,
            "users": len(split.subjects),
            "users_by_slice": _users_by_slice(split),
            "users_by_further_slice": further.person_counts(split),
            "train_interactions": split.train.num_rows,
            "interactions": interactions.num_rows,
            "item_count": item_count,
            "known_items": int(split.known_items.sum()),
            "people": sizes.people,
            "users_in_a_session": int(sessions.has_any.sum()),
            "exclude_seen": policy,
            "random_recall_at_20": random_recall(item_count, seen_counts),
            "last_event_at": format_timestamp(last_event),
            "data_age_days": (run.cut_off - last_event) / timedelta(days=1),
        },
        "champion": None
        if live is None
        else {"contestant": champion_name, "version": live.version, "published_version": live.published_version},
        "delta_versions": {r.name: r.version for r in reads},
        "profile": profile_interactions(interactions, item_count=item_count),
        "examples": examples,
        "left_out": left_out,
        "blend": choices[BLEND].why if BLEND in choices else "no blend was asked for",
        "models": models,
    }
    write_report(environment, run.run_key, EVALUATION_FILE, report)
    return report


def _train_all(
    recipes: Mapping[str, Mapping[str, Any]],
    data: TrainingData,
    examination: Examination,
    folder: Path,
    tell: Callable[[str, Trained], None],
) -> tuple[dict[str, Trained], tuple[str, Fitted]]:
    """Each contestant, in order, and the best of them as it was fitted; `tell` hears of each at once. What a blend is
    made of is fitted once and kept until then."""
    parts = {
        recipe_id(part) for recipe in recipes.values() if recipe["model"] == BLEND
        for part in recipe["params"]["parts"].values()
    } | {recipe_id(recipe["params"]["first"]) for recipe in recipes.values() if recipe["model"] == RANKER}  # fmt: skip
    kept: dict[str, Fitted] = {}
    trained: dict[str, Trained] = {}
    best: tuple[str, Fitted] | None = None
    for name, recipe in recipes.items():
        trained[name], fitted = _train(recipe, data, kept, examination, folder / name)
        tell(name, trained[name])
        if recipe_id(recipe) in parts:
            kept[recipe_id(recipe)] = fitted
        if best is None or _rank_of(name, trained[name]) < _rank_of(best[0], trained[best[0]]):
            best = name, fitted
    assert best is not None
    return trained, best


def _rank_of(name: str, one: Trained) -> tuple[bool, float, str]:
    """The smallest is the best: the gate's order, of scores that are finite."""
    ndcg = one.evaluation.per_user[METRIC]
    return one.evaluation.non_finite_count > 0, -round(float(ndcg.mean()), 9) if len(ndcg) else 0.0, name


def _train(
    recipe: Mapping[str, Any],
    data: TrainingData,
    kept: Mapping[str, Fitted],
    examination: Examination,
    folder: Path,
) -> tuple[Trained, Fitted]:
    losses: list[float] = []

    def watch(_: InteractionMatrix) -> AfterSweep:
        def after_sweep(sweep: Sweep) -> None:
            losses.append(sweep.loss)

        return after_sweep

    with measured() as usage:
        fitted = fit(recipe, data, after_sweep=watch, fitted=kept)
    fitted.model.save(folder)
    rank = ranking_of(*fitted, examination.split)
    trained = examination.of(rank, recipe, folder, usage, losses=losses, learned_until=newest_learned(fitted))
    why = explain_examples(*fitted, examination.split, examination.persons, trained.examples)
    return replace(trained, why=why), fitted


def _categories(environment: Environment, run: Run, numbers: pa.Table, item_count: int) -> list[str | None]:
    """By item number its category when the run's interval ended, changes through the API among it."""
    by_id = categories_of_items(environment, in_run({"bronze.items": -1, **run.pins}), cut_off=run.cut_off)
    names: list[str | None] = [None] * item_count
    for item_id, number in zip(*(numbers[c].to_pylist() for c in ("item_id", "item_number")), strict=True):
        names[number] = by_id.get(item_id)
    return names


def _category_numbers(names: list[str | None]) -> NDArray[np.int64] | None:
    """None where no item has any."""
    found = category_numbers(names)
    return found if (found >= 0).any() else None


def _attributes(
    environment: Environment, run: Run, split: TimeSplit, slice_by: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Attribute -> subject key -> value of the test persons, as known at the cut-off: `region` of the users table, any
    other of their attributes. Texts, numbers and truths count; a list has no one value."""
    ids = [subject[2:] for subject in split.subjects.tolist() if subject.startswith("u:")]
    users = records_by_id(environment, USERS, ids, in_run(run.pins), cut_off=run.cut_off)
    found: dict[str, dict[str, str]] = {name: {} for name in slice_by}
    for user_id, user in users.items():
        said = {**json.loads(user["attributes"] or "{}"), REGION: user["region"]}
        for name in slice_by:
            value = said.get(name)
            if isinstance(value, str | int | float) and value != "":
                found[name][f"u:{user_id}"] = str(value).lower() if isinstance(value, bool) else str(value)
    for name, values in found.items():
        if name != REGION and not values:
            known = sorted({key for user in users.values() for key in json.loads(user["attributes"] or "{}")})
            print(f"slice_by: no test person has the attribute {name!r}{nearest(name, known)}", flush=True)
    return found


def _users_by_slice(split: TimeSplit) -> dict[str, int]:
    return {name: int((split.slices == name).sum()) if name != "all" else len(split.subjects) for name in SLICES}


def _read_table(environment: Environment, name: str) -> tracking.ReadTable:
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    return tracking.ReadTable(name, path, light_version(environment, name))


if __name__ == "__main__":
    run_job(main)
