"""User and item features as they were known at one instant, and the numbering of items.

Windows are half-open and end at `as_of` (00:00 UTC): an event at as_of is in none. Bots are left out. Sums and means of
money, durations and decayed weights are made of decimals or integers, so that the order of rows cannot change them.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from itertools import chain

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.events import DEFAULT_PREFERENCE_WEIGHTS, EventType
from feature_repo.contracts.tables import table
from feature_repo.contracts.times import start_of_day
from spark_jobs.transforms.sessions import CLIENT_SESSION_GAP, assign_sessions, summarise_sessions

POPULARITY_HALF_LIFE_DAYS = 7.0
"""Raising it lets item_popularity_decayed remember longer."""

VIEW_TYPES = (EventType.VIEW_ITEM, EventType.SELECT_ITEM, EventType.CLICK)
"""What counts as a view: looking at an item, or following a link to it."""

_MONEY = "decimal(18,6)"
_WEIGHT = "decimal(20,12)"
_DAY_MICROS = 86_400_000_000


def number_items(known: DataFrame, items: DataFrame, events: DataFrame, *, as_of: date) -> DataFrame:
    """Rows to append to gold.item_ids: items that have no number yet.

    Items are those of the catalogue created before `as_of` (or at an unknown time), and those named by an event before
    it, bots' events included. New ones are numbered in order of item_id from the largest known number + 1, or from 0.
    """
    cut_off = F.lit(start_of_day(as_of))
    created = items.filter(F.coalesce(F.col("created_at") < cut_off, F.lit(True))).select("item_id")
    seen = events.filter((F.col("event_timestamp") < cut_off) & F.col("item_id").isNotNull()).select("item_id")
    new = created.union(seen).distinct().join(known.select("item_id"), on="item_id", how="left_anti")
    first_free = known.agg((F.coalesce(F.max("item_number"), F.lit(-1)) + 1).alias("first_free"))
    position = F.row_number().over(Window.orderBy("item_id")) - 1
    numbered = new.withColumn("position", position).crossJoin(F.broadcast(first_free))
    number = (F.col("first_free") + F.col("position")).cast("int")
    return numbered.select("item_id", number.alias("item_number"), F.lit(as_of).alias("first_as_of"))


def user_features(events: DataFrame, items: DataFrame, denied: DataFrame, *, as_of: date) -> DataFrame:
    """Rows of gold.user_features at `as_of`.

    Grain: one row per user_id with at least one event before as_of that is not a bot's. Users in `denied` (who do not
    allow personalization) have none; consent to training does not matter, nothing is learned from these rows.
    Counts are 0 where nothing happened. Null: user_session_length_mean_30d without a session, user_top_category_90d
    without a preference event on an item with a category.

    user_view_count_7d, _30d        views, clicks included (VIEW_TYPES)
    user_cart_count_30d             add_to_cart events
    user_purchase_count_90d         purchase events (order lines)
    user_purchase_value_90d         their price x quantity (1 when absent), or their value when they have no price;
                                    refunds are not taken off, currencies are not converted
    user_days_since_last_event      days (fractional) from the last event of any age to as_of
    user_session_count_30d          sessions that began in the window, cut off at as_of
    user_session_length_mean_30d    their mean duration in seconds
    user_distinct_item_count_30d    items in events of any type
    user_top_category_90d           full category path of the most preference events (types with a default weight);
                                    ties: first in alphabetical order
    """
    past = _people_before(events.filter(F.col("user_id").isNotNull()), as_of)
    past = past.join(F.broadcast(denied.select("user_id").distinct()), on="user_id", how="left_anti")
    kind = F.col("event_type")
    is_view, is_purchase = kind.isin([str(view) for view in VIEW_TYPES]), kind == EventType.PURCHASE.value
    counts = past.groupBy("user_id").agg(
        F.count_if(is_view & _within(as_of, 7)).alias("user_view_count_7d"),
        F.count_if(is_view & _within(as_of, 30)).alias("user_view_count_30d"),
        F.count_if((kind == EventType.ADD_TO_CART.value) & _within(as_of, 30)).alias("user_cart_count_30d"),
        F.count_if(is_purchase & _within(as_of, 90)).alias("user_purchase_count_90d"),
        _sum(F.when(is_purchase & _within(as_of, 90), _amount()), _MONEY).alias("user_purchase_value_90d"),
        _days_until(as_of, F.max("event_timestamp")).alias("user_days_since_last_event"),
        F.count_distinct(F.when(_within(as_of, 30), F.col("item_id"))).alias("user_distinct_item_count_30d"),
    )
    sessions = _session_features(past, as_of)
    categories = _top_category(past.filter(_within(as_of, 90)), items)
    rows = counts.join(sessions, on="user_id", how="left").join(categories, on="user_id", how="left")
    rows = rows.withColumn("user_session_count_30d", F.coalesce(F.col("user_session_count_30d"), F.lit(0)))
    return _stamped(rows, as_of).select(*table("gold.user_features").columns)


def item_features(events: DataFrame, items: DataFrame, *, as_of: date) -> DataFrame:
    """Rows of gold.item_features at `as_of`.

    Grain: one row per item of the catalogue created before as_of (or at an unknown time) and per item named by an event
    before it that is not a bot's. Counts are 0 where nothing happened.
    Null: item_conversion_30d without a view, item_price_mean_90d without a priced event, item_days_since_created
    when the catalogue does not say.

    item_view_count_7d, _30d     views, clicks included (VIEW_TYPES)
    item_purchase_count_30d      purchase events (order lines)
    item_subject_count_30d       subjects (users and anonymous visitors) with an event of any type on the item
    item_conversion_30d          purchases per view; above 1 when people buy without viewing
    item_price_mean_90d          mean price on events of any type that carry one, each once whatever its quantity
    item_days_since_created      days (fractional) from created_at to as_of
    item_popularity_decayed      preference weights of all events before as_of, halved every 7 days of age
    """
    cut_off = F.lit(start_of_day(as_of))
    past = _people_before(events.filter(F.col("item_id").isNotNull()), as_of)
    kind = F.col("event_type")
    is_view, is_purchase = kind.isin([str(view) for view in VIEW_TYPES]), kind == EventType.PURCHASE.value
    age_days = _days_until(as_of, F.col("event_timestamp"))
    decayed = _weight() * F.pow(F.lit(0.5), age_days / POPULARITY_HALF_LIFE_DAYS)
    counts = past.groupBy("item_id").agg(
        F.count_if(is_view & _within(as_of, 7)).alias("item_view_count_7d"),
        F.count_if(is_view & _within(as_of, 30)).alias("item_view_count_30d"),
        F.count_if(is_purchase & _within(as_of, 30)).alias("item_purchase_count_30d"),
        F.count_distinct(F.when(_within(as_of, 30), F.col("subject_key"))).alias("item_subject_count_30d"),
        _mean(F.when(_within(as_of, 90), F.col("price")), _MONEY).alias("item_price_mean_90d"),
        _sum(decayed, _WEIGHT).alias("item_popularity_decayed"),
    )
    created = F.coalesce(F.col("created_at") < cut_off, F.lit(True))
    catalogue = items.filter(created).select("item_id", "created_at")
    rows = catalogue.join(counts, on="item_id", how="full")
    whole = ("item_view_count_7d", "item_view_count_30d", "item_purchase_count_30d", "item_subject_count_30d")
    rows = rows.fillna(0, subset=[*whole]).fillna(0.0, subset=["item_popularity_decayed"])
    views, purchases = F.col("item_view_count_30d"), F.col("item_purchase_count_30d")
    rows = rows.withColumn("item_conversion_30d", F.when(views > 0, purchases / views))
    rows = rows.withColumn("item_days_since_created", _days_until(as_of, F.col("created_at")))
    return _stamped(rows, as_of).select(*table("gold.item_features").columns)


def _people_before(events: DataFrame, as_of: date) -> DataFrame:
    return events.filter((F.col("event_timestamp") < F.lit(start_of_day(as_of))) & ~F.col("is_bot"))


def _within(as_of: date, days: int) -> Column:
    return F.col("event_timestamp") >= F.lit(_days_before(as_of, days))


def _days_before(as_of: date, days: int) -> datetime:
    return start_of_day(as_of) - timedelta(days=days)


def _days_until(as_of: date, moment: Column) -> Column:
    return (F.unix_micros(F.lit(start_of_day(as_of))) - F.unix_micros(moment)) / F.lit(float(_DAY_MICROS))


def _sum(value: Column, exact: str) -> Column:
    return F.coalesce(F.sum(value.cast(exact)).cast("double"), F.lit(0.0))


def _mean(value: Column, exact: str) -> Column:
    return F.sum(value.cast(exact)).cast("double") / F.nullif(F.count(value), F.lit(0))


def _amount() -> Column:
    """What a purchase line cost. An order's value is on each of its lines, so a price comes first."""
    quantity = F.coalesce(F.col("quantity"), F.lit(1))
    return F.coalesce(F.col("price") * quantity, F.col("value"))


