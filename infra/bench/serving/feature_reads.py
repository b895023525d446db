"""`nightjar bench features`: features read online by our own reader and by Feast's SDK, from one Redis.

Users with made-up features are materialized by the night's own job. Then both read the same people and features, in
turns, each in the way that is quickest for it: the SDK with its store open, ours on its connection. What they answer is
compared every time.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, NightjarError
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from feature_repo.contracts.run import Run
from feature_repo.contracts.tables import table_path
from infra.bench.report import figure, make_report
from infra.local.redis_server import RunningServer
from serving.adapters.feature_store import RedisFeatureStore
from spark_jobs.io.feature_store import open_store
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.jobs import materialize_features

AS_OF = date(2024, 3, 8)
VIEW = FEATURE_VIEWS["user_features"]
LEAST_RATIO = 40.0

Say = Callable[[str], None]


def bench_features(
    home: Path,
    variables: Mapping[str, str],
    *,
    people: int,
    entities: int,
    features: int,
    pairs: int,
    seed: int,
    say: Say,
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report. Raises NightjarError when the two answer differently.

    Figures: `reader_ms` of one read with the SDK's as baseline, and `times_faster`, pair by pair.
    """
    if not (0 < entities <= people and 0 < features <= len(VIEW.features) and pairs > 0):
        raise DataError(
            f"{entities} entities of {people} people, {features} of {len(VIEW.features)} features, {pairs} pairs: "
            "each is at least 1, and no more than there are",
            field="entities",
        )
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    rng = random.Random(seed)  # noqa: S311
    with RunningServer("online", home / "redis-online") as server:
        environment = Environment.from_mapping({**variables, names.HOME: str(home), names.REDIS_ONLINE_URL: server.url})
        say(f"materializing {len(VIEW.features)} features of {people:,} people")
        _write(environment, people, rng)
        run = Run("bench", environment.tenant, AS_OF.isoformat(), {}, None, True, "", "bench", "bench")
        materialize_features.main(environment, run)
        ours, theirs = asyncio.run(_measure(environment, people, entities, features, pairs, rng))
    shutil.rmtree(home, ignore_errors=True)
    faster = [their / our for our, their in zip(ours, theirs, strict=True)]
    say(f"{entities} people x {features} features: {min(ours) * 1000:.2f} ms, the SDK {min(theirs) * 1000:.1f} ms")
    return make_report(
        "bench features",
        {
            "reader_ms": figure("ms", [1000 * s for s in ours], baseline=[1000 * s for s in theirs]),
            "times_faster": figure("x", faster, baseline=[LEAST_RATIO]),
        },
        environment.code_version,
        entities=entities,
        features=features,
        people=people,
        identical=True,
    )


def _write(environment: Environment, people: int, rng: random.Random) -> None:
    """Each feature null for one person in ten where it may be."""
    rows = []
    for number in range(people):
        row: dict[str, Any] = {"user_id": f"u{number}", "as_of": AS_OF}
        row["feature_timestamp"] = datetime(AS_OF.year, AS_OF.month, AS_OF.day, tzinfo=UTC)
        for feature in VIEW.features:
            value: Any = {"bigint": rng.randrange(5_000), "double": rng.random() * 100, "string": f"A > {number % 50}"}
            is_null = feature.null_means is not None and rng.random() < 0.1
            row[feature.name] = None if is_null else value[feature.type]
        rows.append(row)
    for view in FEATURE_VIEWS.values():  # the job materializes all of them; the others are empty
        frame = pa.Table.from_pylist(rows if view is VIEW else [], schema=arrow_schema(view.table))
        write_deltalake(table_path(environment.lakehouse, view.table), frame, partition_by=["as_of"])


async def _measure(
    environment: Environment, people: int, entities: int, features: int, pairs: int, rng: random.Random
) -> tuple[list[float], list[float]]:
    """(our seconds, the SDK's) of each pair; one more pair before them warms both."""
    chosen = [feature.name for feature in VIEW.features[:features]]
    sdk, reader = open_store(environment), RedisFeatureStore(environment.redis_online_url, timeout_seconds=10)
    asked = [f"{VIEW.name}:{name}" for name in chosen]
    ours, theirs = [], []
    for pair in range(pairs + 1):
        users = [f"u{number}" for number in rng.sample(range(people), entities)]
        keys, rows = [(user,) for user in users], [{"user_id": user} for user in users]
        began = time.perf_counter()
        found = await reader.read(VIEW, chosen, keys)
        between = time.perf_counter()
        answer = sdk.get_online_features(features=asked, entity_rows=rows).to_dict()
        ended = time.perf_counter()
        for at, name in enumerate(chosen):
            if found.values[at] != answer[name]:
                raise NightjarError(f"{name} of {users[0]} and others is not what Feast's SDK reads")
        if pair:
            ours.append(between - began)
            theirs.append(ended - between)
    await reader.close()
    return ours, theirs
