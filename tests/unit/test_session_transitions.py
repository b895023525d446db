"""The model `session_transitions` against loops, and against `session_knn`, whose sum it is."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest

from spark_jobs.evaluation.session_choice import choose_session_recipe
from spark_jobs.models import session_transitions
from spark_jobs.models.factory import build_sequence_model
from spark_jobs.models.recipes import SESSION_MANNERS
from spark_jobs.models.sequences import Sequences, make_sequences
from spark_jobs.models.session_transitions import SessionTransitions

SESSIONS = [[0, 1, 2], [1, 3, 3, 1, 4], [4], [], [2, 0, 5], [0, 1, 5, 6, 1], [3, 2], [1, 0], [5, 5]]
ITEMS = 9  # 7 and 8 are nobody's
PARAMS = {
    "reads": [ITEMS] * 4, "sessions_per_item": 99, "reach": 9, "hop": 0.0, "place_decay": 1.3, "distance_decay": 2.0,
    "length_power": 0.5, "idf_power": 1.5, "recency": 0.8, "ahead": 1.0, "behind": 0.6, "repeat": 1.1,
}  # fmt: skip
PREFIXES = [[0, 1], [7], [4, 1, 4], [5, 2, 0, 3, 1], [3], [1, 1, 3, 3, 1], []]


def fitted(**params: object) -> SessionTransitions:
    model = build_sequence_model("session_transitions", {**PARAMS, **params})
    model.fit(make_sequences(SESSIONS, item_count=ITEMS))
    assert isinstance(model, SessionTransitions)
    return model


def collapsed(session: list[int]) -> list[int]:
    return [item for place, item in enumerate(session) if place == 0 or session[place - 1] != item]


def slow_rows(p: dict) -> np.ndarray:
    """next(i -> j), one session and one pair at a time."""
    sessions = [collapsed(session) for session in SESSIONS if session]
    count = len(sessions)
    rows = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        having = [n for n, session in enumerate(sessions) if i in session]
        idf = log(count / max(1, len(having))) ** p["idf_power"]
        for n in having[-p["sessions_per_item"] :]:
            session = sessions[n]
            worth = len(set(session)) ** -p["length_power"] * exp(-p["recency"] * (count - 1 - n) / count)
            at = max(place for place, item in enumerate(session) if item == i)
            for place, item in enumerate(session):
                if abs(place - at) <= p["reach"]:
                    side = p["ahead"] if place > at else p["behind"]
                    near = p["repeat"] if place == at else side * exp(-abs(place - at) / p["distance_decay"])
                    rows[i, item] += idf * worth * near
    if p["hop"]:
        sums = np.where(rows.sum(axis=1) > 0, rows.sum(axis=1), 1)
        rows = rows + p["hop"] * rows @ (rows / sums[:, None])
    return rows


def best_of(row: np.ndarray, count: int) -> dict[int, float]:
    order = sorted((j for j in range(ITEMS) if row[j] > 0), key=lambda j: (-np.float32(row[j]), j))[:count]
    return {j: row[j] for j in order}


def slow_scores(prefix: list[int], p: dict) -> np.ndarray:
    scores, heard, rows = np.zeros(ITEMS), set(), slow_rows(p)
    for step, item in enumerate(collapsed(prefix)[::-1][: len(p["reads"])]):
        if item not in heard:
            heard.add(item)
            for j, weight in best_of(rows[item], p["reads"][step]).items():
                scores[j] += exp(-step / p["place_decay"]) * weight
    return scores


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"reads": [4, 2, 1]},
        {"sessions_per_item": 2},
        {"reach": 1},
        {"hop": 0.4},
        {"idf_power": 0.0, "recency": 0.0},
    ],
    ids=str,
)
def test_against_loops(changed: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_transitions, "PAIRS_PER_BLOCK", 40)  # several blocks
    model = fitted(**changed)
    scores = model.score_sequences(make_sequences(PREFIXES, item_count=ITEMS))
    for row, prefix in enumerate(PREFIXES):
        np.testing.assert_allclose(scores[row], slow_scores(prefix, {**PARAMS, **changed}), rtol=1e-5, err_msg=prefix)
    assert scores[1].tolist() == scores[6].tolist() == [0.0] * ITEMS
    assert (scores[0] > 0).sum() >= 4
    rows = slow_rows({**PARAMS, **changed})
    assert [n for n, _ in model.similar(1, 3)] == [n for n in best_of(rows[1], max(model.params["reads"])) if n != 1][
        :3
    ]


def test_a_session_of_one_item_is_ranked_as_session_knn_ranks_it() -> None:
    """With nothing left out both are the same sum; of more items only the place differs that a neighbour votes from."""
    shared = {
        name: value for name, value in PARAMS.items() if name not in ("reads", "sessions_per_item", "reach", "hop")
    }
    sessions = make_sequences([collapsed(session) for session in SESSIONS if session], item_count=ITEMS)
    knn = build_sequence_model("session_knn", {**shared, "neighbours": 99})
    knn.fit(sessions)
    alone = make_sequences([[item] for item in range(ITEMS)], item_count=ITEMS)
    np.testing.assert_allclose(fitted().score_sequences(alone), knn.score_sequences(alone), rtol=1e-5)


def test_a_long_session_is_cut_and_nothing_is_learned_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_transitions, "LONGEST_SESSION", 2)
    long, short = (build_sequence_model("session_transitions", PARAMS) for _ in range(2))
    long.fit(make_sequences([[0, 1, 2, 3, 4], [5, 6]], item_count=ITEMS))
    short.fit(make_sequences([[0, 1], [2, 3], [4], [5, 6]], item_count=ITEMS))
    asked = make_sequences([[0], [3], [4], [6]], item_count=ITEMS)
    np.testing.assert_array_equal(long.score_sequences(asked), short.score_sequences(asked))
    nowhere: list[list[list[int]]] = [[], [[]]]
    for nothing in nowhere:
        empty = build_sequence_model("session_transitions", PARAMS)
        empty.fit(make_sequences(nothing, item_count=ITEMS))
        assert not empty.score_sequences(asked).any()
        assert empty.similar(0, 3) == []


def test_reasons_are_the_terms_of_the_score() -> None:
    model, prefix = fitted(), make_sequences([[5, 2, 0, 1]], item_count=ITEMS)
    scores = model.score_sequences(prefix)[0]
    speakers, terms = model.sequence_terms(prefix, list(range(ITEMS)))
    assert sorted(speakers.tolist()) == [0, 1, 2, 5]
    np.testing.assert_allclose(terms.sum(axis=1), scores, rtol=1e-5)
    for item, (first, second) in enumerate(model.explain_sequence(prefix, range(ITEMS))):
        told = sorted(((-terms[item, at], int(by)) for at, by in enumerate(speakers) if terms[item, at] > 0))
        assert [first, second] == [*(by for _, by in told), None, None][:2]
    assert model.explain_sequence(make_sequences([[7]], item_count=ITEMS), [1]) == [(None, None)]


def walks(steps: list[int], *, sessions: int, seed: int) -> Sequences:
    """Sessions that go round a ring of 40 by one of `steps` a time, oldest first."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(sessions):
        walk = rng.integers(40) + np.cumsum(rng.choice(steps, 7))
        found.append((walk % 40).tolist())
    return make_sequences(found, item_count=40)


