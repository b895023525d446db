"""The models of ordered histories against slow oracles."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from math import exp, log
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from feature_repo.contracts.errors import DataError
from spark_jobs.models.factory import (
    SEQUENCE_MODELS,
    build_sequence_model,
    fit_recipe,
    load_model,
    load_sequence_model,
)
from spark_jobs.models.ordered import OrderedModel
from spark_jobs.models.recipes import SEQUENCE_RECIPES, default_sequence_recipe
from spark_jobs.models.sequences import SequenceModel, Sequences, build_sequences, last_places, make_sequences
from spark_jobs.models.sequential_rules import SequentialRules

DAY = 86_400_000_000
SESSIONS = [[0, 1, 2], [1, 3, 1, 4], [4], [2, 0, 5], [0, 1, 5, 6, 1], [3, 2], [1, 0]]
ITEMS = 9  # 7 and 8 are nobody's


def fitted(name: str, sessions: list[list[int]] = SESSIONS, **params: object) -> SequenceModel:
    model = build_sequence_model(name, params)
    model.fit(make_sequences(sessions, item_count=ITEMS))
    return model


def ask(*prefixes: list[int]) -> Sequences:
    return make_sequences(list(prefixes), item_count=ITEMS)


# --- sequences ---------------------------------------------------------------------------------------------------


def test_sequences_from_interactions() -> None:
    rows = [
        ("u:b", 4, "view_item", 50),  # b's events are not in order, and the view comes with the cart of the same item
        ("u:b", 4, "add_to_cart", 60),
        ("u:b", 2, "view_item", 10),
        ("u:b", 4, "view_item", 5),
        ("u:a", 1, "purchase", 7),
        ("u:a", 1, "search", 3),  # no weight
        ("u:c", 3, "view_item", 100),  # the cut-off itself: out, and c with it
    ]
    names = ("subject_key", "item_number", "event_type", "micros")
    table = pa.table({name: [row[n] for row in rows] for n, name in enumerate(names)})
    weights = {"view_item": 1.0, "add_to_cart": 3.0, "purchase": 9.0}
    subjects, found = build_sequences(table, item_count=5, weights=weights, cut_off_micros=100)
    assert subjects.tolist() == ["u:a", "u:b"]
    assert found.starts.tolist() == [0, 1, 4]
    assert found.items.tolist() == [1, 4, 2, 4]
    assert found.weights.tolist() == [9.0, 1.0, 1.0, 3.0]
    assert found.micros.tolist() == [7, 5, 10, 50]
    _, whole = build_sequences(table, item_count=5, weights=weights, cut_off_micros=100, collapse=False)
    assert whole.items.tolist() == [1, 4, 2, 4, 4]
    with pytest.raises(DataError, match=r"item numbers 1\.\.4, expected 0\.\.3"):
        build_sequences(table, item_count=4, weights=weights, cut_off_micros=100)
    with pytest.raises(DataError, match=r"item numbers 0\.\.9"):
        make_sequences([[0, 9]], item_count=9)


def test_blocks_and_last_places() -> None:
    sequences = make_sequences([[3, 3, 5], [], [1, 2, 1]], item_count=6)
    part = sequences.block(np.array([2, -1, 0]))
    assert part.starts.tolist() == [0, 3, 3, 6]
    assert part.items.tolist() == [1, 2, 1, 3, 3, 5]
    rows, places, steps = sequences.last(2)
    assert list(zip(rows, places, steps, strict=True)) == [(0, 1, 1), (0, 2, 0), (2, 4, 1), (2, 5, 0)]
    found = last_places(sequences, 3, np.array([1.0, 0.5, 0.25])).toarray()
    assert found.tolist() == [[0, 0, 0, 0.5, 0, 1.0], [0] * 6, [0, 1.0, 0.5, 0, 0, 0]]
    assert len(make_sequences([], item_count=3)) == 0


# --- sequential rules --------------------------------------------------------------------------------------------


def slow_rules(params: dict[str, float]) -> np.ndarray:
    rules = np.zeros((ITEMS, ITEMS))
    for session in SESSIONS:
        for a, before in enumerate(session):
            for b in range(a + 1, min(len(session), a + int(params["steps"]) + 1)):
                if before != session[b]:
                    rules[before, session[b]] += (b - a) ** -params["step_power"]
                    rules[session[b], before] += params["backward"] * (b - a) ** -params["step_power"]
    leads, follows = rules.sum(axis=1), rules.sum(axis=0)
    for i in range(ITEMS):
        for j in range(ITEMS):
            if rules[i, j]:
                rules[i, j] /= leads[i] ** params["source_power"] * follows[j] ** params["target_power"]
    return rules


def test_sequential_rules_against_loops() -> None:
    params = {
        "steps": 2, "step_power": 1.5, "backward": 0.25, "source_power": 0.5, "target_power": 0.3,
        "last_items": 3, "place_power": 0.7,
    }  # fmt: skip
    model = fitted("sequential_rules", **params)
    rules = slow_rules(params)
    prefixes = [[0, 1], [4, 1, 0, 1], [7], [5, 3, 2, 6]]
    expected = np.zeros((4, ITEMS))
    for row, prefix in enumerate(prefixes):
        spoken = {}
        for steps, item in enumerate(reversed(prefix[-3:])):
            spoken.setdefault(item, (1 + steps) ** -0.7)
        for item, weight in spoken.items():
            expected[row] += weight * rules[item]
    np.testing.assert_allclose(model.score_sequences(ask(*prefixes)), expected, rtol=1e-5)
    best = sorted((j for j in range(ITEMS) if rules[1, j]), key=lambda j: (-np.float32(rules[1, j]), j))
    assert [number for number, _ in model.similar(1, 9)] == best
    assert model.similar(7, 3) == []


def test_a_rule_follows_the_order_and_the_weight_of_what_follows() -> None:
    model = build_sequence_model("sequential_rules", {"backward": 0.0})
    model.fit(
        Sequences(
            np.array([0, 2, 4]), np.array([0, 1, 0, 2], np.int32), np.array([1, 1, 1, 5], np.float32),
            np.array([0, 1, 0, 1]), 3, 2,
        )
    )  # fmt: skip
    assert model.score_sequences(make_sequences([[0], [1]], item_count=3)).tolist() == [[0, 1, 5], [0, 0, 0]]


def test_a_rule_fades_with_the_time_between() -> None:
    hour = DAY // 24
    model = build_sequence_model("sequential_rules", {"backward": 0.0, "step_power": 0.0, "half_gap_hours": 2.0})
    model.fit(
        Sequences(
            np.array([0, 3]), np.array([0, 1, 2], np.int32), np.ones(3, np.float32), np.array([0, 2 * hour, 6 * hour]),
            3, 7 * hour,
        )
    )  # fmt: skip
    assert isinstance(model, SequentialRules)
    np.testing.assert_allclose(model.rules.toarray(), [[0, 1 / 2, 1 / 8], [0, 0, 1 / 4], [0, 0, 0]])


# --- session kNN -------------------------------------------------------------------------------------------------


def slow_session_knn(prefix: list[int], p: dict[str, float]) -> np.ndarray:
    idf = {i: log(len(SESSIONS) / max(1, sum(i in s for s in SESSIONS))) ** p["idf_power"] for i in range(ITEMS)}
    query: dict[int, float] = {}
    for steps, item in enumerate(reversed(prefix)):
        query.setdefault(item, exp(-steps / p["place_decay"]))
    neighbours = []
    for n, session in enumerate(SESSIONS):
        age = (len(SESSIONS) - 1 - n) / len(SESSIONS)
        worth = len(set(session)) ** -p["length_power"] * exp(-p["recency"] * age)
        similarity = sum(query[i] * idf[i] * worth for i in set(session) if i in query)
        if similarity > 0:
            neighbours.append((similarity, n))
    scores = np.zeros(ITEMS)
    for similarity, n in sorted(neighbours, key=lambda pair: (-round(pair[0], 6), -pair[1]))[: int(p["neighbours"])]:
        session = SESSIONS[n]
        latest = max((i for i in session if i in query), key=lambda i: query[i])
        match = max(place for place, item in enumerate(session) if item == latest)
        for place, item in enumerate(session):
            side = p["ahead"] if place > match else p["behind"]
            near = side * exp(-abs(place - match) / p["distance_decay"])
            held_by = sum(item in s for s in SESSIONS)
            vote = similarity * (p["repeat"] if place == match else near) / held_by ** p["popular_power"]
            scores[item] += vote * (p["last"] if item == prefix[-1] else 1.0)
    return scores


@pytest.mark.parametrize("neighbours", [2, 50])
def test_session_knn_against_loops(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.models.session_knn.SESSIONS_PER_BLOCK", 2)
    params = {
        "neighbours": neighbours, "place_decay": 1.3, "distance_decay": 2.0, "length_power": 0.5, "idf_power": 1.5,
        "recency": 0.8, "ahead": 1.0, "behind": 0.6, "repeat": 1.1, "popular_power": 0.3, "last": 0.4,
    }  # fmt: skip
    model = fitted("session_knn", **params)
    prefixes = [[0, 1], [7], [4, 1, 4], [5, 2, 0], [3]]
    found = model.score_sequences(ask(*prefixes))
    for row, prefix in enumerate(prefixes):
        np.testing.assert_allclose(found[row], slow_session_knn(prefix, params), rtol=1e-4, atol=1e-6)
    assert found[1].tolist() == [0.0] * ITEMS, "nobody knows item 7"
    assert np.abs(found[0]).max() > 0
    assert model.similar(7, 3) == []
    assert {number for number, _ in model.similar(3, 9)} <= {1, 2, 4}


def test_a_running_session_that_is_empty_ends_nowhere() -> None:
    """And moves nobody else's end: `last` 0 takes 1 away from the second session alone."""
    model = fitted("session_knn", [[0, 1], [2, 1], [0, 2]], last=0.0)
    found = model.score_sequences(ask([], [0, 1], [], [0], []))
    assert [row.any() for row in found] == [False, True, False, True, False]
    assert (found[1, 1], found[3, 0]) == (0.0, 0.0)
    assert min(found[1, 0], found[3, 1], found[3, 2]) > 0


