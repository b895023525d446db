"""One set of interactions in the forms that recipes ask for, each made once. Several threads may ask."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.times import to_micros
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.entity_features import EntityFeatures, FeaturesAt
from spark_jobs.models.item_content import ItemContent
from spark_jobs.models.matrix import build_matrix, sort_interactions
from spark_jobs.models.sequences import Sequences, build_sequences

KEPT = 4
"""Matrices, and sequences, that are kept at a time: recipes of a night differ in few weights and half-lives."""


class TrainingData:
    """Interactions (`matrix.COLUMNS`) before `cut_off`, aware UTC, over `item_count` items, and what they are."""

    def __init__(
        self,
        interactions: pa.Table,
        *,
        item_count: int,
        cut_off: datetime,
        content: ItemContent | None = None,
        features: FeaturesAt | None = None,
    ) -> None:
        """`features`: those of users and items at the beginning of a day, for a second stage."""
        self.interactions = sort_interactions(interactions)
        self.item_count, self.cut_off, self.content = item_count, cut_off, content
        self._features = features
        self._matrices: dict[str, InteractionMatrix] = {}
        self._sequences: dict[str, tuple[NDArray[np.str_], Sequences]] = {}
        self._lock = threading.Lock()
        self._event_counts: tuple[NDArray[np.str_], NDArray[np.int64]] | None = None

    def before(self, cut_off: datetime) -> TrainingData:
        """The same with an earlier cut-off."""
        earlier = self.interactions.filter(pc.less(self.interactions["micros"], to_micros(cut_off)))
        return TrainingData(
            earlier, item_count=self.item_count, cut_off=cut_off, content=self.content, features=self._features
        )

    def since(self, start: datetime, weights: Mapping[str, float]) -> pa.Table:
        """What happened from `start` to the cut-off, of the event types that have a weight."""
        rows = self.interactions
        inside = pc.and_(
            pc.greater_equal(rows["micros"], to_micros(start)), pc.less(rows["micros"], to_micros(self.cut_off))
        )
        counting = pa.array(sorted(kind for kind, weight in weights.items() if weight > 0), pa.string())
        return rows.filter(pc.and_(inside, pc.is_in(rows["event_type"].cast(pa.string()), value_set=counting)))

    def features_at(self, moment: datetime, *, by_category: bool = False) -> EntityFeatures:
        """Raises DataError when there are none of that day (with `by_category`: or none of users by category), saying
        how they are made."""
        day = moment.astimezone(UTC).date()
        found = self._features(day) if self._features is not None else None
        if found is None or (by_category and found.by_category is None):
            which = "features" if found is None else "features of users by category"
            raise DataError(
                f"there are no {which} of {day}: the night of that day makes them, or `nightjar run rederive --from "
                f"{day} --to {day + timedelta(days=1)}`",
                field="features",
            )
        return found

    def matrix(self, recipe: Mapping[str, Any]) -> InteractionMatrix:
        """The preferences by the recipe's weights and half-life."""
        key = _key(recipe["weights"], recipe["half_life_days"])
        with self._lock:
            if key not in self._matrices:
                _make_room(self._matrices)
                matrix = build_matrix(
                    self.interactions,
                    item_count=self.item_count,
                    weights=recipe["weights"],
                    half_life_days=recipe["half_life_days"],
                    cut_off=self.cut_off,
                )
                self._matrices[key] = replace(matrix, content=self.content)
            return self._matrices[key]

    def sequences(self, recipe: Mapping[str, Any]) -> tuple[NDArray[np.str_], Sequences]:
        """(subjects, sorted; their sequences) by the recipe's weights."""
        key = _key(recipe["weights"])
        with self._lock:
            if key not in self._sequences:
                _make_room(self._sequences)
                self._sequences[key] = build_sequences(
                    self.interactions,
                    item_count=self.item_count,
                    weights=recipe["weights"],
                    cut_off_micros=to_micros(self.cut_off),
                )
            return self._sequences[key]

    def event_counts(self, subjects: NDArray[np.str_]) -> NDArray[np.int64]:
        """How many events each subject has, of whatever weight."""
        if self._event_counts is None:
            known = self.interactions.filter(pc.less(self.interactions["micros"], to_micros(self.cut_off)))
            column = known["subject_key"].combine_chunks()
            names = np.array(column.dictionary.to_pylist(), dtype=np.str_)
            self._event_counts = names, np.bincount(np.asarray(column.indices), minlength=len(names))
        names, counts = self._event_counts
        if len(names) == 0:
            return np.zeros(len(subjects), np.int64)
        place = np.minimum(np.searchsorted(names, subjects), len(names) - 1)
        return np.where(names[place] == subjects, counts[place], 0).astype(np.int64)


def _key(*parts: Any) -> str:
    return " ".join(repr(sorted(p.items()) if isinstance(p, Mapping) else p) for p in parts)


def _make_room(kept: dict[str, Any]) -> None:
    while len(kept) >= KEPT:
        kept.pop(next(iter(kept)))
