"""The profile of a window (`profile.profile_days`) from Arrow, a day at a time: for histories that are read so anyway.

What is different is counted exactly here, and estimated within 1 % where Spark counts: of days with few events both are
the same. A test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts import bots
from feature_repo.contracts.events import EVENT_TYPES
from spark_jobs.quality.profile import Day, Part
from spark_jobs.transforms.features_of_arrays import floats, places_in
from spark_jobs.transforms.quality import (
    LATE_AFTER_SECONDS,
    LIVE_TABLES,
    NONE,
    NULLABLE_COLUMNS,
    OTHER,
    PRICE_FACTOR,
    QUANTILES,
)
from spark_jobs.transforms.whole_history import short_hashes

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]

PROFILE_COLUMNS = ("event_id", "event_type", *NULLABLE_COLUMNS, "event_timestamp", "received_at", "source")
PROFILE_WORDS = ("event_type", "user_id", "anonymous_id", "session_id", "item_id", "currency", "recommendation_id",
                 "placement", "channel", "properties", "source")  # fmt: skip
_CONTENT_WORDS = ("event_type", "user_id", "anonymous_id", "session_id", "item_id")
_DAY_SECONDS, _MICROS = 86_400, 1_000_000
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Broken(NamedTuple):
    """How many deliveries of one day and event type broke a rule, for one reason."""

    event_type: str | None
    reason: str
    deliveries: int


def profile_day(day: date, deliveries: pa.Table, catalogue: pa.Table, broken: Sequence[Broken]) -> Day:
    """One day, but for its property_keys.

    deliveries  PROFILE_COLUMNS, those of PROFILE_WORDS as dictionaries of one chunk, and `table`
    catalogue   item_id (unique) and price
    broken      what broke a rule on that day
    """
    if not deliveries.num_rows:
        return Day(day)
    kinds = [_type_word(word) for word in [*_words(deliveries, "event_type"), None]]
    names = sorted(set(kinds))
    number = np.array([names.index(kind) for kind in kinds])[_numbers(deliveries, "event_type")]
    columns = _columns(day, deliveries, catalogue)
    parts = _parts(columns, number, len(names))
    (total,) = _parts(columns, np.zeros(len(number), np.int64), 1)
    by_type = {name: part for name, part in zip(names, parts, strict=True) if part.deliveries}
    reasons: dict[str, int] = {}
    for one in broken:
        word = _type_word(one.event_type)
        by_type[word] = replace(by_type[word], broken=by_type[word].broken + one.deliveries)
        total = replace(total, broken=total.broken + one.deliveries)
        reasons[one.reason] = reasons.get(one.reason, 0) + one.deliveries
    return Day(
        day,
        total=total,
        types=by_type,
        tables=_counted(deliveries["table"]),
        currencies=_currencies(deliveries),
        reasons=dict(sorted(reasons.items())),
        **_subjects(deliveries, columns["moment"]),
    )


def _columns(day: date, deliveries: pa.Table, catalogue: pa.Table) -> dict[str, NDArray[Any]]:
    """What the parts count, by delivery."""
    moment, received = (_micros(deliveries[name]) for name in ("event_timestamp", "received_at"))
    is_timed, is_received = (_is_valid(deliveries[name]) for name in ("event_timestamp", "received_at"))
    is_live = pc.is_in(deliveries["table"], value_set=pa.array(LIVE_TABLES)).to_numpy(zero_copy_only=False)
    price, item = floats(deliveries["price"]), _numbers(deliveries, "item_id")
    ids = catalogue["item_id"].combine_chunks().cast(pa.string())
    known = places_in(pa.array(_words(deliveries, "item_id"), pa.string()), ids)
    place = np.append(known, np.int32(-1))[item]
    listed = np.append(floats(catalogue["price"]), np.nan)[place]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where((price > 0) & (listed > 0), price / listed, np.nan)
        paid = np.where(price > 0, price, np.nan)
    second = moment // _MICROS
    first = (day - date(1970, 1, 1)).days * _DAY_SECONDS
    own = is_timed & (second >= first) & (second < first + _DAY_SECONDS)
    return {
        "moment": np.where(is_timed, moment, -1),
        **{f"has_{name}": _is_valid(deliveries[name]) for name in NULLABLE_COLUMNS},
        "has_id": _is_valid(deliveries["event_id"]),
        "id": short_hashes(deliveries["event_id"]),
        "content": _contents(deliveries, moment, is_timed),
        "item": item,
        "is_live": is_live,
        "is_late": is_live & is_timed & is_received & (received // _MICROS - second > LATE_AFTER_SECONDS),
        "is_known": place >= 0,
        "ratio": ratio,
        "second": np.where(own, second - first, -1),
        "paid": paid,
        "quantity": floats(deliveries["quantity"].cast(pa.float64())),
    }


def _contents(deliveries: pa.Table, moment: Numbers, is_timed: NDArray[np.bool_]) -> Hashes:
    """A hash of what each delivery says, its event_id aside."""
    numbers = [floats(deliveries[name].cast(pa.float64())) for name in ("quantity", "price")]
    said = [
        *(_word_hashes(deliveries, name) for name in _CONTENT_WORDS),
        np.where(is_timed, moment, -1).view(np.uint64),
        *(np.where(np.isnan(values), -1.0, values + 0.0).view(np.uint64) for values in numbers),
    ]
    mixed = np.zeros(deliveries.num_rows, np.uint64)
    for values in said:
        mixed = (mixed ^ values) * _STEP
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _word_hashes(deliveries: pa.Table, name: str) -> Hashes:
    words = pa.array([*_words(deliveries, name), None], pa.string())
    return short_hashes(words)[_numbers(deliveries, name)]


def _parts(columns: Mapping[str, NDArray[Any]], group: Numbers, size: int) -> list[Part]:
    def counted(mask: NDArray[np.bool_]) -> list[int]:
        return np.bincount(group[mask], minlength=size).tolist()

    def different(values: NDArray[Any], mask: NDArray[np.bool_]) -> list[int]:
        of, value = group[mask], values[mask]
        order = np.lexsort((value, of))
        of, value = of[order], value[order]
        is_new = np.ones(len(of), bool)
        is_new[1:] = (of[1:] != of[:-1]) | (value[1:] != value[:-1])
        return np.bincount(of[is_new], minlength=size).tolist()

    everything = np.ones(len(group), bool)
    with np.errstate(invalid="ignore"):
        ratio = columns["ratio"]
        is_far = (ratio > PRICE_FACTOR) | (ratio < 1 / PRICE_FACTOR)
    counts: dict[str, Any] = {
        "deliveries": counted(everything),
        "with_event_id": counted(columns["has_id"]),
        "event_ids": different(columns["id"], columns["has_id"]),
        "contents": different(columns["content"], everything),
        "items": different(columns["item"], columns["item"] >= 0),
        "live": counted(columns["is_live"]),
        "late": counted(columns["is_late"]),
        "in_catalogue": counted(columns["is_known"]),
        "priced": counted(~np.isnan(ratio)),
        "far_priced": counted(is_far),
    }
    filled = {name: counted(columns[f"has_{name}"]) for name in NULLABLE_COLUMNS}
    return [
        Part(
            **{name: values[n] for name, values in counts.items()},
            filled={name: values[n] for name, values in filled.items()},
            **_ranges(columns, group == n),
        )
        for n in range(size)
    ]


def _ranges(columns: Mapping[str, NDArray[Any]], mask: NDArray[np.bool_]) -> dict[str, Any]:
    second = columns["second"][mask]
    second = second[second >= 0]
    found: dict[str, Any] = {}
    if len(second):
        found = {"first_second": int(second.min()), "last_second": int(second.max())}
    paid, quantity = columns["paid"][mask], columns["quantity"][mask]
    for name, values in (("price", paid[~np.isnan(paid)]), ("quantity", quantity[~np.isnan(quantity)])):
        if len(values):
            found[name] = tuple(np.quantile(values, QUANTILES, method="inverted_cdf").tolist())
            found[f"{name}_max"] = float(values.max()) if name == "price" else int(values.max())
    return found


def _subjects(deliveries: pa.Table, moment: Numbers) -> dict[str, Any]:
    """`quality.describe_subjects` of one day."""
    user, device = _numbers(deliveries, "user_id"), _numbers(deliveries, "anonymous_id")
    width = len(_words(deliveries, "user_id"))
    subject = np.where(user >= 0, user, np.where(device >= 0, width + device, -1))
    kinds = np.array([kind in bots.BROWSING_NAMES for kind in [*_words(deliveries, "event_type"), None]], bool)
    some = subject >= 0
    browses = kinds[_numbers(deliveries, "event_type")][some]
    subject, minute = subject[some], moment[some] // (60 * _MICROS)
    order = np.lexsort((minute, subject))
    subject, minute, browses = subject[order], minute[order], browses[order]
    if not len(subject):
        return {}
    is_new = np.ones(len(subject), bool)
    is_new[1:] = subject[1:] != subject[:-1]
    is_minute = is_new.copy()
    is_minute[1:] |= minute[1:] != minute[:-1]
    people = np.flatnonzero(is_new)
    count = np.diff(np.append(people, len(subject)))
    minutes = np.flatnonzero(is_minute)
    per_minute = np.add.reduceat(browses.astype(np.int64), minutes)
    peak = np.maximum.reduceat(per_minute, np.searchsorted(minutes, people))
    day_count = np.add.reduceat(browses.astype(np.int64), people)
    is_bot = (day_count > bots.LEAST_FOR_MINUTE) & (peak > bots.MAX_PER_MINUTE)
    return {
        "subjects": len(people),
        "users": int(np.sum(subject[people] < width)),
        "bots": int(is_bot.sum()),
        "bot_deliveries": int(count[is_bot].sum()),
        "busiest_deliveries": int(count[~is_bot].max(initial=0)),
    }


def _currencies(deliveries: pa.Table) -> dict[str, int]:
    words = [
        NONE
        if word is None
        else word
        if len(word) == 3 and word.isascii() and word.isalpha() and word.isupper()
        else OTHER
        for word in [*_words(deliveries, "currency"), None]
    ]
    counts: dict[str, int] = {}
    numbers = _numbers(deliveries, "currency")
    for word, count in zip(
        words, np.bincount(np.where(numbers < 0, len(words) - 1, numbers), minlength=len(words)), strict=True
    ):
        if count:
            counts[word] = counts.get(word, 0) + int(count)
    return dict(sorted(counts.items()))


def _counted(values: pa.ChunkedArray) -> dict[str, int]:
    counts: Iterable[Mapping[str, Any]] = pc.value_counts(values).to_pylist()
    return dict(sorted((one["values"], one["counts"]) for one in counts))


def _type_word(kind: str | None) -> str:
    return NONE if kind is None else kind if kind in EVENT_TYPES else OTHER


def _words(deliveries: pa.Table, name: str) -> list[str]:
    return deliveries[name].chunk(0).dictionary.to_pylist()


def _numbers(deliveries: pa.Table, name: str) -> Numbers:
    """The place of each text among `_words`, -1 for null."""
    return np.asarray(pc.fill_null(deliveries[name].chunk(0).indices, -1).to_numpy(zero_copy_only=False), np.int64)


def _is_valid(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return pc.is_valid(values).to_numpy(zero_copy_only=False)


def _micros(moments: pa.ChunkedArray) -> Numbers:
    return pc.fill_null(moments.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
