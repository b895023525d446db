"""Whose an event is, for the nightly tables: the rule of `contracts.identity` as frames.

Bronze and silver.events keep the ids as they came. Whatever is derived from them (sessions, interactions, features)
asks here, so an edge that comes or is undone changes what is derived, never a row of evidence.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.events import EventType
from feature_repo.contracts.identity import ALWAYS, MAX_ALIAS_HOPS, MAX_DEVICE_USERS, NEVER
from feature_repo.contracts.tables import table
from spark_jobs.transforms.computed import computed

MOST_BROADCAST = 500_000
"""Stretches up to which every reader of events gets all of them."""

SIGHTING_COLUMNS = ("anonymous_id", "user_id", "event_type", "event_timestamp")


def identity_edges(events: DataFrame) -> DataFrame:
    """Rows of silver.identity_edges from the events that name both ids.

    Grain: one row per (anonymous_id, user_id) that was seen together; a pair of which only an undo is known has none.
    `undone_at` is the newest undo, null when there is none: an edge last seen after it is live again.
    """
    both = events.filter(F.col("user_id").isNotNull() & F.col("anonymous_id").isNotNull())
    moment, kind = F.col("event_timestamp"), F.col("event_type")
    is_undo = kind == EventType.UNMERGE.value
    pairs = both.groupBy("anonymous_id", "user_id").agg(
        F.bool_or(kind == EventType.ALIAS.value).alias("is_alias"),
        F.min(F.when(~is_undo, moment)).alias("first_seen_at"),
        F.max(F.when(~is_undo, moment)).alias("last_seen_at"),
        F.max(F.when(is_undo, moment)).alias("undone_at"),
    )
    seen = pairs.filter(F.col("first_seen_at").isNotNull())
    subject, day = F.concat(F.lit("u:"), "user_id"), F.to_date("first_seen_at")
    rows = seen.withColumn("subject_key", subject).withColumn("event_date", day)
    return rows.select(*table("silver.identity_edges").columns)


def device_stretches(edges: DataFrame) -> DataFrame:
    """When a device is whose: `contracts.identity.stretches` of every device.

    Returns: anonymous_id string, owner_id string, from_micros bigint, until_micros bigint (both included). The
    stretches of one device are disjoint.
    """
    first, last = F.unix_micros("first_seen_at"), F.unix_micros("last_seen_at")
    undone = F.coalesce(F.unix_micros("undone_at"), F.lit(NEVER))
    live = edges.select("anonymous_id", "user_id", first.alias("first"), last.alias("last"), undone.alias("undone"))
    live = live.filter(F.col("last") > F.col("undone"))
    users = F.count(F.lit(1)).over(Window.partitionBy("anonymous_id"))
    live = live.withColumn("_users", users).filter(F.col("_users") <= MAX_DEVICE_USERS)
    seen = F.filter(F.array("first", "last"), lambda micros: micros > F.col("undone"))
    sightings = live.select("anonymous_id", "user_id", "undone", F.explode(F.array_distinct(seen)).alias("micros"))
    # Two users at one instant: nobody, and the runs beside it end there.
    instants = sightings.groupBy("anonymous_id", "micros").agg(
        F.when(F.min("user_id") == F.max("user_id"), F.min("user_id")).alias("owner_id"),
        F.max("undone").alias("undone"),
    )
    in_time = Window.partitionBy("anonymous_id").orderBy("micros")
    previous = F.lag("owner_id").over(in_time)
    starts = F.when(F.col("owner_id") == previous, 0).otherwise(1)
    numbered = instants.withColumn("_starts", starts).withColumn(
        "_run", F.sum("_starts").over(in_time.rowsBetween(Window.unboundedPreceding, Window.currentRow))
    )
    runs = numbered.groupBy("anonymous_id", "_run", "owner_id").agg(
        F.min("micros").alias("first"), F.max("micros").alias("last"), F.max("undone").alias("undone")
    )
    last_run = F.max("_run").over(Window.partitionBy("anonymous_id"))
    start = F.when(F.col("_run") == 1, F.lit(NEVER)).otherwise(F.col("first"))
    until = F.when(F.col("_run") == F.col("_last_run"), F.lit(ALWAYS)).otherwise(F.col("last"))
    after_undo = F.when(F.col("undone") == NEVER, F.lit(NEVER)).otherwise(F.col("undone") + 1)
    return (
        runs.withColumn("_last_run", last_run)
        .filter(F.col("owner_id").isNotNull())
        .select("anonymous_id", "owner_id", F.greatest(start, after_undo).alias("from_micros"),
                until.alias("until_micros"))
    )  # fmt: skip


def current_names(edges: DataFrame) -> DataFrame:
    """Former names of users and what they are called now: `contracts.identity.current_name` of every one.

    Returns: user_id string, current_user_id string; only users whose name changed, one row each.
    """
    renames = edges.filter(
        F.col("is_alias") & F.col("undone_at").isNull() & (F.col("anonymous_id") != F.col("user_id"))
    )
    steps = renames.groupBy(F.col("anonymous_id").alias("name")).agg(
        F.min("user_id").alias("next"), F.max("user_id").alias("_other")
    )
    steps = steps.filter(F.col("next") == F.col("_other")).select("name", "next")
    walked = steps.select(F.col("name").alias("user_id"), F.col("next").alias("current_user_id"))
    for _ in range(MAX_ALIAS_HOPS):
        onward = steps.withColumnRenamed("name", "current_user_id")
        walked = walked.select("user_id", "current_user_id").join(onward, on="current_user_id", how="left")
        end = F.coalesce("next", "current_user_id")
        walked = walked.select("user_id", end.alias("current_user_id"), F.col("next").isNotNull().alias("goes_on"))
    # The last step only looks whether there is one: who is not at an end by now runs in a circle, or too far.
    return walked.filter(~F.col("goes_on")).select("user_id", "current_user_id")


def resolve_subjects(
    events: DataFrame, stretches: DataFrame, names: DataFrame | None, *, at_once: bool = False
) -> DataFrame:
    """`events` with `subject_key` and `user_id` of the person they belong to; every other column as it was.

    Grain: one row per input row. An event that names a user stays with that user (under the current name); an anonymous
    one goes to the owner of its device at its time (`device_stretches`), or stays anonymous. `events` needs
    subject_key, user_id and event_timestamp; `names` as from `current_names`, None when nobody was renamed.

    at_once   the events are read once. Only where every reader gets all of `stretches` (`broadcast`): else the events
              that name a user would all be brought to one place.
    """
    columns = events.columns
    is_known = F.col("user_id").isNotNull()
    strangers = events if at_once else events.filter(~is_known)
    strangers = strangers.withColumn("_device", F.when(~is_known, F.expr("substring(subject_key, 3)")))
    micros = F.unix_micros("event_timestamp")
    at_that_time = (
        (F.col("_device") == F.col("anonymous_id_of_stretch"))
        & (micros >= F.col("from_micros"))
        & (micros <= F.col("until_micros"))
    )
    owned = stretches.withColumnRenamed("anonymous_id", "anonymous_id_of_stretch")
    joined = strangers.join(owned, on=at_that_time, how="left").withColumn("user_id", F.coalesce("user_id", "owner_id"))
    people = joined.select(*columns)
    if not at_once:
        people = events.filter(is_known).unionByName(people)
    if names is not None:
        current = F.coalesce("current_user_id", "user_id")
        people = people.join(names, on="user_id", how="left").withColumn("user_id", current)
    return people.withColumn("subject_key", _resolved_key()).select(*columns)


def _resolved_key() -> Column:
    return F.coalesce(F.concat(F.lit("u:"), F.col("user_id")), F.col("subject_key"))


def resolve_events(events: DataFrame, edges: DataFrame) -> DataFrame:
    """`events` with the persons they belong to by `edges` (`identity_edges`): `resolve_subjects` with what it needs.

    Asks `edges` (twice, keep it in memory) whether there is anything to do: most shops know few devices.
    """
    if edges.isEmpty():
        return events
    names = None if edges.filter("is_alias").isEmpty() else current_names(edges)
    stretches = computed(device_stretches(edges))  # else planned, and made, for each that reads the events
    are_few = stretches.count() <= MOST_BROADCAST
    return resolve_subjects(events, F.broadcast(stretches) if are_few else stretches, names, at_once=are_few)


def under_current_names(users: DataFrame, edges: DataFrame) -> DataFrame:
    """`users` (one column, user_id) and what they are called now: a no that somebody said under a former name holds."""
    if edges.filter("is_alias").isEmpty():
        return users
    renamed = users.join(current_names(edges), on="user_id", how="inner")
    return users.union(renamed.select("current_user_id")).distinct()


def links(edges: DataFrame) -> DataFrame:
    """Which subjects the edges tie together, both ways: subject_key string, other_key string.

    Dead edges and devices of too many users tie nobody. A former name is tied as a user too.
    """
    users = F.count(F.lit(1)).over(Window.partitionBy("anonymous_id"))
    is_live = F.col("undone_at").isNull() | (F.col("last_seen_at") > F.col("undone_at"))
    live = edges.filter(is_live).withColumn("_users", users)
    user, device = F.concat(F.lit("u:"), "user_id"), F.concat(F.lit("a:"), "anonymous_id")
    pairs = live.filter(F.col("_users") <= MAX_DEVICE_USERS).select(
        device.alias("subject_key"), user.alias("other_key")
    )
    former = F.concat(F.lit("u:"), "anonymous_id")
    pairs = pairs.union(live.filter("is_alias").select(former, user))
    return pairs.union(pairs.select("other_key", "subject_key")).distinct()


def subjects_of_changes(before: DataFrame, after: DataFrame) -> DataFrame:
    """Both ends of every edge that is not the same in both. Returns: subject_key string, not distinct."""
    columns = ("anonymous_id", "user_id", "is_alias", "first_seen_at", "last_seen_at", "undone_at")
    old, new = before.select(*columns), after.select(*columns)
    changed = old.exceptAll(new).union(new.exceptAll(old))
    ends = F.array(*(F.concat(F.lit(kind), name) for kind, name in (("a:", "anonymous_id"), ("u:", "user_id"))))
    former = F.when(F.col("is_alias"), F.array(F.concat(F.lit("u:"), "anonymous_id"))).otherwise(F.array())
    return changed.select(F.explode(F.concat(ends, former.cast("array<string>"))).alias("subject_key"))


def connected(subjects: DataFrame, ties: DataFrame) -> DataFrame:
    """`subjects` and everybody whom `ties` (`links`) connect with them, near or far. Returns: subject_key, distinct.

    One query for each step away; persons are a few steps wide. Each is `computed`: else the plan would double with
    every step.
    """
    reached = computed(subjects.select("subject_key").distinct())
    count = reached.count()
    while True:
        near = ties.join(reached, on="subject_key", how="left_semi").select(F.col("other_key").alias("subject_key"))
        reached = computed(reached.union(near).distinct())
        before, count = count, reached.count()
        if count == before:
            return reached
