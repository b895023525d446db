"""score_users on a planted shop: real Spark, Delta and Redis; expected lists worked out by hand or by a slow oracle."""

from __future__ import annotations

import json
from collections import defaultdict
from math import log1p, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import redis
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.keys import candidates_key, purchases_key
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED, unpack_candidates
from feature_repo.contracts.publication import unpack_neighbours
from feature_repo.contracts.purchase_record import unpack_purchases
from feature_repo.contracts.run import GATE_FILE, PUBLICATION_FILE, Run
from feature_repo.contracts.session_index import unpack_session_index
from feature_repo.contracts.times import to_micros
from spark_jobs.evaluation.split import SEEN_POLICIES, seen_policy
from spark_jobs.io import stored_lists
from spark_jobs.io.bundle import check_bundle
from spark_jobs.io.light_delta import read_table
from spark_jobs.io.publication import Publication
from spark_jobs.io.run_store import read_report, write_report
from spark_jobs.io.stored_lists import StoredLists
from spark_jobs.io.table_hash import hash_tables
from spark_jobs.jobs import score_users as job
from spark_jobs.jobs import verify_publication
from spark_jobs.models.factory import fit_recipe
from spark_jobs.models.matrix import LEAST_PREFERENCE, build_matrix, sort_interactions
from spark_jobs.models.recipes import blend_recipe, default_recipe
from spark_jobs.transforms import candidates
from spark_jobs.transforms.candidates import Scoring, score_block
from tests.builders import make_run, silver_event, utc, write_rows

pytestmark = [pytest.mark.spark, pytest.mark.redis]

AS_OF = "2024-03-08"

ITEMS = [
    {"item_id": "i0", "category": "A > B", "title": "zero"},
    {"item_id": "i1", "category": "A"},
    {"item_id": "i2", "category": "A > B"},
    {"item_id": "i3", "category": "C", "availability": "OUT_OF_STOCK"},  # stays: serving knows the stock of the minute
    {"item_id": "i4", "category": "C", "is_hidden": True},
    {"item_id": "i5", "category": "C", "expire_time": utc("2024-03-07")},
    {"item_id": "i6", "category": "C", "created_at": utc("2024-03-08")},
    {"item_id": "i8", "category": "D"},  # nobody touched it
]
NUMBERS = {f"i{n}": n for n in range(9)}  # i7 has a number, and has left the catalogue

EVENTS = [
    # subject, item, type, day
    ("u:ann", "i0", "view_item", "03-01"), ("u:ann", "i0", "view_item", "03-02"), ("u:ann", "i1", "purchase", "03-02"),
    ("u:bob", "i1", "view_item", "03-03"), ("u:bob", "i2", "add_to_cart", "03-03"),
    ("u:bob", "i4", "view_item", "03-03"),
    ("u:cid", "i2", "view_item", "03-04"), ("u:cid", "i3", "purchase", "03-04"), ("u:cid", "i7", "view_item", "03-04"),
    ("u:dan", "i0", "view_item", "03-05"), ("u:dan", "i1", "view_item", "03-05"), ("u:dan", "i2", "view_item", "03-05"),
    ("u:dan", "i3", "view_item", "03-05"),
    ("u:eve", "i1", "view_item", "03-05"), ("u:eve", "i2", "view_item", "03-05"),
    ("u:fay", "i5", "view_item", "03-06"), ("u:fay", "i0", "view_item", "03-06"),
    ("a:guest", "i0", "view_item", "03-07"), ("a:guest", "i3", "view_item", "03-07"),
    ("a:guest", "i2", "view_item", "03-07"),
    ("u:late", "i0", "view_item", "03-08"),  # at the cut-off: not seen by this run
]  # fmt: skip

POPULARITY = {
    "model": "popularity", "weights": {"view_item": 1.0, "add_to_cart": 4.0, "purchase": 8.0}, "half_life_days": None,
    "params": {"subject_cap": 5.0},
}  # fmt: skip
ITEM_KNN = {
    "model": "item_knn", "weights": {"view_item": 1.0, "add_to_cart": 4.0, "purchase": 8.0}, "half_life_days": None,
    "params": {"neighbours": 8, "shrinkage": 2.0, "user_damping": 1.0},
}  # fmt: skip


