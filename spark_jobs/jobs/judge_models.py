"""The gate: decide which of tonight's recipes may be published, and say why in words.

Reads    evaluation.json, user_metrics.parquet and models/<name>/ of the run
Writes   gate.json; the report (gate/gate.json, gate/gate.md) and tags on the night's MLflow run; a version of the
         registered model, alias `challenger`, when something may be published
Exit     2 when it refuses: nothing is published, the served version stays, a retry would say the same.

Run params: min_test_users (20), max_data_age_days (7), min_coverage (0.02), max_top_share (0.9), max_loss (0.01),
require_personal (false); `evaluation.gate` says what they do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, GateRefusedError
from feature_repo.contracts.run import EVALUATION_FILE, GATE_FILE, MODELS_FOLDER, USER_METRICS_FILE, Run
from spark_jobs.evaluation.gate import METRIC, RECALL, REFUSED, Contestant, Night, Thresholds, judge
from spark_jobs.evaluation.parameters import read_parameters
from spark_jobs.evaluation.report import report_markdown
from spark_jobs.io import tracking
from spark_jobs.io.run_store import folder_of, read_report, write_report
from spark_jobs.jobs.entry import run_job
from spark_jobs.models.artifacts import manifest_digest, verify_folder


def main(environment: Environment, run: Run) -> dict[str, Any]:
    """The whole job; returns what gate.json says. Raises GateRefusedError after everything is written and logged."""
    evaluation = read_report(environment, run.run_key, EVALUATION_FILE)
    contestants, night = read_evaluation(environment, run, evaluation)
    verdict = judge(contestants, night, read_parameters(Thresholds, run.params))
    report = {"as_of": run.as_of, "run_key": run.run_key, "champion": evaluation["champion"], **verdict.to_report()}
    if verdict.contestant is not None:
        _verify_files(environment, run, evaluation["models"][verdict.contestant], verdict.contestant)
    write_report(environment, run.run_key, GATE_FILE, report)

    page = report_markdown(report, evaluation)
    print(page, flush=True)
    metrics = {f"{METRIC}.{c.name}": c.quality for c in contestants}
    tags = {"verdict": verdict.verdict, "winner": report["model"] or "none"}
    texts = {"gate/gate.json": json.dumps(report, indent=1, sort_keys=True), "gate/gate.md": page}
    tracking.log_report(environment, run.mlflow_run_id, files=texts, tags=tags, metrics=metrics)
    if verdict.verdict == REFUSED:
        tracking.end_night(environment, run.mlflow_run_id, "FAILED")
        raise GateRefusedError("; ".join(verdict.reasons))
    if run.publishes and verdict.contestant is not None and verdict.recipe is not None:
        tracking.register_version(
            environment,
            run_id=evaluation["models"][verdict.contestant]["mlflow_run_id"],
            run_key=run.run_key,
            as_of=run.as_of,
            recipe=verdict.recipe,
            verdict=verdict.verdict,
        )
    return report


def read_evaluation(
    environment: Environment, run: Run, evaluation: Mapping[str, Any]
) -> tuple[list[Contestant], Night]:
    """What train_models found, as the gate wants it."""
    path = folder_of(environment, run.run_key) / USER_METRICS_FILE
    if not path.is_file():
        raise DataError(f"run {run.run_key!r} has no {USER_METRICS_FILE} yet: {path} does not exist")
    rows = pq.read_table(path).to_pandas().sort_values(["contestant", "subject_key"], kind="stable")
    contestants, slices = [], np.empty(0, dtype=np.str_)
    for name, model in evaluation["models"].items():
        own = rows[rows["contestant"] == name]
        slices = own["slice"].to_numpy().astype(np.str_)
        if len(own) != evaluation["test"]["users"]:
            raise ContractError(
                f"{path} has {len(own)} test persons of {name}, {EVALUATION_FILE} says {evaluation['test']['users']}"
            )
        contestants.append(
            Contestant(
                name=name,
                recipe=model["recipe"],
                per_user={metric: own[metric].to_numpy() for metric in (METRIC, RECALL)},
                distinct_items=int(model["beyond_accuracy"]["distinct_items_at_20"]),
                top_share=model["beyond_accuracy"]["top_share_at_20"],
                non_finite_count=model["non_finite_count"],
            )
        )
    test, champion = evaluation["test"], evaluation["champion"]
    night = Night(
        slices=slices,
        known_items=test["known_items"],
        data_age_days=test["data_age_days"],
        random_recall=test["random_recall_at_20"],
        note=test["note"],
        champion=champion["contestant"] if champion is not None else None,
        publishes=run.publishes,
    )
    return contestants, night


def _verify_files(environment: Environment, run: Run, model: Mapping[str, Any], name: str) -> None:
    """The winner's files are whole, and are those that were evaluated."""
    folder = folder_of(environment, run.run_key) / MODELS_FOLDER / name
    verify_folder(folder)
    found = manifest_digest(folder)
    if found != model["manifest_sha256"]:
        raise ContractError(f"{folder}: the manifest changed since the evaluation ({found[:12]}...)")


if __name__ == "__main__":
    run_job(main)
