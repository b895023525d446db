"""The blend as a model: sums by slice, switching, cascades, strangers, reasons and their removal, files; the lists that
are packed from it; the bench's shipped choice in the night."""

from __future__ import annotations

import copy
import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.packing import Source
from feature_repo.contracts.times import to_micros
from spark_jobs.evaluation.full_ranking import rank_unseen
from spark_jobs.models.artifacts import verify_folder
from spark_jobs.models.base import Model
from spark_jobs.models.blend import standardize
from spark_jobs.models.blend_model import Blend, cascade, cascade_head
from spark_jobs.models.factory import Fitted, build_model, fit, load_model, remember
from spark_jobs.models.linear import linear_terms
from spark_jobs.models.matrix import sort_interactions
from spark_jobs.models.recipe_choice import RecipeChoice, describe_choice, read_choice, read_choice_file
from spark_jobs.models.recipes import blend_recipe, default_recipe, flat_recipe, recipe_id
from spark_jobs.models.training_data import TrainingData
from spark_jobs.transforms.candidates import Scoring, score_block
from tests.builders import utc

FIRST, CUT_OFF = utc("2024-03-01"), utc("2024-03-29")
ITEMS, GROUPS = 41, 4
"""Item 40 is nobody's."""
SLICES = ("<5", "5-20", ">20")
SMALL = {"als": {"factors": 8, "iterations": 5, "regularization": 1.0}, "graph_filter": {"factors": 8}}
PARTS = ("als", "ease", "graph_filter", "item_knn", "popularity", "repurchase", "rp3beta", "sequential_rules")


def recipe_of(name: str) -> dict[str, Any]:
    found = default_recipe(name)
    found["params"].update(SMALL.get(name, {}))
    return found


