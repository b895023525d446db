"""The further models of the matrix against slow oracles, on data that is lopsided and small."""

from __future__ import annotations

from math import log, log2
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from feature_repo.contracts.errors import DataError
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.blend import blend, standardize, standardize_rows
from spark_jobs.models.ease import Ease
from spark_jobs.models.factory import build_model
from spark_jobs.models.graph_filter import GraphFilter, _terms_needed
from spark_jobs.models.ials import Ials, _blocks, solve_rows
from spark_jobs.models.item_pairs import item_pairs
from spark_jobs.models.linear import linear_terms
from spark_jobs.models.spectral import leading_vectors, right_singular_vectors

USERS, ITEMS = 30, 14


def lopsided(seed: int = 4) -> np.ndarray:
    """Item 0 is everybody's, item 12 is one person's, item 13 nobody's; user 5 has nothing, user 6 nearly all."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((USERS, ITEMS)) < 0.25) * rng.integers(1, 9, size=(USERS, ITEMS))
    dense[:, 0] = 1
    dense[:, 12:] = 0
    dense[7, 12] = 3
    dense[5] = 0
    dense[6, 1:12] = 2
    return dense.astype(np.float64)


def matrix_of(dense: np.ndarray) -> InteractionMatrix:
    preference = sparse.csr_matrix(dense.astype(np.float32))
    subjects = np.array([f"u:{n:04d}" for n in range(len(dense))])
    return InteractionMatrix(subjects, preference, np.zeros(preference.nnz, np.int64))


def fitted(name: str, dense: np.ndarray, **params: object) -> Model:
    model = build_model(name, params)
    model.fit(matrix_of(dense))
    return model


def scores_of(model: Model, dense: np.ndarray) -> np.ndarray:
    return model.score_block(matrix_of(dense).preference)


def strong(dense: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: log2(1 + value))(dense)


# --- RP3beta -----------------------------------------------------------------------------------------------------


def test_rp3beta_against_a_walk_step_by_step() -> None:
    dense = lopsided()
    x = strong(dense)
    alpha, beta = 0.7, 0.4
    walk = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        for u in range(USERS):
            for j in range(ITEMS):
                if i != j and x[u, i] > 0 and x[u, j] > 0:
                    there = (x[u, i] / x[:, i].sum()) ** alpha * (x[u, j] / x[u].sum()) ** alpha
                    walk[i, j] += there / (dense[:, j] > 0).sum() ** beta
    model = fitted("rp3beta", dense, alpha=alpha, beta=beta, neighbours=ITEMS)
    np.testing.assert_allclose(scores_of(model, dense), x @ walk, rtol=1e-4)
    assert model.similar(13, 5) == []
    order = sorted((j for j in range(ITEMS) if walk[2, j] > 0), key=lambda j: (-walk[2, j], j))
    assert [number for number, _ in model.similar(2, 3)] == order[:3]

    short = fitted("rp3beta", dense, alpha=alpha, beta=beta, neighbours=2)
    kept = short.links.toarray()
    assert np.diff(short.links.indptr).max() == 2
    best = [sorted(range(ITEMS), key=lambda j, i=i: (-walk[i, j], j))[:2] for i in range(13)]
    assert [sorted(np.flatnonzero(kept[i])) for i in range(13)] == [sorted(row) for row in best]


# --- graph filters -----------------------------------------------------------------------------------------------


def dense_filter(dense: np.ndarray, *, factors: int, low_pass: float, sharpening: float) -> np.ndarray:
    """The formulas of the docstring with the whole item-item matrix and a full decomposition."""
    x = strong(dense)

    def root_inverse(sums: np.ndarray) -> np.ndarray:
        return np.array([1 / np.sqrt(s) if s > 0 else 0.0 for s in sums])

    graph = root_inverse(x.sum(axis=1))[:, None] * x * root_inverse(x.sum(axis=0))
    p = graph.T @ graph
    vectors = np.linalg.svd(graph)[2][:factors].T
    degrees = x.sum(axis=0)
    blurred = x @ p + low_pass * ((x * root_inverse(degrees)) @ vectors @ vectors.T) * np.sqrt(degrees)
    h = sharpening
    k1 = -blurred @ p
    k2 = -(blurred + h / 2 * k1) @ p
    k3 = -(blurred + h / 2 * k2) @ p
    k4 = -(blurred + h * k3) @ p
    return blurred + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


FORMS = {"people": (0, 0.0), "pairs": (10**6, 0.0), "sparse pairs": (10**6, 1.0)}
"""Ways to apply P: through people, by P itself, and by P to blocks that are kept sparse."""


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    products, share = FORMS[request.param]
    monkeypatch.setattr("spark_jobs.models.item_pairs.PRODUCTS_PER_ENTRY", products)
    monkeypatch.setattr("spark_jobs.models.item_pairs.SPARSE_SHARE", share)
    return str(request.param)


@pytest.mark.parametrize("sharpening", [0.0, 0.8, 2.5])
@pytest.mark.parametrize("factors", [3, 12])
def test_graph_filter_against_the_dense_formulas(
    factors: int, sharpening: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what the series leaves out stays small: within a hundredth of the largest score."""
    monkeypatch.setattr("spark_jobs.models.graph_filter.CELLS_PER_BLOCK", 7 * (USERS + ITEMS))
    dense = lopsided()
    model = fitted("graph_filter", dense, factors=factors, low_pass=0.3, sharpening=sharpening)
    expected = dense_filter(dense, factors=factors, low_pass=0.3, sharpening=sharpening)
    found = scores_of(model, dense)
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    assert np.abs(found[:, 13]).max() == 0, "nobody had it"
    assert isinstance(model, GraphFilter)
    assert (model._pairs is None) == (form == "people")


