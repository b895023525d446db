"""Trees in a request: LightGBM itself says what is right, of rows with everything that a value can be."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import pytest

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.tree_text import Trees, read_trees
from serving.native import parts
from serving.pipeline.tree_scores import Inputs, score_row, score_trees

WIDTH = 7
"""0-3 numbers, 4 and 5 categories, 6 nearly always zero."""


def rows_of(seed: int, count: int) -> np.ndarray:
    """Numbers with ties, huge and tiny ones, infinities, zeros of both signs and holes; categories, known and not."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(count, WIDTH)).round(1)
    table[:, 4] = rng.integers(-1, 70, count)
    table[:, 5] = rng.integers(0, 5, count) + rng.choice([0.0, 0.5], count)
    table[:, 6] = np.where(rng.random(count) < 0.7, 0.0, rng.normal(size=count))
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-36, -1e-36, 1e-30, 3e38, -3e38, 2.0**31, 1e9])
    where = rng.random((count, WIDTH)) < 0.15
    table[where] = rng.choice(odd, int(where.sum()))
    return table.astype(np.float32)


def grown(categories: list[int] | None = None, rounds: int = 25, seed: int = 3, **settings: Any) -> Any:
    rng = np.random.default_rng(seed)
    table = rows_of(seed, 900)
    table[:, 4] = np.clip(np.nan_to_num(table[:, 4], nan=np.nan, posinf=60, neginf=0), -1, 100)
    table[:, 5] = np.clip(np.nan_to_num(table[:, 5], nan=np.nan, posinf=4, neginf=0), 0, 100)
    taste = np.isin(np.nan_to_num(table[:, 4]).astype(int), [3, 5, 8, 33, 40, 64]) * 2.0 + (table[:, 1] > 0)
    labels = (taste + rng.normal(size=900) * 0.7 > 1.2).astype(int)
    given = {
        "objective": "lambdarank", "num_leaves": 9, "min_data_in_leaf": 8, "verbosity": -1, "num_threads": 1,
        "seed": 1, "deterministic": True, "cat_smooth": 1, "min_data_per_group": 5, "max_cat_to_onehot": 2, **settings,
    }  # fmt: skip
    names = [f"value_{n}" for n in range(WIDTH)]
    data = lightgbm.Dataset(
        table, label=labels, group=[30] * 30, feature_name=names, categorical_feature=categories or "auto"
    )
    return lightgbm.train(given, data, num_boost_round=rounds)


MODELS: dict[str, Callable[[], Any]] = {
    "as the night makes them": lambda: grown(),
    "with categories": lambda: grown([4, 5]),
    "zero is missing": lambda: grown(zero_as_missing=True),
    "nothing is missing": lambda: grown(use_missing=False),
    "one leaf": lambda: grown(rounds=2, min_data_in_leaf=600),
    "deep": lambda: grown([5], num_leaves=60, min_data_in_leaf=2),
}


def native(trees: Trees, table: np.ndarray) -> list[float]:
    """All values are the candidates' own."""
    count, width = table.shape
    scorer = parts.trees.TreeScorer(trees)
    own, numbers = array("f", table.ravel().tolist()), array("i", [0] * count)
    found: list[float] = scorer.scores(
        count, width, own, numbers, 0, array("f"), array("f"), 0, array("i", [0] * count), array("f")
    )
    return found


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_lightgbm(name: str) -> None:
    booster = MODELS[name]()
    trees = read_trees(booster.model_to_string())
    table = np.vstack([rows_of(11, 700), np.full((1, WIDTH), np.nan, np.float32), np.zeros((1, WIDTH), np.float32)])
    # Thresholds themselves, where a row lies on the edge.
    edges = np.array(trees.thresholds or [0.5])[np.arange(WIDTH * 40) % max(1, len(trees.thresholds))]
    table = np.vstack([table, edges.reshape(40, WIDTH).astype(np.float32)])
    expected = booster.predict(table, num_threads=1).tolist()
    assert [score_row(trees, row) for row in table.tolist()] == expected
    if parts.trees is not None:
        assert native(trees, table) == expected
    if name not in ("one leaf",):
        assert len(set(expected)) > 20


def test_the_models_of_these_tests_have_all_kinds_of_nodes() -> None:
    kinds = {kind for make in MODELS.values() for kind in read_trees(make().model_to_string()).kinds}
    assert any(kind & 1 for kind in kinds)  # categories
    assert {kind >> 2 & 3 for kind in kinds if not kind & 1} == {0, 1, 2}  # no, zero, NaN
    assert {kind >> 1 & 1 for kind in kinds if not kind & 1} == {0, 1}  # default left and right


