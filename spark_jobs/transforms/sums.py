"""Sums, means and most frequent values by group in arrays, as Spark's aggregates give them: groups are numbers from 0.

Doubles have NaN where Spark has null. Money and weights are whole numbers of a small unit, so that the order of rows
cannot change a sum.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Group = NDArray[np.integer]
Mask = NDArray[np.bool_]

NEVER = np.iinfo(np.int64).min
"""What `latest` says of a group without a moment."""
_EXACT = 2.0**52
_MOST_DIGITS = 18
_LOW_BITS = 26
_NEAR_HALF = 1e-3


def to_units(values: Floats, digits: int) -> tuple[Integers, Mask]:
    """(`values` in units of 10^-digits, which of them have one): a cast to decimal(18, digits).

    Halves are rounded away from 0, as the shortest text of the number has them. NaN and what needs more digits have
    none; their unit is 0.
    """
    with np.errstate(invalid="ignore"):
        has_one = np.abs(values) < 10.0 ** (_MOST_DIGITS - digits)
    scaled = np.where(has_one, values, 0.0) * 10.0**digits
    units = np.rint(scaled).astype(np.int64)
    is_doubtful = (np.abs(scaled - np.floor(scaled) - 0.5) < _NEAR_HALF) | (np.abs(scaled) > _EXACT)
    places = np.flatnonzero(is_doubtful)
    if len(places):
        step = Decimal(1).scaleb(-digits)
        some, which = np.unique(values[places], return_inverse=True)
        exact = [int(Decimal(repr(v)).quantize(step, ROUND_HALF_UP).scaleb(digits)) for v in some.tolist()]
        units[places] = np.array(exact, np.int64)[which]
    return units, has_one


def count(group: Group, mask: Mask, size: int) -> Integers:
    """How many rows of `mask` each group has."""
    return np.bincount(group[mask], minlength=size)


def sum_units(units: Integers, group: Group, size: int, digits: int) -> Floats:
    """The sum of each group, made of units of 10^-digits: the double next to it; 0 where there is nothing."""
    sums = np.bincount(group, weights=units, minlength=size)
    largest = np.bincount(group, weights=np.abs(units), minlength=size)
    if largest.max(initial=0.0) < _EXACT:
        return sums / 10.0**digits
    high = np.bincount(group, weights=units >> _LOW_BITS, minlength=size).tolist()
    low = np.bincount(group, weights=units & ((1 << _LOW_BITS) - 1), minlength=size).tolist()
    exact = [(int(h) << _LOW_BITS) + int(part) for h, part in zip(high, low, strict=True)]
    return np.array([unit / 10**digits for unit in exact], np.float64)


def ratio(part: NDArray[np.generic], whole: NDArray[np.generic]) -> Floats:
    """part / whole; NaN where whole is 0 or NaN."""
    below = np.asarray(whole, np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.where(below == 0, np.nan, np.asarray(part, np.float64) / below)


def latest(moments: Integers, group: Group, size: int) -> Integers:
    """The largest of each group; NEVER where there is none."""
    found = np.full(size, NEVER)
    np.maximum.at(found, group, moments)
    return found


def distinct(keys: Integers, size: int) -> Integers:
    """The different keys, all below `size`, sorted."""
    if size > 8 * len(keys) + 1_000_000:
        return np.unique(keys)
    seen = np.zeros(size, bool)
    seen[keys] = True
    return np.flatnonzero(seen)


def numbered(keys: Integers, size: int) -> tuple[Integers, Integers]:
    """(`distinct` keys, the place of each row's key among them)."""
    if size > 8 * len(keys) + 1_000_000:
        return np.unique(keys, return_inverse=True)
    found = distinct(keys, size)
    place = np.zeros(size, np.int64)
    place[found] = np.arange(len(found))
    return found, place[keys]


def medians(values: Floats, group: Group, size: int) -> Floats:
    """The middle of each group's values, between the two in the middle when their number is even; NaN without any."""
    order = np.lexsort((values, group))
    ordered = values[order]
    counts = np.bincount(group, minlength=size)
    found = np.full(size, np.nan)
    some = np.flatnonzero(counts)
    first = (np.cumsum(counts) - counts)[some]
    low, high = ordered[first + (counts[some] - 1) // 2], ordered[first + counts[some] // 2]
    found[some] = np.where(counts[some] % 2 == 1, low, 0.5 * low + 0.5 * high)
    return found


def most_frequent(values: Group, group: Group, width: int, size: int) -> NDArray[np.int64]:
    """The value (below `width`) that each group has most often, the smallest of equals; -1 without any."""
    keys, counts = np.unique(group.astype(np.int64) * width + values, return_counts=True)
    of, value = keys // max(width, 1), keys % max(width, 1)
    order = np.lexsort((value, -counts, of))
    first = np.ones(len(order), bool)
    first[1:] = of[order][1:] != of[order][:-1]
    found = np.full(size, -1, np.int64)
    found[of[order][first]] = value[order][first]
    return found
