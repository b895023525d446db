"""Sums, medians and most frequent values by group: by hand, and against exact arithmetic."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from spark_jobs.transforms import sums
from spark_jobs.transforms.sums import (
    NEVER,
    distinct,
    latest,
    medians,
    most_frequent,
    numbered,
    ratio,
    sum_units,
    to_units,
)

NAN = float("nan")


def test_units_are_rounded_as_the_text_of_the_number_says() -> None:
    values = [0.1, 0.0000005, 0.0000015, 0.00000049, -0.0000005, 0.1234565, 29.97 * 3, NAN, 0.0, 1e12, 999999999999.0]
    units, has_one = to_units(np.array(values), 6)
    assert units.tolist() == [100000, 1, 2, 0, -1, 123457, 89910000, 0, 0, 0, 999999999999000000]
    assert has_one.tolist() == [True] * 7 + [False, True, False, True]


@pytest.mark.parametrize("largest", [10**6, 10**17])
def test_sums_are_the_double_next_to_the_exact_one(largest: int) -> None:
    drawn = random.Random(largest)
    units = [drawn.randrange(-largest, largest) for _ in range(500)]
    group = [drawn.choice([0, 0, 0, 2]) for _ in units]
    exact = [Fraction(sum(u for u, g in zip(units, group, strict=True) if g == n), 10**6) for n in range(3)]
    found = sum_units(np.array(units), np.array(group), 3, 6)
    assert found.tolist() == [float(value) for value in exact]


def test_a_ratio_has_no_value_over_nothing() -> None:
    found = ratio(np.array([1.0, 1.0, NAN, 0.0]), np.array([4, 0, 2, 5]))
    assert np.array_equal(found, [0.25, NAN, NAN, 0.0], equal_nan=True)


def test_the_latest_and_groups_without_one() -> None:
    assert latest(np.array([5, -7, 3]), np.array([0, 2, 0]), 3).tolist() == [5, NEVER, -7]


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_different_keys_and_their_places(size: int) -> None:
    keys = np.array([7, 3, 7, 0])
    assert distinct(keys, size).tolist() == [0, 3, 7]
    found, place = numbered(keys, size)
    assert (found.tolist(), place.tolist()) == ([0, 3, 7], [2, 1, 2, 0])
    assert distinct(np.empty(0, np.int64), size).tolist() == []


def test_the_middle_of_even_and_odd_many() -> None:
    values, group = np.array([3.0, 9.0, 1.0, 5.0, 2.0, 8.0]), np.array([0, 2, 0, 0, 2, 3])
    assert np.array_equal(medians(values, group, 5), [3.0, NAN, 5.5, 8.0, NAN], equal_nan=True)


def test_the_most_frequent_and_the_smallest_of_equals() -> None:
    values, group = np.array([4, 1, 4, 2, 1, 3, 3, 0]), np.array([0, 0, 0, 2, 2, 3, 3, 3])
    assert most_frequent(values, group, 5, 4).tolist() == [4, -1, 1, 3]
    assert most_frequent(np.empty(0, np.int32), np.empty(0, np.int32), 0, 2).tolist() == [-1, -1]


def test_exact_sums_need_no_slow_way_where_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is where doubles stop holding whole numbers: what one way finds below it, the other does too."""
    units, group = np.array([2**40, -3, 5]), np.array([0, 0, 1])
    fast = sum_units(units, group, 2, 12)
    monkeypatch.setattr(sums, "_EXACT", 0.0)
    assert sum_units(units, group, 2, 12).tolist() == fast.tolist() == [(2**40 - 3) / 10**12, 5 / 10**12]
