"""Families, trials, the documented search, failed nights: MLflow on a real store, each test a tenant of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError, GateRefusedError
from feature_repo.contracts.run import FAILED_FILE
from spark_jobs.io import registry, tracking
from spark_jobs.io.run_store import folder_of, write_run
from spark_jobs.jobs import entry, pin_run
from spark_jobs.models.recipes import default_recipe, recipe_id
from tests.builders import make_run

DOCUMENT = Path(__file__).parents[2] / "infra" / "docs" / "mlflow.md"


@pytest.fixture
def shop(
    environment: Environment,
    mlflow_store: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Environment:
    monkeypatch.chdir(tmp_path)
    return environment._replace(mlflow_uri=mlflow_store, tenant=request.node.name.replace("test_", "")[:40].lower())


def client(environment: Environment):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=environment.mlflow_uri, registry_uri=environment.mlflow_uri)


def open_night(environment: Environment, as_of: str = "2024-03-08", run_key: str = "") -> tracking.Night:
    key = run_key or f"r-{as_of}"
    run_id = tracking.start_night(environment, run_key=key, as_of=as_of, tags={})
    return tracking.Night(key, run_id, as_of, [tracking.ReadTable("silver.interactions", "/lake/s", 3)])


def changed(name: str, **params: float) -> dict[str, object]:
    recipe = default_recipe(name)
    recipe["params"].update(params)
    return recipe


def log_family(
    environment: Environment, night: tracking.Night, family: str, tried: dict[str, tuple[dict[str, object], float]],
    *, chosen: str = "default", test: float = 0.2,
) -> tuple[str, str]:  # fmt: skip
    """(model run, family run); `tried` maps words to (recipe, ndcg_at_20__lt5 on validation)."""
    recipe, metrics = tried[chosen][0], {"ndcg_at_20": 0.3, "ndcg_at_20__lt5": test}
    model = tracking.log_model_run(
        environment, night, model=family, recipe=recipe, metrics=metrics, tags={}, artifacts=None
    )
    trials = [
        tracking.LoggedTrial(words, one, {"ndcg_at_20__lt5": value}, words == chosen, {"training_loss": [0.5, 0.25]})
        for words, (one, value) in tried.items()
    ]
    return model, tracking.log_family_run(
        environment, night, family=family, recipe=recipe, metrics=metrics, model_run_id=model, trials=trials, note="why"
    )


def test_a_familys_run_is_linked_both_ways_and_logged_once(shop: Environment) -> None:
    night = open_night(shop)
    tried = {"default": (default_recipe("als"), 0.1), "alpha 2": (changed("als", alpha=2.0), 0.3)}
    log_family(shop, night, "als", tried, chosen="alpha 2")
    model, family = log_family(shop, night, "als", tried, chosen="alpha 2")  # a retry

    mlflow = client(shop)
    experiment = mlflow.get_experiment_by_name(f"als-{shop.tenant}")
    runs = {r.info.run_name: r for r in mlflow.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["als 2024-03-08", "trial 0: default", "trial 1: alpha 2 (chosen)"]
    top, trial = runs["als 2024-03-08"], runs["trial 1: alpha 2 (chosen)"]
    assert (top.info.run_id, top.info.status) == (family, "FINISHED")
    expected = ("kind", "night_run_id", "model_run_id", "as_of", "code_version", "tenant")
    assert {k: top.data.tags[k] for k in expected} == {
        "kind": "family", "night_run_id": night.run_id, "model_run_id": model, "as_of": "2024-03-08",
        "code_version": "test", "tenant": shop.tenant,
    }  # fmt: skip
    assert top.data.tags["mlflow.source.git.commit"] == "test"
    assert top.data.tags["recipe_id"] == recipe_id(changed("als", alpha=2.0))
    assert top.data.metrics["trials"] == 2
    assert top.inputs.dataset_inputs[0].dataset.digest == "v3"
    assert trial.data.tags["mlflow.parentRunId"] == trial.data.tags["family_run_id"] == family
    assert (trial.data.tags["chosen"], runs["trial 0: default"].data.tags["chosen"]) == ("true", "false")
    assert trial.data.params["alpha"] == "2.0"
    assert [(m.step, m.value) for m in mlflow.get_metric_history(trial.info.run_id, "training_loss")] == [
        (1, 0.5), (2, 0.25),
    ]  # fmt: skip
    assert mlflow.get_run(model).data.tags["family_run_id"] == family
    assert mlflow.get_run(night.run_id).data.tags["family_run_id.als"] == family


def documented_search() -> str:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) == 1
    return blocks[0]


def test_the_documented_search_names_the_best_recipe_of_the_week(
    environment: Environment,
    mlflow_store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three nights of the week and one before it. als wins one night, item_knn the mean of all; a night in which
    nobody had fewer than five events has no such metric; before the week als was far better."""
    shop = environment._replace(mlflow_uri=mlflow_store)  # the default tenant, whose experiments the document names
    monkeypatch.chdir(tmp_path)
    als, knn, wide = default_recipe("als"), default_recipe("item_knn"), changed("item_knn", neighbours=200)
    nights = [  # as_of, als on test, item_knn on test, item_knn tried: default, neighbours 200
        ("2025-06-24", 0.99, 0.01, 0.99, 0.01),
        ("2025-06-25", 0.50, 0.30, 0.10, 0.20),
        ("2025-06-28", 0.10, 0.40, 0.30, 0.10),
        ("2025-07-01", 0.15, 0.35, 0.10, 0.30),
    ]
    for as_of, als_test, knn_test, default, neighbours in nights:
        night = open_night(shop, as_of)
        log_family(shop, night, "als", {"default": (als, 0.05)}, test=als_test)
        tried = {"default": (knn, default), "neighbours 200": (wide, neighbours)}
        log_family(shop, night, "item_knn", tried, test=knn_test)
        log_family(shop, night, "popularity", {"default": (default_recipe("popularity"), 0.01)}, test=0.02)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shop.mlflow_uri)
    found: dict[str, object] = {}
    exec(compile(documented_search(), str(DOCUMENT), "exec"), found)  # the block, exactly as it stands there

    entered = [(round(mean, 6), nights, recipe) for mean, nights, recipe, _ in found["entered"]]
    assert entered == [
        (0.35, 3, recipe_id(knn)), (0.25, 3, recipe_id(als)), (0.02, 3, recipe_id(default_recipe("popularity"))),
    ]  # fmt: skip
    assert [(round(mean, 6), recipe) for mean, _, recipe, _ in found["tried"]][:2] == [
        (0.2, recipe_id(wide)), (0.166667, recipe_id(knn)),
    ]  # fmt: skip
    assert f"entered  ndcg_at_20__lt5 0.3500 over 3 nights  {recipe_id(knn)}" in capsys.readouterr().out


