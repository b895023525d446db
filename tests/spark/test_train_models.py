"""train_models and judge_models on a planted shop: real Spark, Delta and MLflow; taste is found, noise is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from scipy import sparse

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, DependencyError, GateRefusedError
from feature_repo.contracts.run import EVALUATION_FILE, GATE_FILE, MODELS_FOLDER, USER_METRICS_FILE, Run
from spark_jobs.evaluation.contestants import CHAMPION, with_champion
from spark_jobs.evaluation.with_ranker import WITH_RANKER
from spark_jobs.evaluation.with_session import WITH_SESSION
from spark_jobs.io import registry, tracking
from spark_jobs.io.interactions import read_interactions
from spark_jobs.io.light_delta import read_table as read_light
from spark_jobs.io.run_store import folder_of, read_report, write_report
from spark_jobs.jobs import judge_models
from spark_jobs.jobs.score_users import score_users
from spark_jobs.jobs.train_models import train_models
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.factory import build_model, fit_recipe, load_model
from spark_jobs.models.matrix import numbered_interactions
from spark_jobs.models.night_models import Sizes, plan_models
from spark_jobs.models.ranker import Ranker
from spark_jobs.models.ranking import mask_items, top_items
from spark_jobs.models.recipes import default_recipe
from tests.builders import make_run, utc, write_rows

pytestmark = pytest.mark.spark

AS_OF = "2024-03-29"
A_DAY_EARLIER = "2024-03-28"
FIRST_DAY = utc("2024-03-01")
USERS, GROUPS, ITEMS_PER_GROUP = 80, 4, 15
ITEMS = [f"i{n:02d}" for n in range(GROUPS * ITEMS_PER_GROUP)]
SMALL_ALS = {"factors": 8, "iterations": 8, "regularization": 5.0}

Event = tuple[str, str, str, float]


def planted_events() -> list[Event]:
    """(subject, item, type, days since the first day): each user looks at the items of their own group, the first of
    the group most often, and at one of ten from anywhere. One visitor is anonymous."""
    rng = np.random.default_rng(11)
    share = 1.0 / np.arange(1, ITEMS_PER_GROUP + 1) ** 0.7
    events: list[Event] = []
    for user in range(USERS):
        for _ in range(24):
            place = rng.choice(ITEMS_PER_GROUP, p=share / share.sum())
            item = place * GROUPS + user % GROUPS if rng.random() < 0.9 else rng.integers(len(ITEMS))
            kind = "purchase" if rng.random() < 0.15 else "view_item"
            subject = f"u:{user:03d}" if user else "a:guest"
            events.append((subject, ITEMS[int(item)], kind, float(rng.random() * 28)))
    return events


def shuffled(events: list[Event]) -> list[Event]:
    """The same events with their items dealt out anew: as popular as before, and nobody's taste."""
    items = np.random.default_rng(5).permutation([e[1] for e in events])
    return [(s, str(item), kind, day) for (s, _, kind, day), item in zip(events, items, strict=True)]


def write_shop(environment: Environment, events: list[Event], *, session_days: float | None = None) -> None:
    """`session_days`: how long a session lasts; None: there are none."""
    rows = []
    for number, (subject, item, kind, day) in enumerate(events):
        moment = FIRST_DAY + timedelta(days=day)
        session = None if session_days is None else f"{subject} {day // session_days:.0f}"
        rows.append(
            {"event_id": f"e{number}", "subject_key": subject, "item_id": item, "event_type": kind,
             "session_key": session, "event_timestamp": moment, "event_date": moment.date()}
        )  # fmt: skip
    write_rows(environment, "silver.interactions", rows, mode="overwrite")
    numbers = [{"item_id": item, "item_number": n, "first_as_of": FIRST_DAY.date()} for n, item in enumerate(ITEMS)]
    write_rows(environment, "gold.item_ids", numbers, mode="overwrite")


