"""MLflow's `champion` after a rollback, moved over REST: importing mlflow takes longer than the rollback itself."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from spark_jobs.io.registry import CHAMPION, registered_name

TIMEOUT_SECONDS = 0.5
"""For connecting and for each answer. The pointer has moved already: better no alias than a slow rollback."""


def move_champion(environment: Environment, published_version: str) -> str | None:
    """Point `champion` at the newest registry version tagged `published_version`; returns its number, or None when no
    registry version carries the tag. Raises DependencyError when MLflow does not answer in time or refuses."""
    uri = environment.mlflow_uri.rstrip("/")
    if not uri.startswith(("http://", "https://")):
        raise DependencyError(f"MLflow at {uri} has no REST interface")
    name = registered_name(environment)
    wanted = f"name = '{name}' and tags.published_version = '{published_version}'"
    query = urlencode({"filter": wanted, "max_results": 100})
    found = _call(f"{uri}/api/2.0/mlflow/model-versions/search?{query}")
    numbers = [int(version["version"]) for version in found.get("model_versions", [])]
    if not numbers:
        return None
    number = str(max(numbers))
    _call(f"{uri}/api/2.0/mlflow/registered-models/alias", {"name": name, "alias": CHAMPION, "version": number})
    return number


def _call(url: str, body: dict[str, str] | None = None) -> dict[str, Any]:
    """GET, or POST of a JSON body. With urllib: httpx alone takes a third of a second to import."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})  # noqa: S310
    shown = url.partition("?")[0]
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        raise DependencyError(f"MLflow answered {error.code} to {shown}") from error
    except (OSError, ValueError) as error:
        raise DependencyError(f"MLflow does not answer at {shown}: {error}") from error
