"""What the simulated people really like: the yardstick that no real shop has.

A person's utility of an item is the inner product of their factors: taste (a mixture of taste groups, a regional
leaning and their own whims) against the item's style, plus the item's quality, minus their price sensitivity times how
dear the item is for its category. The preference is the logistic function of it: the chance that the person likes the
item once they look at it. How visible an item is (its exposure) drives what is seen, never what is liked; so a
recommender that only repeats what is popular leaves preference on the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError, nearest

TRUTH_FILE = "truth.npz"


@dataclass(frozen=True)
class Truth:
    """user_factors (users, d) and item_factors (items, d), float32; row r belongs to user_ids[r] / item_ids[r]."""

    user_ids: NDArray[np.str_]
    item_ids: NDArray[np.str_]
    user_factors: NDArray[np.float32]
    item_factors: NDArray[np.float32]
    user_rows: Mapping[str, int] = field(init=False, repr=False)
    item_rows: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "user_rows", {str(u): r for r, u in enumerate(self.user_ids)})
        object.__setattr__(self, "item_rows", {str(i): r for r, i in enumerate(self.item_ids)})

    def save(self, folder: Path) -> None:
        """Writes `truth.npz` (arrays only, no pickle)."""
        np.savez_compressed(
            folder / TRUTH_FILE,
            user_ids=self.user_ids,
            item_ids=self.item_ids,
            user_factors=self.user_factors,
            item_factors=self.item_factors,
        )


def load_truth(folder: str | Path) -> Truth:
    """The truth of a simulated shop folder. Raises DataError when the folder has none."""
    path = Path(folder) / TRUTH_FILE
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Truth(**{name: arrays[name] for name in ("user_ids", "item_ids", "user_factors", "item_factors")})
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise DataError(f"no truth in {folder}: {TRUTH_FILE} is not there or damaged ({error})") from error


def true_preference(truth: Truth, user_id: str, item_ids: Sequence[str]) -> NDArray[np.float64]:
    """The chance, 0 to 1, that the user likes each item once shown, in the order asked.

    Raises DataError on a user or an item that the shop does not know.
    """
    if user_id not in truth.user_rows:
        raise DataError(f"the truth knows no user {user_id!r}{nearest(user_id, truth.user_rows)}", field="user_id")
    for item_id in item_ids:
        if item_id not in truth.item_rows:
            raise DataError(f"the truth knows no item {item_id!r}{nearest(item_id, truth.item_rows)}", field="item_id")
    rows = [truth.item_rows[i] for i in item_ids]
    user = truth.user_factors[truth.user_rows[user_id]].astype(np.float64)
    return 1.0 / (1.0 + np.exp(-(truth.item_factors[rows].astype(np.float64) @ user)))


def expected_preference(truth: Truth, slates: Mapping[str, Sequence[str]]) -> float:
    """The mean preference over users of the mean over their slate: what a shown item is worth, 0 to 1.

    Users with an empty slate count as 0: an empty answer pleases nobody. Raises DataError without users.
    """
    if not slates:
        raise DataError("expected_preference needs at least one user's slate")
    means = [float(true_preference(truth, u, items).mean()) if items else 0.0 for u, items in slates.items()]
    return float(np.mean(means))