def build_shop(environment: Environment, recipe: dict[str, Any], **run_values: Any) -> Run:
    """The planted tables, the gate's verdict and the run; returns the run."""
    write_rows(environment, "bronze.items", ITEMS)
    users = [{"user_id": "ann", "region": "DE"}, {"user_id": "eve", "region": "DE", "consent_personalize": False}]
    write_rows(environment, "bronze.users", users)
    day = utc("2024-03-01").date()
    numbered = [{"item_id": i, "item_number": n, "first_as_of": day} for i, n in NUMBERS.items()]
    write_rows(environment, "gold.item_ids", numbered[::-1])
    rows = []
    for n, (subject, item, kind, when) in enumerate(EVENTS):
        moment = utc(f"2024-{when}")
        rows.append(
            {"event_id": f"e{n}", "subject_key": subject, "user_id": subject[2:] if subject[0] == "u" else None,
             "item_id": item, "event_type": kind, "event_timestamp": moment, "event_date": moment.date(),
             "session_key": f"{subject} {when}"}
        )  # fmt: skip
    write_rows(environment, "silver.interactions", rows)
    said = [
        ("c1", "fay", "page_view", "2024-03-01", None, {"consent_personalize": False}),
        ("c2", "fay", "page_view", "2024-03-02", None, {"consent_personalize": True}),  # the newest word of fay
        ("c3", "fay", "page_view", "2024-03-08", None, {"consent_personalize": False}),  # not yet said at the cut-off
        ("c4", "gus", "page_view", "2024-03-01", None, {"consent_personalize": False}),  # said no, and did nothing else
    ]
    write_rows(environment, "silver.events", [silver_event(n, row) for n, row in enumerate(said)])
    run = make_run(environment, AS_OF, pins={"bronze.items": 0, "bronze.users": 0}, **run_values)
    write_report(environment, run.run_key, GATE_FILE, {"recipe": recipe})
    # imported after the run was pinned: none of its business
    write_rows(environment, "bronze.items", [{"item_id": "i7", "category": "C"}])
    write_rows(environment, "bronze.users", [{"user_id": "ann", "consent_personalize": False}])
    return run


@pytest.fixture
def shop(environment: Environment, redis_url: str) -> Environment:
    return environment._replace(redis_online_url=redis_url)


def lists_of(environment: Environment) -> dict[str, dict[str, Any]]:
    rows = read_table(environment, "gold.candidates").to_pylist()
    assert len({row["user_id"] for row in rows}) == len(rows)
    return {row["user_id"]: row for row in rows}


def redis_image(url: str) -> dict[bytes, bytes]:
    """Every candidate record in Redis."""
    with redis.Redis.from_url(url) as client:
        return {key: client.get(key) for key in client.keys("*:cand:*")}


def test_popular_lists_by_hand(spark: SparkSession, shop: Environment) -> None:
    run = build_shop(shop, POPULARITY)
    job.score_users(spark, shop, run)
    rows = lists_of(shop)
    # capped sums, guest included: i0 2+1+1+1 = 5, i1 5+1+1+1 = 8, i2 4+1+1+1+1 = 8, i3 5+1+1 = 7; i4, i5, i6, i7 may
    # not be shown, i8 has no score
    assert {user: row["item_numbers"] for user, row in rows.items()} == {
        "ann": [2, 3],
        "bob": [3, 0],
        "cid": [1, 0],
        "dan": [],
        "fay": [1, 2, 3],  # a tie: the lower number first
        "eve": [],
        "gus": [],
    }
    assert rows["fay"]["scores"] == [8.0, 8.0, 7.0]
    assert [user for user, row in sorted(rows.items()) if not row["allows_personalize"]] == ["eve", "gus"]


