"""The numbering of items: appended, never reused."""

from __future__ import annotations

from datetime import date

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.times import start_of_day


def named_before(events: DataFrame, as_of: date) -> DataFrame:
    """The items that an event before `as_of` names, bots' events included. Returns: item_id string, not distinct."""
    is_past = F.col("event_timestamp") < F.lit(start_of_day(as_of))
    return events.filter(is_past & F.col("item_id").isNotNull()).select("item_id")


def number_items(known: DataFrame, items: DataFrame, named: DataFrame, *, as_of: date) -> DataFrame:
    """Rows to append to gold.item_ids: items that have no number yet.

    Items are those of the catalogue created before `as_of` (or at an unknown time), and those `named` by an event
    (`named_before`). New ones are numbered in order of item_id from the largest known number + 1, or from 0.
    """
    cut_off = F.lit(start_of_day(as_of))
    created = items.filter(F.coalesce(F.col("created_at") < cut_off, F.lit(True))).select("item_id")
    new = created.union(named).distinct().join(known.select("item_id"), on="item_id", how="left_anti")
    first_free = known.agg((F.coalesce(F.max("item_number"), F.lit(-1)) + 1).alias("first_free"))
    position = F.row_number().over(Window.orderBy("item_id")) - 1
    numbered = new.withColumn("position", position).crossJoin(F.broadcast(first_free))
    number = (F.col("first_free") + F.col("position")).cast("int")
    return numbered.select("item_id", number.alias("item_number"), F.lit(as_of).alias("first_as_of"))
