"""The runs of a night in MLflow. Everything is found again by tags, so a retried task goes on with what was made.

Experiment `nightly_recommendations`: one run a night (tag kind=night), in it a run per contestant (kind=model) with the
recipe as params, the metrics on the test window by slice, and the fitted arrays under `model/`; and one of what answers
would be with a session (kind=answers).
Experiments `als`, `item_knn`, `popularity`, one per model family: a run a night (kind=family), in it a run per trial
(kind=trial): one recipe, measured on the validation window only. Another tenant's experiments end in `-<tenant>`.

Every run carries
    tags      run_key, as_of, tenant, code_version (also where MLflow shows it), and what it was linked to:
              night_run_id, model_run_id, family_run_id; of a recipe also recipe (JSON) and recipe_id
    metrics   as_of_yyyymmdd: the day as a number, 20240308, because MLflow compares tags only for equality;
              `<metric>_at_<k>` over all persons, `__lt5`, `__5to20`, `__gt20` after it for a slice
    inputs    the Delta tables read, at their versions (not on trials: they read what their family run read)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError
from spark_jobs.io.mlflow_connection import (
    Steps,
    connect,
    ensure_experiment,
    find_run,
    find_runs,
    log_values,
    set_tags,
)
from spark_jobs.models.recipes import flat_recipe, recipe_id

EXPERIMENT = "nightly_recommendations"
AS_OF_METRIC = "as_of_yyyymmdd"
NIGHT, MODEL, FAMILY, TRIAL, ANSWERS = "night", "model", "family", "trial", "answers"
"""Values of the tag `kind`."""

FAILED_IN, FAILED_BECAUSE = "failed_in", "failed_because"

_NIGHT_DESCRIPTION = (
    "One run a night; open it for a run per model, all fitted on one training split and measured on one test window. "
    "Artifacts: `gate/gate.md` (the decision in words), `pictures/`, `examples/examples.html`, `data/profile.md`. "
    "Metrics ending in `__lt5`, `__5to20`, `__gt20` are of people with that many training events."
)
_FAMILY_DESCRIPTION = (
    "One run a night for the family `{family}`, with the recipe it entered the night's comparison with and its metrics "
    "on the test window. Open it for the trials among which that recipe was chosen: the same neighbourhood every "
    "night, measured on a validation window before the test window. Their metrics are not comparable with the run's."
)
_RUN_KEY, _KIND, _PARENT, _NOTE = "run_key", "kind", "mlflow.parentRunId", "mlflow.note.content"


@dataclass(frozen=True, slots=True)
class ReadTable:
    """A Delta table that a run read, at the version it read."""

    name: str
    path: str
    version: int


@dataclass(frozen=True, slots=True)
class Night:
    """What every run of a night is pinned with."""

    run_key: str
    run_id: str
    as_of: str
    tables: Sequence[ReadTable] = ()


@dataclass(frozen=True, slots=True)
class LoggedTrial:
    """One trial as it is logged; `words` says how its recipe differs from the family's ("default" for that itself)."""

    words: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, float]
    is_chosen: bool
    steps: Steps = field(default_factory=dict)


def start_night(environment: Environment, *, run_key: str, as_of: str, tags: Mapping[str, str]) -> str:
    """The id of the night's parent run: a new one, or on a retry the one that this `run_key` already has.

    Raises DependencyError with a remedy, within about ten seconds, when MLflow does not answer.
    """
    with connect(environment) as client:
        experiment = ensure_experiment(client, environment, EXPERIMENT, _NIGHT_DESCRIPTION)
        all_tags = {**_pins(environment, run_key, as_of, "pin_run"), _KIND: NIGHT, **tags}
        found = find_run(client, experiment, {_RUN_KEY: run_key, _KIND: NIGHT})
        if found is None:
            found = client.create_run(experiment, tags=all_tags, run_name=f"night {as_of}")
            log_values(client, found.info.run_id, metrics={AS_OF_METRIC: _day_number(as_of)})
        else:
            set_tags(client, found.info.run_id, all_tags)
            client.update_run(found.info.run_id, status="RUNNING")
        return str(found.info.run_id)


def end_night(environment: Environment, run_id: str, status: str, *, tags: Mapping[str, str] | None = None) -> None:
    """Close a parent run; `status` is FINISHED, FAILED or KILLED."""
    if status not in ("FINISHED", "FAILED", "KILLED"):
        raise DataError(f"a night ends FINISHED, FAILED or KILLED, got {status!r}", field="status")
    with connect(environment) as client:
        set_tags(client, run_id, tags or {})
        client.set_terminated(run_id, status)


