"""A ranker of answers from a night to its bundle, on a planted shop: real Spark, Delta, MLflow and Redis."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.publication import RANKER_FILE
from feature_repo.contracts.ranker_file import unpack_ranker
from feature_repo.contracts.run import GATE_FILE
from spark_jobs.evaluation.with_ranker import WITH_RANKER
from spark_jobs.evaluation.with_session import WITH_SESSION
from spark_jobs.io.run_store import write_report
from spark_jobs.jobs import judge_models, verify_publication
from spark_jobs.jobs.score_users import score_users
from spark_jobs.jobs.train_models import train_models
from spark_jobs.models import answer_ranker
from tests.builders import utc, write_rows
from tests.spark.test_train_models import GROUPS, ITEMS, USERS, open_run, planted_events, write_shop
from tests.spark.test_train_models import shop as shop

pytestmark = pytest.mark.spark


def taste_of(number: int) -> int:
    """Of a person; and of an item, whose place in its group it is."""
    return number // GROUPS % 2


def of_taste(item: str, subject: str) -> str:
    """The item, or its neighbour in the group that is of the person's taste."""
    number, taste = int(item[1:]), taste_of(int(subject[2:]))
    if taste_of(number) == taste:
        return item
    return ITEMS[number + GROUPS if taste and number + GROUPS < len(ITEMS) else number - GROUPS]


def test_a_ranker_of_answers_is_measured_judged_and_published_where_it_wins(
    spark: SparkSession, shop: Environment, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feature tells what half of the people come for next; lists and sessions do not."""
    env = shop._replace(redis_online_url=redis_url)
    events = planted_events()
    liked = [e for e in events if e[3] >= 14 and e[0] != "a:guest"]
    told = [(subject, of_taste(item, subject), kind, day) for subject, item, kind, day in liked]
    write_shop(env, [e for e in events if e not in liked] + told, session_days=3.0)
    write_rows(env, "bronze.items", [{"item_id": item, "is_hidden": False} for item in ITEMS])
    for day in ("2024-03-16", "2024-03-22", "2024-03-15", "2024-03-29"):  # the history is short: six days are held back
        stamped = {"feature_timestamp": utc(day), "as_of": utc(day).date()}
        users = [{"user_id": f"{n:03d}", "user_view_count_7d": taste_of(n), **stamped} for n in range(1, USERS)]
        items = [{"item_id": item, "item_view_count_7d": taste_of(n), **stamped} for n, item in enumerate(ITEMS)]
        write_rows(env, "gold.user_features", users)
        write_rows(env, "gold.item_features", items)
    pins = {"bronze.items": 0, **dict.fromkeys(("gold.user_features", "gold.item_features"), 3)}
    run = open_run(env, params={"models": "item_knn"}, pins=pins)
    defaults = {**answer_ranker.DEFAULTS, "least_rows": 5}
    monkeypatch.setattr("spark_jobs.models.answer_ranker.DEFAULTS", defaults)
    evaluation = train_models(env, run)
    models = evaluation["models"]
    assert list(models) == ["popularity", "item_knn", WITH_SESSION, WITH_RANKER], evaluation["left_out"]
    row = models[WITH_RANKER]
    assert (row["is_judged"], row["beside"], row["recipe"]["params"]["lists_of"]) == (False, WITH_SESSION, "item_knn")
    assert row["metrics"]["all"]["ndcg_at_20"] > 1.1 * models[WITH_SESSION]["metrics"]["all"]["ndcg_at_20"]

    report = judge_models.main(env, run)
    assert (report["contestant"], report["ranker"]["publishes"]) == ("item_knn", True), report["ranker"]
    assert report["ranker"]["words"].startswith("it wins: NDCG@20 +")
    published = score_users(spark, env, run)
    assert published["ranker"]["published"], published["ranker"]
    folder = Path(published["bundle"])
    found = unpack_ranker((folder / RANKER_FILE).read_bytes())
    assert "item_view_count_7d" in found.item_columns
    at = found.item_columns.index("item_view_count_7d")
    values = list(found.values)[at :: len(found.item_columns)]
    assert values == [float(taste_of(n)) for n in range(len(ITEMS))]
    verify_publication.main(env, run)
    again = score_users(spark, env, run)
    assert (again["version"], again["files"]) == (published["version"], published["files"])

    (folder / RANKER_FILE).write_bytes(b"NJR1" + (folder / RANKER_FILE).read_bytes()[5:])
    with pytest.raises(ContractError, match=f"{RANKER_FILE}: SHA-256"):
        verify_publication.main(env, run)
    assert verify_publication.ranker_faults(folder / RANKER_FILE)

    write_report(env, run.run_key, GATE_FILE, {**report, "ranker": {"publishes": False, "words": "it does not win"}})
    without = score_users(spark, env, run)
    assert RANKER_FILE not in without["files"]
    assert without["ranker"] == {"published": False, "words": "it does not win"}