def _weight() -> Column:
    """The default preference weight of an event type; 0 for types that tell none."""
    pairs = sorted((str(kind), weight) for kind, weight in DEFAULT_PREFERENCE_WEIGHTS.items())
    weights = F.create_map(*(F.lit(value) for value in chain.from_iterable(pairs)))
    return F.coalesce(F.try_element_at(weights, F.col("event_type")), F.lit(0.0))


def _session_features(past: DataFrame, as_of: date) -> DataFrame:
    """Sessions of the last 30 days per user, from events: silver.sessions may know how they went on after as_of.

    A day more is read, so that what continues an older session is not taken for the start of a new one.
    """
    start = _days_before(as_of, 30)
    recent = past.filter(F.col("event_timestamp") >= F.lit(start - CLIENT_SESSION_GAP))
    sessions = summarise_sessions(assign_sessions(recent)).filter(F.col("started_at") >= F.lit(start))
    return sessions.groupBy("user_id").agg(
        F.count(F.lit(1)).alias("user_session_count_30d"),
        _mean(F.col("duration_seconds"), _MONEY).alias("user_session_length_mean_30d"),
    )


def _top_category(recent: DataFrame, items: DataFrame) -> DataFrame:
    categories = items.filter(F.col("category").isNotNull()).select("item_id", "category")
    preferred = recent.filter(_weight() > 0).select("user_id", "item_id")
    counts = (
        preferred.join(F.broadcast(categories), on="item_id", how="inner")
        .groupBy("user_id", "category")
        .agg(F.count(F.lit(1)).alias("event_count"))
    )
    best = F.min(F.struct((-F.col("event_count")).alias("order"), "category"))
    return counts.groupBy("user_id").agg(best.getField("category").alias("user_top_category_90d"))


def _stamped(rows: DataFrame, as_of: date) -> DataFrame:
    stamped = rows.withColumn("feature_timestamp", F.lit(start_of_day(as_of)))
    return stamped.withColumn("as_of", F.lit(as_of))