def knn_oracle(user: str) -> list[tuple[int, float, int | None, int | None]]:
    """Item-kNN with dictionaries and loops: (item, score, first reason, second reason) of one user, best first."""
    weights = ITEM_KNN["weights"]
    raw: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for subject, item, kind, when in EVENTS:
        if when < "03-08":
            raw[subject][NUMBERS[item]] += weights[kind]
    vectors: dict[int, dict[str, float]] = defaultdict(dict)
    for subject, history in raw.items():
        for item, preference in history.items():
            vectors[item][subject] = log1p(max(preference, LEAST_PREFERENCE)) / sqrt(len(history))
    norm = {item: sqrt(sum(x * x for x in vector.values())) for item, vector in vectors.items()}

    def similarity(a: int, b: int) -> float:
        return sum(vectors[a][s] * vectors[b].get(s, 0.0) for s in vectors[a]) / (norm[a] * norm[b] + 2.0)

    answers = []
    own = raw[f"u:{user}"]
    for item in (0, 1, 2, 3):
        if item in own:
            continue
        terms = {past: log1p(p) * similarity(item, past) for past, p in own.items()}
        speakers = [past for past in sorted(terms, key=lambda p: (-terms[p], p)) if terms[past] > 0]
        if sum(terms.values()) > 0:
            answers.append((item, sum(terms.values()), *[*speakers, None, None][:2]))
    return sorted(answers, key=lambda a: (-a[1], a[0]))


def test_item_knn_lists_and_reasons_agree_with_the_oracle(spark: SparkSession, shop: Environment) -> None:
    run = build_shop(shop, ITEM_KNN)
    report = job.score_users(spark, shop, run)
    rows = lists_of(shop)
    served = redis_image(shop.redis_online_url)
    compared = 0
    for user in ("ann", "bob", "cid", "dan", "fay"):
        expected = knn_oracle(user)
        row = rows[user]
        assert row["item_numbers"] == [e[0] for e in expected]
        assert row["scores"] == pytest.approx([e[1] for e in expected], rel=1e-5)
        assert row["first_reasons"] == [e[2] for e in expected]
        assert row["second_reasons"] == [e[3] for e in expected]
        packed, flags = unpack_candidates(
            served[candidates_key(report["version"], user).encode()], expected_version=report["version"]
        )
        assert [tuple(p) for p in packed] == [
            (n, s, 2, a, b)
            for n, s, a, b in zip(
                row["item_numbers"], row["scores"], row["first_reasons"], row["second_reasons"], strict=True
            )
        ]
        assert flags == 0
        compared += len(expected)
    assert compared >= 8
    assert unpack_candidates(served[candidates_key(report["version"], "eve").encode()]) == ([], FLAG_PERSONALIZE_DENIED)
    assert len(served) == 7