@pytest.fixture
def shop(
    environment: Environment,
    mlflow_store: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Environment:
    """An installation whose MLflow is a database (shared, a tenant for each test); als is as small as the shop."""
    monkeypatch.chdir(tmp_path)
    recipes = {name: default_recipe(name) for name in ("popularity", "item_knn", "als")}
    recipes["als"]["params"].update(SMALL_ALS)
    monkeypatch.setattr("spark_jobs.models.recipes.RECIPES", recipes)
    return environment._replace(mlflow_uri=mlflow_store, tenant=request.node.name.replace("test_", "")[:40])


def open_run(environment: Environment, run_key: str = "r1", as_of: str = AS_OF, **other: object) -> Run:
    """A pinned night of three families that enter with their defaults, unless its params ask for others."""
    parent = tracking.start_night(environment, run_key=run_key, as_of=as_of, tags={})
    other["params"] = {"trials": 0, "models": "item_knn als", **other.get("params", {})}
    return make_run(environment, as_of, run_key=run_key, mlflow_run_id=parent, **other)


def night(spark: SparkSession, environment: Environment, run_key: str = "r1", **other: object) -> dict[str, object]:
    """Train and judge, then flip as the publication does; returns the gate's report."""
    run = open_run(environment, run_key, **other)
    train_models(environment, run)
    report = judge_models.main(environment, run)
    registry.set_champion(environment, published_version=f"{run.as_of}-{run_key * 4:.8s}", run_key=run_key)
    return report


def test_a_night_from_events_to_a_challenger(spark: SparkSession, shop: Environment) -> None:
    write_shop(shop, planted_events())
    run = open_run(shop)
    evaluation = train_models(shop, run)
    assert evaluation == read_report(shop, run.run_key, EVALUATION_FILE)
    test = evaluation["test"]
    assert (test["days"], test["start"], test["item_count"]) == (7, "2024-03-22T00:00:00Z", len(ITEMS))
    assert 60 <= test["users"] <= USERS - 1, "the anonymous visitor is not judged"
    assert sum(n for name, n in test["users_by_slice"].items() if name != "all") == test["users"]
    assert evaluation["champion"] is None

    ndcg = {name: model["metrics"]["all"]["ndcg_at_20"] for name, model in evaluation["models"].items()}
    assert list(ndcg) == ["popularity", "item_knn", "als"]
    assert ndcg["item_knn"] > 1.5 * ndcg["popularity"]
    assert ndcg["als"] > 1.5 * ndcg["popularity"]

    # gold.evaluations says what evaluation.json says
    rows = read_light(shop, "gold.evaluations").to_pylist()
    assert {(r["as_of"], r["run_key"]) for r in rows} == {(run.as_of_day, "r1")}
    stored = {r["model"]: r["value"] for r in rows if (r["slice"], r["metric"], r["k"]) == ("all", "ndcg", 20)}
    assert stored == ndcg
    assert len([r for r in rows if r["metric"] == "coverage"]) == 2 * 3

    # so does the file that the gate's intervals are made of
    persons = pq.read_table(folder_of(shop, "r1") / USER_METRICS_FILE).to_pandas()
    assert persons.groupby("contestant")["ndcg_at_20"].mean().to_dict() == pytest.approx(ndcg)
    assert len(persons) == 3 * test["users"]

    report = judge_models.main(shop, run)
    best = max(ndcg, key=lambda name: ndcg[name])
    assert (report["verdict"], report["model"]) == ("publish", best)
    assert report["recipe"] == default_recipe(best)
    assert report == read_report(shop, "r1", GATE_FILE)
    assert judge_models.main(shop, run) == report  # judged twice is judged once

    # MLflow
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=shop.mlflow_uri, registry_uri=shop.mlflow_uri)
    assert len(client.search_model_versions(f"name = '{registry.registered_name(shop)}'")) == 1
    nested = client.get_run(evaluation["models"]["als"]["mlflow_run_id"])
    assert nested.data.tags["mlflow.parentRunId"] == run.mlflow_run_id
    assert nested.data.params["factors"] == "8"
    assert nested.data.metrics["ndcg_at_20"] == pytest.approx(ndcg["als"])
    by_slice = evaluation["models"]["als"]["metrics"]["5-20"]["recall_at_20"]
    assert nested.data.metrics["recall_at_20__5to20"] == pytest.approx(by_slice)
    inputs = {i.dataset.name: json.loads(i.dataset.source)["delta_table_version"] for i in nested.inputs.dataset_inputs}
    assert inputs == {"silver.interactions": 0, "gold.item_ids": 0}
    files = {a.path for a in client.list_artifacts(nested.info.run_id, "model")}
    assert files == {"model/item_factors.npy", "model/manifest.json", "model/user_factors.npy", "model/MLmodel"}
    parent = client.get_run(run.mlflow_run_id)
    assert parent.data.tags["verdict"] == "publish"
    assert parent.data.metrics["as_of_yyyymmdd"] == 20240329
    drawn = {a.path.removeprefix("pictures/") for a in client.list_artifacts(run.mlflow_run_id, "pictures")}
    assert len(drawn) == 6
    shown = Path(client.download_artifacts(run.mlflow_run_id, "examples/examples.html")).read_text()
    assert shown.count("<h2>Person") == 5
    judged = client.get_run(evaluation["models"]["als"]["mlflow_run_id"])
    assert judged.data.metrics["ndcg_at_20_lower"] < ndcg["als"] < judged.data.metrics["ndcg_at_20_upper"]
    assert [m.step for m in client.get_metric_history(judged.info.run_id, "training_loss")] == list(range(1, 9))
    assert "# als, as_of 2024-03-29" in judged.data.tags["mlflow.note.content"]
    page = Path(client.download_artifacts(run.mlflow_run_id, "gate/gate.md")).read_text()
    assert f"{best} wins with NDCG@20" in page
    challenger = client.get_model_version_by_alias(registry.registered_name(shop), "challenger")
    assert json.loads(challenger.tags["recipe"]) == report["recipe"]


