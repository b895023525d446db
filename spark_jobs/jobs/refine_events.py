"""Bronze to silver: check, deduplicate and flag events; make sessions and interactions.

Reads   run.json; the bronze tables at their pinned versions; silver as it stands
Writes  quality.json and quality.html (and both to MLflow);
        silver.quarantine, silver.quality_flags, silver.sessions, silver.interactions (side by side), then
        silver.identity_edges, then silver.events; refine.json
        (in this order: the last commit carries the state, so a run killed in between is simply derived again. A large
        history is too wide to be kept: then silver.events and silver.quarantine come first, what follows from events is
        made from what was written, and a last commit to silver.events carries the state)

A run derives the event days that changed since the last one, or every day. Both ways give the same tables.
Raises DataError, with silver untouched, when the data breaks a limit of the quality gate or nothing is left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import cache, partial, reduce
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.changes import ITEMS, USERS
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import QUALITY_FILE, QUALITY_PAGE, REFINE_FILE, Run
from feature_repo.contracts.sequences import NOT_LEARNED_FROM
from feature_repo.contracts.tables import table
from spark_jobs.engine import is_cluster
from spark_jobs.io import tracking
from spark_jobs.io.catalogue import all_records, in_run, read_items, read_users
from spark_jobs.io.delta import frame_of, note_on_table, overwrite_partitions, read_table, side_by_side, spark_schema
from spark_jobs.io.light_delta import NO_DAY, days_by_row_count
from spark_jobs.io.refine_state import EVENT_TABLES, read_state, state_after
from spark_jobs.io.run_store import write_report
from spark_jobs.jobs.deliveries_in_memory import delivered, fits_in_memory, sorted_apart
from spark_jobs.jobs.entry import run_job
from spark_jobs.jobs.refine_counts import count_deliveries, refuse_if_empty
from spark_jobs.jobs.refine_in_memory import (
    doubtful_deeds,
    identity_of,
    kept_of,
    look_through,
    make_history_tables,
    outcomes_of,
    read_history,
    with_current_names,
    write_events,
    write_history,
)
from spark_jobs.quality.gate import QualityReport, check_quality
from spark_jobs.quality.profile import Delivered, delivered_by_spark
from spark_jobs.session import runs_on_cluster, session_beside
from spark_jobs.transforms.bots import find_bots, flag_bots
from spark_jobs.transforms.computed import computed
from spark_jobs.transforms.consent import denying_in, users_denying, users_who_changed
from spark_jobs.transforms.deliveries import by_exception, mark, of_doubtful, of_marked
from spark_jobs.transforms.doubts import Repeated
from spark_jobs.transforms.events import check_deliveries, quarantine_rows, repeated_ids, subject_key
from spark_jobs.transforms.identity import (
    SIGHTING_COLUMNS,
    connected,
    identity_edges,
    links,
    resolve_events,
    subjects_of_changes,
    under_current_names,
)
from spark_jobs.transforms.interactions import select_interactions
from spark_jobs.transforms.sequences import READS, find_breaks, find_breaks_among, may_break
from spark_jobs.transforms.sessions import assign_sessions, summarise_sessions

Keep = Callable[[DataFrame], DataFrame]
"""What is done with a frame that many queries use: `computed` (the few rows of some days) or `_persisted`."""

MOST_COMPUTED = 400_000
"""Deliveries up to which planning costs more than work."""
_AT_ONCE = 2
"""What Spark is asked beside what is read and written from Arrow."""

USER_TABLES = ("bronze.users", "bronze.user_changes")
_LONGEST_TAG = 4000
_EVENT_DATE = "event_date"
_SESSION_COLUMNS = ("event_id", "event_type", "user_id", "item_id", "session_id", "subject_key", "event_timestamp",
                    "quantity", "price", "consent_train", "is_bot", "event_date")  # fmt: skip
_DEED_COLUMNS = (*READS, "user_id")
_HISTORY_COLUMNS = tuple(dict.fromkeys((*_SESSION_COLUMNS, *_DEED_COLUMNS)))


@dataclass(frozen=True, slots=True)
class Scope:
    """What one derivation covers. `days` None means every day before as_of, and every subject.

    subjects  one column, subject_key: everybody whose sessions or interactions may change
    """

    days: frozenset[date] | None
    subjects: DataFrame | None


def main(environment: Environment, run: Run) -> None:
    on_cluster = runs_on_cluster()
    with session_beside("refine_events") as session, ThreadPoolExecutor(1) as beside:
        apart = set_apart(environment, run, on_cluster=on_cluster)
        told: list[Future[None]] = []  # MLflow takes seconds that Spark does not need

        def tell(quality: QualityReport) -> None:
            told.append(beside.submit(log_quality, environment, run, quality))
            if quality.breach is not None:
                told[0].result()

        report = refine_events(session(), environment, run, tell=tell, ask_apart=lambda: apart)
        told[0].result()
    words = ", ".join(f"{count:,} {name}" for name, count in report["total"].items())
    print(f"{run.run_key}: {words}; {report['sessions']:,} sessions, {report['interactions']:,} interactions")


def log_quality(environment: Environment, run: Run, quality: QualityReport) -> None:
    """The quality report under `quality/` of the night's MLflow run, which ends here when a limit is broken."""
    files = {
        f"quality/{QUALITY_FILE}": json.dumps(quality.document, indent=1, sort_keys=True, ensure_ascii=False),
        f"quality/{QUALITY_PAGE}": quality.page,
    }
    tags = {"nightjar.quality": quality.verdict.level}
    tracking.log_report(environment, run.mlflow_run_id, files=files, tags=tags, metrics=quality.metrics)
    if quality.breach is not None:
        reason = {"nightjar.failed_because": quality.breach[:_LONGEST_TAG]}
        tracking.end_night(environment, run.mlflow_run_id, "FAILED", tags=reason)


