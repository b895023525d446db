"""The part of `build_features` that counts a whole history: silver.events is read from Arrow, features are written so.

What is small, and decides about rows (whose a device is, what a text calls one), Spark finds in the few events that say
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.changes import ITEMS, USERS
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.events import EventType
from feature_repo.contracts.run import MOST_IN_MEMORY
from feature_repo.contracts.times import start_of_day, to_micros
from spark_jobs.io.catalogue import Versions, all_records
from spark_jobs.io.day_files import DayFile, day_files, write_days
from spark_jobs.io.delta import create_if_missing, frame_of, side_by_side
from spark_jobs.io.interactions import words_of
from spark_jobs.io.light_delta import NO_DAY, arrow_schema, days_by_row_count, with_missing
from spark_jobs.jobs.deliveries_in_memory import threads_for
from spark_jobs.jobs.refine_in_memory import identity_of, with_current_names
from spark_jobs.models.threads import by_blocks
from spark_jobs.transforms.candidates import denied_in
from spark_jobs.transforms.computed import computed
from spark_jobs.transforms.extremes import first_and_last, sightings
from spark_jobs.transforms.features_of_arrays import (
    MONEY_DIGITS,
    Facts,
    Shelf,
    floats,
    item_rows,
    of_items,
    places_in,
    shelf_of,
    user_rows,
)
from spark_jobs.transforms.identity import SIGHTING_COLUMNS, identity_edges
from spark_jobs.transforms.sums import to_units
from spark_jobs.transforms.whole_history import whose

_WORDS = ("event_type", "subject_key", "session_id", "item_id", "channel")
_VALUES = ("event_timestamp", "quantity", "price", "value", "is_bot")
_SAID = ("user_id", "anonymous_id", "consent_personalize", "properties")
_CONSENT = ("user_id", "consent_personalize")
_TABLES = ("gold.user_features", "gold.user_category_features", "gold.item_features")
_DEVICE_DAYS = 30
_SHELF = ("item_id", "category", "price", "created_at", "available_quantity")
_DEVICE_WORDS = r"device|\\"
"""A text without either has no key `device`: of its letters some may be escaped."""


class PastEvents(NamedTuple):
    """silver.events before a day. By event unless said otherwise; what is not named is as stored.

    words      dictionaries of _WORDS, and of `device`: what `feature_facts` calls it, of the last 30 days
    counts     no bot's, and no operator's unmerge
    sightings  all that `identity_edges` asks for; consents: all that `denied_users` asks for
    """

    words: dict[str, pa.DictionaryArray]
    values: pa.Table
    counts: np.ndarray
    sightings: pa.Table
    consents: pa.Table

    def items(self) -> pa.Array:
        """The items that an event names, a bot's too."""
        words = self.words["item_id"]
        return words.dictionary.take(pc.unique(words.indices.drop_null()))


def fits_in_memory(environment: Environment, as_of: date, version: int | None) -> bool:
    """Whether the events before `as_of` are few enough for one process."""
    days = days_by_row_count(environment, "silver.events", version)
    return sum(count for day, count in days.items() if day < as_of) <= MOST_IN_MEMORY


def read_past(
    session: Callable[[], SparkSession], environment: Environment, as_of: date, version: int | None
) -> PastEvents:
    """The events before `as_of`, from silver.events at `version` (None: the newest). Spark is asked for only where a
    text may name a device."""
    files = [
        file for file in day_files(environment, "silver.events", version, words=_WORDS) if (file.day or NO_DAY) < as_of
    ]
    read = [*by_blocks(partial(_read_file, session, as_of), files, threads=threads_for(files))]
    held, seen, said = ([*chain.from_iterable(pieces)] for pieces in zip(*read, strict=True))
    whole = pa.concat_tables(held)
    words = {name: words_of(whole, name) for name in (*_WORDS, "device")}
    is_unmerge = _is(words["event_type"], EventType.UNMERGE)
    counts = ~whole["is_bot"].to_numpy() & ~is_unmerge
    return PastEvents(
        words,
        whole.select([name for name in _VALUES if name != "is_bot"]),
        counts,
        first_and_last(pa.concat_tables(seen), SIGHTING_COLUMNS[:3]),
        first_and_last(pa.concat_tables(said), _CONSENT),
    )


def _read_file(session: Callable[[], SparkSession], as_of: date, file: DayFile) -> tuple[list[pa.Table], ...]:
    """Of the rows of a file before `as_of`, in pieces: what is counted, sightings, consents."""
    end, wanted = start_of_day(as_of), arrow_schema("silver.events")
    schema = pa.schema([wanted.field(name) for name in (*_VALUES, *_SAID)])
    held, seen, said = [], [], []
    tells_device = file.day is not None and (as_of - file.day).days <= _DEVICE_DAYS
    for rows in _rows_of(file, schema, with_properties=tells_device):
        rows = rows.filter(pc.less(rows["event_timestamp"], pa.scalar(end, wanted.field("event_timestamp").type)))
        kinds = rows["event_type"].cast(pa.string())
        spoken = rows.select([*_SAID, "event_timestamp"]).append_column("event_type", kinds)
        seen.append(sightings(spoken, SIGHTING_COLUMNS[:3]))
        said.append(_consents(spoken))
        device = _devices(session, rows) if tells_device else pa.chunked_array([pa.nulls(rows.num_rows, pa.string())])
        held.append(rows.select([*_WORDS, *_VALUES]).append_column("device", device.dictionary_encode()))
    return held, seen, said