def test_models_and_their_blend_compete_on_one_slice(spark: SparkSession, shop: Environment) -> None:
    """Each of them in the tables, in MLflow and before the gate; the next night meets its recipe as the champion. What
    answers would be with a session is measured on the same persons, shown beside them, and cannot win."""
    write_shop(shop, planted_events(), session_days=3.0)
    families = ["popularity", "als", "rp3beta", "sequential_rules"]
    run = open_run(shop, as_of=A_DAY_EARLIER, params={"models": [*families, "blend"]})
    evaluation = train_models(shop, run)
    models = evaluation["models"]
    assert list(models) == [*families, "blend", WITH_SESSION]
    assert "is best of" in evaluation["blend"]
    recipe = models["blend"]["recipe"]
    parts = recipe["params"]["parts"]
    assert len(set(parts) - {"popularity"}) >= 2
    assert {name: models[name]["recipe"] for name in parts} == parts
    best = max(models[name]["metrics"]["all"]["ndcg_at_20"] for name in families)
    assert models["blend"]["metrics"]["all"]["ndcg_at_20"] > 0.95 * best
    folder = folder_of(shop, "r1") / MODELS_FOLDER / "blend"
    assert sorted(path.name for path in (folder / "parts").iterdir()) == sorted(parts)
    assert load_model(folder).params == recipe["params"]

    rows = read_light(shop, "gold.evaluations").to_pylist()
    for metric in ("ndcg", "coverage", "gini", "novelty", "serendipity", "diversity"):
        assert {r["model"] for r in rows if r["metric"] == metric and r["slice"] == "all"} == set(models), metric
    assert len({r["user_count"] for r in rows if r["slice"] == "all"}) == 1
    assert all(model["learned_until"] < evaluation["test"]["start"] for model in models.values())
    assert models["blend"]["validation_ndcg_at_20"] > 0

    answers, test = models[WITH_SESSION], evaluation["test"]
    base = max(sorted([*families, "blend"]), key=lambda name: models[name]["metrics"]["all"]["ndcg_at_20"])
    assert (answers["beside"], answers["is_judged"]) == (base, False)
    assert 20 <= test["users_in_a_session"] < test["users"]
    assert test["users_by_further_slice"]["in a session"] == test["users_in_a_session"]
    persons = pq.read_table(folder_of(shop, "r1") / USER_METRICS_FILE).to_pandas().set_index("subject_key")
    own, with_session = (persons[persons["contestant"] == name]["ndcg_at_20"] for name in (base, WITH_SESSION))
    assert own.index.equals(with_session.index)
    assert 0 < (own != with_session).sum() <= test["users_in_a_session"], "nobody else's answer changes"

    report = judge_models.main(shop, run)
    assert report["verdict"] == "publish"
    assert report["contestant"] == base
    assert WITH_SESSION not in {check["model"] for check in report["checks"]}
    beside = [c for c in report["comparisons"] if WITH_SESSION in (c["model"], c["against"])]
    assert {(c["model"], c["against"]) for c in beside} == {(WITH_SESSION, base)}
    assert beside[0]["difference"]["mean"] == pytest.approx((with_session - own).mean())
    judged = {check["name"] for check in report["checks"] if check["model"] == "blend"}
    assert judged >= {"no_future", "plausible", "sound_parts", "size", "fast_enough", "beats_popularity"}
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=shop.mlflow_uri, registry_uri=shop.mlflow_uri)
    logged = client.get_run(models["blend"]["mlflow_run_id"])
    assert logged.data.params["mode"] == recipe["params"]["mode"]
    assert {f"part.{name}" for name in parts} <= set(logged.data.params)
    page = Path(client.download_artifacts(run.mlflow_run_id, "gate/gate.md")).read_text()
    assert "| model | coverage_at_20 | gini_at_20 | novelty_at_20 |" in page
    assert f"with_session: not judged, answers that blend the lists of {base} with the session that asks" in page
    beside_run = client.get_run(answers["mlflow_run_id"])
    assert (beside_run.data.tags["kind"], beside_run.data.params["lists_of"]) == ("answers", base)
    assert beside_run.data.metrics["ndcg_at_20"] == pytest.approx(with_session.mean())
    assert beside_run.data.metrics["ndcg_at_20_lower"] < with_session.mean()
    versions = client.search_model_versions(f"name = '{registry.registered_name(shop)}'")
    assert beside_run.info.run_id not in {version.run_id for version in versions}
    family = client.get_run(models["blend"]["trials"]["mlflow_run_id"])
    tried = client.search_runs([family.info.experiment_id], "tags.kind = 'trial'")
    assert len(tried) == len(models["blend"]["trials"]["tried"]) >= 2

    # An applied choice: its blend as it is, no trials; the live recipe, whichever won, is fitted beside it.
    registry.set_champion(shop, published_version=f"{A_DAY_EARLIER}-aaaaaaaa", run_key="r1")
    own = {"format": 1, "recipes": {name: models[name]["recipe"] for name in ("rp3beta", "als")}}
    own["blend"] = {"weights": {part: {"rp3beta": 1.0, "als": 0.5} for part in ("<5", "5-20", ">20")}}
    second = train_models(shop, open_run(shop, "r2", params={"models": None, "recipes": own, "trials": 3}))
    assert list(second["models"])[:4] == ["popularity", "rp3beta", "als", "blend"]
    assert second["blend"] == "the blend of the recipes that were applied"
    assert second["models"]["blend"]["recipe"]["params"]["weights"]["<5"] == {"als": 0.5, "rp3beta": 1.0}
    assert second["models"]["als"]["trials"]["tried"] == []
    assert second["champion"]["contestant"] in second["models"]


