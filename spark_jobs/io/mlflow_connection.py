"""A client of the installation's MLflow, and the few calls that every user of it makes.

Only `MlflowClient` is used, with both addresses given: no global state, and nothing that MLflow would otherwise take
from an active Spark session. It is imported inside functions: the import costs two seconds.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import DEFAULT_TENANT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

_PROBE_SECONDS = 3.0
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Seconds where they are times. The client's own defaults would try for minutes before saying that nobody is there."""

_PARAMS_PER_CALL, _METRICS_PER_CALL = 100, 1000
"""How many the server takes in one call."""

_TAG_CHARACTERS = 5000
"""A longer tag is refused by the server."""

_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "ndcg_at_20",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
}
"""What MLflow's pages read of an experiment: its kind, and the metric that sums up a run."""

Steps = Mapping[str, Sequence[float]]
"""Metrics by step: name -> its values from step 1 on."""


@contextmanager
def connect(environment: Environment) -> Iterator[MlflowClient]:
    """A client; whatever MLflow complains about inside becomes a DependencyError naming the server and the remedy."""
    _probe(environment.mlflow_uri)
    for name, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    _load_request_headers()
    try:
        yield MlflowClient(tracking_uri=environment.mlflow_uri, registry_uri=environment.mlflow_uri)
    except (MlflowException, OSError) as error:
        words = str(error).strip().splitlines()
        detail = words[0] if words else repr(error)
        raise DependencyError(f"MLflow at {environment.mlflow_uri} failed: {detail}") from error


def _load_request_headers() -> None:
    """What MLflow does before its first request, without one plugin: Feast's, which serves a data source that we do not
    use and imports all of Feast, five seconds in every job that logs."""
    from mlflow.utils import plugins

    every = plugins.get_entry_points
    plugins.get_entry_points = lambda group: [plugin for plugin in every(group) if plugin.name != "feast"]
    try:
        import mlflow.tracking.request_header.registry  # noqa: F401
    finally:
        plugins.get_entry_points = every


def experiment_name(environment: Environment, name: str) -> str:
    """An experiment of the tenant: `name`, or `name-<tenant>` for another than the default one."""
    return name if environment.tenant == DEFAULT_TENANT else f"{name}-{environment.tenant}"


def ensure_experiment(client: MlflowClient, environment: Environment, name: str, description: str) -> str:
    """The id of an experiment of the tenant, made with its description when it is not there."""
    full = experiment_name(environment, name)
    found = client.get_experiment_by_name(full)
    if found is not None:
        return str(found.experiment_id)
    return client.create_experiment(full, tags={"mlflow.note.content": description, **_EXPERIMENT_TAGS})


def find_run(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> MlflowRun | None:
    """The newest run with all these tags."""
    found = find_runs(client, experiment, tags, limit=1)
    return found[0] if found else None


def find_runs(
    client: MlflowClient, experiment: str, tags: Mapping[str, str], *, status: str | None = None, limit: int = 1000
) -> list[MlflowRun]:
    """Runs with all these tags (and this status), newest first."""
    wanted = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
    if status is not None:
        wanted.append(f"attributes.status = '{status}'")
    order = ["attributes.start_time DESC"]
    return list(client.search_runs([experiment], " and ".join(wanted), max_results=limit, order_by=order))


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags in one call; a text longer than the server takes is cut."""
    from mlflow.entities import RunTag

    if tags:
        client.log_batch(run_id, tags=[RunTag(k, str(v)[:_TAG_CHARACTERS]) for k, v in sorted(tags.items())])


def log_values(
    client: MlflowClient,
    run_id: str,
    *,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    steps: Steps | None = None,
) -> None:
    """Params, metrics, and metrics by step (from 1 on), in as few calls as the server allows."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    listed = [Metric(k, float(v), now, 0) for k, v in sorted((metrics or {}).items())]
    for name, values in sorted((steps or {}).items()):
        listed += [Metric(name, float(value), now, step) for step, value in enumerate(values, start=1)]
    wanted = [Param(k, str(v)) for k, v in sorted((params or {}).items())]
    for start in range(0, len(wanted), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=wanted[start : start + _PARAMS_PER_CALL])
    for start in range(0, len(listed), _METRICS_PER_CALL):
        client.log_batch(run_id, metrics=listed[start : start + _METRICS_PER_CALL])


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
