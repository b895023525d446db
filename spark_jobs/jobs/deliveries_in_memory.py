"""The part of `refine_events` that sorts out the deliveries of a whole history, read from Arrow a day at a time.

Nearly every delivery breaks no rule and came once. Those in doubt are told apart here (`transforms.doubts`); about them
Spark decides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import MOST_IN_MEMORY, Run
from spark_jobs.io.day_files import DayFile, day_files
from spark_jobs.io.delta import frame_of
from spark_jobs.io.interactions import words_of
from spark_jobs.io.light_delta import NO_DAY, arrow_schema, days_by_row_count, with_missing
from spark_jobs.io.refine_state import EVENT_TABLES
from spark_jobs.models.threads import by_blocks, thread_count
from spark_jobs.quality.profile import Day, Delivered
from spark_jobs.quality.profile_in_memory import PROFILE_COLUMNS, PROFILE_WORDS, Broken, profile_day
from spark_jobs.transforms.deliveries import MOST_BROADCAST
from spark_jobs.transforms.doubts import RULE_COLUMNS, RULE_WORDS, Repeated, may_break_rule, sort_out_repeated
from spark_jobs.transforms.events import rejection_reason
from spark_jobs.transforms.quality import LIVE_TABLES, MAX_SOURCES, count_property_keys
from spark_jobs.transforms.whole_history import more_than_once, short_hashes

MOST_OF_DAY = 2_000_000
"""Deliveries of one day: they are held with all their columns, three days at once."""
MOST_SIDE_BY_SIDE = 300_000
"""Deliveries of the largest day up to which two days are worked on at once, and up to seven are held."""
MOST_APART = 3_000_000
"""Deliveries that came more than once, or may break a rule: they are held with all their columns."""


def fits_in_memory(environment: Environment, run: Run) -> bool:
    """Whether a whole history, and each of its days, is small enough for one process."""
    days: Counter[date] = Counter()
    for name in EVENT_TABLES:
        days.update(days_by_row_count(environment, name, run.pins.get(name, -1)))
    return days.total() <= MOST_IN_MEMORY and max(days.values(), default=0) <= MOST_OF_DAY


def files_before(
    environment: Environment, run: Run, *, words: Sequence[str] = (), since: date = date.min
) -> list[tuple[str, DayFile]]:
    """(table, file) of the pinned deliveries of days in [since, as_of); those without a day are of NO_DAY."""
    return [
        (name, file)
        for name in EVENT_TABLES
        for file in day_files(environment, name, run.pins.get(name, -1), words=words)
        if since <= (file.day or NO_DAY) < run.as_of_day
    ]


def sorted_apart(environment: Environment, run: Run) -> Repeated | None:
    """The pinned deliveries before as_of whose id another one has too, and those that may break a rule, with the
    columns of bronze.events and `table`. None when there are too many of them, here or for Spark."""
    files = [file for _, file in files_before(environment, run, words=RULE_WORDS)]
    threads = threads_for(files)
    looked_at = list(by_blocks(_hashes_and_marks, files, threads=threads))
    hashes, marks = [one[0] for one in looked_at], [one[1] for one in looked_at]
    several = more_than_once(_joined(hashes, np.uint64))
    schema = arrow_schema("bronze.events")

    def apart_of(part: tuple[tuple[str, DayFile], NDArray[np.uint64], NDArray[np.bool_]]) -> tuple[list[pa.Table], Any]:
        (name, file), of_file, is_doubted = part
        is_apart = _is_among(of_file, several) | is_doubted
        begin, found = 0, []
        for batch in file.batches(schema.names) if is_apart.any() else ():
            some = is_apart[begin : begin + batch.num_rows]
            begin += batch.num_rows
            if some.any():
                rows = with_missing(pa.table(batch).filter(pa.array(some)), schema)
                found.append(rows.append_column("table", pa.array([name] * rows.num_rows, pa.string())))
        return found, is_doubted[is_apart]

    found, doubted, count = [], [], 0
    parts = zip(files_before(environment, run), hashes, marks, strict=True)
    for rows, is_doubted in by_blocks(apart_of, parts, threads=threads):
        found += rows
        doubted.append(is_doubted)
        count += len(is_doubted)
        if count > MOST_APART:
            return None
    nothing = schema.append(pa.field("table", pa.string())).empty_table()
    apart = sort_out_repeated(pa.concat_tables([nothing, *found]), _joined(doubted, bool))
    return apart if apart.doubtful.num_rows <= MOST_BROADCAST else None


def threads_for(files: Iterable[DayFile]) -> int:
    """How many of these files, or of their days, are worked on at once."""
    days: Counter[date | None] = Counter()
    for file in files:
        days[file.day] += file.fragment.count_rows()
    return min(2, thread_count()) if max(days.values(), default=0) <= MOST_SIDE_BY_SIDE else 1


def _hashes_and_marks(file: DayFile) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """By row of a file a hash of its event_id, and whether it may break a rule."""
    batches = [*file.batches(RULE_COLUMNS)]
    hashes = _joined([short_hashes(batch["event_id"]) for batch in batches], np.uint64)
    return hashes, _joined([may_break_rule(_with_nulls(batch), file.day) for batch in batches], bool)


def delivered(
    spark: SparkSession, environment: Environment, run: Run, first: date, *, items: pa.Table, marked: DataFrame
) -> Delivered:
    """What came on the days [first, as_of): `items` has item_id and price, `marked` are the doubtful deliveries with
    broken_rule."""
    broken = _broken_by_day(marked, first)
    by_day: dict[date, list[tuple[str, DayFile]]] = defaultdict(list)
    for name, file in files_before(environment, run, words=PROFILE_WORDS, since=first):
        by_day[file.day or NO_DAY].append((name, file))

    def looked_at(day: date) -> tuple[Day, Counter[str], pa.Table]:
        rows = _rows_of_day(by_day.get(day, []))
        return profile_day(day, rows, items, broken.get(day, [])), _imports_of(rows), _counted_texts(day, rows)

    profiles, texts = [], []
    sources: dict[date, Counter[str]] = {}
    days_asked = [first + timedelta(days=n) for n in range((run.as_of_day - first).days)]
    threads = threads_for(file for files in by_day.values() for _, file in files)
    for day, (profile, imports, counted) in zip(
        days_asked, by_blocks(looked_at, days_asked, threads=threads), strict=True
    ):
        profiles.append(profile)
        sources[day] = imports
        texts.append(counted)
    keys = _property_keys(spark, pa.concat_tables(texts))
    days = [replace(profile, property_keys=dict(sorted(keys.get(profile.day, {}).items()))) for profile in profiles]
    return Delivered(days, partial(_brought, sources))


def _rows_of_day(files: Sequence[tuple[str, DayFile]]) -> pa.Table:
    """The rows of some files with PROFILE_COLUMNS, PROFILE_WORDS of them as dictionaries of one chunk, and `table`."""
    wanted = [name for name in PROFILE_COLUMNS if name not in PROFILE_WORDS]
    schema = pa.schema([arrow_schema("bronze.events").field(name) for name in wanted])
    found = []
    for name, file in files:
        for batch in file.batches(PROFILE_COLUMNS):
            stored = pa.table(batch)
            rows = with_missing(stored, schema).append_column("table", pa.repeat(name, stored.num_rows))
            for word in PROFILE_WORDS:
                rows = rows.append_column(word, words_of(stored, word).cast(pa.string()))
            found.append(rows)
    if not found:
        return pa.table({})
    whole = pa.concat_tables(found).combine_chunks()
    for word in PROFILE_WORDS:
        whole = whole.set_column(whole.schema.get_field_index(word), word, whole[word].dictionary_encode())
    return whole.combine_chunks()


def _broken_by_day(marked: DataFrame, first: date) -> dict[date, list[Broken]]:
    rows = marked.filter(F.col("broken_rule").isNotNull() & (F.col("event_date") >= F.lit(first)))
    counts = rows.groupBy("event_date", "event_type", rejection_reason().alias("reason")).count().collect()
    found: dict[date, list[Broken]] = defaultdict(list)
    for day, event_type, reason, count in counts:
        found[day].append(Broken(event_type, reason, count))
    return found


def _imports_of(rows: pa.Table) -> Counter[str]:
    """How many deliveries each imported file brought."""
    if not rows.num_rows:
        return Counter()
    is_live = pc.is_in(rows["table"], value_set=pa.array(LIVE_TABLES))
    counts = pc.value_counts(rows["source"].filter(pc.invert(is_live)).cast(pa.string()))
    return Counter({one["values"]: one["counts"] for one in counts.to_pylist()})


def _brought(sources: Mapping[date, Counter[str]], judged: Collection[date]) -> dict[str, int]:
    """`quality.count_sources` of the judged days."""
    every, theirs = Counter[str](), Counter[str]()
    for day, counts in sources.items():
        every.update(counts)
        if day in judged:
            theirs.update(counts)
    brought = {source: count for source, count in theirs.items() if count * 2 >= every[source]}
    return dict(sorted(brought.items(), key=lambda one: (-one[1], one[0] or ""))[:MAX_SOURCES])


def _counted_texts(day: date, rows: pa.Table) -> pa.Table:
    """Each text of `properties` once, with how many deliveries of the day have it. Returns: event_date, properties,
    deliveries."""
    texts = rows["properties"].cast(pa.string()).drop_null() if rows.num_rows else pa.chunked_array([], pa.string())
    counts = pc.value_counts(texts)
    columns = [pa.repeat(pa.scalar(day, pa.date32()), len(counts)), counts.field("values"), counts.field("counts")]
    return pa.table(columns, names=["event_date", "properties", "deliveries"])


def _property_keys(spark: SparkSession, texts: pa.Table) -> dict[date, dict[str, int]]:
    found: dict[date, dict[str, int]] = defaultdict(dict)
    if texts.num_rows:
        for row in count_property_keys(frame_of(spark, texts)).collect():
            found[row["event_date"]][row["key"]] = row["deliveries"]
    return found


def _with_nulls(batch: pa.RecordBatch) -> Mapping[str, pa.Array]:
    """RULE_COLUMNS of a batch, as they came; those that the stored table lacks are null."""
    schema = arrow_schema("bronze.events")
    return {
        name: batch[name] if name in batch.schema.names else pa.nulls(batch.num_rows, schema.field(name).type)
        for name in RULE_COLUMNS
    }


def _joined(arrays: Sequence[NDArray[Any]], kind: type) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, kind)


def _is_among(hashes: NDArray[np.uint64], several: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(several):
        return np.zeros(len(hashes), bool)
    place = np.minimum(np.searchsorted(several, hashes), len(several) - 1)
    return np.asarray(several[place] == hashes)
