"""The model `trending`, worked out by hand: a window against what was before it, and nothing after the cut-off."""

from __future__ import annotations

from datetime import datetime, timedelta
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.times import to_micros
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.factory import build_model, fit, load_model, remember
from spark_jobs.models.ranking import top_items
from spark_jobs.models.recipes import blend_recipe, default_recipe
from spark_jobs.models.training_data import TrainingData
from tests.builders import utc

CUT_OFF, START = utc("2024-03-29"), utc("2024-03-22")
MICRO = timedelta(microseconds=1)
ITEMS = 6  # item 5 is nobody's
LAST_WEEK, EARLIER = utc("2024-03-25"), utc("2024-03-10")

Event = tuple[str, int, str, datetime]


def views(item: int, people: int, moment: datetime, first: int = 0) -> list[Event]:
    return [(f"u:{first + n}", item, "view_item", moment) for n in range(people)]


EVENTS: list[Event] = [
    *views(0, 5, EARLIER), *views(0, 1, START - MICRO, 5),  # the best seller: 6 before the window
    *views(0, 5, LAST_WEEK), *views(0, 1, START, 5),  # and 6 in it, one at its first instant
    *views(1, 2, EARLIER), *views(1, 5, LAST_WEEK), *views(1, 1, CUT_OFF - MICRO, 5),  # it rises: 2, then 6
    ("u:7", 2, "purchase", LAST_WEEK),  # new: 4
    ("u:8", 3, "purchase", EARLIER), ("u:8", 3, "purchase", EARLIER + MICRO),  # 8, capped at 4, and then nothing
    ("u:9", 4, "purchase", LAST_WEEK), ("u:9", 4, "purchase", LAST_WEEK + MICRO),  # capped at 4: equal to item 2
    *views(5, 9, CUT_OFF), *views(4, 9, CUT_OFF + timedelta(days=1)),  # too late to be known
    ("u:1", 2, "share", LAST_WEEK),  # of no weight
]  # fmt: skip


def recipe(**params: Any) -> dict[str, Any]:
    half_life = params.pop("half_life_days", None)
    own = {"window_days": 7.0, "damping": 6.0, "contrast": 1.0, "subject_cap": 4.0, **params}
    weights = {"view_item": 1.0, "purchase": 4.0}
    return {"model": "trending", "weights": weights, "half_life_days": half_life, "params": own}


def data_of(events: list[Event]) -> TrainingData:
    table = pa.table({
        "subject_key": [e[0] for e in events], "item_number": [e[1] for e in events],
        "event_type": [e[2] for e in events], "micros": pa.array([to_micros(e[3]) for e in events], pa.int64()),
    })  # fmt: skip
    return TrainingData(table, item_count=ITEMS, cut_off=CUT_OFF)


def scores_of(events: list[Event], **params: Any) -> np.ndarray:
    model, matrix = fit(recipe(**params), data_of(events))
    scores = model.score_block(matrix.preference)
    assert scores.shape == (len({e[0] for e in events if e[3] < CUT_OFF}), ITEMS), "also who did nothing in the window"
    assert (scores == scores[0]).all()
    return scores[0]


