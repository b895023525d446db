"""Reasons of a block of people at once: those that each person alone gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spark_jobs.models import block_reasons as module
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.blend_model import Blend
from spark_jobs.models.block_reasons import PairTerms, block_reasons, model_reasons
from spark_jobs.models.ease import Ease
from spark_jobs.models.factory import fit
from spark_jobs.models.item_knn import ItemKnn
from spark_jobs.models.linear import linear_terms
from spark_jobs.models.ranking import two_best
from spark_jobs.models.recipes import blend_recipe, default_recipe
from spark_jobs.models.rp3beta import Rp3Beta
from spark_jobs.models.segment_popularity import SegmentPopularity
from spark_jobs.models.training_data import TrainingData
from tests.unit.test_blend_model import CUT_OFF, ITEMS, PARTS, planted, recipe_of

SLICES = ("<5", "5-20", ">20")
EVERY = {name: 0.3 + 0.1 * n for n, name in enumerate(PARTS)}
BY_SLICE = {"<5": {"popularity": 1.0}, "5-20": {"als": 0.5, "repurchase": 2.0}, ">20": {"item_knn": 1.0, "ease": 0.5}}


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return TrainingData(planted(), item_count=ITEMS, cut_off=CUT_OFF)


def fitted(data: TrainingData, recipe: dict[str, Any]) -> tuple[Blend, InteractionMatrix]:
    model, matrix = fit(recipe, data)
    assert isinstance(model, Blend)
    return model, matrix


def one_by_one(
    model: Blend, matrix: InteractionMatrix, rows: np.ndarray, numbers: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    said = model.score_parts(matrix.preference[rows], rows)
    found = np.full((2, *numbers.shape), -1, np.int64)
    for at in np.flatnonzero(counts).tolist():
        asked = numbers[at, : counts[at]].tolist()
        terms = model.block_terms(said, at, matrix.preference[rows[at]], int(rows[at]), asked)
        for place, reasons in enumerate(two_best(terms.values, terms.items)):
            found[:, at, place] = [-1 if reason is None else reason for reason in reasons]
    return found[0], found[1]


@pytest.mark.parametrize("cells", [1, 300, 4_000_000])
@pytest.mark.parametrize("kind", ["every part", "by slice", "cascade", "other weights"])
def test_a_block_has_the_reasons_of_each_person_alone(
    data: TrainingData, kind: str, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CELLS_AT_ONCE", cells)
    parts = {name: recipe_of(name) for name in PARTS}
    other: dict[str, Any] = {}
    if kind == "cascade":
        other = {"mode": "cascade", "second": {"rp3beta": 1.0, "popularity": 0.1}, "depth": 9}
    if kind == "other weights":  # people whom a part does not know
        parts["item_knn"]["weights"] = parts["als"]["weights"] = {"purchase": 1.0}
    weights = BY_SLICE if kind == "by slice" else dict.fromkeys(SLICES, EVERY)
    model, matrix = fitted(data, blend_recipe(parts, weights, **other))
    rng = np.random.default_rng(3)
    rows = rng.permutation(48)[:31]
    numbers = np.stack([rng.permutation(ITEMS - 1)[:12] for _ in rows]).astype(np.int32)
    counts = rng.integers(0, 13, len(rows))
    expected = one_by_one(model, matrix, rows, numbers, counts)
    assert (expected[0] >= 0).any(axis=1).sum() > 5
    assert (expected[1] >= 0).any()
    assert (expected[0] < 0).any()
    said = model.score_parts(matrix.preference[rows], rows)
    found = block_reasons(model, said, rows, numbers, counts)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("cells", [1, 300, 4_000_000])
@pytest.mark.parametrize("name", ["item_knn", "rp3beta", "ease", "popularity"])
def test_a_block_has_the_reasons_that_a_single_model_gives_each_person(
    data: TrainingData, name: str, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CELLS_AT_ONCE", cells)
    recipe = recipe_of(name)
    if name in ("item_knn", "rp3beta"):
        recipe["params"].update(neighbours=5)  # so that some past items say nothing
    model, matrix = fit(recipe, data)
    assert isinstance(model, PairTerms)
    rng = np.random.default_rng(5)
    histories = matrix.preference[rng.permutation(48)[:29]].tolil()
    histories[4] = 0  # somebody without a past
    histories = histories.tocsr()
    numbers = np.stack([rng.permutation(ITEMS - 1)[:12] for _ in range(29)]).astype(np.int32)
    counts = rng.integers(0, 13, 29)
    counts[4] = 7
    expected = np.full((2, *numbers.shape), -1, np.int64)
    for at in np.flatnonzero(counts).tolist():
        told = model.explain(histories[at], -1, numbers[at, : counts[at]].tolist())
        for place, reasons in enumerate(told):
            expected[:, at, place] = [-1 if reason is None else reason for reason in reasons]
    assert ((expected[0] >= 0).sum() > 30) == (name != "popularity")
    assert ((expected[1] >= 0).sum() > 9) == (name != "popularity")
    found = model_reasons(model, histories, numbers, counts)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_of_equal_terms_the_lower_number_comes_first() -> None:
    total = np.array([2.0, 2.0, 1.0, np.nan, 0.0, -1.0])
    grid = module._grid_of(np.array([4, 6, 8, 11, 12, 15]), 10, np.array([[3], [5]], np.int32), np.array([1, 1]))
    first, second = (np.full((2, 1), -1, np.int64) for _ in range(2))
    module._take_best(total, grid, first)
    module._take_best(total, grid, second)
    assert first.tolist() == [[4], [-1]]
    assert second.tolist() == [[6], [-1]]


@pytest.mark.parametrize("name", ["item_knn", "rp3beta", "ease", "segment_popularity"])
def test_terms_of_pairs_are_those_of_the_score(data: TrainingData, name: str) -> None:
    model: Model
    if name == "segment_popularity":
        segmented = SegmentPopularity(default_recipe(name)["params"])
        segmented.segments = (np.arange(ITEMS) % 4 - 1).astype(np.int32)  # every fourth item has no category
        segmented.shares = np.linspace(0.1, 0.9, ITEMS).astype(np.float32)
        model, matrix = segmented, data.matrix(default_recipe("popularity"))
    else:
        recipe = recipe_of(name)
        recipe["params"].update({} if name == "ease" else {"neighbours": 5})  # so links go one way
        model, matrix = fit(recipe, data)
        assert isinstance(model, ItemKnn | Rp3Beta | Ease)
    assert isinstance(model, PairTerms)
    history = matrix.preference[7]
    asked = np.arange(0, ITEMS, 3).astype(np.int32)
    places = np.tile(np.arange(history.nnz), len(asked))
    values = model.pair_terms(history.indices, history.data, places, np.repeat(asked, history.nnz))
    expected = linear_terms(model.score_block, history, asked.tolist())
    np.testing.assert_allclose(values.reshape(expected.shape), expected, rtol=1e-6)
    np.testing.assert_array_equal(model.terms(history, 7, asked.tolist()).values, values.reshape(expected.shape))
    assert (expected != 0).any()
    assert (expected == 0).any()
