"""What was delivered, day by day, in numbers small enough to read: the frames behind the quality report.

All take `checked` deliveries (`check_deliveries`: columns of bronze.events, `table`, `broken_rule`) as they came, so
duplicates and broken rows count. A delivery belongs to its `event_date`. However many rows come in, the frames that
come out are bounded by days and by the words of the contracts: what is in no vocabulary is counted under one name.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.events import EVENT_TYPES
from spark_jobs.transforms.bots import is_browsing, is_fast
from spark_jobs.transforms.events import rejection_reason, subject_key

NULLABLE_COLUMNS = ("user_id", "anonymous_id", "session_id", "item_id", "quantity", "price", "value", "currency",
                    "recommendation_id", "placement", "channel", "properties")  # fmt: skip
"""Whose null shares are watched; the other columns are required, and a null there breaks a rule."""

QUANTILES = (0.05, 0.5, 0.95)
OTHER = "(other)"
NONE = "(none)"

LATE_AFTER_SECONDS = 3600
LIVE_TABLES = ("bronze.events", "bronze.events_kafka")
"""Where `received_at` is the instant of receipt. An import's is that of the import: history is old, not late."""

PRICE_FACTOR = 10
"""A price this many times above or below the catalogue's is far off: a slipped point, pence for pounds."""

MAX_PROPERTY_KEYS = 500
MAX_SOURCES = 1000
_SKETCH_SIZE = 16


def describe_days(checked: DataFrame, catalogue: DataFrame) -> DataFrame:
    """Counts, nulls, sizes and quantiles by day and event type, and by day.

    Grain: one row per day and event type (the types of the contract, `OTHER`, `NONE`), and one per day with a null
    event_type over all its types. `catalogue` has item_id (unique) and price.

    Returns: event_date, event_type, deliveries; `has_<column>` (not null) for NULLABLE_COLUMNS; event_ids, contents,
        items (distinct, estimated within 1 %; all but exact up to some thousands); contents counts what was said,
        whatever event_id it came under; with_event_id; live and late (LATE_AFTER_SECONDS) in LIVE_TABLES; broken;
        in_catalogue (of has_item_id); priced and far_priced (both prices > 0; PRICE_FACTOR); first_second,
        last_second of the day; price_quantiles, quantity_quantiles (QUANTILES; null without values), price_max,
        quantity_max.
    """
    known = catalogue.select(
        F.col("item_id").alias("known_item"), F.when(F.col("price") > 0, F.col("price")).alias("known_price")
    )
    moment, price, quantity = F.col("event_timestamp"), F.col("price"), F.col("quantity")
    second = F.hour(moment) * 3600 + F.minute(moment) * 60 + F.second(moment)
    is_own_day = F.to_date(moment) == F.col("event_date")
    is_live = F.col("table").isin(list(LIVE_TABLES))
    age = F.unix_seconds("received_at") - F.unix_seconds(moment)
    ratio = price / F.col("known_price")
    rows = checked.join(known, on=F.col("item_id") == F.col("known_item"), how="left").select(
        "event_date",
        _word(F.col("event_type"), F.col("event_type").isin(sorted(EVENT_TYPES))).alias("event_type"),
        *NULLABLE_COLUMNS,
        F.xxhash64("event_id").alias("id_hash"),
        F.col("event_id").isNotNull().alias("has_id"),
        F.xxhash64(
            "event_type", "user_id", "anonymous_id", "session_id", "item_id", "event_timestamp", "quantity", "price"
        ).alias("content_hash"),
        is_live.alias("is_live"),
        (is_live & (age > LATE_AFTER_SECONDS)).alias("is_late"),
        F.col("broken_rule").isNotNull().alias("is_broken"),
        F.col("known_item").isNotNull().alias("is_known"),
        F.when(price > 0, ratio).alias("price_ratio"),
        F.when(is_own_day, second).alias("second"),
        F.when(price > 0, price).alias("paid"),
    )
    is_far = (F.col("price_ratio") > PRICE_FACTOR) | (F.col("price_ratio") < 1 / PRICE_FACTOR)
    return rows.groupingSets([["event_date", "event_type"], ["event_date"]], "event_date", "event_type").agg(
        F.count(F.lit(1)).alias("deliveries"),
        *(F.count(column).alias(f"has_{column}") for column in NULLABLE_COLUMNS),
        F.count_if("has_id").alias("with_event_id"),
        _distinct(F.when(F.col("has_id"), F.col("id_hash"))).alias("event_ids"),
        _distinct(F.col("content_hash")).alias("contents"),
        _distinct(F.col("item_id")).alias("items"),
        F.count_if("is_live").alias("live"),
        F.count_if("is_late").alias("late"),
        F.count_if("is_broken").alias("broken"),
        F.count_if("is_known").alias("in_catalogue"),
        F.count("price_ratio").alias("priced"),
        F.count_if(is_far).alias("far_priced"),
        F.min("second").alias("first_second"),
        F.max("second").alias("last_second"),
        F.percentile_approx("paid", list(QUANTILES), 1000).alias("price_quantiles"),
        F.percentile_approx("quantity", list(QUANTILES), 1000).alias("quantity_quantiles"),
        F.max("paid").alias("price_max"),
        F.max(quantity).alias("quantity_max"),
    )


