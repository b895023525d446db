"""Two nights of score_users, the second of which makes only what was touched: real Spark and Delta."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import GATE_FILE, PINNED_TABLES, PUBLICATION_FILE, Run
from feature_repo.contracts.times import to_micros
from infra.local.reproduction import _link_table
from spark_jobs.io.item_vectors import read_starts
from spark_jobs.io.light_delta import read_table, version
from spark_jobs.io.run_store import read_report, write_report
from spark_jobs.io.table_hash import hash_table, hash_tables
from spark_jobs.jobs import score_users as job
from spark_jobs.jobs import verify_publication
from spark_jobs.models.factory import fit
from spark_jobs.models.recipes import blend_recipe, default_recipe, recipe_id
from spark_jobs.models.training_data import TrainingData
from spark_jobs.transforms.candidates import Scoring, score_block
from tests.builders import make_run, silver_event, utc, write_rows

pytestmark = [pytest.mark.spark]

FIRST, SECOND = date(2024, 3, 8), date(2024, 3, 9)
ITEMS = 14
HIDDEN, NEW = 9, 13
"""One item is hidden between the nights, one comes."""

ALS = default_recipe("als")
ALS["params"].update(factors=4, regularization=1.0)
PARTS = {"als": ALS, "item_knn": default_recipe("item_knn")}
RECIPE = blend_recipe(PARTS, {people: {"als": 0.7, "item_knn": 0.4} for people in ("<5", "5-20", ">20")})

Event = tuple[str, int, str]

BEFORE: list[Event] = [
    # ann and hal had the item that will be hidden: no list of theirs can name it
    ("u:ann", 9, "03-01"), ("u:ann", 0, "03-02"), ("u:ann", 1, "03-02"),
    ("u:hal", 9, "03-01"), ("u:hal", 4, "03-03"), ("u:hal", 5, "03-03"),
    ("u:bob", 0, "03-03"), ("u:bob", 2, "03-03"), ("u:bob", 9, "03-04"),
    ("u:cid", 1, "03-04"), ("u:cid", 0, "03-04"),
    ("u:dan", 4, "03-05"), ("u:dan", 6, "03-05"), ("u:dan", 9, "03-05"),
    ("u:eve", 5, "03-05"), ("u:eve", 7, "03-05"), ("u:eve", 9, "03-05"),
    ("u:fay", 0, "03-06"), ("u:fay", 3, "03-06"), ("u:fay", 9, "03-06"),
    ("u:gus", 2, "03-06"), ("u:gus", 8, "03-06"), ("u:gus", 9, "03-06"),
    ("a:guest", 9, "03-07"), ("a:guest", 10, "03-07"), ("a:guest", 0, "03-07"),
    ("a:other", 11, "03-07"), ("a:other", 12, "03-07"),
]  # fmt: skip
CAME: list[Event] = [
    ("u:dan", NEW, "03-08"),
    ("u:bob", 3, "03-02"),  # late: it belongs to a day long before the first night
]


def write_interactions(environment: Environment, events: list[Event]) -> None:
    rows = []
    for n, (subject, item, when) in enumerate(events):
        moment = utc(f"2024-{when}")
        rows.append(
            {"event_id": f"e{n}", "subject_key": subject, "user_id": subject[2:] if subject[0] == "u" else None,
             "item_id": f"i{item}", "event_type": "purchase", "event_timestamp": moment, "event_date": moment.date(),
             "session_key": f"{subject} {when}"}
        )  # fmt: skip
    write_rows(environment, "silver.interactions", rows, mode="overwrite")


def pinned(environment: Environment, as_of: date, key: str, recipe: dict[str, Any] = RECIPE, **values: Any) -> Run:
    """A run that reads everything as it is now."""
    run = make_run(
        environment, as_of, run_key=key, pins={name: version(environment, name) for name in PINNED_TABLES},
        **{"publishes": False, **values},
    )  # fmt: skip
    write_report(environment, key, GATE_FILE, {"recipe": recipe})
    return run


def first_night(environment: Environment) -> Run:
    write_rows(environment, "bronze.items", [{"item_id": f"i{n}", "category": "A"} for n in range(NEW)])
    write_rows(environment, "bronze.users", [{"user_id": "ann"}])
    numbered = [{"item_id": f"i{n}", "item_number": n, "first_as_of": FIRST} for n in range(NEW)]
    write_rows(environment, "gold.item_ids", numbered)
    write_interactions(environment, BEFORE)
    write_rows(environment, "silver.events", [silver_event(0, said("gus", "03-05", personalize=False))])
    return pinned(environment, FIRST, "first")


def said(user: str, when: str, *, personalize: bool) -> tuple[Any, ...]:
    return (f"c {user} {when}", user, "page_view", f"2024-{when}", None, {"consent_personalize": personalize})


def what_happens_then(environment: Environment) -> None:
    """fay is gone, eve withdraws her consent, gus gives his, an item is hidden, one comes, dan buys it, bob is late."""
    write_interactions(environment, [*(e for e in BEFORE if e[0] != "u:fay"), *CAME])
    words = [said("eve", "03-08", personalize=False), said("gus", "03-08", personalize=True)]
    write_rows(environment, "silver.events", [silver_event(n + 1, row) for n, row in enumerate(words)])
    items = [{"item_id": f"i{n}", "category": "A", "is_hidden": n == HIDDEN} for n in range(ITEMS)]
    write_rows(environment, "bronze.items", items, mode="overwrite")
    write_rows(environment, "gold.item_ids", [{"item_id": f"i{NEW}", "item_number": NEW, "first_as_of": SECOND}])


def lists_of(environment: Environment, as_of: date) -> dict[str, dict[str, Any]]:
    rows = read_table(environment, "gold.candidates", filters=[("as_of", "=", as_of)]).to_pylist()
    assert len({row["user_id"] for row in rows}) == len(rows)
    return {row["user_id"]: row for row in rows}


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def lists_made_here(environment: Environment, run: Run) -> dict[str, list[tuple[int, float]]]:
    """What a process without Spark lists for everybody on the second night, its als begun from the first's vectors."""
    events = [e for e in BEFORE if e[0] != "u:fay"] + CAME
    table = pa.table(
        {
            "subject_key": [subject for subject, _, _ in events],
            "item_number": pa.array([item for _, item, _ in events], pa.int32()),
            "event_type": ["purchase"] * len(events),
            "micros": [to_micros(utc(f"2024-{when}")) for _, _, when in events],
        }
    )
    starts = read_starts(environment, run, item_count=ITEMS).vectors
    assert sorted(starts) == [recipe_id(RECIPE["params"]["parts"]["als"])]
    model, matrix = fit(RECIPE, TrainingData(table, item_count=ITEMS, cut_off=run.cut_off), starts=starts)
    scoring = Scoring(
        model=model, user_ids=matrix.subjects, rows=np.arange(len(matrix.subjects)), histories=matrix.preference,
        seen=matrix.preference, eligible=np.arange(ITEMS) != HIDDEN, as_of=SECOND,
    )  # fmt: skip
    rows = score_block(scoring, 0).to_pylist()
    return {r["user_id"][2:]: list(zip(r["item_numbers"], r["scores"], strict=True)) for r in rows}


