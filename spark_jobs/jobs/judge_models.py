"""The gate: decide which of tonight's recipes may be published, and say why in words.

Reads    evaluation.json, user_metrics.parquet and models/<name>/ of the run
Writes   gate.json; on the night's MLflow run the report (gate/), pictures/, examples/examples.html, data/ and tags; on
         each model's run its model card and intervals; a version of the registered model, alias `challenger`: what may
         be published, or when all were refused the best of them, tagged so
Exit     2 when it refuses: nothing is published, the served version stays, a retry would say the same.

Run params: min_test_users (20), max_data_age_days (7), min_coverage (0.02), max_top_share (0.9), max_loss (0.01),
require_personal (false), max_rise (3), max_minutes (120), max_model_mb (4096); `evaluation.gate` says what they do.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from feature_repo.contracts.changes import ITEMS
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, GateRefusedError
from feature_repo.contracts.run import EVALUATION_FILE, GATE_FILE, MODELS_FOLDER, USER_METRICS_FILE, Run
from feature_repo.contracts.times import parse_timestamp
from spark_jobs.evaluation.data_profile import profile_markdown
from spark_jobs.evaluation.examples import examples_html, item_numbers
from spark_jobs.evaluation.gate import (
    BASELINE,
    METRIC,
    RECALL,
    REFUSED,
    Contestant,
    Night,
    Thresholds,
    compare_by_slice,
    judge,
    quality_intervals,
)
from spark_jobs.evaluation.model_card import model_card
from spark_jobs.evaluation.parameters import read_parameters
from spark_jobs.evaluation.pictures import draw_pictures
from spark_jobs.evaluation.report import TITLES, report_markdown, what_answers
from spark_jobs.evaluation.split import SLICE_SUFFIX
from spark_jobs.evaluation.with_ranker import WITH_RANKER, ranker_verdict
from spark_jobs.io import registry, tracking
from spark_jobs.io.catalogue import in_run, records_by_id
from spark_jobs.io.light_delta import read_table
from spark_jobs.io.run_store import folder_of, read_report, write_report
from spark_jobs.jobs.entry import run_job
from spark_jobs.models.artifacts import manifest_digest, verify_folder
from spark_jobs.models.blend_model import BLEND


def main(environment: Environment, run: Run) -> dict[str, Any]:
    """The whole job; returns what gate.json says. Raises GateRefusedError after everything is written and logged."""
    evaluation = read_report(environment, run.run_key, EVALUATION_FILE)
    shown, night = read_evaluation(environment, run, evaluation)
    contestants = [one for one in shown if is_judged(evaluation["models"][one.name])]
    verdict = judge(contestants, night, read_parameters(Thresholds, run.params))
    intervals = quality_intervals(shown, night.slices)
    report = {
        "as_of": run.as_of, "run_key": run.run_key, "champion": evaluation["champion"], "intervals": intervals,
        **verdict.to_report(),
    }  # fmt: skip
    report["comparisons"] += compare_beside(shown, evaluation, night)
    ranker = ranker_verdict(evaluation, report["comparisons"], verdict.contestant)
    report["ranker"] = ranker._asdict()
    if verdict.contestant is not None:
        _verify_files(environment, run, evaluation["models"][verdict.contestant], verdict.contestant)
    if ranker.publishes:
        _verify_files(environment, run, evaluation["models"][WITH_RANKER], WITH_RANKER)
    write_report(environment, run.run_key, GATE_FILE, report)

    page = report_markdown(report, evaluation)
    print(page, flush=True)
    cards = {
        name: model_card(
            name, evaluation, report, code_version=run.code_version, pins=run.pins, tenant=environment.tenant
        )
        for name, model in evaluation["models"].items()
        if is_judged(model)
    }
    _log_night(environment, run, evaluation, report, page)
    _log_models(environment, evaluation, intervals, cards)
    if run.publishes:
        candidate = verdict.contestant or best_challenger(contestants, night)
        if candidate is not None:
            registry.register_version(
                environment,
                run_id=evaluation["models"][candidate]["mlflow_run_id"],
                run_key=run.run_key,
                as_of=run.as_of,
                recipe=evaluation["models"][candidate]["recipe"],
                verdict=verdict.verdict,
                description=cards[candidate],
            )
    if verdict.verdict == REFUSED:
        tracking.end_night(environment, run.mlflow_run_id, "FAILED")
        raise GateRefusedError("; ".join(verdict.reasons))
    return report


def best_challenger(contestants: Sequence[Contestant], night: Night) -> str | None:
    """Of a night that was refused, the best contestant that is neither the baseline nor what is live already; None when
    there is no other."""
    others = [c for c in contestants if c.name not in (BASELINE, night.champion)]
    return max(others, key=lambda c: (c.quality, c.name)).name if others else None


def is_judged(model: Mapping[str, Any]) -> bool:
    """False of what is shown beside the contestants: answers with a session, say."""
    return bool(model.get("is_judged", True))


def compare_beside(shown: Sequence[Contestant], evaluation: Mapping[str, Any], night: Night) -> list[dict[str, Any]]:
    """What is shown beside the contestants, against the one that it is to be read beside, on each slice."""
    by_name = {one.name: one for one in shown}
    return [
        found
        for one in shown
        if (beside := evaluation["models"][one.name].get("beside")) is not None and len(night.slices)
        for found in compare_by_slice(one, by_name[beside], night)
    ]


def _log_night(
    environment: Environment, run: Run, evaluation: Mapping[str, Any], report: Mapping[str, Any], page: str
) -> None:
    """The night's own artifacts: the report, the pictures, the examples, the data."""
    metrics = {f"{METRIC}.{name}": found["all"][METRIC]["mean"] for name, found in report["intervals"].items() if found}
    examples = evaluation["examples"]
    texts = {
        "gate/gate.json": json.dumps(report, indent=1, sort_keys=True),
        "gate/gate.md": page,
        "data/profile.json": json.dumps(evaluation["profile"], indent=1, sort_keys=True),
        "data/profile.md": profile_markdown(evaluation["profile"], as_of=run.as_of),
        "examples/examples.html": examples_html(examples, _titles(environment, run, evaluation), as_of=run.as_of),
    }
    tags = {
        "verdict": report["verdict"],
        "winner": report["model"] or "none",
        "request_ranker": "published" if report["ranker"]["publishes"] else "left out",
        "examples_of": " ".join(one["key"] for one in examples),
        "mlflow.note.content": f"**{TITLES[report['verdict']]}**\n\n" + "\n".join(f"- {r}" for r in report["reasons"]),
    }
    with tempfile.TemporaryDirectory(prefix="nightjar-pictures-") as folder:
        draw_pictures(Path(folder) / "pictures", evaluation, report["intervals"])
        tracking.log_report(
            environment, run.mlflow_run_id, files=texts, tags=tags, metrics=metrics, folder=Path(folder)
        )


