"""Trending: what people prefer in a window before the cut-off, more than it usually is preferred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import DataError
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.popularity import Popularity

MOST_DAYS = 3_650
"""Of a window: longer than any history that is kept."""


class Trending(Popularity):
    """score(j) = (recent_j - contrast * usual_j) / sqrt(contrast * usual_j + damping)

    recent_j  what happened to j in the window [cut_off - window_days, cut_off): the sum over subjects of their
              preference there, decayed by the recipe's half-life, each subject's part capped
    usual_j   what j would have of all that happened in the window, had it the share of it that it had of everything
              before the window (not decayed, capped alike); 0 where nothing was before

    With contrast 1 this is the Pearson residual of a count, (observed - expected) / sqrt(expected) (A. Agresti:
    Categorical Data Analysis, 2013), so a best seller that sells as always scores about 0, and a rare item needs more
    than one event to rise: `damping` is added to the variance. With contrast 0 it is the order of popularity within the
    window. The same scores for everybody, and no reasons. Of equal scores the lower item number comes first. An item of
    which no event counts scores as low as the lowest.

    params
        window_days  raising it sees slower trends, and later
        damping      in event weights; raising it lets rare items rise less
        contrast     0 to 1: how much of what is usual is taken off
        subject_cap  the most one subject can add to one item, in event weights, in the window and before it alike
    """

    name = "trending"

    def __init__(self, params: Mapping[str, Any]) -> None:
        """Raises DataError naming the parameter that makes no sense."""
        super().__init__(params)
        window_days, damping, contrast = (float(self.params[name]) for name in ("window_days", "damping", "contrast"))
        if not 0 < window_days <= MOST_DAYS:
            words = f"window_days is above 0 and at most {MOST_DAYS:,}, got {window_days:g}"
            raise DataError(words, field="window_days")
        if not 0 < damping < np.inf:
            raise DataError(f"damping is above 0, got {damping:g}", field="damping")
        if not 0 <= contrast <= 1:
            raise DataError(f"contrast is 0 to 1, got {contrast:g}", field="contrast")

    def fit(self, matrix: InteractionMatrix) -> None:
        """A matrix has no moments: all of it counts as the window. `factory.fit` calls `learn`."""
        self.learn(matrix, None)

    def learn(self, recent: InteractionMatrix, before: InteractionMatrix | None) -> None:
        """From the preferences in the window and those before it, over the same items."""
        now = self._worth(recent.preference)
        then = np.zeros(recent.item_count) if before is None else self._worth(before.preference)
        usual = now.sum() * then / max(float(then.sum()), 1e-12) * float(self.params["contrast"])
        scores = (now - usual) / np.sqrt(usual + float(self.params["damping"]))
        is_known = (now > 0) | (then > 0)
        lowest = scores[is_known].min(initial=0.0)
        self.item_scores = np.where(is_known, scores, lowest).astype(np.float32)

    def _worth(self, preference: sparse.csr_matrix) -> NDArray[np.float64]:
        """What each item has, each subject's part capped."""
        capped = np.minimum(preference.data.astype(np.float64), float(self.params["subject_cap"]))
        return np.bincount(preference.indices, weights=capped, minlength=preference.shape[1]).astype(np.float64)
