"""Session kNN folded into one list per item: what the sessions with this item say comes next.

In `session_knn` each past session that shares items with the running one votes for its items by their distance from
the latest shared one. Here every shared item votes from its own place, and every past session may, not the best few
hundred alone. The sum over sessions can then be made beforehand: an answer reads a few short lists and adds them up,
which takes microseconds and needs no past session at hand. The ranking is as good (infra/docs/session-model.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import Terms
from spark_jobs.models.ranking import two_best
from spark_jobs.models.sequences import Sequences
from spark_jobs.models.session_knn import LONGEST_SESSION

HOP_ROWS = 16
"""So many of the largest of a row are followed, and so many of each of those."""
PAIRS_PER_BLOCK = 4_000_000
"""Items are done in blocks that meet about so many pairs, which bounds the memory of a fit."""


class SessionTransitions:
    """next(i -> j) = idf(i)^idf_power * sum over the newest `sessions_per_item` sessions n with i, wherever j stands at
    most `reach` places from i, of
        length(n)^-length_power * e^(-recency * age(n)) * e^(-distance / distance_decay) * (ahead | behind | repeat)
    where i stands at its latest place in n; idf, length and age as in `session_knn`. An item that comes several times
    in a row has one place. With `hop`, where those who come next lead to counts too: next + hop * (next, each row's sum
    brought to 1, of next), of the HOP_ROWS largest of each.

    score(j) = sum over the items i of the last len(reads) places of e^(-steps / place_decay) * next(i -> j), where of
    the item s steps from the end only the reads[s] largest are read, ties by number; of an item that comes again the
    latest place.

    params
        reads              how many entries of the item 0, 1, 2 ... steps from the end are read: what an answer costs
        sessions_per_item  so many of the newest sessions with an item speak for it
        reach              places; what stands farther apart is no pair
        hop                above; 0: none
        place_decay, distance_decay, length_power, idf_power, recency, ahead, behind, repeat   as in `session_knn`
    """

    name = "session_transitions"
    source = int(Source.SESSION)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self.lists = ItemLists(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))

    def fit(self, sequences: Sequences) -> None:
        kept = max(self.params["reads"])
        pairs = _Pairs(_collapsed(sequences), self.params)
        lists = _joined([_largest(block, kept) for block in pairs.blocks()])
        if hop := float(self.params["hop"]):
            whole, near = lists.first(kept), lists.first(HOP_ROWS)
            sums = np.asarray(near.sum(axis=1)).ravel()
            onward = sparse.csr_matrix(sparse.diags(hop / np.where(sums > 0, sums, 1.0)) @ near)
            step = max(1, PAIRS_PER_BLOCK // HOP_ROWS**2)
            blocks = [slice(start, start + step) for start in range(0, sequences.item_count, step)]
            lists = _joined([_largest(whole[block] + near[block] @ onward, kept) for block in blocks])
        self.lists = lists

    def score_sequences(self, sequences: Sequences) -> NDArray[np.float32]:
        return self.score_sparsely(sequences).toarray().astype(np.float32)

    def score_sparsely(self, sequences: Sequences) -> sparse.csr_matrix:
        """CSR sequences x items, float64: the scores that are not 0."""
        total = sparse.csr_matrix((len(sequences), len(self.lists)), dtype=np.float64)
        for step, spoken in enumerate(self._spoken(sequences)):
            total = total + spoken @ self.lists.first(int(self.params["reads"][step]))
        return sparse.csr_matrix(total)

    def _spoken(self, sequences: Sequences) -> list[sparse.csr_matrix]:
        """For each number of steps from the end, CSR sequences x items: e^(-steps / place_decay) of the item there."""
        places = len(self.params["reads"])
        sequences = _collapsed(sequences)
        rows, place, steps = sequences.last(places)
        items = sequences.items[place]
        order = np.lexsort((steps, items, rows))
        key = rows[order] * np.int64(max(1, sequences.item_count)) + items[order]
        latest = order[np.r_[True, key[1:] != key[:-1]]] if len(order) else order
        found = []
        for step in range(places):
            mine = latest[steps[latest] == step]
            loudness = np.full(len(mine), np.exp(-step / float(self.params["place_decay"])))
            shape = (len(sequences), sequences.item_count)
            found.append(sparse.csr_matrix((loudness, (rows[mine], items[mine])), shape=shape))
        return found

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """What the item leads to, itself left out."""
        found = zip(*(part.tolist() for part in self.lists.of(item_number)), strict=True)
        return [(number, weight) for number, weight in found if number != item_number][:count]

    def explain_sequence(self, sequence: Sequences, item_numbers: Sequence[int]) -> list[tuple[int | None, int | None]]:
        """The items of the last places with the largest terms of the sum that is the score."""
        speakers, terms = self.sequence_terms(sequence, item_numbers)
        return two_best(terms, speakers)

    def sequence_terms(self, sequence: Sequences, item_numbers: Sequence[int]) -> Terms:
        """The items of the last places, and what each adds to the score of each asked item."""
        speakers: list[int] = []
        terms: list[list[float]] = []
        for step, spoken in enumerate(self._spoken(sequence)):
            for item, loudness in zip(spoken.indices.tolist(), spoken.data.tolist(), strict=True):
                numbers, weights = self.lists.of(item, int(self.params["reads"][step]))
                said = dict(zip(numbers.tolist(), weights.tolist(), strict=True))
                speakers.append(item)
                terms.append([loudness * said.get(number, 0.0) for number in item_numbers])
        values = np.array(terms, np.float64).reshape(len(speakers), len(item_numbers))
        return Terms(np.array(speakers, np.int32), values.T)

    def save(self, folder: Path) -> None:
        save_arrays(folder, model=self.name, params=self.params, arrays=self.lists._asdict())

    @classmethod
    def load(cls, folder: Path) -> SessionTransitions:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        model.lists = ItemLists(**arrays)
        return model


class ItemLists(NamedTuple):
    """For each item the items it leads to, best first, ties by number: those of item i are places offsets[i] to
    offsets[i + 1] of `numbers` (int32) and `weights` (float32)."""

    offsets: NDArray[np.int64]
    numbers: NDArray[np.int32]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, item_number: int, count: int | None = None) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(numbers, weights) of one item, the first `count`."""
        part = slice(self.offsets[item_number], self.offsets[item_number + 1])
        return self.numbers[part][:count], self.weights[part][:count]

    def among(self, allowed: NDArray[np.bool_]) -> ItemLists:
        """Without the entries of items that are not allowed; those keep their own lists."""
        kept = allowed[self.numbers]
        offsets = np.r_[0, np.cumsum(kept)][self.offsets].astype(np.int64)
        return ItemLists(offsets, self.numbers[kept], self.weights[kept])

    def first(self, count: int) -> sparse.csr_matrix:
        """CSR items x items, float64: the first `count` of each."""
        lengths = np.diff(self.offsets)
        place = np.arange(len(self.numbers)) - np.repeat(self.offsets[:-1], lengths)
        kept = place < count
        offsets = np.r_[0, np.cumsum(np.minimum(lengths, count))]
        parts = (self.weights[kept].astype(np.float64), self.numbers[kept], offsets)
        return sparse.csr_matrix(parts, shape=(len(lengths), len(lengths)))