def test_session_knn_of_before_it_knew_of_popularity(tmp_path: Path) -> None:
    """What was saved without `popular_power` and `last` says what it said."""
    old = fitted("session_knn")
    old.params = {name: value for name, value in old.params.items() if name not in ("popular_power", "last")}
    old.save(tmp_path)
    again = type(old).load(tmp_path)
    np.testing.assert_array_equal(
        again.score_sequences(ask([0, 1])), fitted("session_knn").score_sequences(ask([0, 1]))
    )


def test_a_long_session_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.models.session_knn.LONGEST_SESSION", 2)
    long = fitted("session_knn", [[0, 1, 2, 3, 4], [], [5, 6]])
    short = fitted("session_knn", [[0, 1], [2, 3], [4], [5, 6]])
    asked = ask([0], [3], [4], [6])
    np.testing.assert_array_equal(long.score_sequences(asked), short.score_sequences(asked))


def test_of_equal_neighbours_the_newest_vote() -> None:
    model = fitted("session_knn", [[0, 1], [0, 2], [0, 3]], neighbours=2, recency=0.0, idf_power=0.0)
    scores = model.score_sequences(ask([0]))[0]
    assert np.flatnonzero(scores).tolist() == [0, 2, 3]


@pytest.mark.parametrize("name", ["session_knn", "sequential_rules"])
def test_without_its_reason_an_item_falls(name: str) -> None:
    """Its place is taken by an item that nobody knows, so that the others keep theirs. Distances within neighbours are
    set aside: without the item they would count from another match."""
    even = {"distance_decay": 1e9, "repeat": 1.0, "idf_power": 0.5}
    model = fitted(name, **(even if name == "session_knn" else {}))
    told = 0
    for prefix in ([0, 1], [4, 3, 2], [5, 0], [1, 6]):
        scores = model.score_sequences(ask(prefix))[0]
        for item in np.flatnonzero(scores):
            first, second = model.explain_sequence(ask(prefix), [int(item)])[0]
            assert first in prefix
            assert second != first
            without = [7 if other == first else other for other in prefix]
            assert model.score_sequences(ask(without))[0, item] < scores[item]
            told += 1
    assert told > 10
    assert model.explain_sequence(ask([7]), [1]) == [(None, None)]