def test_a_retry_makes_the_same(spark: SparkSession, shop: Environment) -> None:
    write_shop(shop, planted_events())
    run = open_run(shop, params={"trials": 1})
    by_key = [(column, "ascending") for column in ("model", "slice", "metric", "k")]
    first = train_models(shop, run)
    rows = read_light(shop, "gold.evaluations").sort_by(by_key)
    second = train_models(shop, run)
    again = read_light(shop, "gold.evaluations").sort_by(by_key)
    assert rows.num_rows > 50
    assert rows.equals(again)
    digests = {name: model["manifest_sha256"] for name, model in first["models"].items()}
    assert digests == {name: model["manifest_sha256"] for name, model in second["models"].items()}
    assert len(digests) == 3
    chosen = {name: model["trials"]["tried"] for name, model in first["models"].items()}
    assert chosen == {name: model["trials"]["tried"] for name, model in second["models"].items()}

    # One run of each family with its trials, whatever the first try left; all measured on the validation window only.
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=shop.mlflow_uri, registry_uri=shop.mlflow_uri)
    for name, model in second["models"].items():
        experiment = client.get_experiment_by_name(f"{name}-{shop.tenant}").experiment_id
        runs = {r.data.tags["kind"]: r for r in client.search_runs([experiment], order_by=["tags.trial DESC"])}
        assert len(client.search_runs([experiment])) == 3
        assert runs["family"].info.run_id == model["trials"]["mlflow_run_id"]
        assert runs["family"].data.tags["model_run_id"] == model["mlflow_run_id"]
        tried = [t["ndcg_at_20"] for t in model["trials"]["tried"]]
        assert model["trials"]["chosen"] == tried.index(max(tried))
        assert runs["trial"].data.metrics["ndcg_at_20"] == pytest.approx(tried[0])
        assert {"as_of_yyyymmdd", "ndcg_at_20__5to20"} <= set(runs["trial"].data.metrics)
    fitted = load_model(folder_of(shop, "r1") / MODELS_FOLDER / "als")
    assert fitted.params == second["models"]["als"]["recipe"]["params"]


