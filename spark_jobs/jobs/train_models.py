"""Train tonight's recipes on all but the last days, and measure how well each finds what came then.

Reads    silver.interactions, gold.item_ids; the champion's recipe from MLflow
Writes   models/<name>/ (arrays + manifest), user_metrics.parquet, evaluation.json in the run folder;
         gold.evaluations (partition as_of); a nested MLflow run per model
Then     judge_models decides; score_users refits the winner on all data.

Run params
    models           which to train, default popularity, item_knn and als; popularity always is
    als_engine       native (default) or mllib
    test_days        length of the test window, default 7 days; it shrinks when the history is short
    max_test_users   how many test persons are judged at most

The champion's recipe is trained beside them when it is none of tonight's: the gate compares recipes on one split. Too
little data for a test is no error: models are trained, the evaluation says why it is empty, and the gate goes on.
Everything is a function of the data, the recipes and the seeds in them: run again, it makes the same tables.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import EVALUATION_FILE, MODELS_FOLDER, USER_METRICS_FILE, Run
from feature_repo.contracts.tables import table_path
from feature_repo.contracts.times import format_timestamp, from_micros
from spark_jobs.evaluation.full_ranking import ModelEvaluation, evaluate
from spark_jobs.evaluation.gate import BASELINE, random_recall
from spark_jobs.evaluation.parameters import read_parameters
from spark_jobs.evaluation.split import MAX_TEST_USERS, SLICE_SUFFIX, SLICES, TEST_DAYS, TimeSplit, split_by_time
from spark_jobs.io import tracking
from spark_jobs.io.delta import overwrite_partitions, read_table, table_version
from spark_jobs.io.run_store import folder_of, write_report
from spark_jobs.jobs.entry import run_job
from spark_jobs.models.artifacts import manifest_digest
from spark_jobs.models.base import Model
from spark_jobs.models.factory import fit_recipe
from spark_jobs.models.matrix import load_interactions
from spark_jobs.models.recipes import RECIPES, default_recipe
from spark_jobs.session import get_session

CHAMPION = "champion"
"""The name, in evaluations, of the live recipe when it is none of tonight's."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The run params that are this job's; the module says what they mean."""

    models: tuple[str, ...] = tuple(RECIPES)
    als_engine: str = "native"
    test_days: int = TEST_DAYS
    max_test_users: int = MAX_TEST_USERS


@dataclass(frozen=True, slots=True)
class Trained:
    """One recipe, fitted on the training split and evaluated."""

    recipe: Mapping[str, Any]
    evaluation: ModelEvaluation
    folder: Path
    fit_seconds: float
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def main(environment: Environment, run: Run) -> None:
    """Entry point of the process: a session of its own around `train_models`."""
    spark = get_session("train_models")
    try:
        train_models(spark, environment, run)
    finally:
        spark.stop()


def train_models(spark: SparkSession, environment: Environment, run: Run) -> dict[str, Any]:
    """The whole job in a given session; returns what evaluation.json says."""
    options = read_parameters(TrainOptions, run.params)
    live = tracking.champion(environment)
    recipes, champion_name = tonight(options, live.recipe if live is not None else None)

    reads = [_read_table(spark, environment, name) for name in ("silver.interactions", "gold.item_ids")]
    events, item_ids = (read_table(spark, environment, r.name, r.version) for r in reads)
    known = events.filter(F.col("event_date") < F.lit(run.as_of_day))
    interactions = load_interactions(known, item_ids, cut_off=run.cut_off)
    item_count = 1 + max(item_ids.select("item_number").toArrow()["item_number"].to_pylist(), default=-1)
    split = split_by_time(
        interactions,
        cut_off=run.cut_off,
        item_count=item_count,
        test_days=options.test_days,
        max_test_users=options.max_test_users,
    )
    last_event = from_micros(pc.max(interactions["micros"]).as_py())
    print(
        f"{interactions.num_rows:,} interactions, {split.train.num_rows:,} before {split.test_start:%Y-%m-%d}; "
        f"{len(split.subjects):,} test persons, {item_count:,} items. {split.note}".rstrip(),
        flush=True,
    )

    folder = folder_of(environment, run.run_key)
    trained = {
        name: _train(recipe, split, item_count, folder / MODELS_FOLDER / name) for name, recipe in recipes.items()
    }
    _write_user_metrics(folder / USER_METRICS_FILE, split, trained)
    overwrite_partitions(
        _evaluation_rows(spark, run, split, trained), environment, "gold.evaluations", {"as_of": [run.as_of_day]}
    )
    seen_counts = np.diff(split.seen.indptr)
    report = {
        "as_of": run.as_of,
        "run_key": run.run_key,
        "test": {
            "days": split.test_days,
            "start": format_timestamp(split.test_start),
            "note": split.note,
            "users": len(split.subjects),
            "users_by_slice": _users_by_slice(split),
            "train_interactions": split.train.num_rows,
            "interactions": interactions.num_rows,
            "item_count": item_count,
            "known_items": int(split.known_items.sum()),
            "random_recall_at_20": random_recall(item_count, seen_counts),
            "last_event_at": format_timestamp(last_event),
            "data_age_days": (run.cut_off - last_event) / timedelta(days=1),
        },
        "champion": None
        if live is None
        else {"contestant": champion_name, "version": live.version, "published_version": live.published_version},
        "delta_versions": {r.name: r.version for r in reads},
        "models": {name: _log_model(environment, run, name, one, reads) for name, one in trained.items()},
    }
    write_report(environment, run.run_key, EVALUATION_FILE, report)
    return report


def tonight(options: TrainOptions, live: Mapping[str, Any] | None) -> tuple[dict[str, Mapping[str, Any]], str | None]:
    """(recipes by contestant, the contestant that has the live recipe; None before the first publication).

    The baseline always takes part. Raises DataError on an unknown model.
    """
    names = (BASELINE, *(name for name in options.models if name != BASELINE))
    recipes: dict[str, Mapping[str, Any]] = {n: default_recipe(n, engine=options.als_engine) for n in names}
    if live is None:
        return recipes, None
    for name, recipe in recipes.items():
        if recipe == live:
            return recipes, name
    return {**recipes, CHAMPION: live}, CHAMPION


def _train(recipe: Mapping[str, Any], split: TimeSplit, item_count: int, folder: Path) -> Trained:
    began = time.monotonic()
    model: Model
    model, matrix = fit_recipe(recipe, split.train, item_count=item_count, cut_off=split.test_start)
    seconds = time.monotonic() - began
    evaluation = evaluate(model, matrix, split)
    model.save(folder)
    metrics = evaluation.by_slice(split.slices)
    ndcg = metrics.get("all", {}).get("ndcg_at_20")
    quality = "not evaluated" if ndcg is None else f"NDCG@20 {ndcg:.4f}"
    total = time.monotonic() - began
    print(f"{folder.name}: {quality}; fitted in {seconds:.1f} s, all in {total:.1f} s", flush=True)
    return Trained(recipe, evaluation, folder, seconds, metrics)


def _users_by_slice(split: TimeSplit) -> dict[str, int]:
    return {name: int((split.slices == name).sum()) if name != "all" else len(split.subjects) for name in SLICES}


def _write_user_metrics(path: Path, split: TimeSplit, trained: Mapping[str, Trained]) -> None:
    """One row per contestant and test person."""
    persons = {
        "subject_key": split.subjects.tolist(),
        "slice": split.slices.tolist(),
        "train_event_count": split.train_event_counts,
        "test_item_count": np.diff(split.relevant.indptr),
    }
    tables = [
        pa.table({"contestant": [name] * len(split.subjects), **persons, **one.evaluation.per_user})
        for name, one in trained.items()
    ]
    draft = path.with_suffix(".draft")
    pq.write_table(pa.concat_tables(tables, promote_options="permissive"), draft)
    draft.replace(path)


def _evaluation_rows(spark: SparkSession, run: Run, split: TimeSplit, trained: Mapping[str, Trained]) -> DataFrame:
    """gold.evaluations of this as_of; every metric by slice, coverage and concentration over all persons."""
    users = _users_by_slice(split)
    rows = []
    for name, one in trained.items():
        beyond = one.evaluation.beyond_accuracy() if users["all"] else {}
        for part in SLICES:
            found = {**one.metrics.get(part, {}), **(beyond if part == "all" else {})}
            for metric, value in sorted(found.items()):
                base, _, k = metric.rpartition("_at_")
                rows.append((name, part, base, int(k), float(value), users[part], run.as_of_day, run.run_key))
    schema = (
        "model string, slice string, metric string, k int, value double, user_count bigint, as_of date, run_key string"
    )
    return spark.createDataFrame(rows, schema)


def _log_model(
    environment: Environment, run: Run, name: str, one: Trained, reads: list[tracking.ReadTable]
) -> dict[str, Any]:
    """Log the nested MLflow run; returns the model's part of evaluation.json."""
    beyond = one.evaluation.beyond_accuracy()
    digest = manifest_digest(one.folder)
    logged = {f"{metric}{SLICE_SUFFIX[part]}": v for part, found in one.metrics.items() for metric, v in found.items()}
    run_id = tracking.log_model_run(
        environment,
        parent_run_id=run.mlflow_run_id,
        run_key=run.run_key,
        model=name,
        params=flat_recipe(one.recipe),
        metrics={**logged, **beyond, "fit_seconds": one.fit_seconds},
        tags={"manifest_sha256": digest, "as_of": run.as_of},
        tables=reads,
        artifacts=one.folder,
    )
    return {
        "recipe": dict(one.recipe),
        "metrics": {part: dict(found) for part, found in one.metrics.items()},
        "beyond_accuracy": beyond,
        "non_finite_count": one.evaluation.non_finite_count,
        "fit_seconds": round(one.fit_seconds, 3),
        "manifest_sha256": digest,
        "mlflow_run_id": run_id,
    }


def flat_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as MLflow params: its own values, `weight.<event type>`, and the model's parameters by their names."""
    weights = {f"weight.{event_type}": weight for event_type, weight in recipe["weights"].items()}
    return {"model": recipe["model"], "half_life_days": recipe["half_life_days"], **weights, **recipe["params"]}


def _read_table(spark: SparkSession, environment: Environment, name: str) -> tracking.ReadTable:
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    return tracking.ReadTable(name, path, table_version(spark, environment, name))


if __name__ == "__main__":
    run_job(main)
