"""What the quality gate knows without Spark: from the Delta logs, and from the reasons in the quarantine tables.

Everything is read at the run's pinned versions. Nothing grows with the number of rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.tables import table
from spark_jobs.io.light_delta import days_by_row_count, open_table
from spark_jobs.io.refine_state import EVENT_TABLES
from spark_jobs.quality.judging import Catalogue


def refused_live(environment: Environment, pins: Mapping[str, int], since: datetime) -> dict[str, int]:
    """Reason -> events that the API, or the stream from Kafka, quarantined at `since` or later."""
    moment = pa.scalar(since, pa.timestamp("us", tz="UTC"))
    counts: dict[str, int] = {}
    for name in ("bronze.quarantine", "bronze.quarantine_kafka"):
        for reason, count in _by_reason(environment, name, pins, pc.field("quarantined_at") >= moment).items():
            counts[reason] = counts.get(reason, 0) + count
    return dict(sorted(counts.items()))


def refused_of_sources(environment: Environment, pins: Mapping[str, int], sources: Collection[str]) -> dict[str, int]:
    """Reason -> lines of these files that the importer quarantined."""
    if not sources:
        return {}
    return _by_reason(environment, "bronze.quarantine_import", pins, pc.field("source").isin(sorted(sources)))


def _by_reason(environment: Environment, name: str, pins: Mapping[str, int], which: pc.Expression) -> dict[str, int]:
    counts: dict[str, int] = {}
    found = open_table(environment, name, pins.get(name, -1))
    if found is None:
        return counts
    for batch in found.to_pyarrow_dataset().scanner(columns=["reason"], filter=which).to_batches():
        for entry in batch["reason"].value_counts():
            reason = str(entry["values"])
            counts[reason] = counts.get(reason, 0) + entry["counts"].as_py()
    return dict(sorted(counts.items()))


def deliveries_from(environment: Environment, pins: Mapping[str, int], day: date) -> int:
    """Deliveries of event days from `day` on."""
    counts = [days_by_row_count(environment, name, pins.get(name, -1)) for name in EVENT_TABLES]
    return sum(count for rows in counts for dated, count in rows.items() if dated >= day)


def column_drift(environment: Environment, pins: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """(columns of the contract that an event table lacks, columns it has beyond the contract), as `table.column`."""
    missing, new = [], []
    for name in EVENT_TABLES:
        found = open_table(environment, name, pins.get(name, -1))
        if found is not None:
            stored, wanted = {field.name for field in found.schema().fields}, set(table(name).columns)
            missing += sorted(f"{name}.{column}" for column in wanted - stored)
            new += sorted(f"{name}.{column}" for column in stored - wanted)
    return missing, new


def catalogue_at(environment: Environment, version: int) -> Catalogue | None:
    """The size of bronze.items at a version; None when it has no statistics."""
    files = _files(environment, "bronze.items", version)
    if files is None:
        return Catalogue(0, 0)
    if "null_count.price" not in files.column_names:
        return None
    rows, nulls = files["num_records"].to_pylist(), files["null_count.price"].to_pylist()
    if None in rows or None in nulls:
        return None
    return Catalogue(sum(rows), sum(rows) - sum(nulls))


def _files(environment: Environment, name: str, version: int) -> pa.Table | None:
    found = open_table(environment, name, version)
    if found is None:
        return None
    return pa.table(found.get_add_actions(flatten=True))
