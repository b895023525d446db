"""What a cell means: columnar files cannot say everything JSON can, so these rules say it for them.

- Text cells (CSV): an empty cell is absent; numbers, true/false and JSON objects or lists are read from their text.
- An id column may be whole numbers: the id is their decimal text. A timestamp column without a zone, or of days, is
  UTC; whole numbers are seconds or milliseconds since 1970 as in `contracts.times`. A whole quantity may be a float.
What does not fit stays as it is and meets `check_event`, which gives the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.events import CONSENT_PURPOSES
from feature_repo.contracts.times import format_timestamp

ID_FIELDS = ("event_id", "user_id", "anonymous_id", "session_id", "item_id")
NUMBER_FIELDS = ("price", "value")
OBJECT_FIELDS = ("items", "context", "properties", "consent")

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,18}(\.0*)?", re.ASCII)
_EPOCH = re.compile(r"-?\d{9,18}", re.ASCII)
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def plain_types(columns: pa.Table) -> pa.Table:
    """The same values in few types: text, bool, int64, double, timestamp[us, UTC]; nested types stay."""
    return pa.table({name: _plain(name, columns[name]) for name in columns.column_names})


def _plain(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_integer(kind):
        if kind == pa.uint64():  # may not fit 64 signed bits: as text it keeps its value
            return column.cast(pa.string())
        return column.cast(pa.string() if name in ID_FIELDS else pa.int64())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    if pa.types.is_timestamp(kind):
        moments = column.cast(pa.timestamp("us", kind.tz), safe=False)
        if kind.tz is None:
            return moments.cast(pa.timestamp("us", "UTC"))
        return pc.cast(moments, pa.timestamp("us", "UTC"))
    return column


def event_of_row(row: Mapping[str, Any], *, is_text: bool) -> dict[str, Any]:
    """One row of plain columns as an event for `check_event`: nulls absent, consent_* columns folded into consent{}."""
    event = {name: without_nulls(value) for name, value in row.items() if value is not None}
    for name in OBJECT_FIELDS:
        if isinstance(event.get(name), str):
            event[name] = _object(event[name])
    if is_text:
        for name in NUMBER_FIELDS:
            if isinstance(event.get(name), str) and _NUMBER.fullmatch(event[name]):
                event[name] = float(event[name])
        if isinstance(event.get("quantity"), str) and _WHOLE.fullmatch(event["quantity"]):
            event["quantity"] = int(event["quantity"].partition(".")[0])
        if isinstance(event.get("timestamp"), str) and _EPOCH.fullmatch(event["timestamp"]):
            event["timestamp"] = int(event["timestamp"])
    if isinstance(event.get("quantity"), float) and event["quantity"].is_integer():
        event["quantity"] = int(event["quantity"])
    if isinstance(event.get("timestamp"), datetime):
        moment = event["timestamp"].astimezone(UTC)
        event["timestamp"] = moment if "event_id" in event else format_timestamp(moment)  # a derived id hashes the text
    flat = {purpose: event.pop(f"consent_{purpose}", None) for purpose in CONSENT_PURPOSES}
    said = {p: _BOOLEANS.get(v.lower(), v) if isinstance(v, str) else v for p, v in flat.items() if v is not None}
    if said and isinstance(event.get("consent", {}), Mapping):
        event["consent"] = {**event.get("consent", {}), **said}
    return event


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def without_nulls(value: Any) -> Any:
    """Parquet structs name every field; an entry that is null there was not given."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return value
