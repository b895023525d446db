"""Bring the run's features online: apply the Feast repository, materialize its views at the run's as_of.

Reads    gold.user_features, gold.item_features (rows of as_of); feature_repo/
Writes   Feast's registry; the features of every user and item in Redis `online`, stamped with as_of

A run that does not publish leaves the online store as it is and says so. Running again writes the same values again.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import feature_repo.contracts
from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment, feast_connection
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.run import Run
from spark_jobs.jobs.entry import run_job

if TYPE_CHECKING:
    from feast import FeatureStore

FEATURE_REPO = Path(feature_repo.contracts.__file__).parents[1]


def main(environment: Environment, run: Run) -> None:
    """Materialize both views, or say why not. Raises DependencyError when Redis does not answer."""
    if not run.publishes:
        print(f"features stay as they are online: {run.why}", flush=True)
        return
    store = open_store(environment)
    # a second wide: rows of this as_of and of no other run
    _translating(
        lambda: store.materialize(run.cut_off - timedelta(seconds=1), run.cut_off), environment.redis_online_url
    )
    print(f"features of {run.as_of} are online", flush=True)


def open_store(environment: Environment) -> FeatureStore:
    """The feature store of this installation, its repository applied (idempotent).

    Sets the variables that feature_store.yaml and the definitions read.
    """
    os.environ.update(
        {
            names.HOME: environment.home,
            names.LAKEHOUSE: environment.lakehouse,
            names.TENANT: environment.tenant,
            names.FEAST_REDIS: feast_connection(environment.redis_online_url),
            "FEAST_USAGE": "False",
        }
    )
    from feast import FeatureStore
    from feast.repo_config import load_repo_config
    from feast.repo_operations import apply_total

    Path(environment.home, "feast").mkdir(parents=True, exist_ok=True)
    config = load_repo_config(FEATURE_REPO, FEATURE_REPO / "feature_store.yaml")
    with _as_feast_imports_it(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _translating(lambda: apply_total(config, FEATURE_REPO, True), environment.redis_online_url)
    return FeatureStore(config=config)


@contextlib.contextmanager
def _as_feast_imports_it() -> Iterator[None]:
    """Feast imports `repo` by its bare name and changes the working directory; both are undone. Definitions are read
    anew, since they take their paths from the environment."""
    here = Path.cwd()
    sys.path.insert(0, str(FEATURE_REPO))
    for name in [m for m in sys.modules if m == "repo" or m.startswith("feature_repo.definitions.")]:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.path.remove(str(FEATURE_REPO))
        os.chdir(here)


def _translating(action: Callable[[], object], redis_url: str) -> None:
    """Run `action`; a Redis that does not answer becomes our error, naming the address without its password."""
    import redis

    try:
        action()
    except redis.RedisError as error:
        address = redis_url.rpartition("@")[2].removeprefix("redis://")
        raise DependencyError(
            f"Redis `online` at {address} does not answer ({type(error).__name__}): start the stack with `nightjar up`"
        ) from error


if __name__ == "__main__":
    run_job(main)
