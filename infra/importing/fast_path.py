"""The rules of `contracts.events.check_event` over whole columns, for rows that are plainly good.

A row is taken here only when every field is of the plain kind handled here (extra columns: text); every other row, good
or bad, goes through `check_event` itself. So this file can be incomplete, but must never differ: a test compares both
on random rows.
"""

from __future__ import annotations

import json
from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.events import (
    DERIVED_ID_FIELDS,
    EVENT_FIELDS,
    EVENT_TYPE_ALIASES,
    EVENT_TYPES,
    ITEM_REQUIRED,
    MAX_ID_BYTES,
    TWO_IDS_REQUIRED,
    derived_event_id,
)
from feature_repo.contracts.times import EARLIEST_EVENT, MAX_FUTURE_SKEW, format_timestamp, to_micros
from infra.importing.tables import bronze_schema

_NAMES = {**{name: name for name in sorted(EVENT_TYPES - TWO_IDS_REQUIRED)}, **EVENT_TYPE_ALIASES}
_TEXTS = (
    "event_id", "user_id", "anonymous_id", "session_id", "item_id", "currency", "recommendation_id", "placement",
    "channel",
)  # fmt: skip
_HANDLED = {
    *_TEXTS,
    "event_type",
    "timestamp",
    "quantity",
    "price",
    "value",
    "consent_store",
    "consent_train",
    "consent_personalize",
}
_WHOLE = r"^[0-9]{1,9}$"
_NUMBER = r"^-?[0-9]{1,15}(\.[0-9]{1,15})?$"
_ISO = (
    r"^(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{3}([0-9]{3})?)?"
    r"(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])?$"
)
_ZONE = r"(Z|[+-][0-9]{2}:[0-9]{2})$"


def plainly_good(
    columns: pa.Table, *, is_text: bool, received_at: datetime
) -> tuple[NDArray[np.bool_], dict[str, pa.Array]]:
    """(which rows are plainly good, bronze columns by name for all rows; only the good rows mean anything).

    `columns` have our names and plain types (`values.plain_types`). Missing bronze columns are null throughout;
    received_at, source and source_position are the caller's.
    """
    count = columns.num_rows
    good = np.ones(count, bool)
    schema = bronze_schema("bronze.events_import")
    out: dict[str, pa.Array] = {}

    def column(name: str) -> pa.Array:
        chunked = columns[name] if name in columns.column_names else pa.nulls(count)
        return chunked.combine_chunks() if isinstance(chunked, pa.ChunkedArray) else chunked

    extras = []
    for name in sorted(columns.column_names):
        if name in _HANDLED:
            continue
        if name not in EVENT_FIELDS and not name.startswith("consent") and pa.types.is_string(column(name).type):
            extras.append(name)
        else:
            good &= column(name).is_null().to_numpy(zero_copy_only=False)
    for name in _TEXTS:
        out[name], is_fine = _text(column(name))
        good &= is_fine
    out["event_type"], item_required, is_fine = _event_type(column("event_type"))
    good &= is_fine
    good &= _given(out["user_id"]) | _given(out["anonymous_id"])
    good &= _given(out["item_id"]) | ~item_required

    micros, is_fine = _moments(column("timestamp"))
    good &= is_fine & (micros >= to_micros(EARLIEST_EVENT)) & (micros <= to_micros(received_at + MAX_FUTURE_SKEW))
    moments = pa.array(np.where(good, micros, 0)).cast(pa.timestamp("us", "UTC"))
    out["event_timestamp"] = moments
    out["event_date"] = moments.cast(pa.date32())

    for name, low in (("quantity", 1.0), ("price", 0.0), ("value", -np.inf)):
        out[name], is_fine = _number(column(name), _WHOLE if name == "quantity" else _NUMBER, is_text, low)
        good &= is_fine
    for name in ("consent_store", "consent_train", "consent_personalize"):
        out[name], is_fine = _boolean(column(name), is_text)
        good &= is_fine
    del out["consent_store"]  # has no column: whoever refuses is not among these rows
    if extras:
        out["properties"] = _properties({name: column(name) for name in extras})
    without_id = np.flatnonzero(good & ~_given(out["event_id"]))
    if len(without_id):
        out["event_id"] = _with_derived_ids(out["event_id"], columns, without_id)
    return good, {name: out[name].cast(schema.field(name).type, safe=False) for name in out}


def _properties(extras: dict[str, pa.Array]) -> pa.Array:
    """The extra text columns as `bronze_row` writes them: one JSON object a row, null when it has none."""
    entries = []
    for name, array in extras.items():
        encoded = array.dictionary_encode()
        texts = [f"{json.dumps(name)}: {json.dumps(value)}, " for value in encoded.dictionary.to_pylist()]
        entries.append(pc.fill_null(pa.array(texts, pa.string()).take(encoded.indices), ""))
    # Not null_handling="skip": pyarrow then loses the rows in which every entry is null.
    joined = pc.utf8_rtrim(pc.binary_join_element_wise(*entries, ""), ", ")
    whole = pc.binary_join_element_wise("{", joined, "}", "")
    return pc.if_else(pc.equal(joined, ""), pa.scalar(None, pa.string()), whole)