def test_by_hand() -> None:
    """20 in the window: 6, 6, 4, 0, 4. Before it 12: 6, 2, 0, 4, 0. So 10, 10/3, 0, 20/3 and 0 were usual."""
    fallen = -(20 / 3) / sqrt(20 / 3 + 6)
    expected = [-4 / sqrt(16), (8 / 3) / sqrt(28 / 3), 4 / sqrt(6), fallen, 4 / sqrt(6), fallen]
    found = scores_of(EVENTS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[2] == found[4]
    assert top_items(found[None, :], ITEMS)[0][0].tolist() == [2, 4, 1, 0, 3, 5], "of equal ones the lower number"


def test_half_of_what_is_usual_is_taken_off() -> None:
    fallen = -(10 / 3) / sqrt(10 / 3 + 6)
    expected = [1 / sqrt(11), (6 - 5 / 3) / sqrt(5 / 3 + 6), 4 / sqrt(6), fallen, 4 / sqrt(6), fallen]
    np.testing.assert_allclose(scores_of(EVENTS, contrast=0.5), expected, rtol=1e-6)


def test_without_contrast_it_is_popularity_within_the_window() -> None:
    expected = np.array([6, 6, 4, 0, 4, 0]) / sqrt(6)
    np.testing.assert_allclose(scores_of(EVENTS, contrast=0.0), expected, rtol=1e-6)


def test_the_half_life_is_of_the_window_alone() -> None:
    """The view at the window's first instant is a week old, the others there four days; before, all count alike."""
    four, week = 2 ** (-4 / 7), 0.5
    now = np.array([5 * four + week, 5 * four + 1, 4 * four, 0, 4, 0])  # 8 * four = 5.4 is capped
    usual = now.sum() * np.array([6, 2, 0, 4, 0, 0]) / 12
    expected = (now - usual) / np.sqrt(usual + 6)
    expected[5] = expected.min()
    np.testing.assert_allclose(scores_of(EVENTS, half_life_days=7.0), expected, rtol=1e-5)


@pytest.mark.parametrize("window_days", [30.0, 3650.0])
def test_where_nothing_was_before_the_window_it_is_popularity(window_days: float) -> None:
    expected = np.array([12, 8, 4, 4, 4, 0]) / sqrt(6)
    np.testing.assert_allclose(scores_of(EVENTS, window_days=window_days), expected, rtol=1e-6)


def test_where_nothing_happened_in_the_window_all_are_as_they_were() -> None:
    quiet = [event for event in EVENTS if event[3] < START]
    model, matrix = fit(recipe(), data_of(quiet))
    assert model.score_block(matrix.preference).any(axis=1).sum() == 0


def test_a_short_window_sees_what_a_long_one_does_not() -> None:
    """Item 0 had everything until the last day, item 1 the last day."""
    events = [*views(0, 10, utc("2024-03-20")), *views(0, 6, utc("2024-03-26")), *views(1, 4, CUT_OFF - MICRO, 6)]
    day = scores_of(events, window_days=1.0)
    np.testing.assert_allclose(day[:2], [-4 / sqrt(10), 4 / sqrt(6)], rtol=1e-6)
    week = scores_of(events)
    np.testing.assert_allclose(week[:2], [-4 / sqrt(16), 4 / sqrt(6)], rtol=1e-6)


def test_what_comes_later_moves_nothing_and_neither_does_the_order_of_rows() -> None:
    before = scores_of([event for event in EVENTS if event[3] < CUT_OFF])
    assert before.tobytes() == scores_of(EVENTS).tobytes() == scores_of(EVENTS[::-1]).tobytes()


def test_it_names_no_reasons_and_is_the_same_from_disk(tmp_path: Path) -> None:
    model, matrix = fit(recipe(), data_of(EVENTS))
    history = matrix.preference[0]
    assert model.explain(history, 0, [0, 1]) == [(None, None), (None, None)]
    assert model.terms(history, 0, [0, 1]).values.shape == (2, 0)
    assert model.similar(0, 3) == []
    model.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert (loaded.name, dict(loaded.params)) == ("trending", recipe()["params"])
    np.testing.assert_array_equal(loaded.score_block(matrix.preference), model.score_block(matrix.preference))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"window_days": 0}, "window_days is above 0 and at most 3,650, got 0"),
        ({"window_days": 4000.0}, "window_days is above 0"),
        ({"window_days": float("nan")}, "window_days is above 0"),
        ({"damping": 0.0}, "damping is above 0, got 0"),
        ({"contrast": 1.5}, "contrast is 0 to 1, got 1.5"),
        ({"window": 3}, "did you mean 'window_days'"),
    ],
)
def test_what_makes_no_sense_is_refused(params: dict[str, Any], words: str) -> None:
    assert default_recipe("trending")["params"].keys() == build_model("trending", {}).params.keys()
    with pytest.raises(DataError, match=words):
        build_model("trending", params)


def test_as_a_part_of_a_blend_it_adds_to_scores_and_names_nothing(tmp_path: Path) -> None:
    """In every list item 2 and 4, which rise, gain on item 0, which does not; reasons are the other part's."""
    parts = {"trending": recipe(), "popularity": {**default_recipe("popularity"), "half_life_days": None}}
    data = data_of(EVENTS)

    def blended(weight: float) -> tuple[Model, InteractionMatrix]:
        weights = {part: {"popularity": 1.0, "trending": weight} for part in ("<5", "5-20", ">20")}
        return fit(blend_recipe(parts, weights), data)

    model, matrix = blended(2.0)
    rows = np.arange(len(matrix.subjects))
    with_it = model.score_block(matrix.preference, rows)
    without = blended(1e-6)[0].score_block(matrix.preference, rows)
    assert (with_it[:, [2, 4]] > with_it[:, [0]]).all()
    assert (without[:, [2, 4]] < without[:, [0]]).all()
    assert model.explain(matrix.preference[0], 0, [2, 4]) == [(None, None), (None, None)]
    model.save(tmp_path / "blend")
    loaded = load_model(tmp_path / "blend")
    remember(loaded, blend_recipe(parts, model.params["weights"]), data)
    np.testing.assert_array_equal(loaded.score_block(matrix.preference, rows), with_it)