def test_only_who_was_touched_is_scored_and_the_others_keep_their_lists(
    spark: SparkSession, environment: Environment
) -> None:
    first_report = job.score_users(spark, environment, first_night(environment))
    assert first_report["rescore"]["why"] == "there are no lists of 2024-03-07"
    first = lists_of(environment, FIRST)
    assert {user for user, row in first.items() if row["scored_as_of"] == FIRST} == set(first)
    assert HIDDEN in first["cid"]["item_numbers"]
    assert first["gus"]["history_digest"] is None

    what_happens_then(environment)
    run = pinned(environment, SECOND, "second", params={"rescore": "touched"})
    report = job.score_users(spark, environment, run)
    second = lists_of(environment, SECOND)
    assert sorted(second) == ["ann", "bob", "cid", "dan", "eve", "gus", "hal"]  # fay is gone
    scored = {user for user, row in second.items() if row["scored_as_of"] == SECOND}
    assert scored == {"bob", "cid", "dan", "gus", "eve"}
    for user in ("ann", "hal"):
        assert without(second[user], "as_of", "made_by") == without(first[user], "as_of", "made_by")
        assert len(second[user]["item_numbers"]) > 3
    assert len({row["made_by"] for row in second.values() if row["made_by"]}) == 1
    assert (second["eve"]["item_numbers"], second["eve"]["allows_personalize"]) == ([], False)
    expected = lists_made_here(environment, run)
    for user in ("bob", "cid", "dan", "gus"):
        listed = list(zip(second[user]["item_numbers"], second[user]["scores"], strict=True))
        assert [n for n, _ in listed] == [n for n, _ in expected[user]]
        assert [s for _, s in listed] == pytest.approx([s for _, s in expected[user]], abs=1e-5)
    als = recipe_id(RECIPE["params"]["parts"]["als"])
    assert read_report(environment, "second", PUBLICATION_FILE) == report
    assert report["rescore"] == {
        "rescore": "touched",
        "why": "what was touched, as asked",
        "users": {
            "scored": 4, "kept": 2, "denied": 1, "touched": {"new": 1, "history": 2, "eligible": 1, "age": 0},
        },
        "items": report["rescore"]["items"],
        "warm_starts": [als],
    }  # fmt: skip
    vectors = read_table(environment, "gold.item_factors").to_pylist()
    assert {(row["recipe"], row["as_of"], row["cold_as_of"]) for row in vectors} == {
        (als, FIRST, FIRST), (als, SECOND, FIRST),
    }  # fmt: skip
    numbers = {day: {row["item_number"] for row in vectors if row["as_of"] == day} for day in (FIRST, SECOND)}
    assert (numbers[FIRST], numbers[SECOND]) == (set(range(NEW)), set(range(ITEMS)))
    # items: touched by an event, by fay's going, or because they were like the hidden one
    near = {
        day: {row["item_number"]: row for row in rows}
        for day in (FIRST, SECOND)
        if (rows := read_table(environment, "gold.item_neighbours", filters=[("as_of", "=", day)]).to_pylist())
    }
    kept = {number for number, row in near[SECOND].items() if row["scored_as_of"] == FIRST}
    assert kept == {11, 12}  # all others are like the hidden one
    for number in kept:
        assert without(near[SECOND][number], "as_of", "made_by") == without(near[FIRST][number], "as_of", "made_by")
    assert report["rescore"]["items"]["kept"] == 2

    # Again, as a run of its own that could see what the first run of the day left: the same all the same.
    hashes = hash_tables(environment)
    again = pinned(environment, SECOND, "again", params={"rescore": "touched"})
    assert again.pins["gold.candidates"] > run.pins["gold.candidates"]
    assert without(job.score_users(spark, environment, again), "why") == without(report, "why")
    assert hash_tables(environment) == hashes


