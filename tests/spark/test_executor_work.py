"""The jobs as a cluster does them: an executor does the work, the driver gets a summary and never touches the rows.

The executors of the tests' session are processes of their own, as those of a cluster are: what is forbidden here is
not forbidden there.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql.classic.dataframe import DataFrame

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.run import EVALUATION_FILE, GATE_FILE, PUBLICATION_FILE, USER_METRICS_FILE, Run
from spark_jobs.engine import on_executor
from spark_jobs.io import tracking
from spark_jobs.io.light_delta import open_table
from spark_jobs.io.parcels import leave, parcels_of, take
from spark_jobs.io.run_store import folder_of, read_report, write_report
from spark_jobs.io.table_hash import hash_table
from spark_jobs.jobs import executor_work, score_users, verify_publication
from spark_jobs.jobs.train_models import train_models, train_on_cluster
from spark_jobs.models.recipes import blend_recipe
from tests.builders import make_run
from tests.spark import test_rescore as rescored
from tests.spark.test_train_models import AS_OF, planted_events, write_shop

pytestmark = pytest.mark.spark


@pytest.fixture
def shop(
    environment: Environment,
    mlflow_store: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Environment:
    monkeypatch.chdir(tmp_path)  # where MLflow puts the artifacts of a database
    return environment._replace(mlflow_uri=mlflow_store, tenant=request.node.name.replace("test_", "")[:40])


def night(environment: Environment, run_key: str, models: str, **more: Any) -> Run:
    parent = tracking.start_night(environment, run_key=run_key, as_of=AS_OF, tags={})
    params = {"trials": 0, "models": models, **more}
    return make_run(environment, AS_OF, run_key=run_key, mlflow_run_id=parent, params=params)


def forbid_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process cannot read a row of a Delta table, nor write one by the light engine, nor give Spark a
    table or take one from it."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("rows in the driver")

    monkeypatch.setattr("deltalake.DeltaTable.to_pyarrow_dataset", refuse)
    monkeypatch.setattr("spark_jobs.io.light_tables.write_deltalake", refuse)
    monkeypatch.setattr(SparkSession, "createDataFrame", refuse)
    monkeypatch.setattr(DataFrame, "toArrow", refuse)


def test_an_executor_trains_what_this_process_would(
    spark: SparkSession, shop: Environment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_shop(shop, planted_events(), session_days=3.0)
    here = train_models(shop, night(shop, "here", "item_knn als"))
    hashed = hash_table(shop, "gold.evaluations", make_run(shop, AS_OF).as_of_day)
    run = night(shop, "there", "item_knn als")
    capfd.readouterr()
    with monkeypatch.context() as driver:
        forbid_rows(driver)
        told = on_executor(spark, partial(executor_work.train, shop, run))
    assert "interactions, " in capfd.readouterr().out  # what the job says is said by the driver
    there = read_report(shop, "there", EVALUATION_FILE)
    assert measured(there) == measured(here)
    assert hash_table(shop, "gold.evaluations", run.as_of_day) == hashed
    files = [folder_of(shop, key) / USER_METRICS_FILE for key in ("here", "there")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [(one.name, one.manifest_sha256) for one in told] == [
        (name, one["manifest_sha256"]) for name, one in here["models"].items()
    ]
    assert {one.name for one in told} == {"popularity", "item_knn", "als", "with_session"}


def measured(report: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation says of its models, but what differs each time."""
    differing = {"fit_seconds": 0, "score_seconds": 0, "mlflow_run_id": "", "trials": []}
    return {name: {**one, **differing} for name, one in report["models"].items()}


