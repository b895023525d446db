"""MLflow: one parent run a night, a nested run per model, a registered model with `challenger` and `champion`.

Everything is found again by tags, so a retried task goes on with what the first try made. Only `MlflowClient` is used
(no global state), and it is imported inside functions: the import costs two seconds.

Registered model `nightjar` (`nightjar-<tenant>` for another tenant). Its versions carry the tags
    run_key, as_of, model, verdict, recipe (JSON)   set when the gate lets a recipe through
    published_version                               set when that publication went live
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.keys import DEFAULT_TENANT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

EXPERIMENT = "nightly_recommendations"
REGISTERED_MODEL = "nightjar"
CHAMPION, CHALLENGER = "champion", "challenger"

_PROBE_SECONDS = 3.0
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Seconds where they are times. The client's own defaults would try for minutes before saying that nobody is there."""

_RUN_KEY, _MODEL, _PARENT = "run_key", "model", "mlflow.parentRunId"
_BATCH = 100
"""How many params or metrics the server takes in one call."""


@dataclass(frozen=True, slots=True)
class ReadTable:
    """A Delta table that a run read, at the version it read."""

    name: str
    path: str
    version: int


@dataclass(frozen=True, slots=True)
class Champion:
    """The live recipe: `version` is its number in the registry, `published_version` the name it serves under."""

    version: str
    published_version: str | None
    recipe: Mapping[str, Any]

    @property
    def model(self) -> str:
        return str(self.recipe["model"])


def start_night(environment: Environment, *, run_key: str, as_of: str, tags: Mapping[str, str]) -> str:
    """The id of the night's parent run: a new one, or on a retry the one that this `run_key` already has.

    Raises DependencyError with a remedy, within about ten seconds, when MLflow does not answer.
    """
    with _client(environment) as client:
        experiment = _experiment(client, environment)
        all_tags = {_RUN_KEY: run_key, "as_of": as_of, "code_version": environment.code_version, **tags}
        found = _find_run(client, experiment, {_RUN_KEY: run_key, "kind": "night"})
        if found is None:
            name = f"night {as_of}"
            found = client.create_run(experiment, tags={**all_tags, "kind": "night"}, run_name=name)
        else:
            _set_tags(client, found.info.run_id, all_tags)
            client.update_run(found.info.run_id, status="RUNNING")
        return str(found.info.run_id)


def end_night(environment: Environment, run_id: str, status: str, *, tags: Mapping[str, str] | None = None) -> None:
    """Close a parent run; `status` is FINISHED, FAILED or KILLED."""
    if status not in ("FINISHED", "FAILED", "KILLED"):
        raise DataError(f"a night ends FINISHED, FAILED or KILLED, got {status!r}", field="status")
    with _client(environment) as client:
        _set_tags(client, run_id, tags or {})
        client.set_terminated(run_id, status)


def log_model_run(
    environment: Environment,
    *,
    parent_run_id: str,
    run_key: str,
    model: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    tables: Sequence[ReadTable],
    artifacts: Path | None,
) -> str:
    """The nested run of one model: params, metrics, the tables it read as dataset inputs, its files under `model/`.

    A retry starts the model's run anew (params of a run cannot be changed): the half-done one is deleted.
    """
    from mlflow.entities import Metric, Param

    with _client(environment) as client:
        experiment = client.get_run(parent_run_id).info.experiment_id
        own = {_RUN_KEY: run_key, _MODEL: model, _PARENT: parent_run_id, "kind": "model"}
        while (old := _find_run(client, experiment, own)) is not None:
            client.delete_run(old.info.run_id)
        run = client.create_run(experiment, tags={**tags, **own}, run_name=model)
        run_id = str(run.info.run_id)
        now = int(time.time() * 1000)
        listed_params = [Param(k, str(v)) for k, v in sorted(params.items())]
        listed_metrics = [Metric(k, float(v), now, 0) for k, v in sorted(metrics.items())]
        for start in range(0, len(listed_params), _BATCH):
            client.log_batch(run_id, params=listed_params[start : start + _BATCH])
        for start in range(0, len(listed_metrics), _BATCH):
            client.log_batch(run_id, metrics=listed_metrics[start : start + _BATCH])
        client.log_inputs(run_id, datasets=[_dataset_input(t) for t in tables])
        if artifacts is not None:
            client.log_artifacts(run_id, str(artifacts), "model")
        client.set_terminated(run_id, "FINISHED")
        return run_id


def log_report(
    environment: Environment,
    run_id: str,
    *,
    files: Mapping[str, str],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
) -> None:
    """Texts as artifacts of a run (path -> content), with tags and metrics; a retry overwrites them."""
    with _client(environment) as client:
        for path, text in files.items():
            client.log_text(run_id, text, path)
        _set_tags(client, run_id, tags)
        for name, value in sorted(metrics.items()):
            client.log_metric(run_id, name, float(value))