def planted() -> pa.Table:
    """48 users in four groups with a taste for ten items each; three events of every fourth user, 8 or 30 of others."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(48):
        for _ in range((3, 8, 30, 30)[user // GROUPS % 4]):
            place = int(rng.choice(10, p=np.arange(10, 0, -1) / 55))
            item = place * GROUPS + user % GROUPS if rng.random() < 0.85 else int(rng.integers(40))
            kind = "purchase" if rng.random() < 0.3 else "view_item"
            rows.append((f"u:{user:02d}", item, kind, to_micros(FIRST + timedelta(days=float(rng.random() * 28)))))
    names = ("subject_key", "item_number", "event_type", "micros")
    return sort_interactions(pa.table({name: [row[n] for row in rows] for n, name in enumerate(names)}))


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return TrainingData(planted(), item_count=ITEMS, cut_off=CUT_OFF)


def blended(
    weights: dict[str, float] | dict[str, dict[str, float]], data: TrainingData, **other: Any
) -> tuple[Blend, Fitted]:
    by_slice = weights if set(weights) == set(SLICES) else dict.fromkeys(SLICES, weights)
    found = fit(blend_recipe({name: recipe_of(name) for name in PARTS}, by_slice, **other), data)  # type: ignore[arg-type]
    assert isinstance(found.model, Blend)
    return found.model, found


def scores_of(name: str, data: TrainingData) -> np.ndarray:
    """Standardised scores of a part alone, for all 48."""
    alone = fit(recipe_of(name), data)
    return standardize(alone.model.score_block(alone.matrix.preference, np.arange(48)))


def test_a_blend_is_the_weighted_sum_of_its_parts_by_slice(data: TrainingData) -> None:
    weights = {
        "<5": {"popularity": 1.0},
        "5-20": {"als": 0.5, "item_knn": 1.0, "popularity": 0.001},
        ">20": {"ease": 1.5, "sequential_rules": 0.25, "popularity": 0.001},
    }
    model, (_, matrix) = blended(weights, data)
    assert isinstance(model, Model)
    assert len(matrix.subjects) == 48
    counts = data.event_counts(matrix.subjects)
    assert sorted(set(counts.tolist())) == [3, 8, 30]
    slices = np.select([counts < 5, counts <= 20], SLICES[:2], SLICES[2])
    expected = np.zeros((48, ITEMS))
    for name in ("als", "ease", "item_knn", "popularity", "sequential_rules"):
        weight = np.array([weights[part].get(name, 0.0) for part in slices])
        expected += weight[:, None] * scores_of(name, data)
    scores = model.score_block(matrix.preference, np.arange(48))
    np.testing.assert_allclose(scores[:, :40], expected[:, :40], rtol=1e-4, atol=1e-5)
    assert (scores[:, 40] == -np.inf).all(), "an item that nobody had is never listed"
    backwards = model.score_block(matrix.preference[::-1], np.arange(48)[::-1])
    # up to the last bit: on some processors that of a product depends on the place of its row
    np.testing.assert_allclose(backwards, scores[::-1], rtol=1e-6, atol=1e-6)


def test_people_are_known_to_a_part_by_its_own_weights(data: TrainingData) -> None:
    """A part that only counts purchases knows fewer people; who is not there is nobody to it, not somebody else."""
    parts = {"item_knn": recipe_of("item_knn"), "popularity": recipe_of("popularity")}
    parts["item_knn"]["weights"] = {"purchase": 1.0}
    recipe = blend_recipe(parts, {key: {"item_knn": 1.0, "popularity": 0.001} for key in SLICES})
    assert recipe["weights"] == default_recipe("popularity")["weights"]
    model, matrix = fit(recipe, data)
    knn, own = fit(parts["item_knn"], data)
    assert len(own.subjects) < len(matrix.subjects) == 48
    scores = model.score_block(matrix.preference, np.arange(48))
    compared = 0
    for row, subject in enumerate(matrix.subjects.tolist()):
        found = np.flatnonzero(own.subjects == subject)
        if len(found):
            alone = standardize(knn.score_block(own.preference[found], found))[0]
            np.testing.assert_allclose(scores[row, :40], alone[:40], atol=0.02)
        else:
            assert np.ptp(scores[row, :40]) < 0.02, "only popularity's last resort"
        compared += 1
    assert compared == 48


def test_switching_and_what_is_no_blend(data: TrainingData) -> None:
    weights = {"<5": {"popularity": 1.0}, "5-20": {"als": 1.0, "popularity": 0.001}, ">20": {"ease": 1.0}}
    model, (_, matrix) = blended(weights, data, mode="switching")
    scores = model.score_block(matrix.preference, np.arange(48))
    most = int(np.flatnonzero(data.event_counts(matrix.subjects) > 20)[0])
    np.testing.assert_allclose(scores[most, :40], scores_of("ease", data)[most, :40], rtol=1e-5)
    recipe = blend_recipe({name: recipe_of(name) for name in PARTS}, weights)["params"]
    for change, message in (
        ({"mode": "switchin"}, "did you mean 'switching'"),
        ({"mode": "cascade"}, "only a cascade, has `second` and `depth`"),
        ({"mode": "switching", "weights": {**weights, "<5": {"als": 1.0, "ease": 1.0}}}, "one part per slice"),
        ({"weights": {"<5": {}, ">20": {}}}, "a blend has weights for the slices <5, 5-20, >20"),
        ({"weights": {**weights, "<5": {}}}, "in every slice some part"),
        ({"weights": {**weights, "<5": {"alz": 1.0}}}, "did you mean 'als'"),
        ({"weights": {**weights, "<5": {"als": float("nan")}}}, "must be finite"),
    ):
        with pytest.raises(DataError, match=message):
            build_model("blend", {**recipe, **change})


def test_a_cascade_orders_the_best_of_the_first_by_the_second(data: TrainingData) -> None:
    first, second = {"item_knn": 1.0, "popularity": 0.001}, {"als": 1.0}
    model, (_, matrix) = blended(first, data, mode="cascade", second=second, depth=6)
    assert sorted(model.parts) == ["als", "item_knn", "popularity"]
    scores = model.score_block(matrix.preference, np.arange(48))
    one = scores_of("item_knn", data) + np.float32(0.001) * scores_of("popularity", data)
    two = scores_of("als", data)
    for row in range(48):
        had = set(matrix.preference[row].indices.tolist())
        fresh = [item for item in range(40) if item not in had]
        best = sorted(fresh, key=lambda item: (-one[row, item], item))[:6]
        expected = sorted(best, key=lambda item: (-two[row, item], item))
        expected += [item for item in sorted(fresh, key=lambda item: (-one[row, item], item)) if item not in best]
        found = sorted(fresh, key=lambda item: (-scores[row, item], item))
        assert found == expected
    assert np.isfinite(scores[:, :40]).all()


def test_a_cascade_by_hand() -> None:
    from scipy import sparse

    first = np.array([[5, 4, 3, 2, 1]], np.float32)
    had = sparse.csr_matrix(np.array([[1, 0, 0, 0, 0]], np.float32))
    head = cascade_head(first, had, np.array([True, True, True, False, True]), 2)
    assert head.tolist() == [[True, True, True, False, False]], "the item that was had takes no place"
    found = cascade(first, np.array([[0, 1, 9, 50, 60]], np.float32), head)
    assert found.tolist() == [[3, 4, 12, 2, 1]]
    everything = np.ones((1, 5), bool)
    assert cascade(first, first, everything).tolist() == first.tolist()


def test_a_stranger_is_folded_in_and_removing_the_reason_lowers_the_score(data: TrainingData) -> None:
    """Asked by a history alone: with the item that is named as the reason taken away, the score falls."""
    names = ("als", "ease", "graph_filter", "item_knn", "rp3beta")
    model, (_, matrix) = blended({**dict.fromkeys(names, 1.0), "popularity": 0.001}, data)
    tested = 0
    for row in range(2, 48, 5):
        history = matrix.preference[row]
        if history.nnz < 4:
            continue
        scores = model.score_block(history)[0]
        fresh = [item for item in np.argsort(-scores) if item not in set(history.indices.tolist())][:5]
        for item, (reason, _) in zip(fresh, model.explain(history, -1, fresh), strict=True):
            assert reason in history.indices
            without = history.copy()
            without.data[without.indices == reason] = 0
            without.eliminate_zeros()
            assert model.score_block(without)[0, item] < scores[item]
            tested += 1
    assert tested >= 25


@pytest.mark.parametrize("name", [name for name in PARTS if name not in ("popularity", "graph_filter")])
def test_every_models_terms_sum_to_its_score(name: str, data: TrainingData) -> None:
    model, matrix = fit(recipe_of(name), data)
    asked = [0, 5, 12, 39]
    compared = 0
    for row in range(0, 48, 6):
        history = matrix.preference[row]
        terms = model.terms(history, row, asked)
        scores = model.score_block(history, np.array([row]))[0, asked]
        np.testing.assert_allclose(terms.values.sum(axis=1), scores, rtol=1e-3, atol=1e-5)
        compared += terms.values.size
        if name in ("ease", "rp3beta"):
            oracle = linear_terms(model.score_block, history, asked)
            np.testing.assert_allclose(terms.values, oracle, rtol=1e-4, atol=1e-6)
    assert compared > 50


@pytest.mark.parametrize(("factors", "sharpening"), [(8, 0.0), (20, 0.5), (40, 2.5)])
def test_a_graph_filters_terms_are_near_those_of_scoring_alone(
    factors: int, sharpening: float, data: TrainingData
) -> None:
    """Exact without sharpening, and where its factors span everything; near where they span half."""
    recipe = recipe_of("graph_filter")
    recipe["params"].update(factors=factors, sharpening=sharpening, popular_power=0.2)
    model, matrix = fit(recipe, data)
    compared = 0
    for row in range(2, 48, 4):
        history = matrix.preference[row]
        terms = model.terms(history, row, [0, 5, 12, 39]).values
        oracle = linear_terms(model.score_block, history, [0, 5, 12, 39])
        if factors == 20:
            assert np.corrcoef(terms.ravel(), oracle.ravel())[0, 1] > 0.98
        else:
            np.testing.assert_allclose(terms, oracle, rtol=1e-2, atol=2e-3 * float(np.abs(oracle).max()))
        compared += terms.size
    assert compared > 200


def test_shares_and_sources_are_of_the_part_that_speaks_most(data: TrainingData) -> None:
    model, (_, matrix) = blended({"als": 1.0, "item_knn": 0.7, "popularity": 0.4, "sequential_rules": 0.3}, data)
    block = model.score_parts(matrix.preference, np.arange(48))
    numbers = np.tile(np.arange(40, dtype=np.int32), (48, 1))
    sources = model.sources(block, numbers)
    by_name = {
        "als": Source.ALS,
        "item_knn": Source.ITEM_KNN,
        "popularity": Source.POPULARITY,
        "sequential_rules": Source.SESSION,
    }
    assert set(np.unique(sources).tolist()) == {int(source) for source in by_name.values()}
    parts = {
        name: weight * scores_of(name, data)
        for name, weight in (("als", 1.0), ("item_knn", 0.7), ("popularity", 0.4), ("sequential_rules", 0.3))
    }
    compared = 0
    for row in (1, 9, 30):
        shares = model.shares(matrix.preference[row], row, list(range(40)))
        for item, share in enumerate(shares):
            positive = {name: float(value[row, item]) for name, value in parts.items() if value[row, item] > 0}
            assert set(share) == set(positive)
            if share:
                assert sum(share.values()) == pytest.approx(1.0)
                assert next(iter(share)) == max(positive, key=lambda name: positive[name])
                assert sources[row, item] == by_name[next(iter(share))]
                compared += 1
    assert compared > 40


def test_lists_carry_the_source_and_the_reasons_of_the_blend(data: TrainingData) -> None:
    model, (_, matrix) = blended({"als": 1.0, "popularity": 0.3, "rp3beta": 0.8, "sequential_rules": 0.5}, data)
    scoring = Scoring(
        model=model, user_ids=np.array([subject[2:] for subject in matrix.subjects]), rows=np.arange(48),
        histories=matrix.preference, seen=matrix.preference, eligible=np.arange(ITEMS) != 7, as_of=date(2024, 3, 29),
        per_user=15, explained=10,
    )  # fmt: skip
    rows = score_block(scoring, 0).to_pylist()
    assert len(rows) == 48
    scores = model.score_block(matrix.preference, np.arange(48))
    masked = scores.copy()
    masked[:, 7] = -np.inf
    expected = rank_unseen(masked, matrix.preference, 15)
    reasons = 0
    for row, found in enumerate(rows):
        listed = [int(n) for n in expected[row] if n >= 0]
        assert found["item_numbers"] == listed
        assert 7 not in listed
        assert 40 not in listed
        told = model.explain(matrix.preference[row], row, listed[:10])
        assert list(zip(found["first_reasons"], found["second_reasons"], strict=True))[:10] == told
        assert found["first_reasons"][10:] == [None] * len(listed[10:])
        block = model.score_parts(matrix.preference[row], np.array([row]))
        assert found["sources"] == model.sources(block, np.array([listed], np.int32))[0].tolist()
        reasons += sum(first is not None for first, _ in told)
    assert reasons > 300


def test_a_saved_blend_is_the_same_once_it_remembers(data: TrainingData, tmp_path: Path) -> None:
    model, (_, matrix) = blended(
        {"als": 1.0, "ease": 0.5, "popularity": 0.001, "repurchase": 0.2, "sequential_rules": 0.5}, data
    )
    folder = tmp_path / "blend"
    model.save(folder)
    names = sorted(path.name for path in (folder / "parts").iterdir())
    assert names == ["als", "ease", "popularity", "repurchase", "sequential_rules"]
    assert not [path for path in folder.rglob("*") if path.suffix not in (".npy", ".json") and path.is_file()]
    loaded = load_model(folder)
    assert isinstance(loaded, Blend)
    assert loaded.params == json.loads(json.dumps(model.params))
    strangers = matrix.preference[[3, 20]]
    np.testing.assert_array_equal(loaded.score_block(strangers), model.score_block(strangers))
    with pytest.raises(ContractError, match="knows nobody"):
        loaded.score_block(matrix.preference[3], np.array([3]))
    recipe = blend_recipe({name: recipe_of(name) for name in PARTS}, model.params["weights"])
    again = remember(loaded, recipe, data)
    rows = np.arange(48)
    np.testing.assert_array_equal(
        loaded.score_block(again.preference, rows), model.score_block(matrix.preference, rows)
    )
    assert loaded.source == model.source
    model.save(folder)
    verify_folder(folder)
    part = folder / "parts" / "als" / "item_factors.npy"
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ContractError, match="SHA-256"):
        load_model(folder)


def test_another_part_in_the_folder_is_noticed(data: TrainingData, tmp_path: Path) -> None:
    """Whole files, but not those of this blend: the manifest of the part is none that the blend's manifest names."""
    model, _ = blended({"als": 1.0, "popularity": 0.1}, data)
    model.save(tmp_path / "a")
    other = fit({**recipe_of("als"), "params": {**recipe_of("als")["params"], "seed": 8}}, data).model
    other.save(tmp_path / "a" / "parts" / "als")
    with pytest.raises(ContractError, match=r"not the part that the manifest of .* names"):
        load_model(tmp_path / "a")


