"""MLflow's `champion` after a rollback, moved over REST: importing mlflow takes longer than the rollback itself."""

from __future__ import annotations

from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from spark_jobs.io.tracking import CHAMPION, registered_name

TIMEOUT_SECONDS = 0.5
"""For connecting and for each answer. The pointer has moved already: better no alias than a slow rollback."""


def move_champion(environment: Environment, published_version: str) -> str | None:
    """Point `champion` at the newest registry version tagged `published_version`; returns its number, or None when no
    registry version carries the tag. Raises DependencyError when MLflow does not answer in time or refuses."""
    import httpx

    if not environment.mlflow_uri.startswith(("http://", "https://")):
        raise DependencyError(f"MLflow at {environment.mlflow_uri} has no REST interface")
    name = registered_name(environment)
    try:
        with httpx.Client(base_url=environment.mlflow_uri, timeout=TIMEOUT_SECONDS, trust_env=False) as mlflow:
            wanted = f"name = '{name}' and tags.published_version = '{published_version}'"
            found = _call(mlflow, "GET", "model-versions/search", params={"filter": wanted, "max_results": 100})
            numbers = [int(version["version"]) for version in found.get("model_versions", [])]
            if not numbers:
                return None
            number = str(max(numbers))
            _call(mlflow, "POST", "registered-models/alias", json={"name": name, "alias": CHAMPION, "version": number})
            return number
    except httpx.HTTPError as error:
        raise DependencyError(f"MLflow at {environment.mlflow_uri} does not answer: {error or repr(error)}") from error


def _call(mlflow: Any, method: str, path: str, **request: Any) -> dict[str, Any]:
    response = mlflow.request(method, f"/api/2.0/mlflow/{path}", **request)
    if response.is_error:
        raise DependencyError(f"MLflow answered {response.status_code} to {path}: {response.text[:200]}")
    return response.json()
