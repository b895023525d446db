"""Sequential rules: what followed this item, and how soon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.packing import Source
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.base import Terms
from spark_jobs.models.matrix import dense_part
from spark_jobs.models.ranking import top_items, two_best
from spark_jobs.models.sequences import Sequences, last_places

MICROS_PER_HOUR = 3_600_000_000.0


class SequentialRules:
    """rule(i -> j) = sum, wherever i stands at most `steps` before j, of apart^-step_power * weight(j).

    With `half_gap_hours` a pair counts half for each so many hours between the two. A pair the other way round counts
    `backward` times as much. The sum is divided by (all that i leads to) ^ source_power and by (all that leads to j) ^
    target_power. score(j) = sum over the last `last_items` of the sequence of (1 + steps from the end)^-place_power *
    rule(i -> j), of an item that comes again the latest place.

    M. Ludewig, D. Jannach: Evaluation of session-based recommendation algorithms (2018), SR; the powers are ours.

    params
        steps            how far apart two items may be
        step_power       how fast a rule fades with the distance
        half_gap_hours   above; null: only places count, not times
        backward         0: order is all; 1: order is nothing
        source_power     0: items with many followers speak louder; 1: all speak alike
        target_power     how much an item that follows everything is damped
        last_items       places of the history that speak
        place_power      how fast they fade
    """

    name = "sequential_rules"
    source = int(Source.SESSION)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self.rules = sparse.csr_matrix((0, 0), dtype=np.float32)

    def fit(self, sequences: Sequences) -> None:
        steps, power = int(self.params["steps"]), float(self.params["step_power"])
        backward, half_gap = float(self.params["backward"]), self.params["half_gap_hours"]
        items, count = sequences.items, sequences.item_count
        owner = np.repeat(np.arange(len(sequences)), np.diff(sequences.starts))
        rules = sparse.csr_matrix((count, count), dtype=np.float64)
        for apart in range(1, steps + 1):
            same = np.flatnonzero(owner[apart:] == owner[:-apart]) if len(owner) > apart else np.empty(0, np.int64)
            if len(same) == 0:
                break
            before, after = items[same], items[same + apart]
            worth: NDArray[np.float64] = np.full(len(same), float(apart) ** -power)
            if half_gap is not None:
                hours = (sequences.micros[same + apart] - sequences.micros[same]) / MICROS_PER_HOUR
                worth = worth * np.exp2(-hours / float(half_gap))
            rules = rules + _pairs(before, after, worth * sequences.weights[same + apart].astype(np.float64), count)
            if backward:
                turned = worth * backward * sequences.weights[same].astype(np.float64)
                rules = rules + _pairs(after, before, turned, count)
        rules = sparse.csr_matrix(rules)
        rules.setdiag(0)
        rules.eliminate_zeros()
        leads = np.asarray(rules.sum(axis=1)).ravel()
        follows = np.asarray(rules.sum(axis=0)).ravel()
        by_source = np.where(leads > 0, leads, 1.0) ** -float(self.params["source_power"])
        by_target = np.where(follows > 0, follows, 1.0) ** -float(self.params["target_power"])
        scaled = sparse.csr_matrix(sparse.diags(by_source) @ rules @ sparse.diags(by_target), dtype=np.float32)
        scaled.sort_indices()
        self.rules = scaled

    def _spoken(self, sequences: Sequences) -> sparse.csr_matrix:
        places = int(self.params["last_items"])
        return last_places(sequences, places, (1.0 + np.arange(places)) ** -float(self.params["place_power"]))

    def score_sequences(self, sequences: Sequences) -> NDArray[np.float32]:
        return (self._spoken(sequences) @ self.rules).toarray().astype(np.float32, copy=False)

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """What the item leads to."""
        numbers, values = top_items(self.rules[item_number].toarray(), count)
        return [(int(n), float(v)) for n, v in zip(numbers[0], values[0], strict=True) if v > 0]

    def explain_sequence(self, sequence: Sequences, item_numbers: Sequence[int]) -> list[tuple[int | None, int | None]]:
        """The items of the last places with the largest terms of the sum that is the score."""
        found = self.sequence_terms(sequence, item_numbers)
        return two_best(found.values, found.items)

    def sequence_terms(self, sequence: Sequences, item_numbers: Sequence[int]) -> Terms:
        """Place times rule; each row sums to its score."""
        spoken = self._spoken(sequence)
        links = dense_part(self.rules, spoken.indices, np.asarray(item_numbers, dtype=np.int64))
        return Terms(spoken.indices, links.T * spoken.data.astype(np.float64))

    def save(self, folder: Path) -> None:
        arrays = {"rules_data": self.rules.data, "rules_indices": self.rules.indices, "rules_indptr": self.rules.indptr}
        save_arrays(folder, model=self.name, params=self.params, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> SequentialRules:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        items = len(arrays["rules_indptr"]) - 1
        parts = (arrays["rules_data"], arrays["rules_indices"], arrays["rules_indptr"])
        model.rules = sparse.csr_matrix(parts, shape=(items, items))
        return model


def _pairs(
    before: NDArray[np.int32], after: NDArray[np.int32], value: NDArray[np.float64], count: int
) -> sparse.csr_matrix:
    return sparse.coo_matrix((value, (before, after)), shape=(count, count)).tocsr()
