"""Items and users as they are: the importer's tables, overlaid by what came through the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.pandas.types import to_arrow_schema

from feature_repo.contracts.changes import ID_FIELDS, ITEMS, TABLE_OF, USERS, merge_record
from feature_repo.contracts.tables import table

Batches = Iterator[pa.RecordBatch]


def current_items(items: DataFrame, changes: DataFrame, *, cut_off: datetime) -> DataFrame:
    """bronze.items overlaid by those of bronze.item_changes that say how things were before `cut_off`.

    Grain: one row per item_id of `items`, and of those that only a PUT made; PATCH and DELETE alone make no item.
    Of each field the newest word counts, by `changed_at`, then by position; an imported row speaks at its own
    `updated_at`, without one before all changes. A deleted item stays, hidden.

    Returns: the columns of bronze.items.
    """
    return _overlaid(ITEMS, items, changes.filter(F.col("changed_at") < F.lit(cut_off)))


def current_users(users: DataFrame, changes: DataFrame) -> DataFrame:
    """bronze.users overlaid by bronze.user_changes, in the same way; whoever said anything has a row.

    All changes count, whenever they were said: a refusal holds from the moment it is known, also for a night of an
    earlier as_of, as one that is imported does.

    Returns: the columns of bronze.users.
    """
    return _overlaid(USERS, users, changes)


def _overlaid(kind: str, records: DataFrame, changes: DataFrame) -> DataFrame:
    id_field, columns = ID_FIELDS[kind], list(table(TABLE_OF[kind]).columns)
    records = records.select(*columns)
    said = F.struct("source_position", "changed_at", "operation", "fields")
    changed = changes.groupBy(id_field).agg(F.sort_array(F.collect_list(said)).alias("changes"))
    rows = records.select(id_field, F.struct(*columns).alias("row"))
    touched = changed.join(rows, on=id_field, how="left").select(id_field, "row", "changes")
    merged = touched.mapInArrow(_merge_batches(kind, to_arrow_schema(records.schema, timezone="UTC")), records.schema)
    return records.join(changed.select(id_field), on=id_field, how="left_anti").select(*columns).unionByName(merged)


def _merge_batches(kind: str, schema: pa.Schema) -> Callable[[Batches], Batches]:
    def merge(batches: Batches) -> Batches:
        for batch in batches:
            merged = (merge_record(kind, *row.values()) for row in batch.to_pylist())
            kept = [row for row in merged if row is not None]
            yield pa.RecordBatch.from_pylist(kept, schema=schema)

    return merge
