"""What train_models found of each model: measured in one way, told to MLflow, and written down for the gate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import Run
from feature_repo.contracts.times import format_timestamp, from_micros
from spark_jobs.evaluation.examples import Why, rank_examples
from spark_jobs.evaluation.full_ranking import ModelEvaluation, Rank, evaluate_ranking
from spark_jobs.evaluation.further_slices import FurtherSlices
from spark_jobs.evaluation.gate import K
from spark_jobs.evaluation.list_quality import ListQuality
from spark_jobs.evaluation.metrics import metric_name
from spark_jobs.evaluation.split import SLICE_SUFFIX, SLICES, TimeSplit
from spark_jobs.evaluation.trials import Choice
from spark_jobs.io import tracking
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.jobs.resources import Usage
from spark_jobs.models.artifacts import manifest_digest


@dataclass(frozen=True, slots=True)
class Trained:
    """One recipe, fitted on the training split and evaluated. What is not `is_judged` is shown beside the others, and
    can neither win nor be published; `beside` names whose row it is to be read beside."""

    recipe: Mapping[str, Any]
    evaluation: ModelEvaluation
    folder: Path
    usage: Usage
    metrics: Mapping[str, Mapping[str, float]]
    losses: Sequence[float]
    examples: Sequence[Sequence[int]]
    beyond: Mapping[str, float]
    further: Mapping[str, Mapping[str, float]]
    learned_until: int | None
    file_bytes: int
    is_judged: bool = True
    beside: str | None = None
    why: Sequence[Sequence[Why]] | None = None
    """Of each example and each item of its list; None of answers that are no model's."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What every model of a night is asked. `persons` are the places of the examples in the split."""

    split: TimeSplit
    persons: NDArray[np.int64]
    lists: ListQuality
    further: FurtherSlices

    def of(
        self,
        rank: Rank,
        recipe: Mapping[str, Any],
        folder: Path,
        usage: Usage,
        *,
        losses: Sequence[float] = (),
        learned_until: int | None,
        beside: str | None = None,
    ) -> Trained:
        """The measurements of what `rank` ranks; the model's files lie in `folder` already."""
        evaluation = evaluate_ranking(rank, self.split)
        metrics = evaluation.by_slice(self.split.slices)
        ndcg = metrics.get("all", {}).get("ndcg_at_20")
        quality = "not evaluated" if ndcg is None else f"NDCG@20 {ndcg:.4f}"
        print(f"{folder.name}: {quality}; fitted in {usage.wall_seconds:.1f} s", flush=True)
        return Trained(
            recipe, evaluation, folder, usage, metrics, losses,
            examples=rank_examples(rank, self.persons),
            beyond={**evaluation.beyond_accuracy(), **self.lists.measure(evaluation.lists)},
            further=self.further.measure(evaluation, self.split),
            learned_until=learned_until,
            file_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            is_judged=beside is None,
            beside=beside,
        )  # fmt: skip


def write_user_metrics(path: Path, split: TimeSplit, trained: Mapping[str, Trained]) -> None:
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


def evaluation_rows(run: Run, users: Mapping[str, int], trained: Mapping[str, Trained]) -> pa.Table:
    """gold.evaluations of this as_of; every metric by slice, coverage and concentration over all persons."""
    rows = []
    for name, one in trained.items():
        beyond = one.beyond if users["all"] else {}
        for part in (*SLICES, *one.further):
            found = {**one.metrics.get(part, {}), **one.further.get(part, {}), **(beyond if part == "all" else {})}
            for metric, value in sorted(found.items()):
                base, _, k = metric.rpartition("_at_")
                rows.append((name, part, base, int(k), float(value), users[part], run.as_of_day, run.run_key))
    schema = arrow_schema("gold.evaluations")
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)], schema=schema)


def log_trained(
    environment: Environment, night: tracking.Night, name: str, one: Trained, choice: Choice | None
) -> dict[str, Any]:
    """Log a contestant's run and, of one that was chosen tonight, its family's with the trials; returns the model's
    part of evaluation.json."""
    found = log_model(environment, night, name, one, choice)
    if choice is not None:
        found["trials"] = log_family(environment, night, name, choice, one, found["mlflow_run_id"])
    return found


