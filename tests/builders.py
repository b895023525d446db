"""Builders of small tables: a row names what its test is about, everything else has a plain default.

An event row is a tuple (event_id, user_id, event_type, timestamp[, item_id[, {column: value}]]). A user_id of None with
an anonymous_id among the other columns is an anonymous visitor. Timestamps without an offset are UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import write_deltalake

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.events import subject_key
from feature_repo.contracts.run import Run
from feature_repo.contracts.tables import table, table_path
from spark_jobs.io.light_delta import arrow_schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

EventRow = tuple[Any, ...]


def utc(text: str) -> datetime:
    """An aware UTC datetime from `2024-03-01T09:30:00` or `2024-03-01`."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def bronze_event(position: int, row: EventRow) -> dict[str, Any]:
    """One row of bronze.events; `position` is its place in the source."""
    event_id, user_id, event_type, timestamp, *rest = row
    moment = utc(timestamp) if isinstance(timestamp, str) else timestamp
    return {
        **dict.fromkeys(table("bronze.events").columns),
        "event_id": event_id,
        "event_type": event_type,
        "user_id": user_id,
        "item_id": rest[0] if rest else "i1",
        "event_timestamp": moment,
        "received_at": moment + timedelta(seconds=1) if moment else utc("2024-03-01"),
        "source": "test",
        "source_position": position,
        "event_date": moment.date() if moment else None,
        **(rest[1] if len(rest) > 1 else {}),
    }


def silver_event(position: int, row: EventRow) -> dict[str, Any]:
    """One row of silver.events: not from a bot unless the row says so."""
    bronze = bronze_event(position, row)
    return {"subject_key": subject_key(bronze["user_id"], bronze["anonymous_id"]), "is_bot": False, **bronze}


def make_bronze_events(spark: SparkSession, rows: Sequence[EventRow]) -> DataFrame:
    """A frame with the columns of bronze.events."""
    return make_frame(spark, "bronze.events", [bronze_event(position, row) for position, row in enumerate(rows)])


def make_events(spark: SparkSession, rows: Sequence[EventRow]) -> DataFrame:
    """A frame with the columns of silver.events."""
    return make_frame(spark, "silver.events", [silver_event(position, row) for position, row in enumerate(rows)])


def make_frame(spark: SparkSession, name: str, rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """A frame with the columns of any table of the contract; what a row does not name is null."""
    from spark_jobs.io.delta import spark_schema

    columns = table(name).columns
    return spark.createDataFrame([tuple(row.get(c) for c in columns) for row in rows], spark_schema(name))


def write_rows(environment: Environment, name: str, rows: Sequence[Mapping[str, Any]], *, mode: str = "append") -> None:
    """Write rows to a table without Spark, as the archiver and the importer do; one commit."""
    schema = arrow_schema(name)
    write_deltalake(
        table_path(environment.lakehouse, name, tenant=environment.tenant),
        pa.Table.from_pylist([{c: row.get(c) for c in schema.names} for row in rows], schema=schema),
        mode=mode,
        partition_by=list(table(name).partition_by) or None,
    )


def write_bronze_events(
    environment: Environment, rows: Sequence[EventRow], *, name: str = "bronze.events", first_position: int = 0
) -> None:
    """Append deliveries to bronze.events (or bronze.events_import)."""
    write_rows(environment, name, [bronze_event(first_position + n, row) for n, row in enumerate(rows)])


def make_run(environment: Environment, as_of: str | date, **other: Any) -> Run:
    """A run that publishes, derives every day and reads the newest version of nothing: set `pins` to read tables."""
    values: dict[str, Any] = {
        "run_key": f"test-{as_of}", "tenant": environment.tenant, "as_of": str(as_of), "pins": {}, "derive_days": None,
        "publishes": True, "why": "a test", "mlflow_run_id": "none", "code_version": "test",
    }  # fmt: skip
    return Run(**{**values, **other})
