"""`nightjar tune` against a real MLflow: a run a search, nested in it one a family, in that one a trial; going on after
a stop; and the command line with it."""

from __future__ import annotations

import json
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from infra.cli.main import main
from infra.cli.output import ExitCode
from spark_jobs.evaluation import tuning
from spark_jobs.io.tuning_runs import TuningRuns
from spark_jobs.jobs.tune_models import Found, Search, tune_models
from spark_jobs.models.recipes import default_recipe, recipe_id
from tests.unit.test_tuning import AS_OF, write_shop

FAMILIES = ("popularity", "item_knn")


@pytest.fixture
def shop(
    environment: Environment,
    mlflow_store: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Environment:
    monkeypatch.chdir(tmp_path)  # artifacts of a database store lie under the working folder
    tenant = request.node.originalname.replace("test_", "")[:40].lower()
    found = environment._replace(mlflow_uri=mlflow_store, tenant=tenant)
    write_shop(found)
    return found


def search(environment: Environment, trials: int) -> Found:
    return tune_models(environment, Search(models=("item_knn",), most_trials=trials), spent=lambda: 0.0)


class Logged:
    """What MLflow has of the tenant's searches, read by its own client."""

    def __init__(self, environment: Environment) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=environment.mlflow_uri)
        experiment = self.client.get_experiment_by_name(f"tuning-{environment.tenant}")
        assert experiment is not None
        self.runs = self.client.search_runs([experiment.experiment_id], max_results=1000)

    def of_kind(self, kind: str, model: str | None = None) -> list[Any]:
        """In the order of their trials."""
        found = [run for run in self.runs if run.data.tags["kind"] == kind]
        found = [run for run in found if model is None or run.data.tags["model"] == model]
        return sorted(found, key=lambda run: int(run.data.tags.get("trial", 0)))

    def numbers(self, model: str) -> list[int]:
        return [int(run.data.tags["trial"]) for run in self.of_kind("trial", model)]


def test_a_search_is_a_run_with_its_families_and_trials_nested(shop: Environment) -> None:
    found = search(shop, 3)
    logged = Logged(shop)
    (parent,) = logged.of_kind("search")
    assert parent.info.run_id == found.mlflow_run_id
    tags = parent.data.tags
    assert (tags["as_of"], tags["tenant"], tags["nightjar.delta.silver.interactions"]) == (
        AS_OF.isoformat(), shop.tenant, "0",
    )  # fmt: skip
    assert "mlflow.parentRunId" not in tags
    text = Path(logged.client.download_artifacts(found.mlflow_run_id, "recipes.json")).read_text()
    assert json.loads(text) == found.choice.to_json()
    assert len(logged.runs) == 1 + 2 + 6
    assert {run.info.status for run in logged.runs} == {"FINISHED"}
    assert {run.data.tags["search_key"] for run in logged.runs} == {found.folder.name}

    for name in FAMILIES:
        (family,) = logged.of_kind("family", name)
        assert family.data.tags["mlflow.parentRunId"] == parent.info.run_id
        first, best = found.families[name]
        assert json.loads(family.data.tags["recipe"]) == best.recipe
        assert family.data.metrics["ndcg_at_20"] == pytest.approx(best.quality)
        assert parent.data.metrics[f"ndcg_at_20.{name}"] == pytest.approx(best.quality)

        tried = found.trials[name]
        curve = logged.client.get_metric_history(family.info.run_id, "best_so_far")
        so_far = list(accumulate((one.quality or 0.0 for one in tried), max))
        assert [(point.step, point.value) for point in sorted(curve, key=lambda p: p.step)] == list(
            zip((1, 2, 3), so_far, strict=True)
        )
        trials = logged.of_kind("trial", name)
        assert [run.info.run_name for run in trials] == ["trial 0", "trial 1", "trial 2"]
        assert first.recipe == default_recipe(name)
        for run, one in zip(trials, tried, strict=True):
            assert run.data.tags["mlflow.parentRunId"] == family.info.run_id
            assert (run.data.tags["pruned"], run.data.tags["recipe_id"]) == ("false", recipe_id(one.recipe))
            assert run.data.metrics["ndcg_at_20"] == pytest.approx(one.quality)
            assert "recall_at_20" in run.data.metrics
            assert run.data.metrics["fit_and_score_seconds"] >= 0
            wanted = {**one.recipe["params"], "model": name, "half_life_days": one.recipe["half_life_days"]}
            wanted |= {f"weight.{kind}": weight for kind, weight in one.recipe["weights"].items()}
            assert run.data.params == {key: str(value) for key, value in wanted.items()}


