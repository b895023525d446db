"""Impossible sequences as the night finds them: the rules of `feature_repo.contracts.sequences`, in Spark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts import sequences as rules
from feature_repo.contracts.events import EventType
from feature_repo.contracts.regions import REGION_FIELDS
from feature_repo.contracts.sequences import SequenceRule

READS = ("event_id", "event_type", "subject_key", "item_id", "session_id", "event_timestamp", "received_at", "source",
         "source_position", "properties", "event_date")  # fmt: skip
"""The columns of silver.events that the rules look at."""

ORDER_WORDS, REGION_WORDS = ("order", "transaction_id"), ("region", "country")
"""Properties that name an order, or a region, have one of these words."""

_FOUND = ("event_id", "subject_key", "rule", "event_date")


def may_break(events: DataFrame) -> list[SequenceRule]:
    """The rules that any of these events could break: most shops have no use for some, and need not pay for them."""
    kind = F.col("event_type")
    candidates = {
        SequenceRule.REFUND_WITHOUT_PURCHASE: kind == EventType.REFUND.value,
        SequenceRule.REMOVAL_WITHOUT_ADDITION: kind == EventType.REMOVE_FROM_CART.value,
        SequenceRule.ORDER_REPEATED: (kind == EventType.PURCHASE.value) & _mentions(ORDER_WORDS),
        SequenceRule.SESSION_IN_TWO_REGIONS: F.col("session_id").isNotNull() & _mentions(REGION_WORDS),
        SequenceRule.SESSION_TIME_BACKWARDS: F.col("session_id").isNotNull(),
    }
    counts = events.agg(*(F.count_if(candidate).alias(rule.value) for rule, candidate in candidates.items())).first()
    assert counts is not None
    return [rule for rule in candidates if counts[rule.value]]


def find_breaks(events: DataFrame, only: Sequence[SequenceRule] = tuple(SequenceRule)) -> DataFrame:
    """Every rule that each event breaks. `events` has the columns READS; `only` are the rules to look for.

    Grain: one row per event and rule. Returns: event_id, subject_key, rule, event_date.
    """
    found = [_FINDERS[rule](events).withColumn("rule", F.lit(rule.value)).select(*_FOUND) for rule in only]
    return reduce(DataFrame.unionByName, found) if found else _nothing(events)


def find_breaks_among(events: DataFrame, rules: Sequence[SequenceRule]) -> DataFrame:
    """`find_breaks`, each rule among the events that have a true in the column of its name. Each has its own: an event
    that one rule is asked about may lack what another one would look for."""
    found = [find_breaks(events.filter(rule.value), [rule]) for rule in rules]
    return reduce(DataFrame.unionByName, found) if found else _nothing(events)


def _nothing(events: DataFrame) -> DataFrame:
    return events.limit(0).withColumn("rule", F.lit("")).select(*_FOUND)


def _without_first(events: DataFrame, kind: EventType, earlier: EventType) -> DataFrame:
    """Events of `kind` whose subject has no event of type `earlier` about the item at that instant or before."""
    key = ["subject_key", "item_id"]
    firsts = events.filter(F.col("event_type") == earlier.value).groupBy(*key).agg(F.min("event_timestamp").alias("at"))
    later = events.filter(F.col("event_type") == kind.value).join(firsts, on=key, how="left")
    return later.filter(F.col("at").isNull() | (F.col("at") > F.col("event_timestamp")))


def _refunds(events: DataFrame) -> DataFrame:
    return _without_first(events, EventType.REFUND, EventType.PURCHASE)


def _removals(events: DataFrame) -> DataFrame:
    return _without_first(events, EventType.REMOVE_FROM_CART, EventType.ADD_TO_CART)


def _orders(events: DataFrame) -> DataFrame:
    order = _json_text("properties", [f"$.{name}" for name in rules.ORDER_FIELDS])
    bought = events.filter((F.col("event_type") == EventType.PURCHASE.value) & F.col("properties").isNotNull())
    named = bought.withColumn("order", order).filter(F.col("order").isNotNull())
    first = F.min("event_timestamp").over(Window.partitionBy("subject_key", "order", "item_id"))
    return named.withColumn("first", first).filter(F.col("event_timestamp") > F.col("first"))


def _regions(events: DataFrame) -> DataFrame:
    region = _json_text("properties", [f"$.context.{path}" for path in REGION_FIELDS])
    told = events.filter(F.col("session_id").isNotNull() & F.col("properties").isNotNull())
    placed = told.withColumn("region", region).filter(F.col("region").isNotNull())
    rows = Window.partitionBy("subject_key", "session_id").orderBy(
        "event_timestamp", "source", "source_position", "event_id"
    )
    before, at = F.lag("region").over(rows), F.lag(_micros("event_timestamp")).over(rows)
    placed = placed.withColumn("before", before).withColumn("at", at)
    is_near = _micros("event_timestamp") - F.col("at") < rules.REGION_MICROS
    return placed.filter((F.col("before") != F.col("region")) & is_near)


def _backwards(events: DataFrame) -> DataFrame:
    key = ["subject_key", "session_id"]
    with_session = events.filter(F.col("session_id").isNotNull())
    span = F.max(_micros("event_timestamp")) - F.min(_micros("event_timestamp"))
    long = with_session.groupBy(*key).agg(span.alias("span")).filter(F.col("span") > rules.BACKWARDS_MICROS)
    rows = (
        Window.partitionBy(*key)
        .orderBy("received_at", "source", "source_position", "event_id")
        .rowsBetween(Window.unboundedPreceding, -1)
    )
    newest = F.max(_micros("event_timestamp")).over(rows)
    # sessions of less than a day cannot break the rule: their events are never sorted
    some = with_session.join(long.select(*key), on=key, how="left_semi").withColumn("newest", newest)
    return some.filter(_micros("event_timestamp") < F.col("newest") - rules.BACKWARDS_MICROS)


_FINDERS = {
    SequenceRule.REFUND_WITHOUT_PURCHASE: _refunds,
    SequenceRule.REMOVAL_WITHOUT_ADDITION: _removals,
    SequenceRule.ORDER_REPEATED: _orders,
    SequenceRule.SESSION_IN_TWO_REGIONS: _regions,
    SequenceRule.SESSION_TIME_BACKWARDS: _backwards,
}


def _json_text(column: str, paths: Sequence[str]) -> Column:
    return F.coalesce(*(F.nullif(F.get_json_object(column, path), F.lit("")) for path in paths))


def _mentions(words: Sequence[str]) -> Column:
    return reduce(
        lambda a, b: a | b, (F.coalesce(F.contains(F.col("properties"), F.lit(w)), F.lit(False)) for w in words)
    )


def _micros(name: str) -> Column:
    return F.unix_micros(F.col(name))
