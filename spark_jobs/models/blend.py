"""The hybrid's sum: scores of several models on one scale, weighted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

LEAST_SPREAD = 1e-12
CELLS_AT_ONCE = 100_000
"""Of the scores that are standardised together: few enough to stay near the processor from step to step."""


def standardize(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row with mean 0 and standard deviation 1 over its finite scores; a row that is all alike becomes zeros.

    What is not finite stays as it is. Changes `scores` and returns it.
    """
    return standardize_rows(scores)[0]


def standardize_rows(scores: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """As `standardize`, and by what each row was multiplied: 1 / its deviation, or 0."""
    if scores.size == 0:
        return scores, np.zeros(len(scores))
    step = max(1, CELLS_AT_ONCE // scores.shape[1])
    scales = [_standardize(scores[first : first + step]) for first in range(0, len(scores), step)]
    return scores, np.concatenate(scales)


def _standardize(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """The scales of a few rows, which are changed."""
    mean = scores.mean(axis=1, dtype=np.float64)
    if np.isfinite(mean).all():  # a sum of 64 bits has room for all finite numbers of 32
        spread = np.sqrt(np.maximum(np.square(scores, dtype=np.float64).mean(axis=1) - mean**2, 0.0))
    else:
        finite = np.isfinite(scores)
        count = np.maximum(finite.sum(axis=1), 1)
        known = np.where(finite, scores, 0).astype(np.float64)
        mean = known.sum(axis=1) / count
        spread = np.sqrt(np.maximum((known**2).sum(axis=1) / count - mean**2, 0.0))
    flat = spread <= LEAST_SPREAD * np.maximum(np.abs(mean), 1.0)
    scores -= mean[:, None].astype(np.float32)
    scales: NDArray[np.float64] = np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, spread))
    scores *= scales[:, None].astype(np.float32)
    return scales


def blend(parts: Iterable[tuple[float, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """sum of weight * standardize(scores); the arrays of `parts` are changed. Raises ValueError without any part."""
    total: NDArray[np.float32] | None = None
    for weight, scores in parts:
        scaled = standardize(scores)
        scaled *= np.float32(weight)
        total = scaled if total is None else total + scaled
    if total is None:
        raise ValueError("a blend of nothing")
    return total
