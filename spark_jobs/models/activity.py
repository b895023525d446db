"""How much is known of a person: the slices that quality is told by, and that a blend may weigh its parts by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ACTIVITY_SLICES = ("<5", "5-20", ">20")
"""By the number of a person's events."""


def activity_slices(event_counts: NDArray[np.int64]) -> NDArray[np.str_]:
    """The slice of each person."""
    return np.select([event_counts < 5, event_counts <= 20], ACTIVITY_SLICES[:2], ACTIVITY_SLICES[2]).astype(np.str_)