def test_a_graph_filter_is_one_model_however_its_products_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors, scores and what was loaded agree but for rounding, also with `popular_power`."""
    dense = lopsided()
    params = {"factors": 5, "low_pass": 0.4, "sharpening": 1.5, "popular_power": 0.2}
    found = {}
    for name, (products, share) in FORMS.items():
        monkeypatch.setattr("spark_jobs.models.item_pairs.PRODUCTS_PER_ENTRY", products)
        monkeypatch.setattr("spark_jobs.models.item_pairs.SPARSE_SHARE", share)
        model = fitted("graph_filter", dense, **params)
        assert isinstance(model, GraphFilter)
        model.save(tmp_path / name)
        again = GraphFilter.load(tmp_path / name)
        assert scores_of(again, dense).tobytes() == scores_of(model, dense).tobytes()
        found[name] = model.values, model.vectors, scores_of(model, dense)
    for name in ("pairs", "sparse pairs"):
        for mine, theirs in zip(found[name], found["people"], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=2e-3 * np.abs(theirs).max())


def test_pairs_are_built_where_histories_are_short() -> None:
    """Lengths 1, 2, 3: 14 products for 6 entries. One more history of 9 makes it 95 for 15, one of 20 beyond 8 each."""
    short = sparse.csr_matrix(np.array([[1, 0, 0], [1, 1, 0], [1, 2, 1]], np.float32))
    pairs = item_pairs(short)
    assert pairs is not None
    assert pairs.toarray().tolist() == [[3.0, 3.0, 1.0], [3.0, 5.0, 2.0], [1.0, 2.0, 1.0]]

    def of_lengths(*lengths: int) -> sparse.csr_matrix:
        return sparse.csr_matrix(np.arange(max(lengths)) < np.array(lengths)[:, None], dtype=np.float32)

    assert item_pairs(of_lengths(1, 2, 3, 9)) is not None
    assert item_pairs(of_lengths(8)) is not None
    assert item_pairs(of_lengths(9)) is None
    assert item_pairs(of_lengths(1, 2, 3, 20)) is None


def test_sharpening_at_once_is_refitting(form: str) -> None:
    dense = lopsided()
    model = fitted("graph_filter", dense, factors=4, sharpening=0.5)
    assert isinstance(model, GraphFilter)
    other = model.refit({**model.params, "sharpening": 2.0, "low_pass": 0.1})
    again = fitted("graph_filter", dense, factors=4, sharpening=2.0, low_pass=0.1)
    assert other is not None
    np.testing.assert_array_equal(scores_of(other, dense), scores_of(again, dense))
    assert model.refit({**model.params, "factors": 5}) is None


def test_the_series_is_as_long_as_it_matters() -> None:
    assert [_terms_needed(reach) for reach in (0.1, 0.3, 0.47, 0.8, 2.5)] == [1, 2, 2, 3, 4]


def test_singular_vectors_are_those_of_the_full_decomposition() -> None:
    matrix = sparse.csr_matrix(lopsided().astype(np.float32))
    vectors, values = right_singular_vectors(matrix, 3, seed=1, iterations=8)
    _, expected, rows = np.linalg.svd(lopsided())
    np.testing.assert_allclose(values, expected[:3], rtol=1e-4)
    np.testing.assert_allclose(np.abs((vectors * rows[:3].T).sum(axis=0)), 1, atol=1e-3)
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(3)]
    assert (largest > 0).all()
    again, _ = right_singular_vectors(matrix, 3, seed=1, iterations=8)
    assert vectors.tobytes() == again.tobytes()
    assert right_singular_vectors(matrix, 99, seed=1)[0].shape == (ITEMS, ITEMS)
    assert right_singular_vectors(sparse.csr_matrix((3, 0), dtype=np.float32), 2, seed=1)[0].shape == (0, 0)
    by_square = leading_vectors(sparse.csr_matrix(matrix.T @ matrix), 3, seed=1, iterations=8)
    np.testing.assert_allclose(by_square[1], values, rtol=1e-4)
    np.testing.assert_allclose(by_square[0], vectors, atol=1e-3)
    assert leading_vectors(sparse.csr_matrix((0, 0), dtype=np.float32), 2, seed=1)[0].shape == (0, 0)


# --- EASE --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dropout", "damping"), [(0.0, 0.0), (0.25, 1.0)])
def test_ease_minimises_what_it_says(dropout: float, damping: float) -> None:
    """Column by column: ridge regression of an item on all others, by the normal equations."""
    dense = lopsided()
    x = strong(dense) / np.maximum((dense > 0).sum(axis=1), 1)[:, None] ** (damping / 2)
    ridge = 3.0 + dropout / (1 - dropout) * (x**2).sum(axis=0)
    expected = np.zeros((ITEMS, ITEMS))
    for j in range(ITEMS):
        others = [i for i in range(ITEMS) if i != j]
        system = x[:, others].T @ x[:, others] + np.diag(ridge[others])
        expected[others, j] = np.linalg.solve(system, x[:, others].T @ x[:, j])
    model = fitted("ease", dense, regularization=3.0, dropout=dropout, user_damping=damping)
    assert isinstance(model, Ease)
    np.testing.assert_allclose(model.weights, expected, atol=1e-5)
    np.testing.assert_allclose(scores_of(model, dense), strong(dense) @ expected, atol=1e-4)


def test_ease_says_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"dropout must be in \[0, 1\), got 1.0"):
        build_model("ease", {"dropout": 1.0})
    with pytest.raises(DataError, match="raise regularization"):
        fitted("ease", lopsided(), regularization=0.0)  # item 13 has nobody
    monkeypatch.setattr("spark_jobs.models.ease.MOST_ITEMS", 10)
    with pytest.raises(DataError, match="at most 10 items, the catalogue has 14"):
        fitted("ease", lopsided())


# --- iALS --------------------------------------------------------------------------------------------------------


def test_ials_rows_solve_their_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.models.ials.CELLS_PER_BLOCK", 40)  # several blocks of rows of unequal length
    dense = lopsided()
    x = strong(dense)
    rng = np.random.default_rng(2)
    items = rng.standard_normal((ITEMS, 4)).astype(np.float32)
    ridges = rng.random(USERS).astype(np.float32) + 0.1
    found = solve_rows(
        sparse.csr_matrix(x.astype(np.float32)), items, np.zeros((USERS, 4), np.float32),
        unobserved=0.3, ridges=ridges, steps=24,
    )  # fmt: skip
    wide = items.astype(np.float64)
    for user in range(USERS):
        system = 0.3 * wide.T @ wide + wide.T @ (x[user][:, None] * wide) + ridges[user] * np.eye(4)
        np.testing.assert_allclose(found[user], np.linalg.solve(system, wide.T @ x[user]), atol=1e-4)
    assert found[5].tolist() == [0.0] * 4, "an empty history"


def test_ials_blocks_have_every_row_once() -> None:
    lengths = np.array([3, 0, 1, 9, 1, 2, 7, 7, 0, 1])
    indptr = np.r_[0, np.cumsum(lengths)]
    blocks = list(_blocks(indptr, 400_000))
    assert len(blocks) > 3
    assert sorted(int(row) for block in blocks for row in block) == [0, 2, 3, 4, 5, 6, 7, 9]


def test_ials_loses_less_from_sweep_to_sweep_and_folds_in() -> None:
    dense = lopsided()
    x = strong(dense)
    losses = []
    for sweeps in (1, 2, 4, 8):
        model = fitted("ials", dense, factors=3, iterations=sweeps, unobserved=0.2, regularization=0.05, ridge_power=1)
        assert isinstance(model, Ials)
        users, items = model.user_factors.astype(np.float64), model.item_factors.astype(np.float64)
        product = users @ items.T
        fit = (x * (1 - product) ** 2).sum() + 0.2 * (product**2).sum()
        evidence = (dense > 0).sum(axis=1) + 0.2 * ITEMS, (dense > 0).sum(axis=0) + 0.2 * USERS
        ridge = (evidence[0] * (users**2).sum(axis=1)).sum() + (evidence[1] * (items**2).sum(axis=1)).sum()
        losses.append(fit + 0.05 * ridge)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1.02 * losses[-1]
    known = model.score_block(matrix_of(dense).preference, np.arange(USERS))
    np.testing.assert_allclose(scores_of(model, dense), known, atol=1e-5)
    assert known[:, 13].tolist() == [0.0] * USERS
    assert model.similar(13, 3) == []


def test_ials_is_the_same_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.models.ials.CELLS_PER_BLOCK", 200)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr("spark_jobs.models.ials.KERNEL_THREADS", threads)
        found.append(fitted("ials", lopsided(), factors=4))
    assert found[0].item_factors.tobytes() == found[1].item_factors.tobytes()
    assert found[0].item_factors.tobytes() != fitted("ials", lopsided(), factors=4, seed=8).item_factors.tobytes()


def test_ials_reasons_are_the_terms_of_the_score() -> None:
    dense = lopsided()
    model = fitted("ials", dense, factors=4)
    assert isinstance(model, Ials)
    history = matrix_of(dense).preference[6]
    terms = model.contributions(history, [12, 3])
    assert terms.shape == (2, history.nnz)
    np.testing.assert_allclose(terms.sum(axis=1), model.score_block(history)[0, [12, 3]], atol=1e-4)
    order = history.indices[np.argsort(-terms[1], kind="stable")]
    assert model.explain(history, 6, [3])[0][0] == order[0]


def test_popular_items_can_be_held_back() -> None:
    dense = lopsided()
    people = np.maximum((dense > 0).sum(axis=0), 1)
    plain, held = (fitted("ials", dense, factors=4, popular_power=power) for power in (0.0, 0.5))
    np.testing.assert_allclose(scores_of(held, dense), scores_of(plain, dense) / people**0.5, rtol=1e-4, atol=1e-6)


# --- item-kNN ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["tfidf", "bm25"])
def test_item_knn_weightings_against_their_formulas(weighting: str) -> None:
    dense = lopsided()
    having = (dense > 0).sum(axis=0)
    lengths = dense.sum(axis=1)
    weighted = np.zeros_like(dense)
    for u in range(USERS):
        for i in np.flatnonzero(dense[u]):
            rarity = log((1 + USERS) / (1 + having[i]))
            norm = 1.2 * (1 - 0.75 + 0.75 * lengths[u] / lengths.mean())
            tf = log(1 + dense[u, i]) if weighting == "tfidf" else dense[u, i] * 2.2 / (dense[u, i] + norm)
            weighted[u, i] = tf * rarity
    norms = np.sqrt((weighted**2).sum(axis=0))
    expected = weighted.T @ weighted / (np.outer(norms, norms) + 2.0)
    np.fill_diagonal(expected, 0)
    model = fitted("item_knn", dense, weighting=weighting, shrinkage=2.0, user_damping=0.0, neighbours=ITEMS)
    np.testing.assert_allclose(model.similarity.toarray(), expected, atol=1e-5)


def test_an_unknown_weighting_gets_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'tfidf'"):
        build_model("item_knn", {"weighting": "tf-idf"})


# --- what is shared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rp3beta", "ease", "graph_filter"])
def test_terms_add_up_to_the_score(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.models.linear.TERMS_PER_BLOCK", 3 * ITEMS)
    dense = lopsided()
    model = fitted(name, dense)
    history = matrix_of(dense).preference[6]
    terms = linear_terms(model.score_block, history, [12, 3, 3])
    np.testing.assert_allclose(terms.sum(axis=1), model.score_block(history)[0, [12, 3, 3]], rtol=1e-4, atol=1e-6)
    first, second = model.explain(history, 6, [3])[0]
    assert first == history.indices[terms[1].argmax()]
    assert second != first


def test_rows_are_standardized_alike_however_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(5).gamma(0.2, size=(9, 501)).astype(np.float32)
    scores[2, 7], scores[4] = -np.inf, 3.0
    found = []
    for cells in (1, 1_200, 10**6):
        monkeypatch.setattr("spark_jobs.models.blend.CELLS_AT_ONCE", cells)
        found.append([array.tobytes() for array in standardize_rows(scores.copy())])
    assert found[0] == found[1] == found[2]
    alone = np.delete(scores[2], 7).astype(np.float64)
    np.testing.assert_allclose(
        np.delete(standardize(scores.copy())[2], 7), (alone - alone.mean()) / alone.std(), atol=1e-5
    )
    assert not standardize(scores.copy())[4].any()
    assert standardize_rows(np.zeros((3, 0), np.float32))[1].tolist() == [0.0, 0.0, 0.0]


def test_blend_by_hand() -> None:
    scores = np.array([[1, 3, 5, np.nan], [2, 2, 2, 2]], np.float32)
    scores[0, 3] = -np.inf
    root = np.sqrt(8 / 3)
    scaled = standardize(scores.copy())
    np.testing.assert_allclose(scaled[0, :3], [-2 / root, 0, 2 / root], rtol=1e-6)
    assert scaled[0, 3] == -np.inf
    assert scaled[1].tolist() == [0.0] * 4, "a row that is all alike has no opinion"
    other = np.array([[1, 0, 0, 0], [0, 0, 0, 1]], np.float32)
    total = blend([(2.0, scores), (0.5, other)])
    deviation = np.sqrt(3) / 4
    np.testing.assert_allclose(total[0, :3], [-4 / root + 0.5 * 0.75 / deviation, *(
        2 * z - 0.5 * 0.25 / deviation for z in (0, 2 / root)
    )], rtol=1e-5)  # fmt: skip
    assert total[1].argmax() == 3
    with pytest.raises(ValueError, match="a blend of nothing"):
        blend([])