def test_a_row_is_made_of_the_candidate_the_item_the_person_and_the_category() -> None:
    trees = read_trees(grown([4, 5]).model_to_string())
    rng = np.random.default_rng(2)
    items = rows_of(21, 10)[:, :2]
    numbers, places = rng.integers(0, 13, 40), rng.integers(0, 3, 40)  # three items that the file does not have
    own, user, by_category = rows_of(22, 40)[:, :2], rows_of(23, 1)[0, :1], rows_of(24, 3)[:, :2]
    whole = np.array(
        [
            [*own[n], *(items[numbers[n]] if numbers[n] < 10 else [np.nan] * 2), *user, *by_category[places[n]]]
            for n in range(40)
        ],
        np.float32,
    )
    inputs = Inputs(
        40, 2, array("f", own.ravel().tolist()), array("i", numbers.tolist()), 2, array("f", items.ravel().tolist()),
        array("f", user.tolist()), 2, array("i", places.tolist()), array("f", by_category.ravel().tolist()),
    )  # fmt: skip
    expected = [score_row(trees, row) for row in whole.tolist()]
    assert score_trees(trees, inputs) == expected
    if parts.trees is not None:
        assert parts.trees.TreeScorer(trees).scores(*inputs) == expected


@pytest.mark.skipif(parts.trees is None, reason="not compiled")
def test_native_code_refuses_candidates_of_another_shape() -> None:
    scorer = parts.trees.TreeScorer(read_trees(grown().model_to_string()))
    own, one = array("f", [0.0] * WIDTH), array("i", [0])
    with pytest.raises(ValueError, match="other values"):
        scorer.scores(1, WIDTH - 1, own, one, 0, array("f"), array("f"), 0, one, array("f"))
    with pytest.raises(ValueError, match="fewer candidates"):
        scorer.scores(2, WIDTH, own, one, 0, array("f"), array("f"), 0, one, array("f"))
    with pytest.raises(ValueError, match="category that is not there"):
        scorer.scores(1, WIDTH - 1, own, one, 0, array("f"), array("f"), 1, array("i", [1]), array("f", [0.0]))


def swapped(text: str, name: str, value: Callable[[list[str]], list[str]], tree: int = 0) -> str:
    """The text with another value of a field in one of its trees."""
    head, mark, rest = text.partition(f"Tree={tree}\n")
    lines = rest.split("\n")
    at = next(n for n, line in enumerate(lines) if line.startswith(f"{name}="))
    lines[at] = f"{name}={' '.join(value(lines[at].partition('=')[2].split(' ')))}"
    return head + mark + "\n".join(lines)


def test_what_is_no_sum_of_trees_is_refused() -> None:
    text = grown(rounds=3).model_to_string()
    assert len(read_trees(text).roots) == 4
    refused = {
        "cut short": text.partition("end of trees")[0],
        "no text of LightGBM": "forest" + text[4:],
        "num_class=3": text.replace("num_class=1", "num_class=3"),
        "got 'binary'": text.replace("objective=lambdarank", "objective=binary"),
        "random forest": text.replace("label_index=0", "label_index=0\naverage_output"),
        "names of inputs": text.replace("value_6", "value_5", 1),
        "calls itself '7'": text.replace("Tree=1\n", "Tree=7\n"),
        "linear": text.replace("is_linear=0", "is_linear=1", 1),
        "left_child has": swapped(text, "left_child", lambda words: words[1:]),
        "could not convert": swapped(text, "threshold", lambda words: ["high", *words[1:]]),
        "do not make one tree": swapped(text, "left_child", lambda words: [*words[:-1], "-2"]),
        "a child before it": swapped(text, "right_child", lambda words: [*words[:-1], "0"]),
        "an input that is none of 7": swapped(text, "split_feature", lambda words: ["7", *words[1:]]),
        "no kind that is known": swapped(text, "decision_type", lambda words: ["12", *words[1:]]),
        "is no number": swapped(text, "leaf_value", lambda words: ["nan", *words[1:]]),
        "a leaf at least": swapped(text, "num_leaves", lambda _: ["0"]),
        "none of 0": swapped(text, "decision_type", lambda words: ["1", *words[1:]]),
    }
    for words, broken in refused.items():
        assert broken != text, words
        with pytest.raises(ContractError, match=words):
            read_trees(broken)
    with_sets = grown([4, 5], rounds=3).model_to_string()
    assert read_trees(with_sets).bits
    for change in (lambda words: [*words[:-1], "99999"], lambda words: ["1", *words[1:]]):
        tree = next(
            n for n in range(3) if f"Tree={n}\n" in with_sets and "cat_boundaries" in with_sets.split("Tree=")[n + 1]
        )
        with pytest.raises(ContractError, match=f"tree {tree}"):
            read_trees(swapped(with_sets, "cat_boundaries", change, tree))


def test_more_trees_than_an_answer_has_time_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = grown(rounds=3).model_to_string()
    monkeypatch.setattr("feature_repo.contracts.tree_text.MOST_TREES", 2)
    with pytest.raises(ContractError, match="3 trees are more than answers may use, 2"):
        read_trees(text)
    monkeypatch.setattr("feature_repo.contracts.tree_text.MOST_TREES", 3)
    monkeypatch.setattr("feature_repo.contracts.tree_text.MOST_NODES", 20)
    with pytest.raises(ContractError, match="nodes are more than"):
        read_trees(text)
