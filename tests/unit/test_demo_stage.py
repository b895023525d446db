"""The demo replaces what a demo wrote, and never anybody's own data."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from infra.demo import stage


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return Environment.from_mapping({"NIGHTJAR_HOME": str(tmp_path / "home")})


def test_an_empty_home_is_free(env: Environment) -> None:
    assert stage.needs_clearing(env, "simulated shop") is False


def test_the_same_demo_again_keeps_everything(env: Environment) -> None:
    stage.mark(env, "simulated shop")
    Path(env.lakehouse).mkdir()
    assert stage.needs_clearing(env, "simulated shop") is False


def test_another_demo_clears_the_shop_but_not_the_tools(env: Environment) -> None:
    stage.mark(env, "simulated shop")
    for name in ("lakehouse", "mlflow", "jars", "airflow"):
        (Path(env.home) / name / "x").mkdir(parents=True)
    assert stage.needs_clearing(env, "/data/shop.csv") is True
    stage.clear(env)
    assert sorted(p.name for p in Path(env.home).iterdir()) == ["airflow", "demo.json", "jars"]


def test_somebodys_own_data_is_left_alone(env: Environment) -> None:
    Path(env.lakehouse).mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds data that no demo put there.*NIGHTJAR_HOME="):
        stage.needs_clearing(env, "simulated shop")


def test_a_lakehouse_elsewhere_is_left_alone(tmp_path: Path) -> None:
    env = Environment.from_mapping({"NIGHTJAR_HOME": str(tmp_path), "NIGHTJAR_LAKEHOUSE": "s3://lake"})
    with pytest.raises(DataError, match="NIGHTJAR_LAKEHOUSE names s3a://lake; unset it"):
        stage.needs_clearing(env, "simulated shop")


def test_as_of_is_the_day_after_the_last_imported_event(env: Environment) -> None:
    days = pa.array([date(2011, 12, 9), date(2010, 12, 1)])  # not in order
    write_deltalake(
        f"{env.lakehouse}/default/bronze/events_import",
        pa.table({"event_id": ["a", "b"], "event_date": days}),
        partition_by=["event_date"],
    )
    assert stage.day_after_last_import(env) == date(2011, 12, 10)