def test_a_blend_in_spark_gives_the_lists_of_this_process(spark: SparkSession, shop: Environment) -> None:
    """Sources and reasons too; parts that read the order of a history among them."""
    parts = {
        name: {**default_recipe(name), "weights": ITEM_KNN["weights"]} for name in ("ease", "sequential_rules", "als")
    }
    parts |= {"item_knn": ITEM_KNN, "popularity": POPULARITY}
    parts["als"]["params"].update(factors=4, regularization=1.0)
    by_part = {"ease": 0.5, "item_knn": 0.3, "sequential_rules": 0.8, "als": 0.4, "popularity": 0.001}
    weights = {"<5": by_part, "5-20": {"ease": 1.0, "popularity": 0.5}, ">20": {"als": 1.0}}
    recipe = blend_recipe(parts, weights)
    run = build_shop(shop, recipe)
    report = job.score_users(spark, shop, run)
    verify_publication.main(shop, run)
    assert Publication(shop.redis_online_url).manifest(report["version"]).model == "blend"

    numbers = pa.table({"item_id": list(NUMBERS), "item_number": pa.array(NUMBERS.values(), pa.int32())})
    events = read_table(shop, "silver.interactions").filter(pc.less(pc.field("event_timestamp"), utc(AS_OF)))
    joined = events.join(numbers, "item_id")
    micros = pc.cast(pc.cast(joined["event_timestamp"], pa.timestamp("us", "UTC")), pa.int64())
    table = joined.select(["subject_key", "item_number", "event_type"]).append_column("micros", micros)
    model, matrix = fit_recipe(recipe, sort_interactions(table), item_count=9, cut_off=utc(AS_OF))
    rows = np.flatnonzero(np.isin(matrix.subjects, ["u:ann", "u:bob", "u:cid", "u:dan", "u:fay"]))
    eligible = np.isin(np.arange(9), [0, 1, 2, 3, 8])
    scoring = Scoring(
        model=model, user_ids=np.array([s[2:] for s in matrix.subjects[rows]]), rows=rows,
        histories=matrix.preference, seen=matrix.preference, eligible=eligible, as_of=run.as_of_day,
    )  # fmt: skip
    expected = {row["user_id"]: row for row in score_block(scoring, 0).to_pylist()}
    found = lists_of(shop)
    assert len(expected) == 5
    told = ("item_numbers", "scores", "sources", "first_reasons", "second_reasons", "allows_personalize", "as_of")
    assert {(user, name): found[user][name] for user in expected for name in told} == {
        (user, name): row[name] for user, row in expected.items() for name in told
    }
    assert {source for row in expected.values() for source in row["sources"]} >= {2, 4}
    assert sum(first is not None for row in expected.values() for first in row["first_reasons"]) >= 6


