"""Why items are in the lists of a whole block of people: the reasons of a model or a blend, found for all at once.

`Model.explain` and `Blend.block_terms` say the same of one person, and tests hold them to each other. One at a time,
most of the work is the start of small array operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spark_jobs.models.base import Terms
from spark_jobs.models.blend_model import Blend, BlendBlock, Part
from spark_jobs.models.matrix import pick_rows

CELLS_AT_ONCE = 4_000_000
"""Pairs of a listed and a past item, over all people, whose terms are held at a time."""


@runtime_checkable
class PairTerms(Protocol):
    """A model whose term for a past and an asked item depends on these two and on how much the past one was
    preferred."""

    def pair_terms(
        self,
        past: NDArray[np.int32],
        preference: NDArray[np.float32],
        places: NDArray[np.int64],
        asked: NDArray[np.int32],
    ) -> NDArray[np.float64]:
        """`Model.terms` pair by pair: what past[places[n]], preferred preference[places[n]], adds to the score of
        asked[n]."""


class _Grid(NamedTuple):
    """Every past item of a person against every listed item of the same person, person by person, listed item by listed
    item; the past ones ascend.

    people, items   of each past item: whose it is (from 0), and its number
    first_past      of each person: the place of the first of them; one more at the end
    starts, rows    of each listed item that has past ones: where its pairs begin, and whose it is
    places, asked   of each pair: the place of the past item, and the number of the listed one
    """

    people: NDArray[np.int64]
    items: NDArray[np.int32]
    first_past: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    places: NDArray[np.int64]
    asked: NDArray[np.int32]


def block_reasons(
    blend: Blend, block: BlendBlock, rows: NDArray[np.int64], numbers: NDArray[np.int32], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The past items with the largest and the second largest term, shape of `numbers`, -1 where there is none.

    block     what the parts said of these people
    rows      their rows in the blend; everybody was there at fit time
    numbers   what they are offered, a row each; of row r the first counts[r] are asked
    """
    first, second = (np.full(numbers.shape, -1, np.int64) for _ in range(2))
    lengths = np.zeros(len(rows), np.int64)
    for part in blend.parts.values():
        own = part.rows[rows]
        known = np.maximum(own, 0)
        lengths += np.where(own >= 0, part.histories.indptr[known + 1] - part.histories.indptr[known], 0)
    for group in _groups(counts, lengths):
        first[group], second[group] = _reasons_of(blend, block, group, rows[group], numbers[group], counts[group])
    return first, second


