"""Reasons are the model's own: with the item that is named as the reason taken out of the history, the score falls.

Here are the models that read the catalogue, the order or the moments of a history, and the first stage of the ranker;
`test_models_kernels`, `test_models_sequences` and `test_blend_model` have the others, `tests/spark/test_train_models`
als by MLlib.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from spark_jobs.evaluation.split import split_by_time
from spark_jobs.models.base import Model
from spark_jobs.models.factory import build_sequence_model, fit
from spark_jobs.models.matrix import histories_of
from spark_jobs.models.ranker import Ranker
from spark_jobs.models.ranking import mask_items, top_items
from spark_jobs.models.recipes import default_recipe
from spark_jobs.models.sequences import Sequences, make_sequences
from spark_jobs.models.training_data import TrainingData
from tests.unit import test_ranker
from tests.unit.test_content_models import COUNT, GIFTS, content_of, fitted

NOBODYS = 7
"""An item of no session: it stands where the reason stood, so that the others keep their places."""
SESSIONS = [[0, 1, 2], [1, 3, 4], [2, 0, 5], [0, 1, 5, 6], [3, 2, 4], [1, 0, 6], [6, 5]]
HOUR, DAY = 3_600_000_000, 86_400_000_000


def without(history: sparse.csr_matrix, item: int) -> sparse.csr_matrix:
    left = history.copy()
    left.data[left.indices == item] = 0
    left.eliminate_zeros()
    return left


def falls_without_its_reason(model: Model, history: sparse.csr_matrix, items: list[int]) -> int:
    """How many of the items have a reason; each score falls without it, more than without the second one."""
    scores = model.score_block(history)[0]
    told = 0
    for item, (first, second) in zip(items, model.explain(history, -1, items), strict=True):
        assert (first is None) == (scores[item] <= 0), "what has a score has a reason"
        if first is None:
            continue
        assert first in history.indices
        lower = model.score_block(without(history, first))[0, item]
        assert lower < scores[item]
        if second is not None:
            assert second in history.indices
            assert lower <= model.score_block(without(history, second))[0, item] < scores[item]
        told += 1
    return told


@pytest.mark.parametrize("name", ["content", "segment_popularity"])
def test_models_of_the_catalogue(name: str) -> None:
    liked = np.array(
        [[3, 1, 0, 1, 0, 0, 0], [1, 0, 2, 0, 0, 0, 0], [0, 7, 1, 0, 0, 5, 0], [0, 0, 4, 2, 0, 0, 1]], np.float32
    )
    model = fitted(name, content_of(GIFTS), liked)
    told = 0
    for row in liked:
        history = sparse.csr_matrix(row[None, :])
        told += falls_without_its_reason(model, history, list(range(COUNT)))
    assert told >= 15


def test_what_is_bought_again_is_its_own_reason() -> None:
    """Visits of three items by two people, in days; of what a person never had there is no reason and no score."""
    bought = {0: [(0, 0), (1, 2), (0, 7), (0, 14), (1, 20), (2, 25)], 1: [(2, 3), (2, 13), (1, 24)]}

    def sequences(visits: list[list[tuple[int, int]]]) -> Sequences:
        flat = [visit for of_one in visits for visit in of_one]
        starts = np.r_[0, np.cumsum([len(of_one) for of_one in visits])].astype(np.int64)
        items, days = (np.array([visit[n] for visit in flat]) for n in (0, 1))
        weights = np.ones(len(flat), np.float32)
        return Sequences(starts, items.astype(np.int32), weights, days.astype(np.int64) * DAY, 4, 28 * DAY)

    model = build_sequence_model("repurchase", {"due_power": 0.5})
    model.fit(sequences(list(bought.values())))
    told = 0
    for visits in bought.values():
        asked = sequences([visits])
        scores = model.score_sequences(asked)[0]
        for item, (first, second) in enumerate(model.explain_sequence(asked, [0, 1, 2, 3])):
            assert second is None
            assert (first is None) == (scores[item] == 0)
            if first is None:
                continue
            left = model.score_sequences(sequences([[visit for visit in visits if visit[0] != first]]))[0]
            assert left[item] == 0 < scores[item]
            others = np.arange(4) != item
            np.testing.assert_array_equal(left[others], scores[others])
            told += 1
    assert told == 5


@pytest.mark.parametrize("hop", [0.0, 0.3])
def test_transitions_between_sessions(hop: float) -> None:
    model = build_sequence_model("session_transitions", {"hop": hop})
    model.fit(make_sequences(SESSIONS, item_count=NOBODYS + 1))
    told = 0
    for prefix in ([0, 1], [4, 3, 2], [5, 0], [1, 6, 3, 0]):
        asked = make_sequences([prefix], item_count=NOBODYS + 1)
        scores = model.score_sequences(asked)[0]
        assert scores[NOBODYS] == 0
        for item in np.flatnonzero(scores).tolist():
            first, second = model.explain_sequence(asked, [item])[0]
            assert first in prefix
            assert second != first
            lower = {}
            for gone in [reason for reason in (first, second) if reason is not None]:
                left = make_sequences([[NOBODYS if had == gone else had for had in prefix]], item_count=NOBODYS + 1)
                lower[gone] = model.score_sequences(left)[0, item]
                assert lower[gone] < scores[item]
            assert lower[first] == min(lower.values())
            told += 1
    assert told > 15


def test_the_first_stage_of_the_ranker() -> None:
    """The trees order what the first stage brought, and its reasons are that stage's."""
    split = split_by_time(test_ranker.planted(), cut_off=test_ranker.CUT_OFF, item_count=test_ranker.ITEMS)
    features = test_ranker.Features()
    data = TrainingData(split.train, item_count=test_ranker.ITEMS, cut_off=split.test_start, features=features)
    recipe = test_ranker.recipe_of({**default_recipe("item_knn"), "half_life_days": None})
    model, matrix = fit(recipe, data)
    assert isinstance(model, Ranker)
    assert model.text, "it has trees"
    assert model.first is not None
    told = 0
    for row in range(0, 60, 6):
        history = histories_of(matrix, np.array([row]))
        scores = model.score_block(history, np.array([row]))
        mask_items(scores, history)
        listed = top_items(scores, 5)[0][0].tolist()
        before = model.first.score_block(history)[0]
        for item, (first, _) in zip(listed, model.explain(history, row, listed), strict=True):
            left = {had: model.first.score_block(without(history, had))[0, item] for had in history.indices.tolist()}
            assert left[first] == pytest.approx(min(left.values()), rel=1e-5)
            assert left[first] < before[item]
            told += 1
    assert told == 50