def write_features(
    spark: SparkSession, environment: Environment, past: PastEvents, versions: Versions | None, *, as_of: date
) -> None:
    """The partition `as_of` of the feature tables; `versions` are those of the tables of the catalogue."""
    end, pins = start_of_day(as_of), versions or {}
    edges = computed(identity_edges(frame_of(spark, past.sightings)))
    identity = identity_of(edges)
    with ThreadPoolExecutor(1) as beside:  # Spark makes tables while features are counted
        making = beside.submit(_make_tables, spark, environment)
        users = all_records(environment, USERS, pins)
        denied = with_current_names(pa.array(denied_in(users, past.consents, cut_off=end), pa.string()), identity[1])
        shelf = shelf_of(all_records(environment, ITEMS, pins, cut_off=end).select([*_SHELF]))
        facts = facts_of(past, identity, denied, shelf, end=to_micros(end))
        of_users, of_user_categories = user_rows(facts)
        made = dict(zip(_TABLES, (of_users, of_user_categories, item_rows(facts, shelf)), strict=True))
        making.result()
    side_by_side(*(partial(write_days, environment, name, [(as_of, rows)], only=as_of) for name, rows in made.items()))


def _make_tables(spark: SparkSession, environment: Environment) -> None:
    for name in _TABLES:
        create_if_missing(spark, environment, name)


def facts_of(
    past: PastEvents, identity: tuple[pa.Table, pa.Table | None], denied: pa.Array, shelf: Shelf, *, end: int
) -> Facts:
    """`feature_facts` of the events before `end` (us); `denied` are users (user_id)."""
    places = np.flatnonzero(past.counts)
    micros = _micros(past.values["event_timestamp"])
    people = whose(past.words["subject_key"], micros, *identity)
    item_ids = past.words["item_id"].dictionary
    item = _numbers(past.words["item_id"])[places]
    category_of, price_of = of_items(shelf, item_ids, end)
    price = floats(past.values["price"])[places]
    quantity = pc.fill_null(past.values["quantity"], 1).to_numpy()[places].astype(np.int64)
    paid = price * quantity
    amount, has_amount = to_units(np.where(np.isnan(paid), floats(past.values["value"])[places], paid), MONEY_DIGITS)
    refused = pc.binary_join_element_wise("u:", denied, "")
    is_user = pc.starts_with(people.keys, "u:")
    is_allowed = pc.and_(is_user, pc.invert(pc.is_in(people.keys, value_set=refused)))
    devices, device = _sorted_words(past.words["device"])
    return Facts(
        end=end, people=people.keys, is_allowed=is_allowed.to_numpy(zero_copy_only=False), item_ids=item_ids,
        categories=shelf.categories, kinds=past.words["event_type"].dictionary.to_pylist(),
        channels=past.words["channel"].dictionary, devices=devices, person=people.number[places],
        client_id=_numbers(past.words["session_id"])[places], item=item,
        category=np.append(category_of, np.int32(-1))[item],
        category_price=np.append(price_of, np.nan)[item],
        kind=_numbers(past.words["event_type"])[places], micros=micros[places], price=price, quantity=quantity,
        amount=amount, has_amount=has_amount, channel=_numbers(past.words["channel"])[places], device=device[places],
    )  # fmt: skip


def _rows_of(file: DayFile, schema: pa.Schema, *, with_properties: bool) -> Iterator[pa.Table]:
    names = [name for name in schema.names if with_properties or name != "properties"]
    for batch in file.batches([*_WORDS, *names]):
        stored = pa.table(batch)
        rows = with_missing(stored, schema)
        for name in _WORDS:
            words = stored[name] if name in stored.column_names else pa.nulls(stored.num_rows, pa.string())
            rows = rows.append_column(name, words)
        yield rows


def _consents(events: pa.Table) -> pa.Table:
    says = pc.and_(pc.is_valid(events["user_id"]), pc.is_valid(events["consent_personalize"]))
    return first_and_last(events.filter(says), _CONSENT)


def _devices(session: Callable[[], SparkSession], events: pa.Table) -> pa.ChunkedArray:
    """`properties.device`, else the channel. Texts that may have the key are asked once each, as Spark reads JSON."""
    channel = events["channel"].cast(pa.string())
    may_tell = pc.fill_null(pc.match_substring_regex(events["properties"], _DEVICE_WORDS), False)
    if not pc.any(may_tell).as_py():
        return channel
    texts = pc.if_else(may_tell, events["properties"], pa.scalar(None, pa.string()))
    asked = frame_of(session(), pa.table({"properties": pc.unique(texts).drop_null()}))
    told = asked.select("properties", F.get_json_object("properties", "$.device").alias("device")).toArrow()
    place = pc.index_in(texts, value_set=told["properties"].combine_chunks(), skip_nulls=True)
    return pc.coalesce(told["device"].combine_chunks().take(place), channel)


def _sorted_words(words: pa.DictionaryArray) -> tuple[pa.StringArray, np.ndarray]:
    """(the words in order, the number of each row's among them)."""
    ordered = words.dictionary.take(pc.sort_indices(words.dictionary))
    place = places_in(words.dictionary, ordered)
    return ordered, np.append(place, np.int32(-1))[_numbers(words)]


def _is(kinds: pa.DictionaryArray, wanted: EventType) -> np.ndarray:
    return np.array([*(kind == wanted.value for kind in kinds.dictionary.to_pylist()), False], bool)[_numbers(kinds)]


def _numbers(words: pa.DictionaryArray) -> np.ndarray:
    return np.asarray(pc.fill_null(words.indices, -1).to_numpy(zero_copy_only=False), np.int32)


def _micros(moments: pa.ChunkedArray) -> np.ndarray:
    return moments.cast(pa.int64()).to_numpy()
