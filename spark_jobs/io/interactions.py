"""silver.interactions as Arrow columns, read without a JVM: what models, sessions and baskets are made from."""

from __future__ import annotations

from datetime import date, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.times import to_micros
from spark_jobs.io.light_delta import arrow_schema, open_table, read_table, stored_columns

NAME = "silver.interactions"
_TEXTS = ("subject_key", "item_id", "event_type", "session_key")
_WORD = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("subject_key", _WORD), ("item_number", pa.int32()), ("event_type", _WORD), ("micros", pa.int64()),
        ("session_key", _WORD),
    ]
)  # fmt: skip


def read_interactions(
    environment: Environment, numbers: pa.Table, *, cut_off: datetime, version: int | None = None
) -> pa.Table:
    """Every interaction before `cut_off`, aware UTC, in no order; one row an event, SCHEMA.

    `numbers` has item_id and item_number; the number of an item that is not there is null. `micros` is event time in us
    since 1970 UTC. Texts come as dictionaries: some 25 bytes an event.
    """
    found = open_table(environment, NAME, version)
    if found is None:
        return SCHEMA.empty_table()
    stored = stored_columns(found, [*_TEXTS, "event_timestamp"])
    options = ds.ParquetReadOptions(dictionary_columns=set(_TEXTS))
    dataset = found.to_pyarrow_dataset(parquet_read_options=options)
    rows = dataset.to_table(columns=stored, filter=pc.field("event_date") <= cut_off.date())
    moments = rows["event_timestamp"].cast(arrow_schema(NAME).field("event_timestamp").type).cast(pa.int64())
    is_before = pc.less(moments, to_micros(cut_off))
    rows, moments = rows.filter(is_before), moments.filter(is_before)
    words = {name: words_of(rows, name) for name in _TEXTS}
    items = words.pop("item_id")
    place = pc.index_in(items.dictionary, value_set=numbers["item_id"].combine_chunks())
    by_word = numbers["item_number"].combine_chunks().cast(pa.int32()).take(place)
    columns = {**words, "item_number": by_word.take(items.indices), "micros": moments}
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def read_numbers(environment: Environment, version: int | None = None) -> pa.Table:
    """gold.item_ids: item_id, item_number, first_as_of."""
    return read_table(environment, "gold.item_ids", version, ["item_id", "item_number", "first_as_of"])


def known_numbers(numbers: pa.Table, interactions: pa.Table, as_of: date) -> pa.Table:
    """Of `numbers` (`read_numbers`) those that a run as of this day knows: item_id, item_number.

    That is what was numbered by its night or one before, and whatever is in its interactions. Items that later nights
    numbered are not there: with them the same night would be another one when it runs again.
    """
    by_then = pc.less_equal(numbers["first_as_of"], pa.scalar(as_of, pa.date32()))
    met = pc.is_in(numbers["item_number"], value_set=pc.unique(interactions["item_number"]))
    return numbers.filter(pc.or_(by_then, met)).select(["item_id", "item_number"])


def words_of(rows: pa.Table, name: str) -> pa.DictionaryArray:
    """The column as one dictionary of texts; all null where the stored table does not have it yet."""
    if name not in rows.column_names:
        return pa.nulls(rows.num_rows, pa.string()).dictionary_encode()
    column = rows[name]
    try:
        column = column.unify_dictionaries()
    except pa.ArrowInvalid:  # of a file in which all are null: the dictionary itself holds the null
        column = column.cast(pa.string()).dictionary_encode()
    found = column.combine_chunks()
    if isinstance(found, pa.ChunkedArray):  # pyarrow keeps an empty column chunked
        return pa.array([], pa.string()).dictionary_encode()
    return found.cast(_WORD)
