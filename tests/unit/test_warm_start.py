"""Factorizations that begin from yesterday's item vectors: fewer sweeps, no loss, and never where they would leak."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from feature_repo.contracts.times import to_micros
from spark_jobs.models import factory
from spark_jobs.models.als import Als, Sweep
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.factory import Fitted, build_model, fit
from spark_jobs.models.ials import Ials, solve_rows
from spark_jobs.models.linear import strength
from spark_jobs.models.recipes import blend_recipe, default_recipe, ranker_recipe, recipe_id
from spark_jobs.models.training_data import TrainingData
from spark_jobs.models.warm_start import item_vectors
from tests.builders import utc

ITEMS, USERS = 40, 300
CUT_OFF = utc("2024-03-09")


def training(days: int = 0, *, items: int = ITEMS) -> TrainingData:
    """Four tastes, ten events a person; the last `days` days are left out."""
    rng = np.random.default_rng(11)
    rows = []
    for user in range(USERS):
        for item in rng.choice(np.arange(ITEMS)[np.arange(ITEMS) % 4 == user % 4], size=8, replace=False):
            rows.append((f"u:{user:03d}", int(item), rng.random() * 30))
        rows += [(f"u:{user:03d}", int(item), rng.random() * 30) for item in rng.integers(0, ITEMS, size=2)]
    kept = [row for row in rows if row[2] >= days]
    table = pa.table(
        {
            "subject_key": [user for user, _, _ in kept],
            "item_number": pa.array([item for _, item, _ in kept], pa.int32()),
            "event_type": ["purchase"] * len(kept),
            "micros": [to_micros(CUT_OFF - timedelta(days=age, seconds=1)) for _, _, age in kept],
        }
    )
    return TrainingData(table, item_count=items, cut_off=CUT_OFF - timedelta(days=days))


def recipe_of(name: str) -> dict[str, Any]:
    recipe = default_recipe(name)
    recipe["params"].update({"als": {"factors": 8, "regularization": 1.0}, "ials": {"factors": 8}}[name])
    return recipe


def als_losses(matrix: InteractionMatrix, start: NDArray[np.float32] | None) -> tuple[Als, list[float]]:
    model, losses = Als(recipe_of("als")["params"]), []

    def after_sweep(sweep: Sweep) -> None:
        losses.append(sweep.loss)

    model.fit(matrix, after_sweep, start)
    return model, losses


def ials_loss(model: Ials, matrix: InteractionMatrix) -> float:
    """The objective of the class, term by term over the dense matrix."""
    weights = strength(matrix.preference).toarray().astype(np.float64)
    guess = model.user_factors.astype(np.float64) @ model.item_factors.T.astype(np.float64)
    loss = (weights * (1 - guess) ** 2).sum() + float(model.params["unobserved"]) * (guess**2).sum()
    by_item = strength(matrix.preference).T.tocsr()
    for vectors, rows in ((model.user_factors, strength(matrix.preference)), (model.item_factors, by_item)):
        loss += float((model._ridges(rows)[:, None] * vectors.astype(np.float64) ** 2).sum())
    return float(loss)


def test_als_from_yesterdays_vectors_is_as_low_in_a_quarter_of_the_sweeps() -> None:
    recipe = recipe_of("als")
    before, _ = als_losses(training(days=1).matrix(recipe), None)
    matrix = training().matrix(recipe)
    start = before.item_factors.copy()
    cold, cold_losses = als_losses(matrix, None)
    warm, warm_losses = als_losses(matrix, start)
    assert (len(cold_losses), len(warm_losses)) == (12, 3)
    assert warm_losses[-1] <= cold_losses[-1] * 1.001
    assert warm_losses[0] < cold_losses[3]  # it did begin there
    np.testing.assert_array_equal(start, before.item_factors)  # and left them as they were
    again, _ = als_losses(matrix, start)
    np.testing.assert_array_equal(again.item_factors, warm.item_factors)
    assert not np.array_equal(cold.item_factors, warm.item_factors)


def test_ials_from_yesterdays_vectors_is_as_low_in_a_quarter_of_the_sweeps() -> None:
    recipe = recipe_of("ials")
    before, cold, warm = (Ials(recipe["params"]) for _ in range(3))
    before.fit(training(days=1).matrix(recipe))
    matrix = training().matrix(recipe)
    cold.fit(matrix)
    warm.fit(matrix, before.item_factors)
    few = Ials({**recipe["params"], "iterations": 3})
    few.fit(matrix)
    assert ials_loss(warm, matrix) <= ials_loss(cold, matrix) * 1.005
    assert ials_loss(few, matrix) > ials_loss(warm, matrix) * 1.005  # as many sweeps from nothing are not enough


def test_a_new_item_gets_its_vector_and_one_that_lost_its_events_loses_it() -> None:
    for name in ("als", "ials"):
        recipe = recipe_of(name)
        matrix = training().matrix(recipe)
        start = fit(recipe, training()).model.item_factors.copy()  # type: ignore[attr-defined]
        start[3] = 0.0  # as an item that yesterday did not have
        bare = matrix.preference.copy()
        bare.data[bare.indices == 5] = 0.0
        bare.eliminate_zeros()
        model = build_model(name, recipe["params"])
        assert isinstance(model, Als | Ials)
        model.fit(InteractionMatrix(matrix.subjects, bare, matrix.last_micros), start=start)
        assert np.linalg.norm(model.item_factors[3]) > 0.1 * np.median(np.linalg.norm(model.item_factors, axis=1))
        assert not model.item_factors[5].any()


def test_vectors_are_known_by_the_recipe_of_their_part() -> None:
    als, ials = recipe_of("als"), recipe_of("ials")
    mllib = {**recipe_of("als"), "half_life_days": 3.0}
    parts = {"als": als, "ials": ials, "item_knn": default_recipe("item_knn")}
    weights = dict.fromkeys(parts, 0.5)
    blend = blend_recipe(parts, dict.fromkeys(("<5", "5-20", ">20"), weights))
    model = fit(blend, training()).model
    found = item_vectors(model, blend)
    assert sorted(found) == sorted([recipe_id(blend["params"]["parts"][name]) for name in ("als", "ials")])
    assert {vectors.shape for vectors in found.values()} == {(ITEMS, 8)}
    assert item_vectors(fit(default_recipe("item_knn"), training()).model, default_recipe("item_knn")) == {}
    spark_made = Als({**mllib["params"], "engine": "mllib"})
    assert item_vectors(spark_made, mllib) == {}  # Spark's cannot begin from them
    # and a blend passes each part its own
    warm = fit(blend, training(), starts=found).model
    again = item_vectors(warm, blend)
    assert all(not np.array_equal(again[name], found[name]) for name in found)
    other = {"0" * 8: next(iter(found.values()))}
    cold = item_vectors(fit(blend, training(), starts=other).model, blend)
    assert all(np.array_equal(cold[name], found[name]) for name in found)


def test_what_a_ranker_learns_from_never_begins_from_vectors_that_know_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = ranker_recipe(recipe_of("als"))
    asked: list[tuple[Any, bool]] = []

    def watched(wanted: Any, data: TrainingData, **options: Any) -> Fitted:
        asked.append((data.cut_off, bool(options.get("starts"))))
        return real(wanted, data, **options)

    real = factory.fit
    monkeypatch.setattr(factory, "fit", watched)
    monkeypatch.setattr(factory.Ranker, "learn", lambda *_: None)
    monkeypatch.setattr(factory.Ranker, "assemble", lambda *_: None)
    data = training()
    monkeypatch.setattr(data, "features_at", lambda *_, **__: None)
    real(recipe, data, starts={recipe_id(recipe["params"]["first"]): np.zeros((ITEMS, 8), np.float32)})
    assert asked == [(CUT_OFF - timedelta(days=7), False), (CUT_OFF, True)]


def test_people_are_solved_from_the_vectors_before_anything_moves() -> None:
    """iALS begins with people who are nobody: the first half sweep must solve them as good as exactly."""
    recipe = recipe_of("ials")
    matrix = training().matrix(recipe)
    model = Ials({**recipe["params"], "iterations": 1})
    start = np.random.default_rng(1).standard_normal((ITEMS, 8)).astype(np.float32)
    model.fit(matrix, start)
    weighted = strength(matrix.preference)
    nobody = np.zeros((USERS, 8), np.float32)
    unobserved = float(recipe["params"]["unobserved"])
    users = solve_rows(weighted, start, nobody, unobserved=unobserved, ridges=model._ridges(weighted), steps=200)
    by_item = weighted.T.tocsr()
    expected = solve_rows(by_item, users, start, unobserved=unobserved, ridges=model._ridges(by_item), steps=3)
    np.testing.assert_allclose(model.item_factors, expected, atol=2e-3)
