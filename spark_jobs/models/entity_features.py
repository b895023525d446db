"""Features of users and items at one instant, as arrays: what a second stage reads beside the scores of the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class CategoryFeatures(NamedTuple):
    """What users did in categories, as of the same instant; NaN where a value is missing.

    item_categories  int64 by item number: the number of its category, -1 of an item without one
    category_count   of categories that have a number
    pairs            int64, ascending: user row * category_count + category number, of each pair that has a row
    values           float32, (pairs + 1, names); the last row is no pair's: all NaN
    """

    names: Sequence[str]
    item_categories: NDArray[np.int64]
    category_count: int
    pairs: NDArray[np.int64]
    values: NDArray[np.float32]

    def of(self, user_rows: NDArray[np.int64], item_numbers: NDArray[np.integer]) -> NDArray[np.float32]:
        """Of each user what they did in the category of each of their items (users x items): users x items x names."""
        categories = self.item_categories[item_numbers]
        wanted = np.where(categories >= 0, user_rows[:, None] * self.category_count + categories, -1)
        place = np.searchsorted(self.pairs, wanted)
        found = np.append(self.pairs, -2)[place] == wanted
        return self.values[np.where(found, place, len(self.pairs))]


class EntityFeatures(NamedTuple):
    """Numbers that were known at the beginning of a day (UTC); NaN where a value, or the whole row, is missing.

    user_rows    user_id -> its row in `user_values`
    user_values  float32, (users + 1, user_names); the last row is nobody's: all NaN
    item_values  float32, (items, item_names), by item number
    by_category  of users in the categories of items; None where there are none of that day
    """

    user_rows: Mapping[str, int]
    user_names: Sequence[str]
    user_values: NDArray[np.float32]
    item_names: Sequence[str]
    item_values: NDArray[np.float32]
    by_category: CategoryFeatures | None = None

    def rows_of(self, subjects: NDArray[np.str_]) -> NDArray[np.int64]:
        """The row of each subject (`u:<user_id>`); the last one of whom there is none."""
        nobody = len(self.user_values) - 1
        found = [self.user_rows.get(s[2:], nobody) if s.startswith("u:") else nobody for s in subjects.tolist()]
        return np.array(found, dtype=np.int64)


FeaturesAt = Callable[[date], EntityFeatures | None]
"""The features at the beginning of a day; None when none were made for it."""