def test_a_blend_on_one_matrix_and_its_recipe(data: TrainingData) -> None:
    """By the common interface alone: `fit(matrix)`. Parts without weight are not in the recipe at all."""
    recipe = blend_recipe({name: recipe_of(name) for name in PARTS}, {key: {"als": 1.0, "ease": 0.0} for key in SLICES})
    assert list(recipe["params"]["parts"]) == ["als"]
    matrix = data.matrix(recipe_of("als"))
    model = build_model("blend", recipe["params"])
    model.fit(matrix)
    np.testing.assert_allclose(
        model.score_block(matrix.preference, np.arange(48))[:, :40], scores_of("als", data)[:, :40], rtol=1e-5
    )
    assert model.similar(0, 3) == [(n, pytest.approx(v, rel=0.2)) for n, v in model.similar(0, 3)]
    flat = flat_recipe(recipe)
    assert (flat["mode"], flat["part.als"], flat["gt20.als"]) == ("weighted", recipe_id(recipe_of("als")), 1.0)
    assert all("<" not in name and len(str(value)) < 500 for name, value in flat.items())
    json.dumps(recipe)
    ordered = blend_recipe(
        {"sequential_rules": recipe_of("sequential_rules")}, {key: {"sequential_rules": 1.0} for key in SLICES}
    )
    with pytest.raises(ContractError, match="learns from sequences"):
        build_model("blend", ordered["params"]).fit(matrix)


