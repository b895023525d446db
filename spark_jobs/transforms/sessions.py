"""Sessions: what one subject did in one go."""

from __future__ import annotations

from datetime import timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.events import CLIENT_SESSION_GAP, SESSION_GAP, EventType

_GROUP = ("session_group", "subject_key", "session_id")


def assign_sessions(events: DataFrame) -> DataFrame:
    """Each event with the session it belongs to.

    Grain: one row per input row; bots, and an operator's `unmerge`, are left out first. The client's session_id wins: a
    subject's events with one id are one session. Events without an id make sessions of their own, split where the
    subject paused for 30 minutes. Event time decides, not arrival; events at one instant are in one session. A session
    may cross midnight and belongs to the day of its first event. Whose an event is was settled before
    (`identity.resolve_events`): what somebody did before logging in is in one session with what follows.

    Adds: session_key string (32 hex; made of subject, client id and first instant), session_started_at timestamp,
    session_group bigint (a hash of subject and client id: rows are sorted by it first, which is sooner done than by
    texts).
    """
    people = events.filter(~F.col("is_bot") & (F.col("event_type") != EventType.UNMERGE.value))
    people = people.withColumn("session_group", F.xxhash64("subject_key", "session_id"))
    rows = Window.partitionBy(*_GROUP).orderBy("event_timestamp")
    previous = F.lag("event_timestamp").over(rows)
    gap = F.unix_micros(F.col("event_timestamp")) - F.unix_micros(previous)
    limit = F.when(F.col("session_id").isNull(), _micros(SESSION_GAP)).otherwise(_micros(CLIENT_SESSION_GAP))
    starts = people.withColumn("_start", F.when(previous.isNull() | (gap >= limit), F.col("event_timestamp")))
    so_far = rows.rangeBetween(Window.unboundedPreceding, Window.currentRow)
    started_at = F.last("_start", ignorenulls=True).over(so_far)
    return starts.withColumn("session_started_at", started_at).withColumn("session_key", _session_key()).drop("_start")


def summarise_sessions(assigned: DataFrame) -> DataFrame:
    """Rows of silver.sessions from events with sessions (`assign_sessions`).

    Grain: one row per session_key. duration_seconds is last minus first event, 0.0 for one event; item_count counts
    distinct items; user_id is null for anonymous subjects; session_date is the UTC day of the first event.
    """
    is_purchase = F.col("event_type") == EventType.PURCHASE.value
    # Grouped by what `assign_sessions` partitioned by, so that nothing is shuffled again; the key follows from it.
    sessions = assigned.groupBy(*_GROUP, "session_started_at").agg(
        F.max("event_timestamp").alias("ended_at"),
        F.count(F.lit(1)).alias("event_count"),
        F.countDistinct("item_id").alias("item_count"),
        F.max(is_purchase).alias("has_purchase"),
    )
    duration = (F.unix_micros("ended_at") - F.unix_micros("session_started_at")) / F.lit(1e6)
    return sessions.select(
        _session_key().alias("session_key"),
        "subject_key",
        F.when(
            F.col("subject_key").startswith("u:"), F.col("subject_key").substr(F.lit(3), F.length("subject_key"))
        ).alias("user_id"),
        "session_id",
        F.col("session_started_at").alias("started_at"),
        "ended_at",
        "event_count",
        "item_count",
        duration.alias("duration_seconds"),
        "has_purchase",
        F.to_date("session_started_at").alias("session_date"),
    )


def _session_key() -> Column:
    parts = (F.col("subject_key"), F.coalesce(F.col("session_id"), F.lit("")), F.unix_micros("session_started_at"))
    return F.substring(F.sha2(F.concat_ws("\x00", *(part.cast("string") for part in parts)), 256), 1, 32)


def _micros(length: timedelta) -> Column:
    return F.lit(length // timedelta(microseconds=1))