def log_model(
    environment: Environment, night: tracking.Night, name: str, one: Trained, choice: Choice | None
) -> dict[str, Any]:
    """Log the nested MLflow run; returns the model's part of evaluation.json."""
    evaluation, beyond = one.evaluation, dict(one.beyond)
    validated = choice.validated if choice is not None else None
    digest = manifest_digest(one.folder)
    run_id = tracking.log_model_run(
        environment,
        night,
        model=name,
        recipe=one.recipe,
        metrics={
            **flat_metrics(one.metrics), **further_metrics(one.further), **beyond,
            "fit_seconds": one.usage.wall_seconds, **one.usage.metrics("fit"),
        },
        steps=_steps(one),
        tags={"manifest_sha256": digest, "family": str(one.recipe["model"])},
        artifacts=one.folder,
        kind=tracking.MODEL if one.is_judged else tracking.ANSWERS,
    )  # fmt: skip
    return {
        "is_judged": one.is_judged,
        "beside": one.beside,
        "recipe": dict(one.recipe),
        "metrics": {part: dict(found) for part, found in one.metrics.items()},
        "further_slices": {part: dict(found) for part, found in one.further.items()},
        "beyond_accuracy": beyond,
        "recall_by_k": [round(float(v), 9) for v in evaluation.recall_by_k],
        "lorenz_at_20": [round(v, 9) for v in evaluation.lorenz(K)],
        "non_finite_count": evaluation.non_finite_count,
        "fit_seconds": round(one.usage.wall_seconds, 3),
        "score_seconds": round(evaluation.score_seconds, 3),
        "file_bytes": one.file_bytes,
        "learned_until": None if one.learned_until is None else format_timestamp(from_micros(one.learned_until)),
        "validation_ndcg_at_20": None if validated is None else validated.quality,
        "manifest_sha256": digest,
        "mlflow_run_id": run_id,
    }


def log_family(
    environment: Environment, night: tracking.Night, name: str, choice: Choice, one: Trained, model_run_id: str
) -> dict[str, Any]:
    """Log the family's run and its trials; returns how the recipe was chosen, for evaluation.json."""
    trials = [
        tracking.LoggedTrial(
            t.words, t.recipe, {**flat_metrics(t.metrics), "fit_seconds": t.fit_seconds}, n == choice.chosen, t.steps
        )
        for n, t in enumerate(choice.trials)
    ]
    family_run_id = tracking.log_family_run(
        environment,
        night,
        family=name,
        recipe=one.recipe,
        metrics={**flat_metrics(one.metrics), **one.beyond},
        model_run_id=model_run_id,
        trials=trials,
        note=choice.why,
        steps=_steps(one),
    )
    return {
        "mlflow_run_id": family_run_id,
        "why": choice.why,
        "chosen": choice.chosen,
        "tried": [{"words": t.words, "ndcg_at_20": t.quality} for t in choice.trials],
    }


def flat_metrics(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics by slice as MLflow has them: `ndcg_at_20` over all persons, `ndcg_at_20__lt5` for a slice."""
    return {f"{metric}{SLICE_SUFFIX[part]}": v for part, found in metrics.items() for metric, v in found.items()}


def further_metrics(further: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The recall of further slices by names that MLflow takes: `recall_at_20__region_DE`."""
    name = metric_name("recall", K)
    return {f"{name}__{_PLAIN.sub('_', part)}": found[name] for part, found in further.items()}


_PLAIN = re.compile(r"[^A-Za-z0-9]+")


def _steps(one: Trained) -> dict[str, Sequence[float]]:
    """Metrics by step: recall by k (the step is k), and the loss by sweep of a model that has sweeps."""
    steps: dict[str, Sequence[float]] = {"training_loss": one.losses} if one.losses else {}
    if len(one.evaluation.recall_by_k):
        steps["recall_by_k"] = [float(v) for v in one.evaluation.recall_by_k]
    return steps
