"""The part of `refine_events` that writes the rows of a whole history: read, and written, a day at a time from Arrow.

What decides about the rows (which deliveries are exceptions, who is a bot, whose a device is) Spark has found: it is
small, and comes here as frames.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from functools import partial, reduce
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.events import EventType
from feature_repo.contracts.run import Run
from feature_repo.contracts.sequences import SequenceRule
from feature_repo.contracts.tables import table
from spark_jobs.io.day_files import DayFile, day_files, write_days
from spark_jobs.io.delta import create_if_missing, side_by_side
from spark_jobs.io.interactions import words_of
from spark_jobs.io.light_delta import NO_DAY, arrow_schema, with_missing
from spark_jobs.jobs.deliveries_in_memory import files_before, threads_for
from spark_jobs.models.threads import by_blocks
from spark_jobs.transforms.deliveries import Outcome, counting
from spark_jobs.transforms.doubts import Repeated
from spark_jobs.transforms.extremes import first_and_last, sightings
from spark_jobs.transforms.identity import SIGHTING_COLUMNS, current_names, device_stretches
from spark_jobs.transforms.sequence_doubts import Deeds, suspicious
from spark_jobs.transforms.sequences import ORDER_WORDS, READS, REGION_WORDS
from spark_jobs.transforms.whole_history import (
    People,
    Sessions,
    interaction_rows,
    session_days,
    session_rows,
    split_sessions,
    subject_keys,
    suspects,
    whose,
)

MOST_SUSPECTS = 1_000_000
"""Rows that are handed to Spark at once to find bots among, but for those of one day, and at most to find impossible
sequences among."""
ROWS_OF_FILE = 1_000_000

_KEYS = ("subject_key", "session_id", "item_id", "event_type")
_OF_BOTS = ("event_id", "user_id", "anonymous_id", "event_type", "event_timestamp", "item_id", "properties")
_PAYLOAD = ("event_id", "item_id", "event_type", "event_timestamp", "quantity", "price", "consent_train")
_NO_TEXTS = pa.array([], pa.string())
_FIRST_DAY = date(1970, 1, 1)

Result = TypeVar("Result")


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


def kept_of(environment: Environment, run: Run, apart: Repeated, marked: DataFrame, refused: pa.Array) -> Kept:
    """From the deliveries that were sorted apart, those of them that Spark `marked` (`deliveries.mark`) because they
    were doubtful, and the users (user_id) who do not allow storing."""
    files: dict[date, list[tuple[str, DayFile]]] = defaultdict(list)
    for name, file in files_before(environment, run):
        if file.day is not None:
            files[file.day].append((name, file))
    columns = list(table("bronze.events").columns)
    skipped = [rows.select(["event_id", "event_date"]) for rows in apart]
    is_refused = pc.is_in(apart.firsts["user_id"], value_set=refused, skip_nulls=True)
    winners = [apart.firsts.filter(pc.invert(is_refused)).select(columns)]
    if apart.doubtful.num_rows:
        winners.append(counting(marked).select(*columns).toArrow().cast(winners[0].schema))
    return Kept(files, _texts_by_day(pa.concat_tables(skipped), "event_id"), pa.concat_tables(winners), refused)


def outcomes_of(apart: Repeated, denying: pa.Array) -> list[Outcome]:
    """What became of the deliveries whose order told which of them counts."""
    is_refused = pc.is_in(apart.firsts["user_id"], value_set=denying, skip_nulls=True)
    ways = {
        "kept": apart.firsts.filter(pc.invert(is_refused)),
        "withheld": apart.firsts.filter(is_refused),
        "duplicates": apart.duplicates,
    }
    return [
        Outcome(one["values"], outcome, None, one["counts"])
        for outcome, rows in ways.items()
        for one in pc.value_counts(rows["table"]).to_pylist()
    ]


def by_kept_days(
    kept: Kept, columns: Sequence[str], work: Callable[[date, pa.Table, Counter[tuple[str, str]]], Result]
) -> Iterator[Result]:
    """`work` of each day, in order of days: the rows that count with `columns` (of them event_id, user_id and
    anonymous_id) and subject_key, and how many deliveries of each table, the exceptions left out, were `kept` and
    `withheld`. Days of usual size are worked on side by side."""
    wanted = pa.schema([arrow_schema("bronze.events").field(name) for name in columns])
    threads = threads_for(file for files in kept.files.values() for _, file in files)

    def of_day(day: date) -> Result:
        rows, counts = _kept_of_day(kept, day, wanted)
        return work(day, rows, counts)

    return by_blocks(of_day, sorted(kept.files), threads=threads)


def _kept_of_day(kept: Kept, day: date, wanted: pa.Schema) -> tuple[pa.Table, Counter[tuple[str, str]]]:
    counts: Counter[tuple[str, str]] = Counter()
    skipped = kept.skipped.get(day, _NO_TEXTS)
    pieces = [with_missing(kept.winners.filter(pc.equal(kept.winners["event_date"], pa.scalar(day))), wanted)]
    for name, file in kept.files[day]:
        for batch in file.batches(wanted.names):
            rows = with_missing(pa.table(batch), wanted)
            is_exception = pc.is_in(rows["event_id"], value_set=skipped)
            rows = rows.filter(pc.and_(pc.is_valid(rows["event_id"]), pc.invert(is_exception)))
            pieces.append(rows.filter(pc.invert(pc.is_in(rows["user_id"], value_set=kept.denying, skip_nulls=True))))
            counts[name, "kept"] += pieces[-1].num_rows
            counts[name, "withheld"] += rows.num_rows - pieces[-1].num_rows
    rows = pa.concat_tables(pieces)
    return rows.append_column("subject_key", subject_keys(rows["user_id"], rows["anonymous_id"])), counts


def look_through(kept: Kept) -> tuple[list[Outcome], list[pa.Table]]:
    """(what became of the deliveries that were not sorted apart, the events that can make somebody a bot:
    `whole_history.suspects`, some whole days in each table)."""

    def looked_at(
        day: date, rows: pa.Table, counts: Counter[tuple[str, str]]
    ) -> tuple[pa.Table, Counter[tuple[str, str]]]:
        some = suspects(rows)
        return some.append_column("event_date", pa.array([day] * some.num_rows, pa.date32())), counts

    counts: Counter[tuple[str, str]] = Counter()
    found: list[list[pa.Table]] = [[]]
    for some, of_day in by_kept_days(kept, _OF_BOTS, looked_at):
        counts.update(of_day)
        if sum(table.num_rows for table in found[-1]) + some.num_rows > MOST_SUSPECTS:
            found.append([])
        found[-1].append(some)
    outcomes = [Outcome(name, outcome, None, number) for (name, outcome), number in sorted(counts.items()) if number]
    return outcomes, [pa.concat_tables(tables) for tables in found if tables]


class Written(NamedTuple):
    """Of the events that were written: all that `identity_edges` asks for, and how many are a bot's."""

    sightings: pa.Table
    bot_events: int