def test_shuffled_interactions_are_refused(spark: SparkSession, shop: Environment) -> None:
    """Where there is no taste to find: a personal champion stays, a first night gets what it is, a baseline."""
    write_shop(shop, planted_events())
    assert night(spark, shop, as_of=A_DAY_EARLIER)["verdict"] == "publish"
    write_shop(shop, shuffled(planted_events()))

    with pytest.raises(GateRefusedError, match="the served version stays") as refusal:
        night(spark, shop, "r2")
    for name in ("item_knn", "als"):
        assert f"{name} does not beat popularity" in str(refusal.value)
    assert read_report(shop, "r2", GATE_FILE)["verdict"] == "refused"
    assert read_report(shop, "r2", GATE_FILE)["recipe"] is None
    assert registry.champion(shop).published_version == f"{A_DAY_EARLIER}-r1r1r1r1"
    refused = registry.find_version(shop, "2")
    assert (refused.tags["verdict"], refused.tags["run_key"], refused.is_champion) == ("refused", "r2", False)

    nobody = shop._replace(tenant=f"{shop.tenant[:30]}-first")
    write_shop(nobody, shuffled(planted_events()))
    report = night(spark, nobody)
    assert (report["verdict"], report["model"]) == ("baseline", "popularity")
    assert report["reasons"][0].startswith("no personal model passed")
    with pytest.raises(GateRefusedError, match="the run asks for a personal model"):
        night(spark, nobody, "r3", params={"require_personal": "true"})


def test_the_champions_recipe_competes_on_tonights_split(spark: SparkSession, shop: Environment) -> None:
    write_shop(shop, planted_events())
    night(spark, shop, as_of=A_DAY_EARLIER, params={"models": "item_knn"})
    assert registry.champion(shop).model == "item_knn"

    # The same recipe is among tonight's: it is trained once.
    evaluation = train_models(shop, open_run(shop, "r2"))
    assert evaluation["champion"] == {
        "contestant": "item_knn",
        "version": "1",
        "published_version": f"{A_DAY_EARLIER}-r1r1r1r1",
    }
    assert list(evaluation["models"]) == ["popularity", "item_knn", "als"]

    # It is not: it is refitted beside them, under a name of its own.
    evaluation = train_models(shop, open_run(shop, "r3", params={"models": ["als"]}))
    assert evaluation["champion"]["contestant"] == CHAMPION
    assert list(evaluation["models"]) == ["popularity", "als", CHAMPION]
    assert evaluation["models"][CHAMPION]["recipe"] == default_recipe("item_knn")


def test_a_first_night_with_two_days_of_data_publishes_a_baseline(spark: SparkSession, shop: Environment) -> None:
    write_shop(shop, [(s, i, k, 26 + day / 14) for s, i, k, day in planted_events()])
    report = night(spark, shop)
    assert (report["verdict"], report["model"]) == ("baseline", "popularity")
    assert "0 test persons (at least 20): too few to judge any model" in report["reasons"]
    assert "too short to hold back even one day" in report["reasons"][2]
    assert registry.champion(shop).model == "popularity"


