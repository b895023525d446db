"""`nightjar bench publication`: from fitted vectors to lists that can be served, our way and the usual one, in turns.

Both begin with vectors of ALS in memory (64 factors, the same data, fitted before the clock starts), in a warm Spark
session, and end when every user's best 100 items lie in Redis.

    ours     score by blocks, take out what a person had, top 100, gold.candidates; digest, announce, pack, put
    theirs   MLlib's `recommendForAllUsers(100)` into a Delta table, then `feast materialize` of it. What a person had
             stays in: taking it out would cost them more

Each run has a process of its own. Our lists are held to brute force for a sample of users. The publication alone (pack
and put, of lists that lie there) is timed too, with the processor time of Redis.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment, feast_connection
from infra.bench.nights.spark_side import ask_side, spark_variables, tell
from infra.bench.report import figure, make_report
from infra.bench.small_installation import cpu_seconds
from infra.local.redis_server import RunningServer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_jobs.transforms.candidates import Scoring

SIDES = ("ours", "theirs")
LEAST_WALL, LEAST_ROWS = 5.0, 230_000.0
LIST_LENGTH = 100
SAMPLED = 300
TOLERANCE = 1e-5
"""Two scores that differ by less, of a largest of about 1, may stand in either order: sums of 64 products differ by
that much between one way of adding and another."""
AS_OF = date(2024, 3, 8)

Say = Callable[[str], None]


class Published(NamedTuple):
    """One run. `put_seconds`, `put_cpu_seconds` (with Redis): of packing and putting alone; 0 for theirs."""

    seconds: float
    rows: int
    put_seconds: float = 0.0
    put_cpu_seconds: float = 0.0
    sampled: int = 0
    identical: int = 0
    wrong: int = 0


def bench_publication(home: Path, variables: Mapping[str, str], *, train: Path, pairs: int, say: Say) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report. `train`: lines `user item item ...`.

    Figures: `publication_seconds` with theirs as baseline, `times_less_wall` and `rows_per_second_per_core` (baselines:
    the bars). Further keys: sampled, identical and wrong lists. Raises NightjarError when a side fails.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    child = spark_variables(home, variables)
    found: dict[str, list[Published]] = {side: [] for side in SIDES}
    for pair in range(pairs):
        for side in SIDES[:: 1 if pair % 2 == 0 else -1]:
            one = _publish_in_a_process(side, home / f"{side}-{pair}", train, child)
            found[side].append(one)
            say(f"pair {pair + 1}, {side}: {one.seconds:.1f} s for {one.rows:,} rows")
    code_version = Environment.from_mapping(child).code_version
    shutil.rmtree(home, ignore_errors=True)
    return report_of(found["ours"], found["theirs"], code_version)


def report_of(ours: list[Published], theirs: list[Published], code_version: str) -> dict[str, Any]:
    """The report over pairs of runs."""
    pairs = list(zip(ours, theirs, strict=True))
    return make_report(
        "bench publication",
        {
            "publication_seconds": figure("s", [one.seconds for one in ours], baseline=[one.seconds for one in theirs]),
            "times_less_wall": figure("x", [b.seconds / a.seconds for a, b in pairs], baseline=[LEAST_WALL]),
            "rows_per_second_per_core": figure(
                "1/s", [one.rows / one.put_cpu_seconds for one in ours], baseline=[LEAST_ROWS]
            ),
        },
        code_version,
        rows=ours[0].rows,
        sampled=sum(one.sampled for one in ours),
        identical=sum(one.identical for one in ours),
        wrong=sum(one.wrong for one in ours),
    )


def _publish_in_a_process(side: str, home: Path, train: Path, variables: Mapping[str, str]) -> Published:
    home.mkdir(parents=True)
    with RunningServer("online", home / "redis-online") as server:
        here = {**variables, names.HOME: str(home), names.REDIS_ONLINE_URL: server.url}
        words = [side, str(train), str(server.process.pid)]
        return Published(**ask_side("infra.bench.nights.publishing", words, here))


# --- one side, in its own process --------------------------------------------------------------------------------


def publish_ours(spark: SparkSession, environment: Environment, train: Path, redis_pid: int) -> Published:
    """The night's own functions, with lists as long and without reasons, as theirs have none."""
    import numpy as np

    from feature_repo.contracts.publication import BUNDLE_FILES
    from infra.bench.quality import tasks
    from spark_jobs.jobs.score_users import publish, write_candidates
    from spark_jobs.models.als import Als
    from spark_jobs.models.recipes import default_recipe
    from spark_jobs.transforms.candidates import Scoring

    training = tasks.open_training("pairs", train=train, test=train).training
    recipe = {**default_recipe("als"), "weights": {tasks.ONLY_TYPE: 1.0}, "half_life_days": None}
    matrix = training.matrix(recipe)
    model = Als({**recipe["params"], "iterations": 2})
    model.fit(matrix)
    users = np.array([subject[2:] for subject in matrix.subjects.tolist()], dtype=np.str_)
    scoring = Scoring(
        model=model, user_ids=users, rows=np.arange(len(users)), histories=matrix.preference, seen=matrix.preference,
        eligible=np.ones(matrix.item_count, bool), as_of=AS_OF, per_user=LIST_LENGTH, explained=0,
    )  # fmt: skip
    _warm(spark, environment)
    began = time.perf_counter()
    run = _run(environment)
    write_candidates(spark, environment, run, scoring, [])
    made = publish(
        environment, run, dict.fromkeys(BUNDLE_FILES, b""), [],
        recipe={"model": "als"}, item_count=matrix.item_count, last_event_at="2024-03-07T23:59:59Z",
    )  # fmt: skip
    seconds = time.perf_counter() - began
    put_seconds, put_cpu = _put_again(environment, made["version"], redis_pid)
    sampled = np.linspace(0, len(users) - 1, min(SAMPLED, len(users))).astype(np.int64)
    identical, wrong = hold_to_brute_force(scoring, sampled)
    return Published(seconds, made["row_count"], put_seconds, put_cpu, len(sampled), identical, wrong)


