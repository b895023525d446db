"""Deliveries that may be exceptions, told apart in Arrow: those that may break a rule, and those that came more than
once. `events.check_deliveries` and `events.first_deliveries` decide about what is in doubt; about the rest, nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.events import EVENT_TYPES, ITEM_REQUIRED, MAX_ID_BYTES, TWO_IDS_REQUIRED
from feature_repo.contracts.times import EARLIEST_EVENT, MAX_FUTURE_SKEW, to_micros

Mask = NDArray[np.bool_]

_IDS = ("event_id", "user_id", "anonymous_id", "session_id", "item_id", "currency", "recommendation_id", "placement",
        "channel")  # fmt: skip
RULE_COLUMNS = ("event_type", *_IDS, "event_timestamp", "received_at", "quantity", "price", "value")
"""All that the rules look at, event_date excepted."""
RULE_WORDS = ("event_type", *_IDS[1:])
"""Of these, those that come as dictionaries best."""
_ORDER = ("event_timestamp", "source", "source_position", "received_at")
_DAY_MICROS = 86_400_000_000


class Repeated(NamedTuple):
    """Deliveries of ids that several have. `firsts` count; `duplicates` do not; about `doubtful` it is not decided."""

    firsts: pa.Table
    duplicates: pa.Table
    doubtful: pa.Table


def may_break_rule(rows: Mapping[str, pa.Array], day: date | None) -> Mask:
    """Whether each delivery (RULE_COLUMNS, texts plain or as dictionaries) of this day may break a rule: true for all
    that do, and hardly for another."""
    kind, moment, received = rows["event_type"], _micros(rows["event_timestamp"]), _micros(rows["received_at"])
    is_null = {name: pc.is_null(rows[name]).to_numpy(zero_copy_only=False) for name in RULE_COLUMNS}
    is_timed, is_received = ~is_null["event_timestamp"], ~is_null["received_at"]
    needs_item, needs_both = (_is_one_of(kind, words) for words in (ITEM_REQUIRED, TWO_IDS_REQUIRED))
    no_user, no_device = is_null["user_id"], is_null["anonymous_id"]
    broken = ~_is_one_of(kind, EVENT_TYPES) | is_null["event_id"] | ~is_timed
    broken |= (no_user & no_device) | (needs_both & (no_user | no_device)) | (needs_item & is_null["item_id"])
    for name in _IDS:
        broken |= _by_word(rows[name], _is_no_id)
    broken |= moment < to_micros(EARLIEST_EVENT)
    skew = MAX_FUTURE_SKEW.total_seconds() * 1e6
    broken |= is_received & (moment > received + np.int64(skew))
    first = None if day is None else (day - date(1970, 1, 1)).days
    broken |= np.ones(len(moment), bool) if first is None else moment // _DAY_MICROS != first
    for name, least in (("quantity", 1), ("price", 0.0)):
        numbers = pc.fill_null(rows[name], least).to_numpy(zero_copy_only=False)
        broken |= ~((numbers >= least) & np.isfinite(numbers))
    broken |= ~np.isfinite(pc.fill_null(rows["value"], 0.0).to_numpy(zero_copy_only=False))
    return np.asarray(broken, bool)


def sort_out_repeated(rows: pa.Table, in_doubt: Mask) -> Repeated:
    """Of all deliveries of some ids the first ones, as `events.first_deliveries` chooses them where order alone tells.

    in_doubt  rows that may break a rule; about all deliveries of their ids nothing is decided here, nor where a column
              of the order is null or two deliveries are alike in it
    """
    unclear = pa.array(in_doubt)
    for name in _ORDER:
        unclear = pc.or_(unclear, _one(pc.is_null(rows[name])))
    ids = _one(rows["event_id"])
    rows = rows.append_column("_unclear", pc.or_(unclear, pc.is_null(ids)))
    order = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in ("event_id", *_ORDER)])
    rows = rows.take(order)
    before, after = rows.slice(0, max(0, rows.num_rows - 1)), rows.slice(1)
    is_next = np.zeros(rows.num_rows, bool)
    if rows.num_rows > 1:
        is_next[1:] = _same(before, after, ["event_id"])
        is_alike = _same(before, after, ["event_id", *_ORDER])
        doubted = _one(rows["_unclear"]).to_numpy(zero_copy_only=False) | np.append(is_alike, False)
    else:
        doubted = _one(rows["_unclear"]).to_numpy(zero_copy_only=False)
    group = np.cumsum(~is_next) - 1
    is_doubtful = np.bincount(group[doubted], minlength=int(group.max(initial=-1)) + 1)[group] > 0
    rows = rows.drop_columns(["_unclear"])
    return Repeated(
        *(rows.filter(pa.array(mask)) for mask in (~is_doubtful & ~is_next, ~is_doubtful & is_next, is_doubtful))
    )


def _same(before: pa.Table, after: pa.Table, names: list[str]) -> Mask:
    same = np.ones(before.num_rows, bool)
    for name in names:
        same &= pc.fill_null(_one(pc.equal(before[name], after[name])), False).to_numpy(zero_copy_only=False)
    return same


def _is_no_id(texts: pa.Array) -> pa.Array:
    size = pc.binary_length(texts)
    is_bad = pc.or_(pc.or_(pc.equal(size, 0), pc.greater(size, MAX_ID_BYTES)), pc.match_substring(texts, "\0"))
    return pc.fill_null(is_bad, False)


def _is_one_of(words: pa.Array, among: frozenset[str] | set[str]) -> Mask:
    wanted = pa.array(sorted(map(str, among)), pa.string())
    return _by_word(words, lambda texts: pc.is_in(texts, value_set=wanted))


def _by_word(words: pa.Array, of_texts: Callable[[pa.Array], pa.Array]) -> Mask:
    """What `of_texts` says of each text, asked once for each word of a dictionary; of null it is not so."""
    if not pa.types.is_dictionary(words.type):
        return pc.and_(of_texts(words), pc.is_valid(words)).to_numpy(zero_copy_only=False)
    found = of_texts(words.dictionary.cast(pa.string()))
    if not pc.any(found).as_py():
        return np.zeros(len(words), bool)
    return pc.fill_null(found.take(words.indices), False).to_numpy(zero_copy_only=False)


def _micros(moments: pa.Array) -> NDArray[np.int64]:
    return pc.fill_null(moments.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()), 0).to_numpy(zero_copy_only=False)


def _one(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array of maybe several."""
    found = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)