def test_a_search_that_goes_on_repeats_no_trial_and_logs_none_twice(
    shop: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the second trial of item_knn was kept and before it was logged."""
    log_trial = TuningRuns.log_trial

    def stop(self: TuningRuns, run_id: str, family: str, *, number: int, **other: Any) -> None:
        if (family, number) == ("item_knn", 1):
            raise DependencyError("MLflow went away")
        log_trial(self, run_id, family, number=number, **other)

    monkeypatch.setattr(TuningRuns, "log_trial", stop)
    with pytest.raises(DependencyError, match="went away"):
        search(shop, 3)
    monkeypatch.undo()
    monkeypatch.chdir(Path(shop.home).parent)
    before = Logged(shop)
    assert before.numbers("item_knn") == [0]
    assert before.of_kind("search")[0].info.status == "RUNNING"

    found = search(shop, 4)
    after = Logged(shop)
    assert [run.info.run_id for run in after.of_kind("search")] == [found.mlflow_run_id]
    assert found.mlflow_run_id == before.of_kind("search")[0].info.run_id
    assert {run.info.run_id for run in before.runs} <= {run.info.run_id for run in after.runs}
    for name in FAMILIES:
        assert len(after.of_kind("family", name)) == 1
        assert after.numbers(name) == [one.number for one in found.trials[name]] == [0, 1, 2, 3]
    recipes = [run.data.tags["recipe_id"] for run in after.of_kind("trial", "item_knn")]
    assert len(set(recipes)) == 4, "none is tried again"
    assert {run.info.status for run in after.runs} == {"FINISHED"}

    again = search(shop, 4)  # nothing is left to do
    assert len(Logged(shop).runs) == len(after.runs)
    assert again.choice.recipes == found.choice.recipes


def test_a_pruned_trial_is_marked_and_is_never_the_best(shop: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third is worse on a quarter of the people than the median of two, and is not asked of everybody."""
    monkeypatch.setattr(tuning, "LEAST_SAMPLED", 5)
    monkeypatch.setattr(tuning, "STARTUP_TRIALS", 2)
    qualities = {"popularity": iter([0.3, 0.3] * 3), "item_knn": iter([0.5, 0.5, 0.4, 0.4, 0.1])}

    def measure(recipe: dict[str, Any], *_: Any) -> dict[str, dict[str, float]]:
        return {"all": {"ndcg_at_20": next(qualities[recipe["model"]])}}

    monkeypatch.setattr(tuning, "_measure", measure)
    found = search(shop, 3)
    runs = Logged(shop).of_kind("trial", "item_knn")
    assert [(run.info.run_name, run.data.tags["pruned"], run.data.metrics["ndcg_at_20"]) for run in runs] == [
        ("trial 0", "false", 0.5), ("trial 1", "false", 0.4), ("trial 2 (pruned)", "true", 0.1),
    ]  # fmt: skip
    assert runs[2].info.status == "FINISHED"
    assert found.families["item_knn"][1].number == 0
    (family,) = Logged(shop).of_kind("family", "item_knn")
    history = Logged(shop).client.get_metric_history(family.info.run_id, "best_so_far")
    assert sorted((point.step, point.value) for point in history) == [(1, 0.5), (2, 0.5), (3, 0.5)]


# --- the command line --------------------------------------------------------------------------------------------


def nightjar(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr in one line) of `nightjar tune ...`."""
    given = {names.HOME: environment.home, names.TENANT: environment.tenant, names.MLFLOW_URI: environment.mlflow_uri}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["nightjar", "tune", *words])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, " ".join(said.err.split())


def test_the_command_says_what_it_found(
    shop: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "found.json"
    options = ("--minutes", "1", "--trials", "2", "--model", "item_knn", "--out", str(file))
    code, out, _ = nightjar(shop, monkeypatch, capsys, *options)
    assert code == 0
    assert "Validation NDCG@20" in out
    assert "nightjar recipes apply FILE" in out
    written = json.loads(file.read_text())
    assert set(written["recipes"]) == set(FAMILIES)

    code, out, _ = nightjar(shop, monkeypatch, capsys, *options, "--json")
    answer = json.loads(out)
    assert (code, answer["recipes"], answer["file"]) == (0, written["recipes"], str(file))
    assert answer["mlflow_run_id"] == written["origin"]["mlflow_run_id"]
    assert written["origin"]["trials"] == {"popularity": 2, "item_knn": 2}
    assert Logged(shop).numbers("item_knn") == [0, 1], "the second time there was nothing left to try"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--trials", "0"], 2, "trials is at least 1, got 0"),
        (["--minutes", "0"], 2, "minutes is above 0, got 0"),
        (["--model", "itemknn"], 2, "did you mean 'item_knn'"),
        (["--exclude-seen", "intracted"], 2, "did you mean 'interacted'"),
        (["--as-of", "yesterday"], 2, "yesterday"),
        (["--minuts", "3"], 2, "No such option: --minuts"),
        (["--trials", "many"], 2, "Invalid value for '--trials'"),
    ],
)
def test_a_bad_option_is_one_readable_line(
    options: list[str], code: int, words: str, shop: Environment, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found, out, said = nightjar(shop, monkeypatch, capsys, *options)
    assert (found, out) == (code, "")
    assert words in said
    assert "Traceback" not in said
    assert not (Path(shop.home) / "tuning").exists(), "nothing was begun"


def test_what_is_missing_is_said(
    shop: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--trials", "1", "--model", "item_knn")
    away = shop._replace(mlflow_uri="http://127.0.0.1:1")
    code, _, said = nightjar(away, monkeypatch, capsys, *options)
    assert (code, "MLflow does not answer at http://127.0.0.1:1" in said) == (ExitCode.DEPENDENCY_DOWN, True)
    nobodys = shop._replace(tenant="nobodys")
    code, _, said = nightjar(nobodys, monkeypatch, capsys, *options)
    assert code == ExitCode.BAD_INPUT
    assert said == "error DataError: silver.interactions is empty: `nightjar run nightly` fills it"