# --- repurchase --------------------------------------------------------------------------------------------------


def bought(*people: list[tuple[int, float]], cut_off_day: float = 100.0) -> Sequences:
    lengths = [len(person) for person in people]
    flat = [event for person in people for event in sorted(person, key=lambda event: event[1])]
    return Sequences(
        np.r_[0, np.cumsum(lengths)].astype(np.int64),
        np.array([item for item, _ in flat], np.int32),
        np.ones(len(flat), np.float32),
        np.array([int(day * DAY) for _, day in flat], np.int64),
        5,
        int(cut_off_day * DAY),
    )


def test_repurchase_counts_visits_and_lets_them_fade() -> None:
    people = bought([(0, 40), (0, 40), (0, 90), (1, 80)], [(2, 100)])  # twice in one moment is one visit
    model = build_sequence_model("repurchase", {"half_life_days": None, "due_power": 0.0})
    model.fit(people)
    assert model.score_sequences(people).tolist() == [[2, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    fading = build_sequence_model("repurchase", {"half_life_days": 10.0, "due_power": 0.0})
    fading.fit(people)
    np.testing.assert_allclose(fading.score_sequences(people)[0, :2], [2**-6 + 2**-1, 2**-2], rtol=1e-6)
    assert model.explain_sequence(people.block(np.array([0])), [1, 2]) == [(1, None), (None, None)]
    assert model.similar(0, 3) == []


def test_repurchase_knows_when_it_is_due() -> None:
    # Item 0 comes every 10 days, item 1 every 40; both were last bought 10 days ago.
    people = bought([(0, 70), (0, 80), (0, 90), (1, 10), (1, 50), (1, 90)], [(3, 60)])
    model = build_sequence_model("repurchase", {"half_life_days": None, "due_power": 1.0, "prior": 0.0})
    model.fit(people)
    scores = model.score_sequences(people)
    due = 10 / 40
    assert scores[0, 0] == pytest.approx(3.0)
    assert scores[0, 1] == pytest.approx(3 * due * exp(1 - due))
    assert model.intervals.tolist() == [10, 40, 25, 25, 25]  # the median of items for those that nobody bought twice
    prior = build_sequence_model("repurchase", {"half_life_days": None, "due_power": 1.0, "prior": 1.0})
    prior.fit(people)
    d = 40 / 25  # item 3: no interval of its own, one of 25 days
    assert prior.score_sequences(people)[1, 3] == pytest.approx(d * exp(1 - d))


# --- files and recipes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SEQUENCE_MODELS))
def test_saved_and_loaded_scores_the_same(name: str, tmp_path: Path) -> None:
    model = fitted(name)
    assert isinstance(model, SequenceModel)
    model.save(tmp_path / "m")
    loaded = load_sequence_model(tmp_path / "m")
    assert (loaded.name, dict(loaded.params)) == (name, dict(model.params))
    asked = ask([0, 1], [5])
    np.testing.assert_array_equal(loaded.score_sequences(asked), model.score_sequences(asked))
    assert np.abs(model.score_sequences(asked)).max() > 0
    behind = load_model(tmp_path / "m")
    assert isinstance(behind, OrderedModel)
    nobody = sparse.csr_matrix((2, loaded.score_sequences(asked).shape[1]), dtype=np.float32)
    assert not behind.score_block(nobody).any(), "it knows nobody's order"
    behind.remember(asked)
    np.testing.assert_array_equal(behind.score_block(nobody, np.array([0, 1])), model.score_sequences(asked))


def test_recipes_and_their_mistakes() -> None:
    assert set(SEQUENCE_RECIPES) == set(SEQUENCE_MODELS)
    with pytest.raises(DataError, match="did you mean 'session_knn'"):
        default_sequence_recipe("session_kn")
    with pytest.raises(DataError, match="did you mean 'recency'"):
        build_sequence_model("session_knn", {"recenc": 1})
    with pytest.raises(DataError, match="no sequence model 'als'"):
        build_sequence_model("als", {})


def test_a_recipe_is_fitted_on_interactions() -> None:
    by_day = defaultdict(list)
    for day, (subject, item) in enumerate([("u:a", 0), ("u:b", 2), ("u:a", 1), ("u:b", 0), ("u:b", 1)]):
        by_day["subject_key"].append(subject)
        by_day["item_number"].append(item)
        by_day["event_type"].append("view_item")
        by_day["micros"].append(day * DAY)
    cut_off = datetime(1970, 1, 5, tzinfo=UTC)  # b's last event is too late
    recipe = default_sequence_recipe("sequential_rules")
    recipe["params"].update(backward=0.0, place_power=1.0, last_items=5)
    table = pa.table(dict(by_day))
    recipe["half_life_days"] = None
    model, matrix = fit_recipe(recipe, table, item_count=3, cut_off=cut_off)
    assert matrix.subjects.tolist() == ["u:a", "u:b"]
    assert model.score_block(matrix.preference, np.array([0, 1])).tolist() == [[0, 0.5, 0], [0.5, 1.0, 0]]
    assert model.explain(matrix.preference[0], 0, [1]) == [(0, None)]