def refine_events(
    spark: SparkSession,
    environment: Environment,
    run: Run,
    *,
    tell: Callable[[QualityReport], None] | None = None,
    ask_apart: Callable[[], Repeated | None] | None = None,
) -> dict[str, Any]:
    """Derive silver for `run`; returns what it wrote to refine.json. `tell` gets the verdict on the data at once.
    `ask_apart` gives what `set_apart` of this run did, where somebody has asked before."""
    apart = set_apart(environment, run, on_cluster=is_cluster(spark)) if ask_apart is None else ask_apart()
    try:
        with ThreadPoolExecutor(_AT_ONCE) as beside:
            return _refine(spark, environment, run, apart, tell, beside)
    finally:
        spark.catalog.clearCache()  # all at once: of each frame that goes alone Spark would plan what is left anew


def set_apart(environment: Environment, run: Run, *, on_cluster: bool) -> Repeated | None:
    """`sorted_apart` where the run derives, on this machine alone, a large history that fits in memory; None: Spark
    sorts out the deliveries. Needs no session."""
    if on_cluster or run.derive_days is not None or _may_be_derived(environment, run) <= MOST_COMPUTED:
        return None
    return sorted_apart(environment, run) if fits_in_memory(environment, run) else None


def _refine(
    spark: SparkSession,
    environment: Environment,
    run: Run,
    apart: Repeated | None,
    tell: Callable[[QualityReport], None] | None,
    beside: ThreadPoolExecutor,
) -> dict[str, Any]:
    state = read_state(environment)
    is_large = _may_be_derived(environment, run) > MOST_COMPUTED
    keep = _persisted if is_large else computed
    by_exceptions = is_large and run.derive_days is None
    scope = Scope(None, None)
    # A table that Spark reads costs it seconds, for its log alone: what is in memory is not asked of Spark.
    if apart is None:
        deliveries = _read_deliveries(spark, environment, run)
        users = keep(read_users(spark, environment, in_run(run.pins)))
    else:
        said = all_records(environment, USERS, in_run(run.pins))
    if run.derive_days is not None:
        before = users
        if state is not None and any(in_run(state.pins)[name] != in_run(run.pins)[name] for name in USER_TABLES):
            before = read_users(spark, environment, in_run(state.pins))
        scope, deliveries = _narrow(run, deliveries, before, users, keep)
        deliveries = keep(deliveries)
    if apart is None:
        denying = users_denying(users, "store")
    kept = None
    if apart is not None:
        refused = denying_in(said, "store")
        sorted_out = of_doubtful(frame_of(spark, apart.doubtful), frame_of(spark, pa.table({"user_id": refused})))
    elif by_exceptions:
        sorted_out = by_exception(deliveries, denying)
    else:
        marked = keep(mark(deliveries, keep(repeated_ids(deliveries)), denying))
        sorted_out = of_marked(marked, marked if scope.days is None else marked.filter(_day().isin(sorted(scope.days))))
    outcomes, suspects = sorted_out.outcomes, [sorted_out.kept]
    if apart is not None:
        kept = kept_of(environment, run, apart, sorted_out.checked, refused)
        others, some = look_through(kept)
        outcomes = [*outcomes, *outcomes_of(apart, kept.denying), *others]
        suspects = [frame_of(spark, rows) for rows in some]
    finding_bots = beside.submit(_bots_among, suspects) if apart is not None else None
    report = count_deliveries(environment, run, scope.days, outcomes)
    write_report(environment, run.run_key, REFINE_FILE, report)

    def look(first: date, end: date) -> Delivered:
        if apart is not None:
            checked = sorted_out.checked
            return delivered(spark, environment, run, first, items=_prices(environment, run), marked=checked)
        in_window = (F.col(_EVENT_DATE) >= F.lit(first)) & (F.col(_EVENT_DATE) < F.lit(end))
        if scope.days is None:
            checked = sorted_out.checked.filter(in_window)
        else:
            checked = keep(check_deliveries(_read_deliveries(spark, environment, run).filter(in_window)))
        return delivered_by_spark(checked, _catalogue(spark, environment, run), first=first, end=end)

    quality = check_quality(
        environment, run, look=look, counts=report,
        catalogue_version_before=state.pins.get("bronze.items") if state is not None else None,
    )  # fmt: skip
    if tell is not None:
        tell(quality)
    if quality.breach is not None:
        raise DataError(quality.breach, field=quality.verdict.stopping[0].limit)
    refuse_if_empty(run, report)

    before_as_of = f"`{_EVENT_DATE}` < DATE'{run.as_of}'" if scope.days is None else {_EVENT_DATE: scope.days}
    bots = _bots_among(suspects) if finding_bots is None else finding_bots.result()
    bot_events: int | None = None
    writes: list[Callable[[], None]] = []
    if report["total"]["quarantined"] or _rows_before(environment, "silver.quarantine", run):
        columns = list(table("bronze.events").columns)
        quarantine = quarantine_rows(sorted_out.rejected, columns=columns, no_day=NO_DAY)
        writes.append(partial(overwrite_partitions, quarantine, environment, "silver.quarantine", before_as_of))
    if kept is not None:
        # Written first and read again, a few columns at a time. Without the state: this run is not over.
        writes.append(partial(make_history_tables, spark, environment))
        by_spark = [beside.submit(write) for write in writes]
        seen, bot_events = write_events(spark, environment, run, kept, bots)
        writes = []
        for written in by_spark:
            written.result()
    else:
        events = flag_bots(sorted_out.kept, bots).select(*table("silver.events").columns)
        if by_exceptions:  # as above
            overwrite_partitions(events, environment, "silver.events", before_as_of, as_it_lies=True)
            stored = read_table(spark, environment, "silver.events")
            events = stored.filter(F.col(_EVENT_DATE) < F.lit(run.as_of_day))
    edges_before = read_table(spark, environment, "silver.identity_edges")
    met = events.select(*SIGHTING_COLUMNS) if kept is None else frame_of(spark, seen)
    edges = keep(identity_edges(_sightings(spark, environment, run, scope, met)))
    scope = _with_persons(scope, edges_before, edges)

    @cache
    def history() -> DataFrame:
        if by_exceptions:
            return read_table(spark, environment, "silver.events").select(*_HISTORY_COLUMNS)
        rows = _unchanged_events(spark, environment, run, scope).unionByName(events.select(*_HISTORY_COLUMNS))
        return rows if scope.days is None else keep(rows)

    sessions_of_all = doubtful = None
    if kept is not None:
        identity = beside.submit(identity_of, edges)  # while events are read
        sessions_of_all = read_history(environment, identity.result)
        doubtful = doubtful_deeds(sessions_of_all)
    if sessions_of_all is not None and doubtful is not None:
        asked = frame_of(spark, doubtful)
        breaks, break_counts = _counted_breaks(keep(find_breaks_among(asked, [*sessions_of_all.doubts])))
    else:
        deeds = history().select(*_DEED_COLUMNS)
        breaks, break_counts = _sequence_breaks(deeds, edges, keep, keeps_deeds=not by_exceptions)
    untold = None
    if breaks is not None:
        untold = breaks.filter(F.col("rule").isin([rule.value for rule in NOT_LEARNED_FROM]))

    replace_subjects = partial(_replace_subjects, environment, scope=scope, as_it_lies=by_exceptions)
    if sessions_of_all is not None:
        denied_ids = with_current_names(denying_in(said, "train"), identity.result()[1])
        writes.append(partial(write_history, environment, sessions_of_all, denied=denied_ids, untold=untold))
    else:
        denied = under_current_names(users_denying(users, "train"), edges)
        assigned = assign_sessions(resolve_events(history().select(*_SESSION_COLUMNS), edges))
        if not by_exceptions:
            assigned = keep(assigned)
        interactions = select_interactions(assigned, denied)
        if untold is not None:
            interactions = interactions.join(untold.select("event_id"), on="event_id", how="left_anti")
        writes += [
            partial(replace_subjects, "silver.sessions", summarise_sessions(assigned)),
            partial(replace_subjects, "silver.interactions", interactions),
        ]
    if breaks is not None or any(days_by_row_count(environment, "silver.quality_flags").values()):
        writes.append(
            partial(replace_subjects, "silver.quality_flags", _no_breaks(spark) if breaks is None else breaks)
        )
    side_by_side(*writes)
    # After what follows from them: a run killed before this still sees which edges changed.
    if _days_that_differ(edges_before, edges, _EVENT_DATE):
        overwrite_partitions(edges, environment, "silver.identity_edges", None)
    if by_exceptions:
        note_on_table(spark, environment, "silver.events", state_after(state, run))
    else:
        overwrite_partitions(events, environment, "silver.events", before_as_of, user_metadata=state_after(state, run))

    report |= {
        "bots": bots.count(),
        "bots_by_rule": _count_words(bots.select(F.explode("bot_rules").alias("rule")), "rule"),
        "bot_events": events.filter("is_bot").count() if bot_events is None else bot_events,
        "sequence_breaks": break_counts,
        **{name: _rows_before(environment, f"silver.{name}", run) for name in ("events", "sessions", "interactions")},
    }
    write_report(environment, run.run_key, REFINE_FILE, report)
    return report


