"""Items and users as a run sees them: the importer's tables at their pinned versions, with the changes of the API."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.changes import CHANGE_TABLE_OF, ID_FIELDS, ITEMS, TABLE_OF, USERS, merge_record
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import change_stream_key
from spark_jobs.io import light_delta

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Versions = Mapping[str, int]
"""Table -> Delta version. Of tables that it does not name, a pinned run knew nothing (`in_run`)."""


def in_run(pins: Versions) -> Versions:
    """The pins of a run, which may be older than the tables of changes: those were empty then."""
    return {**dict.fromkeys(CHANGE_TABLE_OF.values(), -1), **pins}


def read_items(
    spark: SparkSession, environment: Environment, versions: Versions | None, *, cut_off: datetime
) -> DataFrame:
    """`transforms.catalogue.current_items` of the tables at `versions`; one that is not named is read at its newest."""
    from spark_jobs.transforms.catalogue import current_items

    records, changes = _read(spark, environment, ITEMS, versions)
    return records if changes is None else current_items(records, changes, cut_off=cut_off)


def read_users(spark: SparkSession, environment: Environment, versions: Versions | None) -> DataFrame:
    """`transforms.catalogue.current_users` of the tables at `versions`; one that is not named is read at its newest."""
    from spark_jobs.transforms.catalogue import current_users

    records, changes = _read(spark, environment, USERS, versions)
    return records if changes is None else current_users(records, changes)


def _read(
    spark: SparkSession, environment: Environment, kind: str, versions: Versions | None
) -> tuple[DataFrame, DataFrame | None]:
    """The records and their changes; None for changes when nothing ever came through the API."""
    from spark_jobs.io.delta import read_table

    asked = versions or {}
    records = read_table(spark, environment, TABLE_OF[kind], asked.get(TABLE_OF[kind]))
    name = CHANGE_TABLE_OF[kind]
    version = asked.get(name, light_delta.version(environment, name))
    return records, None if version == -1 else read_table(spark, environment, name, version)


def records_by_id(
    environment: Environment,
    kind: str,
    ids: Collection[str],
    versions: Versions | None = None,
    *,
    cut_off: datetime | None = None,
) -> dict[str, dict[str, Any]]:
    """The same for a few records without Spark: id -> row. `cut_off` None: every change counts."""
    asked, id_field = versions or {}, ID_FIELDS[kind]
    which = [(id_field, "in", sorted(set(ids)))]
    if not ids:
        return {}
    records = {
        row[id_field]: row
        for row in light_delta.read_table(
            environment, TABLE_OF[kind], asked.get(TABLE_OF[kind]), filters=which
        ).to_pylist()
    }
    name = CHANGE_TABLE_OF[kind]
    changes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for change in light_delta.read_table(environment, name, asked.get(name), filters=which).to_pylist():
        if cut_off is None or change["changed_at"] < cut_off:
            changes[change[id_field]].append(change)
    for record_id, said in changes.items():
        merged = merge_record(kind, record_id, records.get(record_id), said)
        if merged is not None:
            records[record_id] = merged
    return records


def all_records(
    environment: Environment, kind: str, versions: Versions, *, cut_off: datetime | None = None
) -> pa.Table:
    """What `read_items` and `read_users` read, without Spark. `cut_off` None: every change counts."""
    id_field, name = ID_FIELDS[kind], CHANGE_TABLE_OF[kind]
    records = light_delta.read_table(environment, TABLE_OF[kind], versions.get(TABLE_OF[kind]))
    changed = light_delta.read_table(environment, name, versions.get(name), [id_field])[id_field].unique()
    if not len(changed):
        return records
    merged = records_by_id(environment, kind, changed.to_pylist(), versions, cut_off=cut_off)
    rest = records.filter(pc.invert(pc.is_in(records[id_field], value_set=changed.cast(pa.string()))))
    return pa.concat_tables([rest, pa.Table.from_pylist(list(merged.values()), schema=records.schema)])


def categories_of_items(environment: Environment, versions: Versions, *, cut_off: datetime) -> dict[str, str | None]:
    """Item id -> category, of every item that `records_by_id` would find at these versions. Without Spark."""
    records = light_delta.read_table(
        environment, TABLE_OF[ITEMS], versions.get(TABLE_OF[ITEMS]), ["item_id", "category"]
    )
    found: dict[str, str | None] = dict(zip(*(column.to_pylist() for column in records.columns), strict=True))
    name = CHANGE_TABLE_OF[ITEMS]
    changed = light_delta.read_table(environment, name, versions.get(name), ["item_id"])["item_id"].to_pylist()
    merged = records_by_id(environment, ITEMS, changed, versions, cut_off=cut_off)
    return {**found, **{item_id: record.get("category") for item_id, record in merged.items()}}


def changes_position(environment: Environment, versions: Versions) -> int:
    """Up to which position of the change stream bronze.item_changes is whole at its pinned version; -1: nothing.

    Of users' changes in the same stream it says nothing.
    """
    name = CHANGE_TABLE_OF[ITEMS]
    found = light_delta.open_table(environment, name, versions.get(name, -1))
    position = None
    if found is not None:
        position = found.transaction_version(f"archiver:{change_stream_key(environment.tenant)}")
    return -1 if position is None else int(position)
