"""Bootstrap intervals of paired differences: the same persons under two models."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 20_240_229
_CELLS_PER_BLOCK = 4_000_000


class Interval(NamedTuple):
    """A mean over persons and its 95 % percentile bootstrap interval."""

    mean: float
    lower: float
    upper: float


class PairedComparison(NamedTuple):
    """Model minus reference: in the metric's own units, and relative to the reference's mean (None when that is 0)."""

    users: int
    difference: Interval
    relative: Interval | None


def compare_paired(model: NDArray[np.float64], reference: NDArray[np.float64], *, seed: int = SEED) -> PairedComparison:
    """How the model differs from the reference on the same persons (equal order).

    Persons are resampled with replacement RESAMPLES times, both values of a person together: what makes one person
    hard makes them hard for both. Deterministic given the seed. With one person the interval is that one value.
    """
    if len(model) != len(reference) or len(model) == 0:
        raise ValueError(f"a paired comparison needs the same persons, got {len(model)} and {len(reference)}")
    means = _resampled_means(np.column_stack([model, reference]), seed)
    differences = means[:, 0] - means[:, 1]
    base = float(reference.mean())
    mean = float(model.mean()) - base
    relative = None
    if base > 0 and (means[:, 1] > 0).all():
        relative = _interval(mean / base, differences / means[:, 1])
    return PairedComparison(len(model), _interval(mean, differences), relative)


def mean_interval(values: NDArray[np.float64], *, seed: int = SEED) -> Interval:
    """The mean of one value per person."""
    return _interval(float(values.mean()), _resampled_means(values[:, None], seed)[:, 0])


def mean_intervals(values: NDArray[np.float64], *, seed: int = SEED) -> list[Interval]:
    """The mean of each column (persons x columns), every column under the same resampled persons."""
    means = _resampled_means(values, seed)
    return [_interval(float(values[:, n].mean()), means[:, n]) for n in range(values.shape[1])]


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    count = len(values)
    step = max(1, _CELLS_PER_BLOCK // count)
    means = np.empty((RESAMPLES, values.shape[1]))
    for start in range(0, RESAMPLES, step):
        drawn = rng.integers(0, count, size=(min(step, RESAMPLES - start), count))
        for column in range(values.shape[1]):
            means[start : start + len(drawn), column] = values[:, column][drawn].mean(axis=1)
    return means


def _interval(mean: float, resampled: NDArray[np.float64]) -> Interval:
    lower, upper = np.quantile(resampled, [0.025, 0.975])
    return Interval(mean, float(lower), float(upper))
