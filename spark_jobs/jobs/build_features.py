"""Silver to gold: number the items, and compute the features of users, items, and users by category as known at as_of.

Reads   run.json; silver.events; bronze.items and bronze.users with their changes, as pinned; gold.item_ids
Writes  gold.item_ids (new items appended), the partition of as_of in gold.user_features, gold.item_features and
        gold.user_category_features; features.json

Running it again for the same as_of replaces the same partitions with the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import FEATURES_FILE, Run
from feature_repo.contracts.times import start_of_day
from spark_jobs.engine import is_cluster
from spark_jobs.io.catalogue import in_run, read_items, read_users
from spark_jobs.io.delta import frame_of, overwrite_partitions, read_table, side_by_side
from spark_jobs.io.light_delta import days_by_row_count
from spark_jobs.io.run_store import write_report
from spark_jobs.jobs.entry import run_job
from spark_jobs.jobs.features_in_memory import PastEvents, fits_in_memory, read_past, write_features
from spark_jobs.session import runs_on_cluster, session_beside
from spark_jobs.transforms.candidates import denied_users
from spark_jobs.transforms.computed import computed
from spark_jobs.transforms.feature_facts import feature_facts
from spark_jobs.transforms.identity import identity_edges, resolve_events, under_current_names
from spark_jobs.transforms.item_features import item_features
from spark_jobs.transforms.item_ids import named_before, number_items
from spark_jobs.transforms.user_features import user_category_features, user_features

_EVENT_COLUMNS = ("event_type", "user_id", "anonymous_id", "subject_key", "session_id", "item_id", "event_id",
                  "event_timestamp", "quantity", "price", "value", "channel", "properties", "consent_personalize",
                  "is_bot", "event_date")  # fmt: skip

FEATURE_TABLES = {
    "users": "gold.user_features",
    "items": "gold.item_features",
    "user_categories": "gold.user_category_features",
}
"""What features.json calls the rows of each feature table."""


def main(environment: Environment, run: Run) -> None:
    """The job: one Spark session, one run."""
    on_cluster = runs_on_cluster()
    with session_beside("build_features") as session:
        past = past_of(session, environment, run, on_cluster=on_cluster)
        report = build_features(session(), environment, run, ask_past=lambda: past)
        print(f"{run.run_key}: features of {report['users']:,} users and {report['items']:,} items", flush=True)


def build_features(
    spark: SparkSession,
    environment: Environment,
    run: Run,
    *,
    ask_past: Callable[[], PastEvents | None] | None = None,
) -> dict[str, Any]:
    """Build gold for `run`; returns what it wrote to features.json. Raises DataError when silver has nothing for it.
    `ask_past` gives what `past_of` the run did, where somebody has asked before."""
    as_of, versions = run.as_of_day, in_run(run.pins)
    if ask_past is None:
        past = past_of(lambda: spark, environment, run, on_cluster=is_cluster(spark))
    else:
        past = ask_past()
    number_new = partial(append_item_ids, spark, environment, past, as_of=as_of, versions=versions)
    if past is None:
        new_count = number_new()
        rows = _build_feature_tables(spark, environment, past, as_of, versions)
    else:
        with ThreadPoolExecutor(1) as beside:  # Spark's work, while features are counted from Arrow
            numbering = beside.submit(number_new)
            rows = _build_feature_tables(spark, environment, past, as_of, versions)
            new_count = numbering.result()
    report = {"as_of": run.as_of, "items_new": new_count, **rows}
    write_report(environment, run.run_key, FEATURES_FILE, report)
    return report


def past_of(
    session: Callable[[], SparkSession], environment: Environment, run: Run, *, on_cluster: bool
) -> PastEvents | None:
    """`past_in_memory` of the run. Raises DataError when silver has nothing for it."""
    as_of, versions = run.as_of_day, in_run(run.pins)
    _require_events(environment, as_of, versions)
    return past_in_memory(session, environment, as_of, versions, on_cluster=on_cluster)


def past_in_memory(
    session: Callable[[], SparkSession],
    environment: Environment,
    as_of: date,
    versions: Mapping[str, int] | None,
    *,
    on_cluster: bool,
) -> PastEvents | None:
    """silver.events before `as_of`; None on a cluster, or when they are too many for one process: then Spark counts
    them."""
    version = (versions or {}).get("silver.events")
    if on_cluster or not fits_in_memory(environment, as_of, version):
        return None
    return read_past(session, environment, as_of, version)


def append_item_ids(
    spark: SparkSession,
    environment: Environment,
    past: PastEvents | None,
    *,
    as_of: date,
    versions: Mapping[str, int] | None = None,
) -> int:
    """Number the items known before `as_of` that have no number in gold.item_ids yet; returns how many."""
    known = read_table(spark, environment, "gold.item_ids")
    items = read_items(spark, environment, versions, cut_off=start_of_day(as_of))
    if past is None:
        named = named_before(_events_before(spark, environment, as_of, versions), as_of)
    else:
        named = frame_of(spark, pa.table({"item_id": past.items()}))
    new = computed(number_items(known, items, named, as_of=as_of))  # planned once: it is counted, and written
    new_count = new.count()
    if new_count:
        overwrite_partitions(known.unionByName(new), environment, "gold.item_ids", None)
    return new_count


def build_feature_tables(
    spark: SparkSession, environment: Environment, *, as_of: date, versions: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Replace the partition `as_of` of every feature table; nothing else is written. Twice gives the same rows.

    versions  table -> Delta version of silver.events, bronze.items, bronze.users and the changes of both; one not named
              is read at its newest

    Returns rows written: `users`, `items`, `user_categories`.
    Raises DataError when silver has no event before `as_of`; then nothing is
    written.
    """
    _require_events(environment, as_of, versions)
    past = past_in_memory(lambda: spark, environment, as_of, versions, on_cluster=is_cluster(spark))
    return _build_feature_tables(spark, environment, past, as_of, versions)


