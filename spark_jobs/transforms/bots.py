"""Bots as the night sees them: the rules of `feature_repo.contracts.bots` over whole days, in Spark.

A test computes the same counters with the contract's own code and holds the two to each other.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts import bots as rules
from feature_repo.contracts.bots import BotRule
from spark_jobs.transforms.computed import computed

_DAY = ("subject_key", "event_date")
_NO_AGENT = ""


def find_bots(events: DataFrame) -> DataFrame:
    """Who behaved like a bot on which day, and by which rules.

    Rules: those of `contracts.bots`, on the events of one UTC day in order of time. Day by day, so that a day can be
    derived alone and no later day changes an earlier verdict; and on the whole day, so that what a bot did before it
    was noticed is flagged too. `events` has the columns of silver.events, is_bot excepted.

    Returns: subject_key string, event_date date, bot_rules array<string> (in the order of `BotRule`, not empty); one
        row per bot and day.
    """
    c = {name: F.col(name) for name in _COUNTERS}
    broken = {
        BotRule.CRAWLER_AGENT: c["is_crawler"],
        BotRule.PER_SECOND: c["second_peak"] > rules.MAX_PER_SECOND,
        BotRule.PER_MINUTE: is_fast(c["browsing"], c["minute_peak"]),
        BotRule.PER_HOUR: c["hour_peak"] > rules.MAX_PER_HOUR,
        BotRule.PER_DAY: c["browsing"] > rules.MAX_PER_DAY,
        BotRule.NO_DWELL: (c["gaps"] >= rules.LEAST_QUICK_GAPS)
        & (c["quick_gaps"] >= rules.MAX_QUICK_SHARE * c["gaps"]),
        BotRule.SWEEP: c["items"] > rules.MAX_ITEMS,
        BotRule.RHYTHM: (c["steps"] >= rules.LEAST_STEPS) & (c["steady_steps"] >= rules.MAX_STEADY_SHARE * c["steps"]),
    }
    words = F.array_compact(F.array(*(F.when(is_broken, F.lit(rule.value)) for rule, is_broken in broken.items())))
    judged = count_day(events).withColumn("bot_rules", words)
    return judged.filter(F.size("bot_rules") > 0).select(*_DAY, "bot_rules")


def flag_bots(events: DataFrame, bots: DataFrame) -> DataFrame:
    """`events` with `is_bot`: whether the subject was a bot on that day. `bots` as from `find_bots`."""
    flags = bots.select(*_DAY).withColumn("is_bot", F.lit(True))
    joined = events.join(F.broadcast(flags), on=list(_DAY), how="left")
    return joined.withColumn("is_bot", F.coalesce(F.col("is_bot"), F.lit(False)))


def is_browsing() -> Column:
    """Whether `event_type` is one that the rates count."""
    return F.col("event_type").isin([str(kind) for kind in rules.BROWSING_TYPES])


def is_fast(day_count: Column, peak_count: Column) -> Column:
    """The rule `per_minute` on a subject's browsing events of a day and of its busiest minute."""
    return (day_count > rules.LEAST_FOR_MINUTE) & (peak_count > rules.MAX_PER_MINUTE)


def count_day(events: DataFrame) -> DataFrame:
    """`contracts.bots.BotCounters` of the subjects that may break a rule.

    Grain: one row per subject and day with more than LEAST_BUSY browsing events, or with a crawler's user agent. The
    first pass only counts, so that most of the day is never sorted.

    Returns: subject_key, event_date, and the counters under their names; `items` is their number.
    """
    browsing = events.filter(is_browsing())
    counts = browsing.groupBy(*_DAY).agg(F.count(F.lit(1)).alias("browsing"))
    busy = computed(counts.filter(F.col("browsing") > rules.LEAST_BUSY).select(*_DAY))  # else counted for each use
    # Brought together by subject and day, as all that follows wants it.
    rows = browsing.join(busy.hint("shuffle_hash"), on=list(_DAY), how="left_semi").select(
        *_DAY,
        F.unix_micros("event_timestamp").alias("micros"),
        (F.col("event_type") == rules.VIEWING_TYPE.value).alias("is_view"),
        "item_id",
    )
    rates = _steps(rows)
    for unit, length in (("second", 1), ("minute", 60), ("hour", 3600)):
        rates = _peak(rates, unit, length)
    by_rate = rates.groupBy(*_DAY).agg(*(F.sum(n).alias(n) for n in _SUMS), *(F.max(n).alias(n) for n in _PEAKS))
    items = rows.filter("is_view").groupBy(*_DAY).agg(F.countDistinct("item_id").alias("items"))
    by_rate = by_rate.join(items, on=list(_DAY), how="left")
    joined = by_rate.join(_crawlers(events), on=list(_DAY), how="full")
    return joined.select(
        *_DAY,
        *(F.coalesce(F.col(name), F.lit(0)).alias(name) for name in (*_SUMS, *_PEAKS, "items")),
        F.coalesce(F.col("is_crawler"), F.lit(False)).alias("is_crawler"),
    )