def fail_night(environment: Environment, run_id: str, *, job: str, words: str) -> None:
    """Close a parent run as FAILED, tagged with the job that failed and what it said."""
    end_night(environment, run_id, "FAILED", tags={FAILED_IN: job, FAILED_BECAUSE: words[:500]})


def resume_night(environment: Environment, run_id: str) -> None:
    """A job of a failed night runs again: RUNNING, and no longer tagged as failed."""
    with connect(environment) as client:
        client.update_run(run_id, status="RUNNING")
        found = client.get_run(run_id).data.tags
        for tag in (FAILED_IN, FAILED_BECAUSE):
            if tag in found:
                client.delete_tag(run_id, tag)


def close_abandoned_nights(environment: Environment, *, run_key: str) -> list[str]:
    """Close the tenant's RUNNING nights of other run keys as FAILED; returns their run keys, newest first.

    They are what a killed process left behind: one night runs at a time. One that does go on opens its run again.
    """
    with connect(environment) as client:
        experiment = ensure_experiment(client, environment, EXPERIMENT, _NIGHT_DESCRIPTION)
        found = find_runs(client, experiment, {_KIND: NIGHT}, status="RUNNING")
        abandoned = [run for run in found if run.data.tags.get(_RUN_KEY) != run_key]
        for run in abandoned:
            words = f"it ended without a word: still marked as running when {run_key} was pinned"
            set_tags(client, run.info.run_id, {FAILED_IN: "unknown", FAILED_BECAUSE: words})
            client.set_terminated(run.info.run_id, "FAILED")
        return [str(run.data.tags.get(_RUN_KEY)) for run in abandoned]


def log_model_run(
    environment: Environment,
    night: Night,
    *,
    model: str,
    recipe: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    artifacts: Path | None,
    steps: Steps | None = None,
    kind: str = MODEL,
) -> str:
    """The nested run of one contestant: its recipe, metrics, the tables it read, its files under `model/`. `kind`
    ANSWERS: of what is shown beside the contestants; its files are no model that anybody could publish.

    A retry starts the model's run anew (params of a run cannot be changed): the half-done one is deleted.
    """
    with connect(environment) as client:
        experiment = client.get_run(night.run_id).info.experiment_id
        own = {_RUN_KEY: night.run_key, "model": model, _PARENT: night.run_id, _KIND: kind}
        for old in find_runs(client, experiment, own):
            client.delete_run(old.info.run_id)
        links = {"night_run_id": night.run_id, **_recipe_tags(recipe)}
        all_tags = {**_pins(environment, night.run_key, night.as_of), **links, **tags, **own}
        run_id = str(client.create_run(experiment, tags=all_tags, run_name=model).info.run_id)
        days = {AS_OF_METRIC: _day_number(night.as_of)}
        log_values(client, run_id, params=flat_recipe(recipe), metrics={**metrics, **days}, steps=steps)
        client.log_inputs(run_id, datasets=[_dataset_input(t) for t in night.tables])
        if artifacts is not None:
            client.log_artifacts(run_id, str(artifacts), "model")
            if kind == MODEL:
                client.log_text(run_id, model_description(run_id, recipe), "model/MLmodel")
        client.set_terminated(run_id, "FINISHED")
        return run_id


def log_family_run(
    environment: Environment,
    night: Night,
    *,
    family: str,
    recipe: Mapping[str, Any],
    metrics: Mapping[str, float],
    model_run_id: str,
    trials: Sequence[LoggedTrial],
    note: str,
    steps: Steps | None = None,
) -> str:
    """The run of one family tonight and a nested run per trial, linked both ways with the model's run and the night's.

    `recipe` is what the family entered with, `metrics` what it reached on the test window, `note` says in words how it
    was chosen. A retry deletes what an earlier try logged.
    """
    with connect(environment) as client:
        experiment = ensure_experiment(client, environment, family, _FAMILY_DESCRIPTION.format(family=family))
        for kind in (TRIAL, FAMILY):
            for old in find_runs(client, experiment, {_RUN_KEY: night.run_key, _KIND: kind}):
                client.delete_run(old.info.run_id)
        pins = {**_pins(environment, night.run_key, night.as_of), "model": family, "night_run_id": night.run_id}
        tags = {**pins, **_recipe_tags(recipe), _KIND: FAMILY, "model_run_id": model_run_id, _NOTE: note}
        run = client.create_run(experiment, tags=tags, run_name=f"{family} {night.as_of}")
        run_id = str(run.info.run_id)
        days = {AS_OF_METRIC: _day_number(night.as_of)}
        counted = {**metrics, **days, "trials": len(trials)}
        log_values(client, run_id, params=flat_recipe(recipe), metrics=counted, steps=steps)
        client.log_inputs(run_id, datasets=[_dataset_input(t) for t in night.tables])
        for number, trial in enumerate(trials):
            own = {**pins, **_recipe_tags(trial.recipe), _KIND: TRIAL, _PARENT: run_id, "family_run_id": run_id,
                   "trial": str(number), "changes": trial.words, "chosen": str(trial.is_chosen).lower()}  # fmt: skip
            name = f"trial {number}: {trial.words}" + (" (chosen)" if trial.is_chosen else "")
            one = str(client.create_run(experiment, tags=own, run_name=name).info.run_id)
            found = {**trial.metrics, **days}
            log_values(client, one, params=flat_recipe(trial.recipe), metrics=found, steps=trial.steps)
            client.set_terminated(one, "FINISHED")
        set_tags(client, model_run_id, {"family_run_id": run_id})
        set_tags(client, night.run_id, {f"family_run_id.{family}": run_id})
        client.set_terminated(run_id, "FINISHED")
        return run_id