class _Pairs:
    """Every item that speaks with every item near it, by blocks of speaking items."""

    def __init__(self, sequences: Sequences, params: Mapping[str, Any]) -> None:
        self._params = params
        self._items, self._item_count = sequences.items, sequences.item_count
        self._holder = _pieces(sequences)
        sessions = int(self._holder[-1]) + 1 if len(self._holder) else 0
        latest = self._latest()
        lengths = np.bincount(self._holder[latest], minlength=sessions)
        having = np.bincount(self._items[latest], minlength=self._item_count)
        age = (sessions - 1 - np.arange(sessions)) / max(sessions, 1)
        self._worth = lengths ** -float(params["length_power"]) * np.exp(-float(params["recency"]) * age)
        self._idf = np.log(max(sessions, 1) / np.maximum(having, 1)) ** float(params["idf_power"])
        newest = np.cumsum(having) - having  # where each item's places begin in `latest`
        rank = np.arange(len(latest)) - newest[self._items[latest]]
        self._speaking = latest[rank < int(params["sessions_per_item"])]

    def _latest(self) -> NDArray[np.int64]:
        """The latest place of each item in each session that has it; by item, the newest first."""
        count = len(self._items)
        order = count - 1 - np.argsort(self._items[::-1], kind="stable")
        items, holders = self._items[order], self._holder[order]
        first = np.r_[True, (items[1:] != items[:-1]) | (holders[1:] != holders[:-1])][:count]
        return order[first].astype(np.int64)

    def blocks(self) -> list[sparse.csr_matrix]:
        """next(i -> j) before any of it is left out: CSR block of items x all items, blocks in order."""
        reach = int(self._params["reach"])
        speakers = self._items[self._speaking]
        starts = np.searchsorted(speakers, np.arange(self._item_count + 1))
        blocks, first = [], 0
        per_block = max(1, PAIRS_PER_BLOCK // (2 * reach + 1))
        while first < self._item_count:
            last = int(np.searchsorted(starts, starts[first] + per_block, side="right")) - 1
            last = min(max(last, first + 1), self._item_count)
            blocks.append(self._block(first, last, self._speaking[starts[first] : starts[last]], reach))
            first = last
        return blocks

    def _block(self, first: int, last: int, speaking: NDArray[np.int64], reach: int) -> sparse.csr_matrix:
        rows, columns, values = [], [], []
        for side in (1, -1):
            at = speaking
            for distance in range(0 if side > 0 else 1, reach + 1):
                other = at + side * distance
                inside = (other >= 0) & (other < len(self._items))
                at, other = at[inside], other[inside]
                together = self._holder[at] == self._holder[other]
                at, other = at[together], other[together]  # who has nobody here has nobody farther away
                rows.append(self._items[at] - first)
                columns.append(self._items[other])
                values.append(self._worth[self._holder[at]] * self._nearness(side * distance))
        cells = (np.concatenate(rows), np.concatenate(columns))
        found = sparse.coo_matrix((np.concatenate(values), cells), shape=(last - first, self._item_count)).tocsr()
        return sparse.csr_matrix(sparse.diags(self._idf[first:last]) @ found)

    def _nearness(self, distance: int) -> float:
        if distance == 0:
            return float(self._params["repeat"])
        side = float(self._params["ahead" if distance > 0 else "behind"])
        return side * float(np.exp(-abs(distance) / float(self._params["distance_decay"])))


def _collapsed(sequences: Sequences) -> Sequences:
    """Of an item that comes several times in a row the first place alone."""
    first = np.r_[True, sequences.items[1:] != sequences.items[:-1]][: len(sequences.items)]
    first[sequences.starts[:-1][np.diff(sequences.starts) > 0]] = True
    if first.all():
        return sequences
    starts = np.r_[0, np.cumsum(first)][sequences.starts].astype(np.int64)
    kept = np.flatnonzero(first)
    return replace(
        sequences, starts=starts, items=sequences.items[kept], weights=sequences.weights[kept],
        micros=sequences.micros[kept],
    )  # fmt: skip


def _pieces(sequences: Sequences) -> NDArray[np.int64]:
    """The session of each place; one longer than LONGEST_SESSION is several."""
    lengths = np.diff(sequences.starts)
    pieces = -(-lengths // LONGEST_SESSION)
    offset = np.arange(len(sequences.items)) - np.repeat(sequences.starts[:-1], lengths)
    found: NDArray[np.int64] = np.repeat(np.cumsum(pieces) - pieces, lengths) + offset // LONGEST_SESSION
    return found


def _largest(block: sparse.csr_matrix, count: int) -> ItemLists:
    """The `count` largest positive entries of each row, as float32, ties by column."""
    block.sort_indices()
    weights = block.data.astype(np.float32)
    positive = np.flatnonzero(weights > 0)
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[positive]
    # One key instead of three: the bits of positive floats are in the order of the floats. Equal ones stay by column.
    key = (rows.astype(np.uint64) << np.uint64(32)) | (np.uint32(0xFFFFFFFF) - weights[positive].view(np.uint32))
    order = positive[np.argsort(key, kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(rows, rows)
    order, rows = order[place < count], rows[place < count]
    offsets = np.searchsorted(rows, np.arange(block.shape[0] + 1))
    return ItemLists(offsets.astype(np.int64), block.indices[order].astype(np.int32), weights[order])


def _joined(blocks: Sequence[ItemLists]) -> ItemLists:
    """The lists of all items from those of blocks of items, in order."""
    lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(block.offsets) for block in blocks)])
    return ItemLists(
        np.r_[0, np.cumsum(lengths)].astype(np.int64),
        np.concatenate([np.empty(0, np.int32), *(block.numbers for block in blocks)]),
        np.concatenate([np.empty(0, np.float32), *(block.weights for block in blocks)]),
    )
