"""The models on data small enough to work out by hand, or planted so that the right answer is known."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log1p, sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.packing import Source
from spark_jobs.models.als import Als
from spark_jobs.models.artifacts import MANIFEST_FILE, manifest_digest
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.factory import MODELS, build_model, load_model
from spark_jobs.models.item_content import Described, build_content
from spark_jobs.models.item_knn import ItemKnn
from spark_jobs.models.popularity import Popularity
from spark_jobs.models.ranking import mask_items, top_items, two_best
from spark_jobs.models.recipes import (
    MORE_RECIPES,
    RECIPES,
    blend_recipe,
    default_recipe,
    is_fitted_by_spark,
    ranker_recipe,
)


def matrix_of(dense: list[list[float]] | np.ndarray) -> InteractionMatrix:
    preference = sparse.csr_matrix(np.asarray(dense, dtype=np.float32))
    subjects = np.array([f"u:{n:04d}" for n in range(preference.shape[0])])
    return InteractionMatrix(subjects, preference, np.zeros(preference.nnz, np.int64))


# Two tastes that share nothing but item 4, and item 9 that nobody ever touched.
GROUPS = ((0, 1, 2, 3, 4), (4, 5, 6, 7, 8))


def planted(users: int = 60, seed: int = 3) -> InteractionMatrix:
    rng = np.random.default_rng(seed)
    dense = np.zeros((users, 10))
    for user in range(users):
        liked = rng.choice(GROUPS[user % 2], size=3, replace=False)
        dense[user, liked] = rng.integers(1, 9, size=3)
    return matrix_of(dense)


def fitted(name: str, matrix: InteractionMatrix, **params: object) -> Model:
    small = {
        "als": {"factors": 4, "regularization": 0.5},
        "item_knn": {"shrinkage": 1.0},
        "ials": {"factors": 4},
        "graph_filter": {"factors": 4, "sharpening": 0.5},
        "ease": {"regularization": 5.0},
    }.get(name, {})
    model = build_model(name, {**small, **params})
    model.fit(matrix)
    return model


# --- ranking -----------------------------------------------------------------------------------------------------


def test_top_items_against_a_full_sort() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, size=(50, 30)).astype(np.float32)  # few values: ties everywhere, also at the boundary
    scores[:, 7] = -np.inf
    scores[3, :] = 2.0
    for count in (1, 5, 29, 30, 99):
        numbers, values = top_items(scores, count)
        assert numbers.shape == (50, min(count, 30))
        for row in range(50):
            expected = sorted(range(30), key=lambda n, row=row: (-scores[row, n], n))[:count]
            assert numbers[row].tolist() == expected
            assert values[row].tolist() == scores[row, expected].tolist()


def test_top_items_of_many_columns_against_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.models.ranking.COLUMNS_PER_GROUP", 4)
    monkeypatch.setattr("spark_jobs.models.ranking.MOST_CANDIDATES", 3)
    monkeypatch.setattr("spark_jobs.models.ranking._ROW_AND_COLUMN_BITS", 12)  # 32 rows of 103 columns at once
    rng = np.random.default_rng(2)
    scores = rng.standard_normal((40, 103)).astype(np.float32)  # the last three columns fill no group
    scores[:10] = rng.integers(0, 3, size=(10, 103))  # ties without end
    scores[10:20][rng.random((10, 103)) < 0.9] = 0.0
    scores[20, :] = -np.inf
    scores[21, 5:] = -np.inf
    scores[22, ::2] = np.nan
    scores[23, 102] = np.nan
    scores[24, 100:] = 50.0
    scores[25] = -np.abs(scores[25]) - 1
    scores[25, [5, 99]] = 1.0, 3.0
    scores[26] = -1.0
    scores[26, [3, 30, 60]], scores[26, [2, 31, 59, 61]] = -0.0, 0.0  # equal, though their bits are not
    cleaned = np.where(np.isnan(scores), -np.inf, scores)
    for count in (1, 3, 12, 13):
        numbers, values = top_items(scores[:, ::1] if count % 2 else np.asfortranarray(scores), count)
        for row in range(40):
            expected = sorted(range(103), key=lambda n, row=row: (-cleaned[row, n], n))[:count]
            assert numbers[row].tolist() == expected
            assert values[row].tolist() == cleaned[row, expected].tolist()


def test_nan_ranks_last_and_nothing_is_no_error() -> None:
    numbers, values = top_items(np.array([[np.nan, -5.0, np.inf]], np.float32), 3)
    assert numbers.tolist() == [[2, 1, 0]]
    assert values[0, 2] == -np.inf
    assert top_items(np.zeros((0, 4), np.float32), 3)[0].shape == (0, 3)
    assert top_items(np.zeros((2, 4), np.float32), 0)[0].shape == (2, 0)


def test_mask_removes_what_a_row_has() -> None:
    scores = np.ones((2, 3), np.float32)
    mask_items(scores, sparse.csr_matrix(np.array([[0, 5, 0], [2, 0, 1]])))
    assert np.isfinite(scores).tolist() == [[True, False, True], [False, True, False]]


def test_two_best() -> None:
    contributions = [
        ([0.1, 0.7, 0.7, 0.2], (30, 40)),  # a tie: the lower number first, whatever the order of the history
        ([0.7, 0.2, 0.1, 0.2], (10, 20)),  # a tie for the second place
        ([-1.0, 0.0, 0.3, -2.0], (30, None)),  # what spoke against an item is no reason for it
        ([0.0, 0.0, 0.0, 0.0], (None, None)),
        ([np.nan, 0.5, np.nan, 0.0], (40, None)),
    ]
    rows = np.array([row for row, _ in contributions])
    assert two_best(rows, np.array([10, 40, 30, 20], np.int32)) == [expected for _, expected in contributions]
    assert two_best(np.zeros((2, 0)), np.zeros(0, np.int32)) == [(None, None), (None, None)]


# --- popularity --------------------------------------------------------------------------------------------------


def test_popularity_sums_what_each_subject_adds_up_to_the_cap() -> None:
    matrix = matrix_of([[1, 0, 20], [2, 3, 0], [0, 4, 0]])
    model = fitted("popularity", matrix, subject_cap=3.5)
    assert isinstance(model, Popularity)
    scores = model.score_block(matrix.preference[:2])
    assert scores.tolist() == [[3.0, 6.5, 3.5]] * 2
    scores[0, 0] = -1.0  # callers mask in place
    assert model.score_block(matrix.preference[:1]).tolist() == [[3.0, 6.5, 3.5]]
    assert model.similar(0, 5) == []
    assert model.explain(matrix.preference[0], 0, [1, 2]) == [(None, None)] * 2


# --- item-kNN ----------------------------------------------------------------------------------------------------


def test_item_knn_by_hand() -> None:
    # log(1 + preference): a = log 2, b = log 4. Columns: x0 = (a, b), x1 = (b, 0), x2 = (0, a).
    a, b = log1p(1), log1p(3)
    matrix = matrix_of([[1, 3, 0, 0], [3, 0, 1, 0]])
    model = fitted("item_knn", matrix, neighbours=2, shrinkage=0.5, user_damping=0.0)
    assert isinstance(model, ItemKnn)
    norm0 = sqrt(a * a + b * b)
    s01, s02 = a * b / (norm0 * b + 0.5), b * a / (norm0 * a + 0.5)
    expected = [[0, s01, s02, 0], [s01, 0, 0, 0], [s02, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(model.similarity.toarray(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        model.score_block(matrix.preference),
        [[b * s01, a * s01, a * s02, 0], [a * s02, b * s01, b * s02, 0]],
        rtol=1e-5,
    )
    assert [n for n, _ in model.similar(0, 9)] == [2, 1]  # s02 > s01: x2 is shorter, so shrinkage aside it is closer
    assert model.similar(3, 9) == []
    assert model.explain(matrix.preference[0], 0, [2, 3, 0]) == [(0, None), (None, None), (1, None)]


def test_item_knn_damps_busy_people() -> None:
    # The pair (0, 1) is spoken for by one person of two items, (2, 3) by one of three: 1/2 against 1/3 of the product.
    matrix = matrix_of([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])
    similarity = fitted("item_knn", matrix, shrinkage=1.0, user_damping=1.0).similarity.toarray()
    x = log1p(1) ** 2
    assert similarity[0, 1] == pytest.approx(x / 2 / (x / 2 + 1.0), rel=1e-5)
    assert similarity[2, 3] == pytest.approx(x / 3 / (x / 3 + 1.0), rel=1e-5)


def test_item_knn_blocks_and_ties_against_a_slow_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.models.item_knn.ITEMS_PER_BLOCK", 7)
    rng = np.random.default_rng(5)
    dense = (rng.random((40, 20)) < 0.2).astype(float)  # equal preferences: many equal similarities
    dense[:, 11] = 0
    model = fitted("item_knn", matrix_of(dense), neighbours=3, shrinkage=2.0, user_damping=1.0)
    weighted = np.log1p(dense) / np.sqrt(np.maximum(1, (dense > 0).sum(axis=1)))[:, None]
    norms = np.sqrt((weighted**2).sum(axis=0))
    full = weighted.T @ weighted / (np.outer(norms, norms) + 2.0)
    np.fill_diagonal(full, 0)
    for item in range(20):
        best = sorted((n for n in range(20) if full[item, n] > 0), key=lambda n: (-round(full[item, n], 6), n))[:3]
        assert sorted(n for n, _ in model.similar(item, 20)) == sorted(best)
    assert model.similarity.nnz > 40


def test_of_equal_neighbours_the_lower_numbers_stay() -> None:
    # Items 0 to 3 always go together: each is equally near to the other three.
    matrix = matrix_of([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]])
    model = fitted("item_knn", matrix, neighbours=2, shrinkage=0.0, user_damping=0.0)
    assert [n for n, _ in model.similar(0, 9)] == [1, 2]
    assert [n for n, _ in model.similar(1, 9)] == [0, 2]
    assert [n for n, _ in model.similar(2, 9)] == [0, 1]


# --- ALS ---------------------------------------------------------------------------------------------------------


def test_als_finds_the_planted_taste() -> None:
    matrix = planted()
    model = fitted("als", matrix, factors=2, regularization=5.0)
    rows = np.arange(matrix.preference.shape[0])
    scores = model.score_block(matrix.preference, rows)
    mask_items(scores, matrix.preference)
    best = top_items(scores, 2)[0]
    assert len(best) == 60
    assert [user for user in rows if not set(best[user]) <= set(GROUPS[user % 2])] == []
    assert {n for n, _ in model.similar(0, 3)} == {1, 2, 3}
    assert model.similar(9, 3) == []
    assert 9 not in {n for n, _ in model.similar(0, 20)}


def test_als_scores_solve_the_equation() -> None:
    """The score of the docstring, from the dense normal equation."""
    matrix = planted(users=12)
    model = fitted("als", matrix, alpha=3.0)
    items = model.item_factors.astype(np.float64)
    scores = model.score_block(matrix.preference, np.arange(12))
    for user in range(12):
        preference = matrix.preference[user].toarray()[0].astype(np.float64)
        confidence = 1 + 3.0 * np.log1p(preference)
        system = items.T @ (confidence[:, None] * items) + 0.5 * np.eye(4)
        vector = np.linalg.solve(system, items.T @ (confidence * (preference > 0)))
        np.testing.assert_allclose(scores[user], items @ vector, atol=1e-4)


def test_als_folds_in_who_was_not_there() -> None:
    matrix = planted()
    model = fitted("als", matrix)
    known = model.score_block(matrix.preference[:5], np.arange(5))
    np.testing.assert_allclose(model.score_block(matrix.preference[:5]), known, atol=1e-6)
    mixed = model.score_block(matrix.preference[:5], np.array([0, -1, 2, -1, 4]))
    np.testing.assert_allclose(mixed, known, atol=1e-6)
    assert model.score_block(sparse.csr_matrix((1, 10), dtype=np.float32)).tolist() == [[0.0] * 10]


def test_als_is_deterministic_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = planted(users=400)
    monkeypatch.setattr("spark_jobs.models.als.KERNEL_THREADS", 3)
    first = fitted("als", matrix)
    monkeypatch.setattr("spark_jobs.models.als.KERNEL_THREADS", 1)
    again = fitted("als", matrix)
    other_seed = fitted("als", matrix, seed=8)
    assert first.item_factors.tobytes() == again.item_factors.tobytes()
    assert first.user_factors.tobytes() == again.user_factors.tobytes()
    assert not np.allclose(first.item_factors, other_seed.item_factors)


def test_als_reasons_are_the_terms_of_the_score() -> None:
    matrix = planted()
    model = fitted("als", matrix)
    assert isinstance(model, Als)
    history = matrix.preference[0]
    asked = list(range(10))
    terms = model.contributions(history, asked)
    assert terms.shape == (10, 3)
    np.testing.assert_allclose(terms.sum(axis=1), model.score_block(history, np.array([0]))[0], atol=1e-5)
    largest = history.indices[terms.argmax(axis=1)]
    reasons = model.explain(history, 0, asked)
    assert [first for first, _ in reasons[:9]] == largest[:9].tolist()
    assert reasons[9] == (None, None), "nothing speaks for an item that nobody touched"


@pytest.mark.parametrize("name", ["item_knn", "als", "rp3beta", "ease", "ials", "graph_filter"])
def test_without_its_reason_an_item_falls(name: str) -> None:
    matrix = planted()
    model = fitted(name, matrix)
    told = 0
    for user in range(20):
        history = matrix.preference[user]
        scores = model.score_block(history)
        mask_items(scores, history)
        best = int(top_items(scores, 1)[0][0, 0])
        first, second = model.explain(history, user, [best])[0]
        assert first in history.indices
        assert second != first
        without = history.copy()
        without.data[without.indices == first] = 0
        without.eliminate_zeros()
        assert model.score_block(without)[0, best] < scores[0, best]
        told += 1
    assert told == 20


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MODELS))
def test_saved_and_loaded_scores_the_same(name: str, tmp_path: Path) -> None:
    said = {number: Described([("category", "ab"[number % 2]), ("tags", str(number % 3))]) for number in range(10)}
    matrix = replace(planted(), content=build_content(said, item_count=10))
    model = fitted(name, matrix)
    assert isinstance(model, Model)
    model.save(tmp_path / "m")
    first = manifest_digest(tmp_path / "m")
    model.save(tmp_path / "m")  # a retry
    assert manifest_digest(tmp_path / "m") == first
    loaded = load_model(tmp_path / "m")
    assert (loaded.name, loaded.source, dict(loaded.params)) == (name, model.source, dict(model.params))
    assert Source(loaded.source)
    rows = np.arange(10)
    original = model.score_block(matrix.preference[:10], rows)
    assert np.abs(original).max() > 0
    np.testing.assert_array_equal(loaded.score_block(matrix.preference[:10], rows), original)
    assert loaded.similar(1, 3) == model.similar(1, 3)


def flip_a_byte(folder: Path) -> None:
    path = folder / "item_scores.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def lie_about_the_shape(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"]["item_scores.npy"]["shape"] = [5]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def point_elsewhere(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"]["../x.npy"] = manifest["files"].pop("item_scores.npy")
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    (folder / "item_scores.npy").rename(folder.parent / "x.npy")  # whole and unchanged, but not ours to read


def pickle_inside(folder: Path) -> None:
    import hashlib

    np.save(folder / "item_scores.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    digest = hashlib.sha256((folder / "item_scores.npy").read_bytes()).hexdigest()
    manifest["files"]["item_scores.npy"]["sha256"] = digest
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (flip_a_byte, "item_scores.npy has SHA-256 .* its manifest says"),
        (lambda f: (f / "item_scores.npy").unlink(), "names 'item_scores.npy', which is not there"),
        (lambda f: (f / MANIFEST_FILE).write_text("{"), "no model manifest"),
        (
            lambda f: (f / MANIFEST_FILE).write_text('{"format": 2, "model": "a", "params": {}, "files": {}}'),
            "format 2",
        ),
        (lie_about_the_shape, r"is <f4\[10\], its manifest says <f4\[5\]"),
        (point_elsewhere, r"names '\.\./x\.npy'"),
        (pickle_inside, "is no plain array"),
    ],
)
def test_tampering_is_noticed(tamper, message: str, tmp_path: Path) -> None:
    fitted("popularity", planted()).save(tmp_path / "m")
    tamper(tmp_path / "m")
    with pytest.raises(ContractError, match=message):
        load_model(tmp_path / "m")


def test_another_models_folder_is_refused(tmp_path: Path) -> None:
    fitted("popularity", planted()).save(tmp_path / "m")
    with pytest.raises(ContractError, match="holds model 'popularity', expected 'als'"):
        Als.load(tmp_path / "m")


# --- recipes -----------------------------------------------------------------------------------------------------


def test_every_model_has_a_recipe_and_its_parameters() -> None:
    assert set(RECIPES) == {"popularity", "item_knn", "als"}, "what a night trains unless it is told otherwise"
    assert set(RECIPES) | set(MORE_RECIPES) == set(MODELS)
    assert not set(RECIPES) & set(MORE_RECIPES)
    for name in MODELS:
        recipe = default_recipe(name)
        assert set(recipe) == {"model", "weights", "half_life_days", "params"}
        assert build_model(name, recipe["params"]).params == recipe["params"]
        assert json.loads(json.dumps(recipe)) == recipe
    default_recipe("als")["params"]["factors"] = 1
    assert default_recipe("als")["params"]["factors"] != 1, "a copy, not the defaults themselves"


def test_the_engine_brings_its_own_ridge() -> None:
    native, mllib = default_recipe("als"), default_recipe("als", engine="mllib")
    assert (native["params"]["engine"], mllib["params"]["engine"]) == ("native", "mllib")
    assert native["params"]["regularization"] != mllib["params"]["regularization"]
    assert default_recipe("popularity", engine="mllib") == default_recipe("popularity")


def test_who_wants_a_session_of_spark() -> None:
    native, mllib = default_recipe("als"), default_recipe("als", engine="mllib")
    assert [is_fitted_by_spark(r) for r in (native, mllib, default_recipe("popularity"))] == [False, True, False]
    for inner, answer in ((native, False), (mllib, True)):
        weights = {"<5": {"als": 1.0, "popularity": 0.5}}
        blended = blend_recipe({"als": inner, "popularity": default_recipe("popularity")}, weights)
        assert is_fitted_by_spark(blended) is answer
        assert is_fitted_by_spark(ranker_recipe(blended)) is answer


def test_unknown_names_get_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no model 'item_kn'.*did you mean 'item_knn'\?"):
        default_recipe("item_kn")
    with pytest.raises(DataError, match=r"did you mean 'als'\?"):
        build_model("alss", {})
    with pytest.raises(DataError, match=r"als has no parameter 'factor'; did you mean 'factors'\?"):
        build_model("als", {"factor": 3})
    with pytest.raises(DataError, match=r"als engine 'nativ', .*did you mean 'native'\?"):
        build_model("als", {"engine": "nativ"})
    monkeypatch.setattr("pyspark.sql.SparkSession.getActiveSession", lambda: None)
    with pytest.raises(DataError, match="runs inside a Spark job"):
        fitted("als", planted(), engine="mllib")
