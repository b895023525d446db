"""What the models of the quality bench learn from, and whom they are asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.times import from_micros
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.item_content import ItemContent
from spark_jobs.models.matrix import build_matrix, histories_of, matrix_rows
from spark_jobs.models.sequences import Sequences, build_sequences, last_places

PREFIX_PLACES = 20
PREFIX_DECAY = 2.0
"""A running session as a history of the matrix: its last places, each e times less for so many steps from the end."""
PREFIX_SLICES = ("<2", "2-3", ">3")
"""Running sessions by how many of their places hold known items."""
ALL = "all"


@dataclass(frozen=True, slots=True)
class Questions:
    """Whom to rank for: rows of the training's users (-1: nobody known), or running sessions."""

    users: NDArray[np.int64]
    prefixes: Sequences | None = None

    def __len__(self) -> int:
        return len(self.users)

    def part(self, rows: NDArray[np.int64]) -> Questions:
        return Questions(self.users[rows], None if self.prefixes is None else self.prefixes.block(rows))

    def prefix_slices(self) -> NDArray[np.str_]:
        """The slice of each running session (`PREFIX_SLICES`); of users, who are not cut by it, `ALL`."""
        if self.prefixes is None:
            return np.full(len(self), ALL)
        lengths = np.diff(self.prefixes.starts)
        return np.select([lengths < 2, lengths <= 3], PREFIX_SLICES[:2], PREFIX_SLICES[2]).astype(np.str_)


@dataclass(slots=True)
class Training:
    """What models learn from.

    item_names   sorted; an item's number is its place. Items of the test alone have none: nobody can recommend them
    user_names   sorted; empty for sessions
    table        interactions (`matrix.COLUMNS`), subjects being `u:<user>`; None for sessions
    sessions     sessions, oldest first; None but for sessions
    cut_off      us: everything in `table` is before it
    types        event types, and how many events each has
    target_types the types that count as success: the most valued there are
    content      what is said of each item; None: nothing
    """

    item_names: NDArray[np.object_]
    user_names: NDArray[np.object_]
    table: pa.Table | None
    sessions: Sequences | None
    cut_off: int
    has_time: bool
    has_order: bool
    types: Mapping[str, int]
    target_types: tuple[str, ...]
    content: ItemContent | None = None
    _matrices: dict[str, InteractionMatrix] = field(default_factory=dict)
    _sequences: dict[str, tuple[NDArray[np.str_], Sequences]] = field(default_factory=dict)

    @property
    def item_count(self) -> int:
        return len(self.item_names)

    @property
    def people_count(self) -> int:
        """Users, or sessions."""
        return len(self.user_names) if self.sessions is None else len(self.sessions)

    @property
    def subjects(self) -> NDArray[np.str_]:
        return np.array([f"u:{name}" for name in self.user_names], dtype=np.str_)

    def matrix(self, recipe: Mapping[str, object]) -> InteractionMatrix:
        """The matrix of a recipe: by `build_matrix`, as in the night; of sessions whether a session has an item."""
        key = f"{recipe['weights']} {recipe.get('half_life_days')}"
        if key not in self._matrices:
            while len(self._matrices) >= 3:
                self._matrices.pop(next(iter(self._matrices)))
            self._matrices[key] = replace(self._make_matrix(recipe), content=self.content)
        return self._matrices[key]

    def _make_matrix(self, recipe: Mapping[str, object]) -> InteractionMatrix:
        if self.table is not None:
            return build_matrix(
                self.table,
                item_count=self.item_count,
                weights=recipe["weights"],  # type: ignore[arg-type]
                half_life_days=recipe["half_life_days"],  # type: ignore[arg-type]
                cut_off=from_micros(self.cut_off),
            )
        assert self.sessions is not None
        places = int(np.diff(self.sessions.starts).max()) if len(self.sessions) else 0
        preference = last_places(self.sessions, places, np.ones(places))
        names = np.array([f"{number:09d}" for number in range(len(self.sessions))], dtype=np.str_)
        return InteractionMatrix(names, preference, np.zeros(preference.nnz, np.int64))

    def sequences(self, recipe: Mapping[str, object]) -> tuple[NDArray[np.str_], Sequences]:
        """The sequences of a recipe's event weights, and whose they are."""
        if self.sessions is not None:
            return np.empty(0, np.str_), self.sessions
        key = str(recipe["weights"])
        if key not in self._sequences:
            while len(self._sequences) >= 3:
                self._sequences.pop(next(iter(self._sequences)))
            self._sequences[key] = build_sequences(
                self.table,
                item_count=self.item_count,
                weights=recipe["weights"],  # type: ignore[arg-type]
                cut_off_micros=self.cut_off,
            )
        return self._sequences[key]

    def histories(
        self, matrix: InteractionMatrix, questions: Questions
    ) -> tuple[sparse.csr_matrix, NDArray[np.int64] | None]:
        """(histories, rows of the matrix) for `Model.score_block`."""
        if questions.prefixes is not None:
            decay = np.exp(-np.arange(PREFIX_PLACES) / PREFIX_DECAY)
            return last_places(questions.prefixes, PREFIX_PLACES, decay), None
        rows = matrix_rows(matrix, self._subjects_of(questions))
        return histories_of(matrix, rows), rows

    def asked_sequences(self, owners: NDArray[np.str_], sequences: Sequences, questions: Questions) -> Sequences:
        """The sequences for `SequenceModel.score_sequences`."""
        if questions.prefixes is not None:
            return questions.prefixes
        place = np.searchsorted(owners, self._subjects_of(questions))
        place = np.minimum(place, max(0, len(owners) - 1))
        known = owners[place] == self._subjects_of(questions) if len(owners) else np.zeros(len(questions), bool)
        return sequences.block(np.where(known, place, -1))

    def _subjects_of(self, questions: Questions) -> NDArray[np.str_]:
        return np.array([f"u:{self.user_names[user]}" if user >= 0 else "" for user in questions.users], dtype=np.str_)
