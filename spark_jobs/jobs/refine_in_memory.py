"""The part of `refine_events` that writes the rows of a whole history: read, and written, a day at a time from Arrow.

What decides about the rows (which deliveries are exceptions, who is a bot, whose a device is) Spark has found: it is
small, and comes here as frames.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.events import EventType
from feature_repo.contracts.run import Run
from feature_repo.contracts.tables import table
from spark_jobs.io.day_files import DayFile, day_files, write_days
from spark_jobs.io.delta import create_if_missing, side_by_side
from spark_jobs.io.interactions import words_of
from spark_jobs.io.light_delta import NO_DAY, arrow_schema, days_by_row_count, with_missing
from spark_jobs.io.refine_state import EVENT_TABLES
from spark_jobs.transforms.deliveries import Outcome, counting
from spark_jobs.transforms.identity import current_names, device_stretches
from spark_jobs.transforms.whole_history import (
    People,
    Sessions,
    interaction_rows,
    more_than_once,
    session_days,
    session_rows,
    short_hashes,
    split_sessions,
    subject_keys,
    suspects,
    whose,
)

MOST_IN_MEMORY = 30_000_000
"""Deliveries of which the driver can hold what sessions are made from: some thirty bytes each, and their texts."""
MOST_OF_DAY = 2_000_000
"""Deliveries of one day: they are held with all their columns, three days at once."""
MOST_SUSPECTS = 1_000_000
"""Rows that are handed to Spark to find bots among."""
ROWS_OF_FILE = 1_000_000

_KEYS = ("subject_key", "session_id", "item_id", "event_type")
_OF_BOTS = ("event_id", "user_id", "anonymous_id", "event_type", "event_timestamp", "item_id", "properties")
_PAYLOAD = ("event_id", "item_id", "event_type", "event_timestamp", "quantity", "price", "consent_train")
_NO_TEXTS = pa.array([], pa.string())
_FIRST_DAY = date(1970, 1, 1)


class Kept(NamedTuple):
    """The deliveries of a whole history that count.

    files    the pinned deliveries before as_of, by day and table
    skipped  event_ids of each day that are exceptions
    winners  the rows among the exceptions that count
    denying  user_ids that do not allow storing
    """

    files: dict[date, list[tuple[str, DayFile]]]
    skipped: dict[date, pa.Array]
    winners: pa.Table
    denying: pa.Array


def fits_in_memory(environment: Environment, run: Run) -> bool:
    """Whether a whole history, and each of its days, is small enough for one process."""
    days: Counter[date] = Counter()
    for name in EVENT_TABLES:
        days.update(days_by_row_count(environment, name, run.pins.get(name, -1)))
    return days.total() <= MOST_IN_MEMORY and max(days.values(), default=0) <= MOST_OF_DAY


def ids_in_doubt(environment: Environment, run: Run) -> pa.Table:
    """event_id of the pinned deliveries before as_of whose id another one has too, and of hardly any other: of two ids
    that share a hash both are named."""
    files = [
        file
        for name in EVENT_TABLES
        for file in day_files(environment, name, run.pins.get(name, -1))
        if (file.day or NO_DAY) < run.as_of_day
    ]
    hashes = [short_hashes(batch["event_id"]) for file in files for batch in file.batches(["event_id"])]
    several = more_than_once(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)
    found = []
    again = iter(hashes)
    for file in files:
        for batch in file.batches(["event_id"]):
            is_repeated = np.isin(next(again), several)
            found.append(batch["event_id"].filter(pa.array(is_repeated)).drop_null().cast(pa.string()))
    return pa.table({"event_id": pa.chunked_array(found, pa.string()).unique()})


def kept_of(environment: Environment, run: Run, exceptions: DataFrame, denying: DataFrame) -> Kept:
    """From `deliveries.SortedOut.exceptions` and the users (user_id) who do not allow storing."""
    files: dict[date, list[tuple[str, DayFile]]] = defaultdict(list)
    for name in EVENT_TABLES:
        for file in day_files(environment, name, run.pins.get(name, -1)):
            if file.day is not None and file.day < run.as_of_day:
                files[file.day].append((name, file))
    winners = counting(exceptions).select(*table("bronze.events").columns).toArrow()
    return Kept(files, _by_day(exceptions, "event_id"), winners, _column(denying, "user_id"))


def kept_days(
    kept: Kept, columns: Sequence[str], counts: Counter[tuple[str, str]] | None = None
) -> Iterator[tuple[date, pa.Table]]:
    """Each day's rows that count, in order of days: `columns` (of them event_id, user_id and anonymous_id) and
    subject_key. `counts` gains how many deliveries of each table, the exceptions left out, were `kept` and
    `withheld`."""
    wanted = pa.schema([arrow_schema("bronze.events").field(name) for name in columns])
    for day in sorted(kept.files):
        skipped = kept.skipped.get(day, _NO_TEXTS)
        pieces = [with_missing(kept.winners.filter(pc.equal(kept.winners["event_date"], pa.scalar(day))), wanted)]
        for name, file in kept.files[day]:
            for batch in file.batches(columns):
                rows = with_missing(pa.table(batch), wanted)
                is_exception = pc.is_in(rows["event_id"], value_set=skipped)
                rows = rows.filter(pc.and_(pc.is_valid(rows["event_id"]), pc.invert(is_exception)))
                pieces.append(
                    rows.filter(pc.invert(pc.is_in(rows["user_id"], value_set=kept.denying, skip_nulls=True)))
                )
                if counts is not None:
                    counts[name, "kept"] += pieces[-1].num_rows
                    counts[name, "withheld"] += rows.num_rows - pieces[-1].num_rows
        rows = pa.concat_tables(pieces)
        yield day, rows.append_column("subject_key", subject_keys(rows["user_id"], rows["anonymous_id"]))


def look_through(kept: Kept) -> tuple[list[Outcome], pa.Table | None]:
    """(what became of the deliveries that are no exceptions, the events that can make somebody a bot:
    `whole_history.suspects`, None when they are too many to be handed over)."""
    counts: Counter[tuple[str, str]] = Counter()
    found, count = [], 0
    for day, rows in kept_days(kept, _OF_BOTS, counts):
        if count <= MOST_SUSPECTS:
            some = suspects(rows)
            found.append(some.append_column("event_date", pa.array([day] * some.num_rows, pa.date32())))
            count += some.num_rows
    outcomes = [Outcome(name, outcome, None, number) for (name, outcome), number in sorted(counts.items()) if number]
    return outcomes, pa.concat_tables(found) if found and count <= MOST_SUSPECTS else None


def write_events(spark: SparkSession, environment: Environment, run: Run, kept: Kept, bots: DataFrame) -> None:
    """silver.events before as_of; `bots` as from `find_bots`."""
    bots_of = _by_day(bots, "subject_key")
    columns = [name for name in table("bronze.events").columns if name != "event_date"]

    def flagged() -> Iterator[tuple[date, pa.Table]]:
        for day, rows in kept_days(kept, columns):
            is_bot = pc.is_in(rows["subject_key"], value_set=bots_of.get(day, _NO_TEXTS))
            yield day, rows.append_column("is_bot", is_bot)

    create_if_missing(spark, environment, "silver.events")
    write_days(environment, "silver.events", flagged(), before=run.as_of_day)


class History(NamedTuple):
    """All of silver.events: its files, and who did each event, in their order, and in which session."""

    files: list[DayFile]
    people: People
    sessions: Sessions
    client_ids: pa.StringArray


def read_history(environment: Environment, edges: DataFrame) -> History:
    """silver.events with its sessions; `edges` as from `identity_edges`."""
    files = day_files(environment, "silver.events", words=_KEYS)
    columns = [*_KEYS, "event_timestamp", "is_bot"]
    whole = pa.concat_tables([pa.table(batch) for file in files for batch in file.batches(columns)])
    words = {name: words_of(whole, name) for name in _KEYS}
    micros = whole["event_timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    is_bot = whole["is_bot"].to_numpy()
    del whole
    kinds = words["event_type"].dictionary.to_pylist()
    kind = _numbers(words["event_type"])
    is_purchase, is_unmerge = (
        np.array([word == wanted.value for word in kinds], bool)[kind]
        for wanted in (EventType.PURCHASE, EventType.UNMERGE)
    )
    people = whose(words.pop("subject_key"), micros, *identity_of(edges))
    client = words.pop("session_id")
    sessions = split_sessions(
        people, client_id=_numbers(client), client_ids=client.dictionary, micros=micros,
        item=_numbers(words.pop("item_id")), is_purchase=is_purchase, counts=~is_bot & ~is_unmerge,
    )  # fmt: skip
    return History(files, people, sessions, client.dictionary)


def write_history(
    spark: SparkSession, environment: Environment, history: History, *, denied: DataFrame, untold: DataFrame | None
) -> None:
    """silver.sessions and silver.interactions, all of them. `denied` (user_id) are people who do not allow training,
    `untold` (event_id, event_date) events that are not learned from."""
    people = history.people
    refused = pc.binary_join_element_wise("u:", _column(denied, "user_id"), "")
    is_denied = pc.is_in(people.keys, value_set=refused).to_numpy(zero_copy_only=False)
    not_told = {} if untold is None else _by_day(untold, "event_id")
    for name in ("silver.sessions", "silver.interactions"):
        create_if_missing(spark, environment, name)
    side_by_side(
        partial(write_days, environment, "silver.sessions", _session_days(history)),
        partial(
            write_days,
            environment,
            "silver.interactions",
            _interaction_days(history, is_denied, not_told),
        ),
    )


def _session_days(history: History) -> Iterator[tuple[date, pa.Table]]:
    for day, some in session_days(history.sessions):
        for begin in range(0, len(some), ROWS_OF_FILE):
            part = some[begin : begin + ROWS_OF_FILE]
            rows = session_rows(history.sessions, history.people, history.client_ids, part)
            yield _FIRST_DAY + timedelta(days=day), rows


def _interaction_days(
    history: History, is_denied: NDArray[np.bool_], untold: dict[date, pa.Array]
) -> Iterator[tuple[date, pa.Table]]:
    begin, day = 0, None
    pieces: list[pa.Table] = []
    for file in history.files:
        if pieces and (file.day != day or sum(piece.num_rows for piece in pieces) >= ROWS_OF_FILE):
            assert day is not None
            yield day, pa.concat_tables(pieces)
            pieces = []
        assert file.day is not None
        day = file.day
        for batch in file.batches(_PAYLOAD):
            events = with_missing(
                pa.table(batch), pa.schema([arrow_schema("silver.events").field(n) for n in _PAYLOAD])
            )
            rows = slice(begin, begin + events.num_rows)
            begin += events.num_rows
            pieces.append(
                interaction_rows(
                    events,
                    history.people.number[rows],
                    history.sessions.of_event[rows],
                    people=history.people,
                    sessions=history.sessions,
                    is_denied=is_denied,
                    untold=untold.get(day, _NO_TEXTS),
                )
            )
    if pieces:
        assert day is not None
        yield day, pa.concat_tables(pieces)


def identity_of(edges: DataFrame) -> tuple[pa.Table, pa.Table | None]:
    """What `whose` asks for: (`device_stretches`, `current_names` or None when nobody was renamed)."""
    names = None if edges.filter("is_alias").isEmpty() else current_names(edges).toArrow()
    return device_stretches(edges).toArrow(), names


def _numbers(words: pa.DictionaryArray) -> NDArray[np.int32]:
    return np.asarray(pc.fill_null(words.indices, -1).to_numpy(zero_copy_only=False), np.int32)


def _column(frame: DataFrame, name: str) -> pa.Array:
    return frame.select(name).toArrow()[name].combine_chunks().cast(pa.string())


def _by_day(frame: DataFrame, name: str) -> dict[date, pa.Array]:
    """The texts of a column by event_date; rows without a day are left out."""
    rows = frame.select(name, "event_date").toArrow().sort_by("event_date")
    days = rows["event_date"].to_pylist()
    texts = rows[name].combine_chunks().cast(pa.string())
    begins = [n for n, day in enumerate(days) if n == 0 or day != days[n - 1]]
    ends = [*begins, len(days)][1:]
    return {
        days[begin]: texts.slice(begin, end - begin)
        for begin, end in zip(begins, ends, strict=True)
        if days[begin] not in (None, NO_DAY)
    }