def log_report(
    environment: Environment,
    run_id: str,
    *,
    files: Mapping[str, str],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    folder: Path | None = None,
    tables: Sequence[ReadTable] = (),
) -> None:
    """Texts (path -> content) and the files of a folder as artifacts of a run, with tags, metrics and the tables read;
    a retry overwrites them."""
    with connect(environment) as client:
        for path, text in files.items():
            client.log_text(run_id, text, path)
        if folder is not None:
            client.log_artifacts(run_id, str(folder))
        set_tags(client, run_id, tags)
        log_values(client, run_id, metrics=metrics)
        if tables:
            client.log_inputs(run_id, datasets=[_dataset_input(t) for t in tables])


def download_model(environment: Environment, run_id: str, folder: Path) -> tuple[Path, str | None]:
    """(the files of a model's run, copied under `folder`; the SHA-256 that its manifest had when it was evaluated).

    Raises ContractError when there are none.
    """
    with connect(environment) as client:
        if not client.list_artifacts(run_id, "model"):
            raise ContractError(f"MLflow has no files of run {run_id} any more")
        path = Path(client.download_artifacts(run_id, "model", str(folder)))
        return path, client.get_run(run_id).data.tags.get("manifest_sha256")


def model_description(run_id: str, recipe: Mapping[str, Any]) -> str:
    """An MLmodel file: the signature and where the arrays are. It has no flavor that MLflow could load: the arrays are
    read by `models.factory.load_model`, and nothing here is ever unpickled."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "user_id")]),
        outputs=Schema(
            [ColSpec(Array(DataType.string), "item_ids"), ColSpec(Array(DataType.double), "scores")],
        ),
    )
    flavor = {"manifest": "manifest.json", "model": recipe["model"], "loader": "spark_jobs.models.factory.load_model"}
    described = Model(
        artifact_path="model", run_id=run_id, signature=signature, flavors={"nightjar": flavor},
        utc_time_created="", model_uuid=None,
    )  # fmt: skip
    return str(described.to_yaml())


def _pins(environment: Environment, run_key: str, as_of: str, job: str = "train_models") -> dict[str, str]:
    return {
        _RUN_KEY: run_key,
        "as_of": as_of,
        "tenant": environment.tenant,
        "code_version": environment.code_version,
        "mlflow.source.git.commit": commit_of(environment.code_version),
        "mlflow.source.name": f"spark_jobs/jobs/{job}.py",
        "mlflow.source.type": "JOB",
    }


def commit_of(code_version: str) -> str:
    """The commit in what `git describe` says, as MLflow shows the first characters only; else all of it."""
    found = re.search(r"(?:^|-g)([0-9a-f]{7,40})(?:-dirty)?$", code_version)
    return found[1] if found else code_version


def _recipe_tags(recipe: Mapping[str, Any]) -> dict[str, str]:
    return {"recipe": json.dumps(recipe, sort_keys=True), "recipe_id": recipe_id(recipe)}


def _day_number(as_of: str) -> float:
    return float(as_of.replace("-", ""))


def _dataset_input(read: ReadTable) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"path": read.path, "delta_table_version": read.version}, sort_keys=True)
    dataset = Dataset(name=read.name, digest=f"v{read.version}", source_type="delta_table", source=source)
    return DatasetInput(
        dataset, [InputTag("mlflow.data.context", "training"), InputTag("delta_version", str(read.version))]
    )
