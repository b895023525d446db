"""Repurchase: what this person buys again, how often, how lately, and whether it is due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import Terms
from spark_jobs.models.ranking import top_items
from spark_jobs.models.sequences import Sequences

MICROS_PER_DAY = 86_400_000_000.0


class History(NamedTuple):
    """By (sequence, item), in that order: visits, the last (us since 1970), the expected interval, decayed worth."""

    rows: NDArray[np.int64]
    items: NDArray[np.int64]
    counts: NDArray[np.int64]
    last: NDArray[np.int64]
    expected_days: NDArray[np.float64]
    worth: NDArray[np.float64]


class Repurchase:
    """score(u, i) = sum over visits of weight * 2^(-age / half_life_days) * (d e^(1 - d)) ^ due_power.

    A visit is one moment at which u had i; d = (time since the last visit) / (expected interval). The expected interval
    is u's own mean interval of i, drawn towards the item's (over all people; where nobody came twice, towards the
    median of items) by the weight of `prior` intervals. d e^(1-d) is 1 when i is due now, less before and after.

    Items that u never had score 0.

    params
        half_life_days   of a visit; null: all visits count alike, which is plain personal frequency
        due_power        0 ignores the interval
        prior            intervals that the item's mean is worth against the person's own
    """

    name = "repurchase"
    source = int(Source.SESSION)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self.intervals: NDArray[np.float64] = np.empty(0)

    def fit(self, sequences: Sequences) -> None:
        """Learn the mean interval of each item, in days."""
        visits = _visits(sequences)
        again = visits.counts > 1
        spans = ((visits.last - visits.first) / MICROS_PER_DAY)[again]
        items = visits.items[again]
        gaps = visits.counts[again] - 1
        days = np.bincount(items, weights=spans, minlength=sequences.item_count)
        times = np.bincount(items, weights=gaps, minlength=sequences.item_count)
        known = times > 0
        means = np.divide(days, times, out=np.zeros(sequences.item_count), where=known)
        usual = float(np.median(means[known])) if known.any() else 1.0
        self.intervals = np.where(known, means, usual)

    def score_sequences(self, sequences: Sequences) -> NDArray[np.float32]:
        scores = np.zeros((len(sequences), sequences.item_count), np.float32)
        history = self.history(sequences)
        since = (sequences.cut_off - history.last) / MICROS_PER_DAY
        due = since / np.maximum(history.expected_days, 1e-3)
        readiness = (due * np.exp(1 - np.minimum(due, 700.0))) ** float(self.params["due_power"])
        scores[history.rows, history.items] = history.worth * readiness
        return scores

    def history(self, sequences: Sequences) -> History:
        """What each sequence had: the facts of the formula, without the instant at which it is asked."""
        visits = _visits(sequences, self.params["half_life_days"])
        prior = float(self.params["prior"])
        own = (visits.last - visits.first) / MICROS_PER_DAY
        expected = (own + prior * self.intervals[visits.items]) / np.maximum(visits.counts - 1 + prior, 1e-9)
        return History(visits.rows, visits.items, visits.counts, visits.last, expected, visits.worth)

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:  # noqa: ARG002
        """Always empty: an item speaks only for itself."""
        return []

    def explain_sequence(self, sequence: Sequences, item_numbers: Sequence[int]) -> list[tuple[int | None, int | None]]:
        """The item itself, where the person had it."""
        had = set(sequence.items.tolist())
        return [(int(number) if number in had else None, None) for number in item_numbers]

    def sequence_terms(self, sequence: Sequences, item_numbers: Sequence[int]) -> Terms:
        """An item speaks for itself alone, with its whole score."""
        items = np.unique(sequence.items)
        asked = np.asarray(item_numbers, dtype=np.int64)
        scores = self.score_sequences(sequence)[0, asked].astype(np.float64)
        return Terms(items, np.where(asked[:, None] == items[None, :], scores[:, None], 0.0))

    def best_again(self, sequence: Sequences, count: int) -> list[tuple[int, float]]:
        """What to offer again to the person of one sequence, best first, ties by number."""
        numbers, values = top_items(self.score_sequences(sequence), count)
        return [(int(n), float(v)) for n, v in zip(numbers[0], values[0], strict=True) if v > 0]

    def save(self, folder: Path) -> None:
        save_arrays(folder, model=self.name, params=self.params, arrays={"intervals": self.intervals})

    @classmethod
    def load(cls, folder: Path) -> Repurchase:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        model.intervals = arrays["intervals"]
        return model


class _Visits:
    """By (sequence, item): how many moments, the first, the last, and their decayed worth."""

    __slots__ = ("counts", "first", "items", "last", "rows", "worth")

    def __init__(
        self,
        rows: NDArray[np.int64],
        items: NDArray[np.int64],
        counts: NDArray[np.int64],
        first: NDArray[np.int64],
        last: NDArray[np.int64],
        worth: NDArray[np.float64],
    ) -> None:
        self.rows, self.items, self.counts = rows, items, counts
        self.first, self.last, self.worth = first, last, worth


def _visits(sequences: Sequences, half_life_days: float | None = None) -> _Visits:
    rows = np.repeat(np.arange(len(sequences)), np.diff(sequences.starts))
    items = sequences.items.astype(np.int64)
    order = np.lexsort((sequences.micros, items, rows))
    rows, items, micros = rows[order], items[order], sequences.micros[order]
    weights = sequences.weights[order].astype(np.float64)
    new_pair = np.r_[True, (rows[1:] != rows[:-1]) | (items[1:] != items[:-1])] if len(rows) else np.empty(0, bool)
    new_visit = new_pair | np.r_[True, micros[1:] != micros[:-1]] if len(rows) else np.empty(0, bool)
    visit = np.flatnonzero(new_visit)
    if len(visit) == 0:
        nothing = np.empty(0, np.int64)
        return _Visits(nothing, nothing, nothing, nothing, nothing, np.empty(0))
    weights = np.maximum.reduceat(weights, visit)
    rows, items, micros, new_pair = rows[visit], items[visit], micros[visit], new_pair[visit]
    if half_life_days is not None:
        weights = weights * np.exp2(-(sequences.cut_off - micros) / MICROS_PER_DAY / float(half_life_days))
    start = np.flatnonzero(new_pair)
    counts = np.diff(np.r_[start, len(rows)])
    return _Visits(
        rows[start],
        items[start],
        counts,
        micros[start],
        micros[start + counts - 1],
        np.add.reduceat(weights, start),
    )