def write_events(spark: SparkSession, environment: Environment, run: Run, kept: Kept, bots: DataFrame) -> Written:
    """silver.events before as_of; `bots` as from `find_bots`."""
    bots_of = _by_day(bots, "subject_key")
    columns = [name for name in table("bronze.events").columns if name != "event_date"]
    nobody = pa.schema([arrow_schema("silver.events").field(name) for name in SIGHTING_COLUMNS]).empty_table()
    seen, bot_events = [nobody], 0

    def flagged(day: date, rows: pa.Table, _: Counter[tuple[str, str]]) -> tuple[date, pa.Table, pa.Table, int]:
        is_bot = pc.is_in(rows["subject_key"], value_set=bots_of.get(day, _NO_TEXTS))
        who = sightings(rows, SIGHTING_COLUMNS[:3]).select(SIGHTING_COLUMNS)
        return day, rows.append_column("is_bot", is_bot), who, pc.sum(is_bot).as_py() or 0

    def counted() -> Iterator[tuple[date, pa.Table]]:
        nonlocal bot_events
        for day, rows, who, of_bots in by_kept_days(kept, columns, flagged):
            seen.append(who)
            bot_events += of_bots
            yield day, rows

    create_if_missing(spark, environment, "silver.events")
    write_days(environment, "silver.events", counted(), before=run.as_of_day)
    return Written(first_and_last(pa.concat_tables(seen), SIGHTING_COLUMNS[:3]), bot_events)


class History(NamedTuple):
    """All of silver.events: its files, and who did each event, in their order, and in which session. `doubts` are the
    events that a rule on sequences must be asked about."""

    files: list[DayFile]
    people: People
    sessions: Sessions
    client_ids: pa.StringArray
    doubts: dict[SequenceRule, NDArray[np.int64]]