def test_files_that_changed_after_the_evaluation_are_not_published(spark: SparkSession, shop: Environment) -> None:
    write_shop(shop, planted_events())
    run = open_run(shop)
    train_models(shop, run)
    for folder in (folder_of(shop, "r1") / MODELS_FOLDER).iterdir():
        path = next(folder.glob("*.npy"))
        path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(ContractError, match="has SHA-256"):
        judge_models.main(shop, run)
    assert not (folder_of(shop, "r1") / GATE_FILE).exists()


def test_errors_name_what_is_missing(spark: SparkSession, shop: Environment, environment: Environment) -> None:
    run = open_run(shop)
    with pytest.raises(DataError, match=r"no evaluation\.json yet"):
        judge_models.main(shop, run)
    with pytest.raises(DataError, match="no interactions before 2024-03-29"):
        train_models(shop, run)
    with pytest.raises(DataError, match=r"no model 'alss'.*did you mean 'als'"):
        train_models(shop, replace(run, params={"models": "alss"}))
    with pytest.raises(DependencyError, match="MLflow does not answer"):
        train_models(environment, run)
    write_shop(shop, [*planted_events(), ("u:001", "i-unnumbered", "view_item", 3.0)])
    with pytest.raises(DataError, match="1 of 1,921 interactions are about items without a number"):
        train_models(shop, run)