def publish_theirs(spark: SparkSession, environment: Environment, train: Path, _: int) -> Published:
    """MLlib and Feast, as their guides have it."""
    import pyarrow as pa
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.data_format import DeltaFormat
    from feast.types import Array, Float32, Int32
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import functions as F  # noqa: N812

    from infra.bench.quality import tasks

    training = tasks.open_training("pairs", train=train, test=train).training
    recipe = {"weights": {tasks.ONLY_TYPE: 1.0}, "half_life_days": None}
    pairs = training.matrix(recipe).preference.tocoo()
    rows, items = pa.array(pairs.row, pa.int32()), pa.array(pairs.col, pa.int32())
    ratings = pa.table({"row": rows, "item": items, "rating": pairs.data})
    estimator = ALS(userCol="row", itemCol="item", ratingCol="rating", implicitPrefs=True, rank=64, maxIter=1, seed=7)
    model = estimator.fit(spark.createDataFrame(ratings))
    model.userFactors.persist().count()
    model.itemFactors.persist().count()
    table = f"{environment.lakehouse}/recommendations"
    source = FileSource(path=table, timestamp_field="made_at", file_format=DeltaFormat())
    user = Entity(name="user", join_keys=["user_id"])
    view = FeatureView(
        name="recommendations", entities=[user], ttl=timedelta(days=3), source=source,
        schema=[Field(name="items", dtype=Array(Int32)), Field(name="scores", dtype=Array(Float32))],
    )  # fmt: skip
    config = RepoConfig(
        project="bench", provider="local", registry=f"{environment.home}/registry.db",
        entity_key_serialization_version=3,
        offline_store={"type": "feature_repo.delta_offline_store.DeltaOfflineStore"},
        online_store={"type": "redis", "connection_string": feast_connection(environment.redis_online_url)},
    )  # fmt: skip
    _warm(spark, environment)
    made_at = datetime(AS_OF.year, AS_OF.month, AS_OF.day, tzinfo=UTC)
    began = time.perf_counter()
    found = model.recommendForAllUsers(LIST_LENGTH).select(
        F.col("row").cast("string").alias("user_id"),
        F.col("recommendations.item").alias("items"),
        F.col("recommendations.rating").alias("scores"),
        F.lit(made_at).alias("made_at"),
    )
    found.write.format("delta").save(table)
    store = FeatureStore(config=config)
    store.apply([user, view])
    store.materialize(made_at - timedelta(seconds=1), made_at)
    seconds = time.perf_counter() - began
    return Published(seconds, LIST_LENGTH * spark.read.format("delta").load(table).count())