def read_history(environment: Environment, identity: Callable[[], tuple[pa.Table, pa.Table | None]]) -> History:
    """silver.events with its sessions; `identity` gives `identity_of`, and is asked when the events are read."""
    files = day_files(environment, "silver.events", words=_KEYS)
    whole = pa.concat_tables(chain.from_iterable(by_blocks(_read_file, files, threads=threads_for(files))))
    words = {name: words_of(whole, name) for name in _KEYS}
    micros = whole["event_timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    is_bot, names_order, names_region = (whole[name].to_numpy() for name in ("is_bot", "order", "region"))
    del whole
    kinds = words["event_type"].dictionary.to_pylist()
    kind = _numbers(words["event_type"])

    def is_a(wanted: EventType) -> NDArray[np.bool_]:
        return np.array([word == wanted.value for word in kinds], bool)[kind]

    people = whose(words.pop("subject_key"), micros, *identity())
    client = words.pop("session_id")
    client_id, item = _numbers(client), _numbers(words.pop("item_id"))
    is_purchase = is_a(EventType.PURCHASE)
    doubts = suspicious(
        Deeds(
            people.number, item, client_id, micros, is_purchase, is_a(EventType.REFUND), is_a(EventType.ADD_TO_CART),
            is_a(EventType.REMOVE_FROM_CART), names_order, names_region,
        )
    )  # fmt: skip
    sessions = split_sessions(
        people, client_id=client_id, client_ids=client.dictionary, micros=micros, item=item, is_purchase=is_purchase,
        counts=~is_bot & ~is_a(EventType.UNMERGE),
    )  # fmt: skip
    return History(files, people, sessions, client.dictionary, doubts)


def _read_file(file: DayFile) -> list[pa.Table]:
    """The rows of a file of silver.events, and whether each one's properties mention an order, or a region."""
    columns, held = [*_KEYS, "event_timestamp", "is_bot"], []
    for batch in file.batches([*columns, "properties"]):
        rows = pa.table(batch)
        names = [_mentions(rows, words) for words in (ORDER_WORDS, REGION_WORDS)]
        held.append(rows.select(columns).append_column("order", names[0]).append_column("region", names[1]))
    return held


def doubtful_deeds(history: History) -> pa.Table | None:
    """The events that a rule on sequences must be asked about, with the columns `sequences.READS`, the person's
    subject_key, and for each rule a boolean column of its name; None when they are too many to be handed to Spark."""
    asked = {rule.value: np.zeros(len(history.people.number), bool) for rule in history.doubts}
    for rule, places in history.doubts.items():
        asked[rule.value][places] = True
    by_any = np.logical_or.reduce([*asked.values(), np.zeros(len(history.people.number), bool)])
    if by_any.sum() > MOST_SUSPECTS:
        return None
    schema = pa.schema([arrow_schema("silver.events").field(name) for name in READS])
    found, begin = [], 0
    for file in history.files:
        rows = slice(begin, begin + file.fragment.count_rows())
        begin = rows.stop
        if by_any[rows].any():
            events = pa.concat_tables([with_missing(pa.table(batch), schema) for batch in file.batches(READS)])
            keys = history.people.keys.take(pa.array(history.people.number[rows]))
            events = events.set_column(schema.get_field_index("subject_key"), "subject_key", keys)
            for name, mask in asked.items():
                events = events.append_column(name, pa.array(mask[rows]))
            found.append(events.filter(pa.array(by_any[rows])))
    return pa.concat_tables(found) if found else schema.empty_table()


def make_history_tables(spark: SparkSession, environment: Environment) -> None:
    """The tables that `write_history` fills, empty where they are missing."""
    for name in ("silver.sessions", "silver.interactions"):
        create_if_missing(spark, environment, name)


def write_history(environment: Environment, history: History, *, denied: pa.Array, untold: DataFrame | None) -> None:
    """silver.sessions and silver.interactions, all of them; both tables are there. `denied` (user_id) are people who do
    not allow training, `untold` (event_id, event_date) events that are not learned from."""
    people = history.people
    refused = pc.binary_join_element_wise("u:", denied, "")
    is_denied = pc.is_in(people.keys, value_set=refused).to_numpy(zero_copy_only=False)
    not_told = {} if untold is None else _by_day(untold, "event_id")
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


def with_current_names(users: pa.Array, names: pa.Table | None) -> pa.Array:
    """`identity.under_current_names` of user_ids in Arrow; `names` as from `identity_of`."""
    if names is None:
        return users
    renamed = names.filter(pc.is_in(names["user_id"], value_set=users))["current_user_id"].combine_chunks()
    return pc.unique(pa.concat_arrays([users, renamed.cast(users.type)]))


def _mentions(rows: pa.Table, words: tuple[str, ...]) -> pa.ChunkedArray | pa.Array:
    if "properties" not in rows.column_names or rows["properties"].null_count == rows.num_rows:
        return pa.repeat(False, rows.num_rows)
    found = [pc.fill_null(pc.match_substring(rows["properties"], word), False) for word in words]
    return reduce(pc.or_, found)


def _numbers(words: pa.DictionaryArray) -> NDArray[np.int32]:
    return np.asarray(pc.fill_null(words.indices, -1).to_numpy(zero_copy_only=False), np.int32)


def _by_day(frame: DataFrame, name: str) -> dict[date, pa.Array]:
    """The texts of a column by event_date; rows without a day are left out."""
    return _texts_by_day(frame.select(name, "event_date").toArrow(), name)


def _texts_by_day(rows: pa.Table, name: str) -> dict[date, pa.Array]:
    rows = rows.sort_by("event_date")
    days = rows["event_date"].to_pylist()
    texts = rows[name].combine_chunks().cast(pa.string())
    begins = [n for n, day in enumerate(days) if n == 0 or day != days[n - 1]]
    ends = [*begins, len(days)][1:]
    return {
        days[begin]: texts.slice(begin, end - begin)
        for begin, end in zip(begins, ends, strict=True)
        if days[begin] not in (None, NO_DAY)
    }
