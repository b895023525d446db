"""Compute the features of every as_of day in [from, to) anew. Publishes nothing.

Reads    silver.events, bronze.items, bronze.users and the changes of both at the versions that the first try pins
Writes   rederive.json in the run folder (the pins first, the rows of each day at the end); the partitions of those days
         in the feature tables of gold. Neither Redis nor Feast is touched.

A retry reads the same versions and writes the same rows. Raises DataError before anything is written when the days are
no interval or silver does not reach that far.
"""

from __future__ import annotations

import argparse
from datetime import date, timedelta
from typing import Any

from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import REDERIVE_FILE
from feature_repo.contracts.times import parse_as_of
from spark_jobs.io.catalogue import in_run
from spark_jobs.io.commits import take_back_torn
from spark_jobs.io.light_delta import days_by_row_count, version
from spark_jobs.io.refine_state import read_state
from spark_jobs.io.run_store import has_report, read_report, write_report
from spark_jobs.jobs.build_features import build_feature_tables
from spark_jobs.jobs.entry import run_command
from spark_jobs.session import get_session

READ_TABLES = ("silver.events", "bronze.items", "bronze.users", "bronze.item_changes", "bronze.user_changes")
_ONE_DAY = timedelta(days=1)


def main(environment: Environment, arguments: argparse.Namespace) -> None:
    """The job: one Spark session for all days."""
    days = days_between(parse_as_of(arguments.first), parse_as_of(arguments.end))
    take_back_torn(environment)
    check_days(environment, days)
    spark = get_session("rederive_features")
    try:
        rederive_features(spark, environment, arguments.run_key, days)
    finally:
        spark.stop()


def rederive_features(
    spark: SparkSession, environment: Environment, run_key: str, days: list[date]
) -> dict[str, dict[str, int]]:
    """Build the feature tables of `days`; day (ISO) -> rows written per table."""
    if not has_report(environment, run_key, REDERIVE_FILE):
        pins = {name: version(environment, name) for name in READ_TABLES}
        write_report(environment, run_key, REDERIVE_FILE, {"pins": pins})
    report: dict[str, Any] = read_report(environment, run_key, REDERIVE_FILE)
    rows: dict[str, dict[str, int]] = {}
    for day in days:
        rows[day.isoformat()] = build_feature_tables(spark, environment, as_of=day, versions=in_run(report["pins"]))
        print(f"{day}: {', '.join(f'{n:,} {name}' for name, n in rows[day.isoformat()].items())}", flush=True)
    write_report(environment, run_key, REDERIVE_FILE, {**report, "days": rows})
    return rows


def days_between(first: date, end: date) -> list[date]:
    """Every day of [first, end). Raises DataError when there is none."""
    if first >= end:
        raise DataError(
            f"from {first} to {end} holds no day: `to` is not computed itself, give a later one", field="to"
        )
    return [first + n * _ONE_DAY for n in range((end - first).days)]


def check_days(environment: Environment, days: list[date]) -> None:
    """Raises DataError when silver was not derived up to the last of these days, or has nothing before the first."""
    state = read_state(environment)
    if state is None:
        raise DataError("silver was never derived: `nightjar run nightly` comes first", field="to")
    if days[-1] > state.as_of_day:
        raise DataError(
            f"silver stands as of {state.as_of}, so {days[-1]} cannot be computed: give a `to` until "
            f"{state.as_of_day + _ONE_DAY}, or run the night for that day first",
            field="to",
        )
    earliest = min(
        (day for day, count in days_by_row_count(environment, "silver.events").items() if count), default=None
    )
    if earliest is None or earliest >= days[0]:
        raise DataError(
            f"silver has no event before {days[0]}"
            + (f": the first is of {earliest}, so give a `from` of {earliest + _ONE_DAY} or later" if earliest else ""),
            field="from",
        )


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-key", required=True, help="the folder of the run")
    parser.add_argument("--from", dest="first", required=True, help="the first as_of day (UTC)")
    parser.add_argument("--to", dest="end", required=True, help="the as_of day (UTC) to end before")
    return parser


if __name__ == "__main__":
    run_command(main, arguments_parser())