def _with_derived_ids(ids: pa.Array, columns: pa.Table, rows: NDArray[np.int64]) -> pa.Array:
    """`ids`, where `rows` get the id that `check_event` derives from the fields as they were given."""
    named = [name for name in DERIVED_ID_FIELDS if name in columns.column_names]
    given = columns.select(named).take(pa.array(rows)).to_pylist()
    for event in given:
        if isinstance(event.get("timestamp"), datetime):
            event["timestamp"] = format_timestamp(event["timestamp"])
    places = np.arange(len(ids))
    places[rows] = len(ids) + np.arange(len(rows))
    derived = pa.array([derived_event_id(event) for event in given], pa.string())
    return pa.concat_arrays([ids, derived]).take(pa.array(places))


def _given(array: pa.Array) -> NDArray[np.bool_]:
    return array.is_valid().to_numpy(zero_copy_only=False)


def _true(mask: pa.Array) -> NDArray[np.bool_]:
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def _text(array: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """(text, whether it is absent or an id)."""
    if pa.types.is_null(array.type):
        return array.cast(pa.string()), np.ones(len(array), bool)
    if not pa.types.is_string(array.type):
        return pa.nulls(len(array), pa.string()), array.is_null().to_numpy(zero_copy_only=False)
    size = pc.binary_length(array)
    is_id = pc.and_(_between(size), _without_nul(array))
    return array, _true(is_id) | ~_given(array)


def _between(size: pa.Array) -> pa.Array:
    return pc.and_(pc.greater_equal(size, 1), pc.less_equal(size, MAX_ID_BYTES))


def _without_nul(array: pa.Array) -> pa.Array:
    return pc.invert(pc.match_substring(array, "\x00"))


def _event_type(array: pa.Array) -> tuple[pa.Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """(canonical type, whether it needs an item, whether it is known)."""
    if not pa.types.is_string(array.type):
        return pa.nulls(len(array), pa.string()), np.zeros(len(array), bool), np.zeros(len(array), bool)
    canonical = [str(name) for name in _NAMES.values()]
    code = pc.index_in(array, pa.array(list(_NAMES)))
    needs = pc.take(pa.array([name in ITEM_REQUIRED for name in canonical]), code)
    return pc.take(pa.array(canonical), code), _true(needs), _given(code)


def _moments(array: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(microseconds since 1970, whether they are plain). Whole numbers are left to `check_event`."""
    if pa.types.is_timestamp(array.type):
        return pc.fill_null(array.cast(pa.int64()), 0).to_numpy(), _given(array)
    if not pa.types.is_string(array.type):
        return np.zeros(len(array), np.int64), np.zeros(len(array), bool)
    is_plain = _true(pc.match_substring_regex(array, _ISO))
    # Every text gets a zone: pandas reads one without as if it had the zone of an earlier row.
    zoned = pc.if_else(pc.match_substring_regex(array, _ZONE), array, pc.binary_join_element_wise(array, "Z", ""))
    texts = pc.if_else(pa.array(is_plain), zoned, pa.scalar(None, pa.string())).to_pandas()
    moments = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce").astype("datetime64[us, UTC]")
    return moments.astype("int64").to_numpy(), is_plain & moments.notna().to_numpy()


def _number(array: pa.Array, pattern: str, is_text: bool, low: float) -> tuple[pa.Array, NDArray[np.bool_]]:
    """(number, whether it is absent, or plain and finite and >= low)."""
    is_whole = pattern == _WHOLE
    absent = ~_given(array)
    if pa.types.is_null(array.type):
        return array, absent
    if is_text and pa.types.is_string(array.type):
        is_plain = pc.match_substring_regex(array, pattern)
        array = pc.if_else(is_plain, array, pa.scalar(None, pa.string())).cast(pa.int64() if is_whole else pa.float64())
    is_number = pa.types.is_int64(array.type) or (pa.types.is_float64(array.type) and not is_whole)
    if not is_number:
        return pa.nulls(len(array)), absent
    values = array.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    is_good = _given(array) & np.isfinite(values) & (values >= low) & (values < 2.0**31 if is_whole else True)
    return pc.if_else(pa.array(is_good), array, pa.scalar(None, array.type)), absent | is_good


def _boolean(array: pa.Array, is_text: bool) -> tuple[pa.Array, NDArray[np.bool_]]:
    """(true or false, whether it is absent or plain)."""
    if pa.types.is_boolean(array.type):
        return array, np.ones(len(array), bool)
    absent = ~_given(array)
    if is_text and pa.types.is_string(array.type):
        code = pc.index_in(array, pa.array(["true", "false"]))
        return pc.equal(code, 0), absent | _given(code)
    return pa.nulls(len(array), pa.bool_()), absent
