"""Session kNN: sessions like this one, and what stood near in them.

D. Garg et al.: Sequence and time aware neighborhood for session-based recommendations (STAN, 2019), in the family of
M. Ludewig, D. Jannach: Evaluation of session-based recommendation algorithms (V-SKNN, 2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import Terms
from spark_jobs.models.ranking import top_items, two_best
from spark_jobs.models.sequences import Sequences, last_places

SESSIONS_PER_BLOCK = 128
"""Sessions scored at a time; each brings `neighbours` others with all their items."""
PLACES_READ = 50
"""Of a long session only so many last places look for neighbours."""
LONGEST_SESSION = 50
"""A past session longer than this is cut into several: what stands far apart in it says little of each other."""


class _Votes(NamedTuple):
    """One entry for every item of every neighbour: the row it votes in, the item, its vote, and the row's item by which
    the neighbour was matched."""

    rows: NDArray[np.int64]
    items: NDArray[np.int32]
    votes: NDArray[np.float32]
    matched: NDArray[np.int32]


class SessionKnn:
    """Neighbours of a session are past sessions n with the largest
        sum over shared items of e^(-steps from the end / place_decay) * idf(item)^idf_power
        * length(n)^-length_power * e^(-recency * age(n)),
    age(n) from 0 (the newest) to 1 (the oldest) by order. The best `neighbours` vote, ties by number of the session:
    each for its items by their distance from the place where it holds the latest shared item,
        similarity * e^(-distance / distance_decay) * (ahead if the item stands after that place else behind)
    and `repeat` times the similarity for that item itself. idf(i) = log(sessions / sessions with i). A vote for item i
    is divided by (sessions with i)^popular_power, and multiplied by `last` if the running session ends with i.

    params
        neighbours       sessions that vote
        place_decay      steps after which an item of the running session speaks e times less
        distance_decay   places after which an item of a neighbour does
        length_power, idf_power, recency   above
        ahead, behind    what stands after and before the match counts for
        repeat           what the matched item itself counts for
        popular_power    0: what many sessions hold is voted up by all of them; raising it damps that
        last             what the item counts for that the running session stands at
    The last two may be missing in what was saved before there were any: 0 and 1 then.
    """

    name = "session_knn"
    source = int(Source.SESSION)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self._set(np.zeros(1, np.int64), np.empty(0, np.int32), 0)

    def fit(self, sequences: Sequences) -> None:
        lengths = np.diff(sequences.starts)
        pieces = -(-lengths // LONGEST_SESSION)
        first = np.repeat(np.cumsum(pieces) - pieces, pieces)
        cuts = np.repeat(sequences.starts[:-1], pieces) + (np.arange(len(first)) - first) * LONGEST_SESSION
        starts = np.r_[cuts, len(sequences.items)].astype(np.int64)
        self._set(starts, sequences.items.copy(), sequences.item_count)

    def _set(self, starts: NDArray[np.int64], items: NDArray[np.int32], item_count: int) -> None:
        """All that is learned is the sessions themselves; the rest follows."""
        self.starts, self.items, self.item_count = starts, items, item_count
        count = len(starts) - 1
        holder = np.repeat(np.arange(count), np.diff(starts))
        held = sparse.csr_matrix((np.ones(len(items), np.float32), (holder, items)), shape=(count, item_count))
        held.sum_duplicates()
        held.data[:] = 1.0
        having = np.bincount(held.indices, minlength=item_count)
        idf = np.log(max(count, 1) / np.maximum(having, 1)) ** float(self.params["idf_power"])
        self._damping = (np.maximum(having, 1) ** -float(self.params.get("popular_power", 0.0))).astype(np.float32)
        lengths = np.maximum(np.diff(held.indptr), 1) ** -float(self.params["length_power"])
        age = (count - 1 - np.arange(count)) / max(count, 1)
        worth = lengths * np.exp(-float(self.params["recency"]) * age)
        self._by_item = sparse.csr_matrix(sparse.diags(idf) @ held.T @ sparse.diags(worth), dtype=np.float32)
        self._by_item.sort_indices()

    def refit(self, params: Mapping[str, Any]) -> SessionKnn:
        """The same sessions with other params."""
        model = SessionKnn(params)
        model._set(self.starts, self.items, self.item_count)
        return model

    def score_sequences(self, sequences: Sequences) -> NDArray[np.float32]:
        scores = np.zeros((len(sequences), self.item_count), np.float32)
        for start in range(0, len(sequences), SESSIONS_PER_BLOCK):
            stop = min(start + SESSIONS_PER_BLOCK, len(sequences))
            votes = self._votes(sequences.block(np.arange(start, stop)))
            if votes is not None:
                cell = votes.rows * self.item_count + votes.items
                summed = np.bincount(cell, weights=votes.votes, minlength=(stop - start) * self.item_count)
                scores[start:stop] = summed.reshape(stop - start, self.item_count)
        return scores

    def _votes(self, sequences: Sequences) -> _Votes | None:
        places = np.arange(PLACES_READ)
        query = last_places(sequences, PLACES_READ, np.exp(-places / float(self.params["place_decay"])))
        rows, sessions, similarity = _best_entries((query @ self._by_item).tocsr(), int(self.params["neighbours"]))
        if len(sessions) == 0:
            return None
        lengths = self.starts[sessions + 1] - self.starts[sessions]
        ends = np.cumsum(lengths)
        first = ends - lengths
        pair = np.repeat(np.arange(len(sessions)), lengths)
        offset = np.arange(len(pair)) - first[pair]
        items = self.items[self.starts[sessions][pair] + offset]
        wide = query.toarray()
        spoken = wide[rows[pair], items]
        loudest = np.maximum.reduceat(spoken, first)
        is_match = (spoken == loudest[pair]) & (spoken > 0)
        match = np.maximum.reduceat(np.where(is_match, offset, -1), first)
        matched = items[first + match]
        distance = offset - match[pair]
        side = np.where(distance > 0, float(self.params["ahead"]), float(self.params["behind"]))
        near = side * np.exp(-np.abs(distance) / float(self.params["distance_decay"]))
        votes = similarity[pair] * np.where(distance == 0, float(self.params["repeat"]), near) * self._damping[items]
        ends = sequences.items[sequences.starts[1:] - 1]  # of a session without items any: it has no votes
        votes = np.where(items == ends[rows[pair]], votes * float(self.params.get("last", 1.0)), votes)
        return _Votes(rows[pair], items, votes.astype(np.float32), matched[pair])

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """What a session of this one item alone would be offered."""
        alone = Sequences(
            np.array([0, 1], np.int64), np.array([item_number], np.int32), np.ones(1, np.float32),
            np.zeros(1, np.int64), self.item_count, 0,
        )  # fmt: skip
        scores = self.score_sequences(alone)
        scores[0, item_number] = 0.0
        numbers, values = top_items(scores, count)
        return [(int(n), float(v)) for n, v in zip(numbers[0], values[0], strict=True) if v > 0]

    def explain_sequence(self, sequence: Sequences, item_numbers: Sequence[int]) -> list[tuple[int | None, int | None]]:
        """The items of the session by which the neighbours that voted for the item were matched, by their votes."""
        found = self.sequence_terms(sequence, item_numbers)
        return two_best(found.values, found.items)

    def sequence_terms(self, sequence: Sequences, item_numbers: Sequence[int]) -> Terms:
        """Votes by the item that matched the neighbour; each row sums to its score."""
        votes = self._votes(sequence)
        if votes is None:
            return Terms(np.empty(0, np.int32), np.zeros((len(item_numbers), 0)))
        by, place = np.unique(votes.matched, return_inverse=True)
        values = np.zeros((len(item_numbers), len(by)))
        for at, number in enumerate(item_numbers):
            mine = votes.items == number
            values[at] = np.bincount(place[mine], weights=votes.votes[mine], minlength=len(by))
        return Terms(by.astype(np.int32), values)

    def save(self, folder: Path) -> None:
        count = np.array([self.item_count], np.int64)
        arrays: dict[str, NDArray[Any]] = {"starts": self.starts, "items": self.items, "item_count": count}
        save_arrays(folder, model=self.name, params=self.params, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> SessionKnn:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        model._set(arrays["starts"], arrays["items"], int(arrays["item_count"][0]))
        return model


def _best_entries(
    similar: sparse.csr_matrix, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """(rows, columns, values) of the `count` largest entries of each row; of equal ones the newer columns stay."""
    similar.sort_indices()
    kept = similar.data > 0
    for row in np.flatnonzero(np.diff(similar.indptr) > count):
        part = slice(similar.indptr[row], similar.indptr[row + 1])
        values = similar.data[part]
        threshold = np.partition(values, len(values) - count)[len(values) - count]
        above = values > threshold
        equal = np.flatnonzero(values == threshold)
        above[equal[len(equal) - (count - int(above.sum())) :]] = True
        kept[part] &= above
    rows = np.repeat(np.arange(similar.shape[0]), np.diff(similar.indptr))
    return rows[kept], similar.indices[kept].astype(np.int64), similar.data[kept]
