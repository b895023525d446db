"""How the values of somebody else's file become ours: each rule reads distinct texts, so a column costs its variety.

A text that a rule cannot read stays as it is and meets the rule table, which refuses it with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

Rule = Callable[[Sequence[str]], Sequence[str]]
"""Texts to texts, one for one."""

_ISO_WITHOUT_ZONE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?)?", re.ASCII)
_PLAIN_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?", re.ASCII)
_GROUPED = {
    ",": re.compile(r"-?(\d+|\d{1,3}([. \u00a0\u202f']\d{3})+)(,\d+)?", re.ASCII),
    ".": re.compile(r"-?(\d+|\d{1,3}([, \u00a0\u202f']\d{3})+)(\.\d+)?", re.ASCII),
}


def translation(known: Mapping[str, str]) -> Rule:
    """Their words for ours; other words stay."""
    return lambda texts: [known.get(text, text) for text in texts]


def times(zone: str, form: str | None) -> Rule:
    """Local wall clocks as RFC 3339 in UTC. `form` is a strptime format; without one, ISO 8601 texts without an offset.

    In the hour that comes twice in autumn the later one (winter time) is meant; the hour that spring skips counts as
    its end. A format with %z says its own offset, and `zone` is not used.
    """

    def read(texts: Sequence[str]) -> list[str]:
        said = pd.Series(list(texts), dtype=object).str.strip()
        if form is not None and "%z" in form:
            moments = pd.to_datetime(said, format=form, errors="coerce", utc=True)
        else:
            local = said if form is not None else said.where(said.str.fullmatch(_ISO_WITHOUT_ZONE))
            clock = pd.to_datetime(local, format=form or "ISO8601", errors="coerce")
            moments = localized(clock, zone)
        is_read = moments.notna().to_numpy()
        stamps = moments.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
        is_whole = (stamps.astype("int64") % 1_000_000) == 0
        seconds, micros = np.datetime_as_string(stamps, unit="s"), np.datetime_as_string(stamps, unit="us")
        return [
            (str(s if whole else m) + "Z") if good else text
            for text, good, whole, s, m in zip(texts, is_read, is_whole, seconds, micros, strict=True)
        ]

    return read


def localized(clock: pd.Series, zone: str) -> pd.Series:
    """Naive wall clocks of `zone` as UTC instants; ambiguous and skipped hours as in `times`."""
    twice = np.zeros(len(clock), bool)
    return clock.dt.tz_localize(zone, ambiguous=twice, nonexistent="shift_forward").dt.tz_convert("UTC")


def numbers(decimal: str) -> Rule:
    """1.234,50 (decimal ",") or 1,234.50 (decimal ".") as 1234.50. Spaces may part groups of three too."""
    pattern, other = _GROUPED[decimal], re.compile(r"[. \u00a0\u202f']" if decimal == "," else r"[, \u00a0\u202f']")

    def read(texts: Sequence[str]) -> list[str]:
        return [
            other.sub("", text.strip()).replace(",", ".") if pattern.fullmatch(text.strip()) else text for text in texts
        ]

    return read


def as_number(value: Any) -> Any:
    """A JSON text that holds a plain decimal number, as the number; anything else stays."""
    return float(value) if isinstance(value, str) and _PLAIN_NUMBER.fullmatch(value) else value


def category_paths(separator: str) -> Rule:
    """ "A/B" as "A > B"."""
    return lambda texts: [" > ".join(part.strip() for part in text.split(separator) if part.strip()) for text in texts]


def convert_column(column: pa.ChunkedArray, rules: Sequence[Rule]) -> pa.ChunkedArray:
    """A text column through the rules, in order; nulls stay. Whole numbers count as text when there is a rule."""
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], column.type).dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    for rule in rules if texts else ():
        texts = rule(texts)
    return pa.chunked_array([pa.array(list(texts), pa.string()).take(encoded.indices)])


def convert_values(values: Sequence[Any], rules: Sequence[Rule]) -> list[Any]:
    """The same for JSON values: texts and whole numbers pass the rules, lists of texts entry by entry, others stay."""
    distinct = {str(v) for value in values for v in (value if isinstance(value, list) else [value]) if _is_plain(v)}
    before = sorted(distinct)
    after: Sequence[str] = before
    for rule in rules if before else ():
        after = rule(after)
    read = dict(zip(before, after, strict=True))

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(v) for v in value]
        if not _is_plain(value):
            return value
        converted = read[str(value)]
        return value if converted == str(value) else converted

    return [one(value) for value in values]


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
