"""One person on several devices, from raw events to the list in Redis: what they did before logging in, on each device,
and under an account that became another, is theirs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import redis
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import candidates_key
from feature_repo.contracts.packing import unpack_candidates
from feature_repo.contracts.times import to_micros
from spark_jobs.io.light_delta import read_table
from spark_jobs.jobs import flip_version, judge_models, verify_publication
from spark_jobs.jobs.build_features import build_features
from spark_jobs.jobs.pin_run import Request, pin_run
from spark_jobs.jobs.refine_events import refine_events
from spark_jobs.jobs.score_users import score_users
from spark_jobs.jobs.train_models import train_models
from spark_jobs.models.factory import fit_recipe
from spark_jobs.models.matrix import sort_interactions
from spark_jobs.models.ranking import mask_items, top_items
from spark_jobs.models.recipes import default_recipe
from tests.builders import EventRow, utc, write_bronze_events, write_rows
from tests.spark.test_train_models import AS_OF, FIRST_DAY, ITEMS, planted_events

pytestmark = [pytest.mark.spark, pytest.mark.redis, pytest.mark.soak]

ANN, BOB = "001", "002"
LAST_EVENING = "2024-03-28T22:00:00"
LOGINS: list[EventRow] = [
    ("in1", ANN, "identify", LAST_EVENING, None, {"anonymous_id": "phone"}),
    ("in2", ANN, "identify", LAST_EVENING, None, {"anonymous_id": "laptop"}),
    ("in3", ANN, "alias", LAST_EVENING, None, {"anonymous_id": "ann-of-old"}),
]
"""Of Bob's tablet nobody says whose it is."""


def raw_and_owned() -> tuple[list[EventRow], list[tuple[str, int, str, int]]]:
    """(what was sent, whose it is): of Ann's events a third each on the phone, on the laptop and under the old account,
    none under her own name; of Bob's every second one on a tablet."""
    sent: list[EventRow] = []
    owned = []
    of_user: dict[str, int] = {}
    for number, (subject, item, kind, day) in enumerate(planted_events()):
        place = of_user[subject] = of_user.get(subject, -1) + 1
        user: str | None = subject.removeprefix("u:")
        device = {}
        if user == ANN:
            where = place % 3
            user = "ann-of-old" if where == 2 else None
            device = {} if where == 2 else {"anonymous_id": ("phone", "laptop")[where]}
        elif user == BOB and place % 2:
            user, device, subject = None, {"anonymous_id": "tablet"}, "a:tablet"
        elif subject == "a:guest":
            user, device = None, {"anonymous_id": "guest"}
        moment = FIRST_DAY + timedelta(days=day)
        sent.append((f"e{number}", user, kind, moment, item, device))
        owned.append((subject, ITEMS.index(item), kind, to_micros(moment)))
    return [*sent, *LOGINS], owned


def test_what_a_person_did_on_every_device_is_in_their_list(
    spark: SparkSession, environment: Environment, mlflow_store: str, redis_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    env = environment._replace(mlflow_uri=mlflow_store, redis_online_url=redis_url, tenant="devices")
    sent, owned = raw_and_owned()
    write_bronze_events(env, sent)
    write_rows(env, "bronze.items", [{"item_id": item, "is_hidden": False} for item in ITEMS])
    params = {"models": "item_knn", "trials": 0}
    run = pin_run(env, Request("r1", "manual__1", "manual", "auto", "", "auto", params))
    assert (run.as_of, run.publishes) == (AS_OF, True)
    refine_events(spark, env, run)
    build_features(spark, env, run)
    train_models(env, run)
    assert judge_models.main(env, run)["model"] == "item_knn"
    report = score_users(spark, env, run)
    verify_publication.main(env, run)
    flip_version.main(env, run)

    # Whose an event is, told apart from the product: the plain table, fitted and ranked here.
    columns = ("subject_key", "item_number", "event_type", "micros")
    table = sort_interactions(pa.table({name: [row[n] for row in owned] for n, name in enumerate(columns)}))
    numbers = {row["item_id"]: row["item_number"] for row in read_table(env, "gold.item_ids").to_pylist()}
    assert sorted(numbers) == ITEMS
    by_number = {number: item for item, number in numbers.items()}
    model, matrix = fit_recipe(default_recipe("item_knn"), table, item_count=len(ITEMS), cut_off=utc(AS_OF))
    with redis.Redis.from_url(redis_url) as client:
        for user in (ANN, BOB):
            record = client.get(candidates_key(report["version"], user, tenant=env.tenant))
            rows = unpack_candidates(record)[0]
            history = matrix.preference[np.flatnonzero(matrix.subjects == f"u:{user}")]
            scores = model.score_block(history)
            mask_items(scores, history)
            best, values = top_items(scores, len(ITEMS) - history.nnz)
            assert [by_number[row.item_number] for row in rows[:10]] == [ITEMS[n] for n in best[0][:10]]
            assert [row.score for row in rows[:10]] == pytest.approx(values[0][:10].tolist(), rel=1e-4)
            had = {ITEMS[n] for n in history.indices}
            assert {by_number[row.first_reason] for row in rows[:10]} <= had
            assert not had & {by_number[row.item_number] for row in rows}, "had on one device is had on all"
        for other in ("ann-of-old", "phone", "laptop", "tablet"):
            assert client.get(candidates_key(report["version"], other, tenant=env.tenant)) is None