def model_reasons(
    model: PairTerms, histories: sparse.csr_matrix, numbers: NDArray[np.int32], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same of a single model, whose terms are a matter of pairs. `histories`: a row each, sorted by item."""
    items = histories.shape[1]
    first, second = (np.full(numbers.shape, -1, np.int64) for _ in range(2))
    for group in _groups(counts, np.diff(histories.indptr)):
        past = histories[group]
        keys = np.repeat(np.arange(past.shape[0]), np.diff(past.indptr)) * items + past.indices
        grid = _grid_of(keys, items, numbers[group], counts[group])
        if len(grid.places):
            total = model.pair_terms(grid.items, past.data, grid.places, grid.asked)
            for found in (first[group], second[group]):
                _take_best(total, grid, found)
    return first, second


def _groups(counts: NDArray[np.int64], lengths: NDArray[np.integer]) -> Iterator[slice]:
    """Runs of people, in order, whose pairs of a listed and a past item are at most CELLS_AT_ONCE, or one person."""
    cells = np.cumsum(counts * np.maximum(lengths, 1))
    start = 0
    while start < len(counts):
        before = int(cells[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(cells, before + CELLS_AT_ONCE, side="right")))
        yield slice(start, stop)
        start = stop


def _reasons_of(
    blend: Blend,
    block: BlendBlock,
    group: slice,
    rows: NDArray[np.int64],
    numbers: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    items = blend.item_count
    pasts: dict[tuple[int, int], sparse.csr_matrix] = {}
    speaking: list[tuple[str, Part, sparse.csr_matrix, dict[int, Terms]]] = []
    keys = []
    for name in block.said:
        part = blend.parts[name]
        view = (id(part.histories), id(part.rows))  # parts of one view of the events share it
        if view not in pasts:
            pasts[view] = pick_rows(part.histories, part.rows[rows])
        past = pasts[view]
        told = {} if isinstance(part.model, PairTerms) else _told(part, past, rows, numbers, counts)
        keys.append(np.repeat(np.arange(len(rows)), np.diff(past.indptr)) * items + past.indices)
        keys += [person * items + terms.items.astype(np.int64) for person, terms in told.items()]
        speaking.append((name, part, past, told))
    first, second = (np.full(numbers.shape, -1, np.int64) for _ in range(2))
    grid = _grid_of(np.unique(np.concatenate(keys)) if keys else np.empty(0, np.int64), items, numbers, counts)
    if not len(grid.places):
        return first, second
    total = np.zeros(len(grid.places))
    known = grid.people * items + grid.items
    head = block.head[group][grid.rows, numbers[grid.rows, grid.columns]] if block.head is not None else None
    for name, part, past, told in speaking:
        weights: NDArray[np.floating] = block.weights[name][group][grid.rows]
        if head is not None:
            weights = np.where(head, block.second[name][group][grid.rows], weights)
        weight = weights * block.scales[name][group][grid.rows]
        if not weight.any():
            continue
        if isinstance(part.model, PairTerms):
            preference = np.zeros(len(known), np.float32)
            own = np.repeat(np.arange(len(rows)), np.diff(past.indptr)) * items + past.indices
            preference[np.searchsorted(known, own)] = past.data
            values = part.model.pair_terms(grid.items, preference, grid.places, grid.asked)
            values *= np.repeat(weight, grid.lengths)
            total += values
        else:
            _add_told(total, grid, told, weight)
    for found in (first, second):
        _take_best(total, grid, found)
    return first, second


def _told(
    part: Part,
    past: sparse.csr_matrix,
    rows: NDArray[np.int64],
    numbers: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> dict[int, Terms]:
    """Person by person what a part says whose terms are no matter of pairs."""
    own = part.rows[rows]
    found = {}
    for person in np.flatnonzero(counts).tolist():
        terms = _terms_of(part, past, person, int(own[person]), numbers[person, : counts[person]])
        if len(terms.items):
            found[person] = terms
    return found


def _terms_of(
    part: Part, past: sparse.csr_matrix, person: int, row: int, asked: NDArray[np.int32] | Sequence[int]
) -> Terms:
    of_block = getattr(part.model, "terms_in_block", None)
    if of_block is not None:
        found: Terms = of_block(past, person, asked)
        return found
    return part.model.terms(past[person], row, asked.tolist() if isinstance(asked, np.ndarray) else asked)


def _grid_of(keys: NDArray[np.int64], items: int, numbers: NDArray[np.int32], counts: NDArray[np.int64]) -> _Grid:
    """`keys`: person x items + past item, ascending."""
    people, past = np.divmod(keys, items) if len(keys) else (keys, keys)
    first_past = np.searchsorted(people, np.arange(len(numbers) + 1))
    lengths_of = np.diff(first_past)
    asked_of = np.where(lengths_of > 0, counts, 0)
    rows = np.repeat(np.arange(len(numbers)), asked_of)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(asked_of) - asked_of, asked_of)
    lengths = lengths_of[rows]
    starts = np.cumsum(lengths) - lengths
    places = np.arange(int(lengths.sum())) + np.repeat(first_past[rows] - starts, lengths)
    asked = np.repeat(numbers[rows, columns], lengths)
    return _Grid(people, past.astype(np.int32), first_past, starts, lengths, rows, columns, places, asked)


def _add_told(total: NDArray[np.float64], grid: _Grid, told: dict[int, Terms], weight: NDArray[np.float64]) -> None:
    begins = np.searchsorted(grid.rows, np.arange(len(grid.first_past)))
    for person, terms in told.items():
        asked = slice(int(begins[person]), int(begins[person + 1]))
        by = weight[asked]
        if asked.start == asked.stop or not by.any():
            continue
        past = grid.items[grid.first_past[person] : grid.first_past[person + 1]]
        start = int(grid.starts[asked.start])
        own = total[start : start + len(by) * len(past)].reshape(len(by), len(past))
        values = terms.values * by[:, None]
        if len(terms.items) == len(past) and (terms.items == past).all():
            own += values
        else:
            np.add.at(own.T, np.searchsorted(past, terms.items), values.T)  # a part may name an item twice


def _take_best(total: NDArray[np.float64], grid: _Grid, found: NDArray[np.int64]) -> None:
    """The past item with the largest positive total of each listed item, ties by number, into `found`; of `total` it is
    taken away. NaN speaks for nothing."""
    total[~(total > 0)] = 0.0
    best = np.maximum.reduceat(total, grid.starts)
    hits = np.flatnonzero(total == np.repeat(best, grid.lengths))
    chosen = hits[np.searchsorted(hits, grid.starts)]
    found[grid.rows, grid.columns] = np.where(best > 0, grid.items[grid.places[chosen]], -1)
    total[chosen] = 0.0
