"""`nightjar bench features`: features read online by our own reader and by Feast's SDK, from one Redis.

Users with made-up features are materialized by the night's own job. Then both read the same people and features, in
turns, each in the way that is quickest for it: the SDK with its store open, ours on its connection. Ours reads them
twice: `cold`, when nothing is kept of them, and `kept`, right behind it, from the rows that it keeps until Redis says
that they changed. What is answered is compared every time. The SDK keeps nothing: only `cold` asks Redis as it does.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
KEEP_BYTES = 64 * 1024 * 1024
"""Room for everybody who is asked about, so that a kept read is one."""

Say = Callable[[str], None]


@dataclass
class Times:
    """Seconds of each pair, by the clock and of this process's processor: ours with nothing kept and with all of it,
    and the SDK's."""

    cold: list[tuple[float, float]] = field(default_factory=list)
    kept: list[tuple[float, float]] = field(default_factory=list)
    sdk: list[tuple[float, float]] = field(default_factory=list)


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

    Figures: `cold_ms` and `kept_ms` of one read with the SDK's as baseline, pair by pair how many times as fast as the
    SDK each is (`cold_times_faster`, `kept_times_faster`), and the same in processor time of this process (`_cpu_`),
    which other work on the machine hardly moves; Redis's is not in it. `meets_least_ratio` says of each whether its
    median by the clock does.
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
        times = asyncio.run(_measure(environment, people, entities, features, pairs, rng))
    shutil.rmtree(home, ignore_errors=True)
    figures, meets = {}, {}
    for name, ours in (("cold", times.cold), ("kept", times.kept)):
        for unit, place in (("ms", 0), ("cpu_ms", 1)):
            our, sdk = [1000 * pair[place] for pair in ours], [1000 * pair[place] for pair in times.sdk]
            faster = [their / mine for mine, their in zip(our, sdk, strict=True)]
            figures[f"{name}_{unit}"] = figure("ms", our, baseline=sdk)
            figures[f"{name}_{unit.removesuffix('ms')}times_faster"] = figure("x", faster, baseline=[LEAST_RATIO])
        clock = figures[f"{name}_times_faster"]["median"]
        meets[name] = clock >= LEAST_RATIO
        words = f"{'at least' if meets[name] else 'not'} the {LEAST_RATIO:.0f} times that are asked for"
        read, sdk_ms = figures[f"{name}_ms"]["median"], figures[f"{name}_ms"]["baseline"]
        say(f"{name}: {entities} people x {features} features in {read:.3f} ms, {clock:.1f} times as fast as the SDK "
            f"({sdk_ms:.1f} ms): {words}")  # fmt: skip
    return make_report(
        "bench features",
        figures,
        environment.code_version,
        entities=entities,
        features=features,
        people=people,
        identical=True,
        least_ratio=LEAST_RATIO,
        meets_least_ratio=meets,
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
) -> Times:
    """One more pair before them warms both."""
    chosen = [feature.name for feature in VIEW.features[:features]]
    asked, times = [f"{VIEW.name}:{name}" for name in chosen], Times()
    sdk = open_store(environment)
    reader = RedisFeatureStore(environment.redis_online_url, timeout_seconds=10, keep_bytes=KEEP_BYTES)
    for pair in range(pairs + 1):
        users = [f"u{number}" for number in rng.sample(range(people), entities)]
        keys, rows = [(user,) for user in users], [{"user_id": user} for user in users]
        reader.kept.lose()
        moments = [_now()]
        cold = await reader.read(VIEW, chosen, keys)
        moments.append(_now())
        kept = await reader.read(VIEW, chosen, keys)
        moments.append(_now())
        answer = sdk.get_online_features(features=asked, entity_rows=rows).to_dict()
        moments.append(_now())
        if len(reader.kept) != entities:
            raise NightjarError(f"{len(reader.kept)} of {entities} rows are kept: Redis does not tell of changes")
        for at, name in enumerate(chosen):
            if not cold.values[at] == kept.values[at] == answer[name]:
                raise NightjarError(f"{name} of {users[0]} and others is not what Feast's SDK reads")
        if pair:
            for taken, began, ended in zip((times.cold, times.kept, times.sdk), moments, moments[1:], strict=False):
                taken.append((ended[0] - began[0], ended[1] - began[1]))
    await reader.close()
    return times


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
