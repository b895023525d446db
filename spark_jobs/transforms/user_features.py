"""Rows of gold.user_features and gold.user_category_features: what each feature is stands in
`contracts.feature_table`, here stands how it is computed, in one place each."""

from __future__ import annotations

from datetime import date

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.events import EventType
from feature_repo.contracts.tables import table
from spark_jobs.transforms.feature_facts import (
    days_before,
    days_until,
    exact_mean,
    exact_sum,
    is_preference,
    is_type,
    is_view,
    ratio,
    stamped,
    within,
)
from spark_jobs.transforms.sessions import CLIENT_SESSION_GAP, assign_sessions, summarise_sessions

NIGHT_HOURS = (22, 6)
"""From, and until before, in UTC."""


def user_features(facts: DataFrame, *, as_of: date) -> DataFrame:
    """Rows of gold.user_features at `as_of`, from `feature_facts`.

    Grain: one row per user_id with at least one event, but for those who do not allow personalization.
    """
    past = facts.filter("is_allowed")
    in_7, in_30, in_90, in_365 = (within(as_of, days) for days in (7, 30, 90, 365))
    viewed, bought = is_view(), is_type(EventType.PURCHASE)
    carted, returned = is_type(EventType.ADD_TO_CART), is_type(EventType.REFUND)
    moment, day = F.col("event_timestamp"), F.to_date("event_timestamp")
    hour, from_hour, until_hour = F.hour(moment), *NIGHT_HOURS
    at_night = (hour >= from_hour) | (hour < until_hour)
    on_weekend = F.dayofweek(moment).isin(1, 7)
    shows_price = (viewed | carted | bought) & in_90 & (F.col("category_price") > 0)
    # Sets, not counts of distinct values: those would multiply every row by the number of such counts.
    sets = past.groupBy("user_id").agg(
        F.count_if(viewed & in_7).alias("user_view_count_7d"),
        F.count_if(viewed & in_30).alias("user_view_count_30d"),
        F.count_if(carted & in_30).alias("user_cart_count_30d"),
        F.count_if(bought & in_90).alias("user_purchase_count_90d"),
        exact_sum(F.when(bought & in_90, F.col("amount"))).alias("user_purchase_value_90d"),
        days_until(as_of, F.max(moment)).alias("user_days_since_last_event"),
        F.size(F.collect_set(F.when(in_30, F.col("item_id")))).cast("bigint").alias("user_distinct_item_count_30d"),
        F.mode(F.when(is_preference() & in_90, F.col("category")), True).alias("user_top_category_90d"),
        days_until(as_of, F.min(moment)).alias("user_days_since_first_event"),
        days_until(as_of, F.max(F.when(bought, moment))).alias("user_days_since_last_purchase"),
        F.size(F.collect_set(F.when(in_30, day))).cast("bigint").alias("user_active_day_count_30d"),
        F.collect_set(F.when(bought & in_365, day)).alias("_purchase_days"),
        F.count_if(returned & in_90).alias("_refund_count"),
        F.collect_set(F.when(carted & in_30, F.col("item_id"))).alias("_carted"),
        F.collect_set(F.when(bought & in_30, F.col("item_id"))).alias("_bought"),
        F.count_if(is_type(EventType.SEARCH) & in_30).alias("user_search_count_30d"),
        F.median(F.when(shows_price, F.col("price") / F.col("category_price"))).alias("user_price_ratio_median_90d"),
        F.size(F.collect_set(F.when(is_preference() & in_90, F.col("category"))))
        .cast("bigint")
        .alias("user_distinct_category_count_90d"),
        ratio(F.count_if(at_night & in_30), F.count_if(in_30)).alias("user_night_share_30d"),
        ratio(F.count_if(on_weekend & in_30), F.count_if(in_30)).alias("user_weekend_share_30d"),
        ratio(F.count_if((F.col("channel") == "app") & in_30), F.count(F.when(in_30, F.col("channel")))).alias(
            "user_app_share_30d"
        ),
        F.mode(F.when(in_30, F.col("device")), True).alias("user_top_device_30d"),
    )
    days = F.col("_purchase_days")
    first_of_90 = F.lit(days_before(as_of, 90).date())
    purchase_days = F.size(F.filter(days, lambda day: day >= first_of_90))
    span = F.date_diff(F.array_max(days), F.array_min(days))
    carts = F.size("_carted")
    counts = sets.withColumns(
        {
            "user_purchase_day_count_90d": purchase_days.cast("bigint"),
            "user_days_between_purchases_365d": ratio(span, F.size(days) - 1),
            "user_purchase_day_value_mean_90d": ratio(F.col("user_purchase_value_90d"), purchase_days),
            "user_refund_share_90d": ratio(F.col("_refund_count"), F.col("user_purchase_count_90d")),
            "user_cart_abandonment_30d": ratio(F.size(F.array_except("_carted", "_bought")), carts),
        }
    )
    rows = counts.join(_session_features(past, as_of), on="user_id", how="left")
    rows = rows.fillna(0, subset=["user_session_count_30d"])
    return stamped(rows, as_of).select(*table("gold.user_features").columns)


def user_category_features(facts: DataFrame, *, as_of: date) -> DataFrame:
    """Rows of gold.user_category_features at `as_of`, from `feature_facts`.

    Grain: one row per user_id and category with a preference event in 90 days, of users who have user features.
    """
    in_30, viewed, bought = within(as_of, 30), is_view(), is_type(EventType.PURCHASE)
    recent = facts.filter(F.col("is_allowed") & F.col("category").isNotNull() & is_preference() & within(as_of, 90))
    counts = recent.groupBy("user_id", "category").agg(
        F.count(F.lit(1)).alias("_event_count"),
        F.count_if(viewed & in_30).alias("user_category_view_count_30d"),
        F.count_if(viewed).alias("user_category_view_count_90d"),
        F.count_if(is_type(EventType.ADD_TO_CART) & in_30).alias("user_category_cart_count_30d"),
        F.count_if(bought & in_30).alias("user_category_purchase_count_30d"),
        F.count_if(bought).alias("user_category_purchase_count_90d"),
        exact_sum(F.when(bought, F.col("amount"))).alias("user_category_purchase_value_90d"),
        days_until(as_of, F.max("event_timestamp")).alias("user_category_days_since_last_event_90d"),
    )
    of_user = F.sum("_event_count").over(Window.partitionBy("user_id"))
    rows = counts.withColumn("user_category_event_share_90d", F.col("_event_count") / of_user)
    return stamped(rows, as_of).select(*table("gold.user_category_features").columns)


def _session_features(past: DataFrame, as_of: date) -> DataFrame:
    """Sessions of the last 30 days per user, from events: silver.sessions may know how they went on after as_of.

    A day more is read, so that what continues an older session is not taken for the start of a new one.
    """
    start = days_before(as_of, 30)
    recent = past.filter(F.col("event_timestamp") >= F.lit(start - CLIENT_SESSION_GAP))
    sessions = summarise_sessions(assign_sessions(recent)).filter(F.col("started_at") >= F.lit(start))
    return sessions.groupBy("user_id").agg(
        F.count(F.lit(1)).alias("user_session_count_30d"),
        exact_mean(F.col("duration_seconds")).alias("user_session_length_mean_30d"),
        ratio(F.sum("item_count"), F.count(F.lit(1))).alias("user_session_item_count_mean_30d"),
        ratio(F.count_if("has_purchase"), F.count(F.lit(1))).alias("user_session_purchase_share_30d"),
    )