def hold_to_brute_force(scoring: Scoring, places: Any) -> tuple[int, int]:
    """(lists that are the very ones of brute force, lists that are wrong beyond TOLERANCE) of users at these places.

    Brute force: all scores of one user in double precision, what they had taken out, sorted by score and number.
    """
    import numpy as np

    from spark_jobs.transforms.candidates import score_block

    model: Any = scoring.model
    items = model.item_factors.astype(np.float64)
    identical = wrong = 0
    blocks: dict[int, Any] = {}
    for place in places.tolist():
        block, at = divmod(place, scoring.users_per_block)
        if block not in blocks:
            blocks = {block: score_block(scoring, block)}
        listed = np.array(blocks[block]["item_numbers"][at].as_py(), dtype=np.int64)
        scores = items @ model.fold_in(scoring.histories[[int(scoring.rows[place])]])[0].astype(np.float64)
        scores[scoring.seen[int(scoring.rows[place])].indices] = -np.inf
        best = np.lexsort((np.arange(len(scores)), -scores))[:LIST_LENGTH]
        same = len(listed) == len(best) and bool((listed == best).all())
        identical += same
        if not same:
            close = len(listed) == len(best) and len(set(listed.tolist())) == len(best)
            wrong += not (close and bool(np.abs(scores[listed] - scores[best]).max() < TOLERANCE))
    return identical, wrong


def _warm(spark: SparkSession, environment: Environment) -> None:
    """Python workers, and Delta's writers and readers, twice before the clock starts."""
    table = f"{environment.lakehouse}/warm"
    for _ in range(2):
        spark.range(20_000).write.format("delta").mode("overwrite").save(table)
        spark.read.format("delta").load(table).mapInArrow(lambda batches: batches, "id bigint").count()


def _put_again(environment: Environment, version: str, redis_pid: int) -> tuple[float, float]:
    """(wall, processor seconds with Redis) of packing and putting the lists once more, in this process alone."""
    from spark_jobs.io.light_delta import read_table
    from spark_jobs.io.publication import Publication
    from spark_jobs.transforms.candidates import CANDIDATES_SCHEMA, pack_batch

    rows = read_table(environment, "gold.candidates").select(CANDIDATES_SCHEMA.names).cast(CANDIDATES_SCHEMA)
    publication = Publication(environment.redis_online_url, environment.tenant)
    processes = [psutil.Process(), psutil.Process(redis_pid)]
    cpu, began = cpu_seconds(processes), time.perf_counter()
    for batch in rows.to_batches(max_chunksize=2_000):
        publication.put_records(version, pack_batch(version, batch))
    return time.perf_counter() - began, cpu_seconds(processes) - cpu


def _run(environment: Environment) -> Any:
    from feature_repo.contracts.run import Run

    return Run("bench", environment.tenant, AS_OF.isoformat(), {}, None, True, "", "bench", "bench")


def main() -> None:
    """`python -m infra.bench.nights.publishing SIDE TRAIN REDIS_PID`: one run, told on the last line."""
    import os

    from spark_jobs.session import get_session

    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("train", type=Path)
    parser.add_argument("redis_pid", type=int)
    given = parser.parse_args()
    spark = get_session("bench-publication")
    publish = publish_ours if given.side == "ours" else publish_theirs
    found = publish(spark, Environment.from_mapping(os.environ), given.train, given.redis_pid)
    tell(found._asdict())
    spark.stop()


if __name__ == "__main__":
    main()