def _log_models(
    environment: Environment, evaluation: Mapping[str, Any], intervals: Mapping[str, Any], cards: Mapping[str, str]
) -> None:
    """Each model's run: its card, and the bounds of its intervals beside its means."""
    for name, model in evaluation["models"].items():
        bounds = {
            f"{metric}_{bound}{SLICE_SUFFIX[part]}": found[metric][bound]
            for part, found in intervals[name].items()
            for metric in (METRIC, RECALL)
            for bound in ("lower", "upper")
        }
        card = cards.get(name)
        files = {"model_card.md": card} if card else {}
        note = card or f"Not a model: {what_answers(name, model)}."
        tags = {"mlflow.note.content": note}
        tracking.log_report(environment, model["mlflow_run_id"], files=files, tags=tags, metrics=bounds)


def _titles(environment: Environment, run: Run, evaluation: Mapping[str, Any]) -> dict[int, str]:
    """Item number -> title (the item's id where it has none) of the items that the examples speak of."""
    wanted = item_numbers(evaluation["examples"])
    if not wanted:
        return {}
    version = evaluation["delta_versions"]["gold.item_ids"]
    columns = ["item_id", "item_number"]
    numbered = read_table(environment, "gold.item_ids", version, columns, [("item_number", "in", wanted)]).to_pylist()
    ids = [row["item_id"] for row in numbered]
    catalogue = records_by_id(environment, ITEMS, ids, in_run(run.pins), cut_off=run.cut_off)
    return {row["item_number"]: catalogue.get(row["item_id"], {}).get("title") or row["item_id"] for row in numbered}


def read_evaluation(
    environment: Environment, run: Run, evaluation: Mapping[str, Any]
) -> tuple[list[Contestant], Night]:
    """What train_models found, as the gate wants it: all that is shown, also what is not judged."""
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
                **_sight_and_cost(model, evaluation),
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


def _sight_and_cost(model: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the gate asks of a contestant beyond its lists."""
    test, users = evaluation["test"], evaluation["test"]["users"]
    ahead = None
    if model["learned_until"] is not None:
        ahead = (parse_timestamp(model["learned_until"]) - parse_timestamp(test["start"])) / timedelta(hours=1)
    seconds = model["fit_seconds"] + model["score_seconds"] / max(1, users) * test["people"]
    recipe = model["recipe"]
    parts = list(recipe["params"]["parts"].values()) if recipe["model"] == BLEND else []
    return {
        "hours_ahead": ahead,
        "validated": model["validation_ndcg_at_20"],
        "minutes": seconds / 60,
        "file_mb": model["file_bytes"] / 1e6,
        "parts": tuple(name for name, other in evaluation["models"].items() if other["recipe"] in parts),
    }


def _verify_files(environment: Environment, run: Run, model: Mapping[str, Any], name: str) -> None:
    """The winner's files are whole, and are those that were evaluated."""
    folder = folder_of(environment, run.run_key) / MODELS_FOLDER / name
    verify_folder(folder)
    found = manifest_digest(folder)
    if found != model["manifest_sha256"]:
        raise ContractError(f"{folder}: the manifest changed since the evaluation ({found[:12]}...)")


if __name__ == "__main__":
    run_job(main)