@pytest.mark.soak
@pytest.mark.redis
def test_kept_lists_are_published_and_another_recipe_makes_all_anew(
    spark: SparkSession, environment: Environment, redis_url: str
) -> None:
    shop = environment._replace(redis_online_url=redis_url)
    job.score_users(spark, shop, first_night(shop))
    what_happens_then(shop)
    run = pinned(shop, SECOND, "second", params={"rescore": "touched"}, publishes=True)
    report = job.score_users(spark, shop, run)
    assert (report["user_count"], report["rescore"]["users"]["kept"]) == (7, 2)
    verify_publication.main(shop, run)  # reads every record back, those that were kept among them

    third = date(2024, 3, 10)
    quiet = pinned(shop, third, "quiet", params={"rescore": "touched"})
    asleep = job.score_users(spark, shop, quiet)["rescore"]
    assert (asleep["users"]["scored"], asleep["users"]["kept"]) == (0, 6)
    assert {row["scored_as_of"] for row in lists_of(shop, third).values()} == {FIRST, SECOND, third}  # eve is denied

    cases = {
        "other recipe": ({**RECIPE, "half_life_days": 5.0}, {}, "recipe was blend"),
        "other rules": (RECIPE, {"exclude_seen": "none"}, "rules was exclude_seen interacted"),
        "as asked": (RECIPE, {"rescore": "all"}, "everything, as asked"),
        "small": (RECIPE, {"rescore": "auto"}, "7 people are soon scored"),
    }
    for key, (recipe, params, why) in cases.items():
        other = pinned(shop, third, key, recipe, params={"rescore": "touched", **params})
        done = job.score_users(spark, shop, other)["rescore"]
        assert done["rescore"] == "all"
        assert why in done["why"]
        assert (done["users"]["scored"], done["users"]["kept"], done["warm_starts"]) == (6, 0, [])
    # A day without a pinned day before it, as the first of a backfill is.
    blind = job.score_users(spark, shop, replace(run, pins={**run.pins, "gold.candidates": -1}))
    assert blind["rescore"]["why"] == "there are no lists of 2024-03-08"


@pytest.mark.soak
def test_a_touched_night_made_again_from_its_pins_is_the_same(spark: SparkSession, environment: Environment) -> None:
    """As `nightjar repro` does it: what the run pinned is linked into a tenant of its own."""
    job.score_users(spark, environment, first_night(environment))
    what_happens_then(environment)
    run = pinned(environment, SECOND, "second", params={"rescore": "touched"})
    made = job.score_users(spark, environment, run)["rescore"]
    # Then the first night runs again otherwise, and takes away what the second one read.
    other = pinned(environment, FIRST, "first again", {**RECIPE, "half_life_days": 5.0})
    job.score_users(spark, environment, other)

    copy = environment._replace(tenant="repro-default")
    derived = {name: version(environment, name) for name in ("silver.events", "silver.interactions", "gold.item_ids")}
    for name, number in {**run.pins, **derived}.items():
        if number >= 0:
            _link_table(environment, copy, name, number)
    again = replace(run, run_key="again", tenant=copy.tenant)
    write_report(copy, "again", GATE_FILE, {"recipe": RECIPE})
    assert job.score_users(spark, copy, again)["rescore"] == made
    assert made["users"]["kept"] == 2
    for name in ("gold.candidates", "gold.item_neighbours", "gold.item_factors"):
        assert hash_table(copy, name, SECOND) == hash_table(environment, name, SECOND)
