"""MLflow on a real store: nights and models found again by tag, the registry's aliases, and a store that is down."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from spark_jobs.io import registry, tracking

ALS = {"model": "als", "weights": {"purchase": 8.0}, "half_life_days": 180.0, "params": {"factors": 8}}
KNN = {"model": "item_knn", "weights": {"purchase": 8.0}, "half_life_days": None, "params": {}}


@pytest.fixture
def mlflow_environment(
    environment: Environment,
    mlflow_store: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Environment:
    monkeypatch.chdir(tmp_path)  # artifacts of a database store lie under the working folder
    tenant = request.node.name.replace("test_", "")[:40].lower()
    return environment._replace(mlflow_uri=mlflow_store, tenant=tenant)


def client(environment: Environment):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=environment.mlflow_uri, registry_uri=environment.mlflow_uri)


def start(environment: Environment, run_key: str = "r1", **tags: str) -> str:
    return tracking.start_night(environment, run_key=run_key, as_of="2024-03-08", tags=tags)


def night(parent: str, *tables: tracking.ReadTable, run_key: str = "r1", as_of: str = "2024-03-08") -> tracking.Night:
    return tracking.Night(run_key, parent, as_of, tables)


def log(environment: Environment, parent: tracking.Night | str, model: str = "als", **other: object) -> str:
    values = {"model": model, "recipe": ALS, "metrics": {"ndcg_at_20": 0.25}, "tags": {}, "artifacts": None}
    pinned = night(parent) if isinstance(parent, str) else parent
    return tracking.log_model_run(environment, pinned, **{**values, **other})


def test_a_retried_night_goes_on_with_its_run(mlflow_environment: Environment) -> None:
    first = start(mlflow_environment, dag_run="manual__1")
    tracking.end_night(mlflow_environment, first, "FAILED")
    assert start(mlflow_environment, dag_run="manual__1") == first
    assert start(mlflow_environment, run_key="r2") != first
    run = client(mlflow_environment).get_run(first)
    assert run.info.status == "RUNNING"
    assert {k: run.data.tags[k] for k in ("run_key", "as_of", "dag_run", "code_version")} == {
        "run_key": "r1", "as_of": "2024-03-08", "dag_run": "manual__1", "code_version": "test",
    }  # fmt: skip


def test_a_model_run_is_nested_and_logged_once(mlflow_environment: Environment, tmp_path: Path) -> None:
    parent = start(mlflow_environment)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    table = tracking.ReadTable("silver.interactions", "/lake/default/silver/interactions", 3)
    log(mlflow_environment, parent, metrics={"ndcg_at_20": 0.1})
    metrics = {f"m{n}": float(n) for n in range(150)} | {"ndcg_at_20__lt5": 0.5}
    losses = {"training_loss": [0.3, 0.2, 0.25]}
    run_id = log(mlflow_environment, night(parent, table), metrics=metrics, steps=losses, artifacts=tmp_path / "model")

    mlflow = client(mlflow_environment)
    experiment = mlflow.get_run(parent).info.experiment_id
    nested = mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert [r.info.run_id for r in nested] == [run_id]
    assert nested[0].data.metrics == {**metrics, "training_loss": 0.25, "as_of_yyyymmdd": 20240308.0}
    history = mlflow.get_metric_history(run_id, "training_loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.3), (2, 0.2), (3, 0.25)]
    assert nested[0].data.params == {
        "model": "als", "half_life_days": "180.0", "weight.purchase": "8.0", "factors": "8",
    }  # fmt: skip
    datasets = nested[0].inputs.dataset_inputs
    assert [(d.dataset.name, json.loads(d.dataset.source)["delta_table_version"]) for d in datasets] == [
        ("silver.interactions", 3)
    ]
    assert [a.path for a in mlflow.list_artifacts(run_id, "model")] == ["model/MLmodel", "model/manifest.json"]


def test_champion_and_challenger(mlflow_environment: Environment) -> None:
    parent = start(mlflow_environment)
    als_run, knn_run = log(mlflow_environment, parent), log(mlflow_environment, parent, "item_knn")
    assert registry.champion(mlflow_environment) is None
    assert registry.set_champion(mlflow_environment, published_version="2024-03-08-00000000", run_key="r1") is None

    def register(run_id: str, run_key: str, recipe: dict[str, object]) -> str:
        return registry.register_version(
            mlflow_environment, run_id=run_id, run_key=run_key, as_of="2024-03-08", recipe=recipe, verdict="publish"
        )

    assert register(als_run, "r1", ALS) == "1"
    assert register(als_run, "r1", ALS) == "1", "a retry makes no second version"
    assert registry.champion(mlflow_environment) is None, "a challenger is not live yet"
    assert registry.set_champion(mlflow_environment, published_version="2024-03-08-aaaaaaaa", run_key="r1") == "1"
    assert registry.champion(mlflow_environment) == registry.Champion("1", "2024-03-08-aaaaaaaa", ALS)

    assert register(knn_run, "r2", KNN) == "2"
    assert registry.champion(mlflow_environment).version == "1"
    registry.set_champion(mlflow_environment, published_version="2024-03-09-bbbbbbbb", run_key="r2")
    assert registry.champion(mlflow_environment).model == "item_knn"

    # The gate changed its mind about r1: a version of its own, and the newest of the run goes live.
    assert register(knn_run, "r1", KNN) == "3"
    assert registry.set_champion(mlflow_environment, published_version="2024-03-08-dddddddd", run_key="r1") == "3"

    # A rollback knows only the name of the publication.
    assert registry.set_champion(mlflow_environment, published_version="2024-03-08-aaaaaaaa") == "1"
    assert registry.champion(mlflow_environment).recipe == ALS
    assert registry.set_champion(mlflow_environment, published_version="2024-03-07-cccccccc") is None
    assert registry.champion(mlflow_environment).version == "1"


def test_a_night_that_runs_again_meets_the_champion_of_before(mlflow_environment: Environment) -> None:
    """Three nights went live; the last one's recipe is champion. A night meets only what was published before it."""
    parent = start(mlflow_environment)
    run_id = log(mlflow_environment, parent)

    def publish(day: str, recipe: dict[str, object], live: bool = True) -> None:
        registry.register_version(
            mlflow_environment, run_id=run_id, run_key=day, as_of=day, recipe=recipe, verdict="publish"
        )
        if live:
            registry.set_champion(mlflow_environment, published_version=f"{day}-aaaaaaaa", run_key=day)

    def met(before: str) -> str | None:
        found = registry.champion(mlflow_environment, before=before)
        return found and found.published_version

    for day, recipe in (("2024-03-08", ALS), ("2024-03-10", KNN), ("2024-03-09", KNN)):  # one was repeated late
        publish(day, recipe)
    publish("2024-03-11", ALS, live=False)  # refused, or not yet live
    assert met("2024-03-12") == "2024-03-09-aaaaaaaa", "the alias, whatever is newer"
    assert met("2024-03-10") == "2024-03-09-aaaaaaaa"
    assert met("2024-03-09") == "2024-03-08-aaaaaaaa", "not itself"
    assert met("2024-03-08") is None
    registry.set_champion(mlflow_environment, published_version="2024-03-10-aaaaaaaa")
    assert met("2024-03-10") == "2024-03-09-aaaaaaaa"
    assert met("2024-03-11") == "2024-03-10-aaaaaaaa"