def count_outcomes(checked: DataFrame) -> DataFrame:
    """Deliveries by day, source table, currency (three capital letters, else `OTHER` or `NONE`) and broken rule.

    Returns: event_date, table, currency, reason (null when every rule holds), deliveries.
    """
    currency = _word(F.col("currency"), F.col("currency").rlike("^[A-Z]{3}$"))
    counts = checked.groupBy("event_date", "table", currency.alias("currency"), "broken_rule")
    return counts.agg(F.count(F.lit(1)).alias("deliveries")).select(
        "event_date", "table", "currency", rejection_reason().alias("reason"), "deliveries"
    )


def describe_subjects(checked: DataFrame) -> DataFrame:
    """Who caused the deliveries of each day.

    A bot is a subject that `is_fast` on that day, by its deliveries (duplicates count here): the rules that need the
    order of its events wait for `find_bots`.
    Grain: one row per day with a subject. Returns: event_date, subjects, users, bots, bot_deliveries,
        busiest_deliveries (of the busiest subject that is no bot; 0 when all are bots).
    """
    minute = F.date_trunc("minute", F.col("event_timestamp"))
    rows = checked.select(
        "event_date", subject_key().alias("subject_key"), minute.alias("minute"), is_browsing().alias("b")
    )
    per_minute = (
        rows.filter(F.col("subject_key").isNotNull())
        .groupBy("subject_key", "event_date", "minute")
        .agg(F.count(F.lit(1)).alias("deliveries"), F.count_if("b").alias("browsing"))
    )
    per_subject = (
        per_minute.groupBy("subject_key", "event_date")
        .agg(
            F.sum("deliveries").alias("deliveries"),
            F.sum("browsing").alias("day_count"),
            F.max("browsing").alias("peak_count"),
        )
        .withColumn("is_bot", is_fast(F.col("day_count"), F.col("peak_count")))
    )
    people = F.when(~F.col("is_bot"), F.col("deliveries"))
    return per_subject.groupBy("event_date").agg(
        F.count(F.lit(1)).alias("subjects"),
        F.count_if(F.col("subject_key").startswith("u:")).alias("users"),
        F.count_if("is_bot").alias("bots"),
        F.coalesce(F.sum(F.when(F.col("is_bot"), F.col("deliveries"))), F.lit(0)).alias("bot_deliveries"),
        F.coalesce(F.max(people), F.lit(0)).alias("busiest_deliveries"),
    )


def count_property_keys(texts: DataFrame) -> DataFrame:
    """How often each top-level key of `properties` came on each day; at most MAX_PROPERTY_KEYS rows a day on average.

    `texts` has event_date, properties and deliveries: how many have this text.

    Properties that are no JSON object have no keys. Returns: event_date, key (its first 64 characters), deliveries.
    """
    keys = texts.filter(F.col("properties").isNotNull()).select(
        "event_date", F.explode(F.json_object_keys("properties")).alias("key"), "deliveries"
    )
    counts = keys.groupBy("event_date", F.substring("key", 1, 64).alias("key")).agg(
        F.sum("deliveries").alias("deliveries")
    )
    return counts.orderBy(F.desc("deliveries"), "key", "event_date").limit(MAX_PROPERTY_KEYS * 28)


def count_sources(checked: DataFrame, days: Sequence[date]) -> DataFrame:
    """The imported files that brought these days: at least half of the file's deliveries in `checked` are theirs.

    A file of a whole history is none of them. At most MAX_SOURCES, the largest first.
    Returns: source, deliveries (on `days`).
    """
    is_theirs = F.col("event_date").isin(list(days))
    counts = (
        checked.filter(~F.col("table").isin(list(LIVE_TABLES)))
        .groupBy("source")
        .agg(F.count(F.lit(1)).alias("every"), F.count_if(is_theirs).alias("deliveries"))
    )
    brought = counts.filter((F.col("deliveries") > 0) & (F.col("deliveries") * 2 >= F.col("every")))
    return brought.select("source", "deliveries").orderBy(F.desc("deliveries"), "source").limit(MAX_SOURCES)


def _distinct(values: Column) -> Column:
    return F.hll_sketch_estimate(F.hll_sketch_agg(values, _SKETCH_SIZE))


def _word(value: Column, is_known: Column) -> Column:
    return F.when(value.isNull(), NONE).when(is_known, value).otherwise(OTHER)