def _build_feature_tables(
    spark: SparkSession,
    environment: Environment,
    past: PastEvents | None,
    as_of: date,
    versions: Mapping[str, int] | None,
) -> dict[str, int]:
    if past is not None:
        write_features(spark, environment, past, versions, as_of=as_of)
    else:
        items = read_items(spark, environment, versions, cut_off=start_of_day(as_of))
        users = read_users(spark, environment, versions)
        try:
            _write_by_spark(environment, _events_before(spark, environment, as_of, versions), items, users, as_of)
        finally:
            spark.catalog.clearCache()  # all at once: of each frame that goes alone Spark would plan what is left anew
    return {name: days_by_row_count(environment, table).get(as_of, 0) for name, table in FEATURE_TABLES.items()}


def _write_by_spark(
    environment: Environment, events: DataFrame, items: DataFrame, users: DataFrame, as_of: date
) -> None:
    denied = denied_users(users, events, cut_off=start_of_day(as_of))
    edges = computed(identity_edges(events))  # of the past alone: as_of knows no login that came later
    denied = under_current_names(denied, edges)
    facts = feature_facts(resolve_events(events, edges), items, denied, as_of=as_of).persist()
    made = {
        "gold.user_features": user_features(facts, as_of=as_of),
        "gold.user_category_features": user_category_features(facts, as_of=as_of),
        "gold.item_features": item_features(facts, items, as_of=as_of),
    }
    today = {"as_of": [as_of]}
    side_by_side(*(partial(overwrite_partitions, rows, environment, name, today) for name, rows in made.items()))


def _require_events(environment: Environment, as_of: date, versions: Mapping[str, int] | None) -> None:
    days = days_by_row_count(environment, "silver.events", (versions or {}).get("silver.events"))
    if not any(day < as_of and count for day, count in days.items()):
        raise DataError(f"silver.events has nothing before {as_of}: refine_events has not run for it", field="as_of")


def _events_before(
    spark: SparkSession, environment: Environment, as_of: date, versions: Mapping[str, int] | None
) -> DataFrame:
    silver = _read(spark, environment, "silver.events", versions).select(*_EVENT_COLUMNS)
    return silver.filter(F.col("event_date") < F.lit(as_of))


def _read(spark: SparkSession, environment: Environment, name: str, versions: Mapping[str, int] | None) -> DataFrame:
    return read_table(spark, environment, name, (versions or {}).get(name))


if __name__ == "__main__":
    run_job(main)
