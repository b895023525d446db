"""Bronze deliveries to silver events: the event rules as Spark sees them, one delivery per event.

The rules are those of `feature_repo.contracts.events.check_event`, which the API and the importers apply first; here
they are the defence against any other writer. A test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.events import (
    EVENT_TYPES,
    ITEM_REQUIRED,
    MAX_ID_BYTES,
    TWO_IDS_REQUIRED,
    Reason,
)
from feature_repo.contracts.times import EARLIEST_EVENT, MAX_FUTURE_SKEW

_ID_FIELDS = ("currency", "recommendation_id", "placement", "channel")


def check_deliveries(deliveries: DataFrame) -> DataFrame:
    """Each delivery with its first broken rule.

    Grain: one row per input row. Adds `broken_rule`, an int that `rejection_reason` and `quarantine_rows` put in words,
    null when every rule holds. The order of rules is that of `check_event`. Aliases of event types were resolved at the
    entrance; here they are unknown. A row whose `event_date` is not the UTC day of its `event_timestamp` has an invalid
    timestamp: it would otherwise leave its day when that day is derived again.
    """
    # Not a CASE: the optimizer would turn "is null" on twenty branches into a condition of exponential size.
    numbers = (F.when(rule.is_broken, F.lit(number)) for number, rule in enumerate(_rules()))
    return deliveries.withColumn("broken_rule", F.array_min(F.array(*numbers)))


def quarantine_rows(rejected: DataFrame, *, columns: Sequence[str], no_day: date) -> DataFrame:
    """Rejected deliveries as rows of silver.quarantine.

    `raw` is the bronze row (`columns`) as JSON without its nulls; `event_date` is the day the row lies under in bronze,
    `no_day` when it has none; `quarantined_at` is the instant of the run's derivation (left out of comparisons).
    """
    rules = _rules()
    field, detail = F.lit(None), F.lit(None)
    for number, rule in enumerate(rules):
        is_this = F.col("broken_rule") == number
        field, detail = F.when(is_this, rule.field).otherwise(field), F.when(is_this, rule.detail).otherwise(detail)
    return rejected.select(
        F.to_json(F.struct(*columns)).cast("binary").alias("raw"),
        rejection_reason().alias("reason"),
        field.cast("string").alias("field"),
        detail.cast("string").alias("detail"),
        "source",
        "source_position",
        F.current_timestamp().alias("quarantined_at"),
        F.coalesce(F.col("event_date"), F.lit(no_day)).alias("event_date"),
    )


def rejection_reason() -> Column:
    """The stable word for `broken_rule`."""
    words = F.array(*(F.lit(rule.reason.value) for rule in _rules()))
    return F.get(words, F.col("broken_rule"))


def repeated_ids(deliveries: DataFrame) -> DataFrame:
    """Ids that more than one delivery has. Returns: event_id string, distinct, not null."""
    counts = deliveries.groupBy("event_id").agg(F.count(F.lit(1)).alias("delivery_count"))
    return counts.filter(F.col("event_id").isNotNull() & (F.col("delivery_count") > 1)).select("event_id")


def id_hash() -> Column:
    """Eight bytes for an event_id: two ids may share them."""
    return F.xxhash64("event_id")


def repeated_hashes(deliveries: DataFrame) -> DataFrame:
    """`repeated_ids` by hash, which is counted sooner: every id that several deliveries have, and hardly another.

    Returns: id_hash bigint (`id_hash`), distinct.
    """
    named = deliveries.filter(F.col("event_id").isNotNull()).select(id_hash().alias("id_hash"))
    counts = named.groupBy("id_hash").agg(F.count(F.lit(1)).alias("delivery_count"))
    return counts.filter(F.col("delivery_count") > 1).select("id_hash")


def first_deliveries(checked: DataFrame) -> DataFrame:
    """Which delivery of each event counts, among those that break no rule (`check_deliveries`).

    Grain: one row per input row. Adds `is_first`: true for one row per event_id; false for its duplicates and for rows
    that break a rule. The delivery with the smallest (event_timestamp, source, source_position) is the first, however
    late it arrived and however long ago the other was: there is no time window. Whole ties break by received_at, then
    by content.
    """
    is_good = F.col("broken_rule").isNull()
    rows = Window.partitionBy("event_id", is_good).orderBy(
        "event_timestamp", "source", "source_position", "received_at", F.xxhash64(*checked.columns)
    )
    return checked.withColumn("is_first", is_good & (F.row_number().over(rows) == 1))


def subject_key() -> Column:
    """`u:<user_id>` when the user is known, else `a:<anonymous_id>`: `contracts.events.subject_key` in Spark."""
    user, anonymous = F.col("user_id"), F.col("anonymous_id")
    return F.when(user.isNotNull(), F.concat(F.lit("u:"), user)).otherwise(F.concat(F.lit("a:"), anonymous))


class _Rule(NamedTuple):
    """`is_broken` counts as false when null. `detail` is in words, for a person."""

    is_broken: Column
    reason: Reason
    field: str
    detail: Column


def _rules() -> list[_Rule]:
    moment, received, kind = F.col("event_timestamp"), F.col("received_at"), F.col("event_type")
    item_id, quantity, price, value = F.col("item_id"), F.col("quantity"), F.col("price"), F.col("value")
    needs_item = kind.isin(sorted(str(item) for item in ITEM_REQUIRED))
    no_user, no_anonymous = F.col("user_id").isNull(), F.col("anonymous_id").isNull()
    needs_both = kind.isin(sorted(str(item) for item in TWO_IDS_REQUIRED))
    has_no_subject = (no_user & no_anonymous) | (needs_both & (no_user | no_anonymous))
    no_subject = "user_id or anonymous_id is required, both for " + ", ".join(sorted(map(str, TWO_IDS_REQUIRED)))
    is_future = moment > received + F.make_dt_interval(secs=F.lit(MAX_FUTURE_SKEW.total_seconds()))
    is_on_other_day = ~F.col("event_date").eqNullSafe(F.to_date(moment))
    return [
        _Rule(kind.isNull(), Reason.MISSING_EVENT_TYPE, "event_type", _got("event_type is required, got", kind)),
        _Rule(~kind.isin(sorted(EVENT_TYPES)), Reason.UNKNOWN_EVENT_TYPE, "event_type", _got("unknown", kind)),
        _Rule(F.col("event_id").isNull(), Reason.MISSING_EVENT_ID, "event_id", F.lit("event_id is required")),
        _id_rule("event_id", Reason.INVALID_EVENT_ID),
        _Rule(has_no_subject, Reason.MISSING_SUBJECT, "user_id", F.lit(no_subject)),
        _id_rule("user_id", Reason.INVALID_SUBJECT),
        _id_rule("anonymous_id", Reason.INVALID_SUBJECT),
        _id_rule("session_id", Reason.INVALID_SESSION_ID),
        _id_rule("item_id", Reason.INVALID_ITEM_ID),
        _Rule(needs_item & item_id.isNull(), Reason.MISSING_ITEM_ID, "item_id", F.concat(kind, F.lit(" needs one"))),
        _Rule(moment.isNull(), Reason.MISSING_TIMESTAMP, "timestamp", F.lit("timestamp is required")),
        _Rule(moment < F.lit(EARLIEST_EVENT), Reason.TIMESTAMP_TOO_OLD, "timestamp", _got("before 1995:", moment)),
        _Rule(is_future, Reason.TIMESTAMP_IN_FUTURE, "timestamp", _got("over 24 h after its receipt:", moment)),
        _Rule(is_on_other_day, Reason.INVALID_TIMESTAMP, "timestamp", _got("not on its event_date:", moment)),
        _Rule(quantity <= 0, Reason.INVALID_QUANTITY, "quantity", _got("a positive integer, got", quantity)),
        _Rule((price < 0) | ~_is_finite(price), Reason.INVALID_PRICE, "price", _got("a number >= 0, got", price)),
        _Rule(~_is_finite(value), Reason.INVALID_VALUE, "value", _got("a finite number, got", value)),
        *(_id_rule(field, Reason.INVALID_FIELD) for field in _ID_FIELDS),
    ]


def _id_rule(field: str, reason: Reason) -> _Rule:
    text = F.col(field)
    size = F.octet_length(text)
    is_bad = (size == 0) | (size > MAX_ID_BYTES) | (F.instr(text, "\x00") > 0)
    words = f"a text of 1 to {MAX_ID_BYTES} bytes of UTF-8 without NUL, got"
    return _Rule(is_bad, reason, field, _got(words, F.substring(text, 1, 80)))


def _is_finite(number: Column) -> Column:
    return ~F.isnan(number) & (F.abs(number) != F.lit(float("inf")))


def _got(text: str, value: Column) -> Column:
    return F.concat(F.lit(text + " '"), F.coalesce(value.cast("string"), F.lit("null")), F.lit("'"))
