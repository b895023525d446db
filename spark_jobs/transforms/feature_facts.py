"""What features are computed from: the events that count, and the words that several features share.

Windows are half-open and end at `as_of` (00:00 UTC): an event at as_of is in none. Sums and means of money, durations
and decayed weights are made of decimals or integers, so that the order of rows cannot change them.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.events import DEFAULT_PREFERENCE_WEIGHTS, EventType
from feature_repo.contracts.times import start_of_day

VIEW_TYPES = (EventType.VIEW_ITEM, EventType.SELECT_ITEM, EventType.CLICK)
"""What counts as a view: looking at an item, or following a link to it."""

MONEY = "decimal(18,6)"
_DAY_MICROS = 86_400_000_000


def feature_facts(events: DataFrame, items: DataFrame, denied: DataFrame, *, as_of: date) -> DataFrame:
    """The events before `as_of` that are not a bot's, with what the catalogue says of their items.

    Grain: one row per event. `denied` are users (user_id) who do not allow personalization; consent to training does
    not matter here, nothing is learned from features.

    Returns:
        user_id, subject_key of the person (`identity.resolve_events`);
        session_id, item_id, event_type, event_timestamp, price, is_bot as in silver.events;
        quantity int, 1 when absent; channel string;
        device string: `properties.device`, else the channel
        amount decimal: what a purchase line cost. An order's value is on each of its lines, so a price comes first;
            null above 10^12, which is no price but a mistake
        category string: of the item, null when it has none or is not in the catalogue
        category_price double: median catalogue price of the category's items created before as_of
        is_allowed boolean: the user is known and does not deny personalization
    """
    counts = ~F.col("is_bot") & ~is_type(EventType.UNMERGE)
    past = events.filter((F.col("event_timestamp") < F.lit(start_of_day(as_of))) & counts)
    refusals = denied.select("user_id").distinct().withColumn("is_denied", F.lit(True))
    device = F.coalesce(F.get_json_object("properties", "$.device"), F.col("channel"))
    quantity = F.coalesce(F.col("quantity"), F.lit(1))
    return (
        past.join(_shelf(items, as_of), on="item_id", how="left")
        .join(refusals, on="user_id", how="left")
        .select(
            "user_id",
            "subject_key",
            "session_id",
            "item_id",
            "event_type",
            "event_timestamp",
            "price",
            quantity.alias("quantity"),
            "channel",
            device.alias("device"),
            F.coalesce(F.col("price") * quantity, F.col("value")).try_cast(MONEY).alias("amount"),
            "category",
            "category_price",
            (F.col("user_id").isNotNull() & F.col("is_denied").isNull()).alias("is_allowed"),
            "is_bot",
        )
    )


def _shelf(items: DataFrame, as_of: date) -> DataFrame:
    """item_id, category and the category's median price, of items with a category."""
    named = items.filter(F.col("category").isNotNull())
    median = F.median(F.when(is_created_before(as_of), F.col("price"))).over(Window.partitionBy("category"))
    return named.select("item_id", "category", median.alias("category_price"))


def is_created_before(as_of: date) -> Column:
    """Whether the catalogue knew the item before as_of; an unknown time of creation counts as long ago."""
    return F.coalesce(F.col("created_at") < F.lit(start_of_day(as_of)), F.lit(True))


def is_view() -> Column:
    """A view, clicks included."""
    return F.col("event_type").isin([str(kind) for kind in VIEW_TYPES])


def is_type(kind: EventType) -> Column:
    """An event of this type."""
    return F.col("event_type") == kind.value


def is_preference() -> Column:
    """An event of a type with a default preference weight."""
    return F.col("event_type").isin(sorted(str(kind) for kind in DEFAULT_PREFERENCE_WEIGHTS))


def within(as_of: date, days: int) -> Column:
    """In the window of `days` before as_of; rows after as_of are gone already."""
    return F.col("event_timestamp") >= F.lit(days_before(as_of, days))


def days_before(as_of: date, days: int) -> datetime:
    """The first instant of a window."""
    return start_of_day(as_of) - timedelta(days=days)


def days_until(as_of: date, moment: Column) -> Column:
    """Days (fractional) from `moment` to as_of."""
    return (F.unix_micros(F.lit(start_of_day(as_of))) - F.unix_micros(moment)) / F.lit(float(_DAY_MICROS))


def exact_sum(value: Column) -> Column:
    """A sum of decimals as a double; 0 where there is nothing."""
    return F.coalesce(F.sum(value).cast("double"), F.lit(0.0))


def exact_mean(value: Column) -> Column:
    """A mean of money or seconds, made of decimals; null where there is nothing."""
    return ratio(F.sum(value.cast(MONEY)).cast("double"), F.count(value))


def ratio(part: Column, whole: Column) -> Column:
    """part / whole as a double; null where whole is 0 or null."""
    return part / F.nullif(whole, F.lit(0))


def stamped(rows: DataFrame, as_of: date) -> DataFrame:
    """`rows` as known at as_of."""
    moment = F.lit(start_of_day(as_of)).alias("feature_timestamp")
    return rows.select("*", moment, F.lit(as_of).alias("as_of"))
