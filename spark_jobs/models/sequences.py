"""Ordered histories: what sequence models learn from and are asked with. The order is what the matrix lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import DataError
from spark_jobs.models.base import Terms
from spark_jobs.models.matrix import sort_interactions


@dataclass(frozen=True, slots=True)
class Sequences:
    """Who had what, oldest first. Where it counts, sequences are ordered too: a later one is the more recent.

    starts      int64, length n + 1: sequence s is places starts[s] to starts[s + 1]
    items       int32 item numbers
    weights     float32, aligned with items: the weight of the event's type
    micros      int64, aligned with items, never falling within a sequence: us since 1970 UTC, or just the order
    item_count  of the catalogue
    cut_off     us since 1970 UTC: the moment that ages are counted from
    """

    starts: NDArray[np.int64]
    items: NDArray[np.int32]
    weights: NDArray[np.float32]
    micros: NDArray[np.int64]
    item_count: int
    cut_off: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def block(self, rows: NDArray[np.int64]) -> Sequences:
        """The sequences of these rows, in their order; an empty one for -1."""
        known = rows >= 0
        safe = np.where(known, rows, 0)
        lengths = np.where(known, self.starts[safe + 1] - self.starts[safe], 0) if len(self) else np.zeros(len(rows))
        starts = np.r_[0, np.cumsum(lengths)].astype(np.int64)
        place = np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts)) if len(rows) else np.empty(0, np.int64)
        if len(place):
            place = place + np.repeat(self.starts[safe], np.diff(starts))
        return Sequences(
            starts, self.items[place], self.weights[place], self.micros[place], self.item_count, self.cut_off
        )

    def last(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(row, place in `items`, steps from the end counted from 0) of the last `count` places of each sequence."""
        lengths = np.minimum(np.diff(self.starts), count)
        rows = np.repeat(np.arange(len(self)), lengths)
        offset = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        steps = np.repeat(lengths, lengths) - 1 - offset
        return rows, self.starts[rows + 1] - 1 - steps, steps


@runtime_checkable
class SequenceModel(Protocol):
    """One recommender that reads the order of a history. Like `base.Model` in everything else."""

    name: str
    source: int
    params: Mapping[str, Any]

    def fit(self, sequences: Sequences) -> None:
        """Learn. Called once."""

    def score_sequences(self, sequences: Sequences) -> NDArray[np.float32]:
        """Scores, shape (sequences, item_count), higher is better. Items of the sequence are *not* removed here."""

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """What comes after or with one item, best first, ties by number, itself left out."""

    def explain_sequence(self, sequence: Sequences, item_numbers: Sequence[int]) -> list[tuple[int | None, int | None]]:
        """For each item the one or two items of the one sequence that spoke most for it, best first."""

    def sequence_terms(self, sequence: Sequences, item_numbers: Sequence[int]) -> Terms:
        """The numbers behind `explain_sequence`."""

    def save(self, folder: Path) -> None:
        """Arrays and manifest, as `base.Model.save`."""

    @classmethod
    def load(cls, folder: Path) -> SequenceModel:
        """Inverse of `save`."""


def make_sequences(
    lists: Sequence[Sequence[int]] | Sequence[NDArray[np.integer]], *, item_count: int, cut_off: int | None = None
) -> Sequences:
    """Sequences of bare item numbers: every weight 1, the place of an item within its sequence is its time."""
    lengths = np.array([len(found) for found in lists], dtype=np.int64)
    starts = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    items = np.concatenate([np.asarray(found, np.int32) for found in lists]) if len(lists) else np.empty(0, np.int32)
    if len(items) and (items.min() < 0 or items.max() >= item_count):
        raise DataError(
            f"sequences have item numbers {items.min()}..{items.max()}, expected 0..{item_count - 1}",
            field="item_number",
        )
    micros = np.arange(len(items)) - np.repeat(starts[:-1], lengths)
    longest = int(lengths.max()) if len(lengths) else 0
    return Sequences(
        starts,
        items.astype(np.int32),
        np.ones(len(items), np.float32),
        micros.astype(np.int64),
        item_count,
        longest if cut_off is None else cut_off,
    )


def build_sequences(
    table: pa.Table, *, item_count: int, weights: Mapping[str, float], cut_off_micros: int, collapse: bool = True
) -> tuple[NDArray[np.str_], Sequences]:
    """(subjects, sorted; their sequences) from interactions (`matrix.COLUMNS`) before the cut-off.

    Events of one moment are in the order of their item numbers. An event type without a positive weight is left out.
    `collapse`: of consecutive events about one item the first stays, with the largest of their weights (a view, the
    cart and the purchase of an item are one step, not three). A subject left without events has no row.
    """
    table = sort_interactions(table)
    micros = np.asarray(table["micros"].combine_chunks())
    subjects = table["subject_key"].combine_chunks()
    types = table["event_type"].combine_chunks()
    type_weights = np.array([float(weights.get(t, 0.0)) for t in types.dictionary.to_pylist()] or [0.0])
    values = type_weights[np.asarray(types.indices)]
    codes, items = np.asarray(subjects.indices), np.asarray(table["item_number"].combine_chunks())
    keep = (values > 0) & (micros < cut_off_micros)
    codes, items, micros, values = codes[keep], items[keep], micros[keep], values[keep]
    if len(items) and (items.min() < 0 or items.max() >= item_count):
        raise DataError(
            f"interactions have item numbers {items.min()}..{items.max()}, expected 0..{item_count - 1}",
            field="item_number",
        )
    order = np.lexsort((items, micros, codes))
    codes, items, micros, values = codes[order], items[order], micros[order], values[order]
    if collapse and len(codes):
        first = np.flatnonzero(np.r_[True, (codes[1:] != codes[:-1]) | (items[1:] != items[:-1])])
        values = np.maximum.reduceat(values, first)
        codes, items, micros = codes[first], items[first], micros[first]
    known, rows = np.unique(codes, return_inverse=True)
    starts = np.searchsorted(rows, np.arange(len(known) + 1)).astype(np.int64)
    names = np.array(subjects.dictionary.take(pa.array(known)).to_pylist(), dtype=np.str_)
    return names, Sequences(
        starts, items.astype(np.int32), values.astype(np.float32), micros.astype(np.int64), item_count, cut_off_micros
    )


def last_places(sequences: Sequences, count: int, decay: NDArray[np.floating]) -> sparse.csr_matrix:
    """CSR sequences x items: for each item of the last `count` places `decay[steps]` of its latest one.

    `decay` has one value for each number of steps from the end, 0 first.
    """
    rows, place, steps = sequences.last(count)
    items = sequences.items[place]
    key = rows * np.int64(max(1, sequences.item_count)) + items
    order = np.lexsort((steps, key))
    latest = order[np.r_[True, key[order][1:] != key[order][:-1]]] if len(order) else order
    found = sparse.csr_matrix(
        (decay[steps[latest]].astype(np.float32), (rows[latest], items[latest])),
        shape=(len(sequences), sequences.item_count),
    )
    found.sort_indices()
    return found
