"""The hybrid: several recipes, each fitted on its own view of the interactions, as one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import ContractError, DataError, nearest
from feature_repo.contracts.packing import Source
from spark_jobs.models.activity import ACTIVITY_SLICES, activity_slices
from spark_jobs.models.artifacts import load_arrays, part_folder, read_manifest, save_arrays
from spark_jobs.models.base import InteractionMatrix, Model, Terms
from spark_jobs.models.blend import standardize_rows
from spark_jobs.models.matrix import matrix_rows, pick_rows
from spark_jobs.models.ranking import mask_items, top_items, two_best

BLEND = "blend"
WEIGHTED, SWITCHING, CASCADE = MODES = ("weighted", "switching", "cascade")
FLOOR_PART, LAST_RESORT = "popularity", 1e-3
"""The weight that popularity has at least, in every blend it is a part of: it orders what no other part speaks of."""


class Part(NamedTuple):
    """One fitted recipe of a blend.

    histories   what its people preferred, by its own weights: a row for each row of its model
    rows        by row of the blend: the row of the part, -1 where the part knows nothing of the person
    """

    model: Model
    histories: sparse.csr_matrix
    rows: NDArray[np.int64]


class Reason(NamedTuple):
    """Why an item is in a list: the source of the part that speaks most for it, and the past items that do."""

    source: int
    first: int | None
    second: int | None


@dataclass(slots=True)
class BlendBlock:
    """The scores of some people, and what each part said.

    scores   (people, items); -inf where nobody ever had the item
    said     by part: standardised scores, (people, items); of people for whom it has no weight, zeros
    scales   by part: by what its scores were multiplied, one a person
    weights  by part, one a person: those of the first stage, and in a cascade of the second
    head     in a cascade: which items the second stage orders
    """

    scores: NDArray[np.float32]
    said: Mapping[str, NDArray[np.float32]]
    scales: Mapping[str, NDArray[np.float64]]
    weights: Mapping[str, NDArray[np.float32]]
    second: Mapping[str, NDArray[np.float32]]
    head: NDArray[np.bool_] | None

    def values(self, rows: NDArray[np.int64], items: NDArray[np.integer]) -> dict[str, NDArray[np.float32]]:
        """By part: what it adds to the score of these (row, item) pairs, arrays of one shape."""
        found = {}
        in_head = self.head[rows, items] if self.head is not None else None
        for name, said in self.said.items():
            weight = self.weights[name][rows]
            if in_head is not None:
                weight = np.where(in_head, self.second[name][rows], weight)
            found[name] = np.where(weight != 0, said[rows, items] * weight, np.float32(0))
        return found


class Blend:
    """score = sum over parts of weight * standardize(the part's scores), by the weights of the person's slice.

    standardize brings each person's scores to mean 0 and deviation 1. Slices are those of `activity_slices`, by the
    number of a person's events; someone who was not there at fit time counts the items of the history.

    params
        mode      weighted; switching: a part per slice (and popularity as the last resort); cascade: the `depth` best
                  items of the first stage that are new to the person are ordered by `second`, all others come below
        parts     name -> recipe
        weights   slice -> part -> weight; in a cascade of the first stage
        second    part -> weight of the second stage; null but for a cascade
        depth     how many items the second stage gets; null but for a cascade

    Reasons are the terms of that sum: each part's own, in its weight and scale.
    """

    name = BLEND

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = {"second": None, "depth": None, **params}
        _check(self.params)
        self.source = int(Source.POPULARITY)
        self.parts: dict[str, Part] = {}
        self.known_items: NDArray[np.bool_] = np.empty(0, bool)
        self._histories: sparse.csr_matrix | None = None
        self._slices: NDArray[np.str_] = np.empty(0, np.str_)

    # --- learning ------------------------------------------------------------------------------------------------

    def fit(self, matrix: InteractionMatrix) -> None:
        """Every part learns from this one matrix. Recipes with weights of their own are fitted by `factory.fit`."""
        from spark_jobs.models.factory import build_model  # it knows this model too

        fitted = {}
        for name in self.part_names():
            recipe = self.params["parts"][name]
            model = build_model(recipe["model"], recipe["params"])
            model.fit(matrix)
            fitted[name] = (model, matrix)
        self.assemble(matrix, np.diff(matrix.preference.indptr).astype(np.int64), fitted)

    def part_names(self) -> list[str]:
        """The parts that count at all, in the order of their names: the order of a sum decides its last bit."""
        counting = {name for by_part in self._stages() for name, weight in by_part.items() if weight}
        return sorted(counting)

    def model_names(self) -> dict[str, str]:
        """Part -> the model that it is a recipe of."""
        return {name: str(self.params["parts"][name]["model"]) for name in self.part_names()}

    def assemble(
        self,
        matrix: InteractionMatrix,
        event_counts: NDArray[np.int64],
        fitted: Mapping[str, tuple[Model, InteractionMatrix]],
    ) -> None:
        """Take fitted parts, each with the matrix that it learned from. `matrix` has everybody whom any part knows;
        its rows are the rows of the blend."""
        self._histories, self._slices = matrix.preference, activity_slices(event_counts)
        self.known_items = np.bincount(matrix.preference.indices, minlength=matrix.item_count) > 0
        for name in self.part_names():
            model, own = fitted[name]
            self.parts[name] = Part(model, own.preference, matrix_rows(own, matrix.subjects))
        self._set_source()

    def _set_source(self) -> None:
        """That of the part with most weight; each item of a list has its own (`sources`)."""
        total = {
            name: sum(by_part.get(name, 0.0) for by_part in self.params["weights"].values()) for name in self.parts
        }
        self.source = self.parts[max(sorted(total), key=lambda name: total[name])].model.source

    # --- scoring -------------------------------------------------------------------------------------------------

    def score_block(self, histories: sparse.csr_matrix, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        return self.score_parts(histories, rows).scores

    def score_parts(self, histories: sparse.csr_matrix, rows: NDArray[np.int64] | None = None) -> BlendBlock:
        """`score_block`, with what each part said."""
        count = histories.shape[0]
        rows = np.full(count, -1, np.int64) if rows is None else np.asarray(rows, np.int64)
        if self._histories is None and (rows >= 0).any():
            raise ContractError("a loaded blend knows nobody: `remember` the interactions, or ask without rows")
        slices = activity_slices(np.diff(histories.indptr).astype(np.int64))
        slices = np.where(rows >= 0, self._slices[np.maximum(rows, 0)], slices) if len(self._slices) else slices
        names = self.part_names()
        by_slice, second = self.params["weights"], self.params["second"]
        weights = {
            name: np.array([by_slice[part].get(name, 0.0) for part in slices.tolist()], np.float32) for name in names
        }
        later = {name: np.full(count, (second or {}).get(name, 0.0), np.float32) for name in names}
        said, scales = {}, {}
        for name in names:
            asked = np.flatnonzero((weights[name] != 0) | (later[name] != 0))
            if not len(asked):
                continue
            scaled, scale = standardize_rows(self._part_scores(name, histories, rows, asked))
            if len(asked) == count:
                said[name], scales[name] = scaled, scale
            else:
                said[name] = np.zeros((count, scaled.shape[1]), np.float32)
                said[name][asked] = scaled
                scales[name] = np.zeros(count)
                scales[name][asked] = scale
        scores, head = weigh(said, weights, count, self.item_count), None
        if self.params["mode"] == CASCADE:
            own = pick_rows(self._histories, rows) if self._histories is not None and (rows >= 0).all() else histories
            head = cascade_head(scores, own, self.known_items, int(self.params["depth"]))
            scores = cascade(scores, weigh(said, later, count, self.item_count), head)
        scores[:, ~self.known_items] = -np.inf
        return BlendBlock(scores, said, scales, weights, later, head)

    @property
    def item_count(self) -> int:
        return len(self.known_items)

    def _part_scores(
        self, name: str, histories: sparse.csr_matrix, rows: NDArray[np.int64], asked: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The part's scores of the asked rows, as a fresh array."""
        part = self.parts[name]
        known = rows[asked] >= 0
        own = np.where(known, part.rows[np.maximum(rows[asked], 0)], -1) if len(part.rows) else np.full(len(asked), -1)
        if known.all():
            return part.model.score_block(pick_rows(part.histories, own), own)
        if not known.any():
            return part.model.score_block(histories[asked])
        found = np.empty((len(asked), histories.shape[1]), np.float32)
        found[known] = part.model.score_block(pick_rows(part.histories, own[known]), own[known])
        found[~known] = part.model.score_block(histories[asked[~known]])
        return found

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """The parts' nearest items, each part's likeness over its largest, by the weights for the most active."""
        totals: dict[int, float] = {}
        for name, weight in sorted(self.params["weights"][ACTIVITY_SLICES[-1]].items()):
            near = self.parts[name].model.similar(item_number, 2 * count) if weight > 0 else []
            for number, likeness in near:
                totals[number] = totals.get(number, 0.0) + weight * likeness / near[0][1]
        return sorted(totals.items(), key=lambda entry: (-entry[1], entry[0]))[:count]

    # --- explaining ----------------------------------------------------------------------------------------------

    def listed_values(self, block: BlendBlock, numbers: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
        """By part: what it adds to each listed item (people x places)."""
        rows = np.repeat(np.arange(len(numbers)), numbers.shape[1]).reshape(numbers.shape)
        return block.values(rows, numbers)

    def sources(self, block: BlendBlock, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """The source of each listed item (people x places): of the part that adds most to it, ties by name."""
        return self.sources_of(self.listed_values(block, numbers), numbers.shape)

    def sources_of(self, values: Mapping[str, NDArray[np.float32]], shape: tuple[int, ...]) -> NDArray[np.int32]:
        """`sources` of `listed_values` of this shape."""
        if not values:
            return np.full(shape, self.source, np.int32)
        stacked = np.stack([np.nan_to_num(values[name], nan=-np.inf) for name in values])
        own = np.array([self.parts[name].model.source for name in values], np.int32)
        return own[stacked.argmax(axis=0)]

    def block_terms(
        self, block: BlendBlock, at: int, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]
    ) -> Terms:
        """Of the person at place `at` of the block: what each past item adds to the scores of the asked items."""
        asked = np.asarray(item_numbers, dtype=np.int64)
        in_head = block.head[at, asked] if block.head is not None else np.zeros(len(asked), bool)
        found = []
        pasts: dict[tuple[int, int], sparse.csr_matrix] = {}  # parts of one view of the events share it
        for name in block.said:
            weight = np.where(in_head, block.second[name][at], block.weights[name][at]) * block.scales[name][at]
            if not weight.any():
                continue
            part = self.parts[name]
            own = int(part.rows[row]) if row >= 0 else -1
            view = (id(part.histories), own)
            if row >= 0 and view not in pasts:
                pasts[view] = pick_rows(part.histories, np.array([own]))
            past = history if row < 0 else pasts[view]
            terms = part.model.terms(past, own, item_numbers)
            if len(terms.items):
                found.append(Terms(terms.items, terms.values * weight[:, None]))
        if not found:
            return Terms(np.empty(0, np.int32), np.zeros((len(asked), 0)))
        items = np.unique(np.concatenate([terms.items for terms in found]))
        total = np.zeros((len(asked), len(items)))
        for terms in found:
            np.add.at(total.T, np.searchsorted(items, terms.items), terms.values.T)  # a part may name an item twice
        return Terms(items.astype(np.int32), total)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:
        block = self.score_parts(history, np.array([row]))
        return self.block_terms(block, 0, history, row, item_numbers)

    def explain(
        self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]
    ) -> list[tuple[int | None, int | None]]:
        """The past items with the largest terms, all parts taken together."""
        found = self.terms(history, row, item_numbers)
        return two_best(found.values, found.items)

    def shares(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> list[dict[str, float]]:
        """For each item: part -> its share of all that speaks for the item, largest first; parts that speak against it
        are left out. Empty where nothing speaks for it."""
        asked = np.asarray(item_numbers, dtype=np.int64)
        values = self.score_parts(history, np.array([row])).values(np.zeros(len(asked), np.int64), asked)
        found = []
        for at in range(len(asked)):
            speaking = {name: float(part[at]) for name, part in values.items() if part[at] > 0}
            total = sum(speaking.values())
            order = sorted(speaking, key=lambda name: (-speaking[name], name))
            found.append({name: speaking[name] / total for name in order})
        return found

    # --- files ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Each part in a folder of its own. Histories are not saved: `remember` them after loading."""
        save_arrays(
            folder, model=self.name, params=self.params, arrays={"known_items": self.known_items},
            parts={name: part.model.save for name, part in self.parts.items()},
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path) -> Blend:
        from spark_jobs.models.factory import load_model  # it knows this model too

        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        model.known_items = arrays["known_items"]
        nobody = np.empty(0, np.int64)
        if sorted(read_manifest(folder).get("parts", {})) != model.part_names():
            raise ContractError(f"{folder}: its parts are not those of its weights, {', '.join(model.part_names())}")
        for name in model.part_names():
            part = load_model(part_folder(folder, name))
            model.parts[name] = Part(part, sparse.csr_matrix((0, model.item_count), dtype=np.float32), nobody)
        model._set_source()
        return model

    def _stages(self) -> list[Mapping[str, float]]:
        return [*self.params["weights"].values(), self.params["second"] or {}]


def weigh(
    said: Mapping[str, NDArray[np.float32]], weights: Mapping[str, NDArray[np.float32]], count: int, item_count: int
) -> NDArray[np.float32]:
    """The weighted sum, part by part in the order of their names; a part without weight for a person adds nothing."""
    total = np.zeros((count, item_count), np.float32)
    for name in sorted(said):
        counting = np.flatnonzero(weights[name] != 0)
        if len(counting) == count:
            total += said[name] * weights[name][:, None]
        elif len(counting):
            total[counting] += said[name][counting] * weights[name][counting, None]
    return total


def cascade_head(
    scores: NDArray[np.float32], histories: sparse.csr_matrix, known_items: NDArray[np.bool_], depth: int
) -> NDArray[np.bool_]:
    """Which items of each row are at least as good as its `depth`-th best item outside the history; ties are in."""
    fresh = scores.copy()
    fresh[:, ~known_items] = -np.inf
    mask_items(fresh, histories)
    fresh[np.isnan(fresh)] = -np.inf
    values = top_items(fresh, depth)[1]
    finite = np.where(np.isfinite(values), values, np.inf).min(axis=1, initial=np.inf)
    return scores >= finite[:, None]


def cascade(first: NDArray[np.float32], second: NDArray[np.float32], head: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`second` within the head, `first` below it: moved so that every head item scores above all others by 1."""
    lowest = np.where(head, second, np.inf).min(axis=1, initial=np.inf)
    highest = np.where(head | ~np.isfinite(first), -np.inf, first).max(axis=1, initial=-np.inf)
    gap = highest - lowest + np.float32(1.0)
    move = np.where(np.isfinite(gap), gap, 0.0).astype(np.float32)
    return np.where(head, second + move[:, None], first)


def _check(params: Mapping[str, Any]) -> None:
    """Raises DataError on params that make no blend."""
    mode, parts, weights = params["mode"], params["parts"], params["weights"]
    if mode not in MODES:
        hint = nearest(str(mode), MODES)
        raise DataError(f"blend mode {mode!r}, expected one of {', '.join(MODES)}{hint}", field="mode")
    if sorted(weights) != sorted(ACTIVITY_SLICES):
        slices = ", ".join(ACTIVITY_SLICES)
        raise DataError(f"a blend has weights for the slices {slices}; got {sorted(weights)}", field="weights")
    is_cascade = mode == CASCADE
    if is_cascade != (params["second"] is not None) or is_cascade != (params["depth"] is not None):
        raise DataError("a cascade, and only a cascade, has `second` and `depth`", field="mode")
    if is_cascade and int(params["depth"]) < 1:
        raise DataError(f"the depth of a cascade is at least 1, got {params['depth']}", field="depth")
    for by_part in [*weights.values(), *([params["second"]] if is_cascade else [])]:
        for name, weight in by_part.items():
            if name not in parts:
                hint = nearest(name, parts)
                raise DataError(f"the blend weighs {name!r}, which is none of its parts{hint}", field="weights")
            if not np.isfinite(weight):
                raise DataError(f"the weight of {name} must be finite, got {weight}", field="weights")
        speaking = [name for name, weight in by_part.items() if weight]
        if not speaking:
            raise DataError("in every slice some part of a blend has a weight", field="weights")
        if mode == SWITCHING and len([name for name in speaking if name != FLOOR_PART]) > 1:
            raise DataError(f"switching takes one part per slice, got {', '.join(speaking)}", field="weights")
