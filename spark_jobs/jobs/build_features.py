"""Silver to gold: number the items, and compute user and item features as known at as_of.

Reads   run.json; silver.events; bronze.items and bronze.users at their pinned versions; gold.item_ids
Writes  gold.item_ids (new items appended), gold.user_features and gold.item_features (the partition of as_of);
        features.json

Running it again for the same as_of replaces the same partitions with the same rows.
"""

from __future__ import annotations

from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import FEATURES_FILE, Run
from spark_jobs.io.delta import overwrite_partitions, read_table
from spark_jobs.io.light_delta import days_by_row_count
from spark_jobs.io.run_store import write_report
from spark_jobs.jobs.entry import run_job
from spark_jobs.session import get_session
from spark_jobs.transforms.candidates import denied_users
from spark_jobs.transforms.features import item_features, number_items, user_features

_EVENT_COLUMNS = ("event_type", "user_id", "subject_key", "session_id", "item_id", "event_id", "event_timestamp",
                  "quantity", "price", "value", "consent_personalize", "is_bot", "event_date")  # fmt: skip


def main(environment: Environment, run: Run) -> None:
    """The job: one Spark session, one run."""
    spark = get_session("build_features")
    try:
        report = build_features(spark, environment, run)
        print(f"{run.run_key}: features of {report['users']:,} users and {report['items']:,} items", flush=True)
    finally:
        spark.stop()


def build_features(spark: SparkSession, environment: Environment, run: Run) -> dict[str, Any]:
    """Build gold for `run`; returns what it wrote to features.json. Raises DataError when silver has nothing for it."""
    as_of = run.as_of_day
    silver = read_table(spark, environment, "silver.events").select(*_EVENT_COLUMNS)
    events = silver.filter(F.col("event_date") < F.lit(as_of)).persist()
    items = read_table(spark, environment, "bronze.items", run.pins["bronze.items"])
    users = read_table(spark, environment, "bronze.users", run.pins["bronze.users"])
    if events.isEmpty():
        raise DataError(f"silver.events has nothing before {as_of}: refine_events has not run for it", field="as_of")

    known = read_table(spark, environment, "gold.item_ids")
    new = number_items(known, items, events, as_of=as_of).persist()
    new_count = new.count()
    if new_count:
        overwrite_partitions(known.unionByName(new), environment, "gold.item_ids", None)
    denied = denied_users(users, events, cut_off=run.cut_off)
    of_users = user_features(events, items, denied, as_of=as_of)
    overwrite_partitions(of_users, environment, "gold.user_features", {"as_of": [as_of]})
    of_items = item_features(events, items, as_of=as_of)
    overwrite_partitions(of_items, environment, "gold.item_features", {"as_of": [as_of]})
    for frame in (new, events):
        frame.unpersist()

    report = {
        "as_of": run.as_of,
        "items_new": new_count,
        "users": days_by_row_count(environment, "gold.user_features").get(as_of, 0),
        "items": days_by_row_count(environment, "gold.item_features").get(as_of, 0),
    }
    write_report(environment, run.run_key, FEATURES_FILE, report)
    return report


if __name__ == "__main__":
    run_job(main)