def test_a_report_lies_with_the_night(mlflow_environment: Environment) -> None:
    parent = start(mlflow_environment)
    for words in ("refused", "publish"):
        tracking.log_report(
            mlflow_environment, parent, files={"gate/gate.md": words}, tags={"verdict": words}, metrics={"ndcg": 0.5}
        )
    mlflow = client(mlflow_environment)
    assert mlflow.get_run(parent).data.tags["verdict"] == "publish"
    assert Path(mlflow.download_artifacts(parent, "gate/gate.md")).read_text() == "publish"


def test_mlflow_down_is_said_quickly(environment: Environment) -> None:
    began = time.monotonic()
    with pytest.raises(DependencyError, match=r"MLflow does not answer at http://127\.0\.0\.1:1 .*nightjar up"):
        start(environment)
    assert time.monotonic() - began < 10


def test_an_unknown_run_is_a_dependency_error(mlflow_environment: Environment) -> None:
    with pytest.raises(DependencyError, match="MLflow at sqlite"):
        log(mlflow_environment, "0" * 32)


def test_a_night_cannot_end_in_any_odd_way(environment: Environment) -> None:
    with pytest.raises(DataError, match="FINISHED, FAILED or KILLED, got 'DONE'"):
        tracking.end_night(environment, "x", "DONE")


def test_a_job_that_logs_does_not_import_the_feature_store(mlflow_environment: Environment) -> None:
    program = (
        "import sys\n"
        "from spark_jobs.io.mlflow_connection import connect\n"
        "from feature_repo.contracts.environment import Environment\n"
        "with connect(Environment.from_mapping({'NIGHTJAR_HOME': '/nowhere', 'MLFLOW_TRACKING_URI': sys.argv[1]})):\n"
        "    import mlflow.tracking.request_header.registry as headers\n"
        "    print(len(list(headers._request_header_provider_registry)), 'feast' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, mlflow_environment.mlflow_uri]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"], done.stderr