def test_what_spark_fits_goes_past_the_driver(
    spark: SparkSession, shop: Environment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """als on mllib, with the bits that a process with a session gets."""
    write_shop(shop, planted_events(), session_days=3.0)
    here = train_models(shop, night(shop, "here", "als", als_engine="mllib"))
    run = night(shop, "there", "als", als_engine="mllib")
    capfd.readouterr()
    with monkeypatch.context() as driver:
        forbid_rows(driver)
        told = train_on_cluster(spark, shop, run)
    assert capfd.readouterr().out.count("Spark learned als from ") == 1
    assert measured(read_report(shop, "there", EVALUATION_FILE)) == measured(here)  # the digests of files among it
    assert {one.name for one in told} == {"popularity", "als", "with_session"}
    assert not (folder_of(shop, "there") / "parcels").exists()


def write_two_nights(
    environment: Environment, recipe: Mapping[str, Any], score: Callable[[Run], dict[str, Any]]
) -> dict[str, Any]:
    """A first night, and one after it that keeps lists; what the second says, and hashes of what both wrote."""
    first = rescored.first_night(environment)
    write_report(environment, first.run_key, GATE_FILE, {"recipe": recipe})
    score(first)
    rescored.what_happens_then(environment)
    params = {"rescore": "touched"}
    run = rescored.pinned(environment, rescored.SECOND, "second", dict(recipe), params=params, publishes=True)
    report = score(run)
    assert report == read_report(environment, "second", PUBLICATION_FILE)
    hashes = {
        (name, day): hash_table(environment, name, day)
        for name in ("gold.candidates", "gold.item_neighbours", "gold.item_factors", "gold.session_index")
        for day in (rescored.FIRST, rescored.SECOND)
        if open_table(environment, name) is not None
    }
    verify_publication.main(environment, run)  # reads every list back
    return {"report": {**report, "bundle": ""}, "hashes": hashes}


MLLIB = {"als": {**rescored.ALS, "params": {**rescored.ALS["params"], "engine": "mllib", "regularization": 0.5}}}
MLLIB["longer"] = {**MLLIB["als"], "half_life_days": 90.0}
BY_SPARK = blend_recipe(
    {**rescored.PARTS, **MLLIB},
    {people: {"als": 0.7, "longer": 0.2, "item_knn": 0.4} for people in ("<5", "5-20", ">20")},
)


@pytest.mark.redis
@pytest.mark.parametrize(("recipe", "fits"), [(rescored.RECIPE, 0), (BY_SPARK, 2)], ids=["native", "mllib"])
def test_executors_rank_and_write_what_this_process_would(
    spark: SparkSession, environment: Environment, redis_url: str, monkeypatch: pytest.MonkeyPatch,
    recipe: dict[str, Any], fits: int, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The lists, those that are kept among them, what stands beside them, and the published version; with a blend of
    two that Spark fits as well."""
    here = environment._replace(redis_online_url=redis_url, tenant="here")
    there = here._replace(tenant="there")
    expected = write_two_nights(here, recipe, lambda run: score_users.score_users(None, here, run))
    assert expected["report"]["rescore"]["users"]["kept"] == 2

    def by_cluster(run: Run) -> dict[str, Any]:
        with monkeypatch.context() as driver:
            forbid_rows(driver)
            driver.setattr(score_users, "is_cluster", lambda _: True)
            return score_users.score_users(spark, there, run)

    capfd.readouterr()
    assert write_two_nights(there, recipe, by_cluster) == expected
    assert capfd.readouterr().out.count("Spark learned als from ") == 2 * fits
    candidates = open_table(there, "gold.candidates")
    assert candidates is not None
    files = pa.table(candidates.get_add_actions(flatten=True)).to_pylist()
    of_second = [file["num_records"] for file in files if file["partition.as_of"] == rescored.SECOND]
    assert sorted(of_second) == [3, 4]  # ranked by one task, kept and denied by another
    assert not (folder_of(there, "second") / "parcels").exists()


def test_a_parcel_of_somebody_else_is_not_opened(environment: Environment) -> None:
    run = make_run(environment, AS_OF)
    with parcels_of(environment, run):
        parcel = leave(environment, run, {"lists": [1, 2]})
        Path(parcel.path).write_bytes(pickle.dumps({"lists": [1, 3]}))
        with pytest.raises(ContractError, match="not that of what was left there"):
            take(parcel)
        again = leave(environment, run, {"lists": [1, 2]})
        assert again.path != parcel.path
        assert take(again) == {"lists": [1, 2]}
    assert not Path(again.path).exists()


def test_an_error_of_ours_comes_back_from_an_executor_as_it_is(spark: SparkSession, shop: Environment) -> None:
    write_shop(shop, [])
    with pytest.raises(DataError, match="did you mean 'als'") as raised:
        on_executor(spark, partial(executor_work.train, shop, night(shop, "r1", "alz")))
    assert raised.value.field == "model"