# --- chosen recipes -----------------------------------------------------------------------------------------------


def shipped(**other: Any) -> dict[str, Any]:
    parts = {name: recipe_of(name) for name in ("als", "item_knn", "popularity", "sequential_rules")}
    parts["sequential_rules"].pop("half_life_days")
    for recipe in parts.values():
        recipe["weights"] = {"interaction": 1.0}
    weights = {"als": 1.0, "popularity": 0.001, "sequential_rules": 0.4}
    return {
        "shipped": "blend",
        "weights": weights,
        "recipes": parts,
        "protocol": "events",
        "repeats": "new-only",
        "k": 20,
        **other,
    }


def test_what_the_bench_ships_is_a_choice_for_the_night() -> None:
    choice = read_choice(shipped())
    assert sorted(choice.recipes) == ["als", "popularity", "sequential_rules"], "item_knn has no weight"
    assert choice.blend is not None
    assert choice.blend["params"]["weights"] == dict.fromkeys(SLICES, shipped()["weights"])
    assert set(choice.recipes["als"]["weights"]) == set(default_recipe("als")["weights"])
    assert read_choice(json.loads(json.dumps(choice.to_json()))) == choice
    assert any("blend, weighted" in line for line in describe_choice(choice))
    alone = read_choice(shipped(shipped="item_knn"))
    assert (sorted(alone.recipes), alone.blend, alone.may_blend) == (["item_knn", "popularity"], None, False)
    assert isinstance(alone, RecipeChoice)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1, got 2"),
        ({"recipes": {}}, "`recipes`"),
        ({"recipes": {"alz": {"params": {}}}}, "no model 'alz'.*did you mean 'als'"),
        ({"recipes": {"als": {"params": {"factor": 3}}}}, "did you mean 'factors'"),
        ({"recipes": {"als": {"params": {}, "half_life": 3}}}, "did you mean 'half_life_days'"),
        ({"recipes": {"als": {"params": {}, "weights": {"view_item": -1}}}}, "none below"),
        ({"blend": "nigth"}, "did you mean 'night'"),
        ({"blend": {"weights": {key: {"ease": 1.0} for key in SLICES}}}, "weighs 'ease', which has no recipe"),
        ({"blend": {"mode": "wieghted", "weights": {key: {"als": 1.0} for key in SLICES}}}, "did you mean 'weighted'"),
    ],
)
def test_a_choice_that_makes_no_sense_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipes.json"
    file.write_text(json.dumps({"format": 1, "recipes": {"als": {"params": {}}}, **change}))
    with pytest.raises(DataError, match=message):
        read_choice_file(file)
    file.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_choice_file(file)


def test_a_recipe_fills_in_what_it_leaves_out() -> None:
    choice = read_choice(
        {"format": 1, "recipes": {"als": {"params": {"alpha": 9.0}}, "wide": {"model": "als", "params": {}}}}
    )
    expected = copy.deepcopy(default_recipe("als"))
    expected["params"]["alpha"] = 9.0
    assert choice.recipes["als"] == expected
    assert choice.recipes["wide"] == default_recipe("als")
    assert (choice.blend, choice.may_blend) == (None, True)