_SUMS = ("browsing", "gaps", "quick_gaps", "steps", "steady_steps")
_PEAKS = ("second_peak", "minute_peak", "hour_peak")
_COUNTERS = (*_SUMS, *_PEAKS, "items", "is_crawler")


def _steps(rows: DataFrame) -> DataFrame:
    """One row per browsing event: whether it ends a step from one view to the next, a quick one, a steady pair."""
    views = Window.partitionBy(*_DAY, "is_view").orderBy("micros")
    gap = F.col("micros") - F.lag("micros", 1).over(views)
    before = F.lag("micros", 1).over(views) - F.lag("micros", 2).over(views)
    gaps = rows.withColumn("gap", F.when(F.col("is_view"), gap)).withColumn("before", F.when(F.col("is_view"), before))
    is_step = (F.col("gap") >= rules.LEAST_STEP_MICROS) & (F.col("before") >= rules.LEAST_STEP_MICROS)
    is_steady = F.abs(F.col("gap") - F.col("before")) <= F.lit(rules.STEADY_SHARE_OF_STEP) * F.col("before")
    return gaps.select(
        *_DAY,
        F.floor(F.col("micros") / F.lit(1_000_000)).alias("at"),
        F.lit(1).alias("browsing"),
        F.col("gap").isNotNull().cast("int").alias("gaps"),
        F.coalesce(F.col("gap") < rules.QUICK_MICROS, F.lit(False)).cast("int").alias("quick_gaps"),
        F.coalesce(is_step, F.lit(False)).cast("int").alias("steps"),
        F.coalesce(is_step & is_steady, F.lit(False)).cast("int").alias("steady_steps"),
        *(F.lit(0).alias(name) for name in _PEAKS),
    )


def _peak(rates: DataFrame, unit: str, length: int) -> DataFrame:
    """The rows of one clock unit as one, with the number of its browsing events as the unit's peak."""
    begin = F.col("at") - F.col("at") % length
    return rates.groupBy(*_DAY, begin.alias("at")).agg(
        *(F.sum(name).alias(name) for name in _SUMS),
        *(
            (F.sum("browsing") if name == f"{unit}_peak" else F.max(name)).alias(name)
            for name in _PEAKS
        ),
    )  # fmt: skip


def _crawlers(events: DataFrame) -> DataFrame:
    """Subjects and days with an event whose user agent names a crawler. Most rows are told apart without parsing."""
    names_one = F.col("properties").contains("agent") | F.col("properties").contains("Agent")
    agent = F.coalesce(
        *(F.nullif(F.get_json_object("properties", f"$.context.{name}"), F.lit("")) for name in rules.AGENT_FIELDS)
    )
    text = F.lower(F.coalesce(agent, F.lit(_NO_AGENT)))
    for word in rules.NOT_CRAWLERS:
        text = F.replace(text, F.lit(word), F.lit(""))
    is_crawler = F.lit(False)
    for word in rules.CRAWLER_WORDS:
        is_crawler = is_crawler | F.contains(text, F.lit(word))
    found = events.filter(names_one).filter(is_crawler).select(*_DAY).distinct()
    return found.withColumn("is_crawler", F.lit(True))