def _may_be_derived(environment: Environment, run: Run) -> int:
    """At least as many deliveries as this run derives: those of its days, or all."""
    days = None if run.derive_days is None else {date.fromisoformat(day) for day in run.derive_days}
    return sum(
        count
        for name in EVENT_TABLES
        for day, count in days_by_row_count(environment, name, run.pins.get(name, -1)).items()
        if days is None or day in days
    )


def _persisted(frame: DataFrame) -> DataFrame:
    """`frame`, computed when it is first asked for, and kept in columns: for what may be the whole history."""
    return frame.persist()


def _day() -> Column:
    """The day a delivery lies under, NO_DAY when it has none."""
    return F.coalesce(F.col(_EVENT_DATE), F.lit(NO_DAY))


def _read_deliveries(spark: SparkSession, environment: Environment, run: Run) -> DataFrame:
    """Every pinned delivery of a day before as_of; `table` names where it comes from."""
    sources = [
        read_table(spark, environment, name, run.pins[name]).withColumn("table", F.lit(name))
        for name in EVENT_TABLES
        if run.pins.get(name, -1) >= 0
    ]
    empty = read_table(spark, environment, EVENT_TABLES[0], -1).withColumn("table", F.lit(EVENT_TABLES[0]))
    return reduce(lambda some, more: some.unionByName(more), sources or [empty]).filter(_day() < F.lit(run.as_of_day))