def register_version(
    environment: Environment, *, run_id: str, run_key: str, as_of: str, recipe: Mapping[str, Any], verdict: str
) -> str:
    """The registry version of what the gate let through tonight, made `challenger`; returns its number.

    On a retry the version that this `run_key` already has is used again, unless the gate now says another recipe.
    """
    with _client(environment) as client:
        name = registered_name(environment)
        _ensure_registered(client, name)
        text = json.dumps(recipe, sort_keys=True)
        tags = {_RUN_KEY: run_key, "as_of": as_of, _MODEL: str(recipe["model"]), "verdict": verdict, "recipe": text}
        same = [v for v in _versions(client, name) if v.tags.get(_RUN_KEY) == run_key and v.tags.get("recipe") == text]
        if same:
            number = str(same[0].version)
            for key, value in tags.items():
                client.set_model_version_tag(name, number, key, value)
        else:
            source = f"{client.get_run(run_id).info.artifact_uri}/model"
            made = client.create_model_version(name, source=source, run_id=run_id, tags=tags)
            number = str(made.version)
        client.set_registered_model_alias(name, CHALLENGER, number)
        return number


def set_champion(environment: Environment, *, published_version: str, run_key: str | None = None) -> str | None:
    """Move `champion` to the registry version behind a publication; returns its number, or None when there is none.

    With `run_key` (a flip) it is the newest version of that run, which is then tagged `published_version`; without (a
    rollback) it is the newest one that carries that tag. None is no error: the pointer in Redis is the truth, and
    `nightjar status` shows a disagreement.
    """
    with _client(environment) as client:
        name = registered_name(environment)
        tag, value = ("published_version", published_version) if run_key is None else (_RUN_KEY, run_key)
        found = [v for v in _versions(client, name) if v.tags.get(tag) == value]
        if not found:
            return None
        number = str(found[0].version)
        client.set_model_version_tag(name, number, "published_version", published_version)
        client.set_registered_model_alias(name, CHAMPION, number)
        return number


def champion(environment: Environment) -> Champion | None:
    """The live recipe, or None before the first publication."""
    from mlflow.exceptions import MlflowException

    with _client(environment) as client:
        try:
            found = client.get_model_version_by_alias(registered_name(environment), CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None  # no registered model yet, or no such alias
            raise
        recipe = json.loads(found.tags["recipe"])
        return Champion(str(found.version), found.tags.get("published_version"), recipe)


def registered_name(environment: Environment) -> str:
    """The registered model of a tenant."""
    return REGISTERED_MODEL if environment.tenant == DEFAULT_TENANT else f"{REGISTERED_MODEL}-{environment.tenant}"


@contextmanager
def _client(environment: Environment) -> Iterator[MlflowClient]:
    """A client; whatever MLflow complains about inside becomes a DependencyError naming the server and the remedy."""
    _probe(environment.mlflow_uri)
    for name, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient(tracking_uri=environment.mlflow_uri, registry_uri=environment.mlflow_uri)
    except (MlflowException, OSError) as error:
        words = str(error).strip().splitlines()
        detail = words[0] if words else repr(error)
        raise DependencyError(f"MLflow at {environment.mlflow_uri} failed: {detail}") from error


def _probe(uri: str) -> None:
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PROBE_SECONDS):  # noqa: S310
            return
    except urllib.error.HTTPError:
        return  # somebody answers; a proxy may not know /health
    except OSError as error:
        raise DependencyError(
            f"MLflow does not answer at {uri} ({error}); start it (`nightjar up`), "
            "or set MLFLOW_TRACKING_URI to where it runs"
        ) from error


def _experiment(client: MlflowClient, environment: Environment) -> str:
    name = EXPERIMENT if environment.tenant == DEFAULT_TENANT else f"{EXPERIMENT}-{environment.tenant}"
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id) if found is not None else client.create_experiment(name)


def _find_run(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> MlflowRun | None:
    """The newest run with all these tags."""
    quoted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment], quoted, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0] if found else None


def _set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def _ensure_registered(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Recipes that the nightly gate let through.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(client: MlflowClient, name: str) -> list[Any]:
    """Every version, newest first."""
    found = client.search_model_versions(f"name = '{name}'", max_results=1000)
    return sorted(found, key=lambda v: int(v.version), reverse=True)


def _dataset_input(read: ReadTable) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"path": read.path, "delta_table_version": read.version}, sort_keys=True)
    dataset = Dataset(name=read.name, digest=f"v{read.version}", source_type="delta_table", source=source)
    return DatasetInput(
        dataset, [InputTag("mlflow.data.context", "training"), InputTag("delta_version", str(read.version))]
    )