def test_a_second_stage_is_learned_where_there_are_features_and_scores_everybody(
    spark: SparkSession, shop: Environment, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The feature knows to which group a user belongs, which the models see too: it shall work, not win."""
    env = shop._replace(redis_online_url=redis_url)
    write_shop(env, planted_events())
    catalogue = [{"item_id": item, "is_hidden": False, "category": f"g{n % GROUPS}"} for n, item in enumerate(ITEMS)]
    write_rows(env, "bronze.items", catalogue)
    run = open_run(env, params={"models": "item_knn blend ranker"}, pins={"bronze.items": 0})
    train_models(env, run)
    assert (
        "left out: ranker: there are no features of 2024-03-15 and 2024-03-22 and 2024-03-29" in capsys.readouterr().out
    )
    for day in ("2024-03-15", "2024-03-22", "2024-03-29"):
        stamped = {"feature_timestamp": utc(day), "as_of": utc(day).date()}
        users = [{"user_id": f"{n:03d}", "user_view_count_7d": n % GROUPS, **stamped} for n in range(1, USERS)]
        items = [{"item_id": item, "item_view_count_7d": n % GROUPS, **stamped} for n, item in enumerate(ITEMS)]
        write_rows(env, "gold.user_features", users)
        write_rows(env, "gold.item_features", items)
        pairs = [{"user_id": f"{n:03d}", "category": f"g{n % GROUPS}", "user_category_view_count_30d": 9, **stamped}
                 for n in range(1, USERS)]  # fmt: skip
        write_rows(env, "gold.user_category_features", pairs)
    pinned = ("gold.user_features", "gold.item_features", "gold.user_category_features")
    run = replace(run, pins={**run.pins, **dict.fromkeys(pinned, 2)})
    evaluation = train_models(env, run)
    models = evaluation["models"]
    families = [name for name in models if name != WITH_RANKER]
    assert families == ["popularity", "item_knn", "ranker"], "no blend is better than item_knn alone"
    ranker = models["ranker"]
    assert ranker["recipe"]["params"]["first"] == models["item_knn"]["recipe"]
    assert ranker["recipe"]["params"]["by_category"] is True
    assert ranker["metrics"]["all"]["ndcg_at_20"] > 0.8 * models["item_knn"]["metrics"]["all"]["ndcg_at_20"]
    fitted = load_model(folder_of(env, run.run_key) / MODELS_FOLDER / "ranker")
    assert isinstance(fitted, Ranker)
    assert "user_category_view_count_30d" in fitted.text

    write_report(env, run.run_key, GATE_FILE, {"recipe": ranker["recipe"]})
    report = score_users(spark, env, run)
    assert (report["model"], report["user_count"]) == ("ranker", USERS - 1)
    lists = read_light(env, "gold.candidates").to_pylist()
    assert len(lists) == USERS - 1
    assert all(row["item_numbers"] and row["first_reasons"][0] is not None for row in lists)


def reasons_that_count(model: Model, matrix: InteractionMatrix) -> int:
    """Of the three best new items of twenty people, how many have a reason without which their score falls."""
    found = 0
    for row in range(20):
        history = matrix.preference[row]
        scores = model.score_block(history)
        mask_items(scores, history)
        best = top_items(scores, 3)[0][0].tolist()
        for item, (reason, _) in zip(best, model.explain(history, row, best), strict=True):
            without = history.copy()
            without.data[without.indices == reason] = 0
            without.eliminate_zeros()
            assert reason in history.indices
            found += bool(model.score_block(without)[0, item] < scores[0, item])
    return found


def test_both_engines_of_als_find_the_same_taste(
    spark: SparkSession, shop: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shop(shop, planted_events())
    quality, shapes, started = {}, {}, []
    monkeypatch.setattr("spark_jobs.jobs.train_models.get_session", started.append)
    for engine in ("native", "mllib"):
        recipe = default_recipe("als", engine=engine)
        evaluation = train_models(shop, open_run(shop, engine, params={"models": "als", "als_engine": engine}))
        assert evaluation["models"]["als"]["recipe"] == recipe
        assert started == ([] if engine == "native" else ["train_models"])  # a session only where one is needed
        quality[engine] = evaluation["models"]["als"]["metrics"]["all"]["ndcg_at_20"]
        quality["popularity"] = evaluation["models"]["popularity"]["metrics"]["all"]["ndcg_at_20"]
        model = load_model(folder_of(shop, engine) / MODELS_FOLDER / "als")
        shapes[engine] = (model.item_factors.shape, model.user_factors.shape)
        numbers = read_light(shop, "gold.item_ids", columns=["item_id", "item_number"])
        table = numbered_interactions(read_interactions(shop, numbers, cut_off=utc(AS_OF)))
        assert reasons_that_count(model, fit_recipe(recipe, table, item_count=len(ITEMS), cut_off=utc(AS_OF))[1]) == 60
    assert shapes["native"] == shapes["mllib"]
    assert quality["mllib"] == pytest.approx(quality["native"], rel=0.15)
    assert min(quality["mllib"], quality["native"]) > 1.5 * quality["popularity"]

    first, matrix = fit_recipe(recipe, table, item_count=len(ITEMS), cut_off=utc(AS_OF))
    again, _ = fit_recipe(recipe, table, item_count=len(ITEMS), cut_off=utc(AS_OF))
    assert first.item_factors.tobytes() == again.item_factors.tobytes()
    terms = first.contributions(matrix.preference[0], [3])
    assert terms.sum() == pytest.approx(first.score_block(matrix.preference[:1], np.array([0]))[0, 3], abs=1e-5)


def test_tonight_always_has_the_baseline() -> None:
    sizes = Sizes(9, 9, 9, 9)
    recipes, champion = with_champion(plan_models(("als",), sizes).recipes, None)
    assert (list(recipes), champion) == (["popularity", "als"], None)
    odd = {**default_recipe("als"), "half_life_days": 1.0}
    three = plan_models(("item_knn", "als"), sizes).recipes
    recipes, champion = with_champion(three, odd)
    assert (list(recipes), champion) == (["popularity", "item_knn", "als", CHAMPION], CHAMPION)
    assert with_champion(three, default_recipe("item_knn"))[1] == "item_knn"


def test_many_iterations_do_not_outgrow_the_stack(spark: SparkSession) -> None:
    """A fit's lineage is cut at checkpoints; without them so many iterations overflow the stack of an executor."""
    rng = np.random.default_rng(5)
    preference = sparse.csr_matrix(rng.integers(0, 2, (40, 25)).astype(np.float32))
    subjects = np.array([f"u:{number:02d}" for number in range(40)])
    matrix = InteractionMatrix(subjects, preference, np.zeros(preference.nnz, np.int64))
    params = default_recipe("als", engine="mllib")["params"]
    model = build_model("als", {**params, "factors": 4, "iterations": 40})
    model.fit(matrix)
    assert spark.sparkContext.getCheckpointDir() is not None
    assert model.item_factors.shape == (25, 4)
    assert np.isfinite(model.item_factors).all()