def _prices(environment: Environment, run: Run) -> pa.Table:
    """What `_catalogue` says, from Arrow."""
    pins = in_run({"bronze.items": -1, **run.pins})
    return all_records(environment, ITEMS, pins, cut_off=run.cut_off).select(["item_id", "price"])


def _catalogue(spark: SparkSession, environment: Environment, run: Run) -> DataFrame:
    pins = in_run({"bronze.items": -1, **run.pins})
    return read_items(spark, environment, pins, cut_off=run.cut_off).select("item_id", "price")


def _narrow(
    run: Run, deliveries: DataFrame, users_before: DataFrame, users: DataFrame, keep: Keep
) -> tuple[Scope, DataFrame]:
    """What an incremental run must derive, and the deliveries it needs for that.

    Days: those that changed; those of users who gave or withdrew consent to storing; and those that share an event_id
    with them, because a first delivery that appears on one day makes a duplicate on another.
    Deliveries: those days', and any delivery elsewhere of the same events.
    Subjects: everybody with a delivery on those days, and users who gave or withdrew consent to training.
    """
    days = {date.fromisoformat(day) for day in run.derive_days or ()}
    if users_before is not users:
        stored = users_who_changed(users_before, users, ("store",))
        days |= _days_of(deliveries.join(stored, on="user_id", how="left_semi"))
    in_days = _day().isin(sorted(days))
    shared = deliveries.filter(in_days).select("event_id").distinct()
    days |= _days_of(deliveries.select("event_id", _EVENT_DATE).join(shared, on="event_id", how="left_semi"))

    in_days = _day().isin(sorted(days))
    inside = deliveries.filter(in_days)
    elsewhere = deliveries.filter(~in_days).join(inside.select("event_id").distinct(), on="event_id", how="left_semi")
    subjects = inside.select(subject_key().alias("subject_key")).filter(F.col("subject_key").isNotNull())
    if users_before is not users:
        changed = users_who_changed(users_before, users, ("train",))
        subjects = subjects.union(changed.select(F.concat(F.lit("u:"), "user_id")))
    return Scope(frozenset(days), keep(subjects.distinct())), inside.unionByName(elsewhere)