def errands(*, sessions: int, seed: int) -> Sequences:
    """Sessions of one of 8 errands of 30 things each, in no order, with as many things that belong to none."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(sessions):
        errand = 30 * rng.integers(8) + rng.permutation(30)[:7]
        found.append(rng.permutation(np.r_[errand, 240 + rng.permutation(160)[:7]]).tolist())
    return make_sequences(found, item_count=400)


def test_the_manner_is_the_one_that_foretells_the_newest_sessions() -> None:
    stream = choose_session_recipe(walks([1, 2, 7], sessions=900, seed=1))
    basket = choose_session_recipe(errands(sessions=900, seed=1))
    assert (stream.manner, basket.manner) == ("stream", "basket")
    assert stream.questions > 50
    assert stream.reached.keys() == SESSION_MANNERS.keys()
    assert basket.recipe["params"]["place_decay"] == 20.0
    assert basket == choose_session_recipe(errands(sessions=900, seed=1))


def test_too_few_sessions_choose_nothing() -> None:
    few = choose_session_recipe(make_sequences(SESSIONS, item_count=ITEMS))
    assert (few.manner, few.reached) == ("stream", {})
    assert choose_session_recipe(make_sequences([], item_count=0)).questions == 0


def test_an_asked_session_teaches_nothing_and_what_it_had_is_not_asked_for() -> None:
    sessions = [[0, 1]] * 900 + [[2, 3]] * 50 + [[2, 2, 2]] * 50
    found = choose_session_recipe(make_sequences(sessions, item_count=4))
    assert found.questions == 50  # the newest 100; half of them never had anything new
    assert {reached["hr"] for reached in found.reached.values()} == {0.0}