def failing(error: Exception):
    def main(environment: Environment, run: object) -> None:
        raise error

    return main


def test_a_job_that_fails_closes_the_night_and_its_retry_opens_it(shop: Environment) -> None:
    night = open_night(shop)
    run = make_run(shop, "2024-03-08", run_key=night.run_key, mlflow_run_id=night.run_id)
    mlflow = client(shop)
    for error in (GateRefusedError("too weak"), ValueError("a bug")):
        with pytest.raises(type(error)), entry.reported(shop, run, "judge_models"):
            failing(error)(shop, run)
        found = mlflow.get_run(night.run_id)
        assert found.info.status == "FAILED"
        assert found.data.tags["failed_in"] == "judge_models"
        assert found.data.tags["failed_because"] == f"{type(error).__name__}: {error}"
    mark = folder_of(shop, night.run_key) / FAILED_FILE
    assert json.loads(mark.read_text()) == {"job": "judge_models", "error": "ValueError: a bug"}

    with entry.reported(shop, run, "judge_models"):
        found = mlflow.get_run(night.run_id)
        assert found.info.status == "RUNNING"
        assert "failed_in" not in found.data.tags
    assert not mark.exists()


def test_mlflow_down_hides_no_error(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(environment, "2024-03-08")
    with pytest.raises(DataError, match="bad row"), entry.reported(environment, run, "refine_events"):
        failing(DataError("bad row"))(environment, run)
    with entry.reported(environment, run, "refine_events"):
        pass
    said = capsys.readouterr().err
    assert "MLflow was not told: MLflow does not answer" in said
    assert "stays closed" in said


def test_the_next_night_closes_what_a_killed_one_left_open(shop: Environment) -> None:
    killed, ended = open_night(shop, run_key="killed"), open_night(shop, run_key="ended")
    tracking.end_night(shop, ended.run_id, "FINISHED")
    other_tenant = shop._replace(tenant="other-shop")
    elsewhere = open_night(other_tenant, run_key="elsewhere")
    run = make_run(shop, "2024-03-08", run_key="killed", mlflow_run_id=killed.run_id)
    write_run(shop, run)
    now = open_night(shop, run_key="now")
    pin_run._close_abandoned(shop, "now")

    mlflow = client(shop)
    statuses = {n.run_key: mlflow.get_run(n.run_id).info.status for n in (killed, ended, elsewhere, now)}
    assert statuses == {"killed": "FAILED", "ended": "FINISHED", "elsewhere": "RUNNING", "now": "RUNNING"}
    assert "running when now was pinned" in mlflow.get_run(killed.run_id).data.tags["failed_because"]
    with entry.reported(shop, run, "score_users"):  # it goes on after all
        assert mlflow.get_run(killed.run_id).info.status == "RUNNING"


def test_find_version_names_the_nearest(shop: Environment) -> None:
    with pytest.raises(DataError, match=r"no version '1' .*there are none yet"):
        registry.find_version(shop, "1")
    night = open_night(shop)
    model = tracking.log_model_run(
        shop, night, model="als", recipe=default_recipe("als"), metrics={}, tags={}, artifacts=None
    )
    registry.register_version(
        shop, run_id=model, run_key=night.run_key, as_of=night.as_of, recipe=default_recipe("als"), verdict="publish"
    )
    registry.set_champion(shop, published_version="2024-03-08-aaaaaaaa", run_key=night.run_key)
    assert registry.find_version(shop, "2024-03-08-aaaaaaaa").version == registry.find_version(shop, "1").version == "1"
    assert registry.find_version(shop, "1").is_champion
    with pytest.raises(DataError, match=r"did you mean '2024-03-08-aaaaaaaa'.*; there are 1 \(2024-03-08-aaaaaaaa\)"):
        registry.find_version(shop, "2024-03-08-aaaaaaab")


def test_an_unknown_night_is_a_dependency_error(shop: Environment) -> None:
    with pytest.raises(DependencyError, match="MLflow at sqlite"):
        tracking.fail_night(shop, "0" * 32, job="x", words="y")