def _local(*frames: DataFrame) -> DataFrame:
    """Their rows, computed once and kept by the driver, of a cluster by executors: for a few rows that many queries
    join."""
    if is_cluster(frames[0].sparkSession):
        return computed(reduce(lambda some, more: some.unionByName(more), frames))
    rows = [row for frame in frames for row in frame.collect()]
    return frames[0].sparkSession.createDataFrame(rows, frames[0].schema)


def _bots_among(suspects: Sequence[DataFrame]) -> DataFrame:
    return _local(*(find_bots(some) for some in suspects))


def _days_of(deliveries: DataFrame) -> set[date]:
    return {row[0] for row in deliveries.select(_day()).distinct().collect()}


def _sightings(spark: SparkSession, environment: Environment, run: Run, scope: Scope, met: DataFrame) -> DataFrame:
    """Events of silver that name both ids: of the days that are derived from `met`, of the others as stored."""
    both = F.col("user_id").isNotNull() & F.col("anonymous_id").isNotNull()
    days = days_by_row_count(environment, "silver.events")
    if not any(day >= run.as_of_day if scope.days is None else day not in scope.days for day in days):
        return met.filter(both)
    stored = read_table(spark, environment, "silver.events").select(*SIGHTING_COLUMNS, _EVENT_DATE)
    day = F.col(_EVENT_DATE)
    others = stored.filter(day >= F.lit(run.as_of_day) if scope.days is None else ~day.isin(sorted(scope.days)))
    return others.select(*SIGHTING_COLUMNS).unionByName(met).filter(both)


