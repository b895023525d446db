"""Features of users and items at one instant, as arrays: what a second stage reads beside the scores of the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class EntityFeatures(NamedTuple):
    """Numbers that were known at the beginning of a day (UTC); NaN where a value, or the whole row, is missing.

    user_rows    user_id -> its row in `user_values`
    user_values  float32, (users + 1, user_names); the last row is nobody's: all NaN
    item_values  float32, (items, item_names), by item number
    """

    user_rows: Mapping[str, int]
    user_names: Sequence[str]
    user_values: NDArray[np.float32]
    item_names: Sequence[str]
    item_values: NDArray[np.float32]

    def rows_of(self, subjects: NDArray[np.str_]) -> NDArray[np.int64]:
        """The row of each subject (`u:<user_id>`); the last one of whom there is none."""
        nobody = len(self.user_values) - 1
        found = [self.user_rows.get(s[2:], nobody) if s.startswith("u:") else nobody for s in subjects.tolist()]
        return np.array(found, dtype=np.int64)


FeaturesAt = Callable[[date], EntityFeatures | None]
"""The features at the beginning of a day; None when none were made for it."""
