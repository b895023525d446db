"""One embedded stack for all end-to-end tests: a small simulated shop, real services, nights through the scheduler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from infra.importing.shop import import_shop
from infra.local.night import Night
from infra.local.stack import down, up
from infra.simulator.shop import simulate_shop
from tests.e2e.installation import AS_OF, EARLIER_AS_OF, SHOP, Installation


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory, jars_folder: Path) -> Iterator[Installation]:
    home = tmp_path_factory.mktemp("e2e") / "home"
    moved = {n: v for n, v in os.environ.items() if not n.startswith(("NIGHTJAR_", "MLFLOW_", "AIRFLOW_", "SPARK_"))}
    moved.pop("PYSPARK_SUBMIT_ARGS", None)
    variables = {**moved, names.HOME: str(home), names.JARS: str(jars_folder)}
    shop = tmp_path_factory.mktemp("shop")
    written = simulate_shop(SHOP, shop)
    imported = import_shop(shop, Environment.from_mapping(variables))
    try:
        up(variables)
        yield Installation(variables, shop, written, imported)
    finally:
        down(variables)


@pytest.fixture(scope="session")
def earlier_night(installation: Installation) -> Night:
    """The first publication: three days before the end of the history."""
    return installation.run_night(EARLIER_AS_OF)


@pytest.fixture(scope="session")
def last_night(installation: Installation, earlier_night: Night) -> Night:
    """The second publication: the whole history."""
    assert earlier_night["state"] == "success", earlier_night
    return installation.run_night(AS_OF)