def _with_persons(scope: Scope, before: DataFrame, after: DataFrame) -> Scope:
    """`scope` with everybody whom the edges, as they were or as they are, connect with its subjects.

    So an edge that appears, or is undone, derives again what its person did on days on which nothing else changed.
    """
    if scope.subjects is None or (before.isEmpty() and after.isEmpty()):
        return scope
    touched = scope.subjects.union(subjects_of_changes(before, after))
    return Scope(scope.days, connected(touched, links(before).union(links(after)).persist()))


def _sequence_breaks(
    deeds: DataFrame, edges: DataFrame, keep: Keep, *, keeps_deeds: bool
) -> tuple[DataFrame | None, dict[str, int]]:
    """(the rules on sequences that these events break, how often each); (None, {}) when no event breaks any.

    Sequences are a person's: by `edges` it is known whose the events are.
    """
    possible = may_break(deeds)
    if not possible:
        return None, {}
    resolved = resolve_events(deeds, edges)
    events = keep(resolved) if keeps_deeds else resolved  # every rule reads the history
    return _counted_breaks(keep(find_breaks(events, possible)))


def _counted_breaks(breaks: DataFrame) -> tuple[DataFrame | None, dict[str, int]]:
    counts = _count_words(breaks, "rule")
    return (breaks, counts) if counts else (None, {})


def _no_breaks(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame([], spark_schema("silver.quality_flags"))


def _count_words(frame: DataFrame, column: str) -> dict[str, int]:
    return {row[0]: row["count"] for row in frame.groupBy(column).count().orderBy(column).collect()}


def _unchanged_events(spark: SparkSession, environment: Environment, run: Run, scope: Scope) -> DataFrame:
    """Silver events of the days that are not derived, of the subjects in scope: the rest of their sessions."""
    stored = read_table(spark, environment, "silver.events").select(*_HISTORY_COLUMNS)
    if scope.days is None:
        return stored.filter(F.col(_EVENT_DATE) >= F.lit(run.as_of_day))
    assert scope.subjects is not None
    others = stored.filter(~F.col(_EVENT_DATE).isin(sorted(scope.days)))
    return others.join(scope.subjects, on="subject_key", how="left_semi").select(*_HISTORY_COLUMNS)


def _replace_subjects(
    environment: Environment, name: str, rows: DataFrame, *, scope: Scope, as_it_lies: bool = False
) -> None:
    """Make `rows` all that a table says about the subjects in scope; days on which nothing changes are not written."""
    if scope.subjects is None:
        overwrite_partitions(rows, environment, name, None, as_it_lies=as_it_lies)
        return
    (day_column,) = table(name).partition_by
    rows = rows.select(*table(name).columns)
    stored = read_table(rows.sparkSession, environment, name)
    replaced = stored.join(scope.subjects, on="subject_key", how="left_semi").select(*rows.columns)
    days = _days_that_differ(replaced, rows, day_column)
    in_days = F.col(day_column).isin(sorted(days))
    others = stored.filter(in_days).join(scope.subjects, on="subject_key", how="left_anti")
    overwrite_partitions(others.unionByName(rows.filter(in_days)), environment, name, {day_column: days})


def _days_that_differ(old: DataFrame, new: DataFrame, day_column: str) -> Collection[date]:
    """Days whose rows are not the same multiset, by count and sum of 64-bit row hashes."""

    def hashed(frame: DataFrame, sign: int) -> DataFrame:
        row_hash = F.xxhash64(*frame.columns).cast("decimal(38,0)")
        return frame.select(day_column, F.lit(sign).alias("sign"), (row_hash * sign).alias("row_hash"))

    both = hashed(old, -1).unionByName(hashed(new.select(*old.columns), 1))
    days = both.groupBy(day_column).agg(F.sum("sign").alias("more"), F.sum("row_hash").alias("other"))
    return sorted(row[0] for row in days.filter("more <> 0 or other <> 0").collect())


def _rows_before(environment: Environment, name: str, run: Run) -> int:
    return sum(count for day, count in days_by_row_count(environment, name).items() if day < run.as_of_day)


if __name__ == "__main__":
    run_job(main)
