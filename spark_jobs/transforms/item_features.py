"""Rows of gold.item_features: what each feature is stands in `contracts.feature_table`, here stands how it is
computed, in one place each."""

from __future__ import annotations

from datetime import date
from itertools import chain

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.events import DEFAULT_PREFERENCE_WEIGHTS, EventType
from feature_repo.contracts.feature_table import feature_view
from feature_repo.contracts.tables import table
from spark_jobs.transforms.feature_facts import (
    MONEY,
    days_until,
    is_created_before,
    is_type,
    is_view,
    ratio,
    stamped,
    within,
)

POPULARITY_HALF_LIFE_DAYS = 7.0
"""Raising it lets item_popularity_decayed remember longer."""

_WEIGHT = "decimal(20,12)"
_NEVER_NULL = {f.name: f.default for f in feature_view("item_features").features if f.null_means is None}


def item_features(facts: DataFrame, items: DataFrame, *, as_of: date) -> DataFrame:
    """Rows of gold.item_features at `as_of`, from `feature_facts` and the catalogue.

    Grain: one row per item of the catalogue created before as_of (or at an unknown time), and per item named by an
    event. Users who do not allow personalization count like everybody: these are numbers of items.
    """
    named = facts.filter(F.col("item_id").isNotNull())
    sums = _sum_by_item(named, as_of).join(_people_of_item(named, as_of), on="item_id", how="left")
    sums = sums.fillna(0, subset=["item_subject_count_30d", "item_buyer_count_90d", "_repeat_buyer_count"])
    shelf = items.filter(is_created_before(as_of)).select("item_id", "created_at", "available_quantity")
    rows = shelf.join(sums, on="item_id", how="full").fillna({n: v for n, v in _NEVER_NULL.items() if v is not None})
    views_7, views_30 = F.col("item_view_count_7d"), F.col("item_view_count_30d")
    mean_7 = ratio(F.col("_price_sum_7").cast("double"), F.col("_price_count_7"))
    earlier_sum = (F.col("_price_sum_90") - F.coalesce(F.col("_price_sum_7"), F.lit(0))).cast("double")
    mean_earlier = ratio(earlier_sum, F.col("_price_count_90") - F.col("_price_count_7"))
    rows = rows.withColumns(
        {
            "item_conversion_30d": ratio(F.col("item_purchase_count_30d"), views_30),
            "item_price_mean_90d": ratio(F.col("_price_sum_90").cast("double"), F.col("_price_count_90")),
            "item_days_since_created": days_until(as_of, F.col("created_at")),
            "item_view_trend_30d": ratio(views_7 * 30, views_30 * 7),
            "item_cart_rate_30d": ratio(F.col("item_cart_count_30d"), views_30),
            "item_refund_share_90d": ratio(F.col("_refund_count"), F.col("_purchase_count_90")),
            "item_price_change_90d": ratio(mean_7, mean_earlier) - 1,
            "item_days_since_last_purchase": days_until(as_of, F.col("_last_purchase")),
            "item_stock_cover_30d": ratio(F.col("available_quantity") * 30, F.col("item_unit_count_30d")),
            "item_repeat_buyer_share_90d": ratio(F.col("_repeat_buyer_count"), F.col("item_buyer_count_90d")),
        }
    )
    return stamped(rows, as_of).select(*table("gold.item_features").columns)


def _sum_by_item(facts: DataFrame, as_of: date) -> DataFrame:
    """One row per item: what its events add up to, whoever did them."""
    in_1, in_7, in_30, in_90 = (within(as_of, days) for days in (1, 7, 30, 90))
    viewed, bought, carted = is_view(), is_type(EventType.PURCHASE), is_type(EventType.ADD_TO_CART)
    price, moment = F.col("price").try_cast(MONEY), F.col("event_timestamp")
    decayed = _weight() * F.pow(F.lit(0.5), days_until(as_of, moment) / POPULARITY_HALF_LIFE_DAYS)
    return facts.groupBy("item_id").agg(
        F.count_if(viewed & in_1).alias("item_view_count_1d"),
        F.count_if(viewed & in_7).alias("item_view_count_7d"),
        F.count_if(viewed & in_30).alias("item_view_count_30d"),
        F.count_if(carted & in_1).alias("item_cart_count_1d"),
        F.count_if(carted & in_7).alias("item_cart_count_7d"),
        F.count_if(carted & in_30).alias("item_cart_count_30d"),
        F.count_if(bought & in_1).alias("item_purchase_count_1d"),
        F.count_if(bought & in_7).alias("item_purchase_count_7d"),
        F.count_if(bought & in_30).alias("item_purchase_count_30d"),
        F.sum(F.when(bought & in_30, F.col("quantity"))).alias("item_unit_count_30d"),
        F.sum(F.when(bought & in_30, F.col("amount"))).cast("double").alias("item_purchase_value_30d"),
        F.sum(decayed.cast(_WEIGHT)).cast("double").alias("item_popularity_decayed"),
        F.count_if(bought & in_90).alias("_purchase_count_90"),
        F.count_if(is_type(EventType.REFUND) & in_90).alias("_refund_count"),
        F.sum(F.when(in_7, price)).alias("_price_sum_7"),
        F.count(F.when(in_7, price)).alias("_price_count_7"),
        F.sum(F.when(in_90, price)).alias("_price_sum_90"),
        F.count(F.when(in_90, price)).alias("_price_count_90"),
        F.max(F.when(bought, moment)).alias("_last_purchase"),
    )


def _people_of_item(facts: DataFrame, as_of: date) -> DataFrame:
    """One row per item with an event in 30 days or a purchase in 90: how many people, each counted once."""
    in_30 = within(as_of, 30)
    bought = is_type(EventType.PURCHASE) & within(as_of, 90)
    day = F.when(bought, F.to_date("event_timestamp"))
    # Only what is counted by people is brought together by item and person: nearly every event is a pair of its own.
    pairs = facts.filter(in_30 | bought).groupBy("item_id", "subject_key")
    people = pairs.agg(F.max(in_30).alias("_is_recent"), F.min(day).alias("_first"), F.max(day).alias("_last"))
    return people.groupBy("item_id").agg(
        F.count_if("_is_recent").alias("item_subject_count_30d"),
        F.count("_first").alias("item_buyer_count_90d"),
        F.count_if(F.col("_first") < F.col("_last")).alias("_repeat_buyer_count"),
    )


def _weight() -> Column:
    """The default preference weight of an event type; 0 for types that tell none."""
    pairs = sorted((str(kind), weight) for kind, weight in DEFAULT_PREFERENCE_WEIGHTS.items())
    weights = F.create_map(*(F.lit(value) for value in chain.from_iterable(pairs)))
    return F.coalesce(F.try_element_at(weights, F.col("event_type")), F.lit(0.0))
