"""A night in which lists may repeat, from the pin to lists in Redis: people who buy the same things every week."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import redis
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import candidates_key
from feature_repo.contracts.packing import unpack_candidates
from spark_jobs.evaluation.with_session import WITH_SESSION
from spark_jobs.io.light_delta import read_table
from spark_jobs.io.publication import Publication
from spark_jobs.jobs import flip_version, judge_models, verify_publication
from spark_jobs.jobs.pin_run import Request, pin_run
from spark_jobs.jobs.score_users import score_users
from spark_jobs.jobs.train_models import train_models
from tests.builders import utc, write_bronze_events, write_rows

pytestmark = [pytest.mark.spark, pytest.mark.redis, pytest.mark.soak]

AS_OF, FIRST_DAY = "2024-03-29", utc("2024-03-01")
ITEMS = [f"i{n:02d}" for n in range(40)]
USERS = [f"{n:02d}" for n in range(60)]
STAPLES, LONGED_FOR = 3, 3
"""Of each person's own six items, by chance: the first three they buy every week, the others they look at every week,
and all but the last of them they buy in the last one."""


def own_items(user: int) -> list[str]:
    return [ITEMS[n] for n in np.random.default_rng(user).permutation(len(ITEMS))[: STAPLES + LONGED_FOR]]


def write_shop(environment: Environment) -> None:
    events = []
    for user, name in enumerate(USERS):
        for week in range(4):
            for place, item in enumerate(own_items(user)):
                is_bought = place < STAPLES or (week == 3 and place < len(own_items(user)) - 1)
                moment = FIRST_DAY + timedelta(days=7 * week + user % 7, hours=9, minutes=place)
                events.append((f"{name} {week} {place}", name, "purchase" if is_bought else "view_item", moment, item))
    write_bronze_events(environment, events)
    write_rows(environment, "silver.interactions", [
        {"event_id": event_id, "subject_key": f"u:{user}", "user_id": user, "item_id": item, "event_type": kind,
         "event_timestamp": moment, "event_date": moment.date(), "session_key": f"{user} {moment.date()}"}
        for event_id, user, kind, moment, item in events
    ])  # fmt: skip
    numbers = [{"item_id": item, "item_number": n, "first_as_of": FIRST_DAY.date()} for n, item in enumerate(ITEMS)]
    write_rows(environment, "gold.item_ids", numbers)
    write_rows(environment, "bronze.items", [{"item_id": item, "is_hidden": False} for item in ITEMS])


@pytest.fixture
def shop(
    environment: Environment, mlflow_store: str, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Environment:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    name = request.node.name.replace("[", "-").replace("]", "")[-30:].strip("-_")
    env = environment._replace(mlflow_uri=mlflow_store, redis_online_url=redis_url, tenant=f"repeats-{name}"[:40])
    write_shop(env)
    return env


def night(spark: SparkSession, environment: Environment, policy: str) -> tuple[dict, dict, dict[str, list[str]]]:
    """(evaluation, what the gate says, the items of each list as they lie in Redis)."""
    # Of 40 items the places that nobody has an opinion on are always the same.
    params = {"exclude_seen": policy, "models": "item_knn repurchase", "trials": 0, "max_top_share": 1.0}
    run = pin_run(environment, Request("r1", "manual__1", "manual", "auto", "", "auto", params))
    assert (run.as_of, run.publishes) == (AS_OF, True)
    evaluation = train_models(environment, run)
    gate = judge_models.main(environment, run)
    report = score_users(spark, environment, run)
    verify_publication.main(environment, run)
    flip_version.main(environment, run)
    publication = Publication(environment.redis_online_url, environment.tenant)
    assert publication.served_version() == report["version"]
    assert publication.manifest(report["version"]).recipe["exclude_seen"] == policy
    lists = {}
    with redis.Redis.from_url(environment.redis_online_url) as client:
        for user in USERS:
            record = client.get(candidates_key(report["version"], user, tenant=environment.tenant))
            lists[user] = [ITEMS[row.item_number] for row in unpack_candidates(record)[0]]
    stored = {row["user_id"]: row["item_numbers"] for row in read_table(environment, "gold.candidates").to_pylist()}
    assert {user: [ITEMS[n] for n in numbers] for user, numbers in stored.items()} == lists
    return evaluation, gate, lists


def test_lists_repeat_what_people_buy_again(spark: SparkSession, shop: Environment) -> None:
    evaluation, gate, lists = night(spark, shop, "none")
    test, models = evaluation["test"], evaluation["models"]
    assert (test["users"], test["exclude_seen"]) == (60, "none")
    assert (gate["verdict"], gate["model"]) == ("publish", "repurchase")
    assert models["repurchase"]["metrics"]["all"]["recall_at_10"] == 1.0, "all six of the last week were had before"
    assert models["item_knn"]["metrics"]["all"]["ndcg_at_20"] < 0.8
    for user, found in lists.items():
        own = own_items(int(user))
        assert set(found[:STAPLES]) == set(own[:STAPLES]), "bought four times"
        assert set(found) == set(own), "repurchase says nothing of what they never had"
    # Whatever they come for first is asked for already: nobody was in a session.
    assert WITH_SESSION not in models
    sessions, ranker = evaluation["left_out"]
    assert ranker.startswith("with_ranker: there are no features of ")
    nobody = "none of 60 test persons had a session running when they came for something"
    assert sessions == f"{WITH_SESSION}: {nobody}"


def test_what_was_bought_leaves_and_what_was_looked_at_stays(spark: SparkSession, shop: Environment) -> None:
    evaluation, gate, lists = night(spark, shop, "purchased")
    models = evaluation["models"]
    assert evaluation["test"]["users"] == 60
    assert (gate["verdict"], gate["model"]) == ("publish", "repurchase")
    assert models["repurchase"]["metrics"]["all"]["ndcg_at_20"] == pytest.approx(1.0), "they looked three weeks long"
    assert {user: found == own_items(int(user))[-1:] for user, found in lists.items()} == dict.fromkeys(USERS, True)
    # They ask for the first of the three when they have bought their staples: those votes are all closed items.
    assert models[WITH_SESSION]["beside"] == "repurchase"
    assert evaluation["test"]["users_in_a_session"] == 60