def test_threads_give_the_lists_of_executors_and_start_no_session(
    spark: SparkSession, shop: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {part: {"item_knn": 1.0, "popularity": 0.1} for part in ("<5", "5-20", ">20")}
    run = build_shop(shop, blend_recipe({"item_knn": ITEM_KNN, "popularity": POPULARITY}, weights))
    by_executors = job.score_users(spark, shop, run)
    image, hashes = redis_image(shop.redis_online_url), hash_tables(shop)
    with redis.Redis.from_url(shop.redis_online_url) as client:
        client.flushall()

    def refuse(_: str) -> SparkSession:
        raise AssertionError("a session was asked for")

    monkeypatch.setattr(job, "get_session", refuse)
    monkeypatch.setattr(candidates, "MOST_USERS_PER_BLOCK", 2)  # of five users: three blocks
    by_threads = job.score_users(None, shop, run)
    assert by_threads["version"] == by_executors["version"]
    assert redis_image(shop.redis_online_url) == image
    assert hash_tables(shop) == hashes
    assert len(image) == 7


def test_what_a_publication_leaves_behind(
    spark: SparkSession, shop: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_shop(shop, POPULARITY)
    report = job.score_users(spark, shop, run)
    assert read_report(shop, run.run_key, PUBLICATION_FILE) == report
    publication = Publication(shop.redis_online_url)
    assert publication.served_version() is None  # published, not served
    manifest = publication.manifest(report["version"])
    verify_publication.main(shop, run)
    assert publication.list_versions()[0].verified_at is not None
    assert (manifest.user_count, manifest.item_count, manifest.model) == (7, 8, "popularity")
    monkeypatch.setattr(stored_lists, "LISTS_AT_ONCE", 3)  # of seven lists: three pieces
    digested = StoredLists(shop, run.as_of_day).digest()
    assert (digested.user_count, digested.checksum) == (7, manifest.candidates_checksum)
    assert digested.row_count == sum(len(r["item_numbers"]) for r in read_table(shop, "gold.candidates").to_pylist())
    assert manifest.last_event_at == "2024-03-07T00:00:00Z"
    assert (manifest.recipe["exclude_seen"], manifest.volatile["run_key"]) == ("interacted", run.run_key)
    folder = Path(report["bundle"])
    assert check_bundle(folder, manifest) == []
    items = json.loads((folder / "items.json").read_bytes())
    assert items["item_id"] == ["i0", "i1", "i2", "i3", "i4", "i5", "i6", "i8"]
    assert items["item_number"] == [0, 1, 2, 3, 4, 5, 6, 8]
    popular = json.loads((folder / "popular.json").read_bytes())
    assert [n for n, _ in popular["static"]] == [*(n for n, _ in popular["all"]), 8]
    assert sorted(n for n, _ in popular["all"]) == [0, 1, 2, 3]
    assert sorted(popular["by_category"]) == ["A", "A > B", "C"]
    assert popular["by_region"] == {}
    offsets, numbers, similarities = unpack_neighbours((folder / "neighbours.bin").read_bytes())
    assert len(offsets) == 10
    assert set(numbers) == {0, 1, 2, 3}
    rows = {r["item_number"]: r for r in read_table(shop, "gold.item_neighbours").to_pylist()}
    assert sorted(rows) == [0, 1, 2, 3, 4, 5, 7]
    for number, row in rows.items():
        part = slice(offsets[number], offsets[number + 1])
        assert row["neighbour_numbers"] == numbers[part].tolist()
        assert row["similarities"] == similarities[part].tolist()
    index = unpack_session_index((folder / "session_index.bin").read_bytes())
    assert report["session_model"]["manner"] == "stream"  # too few sessions to ask
    assert index.recipe["sessions"] == 8  # ann's two days are two; what came at the cut-off is none
    following = {n: index.numbers[index.offsets[n] : index.offsets[n + 1]].tolist() for n in range(9)}
    # Each session's items are at one moment. Together with i0: i1 (ann, dan), i2, i3 (dan, guest); i5 is expired, i4
    # hidden; i7 has left the catalogue and still says what it was seen with (i2, i3), and what those lead to.
    assert (set(following[0]), set(following[7]), following[6], following[8]) == ({0, 1, 2, 3}, {0, 1, 2, 3}, [], [])
    table = {r["item_number"]: r for r in read_table(shop, "gold.session_index").to_pylist()}
    assert {number: row["next_numbers"] for number, row in table.items()} == {n: f for n, f in following.items() if f}
    assert table[0]["weights"] == index.weights[index.offsets[0] : index.offsets[1]].tolist()
    # ann bought i1 and cid i3, once each; nobody denies it, and no session bought two things
    part = manifest.parts["purchases"]
    assert (part["user_count"], part["params"]["due_power"], report["buyer_count"]) == (2, 0.5, 2)
    with redis.Redis.from_url(shop.redis_online_url) as client:
        records = {user: client.get(purchases_key(report["version"], user)) for user in ("ann", "cid", "bob")}
    assert records["bob"] is None
    assert [row[:3] for row in unpack_purchases(records["ann"])] == [(1, 1, to_micros(utc("2024-03-02")) // 1_000_000)]
    assert [row.item_number for row in unpack_purchases(records["cid"])] == [3]
    assert list(unpack_neighbours((folder / "together.bin").read_bytes())[1]) == []


def test_run_again_after_a_kill_gives_the_same_version_and_bytes(
    spark: SparkSession, shop: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_shop(shop, ITEM_KNN)
    first = job.score_users(spark, shop, run)
    image, rows = redis_image(shop.redis_online_url), lists_of(shop)
    hashes = hash_tables(shop)
    with redis.Redis.from_url(shop.redis_online_url) as client:
        client.flushall()

    def publish_and_die(self: Publication, manifest: Any) -> str:
        version = announce(self, manifest)
        users = read_table(shop, "gold.candidates")["user_id"].to_pylist()
        self.put_records(version, [(user, image[candidates_key(version, user).encode()]) for user in users[:2]])
        raise KeyboardInterrupt

    announce = Publication.announce
    monkeypatch.setattr(Publication, "announce", publish_and_die)
    with pytest.raises(KeyboardInterrupt):
        job.score_users(spark, shop, run)
    assert len(redis_image(shop.redis_online_url)) == 2
    monkeypatch.undo()

    again = job.score_users(spark, shop, run)
    assert again["version"] == first["version"]
    assert redis_image(shop.redis_online_url) == image
    assert lists_of(shop) == rows
    assert len(rows) == 7
    assert hash_tables(shop) == hashes


def test_a_backfill_writes_its_tables_and_publishes_nothing(spark: SparkSession, environment: Environment) -> None:
    """Redis is not even needed: the environment points at nothing that listens."""
    run = build_shop(environment, POPULARITY, publishes=False, why="2024-03-09 is served")
    report = job.score_users(spark, environment, run)
    assert {name: value for name, value in report.items() if name != "rescore"} == {
        "published": False, "version": None, "why": "2024-03-09 is served",
    }  # fmt: skip
    assert len(lists_of(environment)) == 7
    assert not Path(environment.publications).exists()


def test_redis_down_is_told_before_any_work(spark: SparkSession, environment: Environment) -> None:
    run = build_shop(environment, POPULARITY)
    with pytest.raises(DependencyError, match="nightjar up"):
        job.score_users(spark, environment, run)
    assert read_table(environment, "gold.candidates").num_rows == 0


def test_redis_lost_while_rows_are_written_is_one_message(
    spark: SparkSession, shop: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_shop(shop, POPULARITY)

    def full(self: StoredLists, publication: Publication, version: str) -> int:
        with redis.Redis.from_url(shop.redis_online_url) as client:
            client.config_set("maxmemory", "1")
        return put(self, publication, version)

    put = StoredLists.put
    monkeypatch.setattr(StoredLists, "put", full)
    try:
        with pytest.raises(DependencyError, match=r"in part only, and nothing serves it: Redis .* refused"):
            job.score_users(spark, shop, run)
    finally:
        with redis.Redis.from_url(shop.redis_online_url) as client:
            client.config_set("maxmemory", "0")
    assert Publication(shop.redis_online_url).list_versions()[0].verified_at is None


def test_seen_policies() -> None:
    """The subjects who bought are fewer than the subjects, so rows must be matched by name, not by place."""
    table = pa.table(
        {
            "subject_key": ["a:x", "u:a", "u:b", "u:b", "u:b", "u:late"],
            "item_number": pa.array([0, 1, 0, 2, 3, 1], pa.int32()),
            "event_type": ["view_item", "view_item", "purchase", "view_item", "purchase", "purchase"],
            "micros": [to_micros(utc("2024-03-01"))] * 5 + [to_micros(utc("2024-03-08"))],
        }
    )
    interactions, cut_off = sort_interactions(table), utc(AS_OF)
    weights = POPULARITY["weights"]
    matrix = build_matrix(interactions, item_count=4, weights=weights, half_life_days=None, cut_off=cut_off)
    assert matrix.subjects.tolist() == ["a:x", "u:a", "u:b"]
    seen = {p: job.seen_items(matrix, interactions, p, cut_off).astype(bool).toarray() for p in SEEN_POLICIES}
    assert seen["interacted"].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1]]
    assert seen["purchased"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    assert seen["none"].shape == (3, 4)
    assert not seen["none"].any()


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'purchased'"):
        seen_policy({"exclude_seen": "purchase"})
    assert seen_policy({}) == seen_policy({"exclude_seen": None}) == "interacted"


def test_a_gate_that_lets_nothing_through_is_bad_data(spark: SparkSession, environment: Environment) -> None:
    run = make_run(environment, AS_OF, pins={"bronze.items": -1, "bronze.users": -1})
    write_report(environment, run.run_key, GATE_FILE, {"verdict": "refused", "recipe": None})
    with pytest.raises(DataError, match="lets no recipe through"):
        job.score_users(spark, environment, run)


def test_nobody_to_score_is_bad_data(spark: SparkSession, environment: Environment) -> None:
    run = make_run(environment, AS_OF, pins={"bronze.items": -1, "bronze.users": -1}, publishes=False)
    write_report(environment, run.run_key, GATE_FILE, {"recipe": POPULARITY})
    with pytest.raises(DataError, match="nobody to score"):
        job.score_users(spark, environment, run)
